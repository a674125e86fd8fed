//===- Combine.cu - expert rows back to tokens ------------------------------===//
// combine: the weighted sum over a token's choices, in the order of the choices, in f32.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

/// `n` values that are loaded and stored by one instruction.
template <typename T, int n> struct alignas(sizeof(T) * n) Pack {
  T v[n];
};

/// Rows whose parts a thread has under way together.
constexpr int kAtOnce = 8;
/// Blocks of combineAhead that a multiprocessor holds.
constexpr int kAheadBlocks = 2;

/// The choices of a token; what is not one has row -1.
struct Choices {
  int32_t row[kAtOnce];
  float weight[kAtOnce];

  __device__ static Choices load(const int32_t *pos, const float *weights, int64_t t, int32_t k) {
    Choices c;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      c.row[u] = u < k ? pos[t * k + u] : -1;
      c.weight[u] = u < k ? weights[t * k + u] : 0.0f;
    }
    return c;
  }
};

/// Up to kAtOnce choices, by a grid that stays: while a thread waits for a token's rows, it asks
/// for the next token's choices. A thread makes `n` neighbours of a token's result; width is a
/// multiple of `n`.
template <int n, typename T, typename Out>
__global__ void __launch_bounds__(kWarpBlock, kAheadBlocks)
    combineAhead(const T *rows, const int32_t *pos, const float *weights, Out *out, int64_t tokens,
                 int32_t k, int64_t width, int64_t available, int32_t *flag) {
  awaitPrevious();
  const int64_t parts = width / n, all = tokens * parts;
  int64_t at = threadNumber(), t, d;
  if (at >= all)
    return;
  divide(at, parts, t, d);
  Choices next = Choices::load(pos, weights, t, k);
  for (;;) {
    const Choices now = next;
    Pack<T, n> part[kAtOnce];
    bool bad = false;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      bad |= now.row[u] < -1 || now.row[u] >= available;
      if (now.row[u] >= 0 && now.row[u] < available)
        part[u] = *reinterpret_cast<const Pack<T, n> *>(rows + now.row[u] * width + d * n);
    }
    Out *to = out + t * width + d * n;
    at += threadCount();
    if (at < all) {
      divide(at, parts, t, d);
      next = Choices::load(pos, weights, t, k);
    }
    if (bad)
      raise(flag, Fault::row);
    float sum[n] = {};
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (now.row[u] >= 0 && now.row[u] < available) {
#pragma unroll
        for (int i = 0; i < n; ++i)
          sum[i] += now.weight[u] * toFloat(part[u].v[i]);
      }
    Pack<Out, n> result;
#pragma unroll
    for (int i = 0; i < n; ++i)
      result.v[i] = fromFloat<Out>(sum[i]);
    *reinterpret_cast<Pack<Out, n> *>(to) = result;
    if (at >= all)
      return;
  }
}

/// The same for any number of choices.
template <int n, typename T, typename Out>
__global__ void __launch_bounds__(kWarpBlock, 2)
    combineRows(const T *rows, const int32_t *pos, const float *weights, Out *out, int64_t tokens,
                int32_t k, int64_t width, int64_t available, int32_t *flag) {
  awaitPrevious();
  const int64_t parts = width / n;
  for (int64_t at = threadNumber(); at < tokens * parts; at += threadCount()) {
    int64_t t, d;
    divide(at, parts, t, d);
    d *= n;
    float sum[n] = {};
    for (int32_t j = 0; j < k; j += kAtOnce) {
      Pack<T, n> part[kAtOnce];
      float weight[kAtOnce];
      bool there[kAtOnce], bad = false;
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const bool chosen = j + u < k;
        const int32_t row = chosen ? pos[t * k + j + u] : -1;
        weight[u] = chosen ? weights[t * k + j + u] : 0.0f;
        bad |= row < -1 || row >= available;
        there[u] = row >= 0 && row < available;
        if (there[u])
          part[u] = *reinterpret_cast<const Pack<T, n> *>(rows + row * width + d);
      }
      if (bad)
        raise(flag, Fault::row);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
        if (there[u]) {
#pragma unroll
          for (int i = 0; i < n; ++i)
            sum[i] += weight[u] * toFloat(part[u].v[i]);
        }
    }
    Pack<Out, n> result;
#pragma unroll
    for (int i = 0; i < n; ++i)
      result.v[i] = fromFloat<Out>(sum[i]);
    *reinterpret_cast<Pack<Out, n> *>(out + t * width + d) = result;
  }
}

} // namespace

Status ops::combine(const Call &call) {
  const TensorRef &rows = call.in[0], &pos = call.in[1], &out = call.out[0];
  int64_t k = trailing(pos, 1), tokens = leading(pos, 1);
  int64_t width = trailing(rows, 1), available = leading(rows, 1);
  if (tokens * width == 0)
    return {};
  return withFloat(rows.dtype, [&]<typename T>(T) {
    return withFloat(out.dtype, [&]<typename Out>(Out) {
      auto launch = [&]<int n>(std::integral_constant<int, n>) {
        unsigned blocks = blocksOfThreads(tokens * width / n);
        auto *kernel = combineRows<n, T, Out>;
        if (k <= kAtOnce) {
          int device = 0, processors = 0;
          if (Status s = checked(call.name, cudaGetDevice(&device)); !s)
            return s;
          if (Status s = checked(
                  call.name,
                  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
              !s)
            return s;
          blocks = std::min(blocks, unsigned(processors * kAheadBlocks));
          kernel = combineAhead<n, T, Out>;
        }
        return launchEarly(call, kernel, blocks, kWarpBlock, 0, call.input<T>(0),
                           call.input<int32_t>(1), call.input<float>(2), call.output<Out>(0),
                           tokens, k, width, available, call.context.errorFlag);
      };
      constexpr int wide = 16 / std::max(sizeof(T), sizeof(Out));
      bool aligned = width % wide == 0 && addressOf(rows.data) % (wide * sizeof(T)) == 0 &&
                     addressOf(out.data) % (wide * sizeof(Out)) == 0;
      return aligned ? launch(std::integral_constant<int, wide>())
                     : launch(std::integral_constant<int, 1>());
    });
  });
}

} // namespace moira::rt::cuda
