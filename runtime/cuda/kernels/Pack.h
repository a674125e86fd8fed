//===- Pack.h - neighbours in memory that move together ---------*- C++ -*-===//
// Values that one instruction loads and stores.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_PACK_H
#define MOIRA_RT_CUDA_KERNELS_PACK_H

namespace moira::rt::cuda {

/// `n` values, which lie at a multiple of their bytes.
template <typename T, int n> struct alignas(sizeof(T) * n) Pack {
  T v[n];
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_PACK_H
