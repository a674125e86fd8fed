//===- ProductWgmma.cu - grouped products of many rows, on Hopper -----------===//
// As many blocks as there are SMs walk over tiles of 128 × 256 results. One warp keeps tensor
// copies of x and w stages ahead; two warpgroups multiply, 64 rows each, and store what belongs to
// the tile's group: rows past a group's end are other groups' and are left alone. Everybody finds
// the tiles from the groups' starts, so nothing but operands passes between warps. Tiles of a group
// follow one another, so that its weights stay in the L2 cache. A group's weights are [n, k], or
// [k, n] for products from the other side, whose copies are then blocks of 64 columns.
//===----------------------------------------------------------------------===//
#include "GroupTiles.h"
#include "ProductTiles.h"

namespace moira::rt::cuda {
namespace {

using namespace product;

/// Row tiles of a group that take turns before the next columns: what they read stays in the L2.
constexpr uint32_t kBand = 16;

/// Tile `index` of all.
__device__ Tile tileAt(const Start *starts, const Sizes &sizes, uint32_t index) {
  const uint32_t columns = uint32_t(sizes.columnTiles), rowIndex = index / columns;
  const int32_t group = groupOf(starts, sizes.groupCount, rowIndex);
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

/// In bf16.
__device__ inline void storeWarp(const float (&sum)[128], const CUtensorMap &map, bf16 *slabs,
                                 bf16 *out, const Tile &tile, int row0, int64_t n) {
  storeSlabs<kSlabs>(sum, map, slabs, out, tile, row0, n);
}

/// Bytes of 64 columns of a stage of transposed weights.
constexpr uint32_t kBlockBytes = kDepth * 64 * sizeof(bf16);

template <typename Out, bool transposed>
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
    if (isFirstWarp() && electOne()) {
      Place place;
      for (uint32_t index = blockIdx.x;; index += gridDim.x) {
        const Tile tile = tileAt(starts, sizes, index);
        if (tile.count == 0)
          break;
        if (tile.group < 0)
          continue;
        const int32_t weightRow =
            transposed ? tile.group * sizes.k : tile.group * sizes.n + tile.column;
        for (int s = 0; s < steps; ++s) {
          waitFor(empty(place.stage), place.parity ^ 1);
          arriveExpecting(full(place.stage), kStageBytes);
          copyBox(leftOf(place.stage), x, s * kDepth, tile.row, full(place.stage));
          if constexpr (transposed)
            for (int block = 0; block < kColumns / 64; ++block)
              copyBox(rightOf(place.stage) + block * kBlockBytes, w, tile.column + block * 64,
                      weightRow + s * kDepth, full(place.stage));
          else
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
        const uint64_t right = transposed ? columnDescriptor(rightOf(place.stage), kBlockBytes)
                                          : tileDescriptor(rightOf(place.stage));
        constexpr uint64_t rightStep = transposed ? kColumnDescriptorStep : kDescriptorStep;
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply64x256<transposed>(sum, left + d * kDescriptorStep, right + d * rightStep,
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
    if (electOne())
      waitStores<0>(); // shared memory lives until it is read
  }
}

int64_t mostTiles(const GroupedProduct &p) {
  return ceilDiv(p.n, kColumns) *
         (p.groups ? mostRowTiles(p.m, p.groupCount, kRows) : ceilDiv(p.m, kRows));
}

template <typename Out, bool transposed> Status launch(const Call &call, const GroupedProduct &p) {
  CUtensorMap x{}, w{}, result{};
  bool described = transposed ? describeMatrix(w, p.w, p.groupCount * p.k, p.n, kDepth)
                              : describeMatrix(w, p.w, p.groupCount * p.n, p.k, kColumns);
  if (!described || !describeMatrix(x, p.x, p.m, p.k, kRows) ||
      (sizeof(Out) == 2 && !describeMatrix(result, p.out, p.m, p.n, kSlabRows)))
    return noTensorMap(call);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, mostTiles(p), blocks); !s)
    return s;
  auto kernel = productTiles<Out, transposed>;
  if (Status s = allowSharedBytes(call, kernel, Shared::bytes); !s)
    return s;
  const Sizes sizes{int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k),
                    int32_t(ceilDiv(p.n, kColumns))};
  kernel<<<blocks, kThreads, Shared::bytes, call.stream()>>>(
      x, w, result, static_cast<Out *>(p.out), p.groups, sizes, call.context.errorFlag);
  return launched(call);
}

} // namespace

bool fitsWgmma(const GroupedProduct &p) {
  return p.inType == fb::DType::bf16 && p.k > 0 && p.k % kChunk == 0 && p.n % kChunk == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0 && addressOf(p.out) % 16 == 0 &&
         p.m <= INT32_MAX && p.k <= INT32_MAX && p.groupCount <= kMostGroups &&
         p.groupCount * (p.transposed ? p.k : p.n) <= INT32_MAX - kColumns &&
         mostTiles(p) <= INT32_MAX;
}

Status launchProductWgmma(const Call &call, const GroupedProduct &p) {
  return withFloat(p.outType, [&]<typename Out>(Out) {
    return p.transposed ? launch<Out, true>(call, p) : launch<Out, false>(call, p);
  });
}

} // namespace moira::rt::cuda
