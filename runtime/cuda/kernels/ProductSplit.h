//===- ProductSplit.h - dense products of some rows --------------*- C++ -*-===//
// What Linear.cpp asks of ProductSplit.cu.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_PRODUCTSPLIT_H
#define MOIRA_RT_CUDA_KERNELS_PRODUCTSPLIT_H

#include "CudaOps.h"

namespace moira::rt::cuda {

/// Whether launchProductSplit, which needs a Hopper GPU, takes it: bf16, no groups, no more rows
/// than a tile has, and not so many columns that cuBLASLt fills the device.
bool fitsSplit(const GroupedProduct &product);
Status launchProductSplit(const Call &call, const GroupedProduct &product);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_PRODUCTSPLIT_H
