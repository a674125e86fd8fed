//===- BulkCopies.h - barriers that count bytes, copies of whole rows -------*- C++ -*-===//
// What the copy engine of Hopper does for any kernel (sm_90): barriers in shared memory that count
// bytes, and copies of contiguous bytes that complete on them. Addresses in shared memory are
// sharedAddress()es; those of barriers, of 8-byte words.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_BULKCOPIES_H
#define MOIRA_RT_CUDA_KERNELS_BULKCOPIES_H

#include "DeviceTools.h"

namespace moira::rt::cuda {

__device__ inline void initBarrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
/// Makes initialised barriers known to the copy engine.
__device__ inline void publishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// The arrivals of `count` threads.
__device__ inline void arrive(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(count)
               : "memory");
}
/// Arrives, and lets the phase wait for `bytes` copied.
__device__ inline void arriveExpecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Arrives as soon as all asynchronous copies (copyAsync) that this thread has begun are done.
__device__ inline void arriveWithCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}
/// Whether the phase of this parity is complete.
__device__ inline bool isComplete(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  asm volatile("{\n"
               ".reg .pred p;\n"
               "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
               "selp.u32 %0, 1, 0, p;\n"
               "}\n"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done;
}
/// Returns when the phase of this parity is complete. (The phase before the first counts as
/// complete: parity 1.)
__device__ inline void waitFor(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  do
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}\n"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  while (!done);
}

/// Copies `bytes` (a multiple of 16; both addresses too) to shared memory; they complete on the
/// barrier.
__device__ inline void copyBytes(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
               "[%3];\n" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
/// Copies `bytes` from shared memory; this thread's, in the group that it commits.
__device__ inline void storeBytes(void *to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
/// Makes what this thread wrote to shared memory known to the copy engine.
__device__ inline void publishToCopies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ inline void commitStores() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
/// Waits until at most `left` of this thread's groups have not read their shared memory.
template <int left> __device__ void waitStores() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(left) : "memory");
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_BULKCOPIES_H
