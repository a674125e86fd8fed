//===- Routing.cu - the gate: score, choose, weigh --------------------------===//
// `route`, `route_to`, `lookup` and `redirect`; what follows from the chosen experts is in
// Dispatch.cu, the most common gate in RoutingTogether.cu. The arithmetic is the host reference's,
// operation by operation in float, so that equal logits choose equal experts.
//===----------------------------------------------------------------------===//
#include "GateTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int64_t kMostExperts = 1024, kMostGroups = 32;

/// Rounded once, as a good libm's float exponential.
__device__ float expOnce(float x) { return float(exp(double(x))); }

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expOnce(-x)); }
__device__ float sqrtSoftplus(float x) {
  return sqrtf((x < 0 ? 0.0f : x) + float(log1p(double(expOnce(-fabsf(x))))));
}

/// Scores of `count` values, value i in register i / 32 of lane i % 32. Not for a sparsemixer.
template <int registers>
__device__ void applyScore(GateScore score, float (&v)[registers], int count) {
  if (score == GateScore::sigmoid) {
#pragma unroll
    for (int c = 0; c < registers; ++c)
      v[c] = sigmoid(v[c]);
    return;
  }
  if (score == GateScore::sqrtSoftplus) {
#pragma unroll
    for (int c = 0; c < registers; ++c)
      v[c] = sqrtSoftplus(v[c]);
    return;
  }
  float largest = -INFINITY;
#pragma unroll
  for (int c = 0; c < registers; ++c)
    if (c * 32 + laneNumber() < count)
      largest = fmaxf(largest, v[c]);
  for (int step = 16; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  // Summed in the order of the values, by every lane.
  __shared__ float4 shared[kWarpBlock / 32][registers * 8];
  float4 *fours = shared[threadIdx.x / 32];
  __syncwarp(); // what was there is read
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    const int i = c * 32 + laneNumber();
    v[c] = expOnce(v[c] - largest);
    reinterpret_cast<float *>(fours)[i] = i < count ? v[c] : 0.0f;
  }
  __syncwarp();
  float total = 0;
#pragma unroll 4
  for (int i = 0; i < (count + 3) / 4; ++i) {
    const float4 four = fours[i];
    total += four.x;
    total += four.y;
    total += four.z;
    total += four.w;
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

struct Best {
  int index; // -1: none
  float key;
};

/// The best of all lanes' candidates, on every lane.
__device__ Best bestOfLanes(Best mine) {
  for (int step = 16; step > 0; step /= 2) {
    int other = __shfl_xor_sync(kAllLanes, mine.index, step);
    float otherKey = __shfl_xor_sync(kAllLanes, mine.key, step);
    if (before(otherKey, other, mine.key, mine.index))
      mine = {other, otherKey};
  }
  return mine;
}

/// The best of the values from `first` up to `end` that are not taken (a bit a register).
template <int registers>
__device__ Best bestOf(const float (&keys)[registers], uint32_t taken, int first, int end) {
  Best mine{-1, 0};
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    int e = c * 32 + laneNumber();
    if (e >= first && e < end && !(taken >> c & 1) && before(keys[c], e, mine.key, mine.index))
      mine = {e, keys[c]};
  }
  return bestOfLanes(mine);
}

/// Unsigned numbers in the order of `before`, of the values up to `end` that are not taken; 0 for
/// the others.
template <int registers>
__device__ void rankKeys(const float (&keys)[registers], uint32_t taken, int end,
                         uint32_t (&ranks)[registers]) {
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    const uint32_t bits = __float_as_uint(keys[c] + 0.0f); // -0 is 0
    const uint32_t rank = keys[c] != keys[c] ? 1 : bits >> 31 ? ~bits : bits | 0x80000000u;
    ranks[c] = c * 32 + laneNumber() < end && !(taken >> c & 1) ? rank : 0;
  }
}

/// Takes the best value out of `ranks` and returns its index, -1 if none is left.
template <int registers> __device__ int takeBest(uint32_t (&ranks)[registers]) {
  uint32_t mine = 0;
#pragma unroll
  for (int c = 0; c < registers; ++c)
    mine = max(mine, ranks[c]);
  const uint32_t best = __reduce_max_sync(kAllLanes, mine);
  if (best == 0)
    return -1;
  int index = INT32_MAX;
#pragma unroll
  for (int c = registers - 1; c >= 0; --c)
    if (ranks[c] == best)
      index = c * 32 + laneNumber();
  index = __reduce_min_sync(kAllLanes, index);
#pragma unroll
  for (int c = 0; c < registers; ++c)
    if (c * 32 + laneNumber() == index)
      ranks[c] = 0;
  return index;
}

/// `taken` with the value `index` in it.
__device__ uint32_t with(uint32_t taken, int index) {
  return index >= 0 && index % 32 == laneNumber() ? taken | 1u << (index / 32) : taken;
}

/// Value `index` of `keys`, which may be another one on every lane.
template <int registers> __device__ float valueAt(const float (&keys)[registers], int index) {
  float value = 0;
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    float key = __shfl_sync(kAllLanes, keys[c], index % 32);
    if (index / 32 == c)
      value = key;
  }
  return value;
}

/// The margin of a choice: infinite where nobody is left out.
__device__ float marginOf(Best last, Best next) {
  return next.index < 0 ? INFINITY : last.key - next.key;
}

/// What is taken once only the best groups are left; `margin` is theirs. Group g in lane g.
template <int registers>
__device__ uint32_t leaveGroups(const DeviceGate &gate, const float (&keys)[registers],
                                float &margin) {
  float score = 0;
  for (int g = 0; g < gate.groups; ++g) {
    int first = g * gate.groupSize, end = first + gate.groupSize;
    Best best = bestOf(keys, 0, first, end);
    float sum = best.key;
    if (gate.top2Sum)
      sum += bestOf(keys, with(0, best.index), first, end).key;
    if (laneNumber() == g)
      score = sum;
  }
  bool kept = laneNumber() >= gate.groups;
  auto bestLeft = [&] { return bestOfLanes({kept ? -1 : laneNumber(), score}); };
  Best last{-1, 0};
  for (int i = 0; i < gate.groupKeep; ++i) {
    last = bestLeft();
    kept |= last.index == laneNumber();
  }
  margin = marginOf(last, bestLeft());
  unsigned keptGroups = __ballot_sync(kAllLanes, kept);
  uint32_t taken = 0;
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    int e = c * 32 + laneNumber();
    if (e < gate.experts && !(keptGroups >> (e / gate.groupSize) & 1))
      taken |= 1u << c;
  }
  return taken;
}

/// A sparsemixer's weights: choice j, in lane j, is `chosen`.
template <int registers>
__device__ float weighSparsely(const DeviceGate &gate, const float (&keys)[registers], int chosen) {
  uint32_t taken = 0;
  float weight = 0;
  for (int j = 0; j < gate.k; ++j) {
    int id = __shfl_sync(kAllLanes, chosen, j);
    float largest = bestOf(keys, taken, 0, gate.experts).key, total = 0, own = 0;
#pragma unroll
    for (int c = 0; c < registers; ++c) {
      bool near = !((largest - keys[c]) / fmaxf(fabsf(keys[c]), largest) > gate.twiceJitter) &&
                  !(taken >> c & 1) && c * 32 + laneNumber() < gate.experts;
      float exponential = near ? expOnce(keys[c] - largest) : 0;
      for (int l = 0; l < 32; ++l) { // in the order of the experts
        float one = __shfl_sync(kAllLanes, exponential, l);
        total += one;
        if (c * 32 + l == id)
          own = one;
      }
    }
    if (laneNumber() == j)
      weight = own / total;
    taken = with(taken, id);
  }
  return weight;
}

/// Keys of token t, and what is chosen by: logit e in register e / 32 of lane e % 32.
template <int registers, typename T>
__device__ void makeKeys(const DeviceGate &gate, const T *logits, const float *bias, int64_t t,
                         float (&keys)[registers], float (&choiceKeys)[registers]) {
  const int experts = gate.experts;
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    int e = c * 32 + laneNumber();
    keys[c] = e < experts ? toFloat(logits[t * experts + e]) : -INFINITY;
  }
  if (gate.scoreFirst && gate.score != GateScore::sparsemixer)
    applyScore(gate.score, keys, experts);
#pragma unroll
  for (int c = 0; c < registers; ++c) {
    int e = c * 32 + laneNumber();
    choiceKeys[c] = bias && e < experts ? keys[c] + bias[e] : keys[c];
  }
}

/// A choice that was given, or 0 and a fault if there is no such expert.
__device__ int givenChoice(const DeviceGate &gate, int32_t id, Fault bad, int32_t *flag) {
  if (id >= 0 && id < gate.experts)
    return id;
  raise(flag, bad);
  return 0;
}

/// One warp a token; choice j in lane j.
template <int registers, typename T>
__global__ void routeTokens(const T *logits, const float *bias, int32_t *ids, float *weights,
                            const int32_t *forced, Fault badForced, float *gaps, int64_t tokens,
                            DeviceGate gate, int32_t *flag) {
  awaitPrevious();
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  const int lane = laneNumber(), experts = gate.experts, k = gate.k;
  float keys[registers], choiceKeys[registers];
  makeKeys(gate, logits, bias, t, keys, choiceKeys);

  float margin = INFINITY;
  uint32_t taken = gate.groups > 1 ? leaveGroups(gate, choiceKeys, margin) : 0;
  uint32_t ranks[registers];
  rankKeys(choiceKeys, taken, experts, ranks);
  int chosen = 0, last = -1;
  for (int j = 0; j < k; ++j) {
    last = takeBest(ranks);
    if (j == lane)
      chosen = last;
  }
  if (gaps) {
    auto bestAt = [&](int index) { return Best{index, valueAt(choiceKeys, max(index, 0))}; };
    margin = fminf(margin, marginOf(bestAt(last), bestAt(takeBest(ranks))));
    if (lane == 0)
      gaps[t] = margin;
  }
  if (forced)
    chosen = lane < k ? givenChoice(gate, forced[t * k + lane], badForced, flag) : 0;

  float weight;
  if (gate.score == GateScore::sparsemixer) {
    weight = weighSparsely(gate, keys, chosen);
  } else {
    weight = valueAt(keys, chosen);
    if (!gate.scoreFirst) {
      float one[1] = {weight};
      applyScore(gate.score, one, k);
      weight = one[0];
    }
  }
  if (gate.renorm) {
    float total = 0;
    for (int j = 0; j < k; ++j)
      total += __shfl_sync(kAllLanes, weight, j);
    total += gate.epsilon;
    weight /= total < gate.clampMin ? gate.clampMin : total;
  }
  if (lane < k) {
    ids[t * k + lane] = chosen;
    weights[t * k + lane] = weight * gate.scale;
  }
}

/// The same for more choices than a warp has lanes, which then stand in the outputs while they are
/// weighed. Not for a sparsemixer.
template <int registers, typename T>
__global__ void routeMany(const T *logits, const float *bias, int32_t *ids, float *weights,
                          const int32_t *forced, Fault badForced, float *gaps, int64_t tokens,
                          DeviceGate gate, int32_t *flag) {
  awaitPrevious();
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  const int lane = laneNumber(), experts = gate.experts, k = gate.k;
  ids += t * k;
  weights += t * k;
  float keys[registers], choiceKeys[registers], margin = INFINITY;
  makeKeys(gate, logits, bias, t, keys, choiceKeys);
  uint32_t taken = gate.groups > 1 ? leaveGroups(gate, choiceKeys, margin) : 0;
  Best last{-1, 0};
  for (int j = 0; j < k; ++j) {
    last = bestOf(choiceKeys, taken, 0, experts);
    taken = with(taken, last.index);
    int id = forced ? givenChoice(gate, forced[t * k + j], badForced, flag) : last.index;
    float key = valueAt(keys, id);
    if (lane == 0) {
      ids[j] = id;
      weights[j] = key;
    }
  }
  if (gaps) {
    margin = fminf(margin, marginOf(last, bestOf(choiceKeys, taken, 0, experts)));
    if (lane == 0)
      gaps[t] = margin;
  }
  if (lane != 0) // sums are made in the order of the choices, by one lane
    return;
  if (!gate.scoreFirst) {
    float largest = -INFINITY, total = 0;
    for (int j = 0; j < k; ++j)
      largest = fmaxf(largest, weights[j]);
    for (int j = 0; j < k; ++j) {
      float v = weights[j];
      v = gate.score == GateScore::softmax        ? expOnce(v - largest)
          : gate.score == GateScore::sqrtSoftplus ? sqrtSoftplus(v)
                                                  : sigmoid(v);
      weights[j] = v;
      total += v;
    }
    for (int j = 0; j < k && gate.score == GateScore::softmax; ++j)
      weights[j] /= total;
  }
  float total = 0;
  for (int j = 0; j < k; ++j)
    total += weights[j];
  total += gate.epsilon;
  total = total < gate.clampMin ? gate.clampMin : total;
  for (int j = 0; j < k; ++j)
    weights[j] = (gate.renorm ? weights[j] / total : weights[j]) * gate.scale;
}

template <typename Id>
__global__ void lookUp(const Id *ids, const int32_t *table, int32_t *out, int64_t tokens,
                       int64_t rows, int64_t width) {
  for (int64_t i = threadNumber(); i < tokens * width; i += threadCount()) {
    int64_t id = ids[i / width];
    out[i] = id >= 0 && id < rows ? table[id * width + i % width] : -1;
  }
}

__global__ void redirectChoices(const int32_t *ids, int32_t *out, int64_t choices, int32_t k,
                                int32_t first, int32_t rest) {
  for (int64_t i = threadNumber(); i < choices; i += threadCount())
    out[i] = ids[i] < 0 ? -1 : i % k == 0 ? first : rest;
}

/// Both calls: `forced` choices, an expert that does not exist raising `badForced`, or the gate's
/// own where it is null.
Status runGate(const Call &call, const float *bias, const int32_t *forced, Fault badForced,
               float *gaps) {
  int64_t experts = trailing(call.in[0], 1), tokens = leading(call.in[0], 1),
          k = trailing(call.out[0], 1);
  std::string problem;
  Gate read = readGate(call.params, experts, k, problem);
  if (!problem.empty())
    return badCall(call, problem);
  bool many = k > 32;
  if (experts > kMostExperts || read.groups > kMostGroups ||
      (many && read.score == GateScore::sparsemixer))
    return notOnCuda(call, format("%lld choices among %lld experts in %d groups (it takes up to "
                                  "%lld experts in %lld groups, and 32 choices of a sparsemixer)",
                                  (long long)k, (long long)experts, read.groups,
                                  (long long)kMostExperts, (long long)kMostGroups));
  if (tokens == 0)
    return {};
  if (!bias && !forced && !gaps && routesTogether(read))
    return launchRouteTogether(call, read, tokens);
  const DeviceGate gate(read);
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    auto launch = [&]<int registers>(std::integral_constant<int, registers>) {
      auto *kernel = many ? routeMany<registers, T> : routeTokens<registers, T>;
      return launchEarly(call, kernel, blocksOfWarps(tokens), kWarpBlock, 0, call.input<T>(0), bias,
                         call.output<int32_t>(0), call.output<float>(1), forced, badForced, gaps,
                         tokens, gate, call.context.errorFlag);
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

} // namespace

Status ops::route(const Call &call) {
  return runGate(call, call.in.size() > 1 ? call.input<float>(1) : nullptr, call.context.forcedIds,
                 Fault::forcedExpert, call.context.gaps);
}

Status ops::route_to(const Call &call) {
  return runGate(call, nullptr, call.input<int32_t>(1), Fault::expert, nullptr);
}

Status ops::lookup(const Call &call) {
  int64_t tokens = call.in[0].elements(), rows = call.in[1].shape[0], width = call.in[1].shape[1];
  if (tokens * width == 0)
    return {};
  auto run = [&]<typename Id>(Id) {
    lookUp<<<blocksOfThreads(tokens * width), kWarpBlock, 0, call.stream()>>>(
        call.input<Id>(0), call.input<int32_t>(1), call.output<int32_t>(0), tokens, rows, width);
    return launched(call);
  };
  return call.in[0].dtype == fb::DType::i64 ? run(int64_t()) : run(int32_t());
}

Status ops::redirect(const Call &call) {
  int64_t choices = call.in[0].elements();
  if (choices == 0)
    return {};
  redirectChoices<<<blocksOfThreads(choices), kWarpBlock, 0, call.stream()>>>(
      call.input<int32_t>(0), call.output<int32_t>(0), choices, int32_t(trailing(call.in[0], 1)),
      int32_t(call.params.integer("first")), int32_t(call.params.integer("rest")));
  return launched(call);
}

Status ops::jitter(const Call &call) { return notOnCuda(call, "any operand"); }
Status ops::sampled_route(const Call &call) { return notOnCuda(call, "any operand"); }

} // namespace moira::rt::cuda
