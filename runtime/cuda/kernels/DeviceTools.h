//===- DeviceTools.h - small device functions all kernels use ---*- C++ -*-===//
// Conversions, error flags, warp and block scans, moving rows by warps. Tensor-core and
// asynchronous copy instructions are in Tiles.h.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_DEVICETOOLS_H
#define MOIRA_RT_CUDA_KERNELS_DEVICETOOLS_H

#include "CudaOps.h"

namespace moira::rt::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float toFloat(float v) { return v; }
__device__ inline float toFloat(bf16 v) { return __bfloat162float(v); }
template <typename T> __device__ T fromFloat(float v);
template <> __device__ inline float fromFloat<float>(float v) { return v; }
template <> __device__ inline bf16 fromFloat<bf16>(float v) { return __float2bfloat16_rn(v); }

/// Keeps the first fault of a step.
__device__ inline void raise(int32_t *flag, Fault fault) {
  atomicCAS(flag, 0, static_cast<int32_t>(fault));
}

/// Number of this thread in the grid, and of threads in it.
__device__ inline int64_t threadNumber() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t threadCount() { return int64_t(gridDim.x) * blockDim.x; }
/// Number of this thread's warp in the grid (blocks are whole warps).
__device__ inline int64_t warpNumber() { return threadNumber() / 32; }
__device__ inline int laneNumber() { return int(threadIdx.x & 31); }

/// i / width and i % width, in 32 bits where they do.
__device__ inline void divide(int64_t i, int64_t width, int64_t &quotient, int64_t &remainder) {
  if ((i | width) >> 32 == 0) {
    quotient = uint32_t(i) / uint32_t(width);
    remainder = uint32_t(i) - uint32_t(quotient) * uint32_t(width);
  } else {
    quotient = i / width;
    remainder = i % width;
  }
}

__device__ inline uint32_t sharedAddress(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline float warpSum(float v) {
  for (int step = 16; step > 0; step /= 2)
    v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

/// Sum of `v` over the lanes up to and with this one.
template <typename S> __device__ S warpScan(S v) {
  for (int step = 1; step < 32; step *= 2) {
    S below = __shfl_up_sync(kAllLanes, v, step);
    if (laneNumber() >= step)
      v += below;
  }
  return v;
}

/// Sum of `v` over the threads of the block before this one; `total` becomes the sum over all.
/// Every thread takes part; `partial` is shared memory for 33 values, free again on return.
template <typename S> __device__ S blockScan(S v, S *partial, S &total) {
  S inclusive = warpScan(v);
  int warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  if (laneNumber() == 31)
    partial[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    S sum = laneNumber() < warps ? partial[laneNumber()] : S(0);
    S upTo = warpScan(sum);
    if (laneNumber() < warps)
      partial[laneNumber()] = upTo - sum;
    if (laneNumber() == 31)
      partial[32] = upTo;
  }
  __syncthreads();
  S before = partial[warp] + inclusive - v;
  total = partial[32];
  __syncthreads();
  return before;
}

/// Index of the last of `n` ascending values that is <= `value`; the first one is.
__device__ inline int64_t lastAtMost(const int32_t *values, int64_t n, int64_t value) {
  int64_t low = 0, high = n;
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    if (values[middle] <= value)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/// A warp writes `count` units: `src`'s, or zeros where src is null.
template <typename V> __device__ void warpMove(V *dst, const V *src, int64_t count) {
  constexpr int unroll = 4;
  int64_t at = laneNumber();
  if (!src) {
    for (; at < count; at += 32)
      dst[at] = V{};
    return;
  }
  for (; at + (unroll - 1) * 32 < count; at += unroll * 32) {
    V held[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u)
      held[u] = src[at + u * 32];
#pragma unroll
    for (int u = 0; u < unroll; ++u)
      dst[at + u * 32] = held[u];
  }
  for (; at < count; at += 32)
    dst[at] = src[at];
}

// How kernels follow each other on a stream. One that launchEarly launches starts once all blocks
// of the kernel before it have called letNextStart or ended. Every thread of it calls awaitResults
// before it reads what the kernel before it wrote, writes or ends, and letNextStart only behind
// that. So when it starts, every kernel but the one right before it has ended, and what they wrote
// is there: CallContext::settled names inputs that may be read at once.

/// Waits until the kernel before this one, and so all before it, has ended and its results are
/// there.
__device__ inline void awaitResults() { asm volatile("griddepcontrol.wait;\n" ::: "memory"); }
/// Lets the next kernel start, once all blocks of this one have said so.
__device__ inline void letNextStart() {
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}
/// Both: the next kernel stands ready when this one ends.
__device__ inline void awaitPrevious() {
  awaitResults();
  letNextStart();
}

/// How many multiprocessors the current device has: blocks of a grid that stays are so many, or a
/// multiple.
inline Status countMultiprocessors(const Call &call, int &count) {
  int device = 0;
  if (Status s = checked(call.name, cudaGetDevice(&device)); !s)
    return s;
  return checked(call.name, cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
}

/// Lets a kernel have so many bytes of dynamic shared memory, more than the 48 KiB of any.
template <typename Kernel> Status allowSharedBytes(const Call &call, Kernel *kernel, size_t bytes) {
  return checked(call.name, cudaFuncSetAttribute(
                                kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

/// Launches a kernel that calls awaitPrevious, and so may start while the one before it ends.
template <typename... Params, typename... Args>
Status launchEarly(const Call &call, void (*kernel)(Params...), dim3 blocks, dim3 threads,
                   size_t sharedBytes, Args... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = sharedBytes;
  config.stream = call.stream();
  config.attrs = &attribute;
  config.numAttrs = call.context.early ? 1 : 0;
  return checked(call.name, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

/// Threads of the blocks that work by warps, and the blocks for so many warps.
inline constexpr int kWarpBlock = 256;
inline unsigned blocksOfWarps(int64_t warps) { return unsigned(ceilDiv(warps, kWarpBlock / 32)); }
/// Blocks for n independent elements, each thread taking several if there are very many.
inline unsigned blocksOfThreads(int64_t n) {
  int64_t blocks = ceilDiv(n, kWarpBlock);
  return unsigned(blocks < (1 << 20) ? blocks : (1 << 20));
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_DEVICETOOLS_H
