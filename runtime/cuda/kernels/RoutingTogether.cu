//===- RoutingTogether.cu - the most common gate ----------------------------===//
// `route` where the best of a softmax over up to 128 experts are chosen, which is what most models
// do. Of many tokens a warp has several at once, so that what one does in turn (sums in the order
// of the experts, one choice after the other) is done for all of them. Bit for bit what Routing.cu
// gives.
//===----------------------------------------------------------------------===//
#include "GateTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

/// Tokens of a warp where there are many, and blocks that a multiprocessor holds.
constexpr int kTogether = 4, kTogetherBlocks = 4;
constexpr int64_t kManyTokens = 2048;

constexpr int kPowers = 64;

/// e^x for x <= 0, rounded once as expOnce of Routing.cu is: by parts of 1 / 64 of a power of two,
/// `powers`, and a polynomial whose error is that of a double.
__device__ float expOnce(float x, const double *powers) {
  constexpr double whole = 6755399441055744.0; // 3 * 2^51: what is added to it becomes whole
  constexpr double ln2 = 0.693147180559945309417232121458;
  x = x < -104 ? -104 : x; // there it is 0
  const double shifted = fma(double(x), kPowers / ln2, whole);
  const int32_t n = __double2loint(shifted);
  const double r = fma(-(shifted - whole), ln2 / kPowers, double(x));
  double p = fma(r, 1.0 / 120, 1.0 / 24);
  p = fma(p, r, 1.0 / 6);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  const int32_t part = n & (kPowers - 1);
  const double y = fma(powers[part], p * r, powers[part]);
  return float(
      __hiloint2double(__double2hiint(y) + (n - part) * ((1 << 20) / kPowers), __double2loint(y)));
}

/// As routeTokens of Routing.cu, in the same arithmetic, for `together` tokens at once: their sums,
/// which are made in the order of the experts, take a lane each, and their choices wait for each
/// other's lanes.
template <int together, int registers, typename T>
__global__ void __launch_bounds__(kWarpBlock, kTogetherBlocks)
    routeTogether(const T *logits, int32_t *ids, float *weights, int64_t tokens, DeviceGate gate) {
  constexpr int fours = registers * 8 + 1; // of a token, so that lanes meet no bank together
  __shared__ float4 shared[kWarpBlock / 32][together][fours];
  __shared__ double powers[kPowers];
  if (threadIdx.x < kPowers)
    powers[threadIdx.x] = exp2(double(threadIdx.x) / kPowers);
  __syncthreads();
  awaitPrevious();
  const int64_t first = warpNumber() * together;
  if (first >= tokens)
    return;
  const int lane = laneNumber(), experts = gate.experts, k = gate.k;
  float v[together][registers], largest[together];
#pragma unroll
  for (int g = 0; g < together; ++g) {
    const T *own = logits + min(first + g, tokens - 1) * experts;
    largest[g] = -INFINITY;
#pragma unroll
    for (int c = 0; c < registers; ++c) {
      const int e = c * 32 + lane;
      v[g][c] = e < experts ? toFloat(own[e]) : -INFINITY;
      largest[g] = fmaxf(largest[g], v[g][c]);
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
#pragma unroll
    for (int g = 0; g < together; ++g)
      largest[g] = fmaxf(largest[g], __shfl_xor_sync(kAllLanes, largest[g], step));
  auto &own = shared[threadIdx.x / 32];
#pragma unroll
  for (int g = 0; g < together; ++g)
#pragma unroll
    for (int c = 0; c < registers; ++c) {
      const int e = c * 32 + lane;
      v[g][c] = expOnce(v[g][c] - largest[g], powers);
      reinterpret_cast<float *>(own[g])[e] = e < experts ? v[g][c] : 0.0f;
    }
  __syncwarp();
  float sum = 0; // of token `lane`
  if (lane < together)
#pragma unroll 4
    for (int i = 0; i < (experts + 3) / 4; ++i) {
      const float4 four = own[lane][i];
      sum += four.x;
      sum += four.y;
      sum += four.z;
      sum += four.w;
    }
  // A lane's own values of each token in descending order: numbers that order as rankKeys', and
  // experts.
  uint32_t rank[together][registers];
  int32_t expert[together][registers];
#pragma unroll
  for (int g = 0; g < together; ++g) {
    const float total = __shfl_sync(kAllLanes, sum, g);
#pragma unroll
    for (int c = 0; c < registers; ++c) {
      const float score = v[g][c] / total; // never below zero
      expert[g][c] = c * 32 + lane;
      rank[g][c] = expert[g][c] >= experts ? 0
                   : score != score        ? 1
                                           : __float_as_uint(score) | 0x80000000u;
    }
#pragma unroll
    for (int end = registers - 1; end > 0; --end)
#pragma unroll
      for (int c = 0; c < end; ++c)
        if (rank[g][c] < rank[g][c + 1]) { // equal ones stay: the lower index comes first
          const uint32_t held = rank[g][c];
          rank[g][c] = rank[g][c + 1];
          rank[g][c + 1] = held;
          const int32_t other = expert[g][c];
          expert[g][c] = expert[g][c + 1];
          expert[g][c + 1] = other;
        }
  }
  int chosen[together] = {};
  float weight[together] = {}, total[together] = {};
  for (int j = 0; j < k; ++j)
#pragma unroll
    for (int g = 0; g < together; ++g) {
      const uint32_t best = __reduce_max_sync(kAllLanes, rank[g][0]);
      const int32_t index =
          __reduce_min_sync(kAllLanes, rank[g][0] == best ? expert[g][0] : INT32_MAX);
      const float score = best == 1 ? NAN : __uint_as_float(best & 0x7fffffffu);
      total[g] += score;
      if (j == lane) {
        chosen[g] = index;
        weight[g] = score;
      }
      if (expert[g][0] == index) {
#pragma unroll
        for (int c = 0; c + 1 < registers; ++c) {
          rank[g][c] = rank[g][c + 1];
          expert[g][c] = expert[g][c + 1];
        }
        rank[g][registers - 1] = 0;
      }
    }
#pragma unroll
  for (int g = 0; g < together; ++g) {
    if (gate.renorm) {
      total[g] += gate.epsilon;
      weight[g] /= total[g] < gate.clampMin ? gate.clampMin : total[g];
    }
    if (lane < k && first + g < tokens) {
      ids[(first + g) * k + lane] = chosen[g];
      weights[(first + g) * k + lane] = weight[g] * gate.scale;
    }
  }
}

} // namespace

bool routesTogether(const Gate &gate) {
  return gate.score == GateScore::softmax && gate.scoreFirst && gate.groups == 1 && gate.k <= 32 &&
         gate.experts <= 128;
}

Status launchRouteTogether(const Call &call, const Gate &gate, int64_t tokens) {
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    auto launch = [&]<int together>(std::integral_constant<int, together>) {
      auto *kernel = gate.experts <= 32   ? routeTogether<together, 1, T>
                     : gate.experts <= 64 ? routeTogether<together, 2, T>
                                          : routeTogether<together, 4, T>;
      return launchEarly(call, kernel, blocksOfWarps(ceilDiv(tokens, together)), kWarpBlock, 0,
                         call.input<T>(0), call.output<int32_t>(0), call.output<float>(1), tokens,
                         DeviceGate(gate));
    };
    return tokens >= kManyTokens ? launch(std::integral_constant<int, kTogether>())
                                 : launch(std::integral_constant<int, 1>());
  });
}

} // namespace moira::rt::cuda
