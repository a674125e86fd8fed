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

constexpr int kCombineBlock = 128;

/// One block a token; width is a multiple of `n`.
template <int n, typename T, typename Out>
__global__ void combineRows(const T *rows, const int32_t *pos, const float *weights, Out *out,
                            int64_t k, int64_t width, int64_t available, int32_t *flag) {
  int64_t t = blockIdx.x;
  for (int64_t d = int64_t(threadIdx.x) * n; d < width; d += kCombineBlock * n) {
    float sum[n] = {};
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      int32_t row = pos[j];
      if (row < -1 || row >= available)
        raise(flag, Fault::row);
      if (row < 0 || row >= available)
        continue;
      float weight = weights[j];
      auto part = *reinterpret_cast<const Pack<T, n> *>(rows + row * width + d);
#pragma unroll
      for (int i = 0; i < n; ++i)
        sum[i] += weight * toFloat(part.v[i]);
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
        combineRows<n><<<unsigned(tokens), kCombineBlock, 0, call.stream()>>>(
            call.input<T>(0), call.input<int32_t>(1), call.input<float>(2), call.output<Out>(0), k,
            width, available, call.context.errorFlag);
        return launched(call);
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
