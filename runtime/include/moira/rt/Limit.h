//===- Limit.h - the parameters of the call `limit`, read once --*- C++ -*-===//
// A capacity as its parameters say it, for every device that implements `limit`. Header only:
// devices link little of the runtime. Meaning: docs/routing.md.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_LIMIT_H
#define MOIRA_RT_LIMIT_H

#include "moira/rt/Device.h"

namespace moira::rt {

enum class DropPolicy : int32_t { position, probs, random, priority };
enum class LimitRenorm : int32_t { none, before, after };

struct Limit {
  int64_t experts = 1, capacity = 0;
  int64_t domains = 1; ///< equal runs of tokens; each expert has its capacity in each of them
  DropPolicy policy = DropPolicy::position;
  bool choiceMajor = false; ///< all first choices before any second one
  LimitRenorm renorm = LimitRenorm::none;
  double renormEpsilon = 0, renormClampMin = 0, scale = 1;
  uint64_t seed = 0;
  int64_t layer = 0;
  int64_t tokenOffset = 0; ///< number of this rank's first token among all
};

/// The limit of a call `limit`; `problem` says what is wrong with it, or stays empty.
inline Limit readLimit(const CallParams &params, int64_t tokens, std::string &problem) {
  std::string_view policy = params.text("policy"), order = params.text("order"),
                   renorm = params.text("renorm");
  Limit limit;
  limit.experts = params.integer("experts");
  limit.capacity = params.integer("capacity");
  limit.domains = params.integer("domains", 1);
  limit.policy = policy == "probs"      ? DropPolicy::probs
                 : policy == "random"   ? DropPolicy::random
                 : policy == "priority" ? DropPolicy::priority
                                        : DropPolicy::position;
  limit.choiceMajor = order == "choice_major";
  limit.renorm = renorm == "before"  ? LimitRenorm::before
                 : renorm == "after" ? LimitRenorm::after
                                     : LimitRenorm::none;
  limit.renormEpsilon = params.real("renorm_epsilon");
  limit.renormClampMin = params.real("renorm_clamp_min");
  limit.scale = params.real("scale", 1);
  limit.seed = uint64_t(params.integer("seed"));
  limit.layer = params.integer("layer");
  limit.tokenOffset = params.integer("token_offset");
  if ((limit.policy == DropPolicy::position && policy != "position") ||
      (!limit.choiceMajor && order != "token_major") ||
      (limit.renorm == LimitRenorm::none && renorm != "none"))
    problem = "unknown limit: policy '" + std::string(policy) + "', order '" + std::string(order) +
              "', renorm '" + std::string(renorm) + "'";
  else if (limit.experts < 1 || limit.capacity < 0 || limit.domains < 1 ||
           tokens % limit.domains != 0)
    problem = format("a capacity of %lld for %lld experts in %lld domains of %lld tokens",
                     (long long)limit.capacity, (long long)limit.experts, (long long)limit.domains,
                     (long long)tokens);
  return limit;
}

} // namespace moira::rt

#endif // MOIRA_RT_LIMIT_H
