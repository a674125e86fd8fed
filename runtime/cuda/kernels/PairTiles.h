//===- PairTiles.h - tiles that two blocks of a cluster share -----*- C++ -*-===//
// For products of experts whose rows are gathered by the numbers of their tokens, which no tensor
// copy can. Two blocks of a cluster work side by side: on two row tiles of a group and the same
// columns, of whose weights each copies a half to both, or, where a group's last row tile is odd,
// on that tile and two column tiles. Here: who has which tile, the ring of stages in shared memory,
// and the warpgroup that fills it. For files that are built for sm_90a.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_PAIRTILES_H
#define MOIRA_RT_CUDA_KERNELS_PAIRTILES_H

#include "GroupTiles.h"
#include "ProductTiles.h"

namespace moira::rt::cuda::product {

/// What one block of a pair makes. Rows below `rows` of the tile are stored.
struct Work {
  int32_t row, column, group, rows;
  bool shared; ///< the blocks have the same columns
  bool end;
};

/// Pairs of row tiles that take turns before the next columns.
inline constexpr uint32_t kBandPairs = 8;
inline constexpr int64_t kMostPairGroups = 256;
inline constexpr int kGatherThreads = kWarpgroup,
                     kGatherRows = kRows * (kDepth / kChunk) / kGatherThreads;

/// Where shared memory has what: stages, `slabs` of each warp's results, barriers, starts.
template <int stages, int slabs> struct PairLayout {
  static constexpr uint32_t slabsAt = stages * kStageBytes,
                            barriersAt = slabsAt + kConsumerWarps * slabs * kSlabBytes,
                            startsAt = barriersAt + 2 * stages * sizeof(uint64_t),
                            bytes = startsAt + (kMostPairGroups + 1) * sizeof(Start);
};

__device__ inline uint32_t pairItems(uint32_t tiles, uint32_t columns) {
  return tiles / 2 * columns + tiles % 2 * ((columns + 1) / 2);
}

/// Item `index` of all, as block `rank` of the pair has it, of tiles of `width` columns.
/// starts[].tile counts items.
__device__ inline Work workAt(const Start *starts, const Sizes &sizes, int32_t width,
                              uint32_t index, uint32_t rank) {
  const uint32_t columns = uint32_t(sizes.columnTiles);
  const int32_t group = groupOf(starts, sizes.groupCount, index);
  const Start start = starts[group];
  const bool past = group == sizes.groupCount;
  const int32_t size = (past ? sizes.m : starts[group + 1].row) - start.row;
  const uint32_t local = index - uint32_t(start.tile), tiles = uint32_t(size + kRows - 1) / kRows,
                 pairs = tiles / 2;
  if (local >= pairItems(tiles, columns))
    return {0, 0, 0, 0, false, true};
  uint32_t tile, column;
  const bool shared = local < pairs * columns;
  if (shared) {
    const uint32_t band = local / (kBandPairs * columns),
                   inBand = min(kBandPairs, pairs - band * kBandPairs),
                   rest = local - band * kBandPairs * columns;
    column = rest / inBand;
    tile = (band * kBandPairs + rest - column * inBand) * 2 + rank;
  } else {
    column = (local - pairs * columns) * 2 + rank;
    tile = tiles - 1;
  }
  return {start.row + int32_t(tile * kRows),
          int32_t(column) * width,
          past ? -1 : group,
          column < columns ? min(kRows, size - int32_t(tile * kRows)) : 0,
          shared,
          false};
}

/// findStarts with items instead of row tiles.
__device__ inline void findItems(const int32_t *groups, const Sizes &sizes, Start *starts,
                                 int32_t *flag) {
  findStarts(groups, sizes, starts, flag, [&](int32_t rows) {
    return int32_t(pairItems(uint32_t(rows + kRows - 1) / kRows, uint32_t(sizes.columnTiles)));
  });
}

/// The most items that m rows in groups make, with so many column tiles.
inline int64_t mostItems(int64_t m, int64_t columnTiles, int64_t groupCount) {
  return columnTiles * mostRowTiles(m, groupCount, kRows);
}

/// Stages in shared memory, and where one stands among them.
template <int stages, int slabs> struct PairRing {
  using Layout = PairLayout<stages, slabs>;
  uint32_t base;
  int stage = 0;
  uint32_t parity = 0;

  __device__ explicit PairRing(uint32_t base) : base(base) {}
  __device__ uint32_t left() const { return base + stage * kStageBytes; }
  __device__ uint32_t right() const { return left() + kLeftBytes; }
  __device__ uint32_t full(int s) const { return base + Layout::barriersAt + s * 8; }
  __device__ uint32_t empty(int s) const { return base + Layout::barriersAt + (stages + s) * 8; }
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  /// By one thread.
  __device__ void init(bool gather) const {
    for (int s = 0; s < stages; ++s) {
      initBarrier(full(s), gather ? 1 + kGatherThreads / 32 : 1);
      initBarrier(empty(s), 2 * kConsumerWarps);
    }
    publishBarriers();
  }
  __device__ void waitFull() const { waitFor(full(stage), parity); }
  /// Gives a stage that this warp has read back to both blocks' copies.
  __device__ void release(int s) const {
    if (laneNumber() < 2)
      arriveInPair(empty(s), uint32_t(laneNumber()));
  }
};

/// The rows of x that a product's rows are.
struct GatheredRows {
  const bf16 *x;
  const int32_t *tokens;
  int32_t count; ///< of x
};

/// Fills the stages, by the first warpgroup: the rows' parts of each kDepth of depth, gathered if
/// `gather`, and what one thread copies for stage s of a tile: copies(work, s, ring) after it has
/// said how many bytes these are, copies.bytes(work, s). copies.stages(work) counts them; those
/// behind the depth have no rows.
template <bool gather, typename Ring, typename Copies>
__device__ void fillStages(Ring ring, const Start *starts, const Sizes &sizes, int32_t width,
                           const GatheredRows &from, int32_t *flag, const Copies &copies) {
  if (!gather && !(isFirstWarp() && electOne()))
    return;
  const int chunk = int(threadIdx.x) % 8, row0 = int(threadIdx.x) / 8,
            steps = int((sizes.k + kDepth - 1) / kDepth);
  const uint32_t rank = clusterRank(), itemStep = gridDim.x / 2;
  int32_t tokens[kGatherRows];
  auto findTokens = [&](const Work &work) { // -1: none
    if constexpr (gather) {
#pragma unroll
      for (int i = 0; i < kGatherRows; ++i) {
        const int row = row0 + i * (kGatherThreads / 8);
        tokens[i] =
            !work.end && work.group >= 0 && row < work.rows ? from.tokens[work.row + row] : -1;
      }
    }
  };
  uint32_t index = blockIdx.x / 2;
  Work work = workAt(starts, sizes, width, index, rank);
  findTokens(work);
  int pending = -1; // the stage whose rows are under way
  auto finishPending = [&] {
    publishToCopies();
    __syncwarp();
    if (laneNumber() == 0)
      arrive(ring.full(pending));
  };
  while (!work.end) {
    const Work now = work;
    const bf16 *rows[kGatherRows];
    if constexpr (gather) {
#pragma unroll
      for (int i = 0; i < kGatherRows; ++i) {
        const bool there = uint32_t(tokens[i]) < uint32_t(from.count);
        rows[i] = there ? from.x + int64_t(tokens[i]) * sizes.k + chunk * kChunk : nullptr;
        if (!there && now.group >= 0 && row0 + i * (kGatherThreads / 8) < now.rows)
          raise(flag, Fault::row);
      }
    }
    work = workAt(starts, sizes, width, index += itemStep, rank);
    findTokens(work);
    if (now.group < 0)
      continue;
    const int stages = copies.stages(now);
    for (int s = 0; s < stages; ++s) {
      if constexpr (gather) // what came is said before waiting for room
        if (pending >= 0 &&
            !__all_sync(kAllLanes, isComplete(ring.empty(ring.stage), ring.parity ^ 1))) {
          waitCopies<0>();
          finishPending();
          pending = -1;
        }
      waitFor(ring.empty(ring.stage), ring.parity ^ 1);
      if (!gather || (isFirstWarp() && electOne())) {
        arriveExpecting(ring.full(ring.stage), copies.bytes(now, s));
        copies(now, s, ring);
      }
      if constexpr (gather) {
        if (s < steps) {
          const bool inside = s * kDepth + chunk * kChunk < sizes.k;
          const uint32_t to = ring.left() + row0 * 128 + (chunk ^ (row0 & 7)) * 16;
#pragma unroll
          for (int i = 0; i < kGatherRows; ++i)
            if (rows[i])
              copyAsync(to + i * (kGatherThreads / 8) * 128,
                        inside ? rows[i] + s * kDepth : rows[i], inside);
        }
        commitCopies();
        if (pending >= 0) {
          waitCopies<1>();
          finishPending();
        }
        pending = ring.stage;
      }
      ring.advance();
    }
  }
  if (gather && pending >= 0) {
    waitCopies<0>();
    finishPending();
  }
}

} // namespace moira::rt::cuda::product

#endif // MOIRA_RT_CUDA_KERNELS_PAIRTILES_H
