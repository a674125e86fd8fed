//===- WeightGradient.cu - gradients of experts' weights, on Hopper ---------===//
// Products whose depth are the rows of a group: dy^T x for every group. As many blocks as there are
// SMs walk over tiles of 128 × 192 results, n × k of one group. A first warpgroup brings operands,
// stages ahead, as blocks of 64 columns whose rows are the depth: by tensor copies, or, where
// tokens name the rows, by copies of 16 bytes. The two others take turns: each makes a tile of its
// own, and stores it while the other one multiplies, since these f32 results are as much to store
// as operands are to read. Stages go through one ring, so that a warpgroup may not wait for its own
// before the other one has seen all of those before them. Source of the operands' layout: PTX ISA,
// wgmma, transposed operands.
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

struct Layout {
  static constexpr uint32_t barriersAt = kTurnStages * kTurnStageBytes,
                            startsAt = barriersAt + 2 * kTurnStages * sizeof(uint64_t),
                            bytes = startsAt + (kMostGroups + 1) * sizeof(Start);
};

/// Whose rows are named by tokens.
enum class Gather { none, dy, x };

template <typename Out> struct Args {
  Out *out;
  const int32_t *groups;
  Sizes sizes;
  uint32_t rowTiles;
  const bf16 *gathered; ///< of which tokens name the rows
  const int32_t *tokens;
  uint32_t tokenCount;
  int32_t *flag;
};

/// Results of one tile: rows of n and columns of k of a group.
struct Part {
  int32_t group, n, k;
};

/// The tiles of a block, one after the other.
struct Walk {
  const Start *starts;
  uint32_t rowTiles, columnTiles, count;

  template <typename Out>
  __device__ Walk(const Start *starts, const Args<Out> &args)
      : starts(starts), rowTiles(args.rowTiles), columnTiles(uint32_t(args.sizes.columnTiles)),
        count(uint32_t(args.sizes.groupCount) * rowTiles * columnTiles) {}
  __device__ Part partAt(uint32_t index) const {
    const uint32_t group = index / (rowTiles * columnTiles),
                   local = index % (rowTiles * columnTiles), band = local / (kBand * columnTiles),
                   inBand = min(kBand, rowTiles - band * kBand),
                   rest = local - band * kBand * columnTiles, column = rest / inBand;
    return {int32_t(group), int32_t(band * kBand + rest - column * inBand) * kRows,
            int32_t(column) * kPartColumns};
  }
  __device__ int32_t rowsOf(int32_t group) const {
    return starts[group + 1].row - starts[group].row;
  }
  /// Stages of the tile; of none, if there is no such tile.
  __device__ int stagesAt(uint32_t index) const {
    return index < count ? (rowsOf(partAt(index).group) + kDepth - 1) / kDepth : 0;
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
  __device__ int before(int stages) const { return (stage + kTurnStages - stages) % kTurnStages; }
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

/// A stage's rows from `from` on become zero, by one warpgroup; seen by its products afterwards.
__device__ void clearRows(unsigned char *stage, int from, int consumer) {
  const int thread = int(threadIdx.x) % kWarpgroup, each = (kDepth - from) * kRowChunks;
  for (int i = thread; i < (kDyBlocks + kXBlocks) * each; i += kWarpgroup)
    reinterpret_cast<uint4 *>(stage + i / each * kBlockBytes)[from * kRowChunks + i % each] =
        uint4{0, 0, 0, 0};
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
  for (uint32_t index = blockIdx.x; index < walk.count; index += gridDim.x) {
    const Part part = walk.partAt(index);
    const int32_t end = walk.starts[part.group + 1].row;
    for (int32_t row = walk.starts[part.group].row; row < end; row += kDepth) {
      const uint32_t full = place.full(turn.stage);
      waitFor(place.empty(turn.stage), turn.parity ^ 1);
      arriveExpecting(full, kTurnStageBytes);
      copyBlocks<kDyBlocks>(place.dy(turn.stage), dy, part.n, row, full);
      copyBlocks<kXBlocks>(place.x(turn.stage), x, part.k, row, full);
      turn.advance();
    }
  }
}

/// A stage: some rows of a tile that has rows. Walks on to the next one.
struct Step {
  uint32_t index = blockIdx.x;
  int32_t row = 0, end = 0;

  __device__ explicit Step(const Walk &walk) { settle(walk); }
  __device__ bool isThere(const Walk &walk) const { return index < walk.count; }
  __device__ void advance(const Walk &walk) {
    if ((row += kDepth) < end)
      return;
    index += gridDim.x;
    settle(walk);
  }

private:
  __device__ void settle(const Walk &walk) {
    for (; index < walk.count; index += gridDim.x) {
      const int32_t group = walk.partAt(index).group;
      row = walk.starts[group].row;
      end = walk.starts[group + 1].row;
      if (row < end)
        return;
    }
  }
};

/// Stages whose tokens are loaded before they are needed, and stages of gathered rows under way
/// behind the newest one.
constexpr int kTokensAhead = 4, kGathersBehind = 2;

/// One operand, whose rows tokens name, by the threads of a warpgroup, and the other one.
template <Gather gather, typename Out>
__device__ void gatherRows(const Walk &walk, const Place &place, const CUtensorMap &other,
                           const Args<Out> &args) {
  constexpr bool isDy = gather == Gather::dy;
  constexpr int threadRows = kDepth * kRowChunks / kWarpgroup, apart = kDepth / threadRows;
  const int lane = laneNumber(), warp = int(threadIdx.x) / 32, chunk = lane % kRowChunks,
            row0 = int(threadIdx.x) / kRowChunks; // of rows that are `apart`
  const uint32_t offset = uint32_t(row0 * 128 + (chunk ^ (row0 & 7)) * 16);
  const int64_t width = isDy ? args.sizes.n : args.sizes.k;
  Turn turn;
  int pending = 0; // stages that are not announced
  auto announceOldest = [&] {
    const uint32_t full = place.full(turn.before(pending--));
    publishToCopies();
    __syncwarp();
    if (lane == 0)
      arrive(full);
  };
  Step step(walk), later = step;
  // Lane 4 i + j has that of the warp's row i * apart + j.
  const int tokenRow = lane / 4 % threadRows * apart + warp * 4 + lane % 4;
  auto laterToken = [&] {
    int32_t token = -1;
    if (later.isThere(walk)) {
      if (later.row + tokenRow < later.end)
        token = args.tokens[later.row + tokenRow];
      later.advance(walk);
    }
    return token;
  };
  int32_t tokens[kTokensAhead];
#pragma unroll
  for (int i = 0; i < kTokensAhead; ++i)
    tokens[i] = laterToken();
  uint32_t partIndex = step.index;
  Part part = walk.partAt(partIndex);
  for (; step.isThere(walk); step.advance(walk)) {
    if (step.index != partIndex)
      part = walk.partAt(partIndex = step.index);
    const int32_t column = (isDy ? part.n : part.k) + chunk * kChunk, left = step.end - step.row,
                  own = tokens[0];
#pragma unroll
    for (int i = 1; i < kTokensAhead; ++i)
      tokens[i - 1] = tokens[i];
    tokens[kTokensAhead - 1] = laterToken();
    if (pending > 0 &&
        !__all_sync(kAllLanes, isComplete(place.empty(turn.stage), turn.parity ^ 1))) {
      waitCopies<0>(); // what came is said before waiting for room
      while (pending > 0)
        announceOldest();
    }
    waitFor(place.empty(turn.stage), turn.parity ^ 1);
    if (threadIdx.x == 0) {
      const uint32_t full = place.full(turn.stage);
      arriveExpecting(full, isDy ? kTurnStageBytes - kDyBytes : kDyBytes);
      if constexpr (isDy)
        copyBlocks<kXBlocks>(place.x(turn.stage), other, part.k, step.row, full);
      else
        copyBlocks<kDyBlocks>(place.dy(turn.stage), other, part.n, step.row, full);
    }
    const uint32_t to = (isDy ? place.dy(turn.stage) : place.x(turn.stage)) + offset;
#pragma unroll
    for (int i = 0; i < threadRows; ++i) {
      const uint32_t token = uint32_t(__shfl_sync(kAllLanes, own, i * 4 + lane / kRowChunks));
      if (row0 + i * apart >= left)
        continue; // consumers clear it
      const bool there = token < args.tokenCount;
      if (!there)
        raise(args.flag, Fault::row);
      const bf16 *from = args.gathered + int64_t(there ? token : 0) * width + column;
#pragma unroll
      for (int block = 0; block < (isDy ? kDyBlocks : kXBlocks); ++block) {
        const bool inside = there && column + block * kBlock < width;
        copyAsync(to + block * kBlockBytes + i * apart * 128,
                  inside ? from + block * kBlock : args.gathered, inside);
      }
    }
    commitCopies();
    if (pending == kGathersBehind) {
      waitCopies<kGathersBehind>();
      announceOldest();
    }
    ++pending;
    turn.advance();
  }
  waitCopies<0>();
  while (pending > 0)
    announceOldest();
}

// --- results ---

/// Four values of each of two 8 × 8 blocks that lie side by side, of one row and its lanes' two
/// columns each, become 16 bytes a lane: columns firstColumn() and the next ones of these 16.
__device__ inline float4 joinBlocks(const float *s) {
  const bool odd = laneNumber() & 1;
  const float got0 = __shfl_xor_sync(kAllLanes, odd ? s[0] : s[4], 1),
              got1 = __shfl_xor_sync(kAllLanes, odd ? s[1] : s[5], 1);
  return odd ? make_float4(got0, got1, s[4], s[5]) : make_float4(s[0], s[1], got0, got1);
}
__device__ inline int firstColumn() { return laneNumber() % 2 * 8 + (laneNumber() & 2) * 2; }

__device__ inline void storeFour(float *to, float4 v) { *reinterpret_cast<float4 *>(to) = v; }
__device__ inline void storeFour(bf16 *to, float4 v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y),
                       high = __floats2bfloat162_rn(v.z, v.w);
  *reinterpret_cast<uint2 *>(to) =
      make_uint2(reinterpret_cast<const uint32_t &>(low), reinterpret_cast<const uint32_t &>(high));
}

/// The results of one warpgroup, 32 columns of a row at a time (of f32 a whole line of 128 bytes):
/// two rows' lanes exchange halves, so that all eight store of one row, then of the other.
template <typename Out>
__device__ void storePart(const float (&sum)[kDyBlocks][kPartColumns / 2], const Args<Out> &args,
                          const Part &part) {
  const int lane = laneNumber(), warp = int(threadIdx.x) / 32 % 4, second = lane / 4 % 2,
            column = part.k + second * 16 + firstColumn();
  const int64_t k = args.sizes.k;
#pragma unroll
  for (int block = 0; block < kDyBlocks; ++block)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = part.n + block * kBlock + warp * 16 + half * 8 + lane / 8 * 2;
      Out *to = args.out + (int64_t(part.group) * args.sizes.n + row) * k + column;
#pragma unroll
      for (int j = 0; j < kPartColumns / 8; j += 4) {
        const float4 a = joinBlocks(sum[block] + j * 4 + half * 2),
                     b = joinBlocks(sum[block] + (j + 2) * 4 + half * 2), give = second ? a : b;
        const float4 got = make_float4(
            __shfl_xor_sync(kAllLanes, give.x, 4), __shfl_xor_sync(kAllLanes, give.y, 4),
            __shfl_xor_sync(kAllLanes, give.z, 4), __shfl_xor_sync(kAllLanes, give.w, 4));
        if (column + j * 8 >= k)
          continue;
        if (row < args.sizes.n)
          storeFour(to + j * 8, second ? got : a);
        if (row + 1 < args.sizes.n)
          storeFour(to + j * 8 + k, second ? b : got);
      }
    }
}

/// Zeros in the place of a warpgroup's results.
template <typename Out> __device__ void zeroPart(const Args<Out> &args, const Part &part) {
  constexpr int chunks = kPartColumns / 4;
  for (int i = int(threadIdx.x) % kWarpgroup; i < kRows * chunks; i += kWarpgroup) {
    const int row = part.n + i / chunks, column = part.k + i % chunks * 4;
    if (row < args.sizes.n && column < args.sizes.k)
      storeFour(args.out + (int64_t(part.group) * args.sizes.n + row) * args.sizes.k + column,
                make_float4(0, 0, 0, 0));
  }
}

template <Gather gather, typename Out>
__global__ void __launch_bounds__(kThreads, 1)
    weightTiles(const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap x,
                const Args<Out> args) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const Place place{sharedAddress(sharedBytes)};
  if (place.base % Shared::alignment != 0)
    __trap();
  constexpr bool gathers = gather != Gather::none;
  Start *starts = reinterpret_cast<Start *>(sharedBytes + Layout::startsAt);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kTurnStages; ++s) {
      initBarrier(place.full(s), gathers ? 1 + kWarpgroup / 32 : 1);
      initBarrier(place.empty(s), kWarpgroup / 32);
    }
    publishBarriers();
  }
  if (threadIdx.x < 32)
    findStarts(args.groups, args.sizes, starts, args.flag);
  __syncthreads();

  const Walk walk(starts, args);
  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    giveRegisters<gathers ? 56 : 24>();
    if constexpr (gathers)
      gatherRows<gather>(walk, place, gather == Gather::dy ? x : dy, args);
    else if (threadIdx.x == 0)
      bringRows(walk, place, dy, x);
  } else {
    takeRegisters<gathers ? 224 : 240>();
    const int consumer = warpgroup - 1;
    auto release = [&](int stage) {
      if (laneNumber() == 0)
        arrive(place.empty(stage));
    };
    Turn turn;
    if (consumer == 1) {
      giveTurn(0); // the first one
      turn.advance(walk.stagesAt(blockIdx.x));
    }
    for (uint32_t index = blockIdx.x + consumer * gridDim.x; index < walk.count;
         index += kConsumers * gridDim.x) {
      const Part part = walk.partAt(index);
      const int32_t rows = walk.rowsOf(part.group);
      const uint32_t others = index + gridDim.x; // the tile of the other warpgroup
      awaitTurn(consumer);
      if (rows == 0) {
        giveTurn(consumer ^ 1);
        zeroPart(args, part);
        turn.advance(walk.stagesAt(others));
        continue;
      }
      float sum[kDyBlocks][kPartColumns / 2];
      auto multiply = [&](int32_t left, bool add) {
        if (left < kDepth)
          clearRows(sharedBytes + turn.stage * kTurnStageBytes, left, consumer);
        const uint64_t a = columnDescriptor(place.dy(turn.stage), kBlockBytes),
                       b = columnDescriptor(place.x(turn.stage), kBlockBytes);
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
#pragma unroll
          for (int block = 0; block < kDyBlocks; ++block)
            multiplyDeep64x192(sum[block],
                               a + block * (kBlockBytes / 16) + d * kColumnDescriptorStep,
                               b + d * kColumnDescriptorStep, add || d > 0);
        commitProducts();
      };
      waitFor(place.full(turn.stage), turn.parity);
      multiply(rows, false);
      for (int32_t done = kDepth; done < rows; done += kDepth) {
        const int last = turn.stage;
        turn.advance();
        waitFor(place.full(turn.stage), turn.parity);
        multiply(rows - done, true);
        waitProducts<1>(); // those of the stage before
        release(last);
      }
      giveTurn(consumer ^ 1);
      waitProducts<0>();
      release(turn.stage);
      turn.advance(1 + walk.stagesAt(others));
      storePart(sum, args, part);
    }
  }
}

int64_t rowTilesOf(const WeightGradient &g) { return ceilDiv(g.n, kRows); }
int64_t columnTilesOf(const WeightGradient &g) { return ceilDiv(g.k, kPartColumns); }

template <Gather gather, typename Out>
Status launchTo(const Call &call, const WeightGradient &g, const void *gathered,
                const RowNumbers &numbers) {
  CUtensorMap dy{}, x{};
  if ((gather != Gather::dy && !describeMatrix(dy, g.dy, g.m, g.n, kDepth)) ||
      (gather != Gather::x && !describeMatrix(x, g.x, g.m, g.k, kDepth)))
    return noTensorMap(call);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, g.groupCount * rowTilesOf(g) * columnTilesOf(g), blocks);
      !s)
    return s;
  if (Status s = allowSharedBytes(call, weightTiles<gather, Out>, Layout::bytes); !s)
    return s;
  const Args<Out> args{
      static_cast<Out *>(g.out),
      g.groups,
      {int32_t(g.groupCount), int32_t(g.m), int32_t(g.n), int32_t(g.k), int32_t(columnTilesOf(g))},
      uint32_t(rowTilesOf(g)),
      static_cast<const bf16 *>(gathered),
      numbers.data,
      uint32_t(numbers.limit),
      call.context.errorFlag};
  weightTiles<gather, Out><<<blocks, kThreads, Layout::bytes, call.stream()>>>(dy, x, args);
  return launched(call);
}

template <Gather gather>
Status launch(const Call &call, const WeightGradient &g, const void *gathered,
              const RowNumbers &numbers) {
  return withFloat(g.outDtype, [&]<typename Out>(Out) {
    return launchTo<gather, Out>(call, g, gathered, numbers);
  });
}

} // namespace

bool fitsWgmma(const WeightGradient &g) {
  const int64_t tiles = g.groupCount * rowTilesOf(g) * columnTilesOf(g);
  return g.n > 0 && g.n % kChunk == 0 && g.k % kChunk == 0 && addressOf(g.dy) % 16 == 0 &&
         addressOf(g.x) % 16 == 0 && addressOf(g.out) % 16 == 0 && g.m <= INT32_MAX &&
         g.n <= INT32_MAX && g.k <= INT32_MAX && g.groupCount <= kMostGroups &&
         tiles <= INT32_MAX && !(g.dyNumbers.data && g.xNumbers.data) &&
         g.dyNumbers.limit <= INT32_MAX && g.xNumbers.limit <= INT32_MAX;
}

Status launchWeightGradient(const Call &call, const WeightGradient &g) {
  if (g.groupCount == 0 || g.k == 0)
    return {};
  if (g.m == 0) // nothing that the copy engine could be told of
    return checked(call.name,
                   cudaMemsetAsync(g.out, 0,
                                   size_t(g.groupCount * g.n * g.k) * elementBytes(g.outDtype),
                                   call.stream()));
  if (g.dyNumbers.data)
    return launch<Gather::dy>(call, g, g.dy, g.dyNumbers);
  if (g.xNumbers.data)
    return launch<Gather::x>(call, g, g.x, g.xNumbers);
  return launch<Gather::none>(call, g, nullptr, {});
}

} // namespace moira::rt::cuda
