//===- Combine.cu - expert rows back to tokens ------------------------------===//
// combine: the weighted sum over a token's choices, in the order of the choices, in f32. Of many
// tokens it is in CombineMany.cu.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"
#include "Pack.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

/// Rows whose parts a thread has under way together.
constexpr int kAtOnce = 8;
/// A thread makes `n` neighbours of a token's result; width is a multiple of `n`.
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
  if (Expected<bool> done = combineMany(call); !done || *done)
    return done.takeStatus();
  return withFloat(rows.dtype, [&]<typename T>(T) {
    return withFloat(out.dtype, [&]<typename Out>(Out) {
      auto launch = [&]<int n>(std::integral_constant<int, n>) {
        return launchEarly(call, combineRows<n, T, Out>, blocksOfThreads(tokens * width / n),
                           kWarpBlock, 0, call.input<T>(0), call.input<int32_t>(1),
                           call.input<float>(2), call.output<Out>(0), tokens, k, width, available,
                           call.context.errorFlag);
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
