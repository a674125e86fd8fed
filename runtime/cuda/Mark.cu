//===- Mark.cu - a stream's mark in host memory ---------------------------===//
#include "Mark.h"

namespace moira::rt::cuda {

namespace {
__global__ void mark(volatile uint32_t *slot, uint32_t value) {
  *slot = value;
  __threadfence_system();
}
} // namespace

cudaError_t enqueueMark(uint32_t *slot, uint32_t value, cudaStream_t stream) {
  mark<<<1, 1, 0, stream>>>(slot, value);
  return cudaGetLastError();
}

} // namespace moira::rt::cuda
