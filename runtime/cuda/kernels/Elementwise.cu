//===- Elementwise.cu - element-wise and row-wise calls ---------------------===//
// Norms, add, scale, clamp, act, glu, sigmoid_gate, rope, all in f32 between a load and a store.
// The mesh program runs generated kernels instead of these.
//===----------------------------------------------------------------------===//
#include "Glu.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::cuda {
namespace {

/// Σ term(x) over one row by `blockDim.x` threads: a warp, or a whole block; every thread gets it.
/// Its order depends on nothing but the width.
template <bool wholeBlock, typename T, typename Term>
__device__ float rowSum(const T *x, int64_t width, float *partial, Term term) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
    sum += term(toFloat(x[i]));
  sum = warpSum(sum);
  if constexpr (wholeBlock) {
    if (laneNumber() == 0)
      partial[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = laneNumber() < int(blockDim.x / 32) ? partial[laneNumber()] : 0.0f;
    sum = warpSum(sum);
    __syncthreads(); // partial is free again
  }
  return sum;
}

/// Blocks are (32, rows of the block) or (256, 1). With `out`: the normalised row, from
/// `sums`/count if given. Without: the sum of squares to `sumsOut`.
template <bool wholeBlock, typename X, typename W, typename Out>
__global__ void normRows(const X *x, const W *w, const float *sums, Out *out, float *sumsOut,
                         int64_t rows, int64_t width, float count, float eps) {
  __shared__ float partial[32];
  awaitPrevious();
  int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows)
    return;
  x += row * width;
  float sum =
      sums ? sums[row] : rowSum<wholeBlock>(x, width, partial, [](float v) { return v * v; });
  if (!out) {
    if (threadIdx.x == 0)
      sumsOut[row] = sum;
    return;
  }
  float factor = 1.0f / sqrtf(sum / count + eps);
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
    out[row * width + i] = fromFloat<Out>(toFloat(x[i]) * factor * toFloat(w[i]));
}

/// What normRows<true> gives of rows that a block's registers hold. Weights come nearer while the
/// kernel waits.
constexpr int kHeld = 8;
template <typename X, typename W, typename Out>
__global__ void __launch_bounds__(kWarpBlock)
    normHeldRows(const X *x, const W *w, Out *out, int64_t width, float eps) {
  __shared__ float partial[32];
  for (int64_t i = threadIdx.x; i < width; i += kWarpBlock)
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(w + i) : "memory");
  awaitPrevious();
  x += blockIdx.x * width;
  float values[kHeld], weights[kHeld], sum = 0;
#pragma unroll
  for (int u = 0; u < kHeld; ++u) {
    const int64_t i = threadIdx.x + u * kWarpBlock;
    values[u] = i < width ? toFloat(x[i]) : 0.0f;
    weights[u] = i < width ? toFloat(w[i]) : 0.0f;
  }
#pragma unroll
  for (int u = 0; u < kHeld; ++u)
    sum += values[u] * values[u];
  sum = warpSum(sum);
  if (laneNumber() == 0)
    partial[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = warpSum(laneNumber() < kWarpBlock / 32 ? partial[laneNumber()] : 0.0f);
  const float factor = 1.0f / sqrtf(sum / float(width) + eps);
#pragma unroll
  for (int u = 0; u < kHeld; ++u)
    if (const int64_t i = threadIdx.x + u * kWarpBlock; i < width)
      out[blockIdx.x * width + i] = fromFloat<Out>(values[u] * factor * weights[u]);
}

template <typename X, typename W, typename Out>
Status launchNorm(const Call &call, const X *x, const W *w, const float *sums, Out *out,
                  float *sumsOut, int64_t rows, int64_t width, float count) {
  if (rows == 0)
    return {};
  float eps = float(call.params.real("eps"));
  if (out && !sums && width > 1024 && width <= kHeld * kWarpBlock)
    return launchEarly(call, normHeldRows<X, W, Out>, unsigned(rows), kWarpBlock, 0, x, w, out,
                       width, eps);
  if (width > 1024)
    return launchEarly(call, normRows<true, X, W, Out>, unsigned(rows), 256, 0, x, w, sums, out,
                       sumsOut, rows, width, count, eps);
  return launchEarly(call, normRows<false, X, W, Out>, unsigned(ceilDiv(rows, 8)), dim3(32, 8), 0,
                     x, w, sums, out, sumsOut, rows, width, count, eps);
}

/// Blocks as in normRows.
template <bool wholeBlock, typename X, typename W, typename Out>
__global__ void layerNormRows(const X *x, const W *w, const W *bias, Out *out, int64_t rows,
                              int64_t width, float eps) {
  __shared__ float partial[32];
  int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows)
    return;
  x += row * width;
  float mean = rowSum<wholeBlock>(x, width, partial, [](float v) { return v; }) / float(width);
  float variance =
      rowSum<wholeBlock>(x, width, partial, [mean](float v) { return (v - mean) * (v - mean); }) /
      float(width);
  float factor = 1.0f / sqrtf(variance + eps);
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float scaled = (toFloat(x[i]) - mean) * factor * toFloat(w[i]);
    out[row * width + i] = fromFloat<Out>(bias ? scaled + toFloat(bias[i]) : scaled);
  }
}

template <typename A, typename B, typename Out>
__global__ void addRows(const A *a, const B *b, Out *out, int64_t n, int64_t width) {
  awaitPrevious();
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    int64_t row, column;
    divide(i, width, row, column);
    out[i] = fromFloat<Out>(toFloat(a[i]) + toFloat(b[column]));
  }
}

template <typename X, typename Out>
__global__ void scaleAll(const X *x, Out *out, int64_t n, float factor) {
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    out[i] = fromFloat<Out>(toFloat(x[i]) * factor);
}

/// NaN stays NaN.
template <typename X, typename Out>
__global__ void clampAll(const X *x, Out *out, int64_t n, float low, float high) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    float v = toFloat(x[i]);
    out[i] = fromFloat<Out>(v < low ? low : v > high ? high : v);
  }
}

template <typename X, typename Out>
__global__ void activateAll(const X *x, Out *out, int64_t n, Activation activation) {
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    out[i] = fromFloat<Out>(activate(activation, toFloat(x[i])));
}

template <typename X, typename Out>
__global__ void gluAll(const X *x, Out *out, int64_t n, int64_t width, GluForm form) {
  awaitPrevious();
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    int64_t row, column;
    divide(i, width, row, column);
    const X *pair = x + 2 * row * width + column;
    out[i] = fromFloat<Out>(gluOf(form, toFloat(pair[0]), toFloat(pair[width])));
  }
}

template <typename X, typename G, typename Out>
__global__ void gateAll(const X *x, const G *gate, Out *out, int64_t n, int64_t width) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    int64_t row, column;
    divide(i, width, row, column);
    out[i] = fromFloat<Out>(toFloat(x[i]) * (1.0f / (1.0f + expf(-toFloat(gate[row])))));
  }
}

/// One thread a rotated pair, or an element past the pairs; x and out may be one.
template <typename X, typename Out>
__global__ void rotate(const X *x, const float *cosines, const float *sines, Out *out, int64_t rows,
                       int64_t sequence, int64_t heads, int64_t width, int64_t r,
                       bool interleaved) {
  awaitPrevious();
  int64_t work = width - r;
  for (int64_t at = threadNumber(); at < rows * work; at += threadCount()) {
    int64_t row, i;
    divide(at, work, row, i);
    const X *from = x + row * width;
    Out *to = out + row * width;
    if (i >= r) {
      to[i + r] = fromFloat<Out>(toFloat(from[i + r]));
      continue;
    }
    int64_t s = row / heads % sequence;
    float c = cosines[s * r + i], n = sines[s * r + i];
    int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + r;
    float low = toFloat(from[first]), high = toFloat(from[second]);
    to[first] = fromFloat<Out>(low * c - high * n);
    to[second] = fromFloat<Out>(high * c + low * n);
  }
}

} // namespace

Expected<Activation> activationOf(const Call &call) {
  constexpr std::pair<std::string_view, Activation> names[] = {{"silu", Activation::silu},
                                                               {"gelu", Activation::gelu},
                                                               {"gelu_tanh", Activation::geluTanh},
                                                               {"relu", Activation::relu}};
  const std::string_view given = call.params.text("activation");
  for (const auto &[name, activation] : names)
    if (name == given)
      return activation;
  return badCall(call, "unknown activation '" + std::string(given) + "'");
}

Expected<GluForm> gluForm(const Call &call) {
  Expected<Activation> activation = activationOf(call);
  if (!activation)
    return activation.takeStatus();
  GluForm form{*activation, float(call.params.real("limit", INFINITY)),
               float(call.params.real("alpha", 1)), float(call.params.real("up_shift", 0))};
  if (!(form.limit > 0) || (form.alpha != 1 && *activation != Activation::silu))
    return badCall(call, "its limit is not positive, or alpha is given without silu");
  return form;
}

Status ops::rms_norm(const Call &call) {
  if (Status s = checkTrailing(call, "norm_dims", {&call.in[0]}); !s)
    return s;
  int64_t width = call.in[1].elements(),
          rows = leading(call.in[0], call.params.integer("norm_dims"));
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.in[1].dtype, [&]<typename W>(W) {
      return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
        return launchNorm<X, W, Out>(call, call.input<X>(0), call.input<W>(1), nullptr,
                                     call.output<Out>(0), nullptr, rows, width, float(width));
      });
    });
  });
}

Status ops::layer_norm(const Call &call) {
  if (Status s = checkTrailing(call, "norm_dims", {&call.in[0]}); !s)
    return s;
  int64_t width = call.in[1].elements(),
          rows = leading(call.in[0], call.params.integer("norm_dims"));
  if (rows == 0)
    return {};
  if (call.in.size() > 2 && call.in[2].dtype != call.in[1].dtype)
    return notOnCuda(call, "a bias and a weight of different types");
  float eps = float(call.params.real("eps"));
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.in[1].dtype, [&]<typename W>(W) {
      return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
        const W *bias = call.in.size() > 2 ? call.input<W>(2) : nullptr;
        if (width > 1024)
          layerNormRows<true><<<unsigned(rows), 256, 0, call.stream()>>>(
              call.input<X>(0), call.input<W>(1), bias, call.output<Out>(0), rows, width, eps);
        else
          layerNormRows<false><<<unsigned(ceilDiv(rows, 8)), dim3(32, 8), 0, call.stream()>>>(
              call.input<X>(0), call.input<W>(1), bias, call.output<Out>(0), rows, width, eps);
        return launched(call);
      });
    });
  });
}

Status ops::sum_squares(const Call &call) {
  if (Status s = checkTrailing(call, "norm_dims", {&call.in[0]}); !s)
    return s;
  int64_t dims = call.params.integer("norm_dims");
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return launchNorm<X, X, float>(call, call.input<X>(0), nullptr, nullptr, nullptr,
                                   call.output<float>(0), leading(call.in[0], dims),
                                   trailing(call.in[0], dims), 1);
  });
}

Status ops::rms_apply(const Call &call) {
  int64_t width = call.in[2].elements(), rows = call.in[1].elements();
  float count = float(call.params.integer("count"));
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.in[2].dtype, [&]<typename W>(W) {
      return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
        return launchNorm<X, W, Out>(call, call.input<X>(0), call.input<W>(2), call.input<float>(1),
                                     call.output<Out>(0), nullptr, rows, width, count);
      });
    });
  });
}

Status ops::add(const Call &call) {
  int64_t n = call.out[0].elements(), width = call.in[1].elements();
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename A>(A) {
    return withFloat(call.in[1].dtype, [&]<typename B>(B) {
      return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
        return launchEarly(call, addRows<A, B, Out>, blocksOfThreads(n), kWarpBlock, 0,
                           call.input<A>(0), call.input<B>(1), call.output<Out>(0), n, width);
      });
    });
  });
}

Status ops::scale(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
      scaleAll<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
          call.input<X>(0), call.output<Out>(0), n, float(call.params.real("factor")));
      return launched(call);
    });
  });
}

Status ops::clamp(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  float low = float(call.params.real("min")), high = float(call.params.real("max"));
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
      clampAll<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
          call.input<X>(0), call.output<Out>(0), n, low, high);
      return launched(call);
    });
  });
}

Status ops::act(const Call &call) {
  Expected<Activation> activation = activationOf(call);
  if (!activation)
    return activation.takeStatus();
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
      activateAll<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
          call.input<X>(0), call.output<Out>(0), n, *activation);
      return launched(call);
    });
  });
}

Status ops::glu(const Call &call) {
  Expected<GluForm> given = gluForm(call);
  if (!given)
    return given.takeStatus();
  const GluForm form = *given;
  int64_t n = call.out[0].elements(), width = trailing(call.out[0], 1);
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
      return launchEarly(call, gluAll<X, Out>, blocksOfThreads(n), kWarpBlock, 0, call.input<X>(0),
                         call.output<Out>(0), n, width, form);
    });
  });
}

Status ops::sigmoid_gate(const Call &call) {
  int64_t n = call.out[0].elements(), width = trailing(call.out[0], 1);
  if (n == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.in[1].dtype, [&]<typename G>(G) {
      return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
        gateAll<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
            call.input<X>(0), call.input<G>(1), call.output<Out>(0), n, width);
        return launched(call);
      });
    });
  });
}

Status ops::rope(const Call &call) {
  const std::vector<int64_t> &shape = call.in[0].shape;
  int64_t width = shape.back(), r = call.in[1].shape[1], rows = leading(call.in[0], 1),
          heads = rows / std::max<int64_t>(1, shape[0] * shape[1]);
  if (r > width / 2)
    return badCall(
        call, format("%lld pairs to rotate in a head of %lld", (long long)r, (long long)width));
  if (rows * width == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename X>(X) {
    return withFloat(call.out[0].dtype, [&]<typename Out>(Out) {
      return launchEarly(call, rotate<X, Out>, blocksOfThreads(rows * (width - r)), kWarpBlock, 0,
                         call.input<X>(0), call.input<float>(1), call.input<float>(2),
                         call.output<Out>(0), rows, shape[1], heads, width, r,
                         call.params.integer("interleaved") != 0);
    });
  });
}

} // namespace moira::rt::cuda
