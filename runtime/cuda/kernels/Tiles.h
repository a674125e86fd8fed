//===- Tiles.h - tensor-core tiles in shared memory -------------*- C++ -*-===//
// bf16 tiles: asynchronous copies in, fragments out, the matrix instruction, with 16-byte chunks of
// a row exchanged (by the row's low bits) so that the reads of a fragment meet no bank twice. A
// tile's row has a multiple of 64 values.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_TILES_H
#define MOIRA_RT_CUDA_KERNELS_TILES_H

#include "DeviceTools.h"

namespace moira::rt::cuda {

/// Values of a chunk, the unit of copies.
inline constexpr int kChunk = 8;

/// Where the chunk of a tile with `chunks` chunks a row lies, in values.
template <int chunks> __device__ int chunkOffset(int row, int chunk) {
  static_assert(chunks % 8 == 0);
  return (row * chunks + (chunk ^ (row & 7))) * kChunk;
}

/// Copies 16 bytes, or writes zeros if not `valid`; the source is then not read.
__device__ inline void copyAsync(uint32_t to, const bf16 *from, bool valid) {
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void copyAsync(bf16 *to, const bf16 *from, bool valid) {
  copyAsync(sharedAddress(to), from, valid);
}
__device__ inline void commitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Waits until at most `left` of this thread's groups are under way.
template <int left> __device__ void waitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(left) : "memory");
}

/// What is read by it makes room in the L2 cache before all else: of weights each byte is read
/// once, and kernels and activations should stay.
__device__ inline uint64_t readOncePolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

/// Loads `rows` × (chunks * 8) values into a tile, `rowAt(i)` -> address of row i's first value or
/// null (zeros), values from `width` on zeros. `aligned`: all rows are 16-byte aligned and width is
/// a multiple of 8. `readable` is any address of global memory, named where nothing is read. Ends
/// without waiting; the caller commits.
template <int rows, int chunks, int threads, bool aligned, typename RowAt>
__device__ void loadTile(bf16 *tile, const bf16 *readable, int64_t width, RowAt rowAt) {
#pragma unroll
  for (int at = 0; at < rows * chunks; at += threads) {
    int i = at + int(threadIdx.x), row = i / chunks, chunk = i % chunks;
    if (rows * chunks % threads != 0 && row >= rows)
      break;
    const bf16 *from = rowAt(row);
    bf16 *to = tile + chunkOffset<chunks>(row, chunk);
    if constexpr (aligned) {
      bool valid = from && chunk * kChunk < width;
      copyAsync(to, valid ? from + chunk * kChunk : readable, valid);
    } else {
      bf16 values[kChunk];
#pragma unroll
      for (int c = 0; c < kChunk; ++c)
        values[c] = from && chunk * kChunk + c < width ? from[chunk * kChunk + c] : bf16(0.0f);
#pragma unroll
      for (int c = 0; c < kChunk; ++c)
        to[c] = values[c];
    }
  }
}

/// Four 8×8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void loadMatrices(uint32_t (&r)[4], const bf16 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}
__device__ inline void loadMatricesTransposed(uint32_t (&r)[4], const bf16 *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(sharedAddress(row))
               : "memory");
}

/// A 16×16 A fragment: rows `row`.. of the tile, values 16 * step...
template <int chunks> __device__ void loadA(uint32_t (&a)[4], const bf16 *tile, int row, int step) {
  int lane = laneNumber();
  loadMatrices(a, tile + chunkOffset<chunks>(row + lane % 16, step * 2 + lane / 16));
}

/// Two B fragments (8 columns × 16 deep each) from a tile whose rows are the columns of B: b[0..1]
/// for rows `row`.., b[2..3] for rows `row` + 8...
template <int chunks> __device__ void loadB(uint32_t (&b)[4], const bf16 *tile, int row, int step) {
  int lane = laneNumber();
  loadMatrices(b,
               tile + chunkOffset<chunks>(row + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
}

/// The same from a tile whose rows are the depth of B: depth `row`.., columns 16 * pair...
template <int chunks>
__device__ void loadBTransposed(uint32_t (&b)[4], const bf16 *tile, int row, int pair) {
  int lane = laneNumber();
  loadMatricesTransposed(b, tile + chunkOffset<chunks>(row + lane % 16, pair * 2 + lane / 16));
}

/// An 8×8 matrix transposed: a lane has two neighbours of row lane / 4.
__device__ inline uint32_t transposeMatrix(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(transposed) : "r"(pair));
  return transposed;
}

/// c += a × b, 16×8 by 16 deep. c: (row l/4, columns l%4*2 and +1), then the same of row l/4 + 8.
__device__ inline void multiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
               "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two values as one register, `low` first.
__device__ inline uint32_t packPair(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t *>(&pair);
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_TILES_H
