//===- TensorMaps.h - what the tensor copy engine is told ---------*- C++ -*-===//
// Descriptions of tensors in device memory, made on the host by the driver's function and passed to
// kernels by value. All are of bf16, in boxes whose rows are 128 bytes and swizzled as wide.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_TENSORMAPS_H
#define MOIRA_RT_CUDA_KERNELS_TENSORMAPS_H

#include "CudaOps.h"

#include <cuda.h>

namespace moira::rt::cuda {

/// A matrix [rows, width], in boxes of boxRows × 64. False if the driver cannot describe it.
bool describeMatrix(CUtensorMap &map, const void *data, int64_t rows, int64_t width, int boxRows);
/// A tensor [batch, rows, heads, width], in boxes of boxRows × boxWidth of one head.
bool describeHeads(CUtensorMap &map, const void *data, int64_t batch, int64_t rows, int64_t heads,
                   int64_t width, int boxWidth, int boxRows);
/// Internal: what a description that failed means.
Status noTensorMap(const Call &call);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_TENSORMAPS_H
