//===- WeightGradient.cu - gradients of experts' weights, on Hopper ---------===//
// Products whose depth are the rows of a group: dy^T x for every group. As in ProductWgmma.cu
// blocks walk over tiles of 128 × 256 results, here of n × k of one group; both operands come as
// blocks of 64 columns, whose rows are the depth. A group's last rows share their copy with those
// of the next group, which are made zero on dy's side. Source of the tile's layout: PTX ISA, wgmma,
// transposed operands.
//===----------------------------------------------------------------------===//
#include "ProductTiles.h"

namespace moira::rt::cuda {
namespace {

using namespace product;

/// Bytes of 64 columns of a stage.
constexpr uint32_t kBlockBytes = kDepth * 64 * sizeof(bf16);
constexpr int kRowChunks = 64 * sizeof(bf16) / 16; // 16 bytes each, of a row of a block

/// Results of one tile: rows of n and columns of k of a group.
struct Part {
  int32_t group, n, k;
};

__device__ Part partAt(uint32_t index, uint32_t rowTiles, uint32_t columnTiles) {
  const uint32_t group = index / (rowTiles * columnTiles), rest = index % (rowTiles * columnTiles);
  return {int32_t(group), int32_t(rest / columnTiles) * kRows,
          int32_t(rest % columnTiles) * kColumns};
}

/// Meets the other threads of this warpgroup.
__device__ inline void meetWarpgroup(int consumer) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(1 + consumer), "n"(kWarpgroup) : "memory");
}

/// Rows of a block from `from` on become zero, by one warpgroup; seen by its products afterwards.
__device__ void clearRows(unsigned char *block, int from, int consumer) {
  const int thread = int(threadIdx.x) % kWarpgroup;
  for (int i = from * kRowChunks + thread; i < kDepth * kRowChunks; i += kWarpgroup)
    reinterpret_cast<uint4 *>(block)[i] = uint4{0, 0, 0, 0};
  publishToCopies(); // products read shared memory as copies write it
  meetWarpgroup(consumer);
}

__global__ void __launch_bounds__(kThreads, 1)
    weightTiles(const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap x,
                float *out, const int32_t *groups, Sizes sizes, uint32_t rowTiles, int32_t *flag) {
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

  const uint32_t columnTiles = uint32_t(sizes.columnTiles),
                 count = uint32_t(sizes.groupCount) * rowTiles * columnTiles;
  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    giveRegisters<56>();
    if (threadIdx.x == 0) {
      Place place;
      for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
        const Part part = partAt(index, rowTiles, columnTiles);
        const int32_t end = starts[part.group + 1].row;
        for (int32_t row = starts[part.group].row; row < end; row += kDepth) {
          waitFor(empty(place.stage), place.parity ^ 1);
          arriveExpecting(full(place.stage), kStageBytes);
          for (int block = 0; block < kRows / 64; ++block)
            copyBox(leftOf(place.stage) + block * kBlockBytes, dy, part.n + block * 64, row,
                    full(place.stage));
          for (int block = 0; block < kColumns / 64; ++block)
            copyBox(rightOf(place.stage) + block * kBlockBytes, x, part.k + block * 64, row,
                    full(place.stage));
          place.advance();
        }
      }
    }
  } else {
    takeRegisters<224>();
    const int consumer = warpgroup - 1, warp = int(threadIdx.x) / 32 - kWarpgroup / 32;
    Place place;
    auto release = [&](int stage) {
      if (laneNumber() == 0)
        arrive(empty(stage));
    };
    for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
      const Part part = partAt(index, rowTiles, columnTiles);
      const int32_t rows = starts[part.group + 1].row - starts[part.group].row;
      const Tile tile{part.group * sizes.n + part.n, part.k, part.group,
                      min(kRows, sizes.n - part.n)};
      if (rows == 0) {
        storeZeros(out, tile, warp * kSlabRows, sizes.k);
        continue;
      }
      float sum[128];
      auto multiply = [&](int32_t left, bool add) {
        if (left < kDepth)
          clearRows(aligned + place.stage * kStageBytes + consumer * kBlockBytes, left, consumer);
        const uint64_t a = columnDescriptor(leftOf(place.stage) + consumer * kBlockBytes,
                                            kBlockBytes),
                       b = columnDescriptor(rightOf(place.stage), kBlockBytes);
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply64x256<true, true>(sum, a + d * kColumnDescriptorStep,
                                     b + d * kColumnDescriptorStep, add || d > 0);
        commitProducts();
      };
      waitFor(full(place.stage), place.parity);
      multiply(rows, false);
      for (int32_t done = kDepth; done < rows; done += kDepth) {
        const int last = place.stage;
        place.advance();
        waitFor(full(place.stage), place.parity);
        multiply(rows - done, true);
        waitProducts<1>(); // those of the stage before
        release(last);
      }
      waitProducts<0>();
      release(place.stage);
      place.advance();
      storeWarp(sum, x, nullptr, out, tile, warp * kSlabRows, sizes.k);
    }
  }
}

} // namespace

bool fitsWgmma(const WeightGradient &g) {
  const int64_t tiles = g.groupCount * ceilDiv(g.n, kRows) * ceilDiv(g.k, kColumns);
  return g.n > 0 && g.n % kChunk == 0 && g.k % kChunk == 0 && addressOf(g.dy) % 16 == 0 &&
         addressOf(g.x) % 16 == 0 && addressOf(g.out) % 8 == 0 && g.m <= INT32_MAX &&
         g.k <= INT32_MAX && g.groupCount <= kMostGroups && g.groupCount * g.n <= INT32_MAX &&
         tiles <= INT32_MAX;
}

Status launchWeightGradient(const Call &call, const WeightGradient &g) {
  if (g.groupCount == 0 || g.k == 0)
    return {};
  if (g.m == 0) // nothing that the copy engine could be told of
    return checked(
        call.name,
        cudaMemsetAsync(g.out, 0, size_t(g.groupCount * g.n * g.k) * sizeof(float), call.stream()));
  CUtensorMap dy{}, x{};
  if (!describeMatrix(dy, g.dy, g.m, g.n, kDepth) || !describeMatrix(x, g.x, g.m, g.k, kDepth))
    return noTensorMap(call);
  const int64_t rowTiles = ceilDiv(g.n, kRows), columnTiles = ceilDiv(g.k, kColumns);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, g.groupCount * rowTiles * columnTiles, blocks); !s)
    return s;
  if (Status s = allowSharedBytes(call, weightTiles, Shared::bytes); !s)
    return s;
  const Sizes sizes{int32_t(g.groupCount), int32_t(g.m), int32_t(g.n), int32_t(g.k),
                    int32_t(columnTiles)};
  weightTiles<<<blocks, kThreads, Shared::bytes, call.stream()>>>(
      dy, x, g.out, g.groups, sizes, uint32_t(rowTiles), call.context.errorFlag);
  return launched(call);
}

} // namespace moira::rt::cuda
