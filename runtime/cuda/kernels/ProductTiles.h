//===- ProductTiles.h - what the products on Hopper share ---------*- C++ -*-===//
// Tiles of 128 × 256 results, made by two warpgroups from operands that a third one's copies bring:
// sizes, the layout of shared memory, where groups start, and how results are stored in f32. For
// files that are built for sm_90a.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_PRODUCTTILES_H
#define MOIRA_RT_CUDA_KERNELS_PRODUCTTILES_H

#include "TensorMaps.h"
#include "Warpgroups.h"

namespace moira::rt::cuda::product {

inline constexpr int kRows = 128, kColumns = 256, kDepth = 64, kStages = 3;
inline constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (kConsumers + 1) * kWarpgroup;
inline constexpr int kConsumerWarps = kConsumers * kWarpgroup / 32,
                     kConsumerRows = kRows / kConsumers;
inline constexpr uint32_t kLeftBytes = kRows * kDepth * sizeof(bf16),
                          kRightBytes = kColumns * kDepth * sizeof(bf16),
                          kStageBytes = kLeftBytes + kRightBytes;
/// A warp stores its results as slabs of 16 rows × 64 columns.
inline constexpr int kSlabRows = 16, kSlabColumns = 64, kSlabs = kColumns / kSlabColumns;
inline constexpr int kSlabValues = kSlabRows * kSlabColumns;
inline constexpr uint32_t kSlabBytes = kSlabValues * sizeof(bf16);
/// Of as many groups the starts fit in shared memory.
inline constexpr int64_t kMostGroups = 1024;

/// Rows and columns of a group's results; count 0: the end.
struct Tile {
  int32_t row, column, group, count;
};

/// Where a group starts: its first row, and the row tiles of the groups before it. Behind the last
/// group stand the rows that belong to none.
struct Start {
  int32_t row, tile;
};

struct Shared {
  static constexpr uint32_t alignment = 1024; // of swizzled tiles
  static constexpr uint32_t slabsAt = kStages * kStageBytes,
                            barriersAt = slabsAt + kConsumerWarps * kSlabs * kSlabBytes,
                            startsAt = barriersAt + 2 * kStages * sizeof(uint64_t),
                            bytes = startsAt + (kMostGroups + 1) * sizeof(Start) + alignment;
};

/// Stage and parity of a ring.
struct Place {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Sizes {
  int32_t groupCount, m, n, k, columnTiles;
};

/// The last group that starts at `tile` or before: one that has tiles, or the last of all.
__device__ inline int32_t groupOf(const Start *starts, int32_t groupCount, uint32_t tile) {
  int32_t group = 0;
  for (int32_t end = groupCount + 1; end - group > 1;) {
    const int32_t middle = (group + end) / 2;
    if (uint32_t(starts[middle].tile) <= tile)
      group = middle;
    else
      end = middle;
  }
  return group;
}

/// Fills in the starts of all groups, of which one of so many rows has tilesOf(rows) tiles, by one
/// warp. Counts that are negative or more than m together raise the flag, and no row belongs to any
/// group.
template <typename TilesOf>
__device__ void findStarts(const int32_t *groups, const Sizes &sizes, Start *starts, int32_t *flag,
                           const TilesOf &tilesOf) {
  constexpr int atOnce = 4; // loads under way
  int64_t rows = 0;
  int32_t tiles = 0;
  bool bad = false;
  for (int32_t base = 0; base < sizes.groupCount; base += atOnce * 32) {
    int32_t counts[atOnce];
#pragma unroll
    for (int i = 0; i < atOnce; ++i) {
      const int32_t g = base + i * 32 + laneNumber();
      counts[i] = g >= sizes.groupCount ? 0 : groups ? groups[g] : sizes.m;
    }
#pragma unroll
    for (int i = 0; i < atOnce; ++i) {
      const int32_t g = base + i * 32 + laneNumber();
      bad |= counts[i] < 0 || counts[i] > sizes.m;
      const int32_t count = bad ? 0 : counts[i], own = tilesOf(count);
      const int64_t rowsUpTo = warpScan(int64_t(count));
      const int32_t tilesUpTo = warpScan(own);
      if (g < sizes.groupCount)
        starts[g] = {int32_t(rows + rowsUpTo - count), tiles + tilesUpTo - own};
      rows += __shfl_sync(kAllLanes, rowsUpTo, 31);
      tiles += __shfl_sync(kAllLanes, tilesUpTo, 31);
    }
  }
  bad = __any_sync(kAllLanes, bad) || rows > sizes.m;
  __syncwarp();
  if (bad)
    for (int32_t g = laneNumber(); g < sizes.groupCount; g += 32)
      starts[g] = {0, 0};
  if (laneNumber() == 0) {
    starts[sizes.groupCount] = bad ? Start{0, 0} : Start{int32_t(rows), tiles};
    if (bad)
      raise(flag, Fault::groups);
  }
  __syncwarp();
}
/// Tiles of `height` rows.
template <int height = kRows>
__device__ void findStarts(const int32_t *groups, const Sizes &sizes, Start *starts,
                           int32_t *flag) {
  findStarts(groups, sizes, starts, flag,
             [](int32_t rows) { return (rows + height - 1) / height; });
}

/// The results of one warp, rows from `row0` of the tile on, in f32: straight to their places.
__device__ inline void storeWarp(const float (&sum)[128], const CUtensorMap &, bf16 *, float *out,
                                 const Tile &tile, int row0, int64_t n) {
  const int lane = laneNumber();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + half * 8 + lane / 4;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const int64_t column = tile.column + j * 8 + lane % 4 * 2;
      if (row < tile.count && column < n)
        *reinterpret_cast<float2 *>(out + int64_t(tile.row + row) * n + column) =
            make_float2(sum[j * 4 + half * 2], sum[j * 4 + half * 2 + 1]);
    }
  }
}

/// 64 columns of a warp's results to a slab, in bf16.
__device__ inline void fillSlab(bf16 *slab, const float *sum) {
  const int lane = laneNumber();
#pragma unroll
  for (int j = 0; j < kSlabColumns / 16; ++j) {
    const float *s = sum + j * 8;
    storeMatrices(slab + chunkOffset<8>(lane % 16, j * 2 + lane / 16), packPair(s[0], s[1]),
                  packPair(s[2], s[3]), packPair(s[4], s[5]), packPair(s[6], s[7]));
  }
}

/// Rows of a slab below `rows` and columns below `columns`, by one warp, to rows that lie `stride`
/// values apart.
__device__ inline void copySlab(const bf16 *slab, bf16 *out, int64_t stride, int rows,
                                int64_t columns) {
  for (int i = laneNumber(); i < kSlabRows * 8; i += 32) {
    const int row = i / 8, chunk = i % 8;
    if (row < rows && chunk * kChunk < columns)
      *reinterpret_cast<uint4 *>(out + row * stride + chunk * kChunk) =
          *reinterpret_cast<const uint4 *>(slab + chunkOffset<8>(row, chunk));
  }
}

/// A warp's results, `count` slabs of columns, in bf16: to `slabs`, and from there by tensor
/// copies, if all its rows belong to the tile. The caller waits for these copies before it calls
/// again.
template <int count>
__device__ inline void storeSlabs(const float *sum, const CUtensorMap &map, bf16 *slabs, bf16 *out,
                                  const Tile &tile, int row0, int64_t n) {
  const int lane = laneNumber();
  if (row0 >= tile.count)
    return;
  if (electOne())
    waitStores<0>(); // the slabs are read
  __syncwarp();
#pragma unroll
  for (int slab = 0; slab < count; ++slab)
    fillSlab(slabs + slab * kSlabValues, sum + slab * (kSlabValues / 32));
  if (row0 + kSlabRows <= tile.count) {
    publishToCopies();
    __syncwarp();
    if (electOne()) {
#pragma unroll
      for (int slab = 0; slab < count; ++slab)
        storeBox(map, tile.column + slab * kSlabColumns, tile.row + row0,
                 sharedAddress(slabs + slab * kSlabValues));
      commitStores();
    }
    return;
  }
  __syncwarp();
  for (int slab = 0; slab < count; ++slab) {
    const int64_t column = tile.column + slab * kSlabColumns;
    copySlab(slabs + slab * kSlabValues, out + int64_t(tile.row + row0) * n + column, n,
             tile.count - row0, n - column);
  }
  __syncwarp();
}

/// Zeros in the place of a warp's results.
template <typename Out>
__device__ void storeZeros(Out *out, const Tile &tile, int row0, int64_t n) {
  for (int row = row0; row < min(row0 + kSlabRows, tile.count); ++row)
    for (int64_t column = tile.column + laneNumber();
         column < min(n, int64_t(tile.column) + kColumns); column += 32)
      out[int64_t(tile.row + row) * n + column] = fromFloat<Out>(0.0f);
}

/// Blocks for so many tiles: no more than there are multiprocessors, each of which walks on.
inline Status persistentBlocks(const Call &call, int64_t tiles, unsigned &blocks) {
  int processors = 0;
  if (Status s = countMultiprocessors(call, processors); !s)
    return s;
  blocks = unsigned(tiles < processors ? tiles : processors);
  return {};
}

} // namespace moira::rt::cuda::product

#endif // MOIRA_RT_CUDA_KERNELS_PRODUCTTILES_H
