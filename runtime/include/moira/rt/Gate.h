//===- Gate.h - the parameters of the call `route`, read once ---*- C++ -*-===//
// A gate as its parameters say it, for every device that implements `route`. Header only: devices
// link little of the runtime. Meaning: docs/routing.md.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_GATE_H
#define MOIRA_RT_GATE_H

#include "moira/rt/Device.h"

namespace moira::rt {

enum class GateScore : int32_t { softmax, sigmoid, sqrtSoftplus, sparsemixer };

struct Gate {
  int32_t experts = 1, k = 1;
  GateScore score = GateScore::softmax;
  bool scoreFirst = true; ///< score all and choose; else choose on logits and score the chosen
  int32_t groups = 1, groupKeep = 1;
  bool top2Sum = false; ///< a group's score: the sum of its two largest; else its largest
  bool renorm = false;
  double renormEpsilon = 0, renormClampMin = 0, jitterEps = 0, scale = 1;

  int32_t groupSize() const { return experts / groups; }
};

/// The gate of a call `route`; `problem` says what is wrong with it, or stays empty.
inline Gate readGate(const CallParams &params, int64_t experts, int64_t k, std::string &problem) {
  std::string_view score = params.text("score"), order = params.text("order"),
                   renorm = params.text("renorm"), groupScore = params.text("group_score");
  Gate gate;
  gate.experts = int32_t(experts);
  gate.k = int32_t(k);
  gate.score = score == "sigmoid"         ? GateScore::sigmoid
               : score == "sqrt_softplus" ? GateScore::sqrtSoftplus
               : score == "sparsemixer"   ? GateScore::sparsemixer
                                          : GateScore::softmax;
  gate.scoreFirst = order == "score_topk";
  gate.groups = int32_t(params.integer("groups", 1));
  gate.groupKeep = int32_t(params.integer("group_keep", 1));
  gate.top2Sum = groupScore == "top2_sum";
  gate.renorm = renorm == "sum";
  gate.renormEpsilon = params.real("renorm_epsilon");
  gate.renormClampMin = params.real("renorm_clamp_min");
  gate.jitterEps = params.real("jitter_eps");
  gate.scale = params.real("scale", 1);
  if ((gate.score == GateScore::softmax && score != "softmax") ||
      (!gate.scoreFirst && order != "topk_score") || (!gate.renorm && renorm != "none") ||
      (!gate.top2Sum && !groupScore.empty() && groupScore != "max"))
    problem = "unknown gate: score '" + std::string(score) + "', order '" + std::string(order) +
              "', renorm '" + std::string(renorm) + "', group_score '" + std::string(groupScore) +
              "'";
  else if (k < 1 || k > experts)
    problem = format("%lld choices among %lld experts", (long long)k, (long long)experts);
  else if (gate.groups < 1 || experts % gate.groups != 0 || gate.groupKeep < 1 ||
           gate.groupKeep > gate.groups || int64_t(gate.groupKeep) * gate.groupSize() < k)
    problem = format("%d of %d groups of %lld experts for %lld choices", gate.groupKeep,
                     gate.groups, (long long)experts, (long long)k);
  else if (gate.groups > 1 && gate.top2Sum && gate.groupSize() < 2)
    problem = "groups of one expert have no top-2 sum";
  else if (gate.score == GateScore::sparsemixer &&
           (!gate.scoreFirst || gate.groups != 1 || gate.renorm))
    problem = "a sparsemixer that chooses on logits, in groups or renormalises";
  return gate;
}

} // namespace moira::rt

#endif // MOIRA_RT_GATE_H
