//===- GradTools.h - what gradient kernels share ----------------*- C++ -*-===//
// Operands that are f32 or bf16 each for itself: cotangents of tokens are f32 in a bf16 program,
// too. Plain kernels: one thread or warp an element, sums in one order.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GRADTOOLS_H
#define MOIRA_RT_CUDA_KERNELS_GRADTOOLS_H

#include "DeviceTools.h"

namespace moira::rt::cuda {

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
};

__device__ inline float sigmoidOf(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename Id> __device__ int64_t idAt(const void *ids, int64_t i) {
  return static_cast<const Id *>(ids)[i];
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GRADTOOLS_H
