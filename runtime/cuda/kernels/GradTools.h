//===- GradTools.h - what gradient kernels share ----------------*- C++ -*-===//
// Operands that are f32 or bf16 each for itself: cotangents of tokens are f32 in a bf16 program,
// too. Plain kernels: one thread or warp an element, sums in one order.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GRADTOOLS_H
#define MOIRA_RT_CUDA_KERNELS_GRADTOOLS_H

#include "DeviceTools.h"
#include "Pack.h"

namespace moira::rt::cuda {

/// Neighbours that a thread reads or writes at once, where `inPacks`.
inline constexpr int kNeighbours = 8;
/// Whether rows of `width` values of all these tensors are whole packs of neighbours.
template <typename... Tensors> bool inPacks(int64_t width, const Tensors &...tensors) {
  return width % kNeighbours == 0 &&
         ((addressOf(tensors.data) % (kNeighbours * elementBytes(tensors.dtype)) == 0) && ...);
}

/// An input of either type.
struct Reader {
  const void *data;
  bool isBf16;
  explicit Reader(const TensorRef &tensor)
      : data(tensor.data), isBf16(tensor.dtype == fb::DType::bf16) {}
  __device__ float operator[](int64_t i) const {
    return isBf16 ? toFloat(static_cast<const bf16 *>(data)[i])
                  : static_cast<const float *>(data)[i];
  }
  /// The values from i on, a multiple of their number.
  template <int n> __device__ void load(int64_t i, float (&values)[n]) const {
    auto take = [&](const auto &pack) {
#pragma unroll
      for (int u = 0; u < n; ++u)
        values[u] = toFloat(pack.v[u]);
    };
    if (isBf16)
      take(static_cast<const Pack<bf16, n> *>(data)[i / n]);
    else
      take(static_cast<const Pack<float, n> *>(data)[i / n]);
  }
};

/// An output of either type.
struct Writer {
  void *data;
  bool isBf16;
  explicit Writer(const TensorRef &tensor)
      : data(tensor.data), isBf16(tensor.dtype == fb::DType::bf16) {}
  __device__ void set(int64_t i, float v) const {
    if (isBf16)
      static_cast<bf16 *>(data)[i] = fromFloat<bf16>(v);
    else
      static_cast<float *>(data)[i] = v;
  }
  template <int n> __device__ void store(int64_t i, const float (&values)[n]) const {
    auto give = [&](auto pack) {
#pragma unroll
      for (int u = 0; u < n; ++u)
        pack.v[u] = fromFloat<std::remove_reference_t<decltype(pack.v[u])>>(values[u]);
      static_cast<decltype(pack) *>(data)[i / n] = pack;
    };
    if (isBf16)
      give(Pack<bf16, n>());
    else
      give(Pack<float, n>());
  }
};

__device__ inline float sigmoidOf(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename Id> __device__ int64_t idAt(const void *ids, int64_t i) {
  return static_cast<const Id *>(ids)[i];
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GRADTOOLS_H
