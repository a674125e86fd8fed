//===- AttentionSums.h - what attention leaves to its gradient --*- C++ -*-===//
// The optional operands by which the two calls know of each other.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_ATTENTIONSUMS_H
#define MOIRA_RT_CUDA_KERNELS_ATTENTIONSUMS_H

#include "CudaOps.h"

namespace moira::rt::cuda {

/// Where attention leaves log_sums; null: nobody asks.
inline float *logSumsOf(const Call &call) {
  return call.params.optional("log_sums") < 0 ? nullptr : static_cast<float *>(call.out[1].data);
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_ATTENTIONSUMS_H
