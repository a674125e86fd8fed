//===- GroupTiles.h - which rows a block of a grouped product has -*- C++ -*-===//
// The grid is made from upper bounds on the host; which group a block works for is found here, from
// counts that only the device knows. Shared by the bf16 and f32 kernels.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GROUPTILES_H
#define MOIRA_RT_CUDA_KERNELS_GROUPTILES_H

#include "DeviceTools.h"

namespace moira::rt::cuda {

/// Rows [row, row + count) of one group; group -1: rows past all groups, which become zero.
struct RowTile {
  int32_t group;
  int64_t row;
  int32_t count;
};

/// The most tiles of `height` rows that m rows in n groups make, those past the groups included.
inline int64_t mostRowTiles(int64_t m, int64_t n, int64_t height) {
  int64_t full = m / height + n + 1;
  return full < m ? full : m; // no tile is empty
}

/// Tile number `index` in the order of the groups. Every thread of a warp calls it alike. Counts
/// that are negative or more than m together raise the flag, and all rows count as past the groups.
__device__ inline RowTile rowTile(const int32_t *groups, int64_t n, int64_t m, int64_t index,
                                  int32_t height, int32_t *flag) {
  auto cut = [&](int32_t group, int64_t row, int64_t end) {
    return RowTile{group, row, int32_t(max(int64_t(0), min(int64_t(height), end - row)))};
  };
  if (!groups)
    return cut(0, index * height, m);
  // Each lane takes a run of groups; then one lane finds the tile in its run.
  int64_t share = (n + 31) / 32;
  int64_t first = min(n, laneNumber() * share), last = min(n, first + share);
  int64_t rows = 0, tiles = 0;
  bool bad = false;
  for (int64_t g = first; g < last; ++g) {
    int32_t size = groups[g];
    bad |= size < 0;
    rows += size;
    tiles += (int64_t(size) + height - 1) / height;
  }
  int64_t rowsUpTo = warpScan(rows), tilesUpTo = warpScan(tiles);
  int64_t allRows = __shfl_sync(kAllLanes, rowsUpTo, 31);
  int64_t allTiles = __shfl_sync(kAllLanes, tilesUpTo, 31);
  if (__any_sync(kAllLanes, bad) || allRows > m) {
    if (laneNumber() == 0)
      raise(flag, Fault::groups);
    return cut(-1, index * height, m);
  }
  if (index >= allTiles)
    return cut(-1, allRows + (index - allTiles) * height, m);
  bool mine = tilesUpTo - tiles <= index && index < tilesUpTo;
  RowTile tile{};
  if (mine) {
    int64_t row = rowsUpTo - rows, before = tilesUpTo - tiles;
    for (int64_t g = first; g < last; ++g) {
      int64_t here = (int64_t(groups[g]) + height - 1) / height;
      if (index < before + here) {
        tile = cut(int32_t(g), row + (index - before) * height, row + groups[g]);
        break;
      }
      before += here;
      row += groups[g];
    }
  }
  int owner = __ffs(int(__ballot_sync(kAllLanes, mine))) - 1;
  return {__shfl_sync(kAllLanes, tile.group, owner), __shfl_sync(kAllLanes, tile.row, owner),
          __shfl_sync(kAllLanes, tile.count, owner)};
}

/// The same for all threads of a block together, for few rows in all: m * n is less than 2^31.
__device__ inline RowTile blockRowTile(const int32_t *groups, int64_t n, int64_t m, int64_t index,
                                       int32_t height, int32_t *flag) {
  __shared__ uint64_t partial[33];
  __shared__ RowTile found;
  auto cut = [&](int32_t group, int64_t row, int64_t end) {
    return RowTile{group, row, int32_t(max(int64_t(0), min(int64_t(height), end - row)))};
  };
  if (!groups)
    return cut(0, index * height, m);
  // Tiles in the high half, rows in the low one.
  const int64_t share = (n + blockDim.x - 1) / blockDim.x, first = min(n, threadIdx.x * share),
                last = min(n, first + share);
  auto pair = [&](int64_t g) {
    uint32_t size = uint32_t(groups[g]);
    return uint64_t((size + uint32_t(height) - 1) / uint32_t(height)) << 32 | size;
  };
  uint64_t mine = 0, all;
  bool bad = false;
  for (int64_t g = first; g < last; ++g) {
    bad |= groups[g] < 0 || groups[g] > m;
    mine += pair(g);
  }
  bad = __syncthreads_or(bad);
  uint64_t before = blockScan(bad ? 0 : mine, partial, all);
  if (bad || uint32_t(all) > m) {
    if (threadIdx.x == 0)
      raise(flag, Fault::groups);
    return cut(-1, index * height, m);
  }
  const int64_t tiles = int64_t(all >> 32);
  if (index >= tiles)
    return cut(-1, int64_t(uint32_t(all)) + (index - tiles) * height, m);
  if (int64_t(before >> 32) <= index && index < int64_t((before + mine) >> 32))
    for (int64_t g = first; g < last; before += pair(g++)) {
      int64_t from = int64_t(before >> 32), row = int64_t(uint32_t(before));
      if (index < from + int64_t(pair(g) >> 32)) {
        found = cut(int32_t(g), row + (index - from) * height, row + groups[g]);
        break;
      }
    }
  __syncthreads();
  return found;
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GROUPTILES_H
