//===- GradRouting.cu - gradients of gates, limits and row weights ----------===//
// route_grad, limit_grad, choice_dots. One thread a token, or one warp a choice.
//===----------------------------------------------------------------------===//
#include "GradTools.h"
#include "moira/rt/Gate.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int64_t kMostChoices = 64;

/// Weights divided by max(sum + epsilon, least) and times scale.
struct Renormalisation {
  bool divides, ofKept;
  float epsilon, least, scale;

  /// `grads` of the quotients become those of the weights; `kept` may be null: all.
  __device__ void back(const float *weights, float *grads, const int32_t *kept, int64_t k) const {
    auto counts = [&](int64_t j) { return !ofKept || !kept || kept[j] >= 0; };
    float total = 0, dot = 0;
    for (int64_t j = 0; j < k; ++j) {
      total += counts(j) ? weights[j] : 0.0f;
      dot += grads[j] * weights[j];
    }
    float divisor = fmaxf(total + epsilon, least);
    for (int64_t j = 0; j < k; ++j) {
      if (divides) {
        grads[j] /= divisor;
        if (counts(j) && total + epsilon >= least)
          grads[j] -= dot / (divisor * divisor);
      }
      grads[j] *= scale;
    }
  }
};

struct GateArgs {
  int64_t experts, k;
  GateScore score;
  bool scoreFirst;
  float jitterEps;
  Renormalisation renorm;
};

__device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

/// One token's gate: logits of all experts, its choices, what comes back to their weights.
struct TokenGrad {
  const GateArgs &gate;
  Reader logits;
  int64_t first; // of the token's logits
  const int32_t *ids;
  float *grads; // zero to begin with

  __device__ float logit(int64_t e) const { return logits[first + e]; }
  __device__ bool isChosen(int64_t e, int64_t choices) const {
    for (int64_t j = 0; j < choices; ++j)
      if (ids[j] == e)
        return true;
    return false;
  }

  template <typename Among>
  __device__ void largestAndTotal(Among among, float &largest, float &total) const {
    largest = -INFINITY, total = 0;
    for (int64_t e = 0; e < gate.experts; ++e)
      if (among(e))
        largest = fmaxf(largest, logit(e));
    for (int64_t e = 0; e < gate.experts; ++e)
      if (among(e))
        total += expf(logit(e) - largest);
  }

  /// Through one softmax over the experts for which `among` holds.
  template <typename Among>
  __device__ void softmax(float *weights, float *given, Among among) const {
    float largest, total, dot = 0;
    largestAndTotal(among, largest, total);
    for (int64_t j = 0; j < gate.k; ++j)
      weights[j] = expf(logit(ids[j]) - largest) / total;
    gate.renorm.back(weights, given, nullptr, gate.k);
    for (int64_t j = 0; j < gate.k; ++j)
      dot += given[j] * weights[j];
    for (int64_t e = 0; e < gate.experts; ++e)
      if (among(e))
        grads[e] = -dot * expf(logit(e) - largest) / total;
    for (int64_t j = 0; j < gate.k; ++j)
      grads[ids[j]] += given[j] * weights[j];
  }

  __device__ void elementwise(float *weights, float *given) const {
    bool sigmoid = gate.score == GateScore::sigmoid;
    for (int64_t j = 0; j < gate.k; ++j)
      weights[j] = sigmoid ? sigmoidOf(logit(ids[j])) : sqrtf(softplus(logit(ids[j])));
    gate.renorm.back(weights, given, nullptr, gate.k);
    for (int64_t j = 0; j < gate.k; ++j) {
      float s = sigmoidOf(logit(ids[j]));
      grads[ids[j]] += given[j] * (sigmoid ? s * (1 - s) : s / (2 * weights[j]));
    }
  }

  __device__ void sparsemixer(const float *given) const {
    for (int64_t j = 0; j < gate.k; ++j) {
      float most = -INFINITY, largest, total;
      for (int64_t e = 0; e < gate.experts; ++e)
        if (!isChosen(e, j))
          most = fmaxf(most, logit(e));
      auto among = [&](int64_t e) {
        return !isChosen(e, j) &&
               !((most - logit(e)) / fmaxf(fabsf(logit(e)), most) > 2 * gate.jitterEps);
      };
      largestAndTotal(among, largest, total);
      float weight = expf(logit(ids[j]) - largest) / total, grad = given[j] * gate.renorm.scale;
      for (int64_t e = 0; e < gate.experts; ++e)
        if (among(e))
          grads[e] -= grad * weight * expf(logit(e) - largest) / total;
      grads[ids[j]] += grad * weight;
    }
  }
};

__global__ void routeBack(Reader dy, Reader logits, const int32_t *ids, float *dx, int64_t tokens,
                          GateArgs gate, int32_t *flag) {
  float weights[kMostChoices], given[kMostChoices];
  for (int64_t t = threadNumber(); t < tokens; t += threadCount()) {
    TokenGrad token{gate, logits, t * gate.experts, ids + t * gate.k, dx + t * gate.experts};
    bool sound = true;
    for (int64_t e = 0; e < gate.experts; ++e)
      token.grads[e] = 0;
    for (int64_t j = 0; j < gate.k; ++j) {
      given[j] = dy[t * gate.k + j];
      sound &= token.ids[j] >= 0 && token.ids[j] < gate.experts;
    }
    if (!sound) {
      raise(flag, Fault::expert);
      continue;
    }
    if (gate.score == GateScore::sparsemixer)
      token.sparsemixer(given);
    else if (gate.score != GateScore::softmax)
      token.elementwise(weights, given);
    else if (gate.scoreFirst)
      token.softmax(weights, given, [](int64_t) { return true; });
    else
      token.softmax(weights, given, [&](int64_t e) { return token.isChosen(e, gate.k); });
  }
}

__global__ void limitBack(Reader dy, Reader before, const int32_t *ids, float *dx, int64_t tokens,
                          int64_t k, Renormalisation renorm) {
  float weights[kMostChoices], grads[kMostChoices];
  for (int64_t t = threadNumber(); t < tokens; t += threadCount()) {
    const int32_t *kept = ids + t * k;
    for (int64_t j = 0; j < k; ++j) {
      weights[j] = before[t * k + j];
      grads[j] = kept[j] < 0 ? 0.0f : dy[t * k + j];
    }
    renorm.back(weights, grads, kept, k);
    for (int64_t j = 0; j < k; ++j)
      dx[t * k + j] = grads[j];
  }
}

/// One warp a choice.
__global__ void dotRows(Reader rows, Reader x, const int32_t *pos, float *out, int64_t choices,
                        int64_t k, int64_t width, int64_t available, int32_t *flag) {
  int64_t j = warpNumber();
  if (j >= choices)
    return;
  int64_t row = pos[j];
  float dot = 0;
  if (row < -1 || row >= available) {
    if (laneNumber() == 0)
      raise(flag, Fault::row);
  } else if (row >= 0) {
    for (int64_t d = laneNumber(); d < width; d += 32)
      dot += rows[row * width + d] * x[j / k * width + d];
  }
  dot = warpSum(dot);
  if (laneNumber() == 0)
    out[j] = dot;
}

Status tooManyChoices(const Call &call, int64_t k) {
  return notOnCuda(call, format("%lld choices a token", (long long)k));
}

} // namespace

Status ops::route_grad(const Call &call) {
  int64_t experts = trailing(call.in[1], 1), tokens = leading(call.in[1], 1),
          k = trailing(call.in[2], 1);
  std::string problem;
  Gate gate = readGate(call.params, experts, k, problem);
  if (!problem.empty())
    return badCall(call, problem);
  if (k > kMostChoices)
    return tooManyChoices(call, k);
  if (tokens == 0)
    return {};
  GateArgs args{experts,
                k,
                gate.score,
                gate.scoreFirst,
                float(gate.jitterEps),
                {gate.renorm, false, float(gate.renormEpsilon), float(gate.renormClampMin),
                 float(gate.scale)}};
  routeBack<<<blocksOfThreads(tokens), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0), tokens,
      args, call.context.errorFlag);
  return launched(call);
}

Status ops::limit_grad(const Call &call) {
  int64_t k = trailing(call.in[0], 1), tokens = leading(call.in[0], 1);
  if (k > kMostChoices)
    return tooManyChoices(call, k);
  if (tokens == 0)
    return {};
  std::string_view renorm = call.params.text("renorm");
  limitBack<<<blocksOfThreads(tokens), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0), tokens,
      k,
      {renorm != "none", renorm == "after", float(call.params.real("renorm_epsilon")),
       float(call.params.real("renorm_clamp_min")), float(call.params.real("scale", 1))});
  return launched(call);
}

Status ops::choice_dots(const Call &call) {
  int64_t choices = call.in[2].elements(), k = trailing(call.in[2], 1),
          width = trailing(call.in[0], 1);
  if (choices == 0)
    return {};
  dotRows<<<blocksOfWarps(choices), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0),
      choices, k, width, leading(call.in[0], 1), call.context.errorFlag);
  return launched(call);
}

} // namespace moira::rt::cuda
