//===- StreamedTile.h - tiles of products that stream the weights -*- C++ -*-===//
// For few rows a product takes as long as reading its weights. A block makes the results of 8 or 16
// rows of weights for up to 16 rows of x: its warps share the depth. Each lane copies the bytes of
// its own fragments, several steps ahead, so nobody waits for others until the warps' sums are
// added, always in the same order. Of up to 8 rows the weights may be asked for before the rows.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_STREAMEDTILE_H
#define MOIRA_RT_CUDA_KERNELS_STREAMEDTILE_H

#include "Tiles.h"

#include <algorithm>

namespace moira::rt::cuda {

/// Copies 16 bytes that this thread alone reads back, or writes zeros. Weights (`kept` false) are
/// read once and pass by the L1 cache, where the rows stay.
template <bool kept>
__device__ void copyOwn(uint32_t to, const bf16 *from, bool valid, uint64_t policy = 0) {
  const int bytes = valid ? 16 : 0;
  if constexpr (kept)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;\n" ::"r"(to),
        "l"(from), "r"(bytes), "l"(policy)
        : "memory");
}
__device__ inline uint4 readOwn(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

/// A tile of `rowParts` * 8 rows of x by `columnParts` * 8 rows of w, its columns, all of k values.
/// A lane's 16 bytes are the fragments of two matrix instructions: the order of the depth inside an
/// instruction is the same on both sides, which is all that a product asks of it.
template <int rowParts, int columnParts, int warps, int stages> class StreamedTile {
  static_assert(columnParts == 1 || columnParts == 2);
  /// Values of each row that a warp takes at a time, as two chunks a lane.
  static constexpr int kDepth = 64, kReads = 2;
  /// Bytes that a warp's 16-byte copies fill.
  static constexpr int kCopyBytes = 512;
  /// Each warp has a ring of stages, in whose place its sums come in the end. Eight rows lie in
  /// registers, those of several steps, so that the ring has room for more weights.
  static constexpr bool kRowsInRing = rowParts > 1;
  static constexpr int kStageBytes =
      kReads * (columnParts + (kRowsInRing ? rowParts : 0)) * kCopyBytes;
  static constexpr int kRingBytes = stages * kStageBytes;
  static constexpr int kAhead = kRowsInRing ? 1 : stages == 3 ? 3 : 4;
  static_assert(stages % kAhead == 0);
  static constexpr int kPitch = columnParts * 8 + 4;

public:
  static constexpr int kRows = rowParts * 8, kColumns = columnParts * 8, kThreads = warps * 32;
  /// Whether askForWeights may come before askForRows.
  static constexpr bool kWeightsFirst = !kRowsInRing;
  /// Shared memory of a block.
  static constexpr size_t kBytes = size_t(warps) * kRingBytes;
  /// How many blocks run on a multiprocessor at once, or more: as many as memory has room for.
  static constexpr int kTogether =
      kRowsInRing ? 1 : int(std::min<size_t>(8, size_t(227 << 10) / (kBytes + 1024)));
  static_assert(kRows * kPitch * int(sizeof(float)) <= kRingBytes);

  /// weights(i): where the weights of column i begin, those of any other if there is no such one;
  /// its results are without meaning.
  template <typename Weights>
  __device__ StreamedTile(Weights weights, int32_t k, unsigned char *sharedBytes)
      : k(k), sharedBytes(sharedBytes), policy(readOncePolicy()), lane(laneNumber()),
        warp(int(threadIdx.x) / 32),
        own(sharedAddress(sharedBytes) + warp * kRingBytes + lane * 16) {
#pragma unroll
    for (int i = 0; i < columnParts; ++i)
      left[i] = weights(i * 8 + lane / 4);
  }

  /// Asks for the first weights.
  __device__ __forceinline__ void askForWeights() {
#pragma unroll
    for (int s = 0; s < stages; ++s)
      issue(s, s);
  }

  /// Asks for the rows' first parts; rowAt(i): where row i begins, of `count`.
  template <typename RowAt> __device__ __forceinline__ void askForRows(RowAt rowAt, int count) {
    live = (count + 7) / 8;
    // Rows past the end are the last one again; their results are without meaning.
#pragma unroll
    for (int j = 0; j < rowParts; ++j)
      right[j] = rowAt(min(count - 1, j * 8 + lane / 4));
    if constexpr (!kRowsInRing)
#pragma unroll
      for (int s = 0; s < kAhead; ++s)
        load(s, rows[s]);
  }

  /// After both: results are there for all threads of the block.
  __device__ __forceinline__ void multiply() {
    float sum[rowParts][4] = {};
    for (int32_t first = 0; depthOf(first) < k; first += stages) {
#pragma unroll
      for (int u = 0; u < stages; ++u) {
        const int32_t s = first + u;
        if (depthOf(s) >= k)
          break;
        waitCopies<stages - 1>(); // what this lane reads, it copied
        uint32_t from = own + uint32_t(u) * kStageBytes;
#pragma unroll
        for (int c = 0; c < kReads; ++c) {
          const uint4 low = readOwn(from),
                      high = columnParts == 2 ? readOwn(from + kCopyBytes) : uint4{};
          const uint32_t one[4] = {low.x, high.x, low.y, high.y},
                         two[4] = {low.z, high.z, low.w, high.w};
          from += columnParts * kCopyBytes;
#pragma unroll
          for (int j = 0; j < rowParts; ++j) {
            uint4 b;
            if constexpr (kRowsInRing) {
              if (j < live)
                b = readOwn(from);
              from += kCopyBytes;
            } else {
              b = rows[u % kAhead][c];
            }
            if (j > 0 && j >= live)
              continue;
            multiplyAdd(sum[j], one, b.x, b.y);
            multiplyAdd(sum[j], two, b.z, b.w);
          }
        }
        if constexpr (!kRowsInRing)
          load(s + kAhead, rows[u % kAhead]);
        issue(s + stages, u);
      }
    }
    waitCopies<0>();
    __syncwarp(); // the ring is read
#pragma unroll
    for (int j = 0; j < rowParts; ++j)
#pragma unroll
      for (int c = 0; c < columnParts * 2; ++c)
        sumsOf(warp)[j * 8 + lane % 4 * 2 + c % 2][c / 2 * 8 + lane / 4] = sum[j][c];
    __syncthreads();
  }

  /// After multiply.
  __device__ float result(int row, int column) const {
    float total = 0;
#pragma unroll
    for (int s = 0; s < warps; ++s)
      total += sumsOf(s)[row][column];
    return total;
  }

private:
  __device__ float (*sumsOf(int ofWarp) const)[kPitch] {
    return reinterpret_cast<float (*)[kPitch]>(sharedBytes + ofWarp * kRingBytes);
  }
  /// Where step s of this warp begins.
  __device__ int32_t depthOf(int32_t s) const { return (s * warps + warp) * kDepth; }

  /// One group of copies in any case.
  __device__ __forceinline__ void issue(int32_t s, int slot) {
    const int32_t at = depthOf(s);
    uint32_t to = own + uint32_t(slot) * kStageBytes;
    if (at < k) {
#pragma unroll
      for (int c = 0; c < kReads; ++c) {
        const int32_t from = at + c * (kDepth / kReads) + lane % 4 * kChunk;
#pragma unroll
        for (int i = 0; i < columnParts; ++i, to += kCopyBytes)
          copyOwn<false>(to, left[i] + (from < k ? from : 0), from < k, policy);
        if constexpr (kRowsInRing)
#pragma unroll
          for (int j = 0; j < rowParts; ++j, to += kCopyBytes)
            if (j < live)
              copyOwn<true>(to, right[j] + (from < k ? from : 0), from < k);
      }
    }
    commitCopies();
  }

  /// Of the only eight rows.
  __device__ __forceinline__ void load(int32_t s, uint4 (&into)[kReads]) {
#pragma unroll
    for (int c = 0; c < kReads; ++c) {
      const int32_t from = depthOf(s) + c * (kDepth / kReads) + lane % 4 * kChunk;
      into[c] = uint4{};
      if (from < k)
        into[c] = *reinterpret_cast<const uint4 *>(right[0] + from);
    }
  }

  const int32_t k;
  unsigned char *sharedBytes;
  const uint64_t policy;
  const int lane, warp;
  const uint32_t own;
  const bf16 *left[columnParts], *right[rowParts];
  int live = 1;
  uint4 rows[kAhead][kReads];
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_STREAMEDTILE_H
