//===- Warpgroups.h - what only sm_90a has -----------------------*- C++ -*-===//
// Tensor copies that complete on barriers, and the matrix instruction of four warps. Include it
// only from files that are built for sm_90a.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_WARPGROUPS_H
#define MOIRA_RT_CUDA_KERNELS_WARPGROUPS_H

#include "BulkCopies.h"
#include "Tiles.h"

#include <cuda.h>

namespace moira::rt::cuda {

// --- pairs: clusters of two blocks
// ------------------------------------------------------------------------

__device__ inline uint32_t clusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
/// All threads of all blocks of the cluster.
__device__ inline void clusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n"
               "barrier.cluster.wait.acquire.aligned;\n" ::
                   : "memory");
}
/// Arrives on the barrier of block `rank` of the cluster that lies where `barrier` does here, to
/// say that something was read: what this thread wrote is not made known to the other block, which
/// would take a fence of the whole device.
__device__ inline void arriveInPair(uint32_t barrier, uint32_t rank) {
  asm volatile("{\n"
               ".reg .b32 there;\n"
               "mapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
               "}\n" ::"r"(barrier),
               "r"(rank)
               : "memory");
}

/// True for one lane, of all of a warp. Where it decides who copies, the compiler knows that one
/// thread does, and needs no loop over those that might.
__device__ inline bool electOne() {
  uint32_t elected;
  asm volatile("{\n"
               ".reg .pred p;\n"
               "elect.sync _|p, 0xffffffff;\n"
               "selp.b32 %0, 1, 0, p;\n"
               "}\n"
               : "=r"(elected));
  return elected != 0;
}
/// Whether this is the block's first warp, as something that its lanes agree on.
__device__ inline bool isFirstWarp() { return __shfl_sync(kAllLanes, threadIdx.x / 32, 0) == 0; }

// --- tensor copies
// ---------------------------------------------------------------------------------

/// The box at (column, row) of a matrix to shared memory; its bytes complete on the barrier.
__device__ inline void copyBox(uint32_t to, const CUtensorMap &map, int32_t column, int32_t row,
                               uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
/// The same with a policy of the L2 cache.
__device__ inline void copyBox(uint32_t to, const CUtensorMap &map, int32_t column, int32_t row,
                               uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
               ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
               : "memory");
}
/// The box to the same place in the shared memory of both blocks of a pair, where its bytes
/// complete on the barrier of that place.
__device__ inline void copyBoxToPair(uint32_t to, const CUtensorMap &map, int32_t column,
                                     int32_t row, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
               ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
               "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(uint16_t(3))
               : "memory");
}
/// A box of a tensor of four dimensions.
__device__ inline void copyBox(uint32_t to, const CUtensorMap &map, int32_t at0, int32_t at1,
                               int32_t at2, int32_t at3, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%2, %3, %4, %5}], [%6];\n" ::"r"(to),
               "l"(&map), "r"(at0), "r"(at1), "r"(at2), "r"(at3), "r"(barrier)
               : "memory");
}
/// A box in shared memory to (column, row) of a matrix; this thread's, in the group that it
/// commits.
__device__ inline void storeBox(const CUtensorMap &map, int32_t column, int32_t row,
                                uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n" ::"l"(&map),
      "r"(column), "r"(row), "r"(from)
      : "memory");
}
/// The same to a tensor of four dimensions.
__device__ inline void storeBox(const CUtensorMap &map, int32_t at0, int32_t at1, int32_t at2,
                                int32_t at3, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], "
               "[%5];\n" ::"l"(&map),
               "r"(at0), "r"(at1), "r"(at2), "r"(at3), "r"(from)
               : "memory");
}

// --- the matrix instruction
// ------------------------------------------------------------------------

/// Says where a tile of 64 bf16 a row, as tensor copies with a swizzle of 128 bytes lay it, starts.
__device__ inline uint64_t tileDescriptor(uint32_t address) {
  constexpr uint64_t eightRows = 1024 / 16, swizzle128 = 1;
  return uint64_t((address & 0x3ffff) / 16) | uint64_t(1) << 16 | eightRows << 32 |
         swizzle128 << 62;
}
/// The same of a tile whose rows are the depth; its columns lie in blocks of 64, each with all
/// its rows, `blockBytes` apart. Each 16 of depth are 16 rows: kColumnDescriptorStep.
__device__ inline uint64_t columnDescriptor(uint32_t address, uint32_t blockBytes) {
  constexpr uint64_t eightRows = 1024 / 16, swizzle128 = 1;
  return uint64_t((address & 0x3ffff) / 16) | uint64_t(blockBytes / 16) << 16 | eightRows << 32 |
         swizzle128 << 62;
}
inline constexpr uint64_t kColumnDescriptorStep = 2048 / 16;
/// What is added to a tileDescriptor for each 16 of depth.
inline constexpr uint64_t kDescriptorStep = 32 / 16;

__device__ inline void beginProducts() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void commitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/// Waits until at most `left` committed groups are under way.
template <int left> __device__ void waitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(left) : "memory");
}

#define MOIRA_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MOIRA_SIXTEEN(i) MOIRA_FOUR(i), MOIRA_FOUR(i + 4), MOIRA_FOUR(i + 8), MOIRA_FOUR(i + 12)

/// d += a × b^T, or d = a × b^T if not `add`: 64 rows of a, 256 of b, 16 deep. d[4 j ..]: columns
/// 8 j + lane % 4 * 2 and the next of row warp * 16 + lane / 4, then of that row + 8. With bDeep
/// the rows of b's tile are the depth (columnDescriptor).
template <bool bDeep = false>
__device__ void multiply64x256(float (&d)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127}, "
      "%128, %129, p, 1, 1, 0, %131;\n"
      "}\n"
      : MOIRA_SIXTEEN(0), MOIRA_SIXTEEN(16), MOIRA_SIXTEEN(32), MOIRA_SIXTEEN(48),
        MOIRA_SIXTEEN(64), MOIRA_SIXTEEN(80), MOIRA_SIXTEEN(96), MOIRA_SIXTEEN(112)
      : "l"(a), "l"(b), "r"(int32_t(add)), "n"(int(bDeep)));
}

/// d += a^T × b, or d = a^T × b: both tiles' rows are the depth (columnDescriptor), 64 columns of
/// a, 192 of b.
__device__ inline void multiplyDeep64x192(float (&d)[96], uint64_t a, uint64_t b, bool add) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.b32 p, %98, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
               "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
               "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
               "%96, %97, p, 1, 1, 1, 1;\n"
               "}\n"
               : MOIRA_SIXTEEN(0), MOIRA_SIXTEEN(16), MOIRA_SIXTEEN(32), MOIRA_SIXTEEN(48),
                 MOIRA_SIXTEEN(64), MOIRA_SIXTEEN(80)
               : "l"(a), "l"(b), "r"(int32_t(add)));
}

/// As multiply64x256, with 128 rows of b.
__device__ inline void multiply64x128(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.b32 p, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "%64, %65, p, 1, 1, 0, 0;\n"
               "}\n"
               : MOIRA_SIXTEEN(0), MOIRA_SIXTEEN(16), MOIRA_SIXTEEN(32), MOIRA_SIXTEEN(48)
               : "l"(a), "l"(b), "r"(int32_t(add)));
}

/// The same with 64 rows of b.
__device__ inline void multiply64x64(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.b32 p, %34, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "%32, %33, p, 1, 1, 0, 0;\n"
               "}\n"
               : MOIRA_SIXTEEN(0), MOIRA_SIXTEEN(16)
               : "l"(a), "l"(b), "r"(int32_t(add)));
}

/// The same with 32 rows of b.
__device__ inline void multiply64x32(float (&d)[16], uint64_t a, uint64_t b, bool add) {
  asm volatile("{\n"
               ".reg .pred p;\n"
               "setp.ne.b32 p, %18, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
               "%16, %17, p, 1, 1, 0, 0;\n"
               "}\n"
               : MOIRA_SIXTEEN(0)
               : "l"(a), "l"(b), "r"(int32_t(add)));
}

/// d += a × b with a in registers, as a 16×16 fragment a warp, and b's rows the depth
/// (columnDescriptor): 128 columns.
__device__ inline void multiplyRegisters(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               "}\n"
               : MOIRA_SIXTEEN(0), MOIRA_SIXTEEN(16), MOIRA_SIXTEEN(32), MOIRA_SIXTEEN(48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/// The same for 64 columns.
__device__ inline void multiplyRegisters(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
               "}\n"
               : MOIRA_SIXTEEN(0), MOIRA_SIXTEEN(16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef MOIRA_SIXTEEN
#undef MOIRA_FOUR

/// Four 8×8 matrices to shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void storeMatrices(bf16 *row, uint32_t r0, uint32_t r1, uint32_t r2,
                                     uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(
                   sharedAddress(row)),
               "r"(r0), "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

template <int registers> __device__ void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(registers));
}
template <int registers> __device__ void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(registers));
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_WARPGROUPS_H
