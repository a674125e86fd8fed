//===- Optimizer.cu - updates of weights -------------------------------------===//
// adamw, expert_adamw, sgd, balance_bias and accumulate, fused: one pass over memory, in place.
// squares and clip_factor: the norm of all gradients without a copy to the host.
//===----------------------------------------------------------------------===//
#include "Pack.h"
#include "RowSums.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocksFor(int64_t n) {
  return unsigned(std::min<int64_t>(ceilDiv(n, kThreads), int64_t(1) << 20));
}

/// A beta near 1 is not taken from 1 in float, which would leave few of its digits.
struct AdamW {
  float beta1, rest1, log1, beta2, rest2, log2, eps, weightDecay; // rest = 1 - beta, log = ln beta
};

/// The n elements of one parameter, at its step `at`; a thread makes `each` neighbours, of which n
/// is a multiple. Returns the sum of grad * grad of the thread's own if it `addsUp`.
template <int each, bool addsUp, typename G>
__device__ double updateAdamW(const G *grad, const float *lr, float at, const float *factor,
                              float *w, float *m, float *v, int64_t n, AdamW p) {
  using Part = Pack<float, each>;
  // 1 - beta^at = -expm1(at * ln beta)
  const float rate = *lr / -expm1f(at * p.log1), root = rsqrtf(-expm1f(at * p.log2));
  const float decay = 1 - *lr * p.weightDecay, scale = factor ? *factor : 1;
  double squares = 0;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n / each;
       i += int64_t(gridDim.x) * kThreads) {
    const auto grads = reinterpret_cast<const Pack<G, each> *>(grad)[i];
    Part weights = reinterpret_cast<Part *>(w)[i], first = reinterpret_cast<Part *>(m)[i],
         second = reinterpret_cast<Part *>(v)[i];
#pragma unroll
    for (int u = 0; u < each; ++u) {
      if constexpr (addsUp) {
        const double value = toFloat(grads.v[u]);
        squares += value * value;
      }
      const float g = scale * toFloat(grads.v[u]);
      first.v[u] = p.beta1 * first.v[u] + p.rest1 * g;
      second.v[u] = p.beta2 * second.v[u] + p.rest2 * (g * g);
      weights.v[u] = weights.v[u] * decay - rate * first.v[u] / (sqrtf(second.v[u]) * root + p.eps);
    }
    reinterpret_cast<Part *>(m)[i] = first;
    reinterpret_cast<Part *>(v)[i] = second;
    reinterpret_cast<Part *>(w)[i] = weights;
  }
  return squares;
}

template <int each, typename G>
__global__ void adamwOfOne(const G *grad, const float *lr, const int32_t *step, const float *factor,
                           float *w, float *m, float *v, int64_t n, AdamW p) {
  updateAdamW<each, false>(grad, lr, float(*step), factor, w, m, v, n, p);
}

/// The same, and the sum of grad * grad: a part of it for each block, which is all of one block.
template <int each, typename G>
__global__ void adamwWithSquares(const G *grad, const float *lr, const int32_t *step,
                                 const float *factor, float *w, float *m, float *v, int64_t n,
                                 AdamW p, double *partial, float *out) {
  static_assert(kThreads == kSumThreads);
  const double sum =
      blockSum(updateAdamW<each, true>(grad, lr, float(*step), factor, w, m, v, n, p));
  if (threadIdx.x != 0)
    return;
  if (gridDim.x == 1)
    *out = float(sum);
  else
    partial[blockIdx.x] = sum;
}

/// An expert for each blockIdx.y. Its steps are counted behind this launch: all blocks read them.
template <int each, typename G>
__global__ void adamwOfExperts(const G *grad, const float *lr, const float *load,
                               const float *steps, const float *factor, float *w, float *m,
                               float *v, int64_t n, AdamW p) {
  int64_t e = blockIdx.y, at = e * n;
  if (load[e] != 0)
    updateAdamW<each, false>(grad + at, lr, steps[e] + 1, factor, w + at, m + at, v + at, n, p);
}

__global__ void countSteps(const float *load, float *steps, int64_t experts) {
  for (int64_t e = threadIdx.x; e < experts; e += kThreads)
    steps[e] += load[e] != 0;
}

template <typename G>
__global__ void updateSgd(const G *grad, const float *lr, const float *factor, float *w, float *b,
                          int64_t n, float momentum, float weightDecay, bool nesterov) {
  float scale = factor ? *factor : 1;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * kThreads) {
    float g = scale * toFloat(grad[i]) + weightDecay * w[i];
    if (b) {
      b[i] = momentum * b[i] + g;
      g = nesterov ? g + momentum * b[i] : b[i];
    }
    w[i] -= *lr * g;
  }
}

/// Loads are whole numbers: compared without a division, so that an even load is one. One block.
__global__ void moveBiases(const float *load, float *bias, int64_t experts, double rate) {
  __shared__ double all;
  double own = 0;
  for (int64_t e = threadIdx.x; e < experts; e += kSumThreads)
    own += load[e];
  own = blockSum(own);
  if (threadIdx.x == 0)
    all = own;
  __syncthreads();
  for (int64_t e = threadIdx.x; e < experts; e += kSumThreads) {
    double over = double(load[e]) * double(experts) - all;
    if (over != 0)
      bias[e] = float(double(bias[e]) - copysign(rate, over));
  }
}

template <typename X>
__global__ void addMicroBatch(const X *x, const int32_t *micro, float *sum, int64_t n) {
  bool first = *micro == 0;
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    sum[i] = first ? toFloat(x[i]) : sum[i] + toFloat(x[i]);
}

/// x * x of element i of a row of n.
template <typename T> struct Square {
  const T *x;
  int64_t n;
  __device__ double operator()(int64_t row, int64_t i) const {
    double value = toFloat(x[row * n + i]);
    return value * value;
  }
};

/// Of x [a, n, b], b > 1: the sum over n of x * x for each of a and b, in `chunks` parts of
/// `length` of n. A thread a sum, whose neighbours read what lies beside it. `partial` is not used
/// if it is one part.
template <typename T>
__global__ void squareColumns(const T *x, int64_t sums, int64_t n, int64_t b, int64_t chunks,
                              int64_t length, double *partial, float *out) {
  for (int64_t at = threadNumber(); at < sums * chunks; at += threadCount()) {
    int64_t chunk, which, i, j;
    divide(at, sums, chunk, which);
    divide(which, b, i, j);
    int64_t first = chunk * length, last = first + length < n ? first + length : n;
    double sum = 0;
    for (int64_t k = first; k < last; ++k) {
      double value = toFloat(x[(i * n + k) * b + j]);
      sum += value * value;
    }
    if (chunks == 1)
      out[which] = float(sum);
    else
      partial[at] = sum;
  }
}

__global__ void addColumnChunks(const double *partial, int64_t sums, int64_t chunks, float *out) {
  for (int64_t at = threadNumber(); at < sums; at += threadCount()) {
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c)
      sum += partial[c * sums + at];
    out[at] = float(sum);
  }
}

__global__ void clip(const float *squares, float *norm, float *factor, float most) {
  float length = sqrtf(*squares);
  *norm = length;
  *factor = most > 0 ? fminf(1.0f, most / (length + 1e-6f)) : 1.0f;
}

/// Launches with the neighbours that a thread makes of parts of n elements, as an
/// integral_constant, and a value of the gradient's type.
template <typename Launch> Status launchInPacks(const Call &call, int64_t n, Launch launch) {
  constexpr int wide = 4;
  bool packs = n % wide == 0 && addressOf(call.in[0].data) % 16 == 0;
  for (int i = 0; i < 3; ++i)
    packs &= addressOf(call.out[size_t(i)].data) % 16 == 0;
  return withFloat(call.in[0].dtype, [&]<typename G>(G) {
    if (packs)
      launch(std::integral_constant<int, wide>(), G());
    else
      launch(std::integral_constant<int, 1>(), G());
    return launched(call);
  });
}

AdamW adamwOf(const Call &call) {
  double beta1 = call.params.real("beta1"), beta2 = call.params.real("beta2");
  return {float(beta1),
          float(1 - beta1),
          float(std::log(beta1)),
          float(beta2),
          float(1 - beta2),
          float(std::log(beta2)),
          float(call.params.real("eps")),
          float(call.params.real("weight_decay"))};
}

} // namespace

/// The order of the sum depends on sizes and alignment alone.
static Status addUpInAdamW(const Call &call, int64_t n) {
  constexpr unsigned kBlocks =
      1 << 14; // many times what a device runs at once: the last ones count
  Scratch scratch(call.context);
  double *partial = n > kThreads ? scratch.take<double>(kBlocks) : nullptr;
  if (n > kThreads && !partial)
    return noScratch(call);
  return launchInPacks(call, n, [&]<int each, typename G>(std::integral_constant<int, each>, G) {
    const unsigned blocks = std::clamp(blocksFor(n / each), 1u, kBlocks);
    adamwWithSquares<each><<<blocks, kThreads, 0, call.stream()>>>(
        call.input<G>(0), call.input<float>(1), call.input<int32_t>(2),
        call.in.size() > 3 ? call.input<float>(3) : nullptr, call.output<float>(0),
        call.output<float>(1), call.output<float>(2), n, adamwOf(call), partial,
        call.output<float>(3));
    if (blocks > 1)
      addChunks<<<1, kSumThreads, 0, call.stream()>>>(partial, blocks, call.output<float>(3));
  });
}

Status ops::adamw(const Call &call) {
  int64_t n = call.out[0].elements();
  if (call.out.size() > 3)
    return addUpInAdamW(call, n);
  if (n == 0)
    return {};
  return launchInPacks(call, n, [&]<int each, typename G>(std::integral_constant<int, each>, G) {
    adamwOfOne<each><<<blocksFor(n / each), kThreads, 0, call.stream()>>>(
        call.input<G>(0), call.input<float>(1), call.input<int32_t>(2),
        call.in.size() > 3 ? call.input<float>(3) : nullptr, call.output<float>(0),
        call.output<float>(1), call.output<float>(2), n, adamwOf(call));
  });
}

Status ops::expert_adamw(const Call &call) {
  int64_t n = call.out[0].elements(), experts = call.out[3].elements();
  if (n == 0)
    return {};
  Status done = launchInPacks(
      call, n / experts, [&]<int each, typename G>(std::integral_constant<int, each>, G) {
        const dim3 grid(blocksFor(n / experts / each), unsigned(experts));
        adamwOfExperts<each><<<grid, kThreads, 0, call.stream()>>>(
            call.input<G>(0), call.input<float>(1), call.input<float>(2), call.output<float>(3),
            call.in.size() > 3 ? call.input<float>(3) : nullptr, call.output<float>(0),
            call.output<float>(1), call.output<float>(2), n / experts, adamwOf(call));
      });
  if (!done)
    return done;
  countSteps<<<1, kThreads, 0, call.stream()>>>(call.input<float>(2), call.output<float>(3),
                                                experts);
  return launched(call);
}

Status ops::sgd(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename G>(G) {
    updateSgd<<<blocksFor(n), kThreads, 0, call.stream()>>>(
        call.input<G>(0), call.input<float>(1), call.in.size() > 2 ? call.input<float>(2) : nullptr,
        call.output<float>(0), call.out.size() > 1 ? call.output<float>(1) : nullptr, n,
        float(call.params.real("momentum")), float(call.params.real("weight_decay")),
        call.params.integer("nesterov") != 0);
    return launched(call);
  });
}

Status ops::balance_bias(const Call &call) {
  moveBiases<<<1, kSumThreads, 0, call.stream()>>>(call.input<float>(0), call.output<float>(0),
                                                   call.out[0].elements(),
                                                   call.params.real("rate"));
  return launched(call);
}

Status ops::accumulate(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    addMicroBatch<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
        call.input<X>(0), call.input<int32_t>(1), call.output<float>(0), n);
    return launched(call);
  });
}

template <typename T>
static Status squaresOfColumns(const Call &call, int64_t sums, int64_t n, int64_t b) {
  constexpr int64_t kLength = 64, kWork = int64_t(1) << 18; // of a part; threads worth having
  int64_t chunks = std::clamp<int64_t>(ceilDiv(n, kLength), 1, std::max<int64_t>(1, kWork / sums));
  double *partial = nullptr;
  if (chunks > 1) {
    Scratch scratch(call.context);
    partial = scratch.take<double>(sums * chunks);
    if (!partial)
      return noScratch(call);
  }
  squareColumns<<<blocksOfThreads(sums * chunks), kWarpBlock, 0, call.stream()>>>(
      call.input<T>(0), sums, n, b, chunks, ceilDiv(n, chunks), partial, call.output<float>(0));
  if (chunks > 1)
    addColumnChunks<<<blocksOfThreads(sums), kWarpBlock, 0, call.stream()>>>(partial, sums, chunks,
                                                                             call.output<float>(0));
  return launched(call);
}

Status ops::squares(const Call &call) {
  int64_t sums = call.out[0].elements(), tail = call.params.integer("tail");
  if (sums == 0)
    return {};
  int64_t n = call.in[0].elements() / sums, b = trailing(call.in[0], tail);
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    if (b > 1)
      return squaresOfColumns<T>(call, sums, n, b);
    return sumRows(call, sums, n, Square<T>{call.input<T>(0), n}, call.output<float>(0));
  });
}

Status ops::clip_factor(const Call &call) {
  clip<<<1, 1, 0, call.stream()>>>(call.input<float>(0), call.output<float>(0),
                                   call.output<float>(1), float(call.params.real("max_norm")));
  return launched(call);
}

} // namespace moira::rt::cuda
