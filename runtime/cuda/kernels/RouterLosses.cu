//===- RouterLosses.cu - losses of routers and their gradients ---------------===//
// expert_load, expert_probs, balance, sequence_balance, router_z and gradients. Small: sums over
// the tokens are one thread's or one block's, in one order.
//===----------------------------------------------------------------------===//
#include "GradTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

/// Of whose choices a block counts all: what fits in the shared memory that every block has.
constexpr int64_t kMostSharedExperts = 48 * 1024 / sizeof(int);

/// Of a row of logits: its largest, and Σ exp(logit − largest). By a warp.
__device__ void normaliser(Reader logits, int64_t first, int64_t experts, float &largest,
                           float &total) {
  largest = -INFINITY, total = 0;
  for (int64_t e = laneNumber(); e < experts; e += 32)
    largest = fmaxf(largest, logits[first + e]);
  for (int step = 16; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  for (int64_t e = laneNumber(); e < experts; e += 32)
    total += expf(logits[first + e] - largest);
  total = warpSum(total);
}

/// A warp an expert.
__global__ void countChoices(const int32_t *ids, float *out, int64_t choices, int64_t experts) {
  int64_t e = warpNumber();
  if (e >= experts)
    return;
  float count = 0;
  for (int64_t i = laneNumber(); i < choices; i += 32)
    count += ids[i] == e ? 1.0f : 0.0f;
  count = warpSum(count);
  if (laneNumber() == 0)
    out[e] = count;
}

/// Largest and total of every row, for the kernels below.
__global__ void normalisers(Reader logits, float *pairs, int64_t tokens, int64_t experts) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  float largest, total;
  normaliser(logits, t * experts, experts, largest, total);
  if (laneNumber() == 0)
    pairs[2 * t] = largest, pairs[2 * t + 1] = total;
}

/// A warp an expert.
__global__ void sumShares(Reader logits, const float *pairs, float *out, int64_t tokens,
                          int64_t experts) {
  int64_t e = warpNumber();
  if (e >= experts)
    return;
  float sum = 0;
  for (int64_t t = laneNumber(); t < tokens; t += 32)
    sum += expf(logits[t * experts + e] - pairs[2 * t]) / pairs[2 * t + 1];
  sum = warpSum(sum);
  if (laneNumber() == 0)
    out[e] = sum;
}

__global__ void sharesBack(const float *dy, Reader logits, float *out, int64_t tokens,
                           int64_t experts) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  float largest, total, mean = 0;
  normaliser(logits, t * experts, experts, largest, total);
  for (int64_t e = laneNumber(); e < experts; e += 32)
    mean += expf(logits[t * experts + e] - largest) / total * dy[e];
  mean = warpSum(mean);
  for (int64_t e = laneNumber(); e < experts; e += 32)
    out[t * experts + e] = expf(logits[t * experts + e] - largest) / total * (dy[e] - mean);
}

__global__ void balanceLoss(const float *load, const float *probs, float *out, int64_t experts,
                            float tokens) {
  float sum = 0;
  for (int64_t e = laneNumber(); e < experts; e += 32)
    sum += load[e] / tokens * (probs[e] / tokens);
  sum = warpSum(sum);
  if (laneNumber() == 0)
    *out = sum * float(experts);
}

__global__ void balanceBack(const float *dy, const float *load, float *out, int64_t experts,
                            float tokens) {
  for (int64_t e = threadNumber(); e < experts; e += threadCount())
    out[e] = *dy * float(experts) / tokens * (load[e] / tokens);
}

/// load[b,e]: a block a sequence, of whose choices each thread takes some; counts have no order.
__global__ void countOfSequences(const int32_t *ids, float *load, int64_t choices,
                                 int64_t experts) {
  extern __shared__ int counts[];
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x)
    counts[e] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < choices; i += blockDim.x)
    if (int32_t id = ids[blockIdx.x * choices + i]; id >= 0 && id < experts)
      atomicAdd(&counts[id], 1);
  __syncthreads();
  for (int64_t e = threadIdx.x; e < experts; e += blockDim.x)
    load[blockIdx.x * experts + e] = float(counts[e]);
}

/// dots[t] = softmax(logits[t]) . load of its sequence. A warp a token.
__global__ void sharesOfLoad(Reader logits, const float *load, float *dots, int64_t tokens,
                             int64_t each, int64_t experts) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  float largest, total, sum = 0;
  normaliser(logits, t * experts, experts, largest, total);
  for (int64_t e = laneNumber(); e < experts; e += 32)
    sum += expf(logits[t * experts + e] - largest) / total * load[t / each * experts + e];
  sum = warpSum(sum);
  if (laneNumber() == 0)
    dots[t] = sum;
}

/// One warp.
__global__ void sumDots(const float *dots, float *out, int64_t tokens, double factor) {
  double sum = 0;
  for (int64_t t = laneNumber(); t < tokens; t += 32)
    sum += double(dots[t]);
  for (int step = 16; step > 0; step /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (laneNumber() == 0)
    *out = float(sum * factor);
}

/// A warp a token.
__global__ void sequenceBack(const float *dy, Reader logits, const float *load, float *out,
                             int64_t tokens, int64_t each, int64_t experts, double factor) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  float largest, total, mean = 0;
  normaliser(logits, t * experts, experts, largest, total);
  const float *own = load + t / each * experts;
  for (int64_t e = laneNumber(); e < experts; e += 32)
    mean += expf(logits[t * experts + e] - largest) / total * own[e];
  mean = warpSum(mean);
  const float scale = float(double(*dy) * factor);
  for (int64_t e = laneNumber(); e < experts; e += 32)
    out[t * experts + e] =
        scale * (expf(logits[t * experts + e] - largest) / total) * (own[e] - mean);
}

/// One warp.
__global__ void zLoss(const float *pairs, float *out, int64_t tokens, float all) {
  double sum = 0;
  for (int64_t t = laneNumber(); t < tokens; t += 32) {
    float z = pairs[2 * t] + logf(pairs[2 * t + 1]);
    sum += double(z) * z;
  }
  for (int step = 16; step > 0; step /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (laneNumber() == 0)
    *out = float(sum / all);
}

__global__ void zBack(const float *dy, Reader logits, float *out, int64_t tokens, int64_t experts,
                      float all) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  float largest, total;
  normaliser(logits, t * experts, experts, largest, total);
  float factor = 2 * *dy / all * (largest + logf(total));
  for (int64_t e = laneNumber(); e < experts; e += 32)
    out[t * experts + e] = factor * expf(logits[t * experts + e] - largest) / total;
}

/// The normalisers of all rows, in the workspace; null if they do not fit.
float *rowNormalisers(const Call &call, const TensorRef &logits, int64_t tokens) {
  float *pairs = Scratch(call.context).take<float>(2 * tokens);
  if (pairs && tokens > 0)
    normalisers<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
        Reader(logits), pairs, tokens, trailing(logits, 1));
  return pairs;
}

} // namespace

Status ops::expert_load(const Call &call) {
  int64_t experts = call.out[0].elements();
  countChoices<<<blocksOfWarps(experts), kWarpBlock, 0, call.stream()>>>(
      call.input<int32_t>(0), call.output<float>(0), call.in[0].elements(), experts);
  return launched(call);
}

Status ops::expert_probs(const Call &call) {
  int64_t experts = call.out[0].elements(), tokens = leading(call.in[0], 1);
  float *pairs = rowNormalisers(call, call.in[0], tokens);
  if (!pairs)
    return noScratch(call);
  sumShares<<<blocksOfWarps(experts), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), pairs, call.output<float>(0), tokens, experts);
  return launched(call);
}

Status ops::expert_probs_grad(const Call &call) {
  int64_t tokens = leading(call.in[1], 1);
  if (tokens == 0)
    return {};
  sharesBack<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), Reader(call.in[1]), call.output<float>(0), tokens,
      trailing(call.in[1], 1));
  return launched(call);
}

Status ops::balance(const Call &call) {
  balanceLoss<<<1, 32, 0, call.stream()>>>(call.input<float>(0), call.input<float>(1),
                                           call.output<float>(0), call.in[0].elements(),
                                           float(call.params.integer("tokens")));
  return launched(call);
}

Status ops::balance_grad(const Call &call) {
  int64_t experts = call.out[0].elements();
  balanceBack<<<blocksOfThreads(experts), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.output<float>(0), experts,
      float(call.params.integer("tokens")));
  return launched(call);
}

/// load[b,e] in the workspace; null if it does not fit.
static float *loadOfSequences(const Call &call, Scratch &scratch, const TensorRef &ids,
                              int64_t experts) {
  float *load = scratch.take<float>(ids.shape[0] * experts);
  if (load && ids.shape[0] > 0)
    countOfSequences<<<unsigned(ids.shape[0]), 256, size_t(experts) * sizeof(int), call.stream()>>>(
        static_cast<const int32_t *>(ids.data), load, ids.shape[1] * ids.shape[2], experts);
  return load;
}

/// What a sequence's load times its shares counts for in the loss.
static double weightOfSequence(const Call &call, int64_t tokens, int64_t experts) {
  return double(experts) /
         (double(call.params.integer("sequences")) * double(tokens) * double(tokens));
}

Status ops::sequence_balance(const Call &call) {
  const TensorRef &logits = call.in[1];
  int64_t tokens = leading(logits, 1), each = logits.shape[1], experts = trailing(logits, 1);
  if (experts > kMostSharedExperts)
    return notOnCuda(call, format("%lld experts", (long long)experts));
  Scratch scratch(call.context);
  float *load = loadOfSequences(call, scratch, call.in[0], experts);
  float *dots = scratch.take<float>(tokens);
  if (!load || !dots)
    return noScratch(call);
  if (tokens > 0)
    sharesOfLoad<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
        Reader(logits), load, dots, tokens, each, experts);
  sumDots<<<1, 32, 0, call.stream()>>>(dots, call.output<float>(0), tokens,
                                       weightOfSequence(call, each, experts));
  return launched(call);
}

Status ops::sequence_balance_grad(const Call &call) {
  const TensorRef &logits = call.in[2];
  int64_t tokens = leading(logits, 1), each = logits.shape[1], experts = trailing(logits, 1);
  if (tokens == 0)
    return {};
  if (experts > kMostSharedExperts)
    return notOnCuda(call, format("%lld experts", (long long)experts));
  Scratch scratch(call.context);
  float *load = loadOfSequences(call, scratch, call.in[1], experts);
  if (!load)
    return noScratch(call);
  sequenceBack<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), Reader(logits), load, call.output<float>(0), tokens, each, experts,
      weightOfSequence(call, each, experts));
  return launched(call);
}

Status ops::router_z(const Call &call) {
  int64_t tokens = leading(call.in[0], 1);
  float *pairs = rowNormalisers(call, call.in[0], tokens);
  if (!pairs)
    return noScratch(call);
  zLoss<<<1, 32, 0, call.stream()>>>(pairs, call.output<float>(0), tokens,
                                     float(call.params.integer("tokens")));
  return launched(call);
}

Status ops::router_z_grad(const Call &call) {
  int64_t tokens = leading(call.in[1], 1);
  if (tokens == 0)
    return {};
  zBack<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), Reader(call.in[1]), call.output<float>(0), tokens,
      trailing(call.in[1], 1), float(call.params.integer("tokens")));
  return launched(call);
}

} // namespace moira::rt::cuda
