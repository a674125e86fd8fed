//===- ProductStreamed.cu - grouped products of some rows, on Hopper --------===//
// For some rows a group a product takes as long as reading its weights. As many
// blocks as there are multiprocessors walk over tiles of 128 rows of weights by all rows of a
// group; weights are the left operand of the matrix instruction, as 64 is the fewest rows that it
// has there and 8 on the other side. One warp keeps tensor copies of weights a whole shared memory
// ahead, another one gathers rows, four multiply. A tile's weights are two runs of 64 rows:
// neighbours, or the gates and ups of the same results, of which the epilogue makes glu.
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "GroupTiles.h"
#include "ProductTiles.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

using product::findStarts;
using product::groupOf;
using product::kWarpgroup;
using product::Sizes;
using product::Start;
using product::Tile;

constexpr int kDepth = 64, kHalf = 64, kThreads = kWarpgroup + 64, kMultipliers = kWarpgroup / 32;
constexpr uint32_t kHalfBytes = kHalf * kDepth * sizeof(bf16), kWeightBytes = 2 * kHalfBytes;
constexpr int64_t kMostGroups = 512;

/// Of tiles of up to `rows` rows.
template <int rows> struct Layout {
  static constexpr uint32_t stageBytes = kWeightBytes + rows * kDepth * sizeof(bf16);
  static constexpr int stages = 11;
  static constexpr uint32_t barriersAt = stages * stageBytes,
                            startsAt = barriersAt + 2 * stages * sizeof(uint64_t),
                            bytes = startsAt + (kMostGroups + 1) * sizeof(Start);
  static_assert(bytes <= 227 << 10);
};

struct Args {
  const bf16 *x;
  const int32_t *tokens; ///< numbers of gathered rows, or null
  int32_t xRows;
  void *out;
  const int32_t *groups;
  Sizes sizes; ///< n: columns of results
  GluForm form;
  bool settled; ///< w and groups may be read before the kernel before this one has ended
  int32_t *flag;
};

/// Tile `index` of all; columns of a row tile follow one another.
template <int rows>
__device__ Tile tileAt(const Start *starts, const Sizes &sizes, uint32_t index, int columnsOfTile) {
  const uint32_t columns = uint32_t(sizes.columnTiles), rowIndex = index / columns;
  const int32_t group = groupOf(starts, sizes.groupCount, rowIndex);
  const Start start = starts[group];
  const bool past = group == sizes.groupCount;
  const int32_t end = past ? sizes.m : starts[group + 1].row,
                row = start.row + int32_t(rowIndex - uint32_t(start.tile)) * rows;
  return {row, int32_t(index % columns) * columnsOfTile, past ? -1 : group,
          max(0, min(rows, end - row))};
}

/// Results of 16 columns from `column` on, of the n that there are, by all rows of a tile: d as the
/// matrix instruction leaves it, of which `valueAt` gives the i-th.
template <int rows, typename Out, typename ValueAt>
__device__ void storeColumns(Out *out, const Tile &tile, int32_t column, int64_t n,
                             ValueAt valueAt) {
  const int lane = laneNumber();
  out += int64_t(tile.row) * n;
#pragma unroll
  for (int j = 0; j < rows / 8; ++j) {
    if (j * 8 >= tile.count)
      break;
    if constexpr (sizeof(Out) == 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair =
            transposeMatrix(packPair(valueAt(j * 4 + half * 2), valueAt(j * 4 + half * 2 + 1)));
        const int row = j * 8 + lane / 4;
        const int64_t at = column + half * 8 + lane % 4 * 2;
        if (row < tile.count && at < n)
          *reinterpret_cast<uint32_t *>(out + row * n + at) = pair;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = j * 8 + lane % 4 * 2 + i % 2;
        const int64_t at = column + i / 2 * 8 + lane / 4;
        if (row < tile.count && at < n)
          out[row * n + at] = valueAt(j * 4 + i);
      }
    }
  }
}

template <int rows, typename Out, bool gated>
__global__ void __launch_bounds__(kThreads, 1)
    streamTiles(const __grid_constant__ CUtensorMap w, const __grid_constant__ Args args) {
  using Shared = Layout<rows>;
  constexpr int stages = Shared::stages, columnsOfTile = gated ? kHalf : 2 * kHalf;
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const uint32_t base = sharedAddress(sharedBytes);
  if (base % 1024 != 0)
    __trap();
  Start *starts = reinterpret_cast<Start *>(sharedBytes + Shared::startsAt);
  auto weightsOf = [&](int stage) { return base + stage * Shared::stageBytes; };
  auto rowsOf = [&](int stage) { return weightsOf(stage) + kWeightBytes; };
  auto full = [&](int stage) { return base + Shared::barriersAt + stage * 8; };
  auto empty = [&](int stage) { return base + Shared::barriersAt + (stages + stage) * 8; };
  const Sizes &sizes = args.sizes;
  const int warp = int(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      initBarrier(full(s), 1 + 32); // weights, and each lane's rows
      initBarrier(empty(s), kMultipliers);
    }
    publishBarriers();
  }
  if (!args.settled)
    awaitPrevious();
  if (warp == kMultipliers)
    findStarts<rows>(args.groups, sizes, starts, args.flag);
  __syncthreads();

  const int steps = int((sizes.k + kDepth - 1) / kDepth);
  int stage = 0;
  uint32_t parity = 0, index = blockIdx.x;
  auto advance = [&] {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  };
  auto nextTile = [&] {
    const Tile tile = tileAt<rows>(starts, sizes, index, columnsOfTile);
    index += gridDim.x;
    return tile;
  };
  if (warp == kMultipliers) { // weights
    if (electOne()) {
      const uint64_t policy = readOncePolicy();
      const int32_t rowsOfGroup = gated ? 2 * sizes.n : sizes.n, second = gated ? sizes.n : kHalf;
      bool waited = !args.settled;
      for (Tile tile = nextTile(); tile.count != 0; tile = nextTile()) {
        if (tile.group < 0)
          continue;
        const int32_t row = tile.group * rowsOfGroup + tile.column;
        for (int s = 0; s < steps; ++s) {
          if (!waited && parity == 1) { // the ring is full
            awaitPrevious();
            waited = true;
          }
          waitFor(empty(stage), parity ^ 1);
          arriveExpecting(full(stage), kWeightBytes);
          copyBox(weightsOf(stage), w, s * kDepth, row, full(stage), policy);
          copyBox(weightsOf(stage) + kHalfBytes, w, s * kDepth, row + second, full(stage), policy);
          advance();
        }
      }
      if (!waited)
        awaitPrevious();
    } else if (args.settled) {
      awaitPrevious();
    }
    return;
  }
  if (args.settled)
    awaitPrevious();
  if (warp > kMultipliers) { // rows
    constexpr int copies = rows / 4;
    const int chunk = laneNumber() % 8, row0 = laneNumber() / 8;
    for (Tile tile = nextTile(); tile.count != 0; tile = nextTile()) {
      if (tile.group < 0)
        continue;
      const bf16 *from[copies];
#pragma unroll
      for (int i = 0; i < copies; ++i) {
        const int row = row0 + i * 4;
        from[i] = nullptr;
        if (row < tile.count) {
          int32_t number = tile.row + row;
          if (args.tokens)
            number = args.tokens[number];
          if (uint32_t(number) < uint32_t(args.xRows))
            from[i] = args.x + int64_t(number) * sizes.k + chunk * kChunk;
          else
            raise(args.flag, Fault::row);
        }
      }
      for (int s = 0; s < steps; ++s) {
        waitFor(empty(stage), parity ^ 1);
        const bool inside = s * kDepth + chunk * kChunk < sizes.k;
#pragma unroll
        for (int i = 0; i < copies; ++i)
          if (from[i]) {
            const int row = row0 + i * 4;
            copyAsync(rowsOf(stage) + row * 128 + (chunk ^ (row & 7)) * 16,
                      inside ? from[i] + s * kDepth : from[i], inside);
          }
        arriveWithCopies(full(stage));
        advance();
      }
    }
    commitCopies();
    waitCopies<0>();
    return;
  }
  Out *out = static_cast<Out *>(args.out);
  for (Tile tile = nextTile(); tile.count != 0; tile = nextTile()) {
    if (tile.group < 0) {
      for (int row = warp; row < tile.count; row += kMultipliers)
        for (int64_t column = tile.column + laneNumber();
             column < min(sizes.n, tile.column + columnsOfTile); column += 32)
          out[int64_t(tile.row + row) * sizes.n + column] = fromFloat<Out>(0.0f);
      continue;
    }
    float first[rows / 2], second[rows / 2];
    auto release = [&](int of) {
      if (laneNumber() == 0)
        arrive(empty(of));
    };
    auto multiplyStage = [&](bool add) {
      waitFor(full(stage), parity);
      publishToCopies(); // the rows, which were written for threads, to the matrix instruction
      const uint64_t left = tileDescriptor(weightsOf(stage)), right = tileDescriptor(rowsOf(stage));
      beginProducts();
#pragma unroll
      for (int d = 0; d < kDepth / 16; ++d) {
        multiply64x32(first, left + d * kDescriptorStep, right + d * kDescriptorStep, add || d > 0);
        multiply64x32(second, left + kHalfBytes / 16 + d * kDescriptorStep,
                      right + d * kDescriptorStep, add || d > 0);
      }
      commitProducts();
    };
    multiplyStage(false);
    for (int s = 1; s < steps; ++s) {
      const int last = stage;
      advance();
      multiplyStage(true);
      waitProducts<1>(); // those of the stage before
      release(last);
    }
    waitProducts<0>();
    release(stage);
    advance();
    const int32_t column = tile.column + warp * 16;
    if constexpr (gated) {
      storeColumns<rows>(out, tile, column, sizes.n,
                         [&](int i) { return gluOf(args.form, first[i], second[i]); });
    } else {
      storeColumns<rows>(out, tile, column, sizes.n, [&](int i) { return first[i]; });
      storeColumns<rows>(out, tile, column + kHalf, sizes.n, [&](int i) { return second[i]; });
    }
  }
}

/// Of `columns` rows of weights a group; those of results are n.
template <int rows, typename Out, bool gated>
Status launch(const Call &call, const void *w, int64_t columns, Args args) {
  using Shared = Layout<rows>;
  Sizes &sizes = args.sizes;
  sizes.columnTiles = int32_t(ceilDiv(sizes.n, gated ? kHalf : 2 * kHalf));
  CUtensorMap map{};
  if (!describeMatrix(map, w, sizes.groupCount * columns, sizes.k, kHalf))
    return noTensorMap(call);
  unsigned blocks = 0;
  if (Status s = product::persistentBlocks(
          call, sizes.columnTiles * mostRowTiles(sizes.m, sizes.groupCount, rows), blocks);
      !s)
    return s;
  auto kernel = streamTiles<rows, Out, gated>;
  if (Status s = allowSharedBytes(call, kernel, Shared::bytes); !s)
    return s;
  return launchEarly(call, kernel, blocks, kThreads, Shared::bytes, map, args);
}

/// The fewest and the most rows a group on average, and those of a tile: most groups have no more.
constexpr int64_t kLeastRows = 4, kMostRows = 20;
constexpr int kRowsOfTile = 32;

bool fits(const void *x, const void *w, const void *out, int64_t m, int64_t n, int64_t k,
          int64_t groupCount, int64_t columns) {
  return k > 0 && k <= INT32_MAX && k % kChunk == 0 && n % kChunk == 0 && addressOf(x) % 16 == 0 &&
         addressOf(w) % 16 == 0 && addressOf(out) % 16 == 0 && groupCount <= kMostGroups &&
         m >= kLeastRows * groupCount && m <= kMostRows * groupCount &&
         groupCount * columns <= INT32_MAX - 2 * kHalf &&
         ceilDiv(n, kHalf) * (m + groupCount) <= INT32_MAX / 2;
}

} // namespace

bool fitsStreamed(const GroupedProduct &p) {
  return p.inType == fb::DType::bf16 && p.groups && !p.transposed &&
         fits(p.x, p.w, p.out, p.m, p.n, p.k, p.groupCount, p.n);
}
bool fitsStreamed(const GroupedGlu &p) {
  return p.dtype == fb::DType::bf16 && !p.kept && p.xRows <= INT32_MAX &&
         fits(p.x, p.w, p.out, p.m, p.n, p.k, p.groupCount, 2 * p.n);
}

Status launchProductStreamed(const Call &call, const GroupedProduct &p) {
  const Args args{static_cast<const bf16 *>(p.x),
                  nullptr,
                  int32_t(p.m),
                  p.out,
                  p.groups,
                  {int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k), 0},
                  {},
                  p.settled,
                  call.context.errorFlag};
  return withFloat(p.outType, [&]<typename Out>(Out) {
    return launch<kRowsOfTile, Out, false>(call, p.w, p.n, args);
  });
}

Status launchGluStreamed(const Call &call, const GroupedGlu &p) {
  const Args args{static_cast<const bf16 *>(p.x),
                  p.tokens,
                  int32_t(p.xRows),
                  p.out,
                  p.groups,
                  {int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k), 0},
                  p.form,
                  p.settled,
                  call.context.errorFlag};
  return launch<kRowsOfTile, bf16, true>(call, p.w, 2 * p.n, args);
}

} // namespace moira::rt::cuda
