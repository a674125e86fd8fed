//===- Routing.cu - the gate: score, top-k, renormalise ---------------------===//
// `route` only; what follows from the chosen experts is in Dispatch.cu. The arithmetic is the host
// reference's, operation by operation in float, so that equal logits choose equal experts.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int64_t kMostExperts = 1024, kMostChoices = 32;

struct Gate {
  int32_t experts, k;
  bool softmax, scoreFirst, renorm;
  float scale;
};

/// Rounded once, as a good libm's float exponential.
__device__ float expOnce(float x) { return float(exp(double(x))); }

/// Scores of `count` values, value i in register i / 32 of lane i % 32.
template <int registers>
__device__ void applyScore(bool softmax, float (&v)[registers], int count) {
  if (!softmax) {
#pragma unroll
    for (int c = 0; c < registers; ++c)
      v[c] = 1.0f / (1.0f + expOnce(-v[c]));
    return;
  }
  float largest = -INFINITY;
#pragma unroll
  for (int c = 0; c < registers; ++c)
    if (c * 32 + laneNumber() < count)
      largest = fmaxf(largest, v[c]);
  for (int step = 16; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  float total = 0;
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    v[c] = expOnce(v[c] - largest);
    for (int l = 0; l < 32; ++l) { // in the order of the values
      float one = __shfl_sync(kAllLanes, v[c], l);
      if (c * 32 + l < count)
        total += one;
    }
  }
#pragma unroll
  for (int c = 0; c < registers; ++c)
    v[c] /= total;
}

/// Whether key a of index i comes before key b of index j: larger first, what is no number last,
/// ties to the lower index. An index of -1 comes last.
__device__ bool before(float a, int i, float b, int j) {
  if (i < 0 || j < 0)
    return j < 0 && i >= 0;
  bool noA = a != a, noB = b != b;
  if (noA != noB)
    return noB;
  if (a > b || b > a)
    return a > b;
  return i < j;
}

/// One warp a token; logit e in register e / 32 of lane e % 32, choice j in lane j.
template <int registers, typename T>
__global__ void routeTokens(const T *logits, int32_t *ids, float *weights, const int32_t *forced,
                            float *gaps, int64_t tokens, Gate gate, int32_t *flag) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  const int lane = laneNumber(), experts = gate.experts, k = gate.k;
  float keys[registers];
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    int e = c * 32 + lane;
    keys[c] = e < experts ? toFloat(logits[t * experts + e]) : -INFINITY;
  }
  if (gate.scoreFirst)
    applyScore(gate.softmax, keys, experts);

  uint32_t taken = 0; // a bit a register
  int chosen = -1;
  float weight = 0, last = 0, next = 0; // keys of choices k and k + 1
  const int ranked = gaps && k < experts ? k + 1 : k;
  for (int j = 0; j < ranked; ++j) {
    int best = -1;
    float bestKey = 0;
#pragma unroll
    for (int c = 0; c < registers; ++c) {
      int e = c * 32 + lane;
      if (e < experts && !(taken >> c & 1) && before(keys[c], e, bestKey, best)) {
        best = e;
        bestKey = keys[c];
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      int other = __shfl_xor_sync(kAllLanes, best, step);
      float otherKey = __shfl_xor_sync(kAllLanes, bestKey, step);
      if (before(otherKey, other, bestKey, best)) {
        best = other;
        bestKey = otherKey;
      }
    }
    if (best % 32 == lane)
      taken |= 1u << (best / 32);
    if (j == lane) {
      chosen = best;
      weight = bestKey;
    }
    last = j == k - 1 ? bestKey : last;
    next = j == k ? bestKey : next;
  }
  if (gaps && lane == 0)
    gaps[t] = ranked > k ? last - next : INFINITY;

  if (forced) {
    int id = lane < k ? forced[t * k + lane] : 0;
    if (id < 0 || id >= experts) {
      raise(flag, Fault::forcedExpert);
      id = 0;
    }
    chosen = id;
#pragma unroll
    for (int c = 0; c < registers; ++c) {
      float key = __shfl_sync(kAllLanes, keys[c], id % 32);
      if (id / 32 == c)
        weight = key;
    }
  }
  if (!gate.scoreFirst) {
    float one[1] = {weight};
    applyScore(gate.softmax, one, k);
    weight = one[0];
  }
  if (gate.renorm) {
    float total = 0;
    for (int j = 0; j < k; ++j)
      total += __shfl_sync(kAllLanes, weight, j);
    weight /= total;
  }
  if (lane < k) {
    ids[t * k + lane] = chosen;
    weights[t * k + lane] = weight * gate.scale;
  }
}

} // namespace

Status ops::route(const Call &call) {
  int64_t experts = trailing(call.in[0], 1), tokens = leading(call.in[0], 1),
          k = trailing(call.out[0], 1);
  std::string_view score = call.params.text("score"), order = call.params.text("order"),
                   renorm = call.params.text("renorm");
  if ((score != "softmax" && score != "sigmoid") ||
      (order != "score_topk" && order != "topk_score") || (renorm != "none" && renorm != "sum"))
    return badCall(call, "unknown gate: score '" + std::string(score) + "', order '" +
                             std::string(order) + "', renorm '" + std::string(renorm) + "'");
  if (k < 1 || k > experts)
    return badCall(call,
                   format("%lld choices among %lld experts", (long long)k, (long long)experts));
  if (experts > kMostExperts || k > kMostChoices)
    return notOnCuda(call,
                     format("%lld choices among %lld experts (it takes up to %lld among %lld)",
                            (long long)k, (long long)experts, (long long)kMostChoices,
                            (long long)kMostExperts));
  if (tokens == 0)
    return {};
  Gate gate{int32_t(experts),      int32_t(k),      score == "softmax",
            order == "score_topk", renorm == "sum", float(call.params.real("scale", 1))};
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    auto launch = [&]<int registers>(std::integral_constant<int, registers>) {
      routeTokens<registers><<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
          call.input<T>(0), call.output<int32_t>(0), call.output<float>(1), call.context.forcedIds,
          call.context.gaps, tokens, gate, call.context.errorFlag);
      return launched(call);
    };
    if (experts <= 32)
      return launch(std::integral_constant<int, 1>());
    if (experts <= 64)
      return launch(std::integral_constant<int, 2>());
    if (experts <= 128)
      return launch(std::integral_constant<int, 4>());
    if (experts <= 256)
      return launch(std::integral_constant<int, 8>());
    return launch(std::integral_constant<int, 32>());
  });
}

} // namespace moira::rt::cuda
