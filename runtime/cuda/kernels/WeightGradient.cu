//===- WeightGradient.cu - gradients of experts' weights, on Hopper ---------===//
// Products whose depth are the rows of a group: dy^T x for every group. As many blocks as there are
// SMs walk over tiles of 128 × 192 results, n × k of one group, those of the largest groups first.
// A thread brings operands, stages ahead, as blocks of 64 columns whose rows are the depth. Two
// warpgroups take turns: each makes a tile of its own, and stores it while the other one
// multiplies, since these results are as much to store as operands are to read. Stages go through
// one ring, so that a warpgroup may not wait for its own before the other one has seen all of those
// before them. Source of the operands' layout: PTX ISA, wgmma, transposed operands.
//===----------------------------------------------------------------------===//
#include "ProductTiles.h"

namespace moira::rt::cuda {
namespace {

using namespace product;

constexpr int kBlock = 64; // columns that lie together, with all rows of a stage
constexpr uint32_t kBlockBytes = kDepth * kBlock * sizeof(bf16);
constexpr int kRowChunks = kBlock / kChunk;
/// A tile is of kRows of n by so many of k.
constexpr int kPartColumns = 192, kDyBlocks = kRows / kBlock, kXBlocks = kPartColumns / kBlock;
constexpr uint32_t kDyBytes = kDyBlocks * kBlockBytes,
                   kTurnStageBytes = kDyBytes + kXBlocks * kBlockBytes;
constexpr int kTurnStages = 5;
/// Tiles along n that take turns before the next ones along k: what they read stays in the L2.
constexpr uint32_t kBand = 16;

/// A group with its rows, of which there may be none.
struct alignas(16) Group {
  int32_t index, row, rows;
};

struct Layout {
  static constexpr uint32_t groupsAt = kTurnStages * kTurnStageBytes,
                            barriersAt = groupsAt + kMostGroups * sizeof(Group),
                            startsAt = barriersAt + 2 * kTurnStages * sizeof(uint64_t),
                            bytes = startsAt + (kMostGroups + 1) * sizeof(Start);
};

template <typename Out> struct Args {
  Out *out;
  const int32_t *groups;
  Sizes sizes;
  uint32_t rowTiles;
  int32_t *flag;
};

/// Rows of the next stage, where a tile has so many left: the first one's may be fewer than kDepth.
__device__ inline int32_t stageRows(int32_t left) { return (left - 1) % kDepth + 1; }

/// Results of one tile: rows of n and columns of k of a group.
struct Part {
  Group group;
  int32_t n, k;
};

/// The groups by their rows, the largest first, and those of as many in their order.
__device__ void orderGroups(const Start *starts, int32_t groupCount, Group *ordered) {
  for (int32_t g = int32_t(threadIdx.x); g < groupCount; g += kThreads) {
    const int32_t row = starts[g].row, rows = starts[g + 1].row - row;
    int32_t place = 0, from = starts[0].row;
    for (int32_t other = 0; other < groupCount; ++other) {
      const int32_t to = starts[other + 1].row, otherRows = to - from;
      place += otherRows > rows || (otherRows == rows && other < g);
      from = to;
    }
    ordered[place] = {g, row, rows};
  }
}

/// The tiles of a block, one a round. Every other round goes backwards over the blocks: since the
/// first groups are the largest, tiles of a round become shorter from its first to its last block.
struct Walk {
  const Group *groups;
  uint32_t rowTiles, columnTiles, count;

  template <typename Out>
  __device__ Walk(const Group *groups, const Args<Out> &args)
      : groups(groups), rowTiles(args.rowTiles), columnTiles(uint32_t(args.sizes.columnTiles)),
        count(uint32_t(args.sizes.groupCount) * rowTiles * columnTiles) {}
  /// Of the tile in a round, among those of all blocks. Past the last round: none that is there.
  __device__ uint32_t indexIn(uint32_t round) const {
    return round % 2 ? (round + 1) * gridDim.x - 1 - blockIdx.x : round * gridDim.x + blockIdx.x;
  }
  __device__ bool isThere(uint32_t round) const { return indexIn(round) < count; }
  __device__ Part partIn(uint32_t round) const {
    const uint32_t index = indexIn(round), group = index / (rowTiles * columnTiles),
                   local = index - group * (rowTiles * columnTiles),
                   band = local / (kBand * columnTiles),
                   inBand = min(kBand, rowTiles - band * kBand),
                   rest = local - band * kBand * columnTiles, column = rest / inBand;
    return {groups[group], int32_t(band * kBand + rest - column * inBand) * kRows,
            int32_t(column) * kPartColumns};
  }
  /// Stages of the tile; of none, if there is no such tile.
  __device__ int stagesIn(uint32_t round) const {
    return isThere(round)
               ? (groups[indexIn(round) / (rowTiles * columnTiles)].rows + kDepth - 1) / kDepth
               : 0;
  }
};

/// Stage and parity of the ring.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance(int stages = 1) {
    stage += stages;
    parity ^= uint32_t(stage / kTurnStages) & 1;
    stage %= kTurnStages;
  }
};

/// Addresses in shared memory.
struct Place {
  uint32_t base;
  __device__ uint32_t dy(int stage) const { return base + uint32_t(stage) * kTurnStageBytes; }
  __device__ uint32_t x(int stage) const { return dy(stage) + kDyBytes; }
  __device__ uint32_t full(int stage) const {
    return base + Layout::barriersAt + uint32_t(stage) * 8;
  }
  __device__ uint32_t empty(int stage) const { return full(kTurnStages + stage); }
};

/// A warpgroup's turn to multiply, after the other one has seen all its stages.
__device__ inline void awaitTurn(int consumer) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(1 + consumer), "n"(kConsumers * kWarpgroup) : "memory");
}
__device__ inline void giveTurn(int consumer) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(1 + consumer), "n"(kConsumers * kWarpgroup) : "memory");
}
/// Meets the other threads of this warpgroup.
__device__ inline void meetWarpgroup(int consumer) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(1 + kConsumers + consumer), "n"(kWarpgroup) : "memory");
}

/// A stage's rows from `from` to the next multiple of 16 become zero, by one warpgroup; seen by its
/// products afterwards.
__device__ void clearRows(unsigned char *stage, int from, int consumer) {
  static_assert(kWarpgroup == 16 * kRowChunks);
  const int chunk = int(threadIdx.x) % kWarpgroup + from / 16 * kWarpgroup;
  if (chunk >= from * kRowChunks)
#pragma unroll
    for (int block = 0; block < kDyBlocks + kXBlocks; ++block)
      reinterpret_cast<uint4 *>(stage + block * kBlockBytes)[chunk] = uint4{0, 0, 0, 0};
  publishToCopies(); // products read shared memory as copies write it
  meetWarpgroup(consumer);
}

// --- operands ---

/// Blocks of 64 columns, from `column` on, of a stage's rows.
template <int blocks>
__device__ void copyBlocks(uint32_t to, const CUtensorMap &map, int32_t column, int32_t row,
                           uint32_t barrier) {
  for (int block = 0; block < blocks; ++block)
    copyBox(to + block * kBlockBytes, map, column + block * kBlock, row, barrier);
}

/// Both operands, by one thread.
__device__ void bringRows(const Walk &walk, const Place &place, const CUtensorMap &dy,
                          const CUtensorMap &x) {
  Turn turn;
  for (uint32_t round = 0; walk.isThere(round); ++round) {
    const Part part = walk.partIn(round);
    const int32_t end = part.group.row + part.group.rows;
    for (int32_t row = part.group.row; row < end; row += stageRows(end - row)) {
      const uint32_t full = place.full(turn.stage);
      waitFor(place.empty(turn.stage), turn.parity ^ 1);
      arriveExpecting(full, kTurnStageBytes);
      copyBlocks<kDyBlocks>(place.dy(turn.stage), dy, part.n, row, full);
      copyBlocks<kXBlocks>(place.x(turn.stage), x, part.k, row, full);
      turn.advance();
    }
  }
}

// --- results ---

/// Four values of each of two 8 × 8 blocks that lie side by side, of one row and its lanes' two
/// columns each, become 16 bytes a lane: columns firstColumn() and the next ones of these 16.
__device__ inline float4 joinBlocks(const float *s, float) {
  const bool odd = laneNumber() & 1;
  const float got0 = __shfl_xor_sync(kAllLanes, odd ? s[0] : s[4], 1),
              got1 = __shfl_xor_sync(kAllLanes, odd ? s[1] : s[5], 1);
  return odd ? make_float4(got0, got1, s[4], s[5]) : make_float4(s[0], s[1], got0, got1);
}
__device__ inline int firstColumn(float) { return laneNumber() % 2 * 8 + (laneNumber() & 2) * 2; }

/// The same of four blocks, rounded: a lane's 16 bytes are the row of one block.
__device__ inline uint4 joinBlocks(const float *s, bf16) {
  const bool odd = laneNumber() & 1, second = laneNumber() & 2;
  uint32_t r[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    r[i] = packPair(s[i * 4], s[i * 4 + 1]);
#pragma unroll
  for (int i = 0; i < 4; i += 2) { // half a row of block i or i + 1
    const uint32_t got = __shfl_xor_sync(kAllLanes, odd ? r[i] : r[i + 1], 1);
    (odd ? r[i] : r[i + 1]) = got;
  }
  const uint32_t got0 = __shfl_xor_sync(kAllLanes, second ? r[0] : r[2], 2),
                 got1 = __shfl_xor_sync(kAllLanes, second ? r[1] : r[3], 2);
  return second ? uint4{got0, got1, r[2], r[3]} : uint4{r[0], r[1], got0, got1};
}
__device__ inline int firstColumn(bf16) { return laneNumber() % 4 * 8; }

/// Results in f32 leave the L2 cache before operands do.
__device__ inline void storeLine(float *to, float4 v) { __stcs(reinterpret_cast<float4 *>(to), v); }
__device__ inline void storeLine(bf16 *to, uint4 v) { *reinterpret_cast<uint4 *>(to) = v; }

/// The results of one warpgroup: 64 bytes of eight rows at a time.
template <typename Out>
__device__ void storePart(const float (&sum)[kDyBlocks][kPartColumns / 2], const Args<Out> &args,
                          const Part &part) {
  constexpr int blocksAtOnce = 64 / (8 * int(sizeof(Out)));
  const int lane = laneNumber(), warp = int(threadIdx.x) / 32 % 4,
            column = part.k + firstColumn(Out());
  const int64_t k = args.sizes.k;
#pragma unroll
  for (int block = 0; block < kDyBlocks; ++block)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = part.n + block * kBlock + warp * 16 + half * 8 + lane / 4;
      Out *to = args.out + (int64_t(part.group.index) * args.sizes.n + row) * k + column;
#pragma unroll
      for (int j = 0; j < kPartColumns / 8; j += blocksAtOnce) {
        const auto joined = joinBlocks(sum[block] + j * 4 + half * 2, Out());
        if (column + j * 8 < k && row < args.sizes.n)
          storeLine(to + j * 8, joined);
      }
    }
}

/// Zeros in the place of a warpgroup's results.
template <typename Out> __device__ void zeroPart(const Args<Out> &args, const Part &part) {
  constexpr int each = 16 / sizeof(Out), chunks = kPartColumns / each;
  for (int i = int(threadIdx.x) % kWarpgroup; i < kRows * chunks; i += kWarpgroup) {
    const int row = part.n + i / chunks, column = part.k + i % chunks * each;
    if (row < args.sizes.n && column < args.sizes.k)
      *reinterpret_cast<uint4 *>(
          args.out + (int64_t(part.group.index) * args.sizes.n + row) * args.sizes.k + column) =
          uint4{0, 0, 0, 0};
  }
}

template <typename Out>
__global__ void __launch_bounds__(kThreads, 1)
    weightTiles(const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap x,
                const Args<Out> args) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const Place place{sharedAddress(sharedBytes)};
  if (place.base % Shared::alignment != 0)
    __trap();
  Start *starts = reinterpret_cast<Start *>(sharedBytes + Layout::startsAt);
  Group *groups = reinterpret_cast<Group *>(sharedBytes + Layout::groupsAt);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kTurnStages; ++s) {
      initBarrier(place.full(s), 1);
      initBarrier(place.empty(s), kWarpgroup / 32);
    }
    publishBarriers();
  }
  if (threadIdx.x < 32)
    findStarts(args.groups, args.sizes, starts, args.flag);
  __syncthreads();
  orderGroups(starts, args.sizes.groupCount, groups);
  __syncthreads();

  const Walk walk(groups, args);
  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    giveRegisters<24>();
    if (isFirstWarp() && electOne())
      bringRows(walk, place, dy, x);
  } else {
    takeRegisters<240>();
    const int consumer = warpgroup - 1;
    auto release = [&](int stage) {
      if (laneNumber() == 0)
        arrive(place.empty(stage));
    };
    Turn turn;
    if (consumer == 1) {
      giveTurn(0); // the first one
      turn.advance(walk.stagesIn(0));
    }
    uint32_t round = uint32_t(consumer);
    bool isThere = walk.isThere(round);
    Part part = walk.partIn(isThere ? round : 0);
    while (isThere) {
      const int32_t rows = __shfl_sync(kAllLanes, part.group.rows, 0); // known to be the same
      const Part own = part;
      auto turnToNext = [&] {
        giveTurn(consumer ^ 1);
        turn.advance(walk.stagesIn(round + 1)); // those of the other warpgroup
        round += kConsumers;
        isThere = walk.isThere(round);
        part = walk.partIn(isThere ? round : 0);
      };
      awaitTurn(consumer);
      if (rows == 0) {
        turnToNext();
        zeroPart(args, own);
        continue;
      }
      float sum[kDyBlocks][kPartColumns / 2];
      auto multiply = [&](int d, bool add) {
        const uint64_t a = columnDescriptor(place.dy(turn.stage), kBlockBytes),
                       b = columnDescriptor(place.x(turn.stage), kBlockBytes);
#pragma unroll
        for (int block = 0; block < kDyBlocks; ++block)
          multiplyDeep64x192(sum[block], a + block * (kBlockBytes / 16) + d * kColumnDescriptorStep,
                             b + d * kColumnDescriptorStep, add);
      };
      // The stage that may have fewer rows comes first, so that all others are alike.
      const int32_t first = stageRows(rows);
      waitFor(place.full(turn.stage), turn.parity);
      if (first % 16 != 0)
        clearRows(sharedBytes + turn.stage * kTurnStageBytes, first, consumer);
      beginProducts();
      multiply(0, false);
#pragma unroll
      for (int d = 1; d < kDepth / 16; ++d)
        if (d * 16 < first) {
          beginProducts(); // in every branch and behind them, or the compiler adds it
          multiply(d, true);
        }
      beginProducts();
      commitProducts();
      for (int32_t done = first; done < rows; done += kDepth) {
        const int last = turn.stage;
        turn.advance();
        waitFor(place.full(turn.stage), turn.parity);
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply(d, true);
        commitProducts();
        waitProducts<1>(); // those of the stage before
        release(last);
      }
      const int last = turn.stage;
      turn.advance();
      turnToNext();
      waitProducts<0>();
      release(last);
      storePart(sum, args, own);
    }
  }
}

int64_t rowTilesOf(const WeightGradient &g) { return ceilDiv(g.n, kRows); }
int64_t columnTilesOf(const WeightGradient &g) { return ceilDiv(g.k, kPartColumns); }

template <typename Out> Status launch(const Call &call, const WeightGradient &g) {
  CUtensorMap dy{}, x{};
  if (!describeMatrix(dy, g.dy, g.m, g.n, kDepth) || !describeMatrix(x, g.x, g.m, g.k, kDepth))
    return noTensorMap(call);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, g.groupCount * rowTilesOf(g) * columnTilesOf(g), blocks);
      !s)
    return s;
  if (Status s = allowSharedBytes(call, weightTiles<Out>, Layout::bytes); !s)
    return s;
  const Args<Out> args{
      static_cast<Out *>(g.out),
      g.groups,
      {int32_t(g.groupCount), int32_t(g.m), int32_t(g.n), int32_t(g.k), int32_t(columnTilesOf(g))},
      uint32_t(rowTilesOf(g)),
      call.context.errorFlag};
  weightTiles<Out><<<blocks, kThreads, Layout::bytes, call.stream()>>>(dy, x, args);
  return launched(call);
}

} // namespace

bool fitsWgmma(const WeightGradient &g) {
  const int64_t tiles = g.groupCount * rowTilesOf(g) * columnTilesOf(g);
  return g.n > 0 && g.n % kChunk == 0 && g.k % kChunk == 0 && addressOf(g.dy) % 16 == 0 &&
         addressOf(g.x) % 16 == 0 && addressOf(g.out) % 16 == 0 && g.m <= INT32_MAX &&
         g.n <= INT32_MAX && g.k <= INT32_MAX && g.groupCount <= kMostGroups && tiles <= INT32_MAX;
}

Status launchWeightGradient(const Call &call, const WeightGradient &g) {
  if (g.groupCount == 0 || g.k == 0)
    return {};
  if (g.m == 0) // nothing that the copy engine could be told of
    return checked(call.name,
                   cudaMemsetAsync(g.out, 0,
                                   size_t(g.groupCount * g.n * g.k) * elementBytes(g.outDtype),
                                   call.stream()));
  return withFloat(g.outDtype, [&]<typename Out>(Out) { return launch<Out>(call, g); });
}

} // namespace moira::rt::cuda
