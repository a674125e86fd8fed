//===- Mark.h - a stream's mark in host memory ------------------*- C++ -*-===//
#ifndef MOIRA_RT_CUDA_MARK_H
#define MOIRA_RT_CUDA_MARK_H

#include <cstdint>
#include <cuda_runtime_api.h>

namespace moira::rt::cuda {

/// Enqueues the store of `value` to `slot`, which is pinned host memory.
cudaError_t enqueueMark(uint32_t *slot, uint32_t value, cudaStream_t stream);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_MARK_H
