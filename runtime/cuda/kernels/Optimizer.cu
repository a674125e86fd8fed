//===- Optimizer.cu - updates of weights -------------------------------------===//
// adamw, expert_adamw and sgd, fused: one pass over memory, in place. squares and clip_factor: the
// norm of all gradients without a copy to the host.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 512; // of sums; the second launch adds as many numbers

__host__ unsigned blocksFor(int64_t n) {
  return unsigned(std::min<int64_t>(ceilDiv(n, kThreads), int64_t(1) << 20));
}

struct AdamW {
  float beta1, beta2, eps, weightDecay;
};

/// The n elements of one parameter, at its step `at`.
__device__ void updateAdamW(const float *grad, const float *lr, float at, const float *factor,
                            float *w, float *m, float *v, int64_t n, AdamW p) {
  float rate = *lr / (1 - powf(p.beta1, at));
  float root = rsqrtf(1 - powf(p.beta2, at));
  float decay = 1 - *lr * p.weightDecay, scale = factor ? *factor : 1;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * kThreads) {
    float g = scale * grad[i];
    float first = p.beta1 * m[i] + (1 - p.beta1) * g;
    float second = p.beta2 * v[i] + (1 - p.beta2) * g * g;
    m[i] = first;
    v[i] = second;
    w[i] = w[i] * decay - rate * first / (sqrtf(second) * root + p.eps);
  }
}

__global__ void adamwOfOne(const float *grad, const float *lr, const int32_t *step,
                           const float *factor, float *w, float *m, float *v, int64_t n, AdamW p) {
  updateAdamW(grad, lr, float(*step), factor, w, m, v, n, p);
}

/// An expert for each blockIdx.y. Its steps are counted behind this launch: all blocks read them.
__global__ void adamwOfExperts(const float *grad, const float *lr, const float *load,
                               const float *steps, const float *factor, float *w, float *m,
                               float *v, int64_t n, AdamW p) {
  int64_t e = blockIdx.y, at = e * n;
  if (load[e] != 0)
    updateAdamW(grad + at, lr, steps[e] + 1, factor, w + at, m + at, v + at, n, p);
}

__global__ void countSteps(const float *load, float *steps, int64_t experts) {
  for (int64_t e = threadIdx.x; e < experts; e += kThreads)
    steps[e] += load[e] != 0;
}

__global__ void updateSgd(const float *grad, const float *lr, const float *factor, float *w,
                          float *b, int64_t n, float momentum, float weightDecay, bool nesterov) {
  float scale = factor ? *factor : 1;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * kThreads) {
    float g = scale * grad[i] + weightDecay * w[i];
    if (b) {
      b[i] = momentum * b[i] + g;
      g = nesterov ? g + momentum * b[i] : b[i];
    }
    w[i] -= *lr * g;
  }
}

/// The sum of term(i) over a block's part of [0, n), for thread 0. In double: thousands of tensors
/// are added up.
template <typename Term> __device__ double blockSum(int64_t n, Term term) {
  __shared__ double partial[kThreads];
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * kThreads)
    sum += term(i);
  partial[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half)
      partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  return partial[0];
}

template <typename T> __global__ void squareBlocks(const T *x, int64_t n, double *sums) {
  double sum = blockSum(n, [=](int64_t i) {
    double v = toFloat(x[i]);
    return v * v;
  });
  if (threadIdx.x == 0)
    sums[blockIdx.x] = sum;
}

__global__ void addBlocks(const double *sums, int64_t n, float *out) {
  double sum = blockSum(n, [=](int64_t i) { return sums[i]; });
  if (threadIdx.x == 0)
    *out = float(sum);
}

__global__ void clip(const float *squares, float *norm, float *factor, float most) {
  float length = sqrtf(*squares);
  *norm = length;
  *factor = most > 0 ? fminf(1.0f, most / (length + 1e-6f)) : 1.0f;
}

AdamW adamwOf(const Call &call) {
  return {float(call.params.real("beta1")), float(call.params.real("beta2")),
          float(call.params.real("eps")), float(call.params.real("weight_decay"))};
}

} // namespace

Status ops::adamw(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  adamwOfOne<<<blocksFor(n), kThreads, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.input<int32_t>(2),
      call.in.size() > 3 ? call.input<float>(3) : nullptr, call.output<float>(0),
      call.output<float>(1), call.output<float>(2), n, adamwOf(call));
  return launched(call);
}

Status ops::expert_adamw(const Call &call) {
  int64_t n = call.out[0].elements(), experts = call.out[3].elements();
  if (n == 0)
    return {};
  dim3 grid(blocksFor(n / experts), unsigned(experts));
  adamwOfExperts<<<grid, kThreads, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.input<float>(2), call.output<float>(3),
      call.in.size() > 3 ? call.input<float>(3) : nullptr, call.output<float>(0),
      call.output<float>(1), call.output<float>(2), n / experts, adamwOf(call));
  countSteps<<<1, kThreads, 0, call.stream()>>>(call.input<float>(2), call.output<float>(3),
                                                experts);
  return launched(call);
}

Status ops::sgd(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  updateSgd<<<blocksFor(n), kThreads, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1),
      call.in.size() > 2 ? call.input<float>(2) : nullptr, call.output<float>(0),
      call.out.size() > 1 ? call.output<float>(1) : nullptr, n, float(call.params.real("momentum")),
      float(call.params.real("weight_decay")), call.params.integer("nesterov") != 0);
  return launched(call);
}

/// Nothing that training needs besides has been run on a device yet.
static Status onHostOnly(const char *call) {
  return Status(ErrorId::BadRun,
                std::string(call) + ": training runs on the host; compile with --target=host");
}

Status ops::balance_bias(const Call &) { return onHostOnly("balance_bias"); }

Status ops::accumulate(const Call &) { return onHostOnly("accumulate"); }

Status ops::second_moment(const Call &) { return onHostOnly("second_moment"); }

Status ops::adafactor_norm(const Call &) { return onHostOnly("adafactor_norm"); }

Status ops::adafactor(const Call &) { return onHostOnly("adafactor"); }

Status ops::adafactor_vector(const Call &) { return onHostOnly("adafactor_vector"); }

Status ops::squares(const Call &call) {
  if (call.params.integer("keep") || call.params.integer("tail"))
    return onHostOnly("squares");
  int64_t n = call.in[0].elements();
  int64_t blocks = std::clamp<int64_t>(ceilDiv(n, kThreads), 1, kBlocks);
  Scratch scratch(call.context);
  double *sums = scratch.take<double>(blocks);
  if (!sums)
    return noScratch(call);
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    squareBlocks<<<unsigned(blocks), kThreads, 0, call.stream()>>>(call.input<T>(0), n, sums);
    addBlocks<<<1, kThreads, 0, call.stream()>>>(sums, blocks, call.output<float>(0));
    return launched(call);
  });
}

Status ops::clip_factor(const Call &call) {
  clip<<<1, 1, 0, call.stream()>>>(call.input<float>(0), call.output<float>(0),
                                   call.output<float>(1), float(call.params.real("max_norm")));
  return launched(call);
}

} // namespace moira::rt::cuda
