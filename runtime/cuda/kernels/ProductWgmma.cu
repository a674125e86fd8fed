//===- ProductWgmma.cu - grouped products of many rows, on Hopper -----------===//
// As many blocks as there are SMs walk over tiles of 128 × 256 results. One warp keeps tensor
// copies of x and w stages ahead; two warpgroups multiply, 64 rows each, and store what belongs to
// the tile's group: rows past a group's end are other groups' and are left alone. Everybody finds
// the tiles from the groups' starts, so nothing but operands passes between warps. Tiles of a group
// follow one another, so that its weights stay in the L2 cache.
//===----------------------------------------------------------------------===//
#include "GroupTiles.h"
#include "TensorMaps.h"
#include "Warpgroups.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

constexpr int kRows = 128, kColumns = 256, kDepth = 64, kStages = 3;
constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kConsumerWarps = kConsumers * kWarpgroup / 32, kConsumerRows = kRows / kConsumers;
constexpr uint32_t kLeftBytes = kRows * kDepth * sizeof(bf16),
                   kRightBytes = kColumns * kDepth * sizeof(bf16),
                   kStageBytes = kLeftBytes + kRightBytes;
/// A warp stores its results as slabs of 16 rows × 64 columns.
constexpr int kSlabRows = 16, kSlabColumns = 64, kSlabs = kColumns / kSlabColumns;
constexpr int kSlabValues = kSlabRows * kSlabColumns;
constexpr uint32_t kSlabBytes = kSlabValues * sizeof(bf16);
/// Row tiles of a group that take turns before the next columns: what they read stays in the L2.
constexpr uint32_t kBand = 16;

/// Of as many groups the starts fit in shared memory.
constexpr int64_t kMostGroups = 1024;

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

/// Fills in the starts of all groups, by one warp. Counts that are negative or more than m together
/// raise the flag, and no row belongs to any group.
__device__ void findStarts(const int32_t *groups, const Sizes &sizes, Start *starts,
                           int32_t *flag) {
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
      const int32_t count = bad ? 0 : counts[i], own = (count + kRows - 1) / kRows;
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

/// Tile `index` of all.
__device__ Tile tileAt(const Start *starts, const Sizes &sizes, uint32_t index) {
  const uint32_t columns = uint32_t(sizes.columnTiles), rowIndex = index / columns;
  // The last group that starts at this row tile or before: one that has tiles, or the last of all.
  int32_t group = 0;
  for (int32_t end = sizes.groupCount + 1; end - group > 1;) {
    const int32_t middle = (group + end) / 2;
    if (uint32_t(starts[middle].tile) <= rowIndex)
      group = middle;
    else
      end = middle;
  }
  const Start start = starts[group];
  const bool past = group == sizes.groupCount;
  const int32_t size = (past ? sizes.m : starts[group + 1].row) - start.row;
  const uint32_t local = index - uint32_t(start.tile) * columns,
                 tiles = uint32_t(size + kRows - 1) / kRows;
  if (local >= tiles * columns)
    return {0, 0, -1, 0};
  const uint32_t band = local / (kBand * columns), inBand = min(kBand, tiles - band * kBand),
                 rest = local - band * kBand * columns, column = rest / inBand,
                 before = (band * kBand + rest - column * inBand) * kRows;
  return {start.row + int32_t(before), int32_t(column * kColumns), past ? -1 : group,
          min(kRows, size - int32_t(before))};
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

/// In bf16: to `slabs`, and from there by tensor copies, if all its rows belong to the tile. The
/// caller waits for these copies before it calls again.
__device__ inline void storeWarp(const float (&sum)[128], const CUtensorMap &map, bf16 *slabs,
                                 bf16 *out, const Tile &tile, int row0, int64_t n) {
  const int lane = laneNumber();
  if (row0 >= tile.count)
    return;
  if (lane == 0)
    waitStores<0>(); // the slabs are read
  __syncwarp();
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab)
#pragma unroll
    for (int j = 0; j < kSlabColumns / 16; ++j) {
      const float *s = sum + (slab * kSlabColumns / 16 + j) * 8;
      storeMatrices(slabs + slab * kSlabValues + chunkOffset<8>(lane % 16, j * 2 + lane / 16),
                    packPair(s[0], s[1]), packPair(s[2], s[3]), packPair(s[4], s[5]),
                    packPair(s[6], s[7]));
    }
  if (row0 + kSlabRows <= tile.count) {
    publishToCopies();
    __syncwarp();
    if (lane == 0) {
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab)
        storeBox(map, tile.column + slab * kSlabColumns, tile.row + row0,
                 sharedAddress(slabs + slab * kSlabValues));
      commitStores();
    }
    return;
  }
  __syncwarp();
  for (int i = lane; i < kSlabs * kSlabRows * 8; i += 32) {
    const int row = i / 8 % kSlabRows, slab = i / 8 / kSlabRows, chunk = i % 8;
    const int64_t column = tile.column + slab * kSlabColumns + chunk * kChunk;
    if (row0 + row < tile.count && column < n)
      *reinterpret_cast<uint4 *>(out + int64_t(tile.row + row0 + row) * n + column) =
          *reinterpret_cast<const uint4 *>(slabs + slab * kSlabValues + chunkOffset<8>(row, chunk));
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

template <typename Out>
__global__ void __launch_bounds__(kThreads, 1)
    productTiles(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                 const __grid_constant__ CUtensorMap result, Out *out, const int32_t *groups,
                 Sizes sizes, int32_t *flag) {
  extern __shared__ unsigned char sharedBytes[];
  const uint32_t base =
      (sharedAddress(sharedBytes) + Shared::alignment - 1) / Shared::alignment * Shared::alignment;
  unsigned char *aligned = sharedBytes + (base - sharedAddress(sharedBytes));
  Start *starts = reinterpret_cast<Start *>(aligned + Shared::startsAt);
  auto leftOf = [&](int stage) { return base + stage * kStageBytes; };
  auto rightOf = [&](int stage) { return base + stage * kStageBytes + kLeftBytes; };
  auto full = [&](int stage) { return base + Shared::barriersAt + stage * 8; };
  auto empty = [&](int stage) { return base + Shared::barriersAt + (kStages + stage) * 8; };
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      initBarrier(full(s), 1);
      initBarrier(empty(s), kConsumerWarps);
    }
    publishBarriers();
  }
  if (threadIdx.x < 32)
    findStarts(groups, sizes, starts, flag);
  __syncthreads();

  const int steps = int((sizes.k + kDepth - 1) / kDepth), warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    giveRegisters<56>();
    if (threadIdx.x == 0) {
      Place place;
      for (uint32_t index = blockIdx.x;; index += gridDim.x) {
        const Tile tile = tileAt(starts, sizes, index);
        if (tile.count == 0)
          break;
        if (tile.group < 0)
          continue;
        const int32_t weightRow = tile.group * sizes.n + tile.column;
        for (int s = 0; s < steps; ++s) {
          waitFor(empty(place.stage), place.parity ^ 1);
          arriveExpecting(full(place.stage), kStageBytes);
          copyBox(leftOf(place.stage), x, s * kDepth, tile.row, full(place.stage));
          copyBox(rightOf(place.stage), w, s * kDepth, weightRow, full(place.stage));
          place.advance();
        }
      }
    }
  } else {
    takeRegisters<224>();
    const int consumer = warpgroup - 1, warp = int(threadIdx.x) / 32 - kWarpgroup / 32;
    bf16 *slabs = reinterpret_cast<bf16 *>(aligned + Shared::slabsAt) + warp * kSlabs * kSlabValues;
    Place place;
    auto release = [&](int stage) {
      if (laneNumber() == 0)
        arrive(empty(stage));
    };
    uint32_t index = blockIdx.x;
    Tile tile = tileAt(starts, sizes, index);
    auto nextTile = [&] { return tileAt(starts, sizes, index += gridDim.x); };
    while (tile.count != 0) {
      if (tile.group < 0) {
        storeZeros(out, tile, warp * kSlabRows, sizes.n);
        tile = nextTile();
        continue;
      }
      if (tile.count <= consumer * kConsumerRows) { // no rows for this warpgroup
        for (int s = 0; s < steps; ++s) {
          waitFor(full(place.stage), place.parity);
          __syncwarp(); // every lane has seen the stage
          release(place.stage);
          place.advance();
        }
        tile = nextTile();
        continue;
      }
      float sum[128];
      auto multiply = [&](bool add) {
        const uint64_t left =
            tileDescriptor(leftOf(place.stage) + consumer * (kLeftBytes / kConsumers));
        const uint64_t right = tileDescriptor(rightOf(place.stage));
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply64x256(sum, left + d * kDescriptorStep, right + d * kDescriptorStep,
                         add || d > 0);
        commitProducts();
      };
      waitFor(full(place.stage), place.parity);
      multiply(false);
      for (int s = 1; s < steps; ++s) {
        const int last = place.stage;
        place.advance();
        waitFor(full(place.stage), place.parity);
        multiply(true);
        waitProducts<1>(); // those of the stage before
        release(last);
      }
      const Tile next = nextTile(); // while the last products are made
      waitProducts<0>();
      release(place.stage);
      place.advance();
      storeWarp(sum, result, slabs, out, tile, warp * kSlabRows, sizes.n);
      tile = next;
    }
    if (laneNumber() == 0)
      waitStores<0>(); // shared memory lives until it is read
  }
}

int64_t mostTiles(const GroupedProduct &p) {
  return ceilDiv(p.n, kColumns) *
         (p.groups ? mostRowTiles(p.m, p.groupCount, kRows) : ceilDiv(p.m, kRows));
}

template <typename Out> Status launch(const Call &call, const GroupedProduct &p) {
  CUtensorMap x{}, w{}, result{};
  if (!describeMatrix(x, p.x, p.m, p.k, kRows) ||
      !describeMatrix(w, p.w, p.groupCount * p.n, p.k, kColumns) ||
      (sizeof(Out) == 2 && !describeMatrix(result, p.out, p.m, p.n, kSlabRows)))
    return noTensorMap(call);
  int device = 0, processors = 0;
  if (Status s = checked(call.name, cudaGetDevice(&device)); !s)
    return s;
  if (Status s = checked(
          call.name, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
      !s)
    return s;
  auto kernel = productTiles<Out>;
  if (Status s = checked(call.name,
                         cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              int(Shared::bytes)));
      !s)
    return s;
  const Sizes sizes{int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k),
                    int32_t(ceilDiv(p.n, kColumns))};
  kernel<<<unsigned(std::min<int64_t>(mostTiles(p), processors)), kThreads, Shared::bytes,
           call.stream()>>>(x, w, result, static_cast<Out *>(p.out), p.groups, sizes,
                            call.context.errorFlag);
  return launched(call);
}

} // namespace

bool fitsWgmma(const GroupedProduct &p) {
  return p.inType == fb::DType::bf16 && p.k > 0 && p.k % kChunk == 0 && p.n % kChunk == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0 && addressOf(p.out) % 16 == 0 &&
         p.m <= INT32_MAX && p.k <= INT32_MAX && p.groupCount <= kMostGroups &&
         p.groupCount * p.n <= INT32_MAX - kColumns && mostTiles(p) <= INT32_MAX;
}

Status launchProductWgmma(const Call &call, const GroupedProduct &p) {
  return withFloat(p.outType, [&]<typename Out>(Out) { return launch<Out>(call, p); });
}

} // namespace moira::rt::cuda
