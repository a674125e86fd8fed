//===- Capacity.cu - which choices an expert has room for -------------------===//
// `limit`. Every choice gets a number, small for those that come first and different for any two;
// an expert keeps the choices below the number of the first one that it has no room for. That
// number is found digit by digit, without sorting and without atomics on anything whose order
// matters.
//
//   numberChoices   a thread a choice
//   findBounds      a block an expert and domain
//   keepChoices     a thread a token: ids, weights, and the counts
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"
#include "moira/rt/Limit.h"
#include "moira/rt/Philox.h"

namespace moira::rt::cuda {
namespace {

// A number has 32 bits of merit, and the rest for the choice and the token.
constexpr int kChoiceBits = 10, kTokenBits = 22, kBlock = 256;
constexpr uint64_t kNoBound = ~uint64_t(0);

struct DeviceLimit {
  int32_t experts, k;
  int64_t tokens, perDomain, domains, capacity;
  DropPolicy policy;
  bool choiceMajor;
  LimitRenorm renorm;
  float epsilon, clampMin, scale;
  uint64_t seed;
  uint32_t layer, tokenOffset;
  const int32_t *ids, *step; // step: null for 0
  const float *weights;
  uint64_t *numbers; // [tokens, k]
  uint64_t *bounds;  // [domains, experts]
  int32_t *counts;   // dropped, offered
};

/// Larger floats give smaller numbers; what is no number comes last, zeros of both signs are one.
__device__ uint32_t fallingBits(float v) {
  if (v != v)
    v = -INFINITY;
  uint32_t bits = __float_as_uint(v + 0.0f);
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

__global__ void numberChoices(DeviceLimit limit, int32_t *flag) {
  for (int64_t i = threadNumber(); i < limit.tokens * limit.k; i += threadCount()) {
    int64_t token = i / limit.k, choice = i % limit.k;
    int32_t id = limit.ids[i];
    if (id < -1 || id >= limit.experts) {
      raise(flag, Fault::expert);
      continue;
    }
    uint32_t merit = 0;
    if (limit.policy == DropPolicy::probs) {
      merit = fallingBits(limit.weights[i]);
    } else if (limit.policy == DropPolicy::random) {
      uint32_t step = limit.step ? uint32_t(*limit.step) : 0;
      merit = ~tokenDraw(limit.seed, step, limit.layer, limit.tokenOffset + uint32_t(token),
                         uint32_t(id));
    } else if (limit.policy == DropPolicy::priority) {
      merit = ~0u;
      for (int j = 0; j < limit.k; ++j)
        merit = min(merit, fallingBits(limit.weights[token * limit.k + j]));
    }
    uint64_t number = uint64_t(merit) << kTokenBits | uint64_t(token % limit.perDomain);
    limit.numbers[i] = limit.choiceMajor ? uint64_t(choice) << (32 + kTokenBits) | number
                                         : number << kChoiceBits | uint64_t(choice);
  }
}

/// The number of the choice with `capacity` others of its expert before it; kNoBound if there are
/// not so many.
__global__ void findBounds(DeviceLimit limit) {
  __shared__ int32_t histogram[256], digit, before;
  int64_t domain = blockIdx.x / limit.experts, expert = blockIdx.x % limit.experts;
  int64_t first = domain * limit.perDomain * limit.k, end = first + limit.perDomain * limit.k;
  uint64_t prefix = 0;
  int64_t rank = limit.capacity; // among the numbers that begin with prefix
  for (int shift = 56; shift >= 0; shift -= 8) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < end; i += kBlock)
      if (limit.ids[i] == expert && (shift == 56 || limit.numbers[i] >> (shift + 8) == prefix))
        atomicAdd(&histogram[limit.numbers[i] >> shift & 255],
                  1); // a count: the order does not matter
    __syncthreads();
    if (threadIdx.x == 0) {
      digit = before = 0;
      while (digit < 256 && before + int64_t(histogram[digit]) <= rank)
        before += histogram[digit++];
    }
    __syncthreads();
    if (digit == 256) { // only in the first round: fewer than capacity + 1 choices
      if (threadIdx.x == 0)
        limit.bounds[blockIdx.x] = kNoBound;
      return;
    }
    rank -= before;
    prefix = prefix << 8 | uint64_t(digit);
    __syncthreads(); // digit and before are written again
  }
  if (threadIdx.x == 0)
    limit.bounds[blockIdx.x] = prefix;
}

__global__ void keepChoices(DeviceLimit limit, int32_t *outIds, float *outWeights) {
  for (int64_t token = threadNumber(); token < limit.tokens; token += threadCount()) {
    int64_t domain = token / limit.perDomain, row = token * limit.k;
    float total = 0;
    int32_t dropped = 0, offered = 0;
    for (int64_t i = row; i < row + limit.k; ++i) {
      int32_t id = limit.ids[i];
      bool valid = id >= 0 && id < limit.experts;
      bool kept = valid && limit.numbers[i] < limit.bounds[domain * limit.experts + id];
      offered += valid;
      dropped += valid && !kept;
      outIds[i] = kept ? id : -1;
      if (limit.renorm == LimitRenorm::before || kept)
        total += limit.weights[i];
    }
    total += limit.epsilon;
    total = total < limit.clampMin ? limit.clampMin : total;
    for (int64_t i = row; i < row + limit.k; ++i) {
      float weight =
          limit.renorm == LimitRenorm::none ? limit.weights[i] : limit.weights[i] / total;
      outWeights[i] = outIds[i] < 0 ? 0.0f : weight * limit.scale;
    }
    if (offered) { // integers: the order does not matter
      atomicAdd(&limit.counts[0], dropped);
      atomicAdd(&limit.counts[1], offered);
    }
  }
}

__global__ void writeCounts(const int32_t *counts, float *out) {
  if (threadIdx.x < 2)
    out[threadIdx.x] = float(counts[threadIdx.x]);
}

} // namespace

Status ops::limit(const Call &call) {
  int64_t k = trailing(call.in[0], 1), tokens = leading(call.in[0], 1);
  std::string problem;
  Limit read = readLimit(call.params, tokens, problem);
  if (!problem.empty())
    return badCall(call, problem);
  int64_t perDomain = tokens / read.domains;
  if (k > 1 << kChoiceBits || perDomain > 1 << kTokenBits)
    return notOnCuda(call,
                     format("%lld choices of %lld tokens in a domain (it takes up to %d of %d)",
                            (long long)k, (long long)perDomain, 1 << kChoiceBits, 1 << kTokenBits));
  Scratch scratch(call.context);
  DeviceLimit limit{int32_t(read.experts),
                    int32_t(k),
                    tokens,
                    std::max<int64_t>(perDomain, 1),
                    read.domains,
                    read.capacity,
                    read.policy,
                    read.choiceMajor,
                    read.renorm,
                    float(read.renormEpsilon),
                    float(read.renormClampMin),
                    float(read.scale),
                    read.seed,
                    uint32_t(read.layer),
                    uint32_t(read.tokenOffset),
                    call.input<int32_t>(0),
                    call.in.size() > 2 ? call.input<int32_t>(2) : nullptr,
                    call.input<float>(1),
                    scratch.take<uint64_t>(tokens * k),
                    scratch.take<uint64_t>(read.domains * read.experts),
                    scratch.take<int32_t>(2)};
  if (!limit.numbers || !limit.bounds || !limit.counts)
    return noScratch(call);
  if (Status s =
          checked(call.name, cudaMemsetAsync(limit.counts, 0, 2 * sizeof(int32_t), call.stream()));
      !s)
    return s;
  if (tokens * k > 0) {
    numberChoices<<<blocksOfThreads(tokens * k), kWarpBlock, 0, call.stream()>>>(
        limit, call.context.errorFlag);
    if (Status s = launched(call); !s)
      return s;
    findBounds<<<unsigned(read.domains * read.experts), kBlock, 0, call.stream()>>>(limit);
    if (Status s = launched(call); !s)
      return s;
    keepChoices<<<blocksOfThreads(tokens), kWarpBlock, 0, call.stream()>>>(
        limit, call.output<int32_t>(0), call.output<float>(1));
    if (Status s = launched(call); !s)
      return s;
  }
  writeCounts<<<1, 32, 0, call.stream()>>>(limit.counts, call.output<float>(2));
  return launched(call);
}

} // namespace moira::rt::cuda
