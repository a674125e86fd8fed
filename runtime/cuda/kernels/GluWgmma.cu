//===- GluWgmma.cu - experts' gated products of many rows, on Hopper --------===//
// As ProductWgmma.cu, with glu in the epilogue: a tile's columns are 128 gates and the 128 ups that
// belong to them, so that a thread has both. Rows are copied as boxes, or gathered by the numbers
// of their tokens, which no tensor copy can. Two blocks of a cluster work side by side: on two row
// tiles of a group and the same columns, of whose weights each copies a half to both, or, where a
// group's last row tile is odd, on that tile and two column tiles.
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "GroupTiles.h"
#include "ProductTiles.h"

namespace moira::rt::cuda {
namespace {

using namespace product;

/// What one block of a pair makes. Rows below `rows` of the tile are stored.
struct Work {
  int32_t row, column, group, rows;
  bool shared; ///< the blocks have the same columns
  bool end;
};

constexpr int kHalf = kColumns / 2;
constexpr uint32_t kHalfBytes = kHalf * kDepth * sizeof(bf16);
/// Pairs of row tiles that take turns before the next columns.
constexpr uint32_t kBandPairs = 8;
constexpr int64_t kMostPairGroups = 256;
constexpr int kGatherThreads = kWarpgroup, kGatherRows = kRows * (kDepth / kChunk) / kGatherThreads;

/// A stage more than products have: results are half as wide, and so is what stores them.
constexpr int kPairStages = 4, kPairSlabs = kSlabs / 2;

struct Layout {
  static constexpr uint32_t slabsAt = kPairStages * kStageBytes,
                            barriersAt = slabsAt + kConsumerWarps * kPairSlabs * kSlabBytes,
                            startsAt = barriersAt + 2 * kPairStages * sizeof(uint64_t),
                            bytes = startsAt + (kMostPairGroups + 1) * sizeof(Start);
};

__device__ uint32_t pairItems(uint32_t tiles, uint32_t columns) {
  return tiles / 2 * columns + tiles % 2 * ((columns + 1) / 2);
}

/// Item `index` of all, as block `rank` of the pair has it. starts[].tile counts items.
__device__ Work workAt(const Start *starts, const Sizes &sizes, uint32_t index, uint32_t rank) {
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
          int32_t(column * kHalf),
          past ? -1 : group,
          column < columns ? min(kRows, size - int32_t(tile * kRows)) : 0,
          shared,
          false};
}

/// findStarts with items instead of row tiles.
__device__ void findItems(const int32_t *groups, const Sizes &sizes, Start *starts, int32_t *flag) {
  int64_t rows = 0;
  int32_t items = 0;
  bool bad = false;
  for (int32_t base = 0; base < sizes.groupCount; base += 32) {
    const int32_t g = base + laneNumber();
    const int32_t size = g >= sizes.groupCount ? 0 : groups ? groups[g] : sizes.m;
    bad |= size < 0 || size > sizes.m;
    const int32_t count = bad ? 0 : size,
                  own = int32_t(
                      pairItems(uint32_t(count + kRows - 1) / kRows, uint32_t(sizes.columnTiles)));
    const int64_t rowsUpTo = warpScan(int64_t(count));
    const int32_t itemsUpTo = warpScan(own);
    if (g < sizes.groupCount)
      starts[g] = {int32_t(rows + rowsUpTo - count), items + itemsUpTo - own};
    rows += __shfl_sync(kAllLanes, rowsUpTo, 31);
    items += __shfl_sync(kAllLanes, itemsUpTo, 31);
  }
  bad = __any_sync(kAllLanes, bad) || rows > sizes.m;
  __syncwarp();
  if (bad)
    for (int32_t g = laneNumber(); g < sizes.groupCount; g += 32)
      starts[g] = {0, 0};
  if (laneNumber() == 0) {
    starts[sizes.groupCount] = bad ? Start{0, 0} : Start{int32_t(rows), items};
    if (bad)
      raise(flag, Fault::groups);
  }
  __syncwarp();
}

struct PairArgs {
  const bf16 *x;         ///< of gathered rows
  const int32_t *tokens; ///< which they are
  int32_t xRows;
  bf16 *out;
  const int32_t *groups;
  Sizes sizes;
  GluForm form;
  int32_t *flag;
};

/// What the epilogue does.
enum class Epilogue { silu, clampedSilu, gelu, geluTanh, relu };

template <Epilogue epilogue> __device__ float resultOf(const GluForm &form, float gate, float up) {
  if constexpr (epilogue == Epilogue::silu)
    return fastGluOf<Activation::silu, false>(form, gate, up);
  else if constexpr (epilogue == Epilogue::clampedSilu)
    return fastGluOf<Activation::silu, true>(form, gate, up);
  else if constexpr (epilogue == Epilogue::gelu)
    return fastGluOf<Activation::gelu, true>(form, gate, up);
  else if constexpr (epilogue == Epilogue::geluTanh)
    return fastGluOf<Activation::geluTanh, true>(form, gate, up);
  else
    return fastGluOf<Activation::relu, true>(form, gate, up);
}

template <bool gather, Epilogue epilogue>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    gluPairs(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
             const __grid_constant__ CUtensorMap result, const PairArgs args) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const uint32_t base = sharedAddress(sharedBytes);
  if (base % Shared::alignment != 0)
    __trap();
  Start *starts = reinterpret_cast<Start *>(sharedBytes + Layout::startsAt);
  auto leftOf = [&](int stage) { return base + stage * kStageBytes; };
  auto rightOf = [&](int stage) { return base + stage * kStageBytes + kLeftBytes; };
  auto full = [&](int stage) { return base + Layout::barriersAt + stage * 8; };
  auto empty = [&](int stage) { return base + Layout::barriersAt + (kPairStages + stage) * 8; };
  const Sizes &sizes = args.sizes;
  const uint32_t rank = clusterRank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kPairStages; ++s) {
      initBarrier(full(s), gather ? 1 + kGatherThreads / 32 : 1);
      initBarrier(empty(s), 2 * kConsumerWarps);
    }
    publishBarriers();
  }
  if (threadIdx.x < 32)
    findItems(args.groups, sizes, starts, args.flag);
  __syncthreads();
  clusterSync();

  const int steps = int((sizes.k + kDepth - 1) / kDepth), warpgroup = int(threadIdx.x) / kWarpgroup;
  const uint32_t firstItem = blockIdx.x / 2, itemStep = gridDim.x / 2;
  int stage = 0;
  uint32_t parity = 0;
  auto advance = [&] {
    if (++stage == kPairStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (warpgroup == 0) {
    giveRegisters<72>();
    if (gather || threadIdx.x == 0) {
      const int chunk = int(threadIdx.x) % 8, row0 = int(threadIdx.x) / 8;
      int32_t tokens[kGatherRows];
      auto findTokens = [&](const Work &work) { // -1: none
        if constexpr (gather) {
#pragma unroll
          for (int i = 0; i < kGatherRows; ++i) {
            const int row = row0 + i * (kGatherThreads / 8);
            tokens[i] =
                !work.end && work.group >= 0 && row < work.rows ? args.tokens[work.row + row] : -1;
          }
        }
      };
      uint32_t index = firstItem;
      Work work = workAt(starts, sizes, index, rank);
      findTokens(work);
      int pending = -1; // the stage whose rows are under way
      auto finishPending = [&] {
        publishToCopies();
        __syncwarp();
        if (laneNumber() == 0)
          arrive(full(pending));
      };
      while (!work.end) {
        const Work now = work;
        const bf16 *rows[kGatherRows];
        if constexpr (gather) {
#pragma unroll
          for (int i = 0; i < kGatherRows; ++i) {
            const bool there = uint32_t(tokens[i]) < uint32_t(args.xRows);
            rows[i] = there ? args.x + int64_t(tokens[i]) * sizes.k + chunk * kChunk : nullptr;
            if (!there && now.group >= 0 && row0 + i * (kGatherThreads / 8) < now.rows)
              raise(args.flag, Fault::row);
          }
        }
        work = workAt(starts, sizes, index += itemStep, rank);
        findTokens(work);
        if (now.group < 0)
          continue;
        const int32_t weightRow = now.group * 2 * sizes.n + now.column;
        for (int s = 0; s < steps; ++s) {
          if constexpr (gather) // what came is said before waiting for room
            if (pending >= 0 && !__all_sync(kAllLanes, isComplete(empty(stage), parity ^ 1))) {
              waitCopies<0>();
              finishPending();
              pending = -1;
            }
          waitFor(empty(stage), parity ^ 1);
          if (threadIdx.x == 0) {
            arriveExpecting(full(stage), gather ? kRightBytes : kStageBytes);
            if constexpr (!gather)
              copyBox(leftOf(stage), x, s * kDepth, now.row, full(stage));
            if (now.shared) {
              copyBoxToPair(rightOf(stage) + rank * kHalfBytes, w, s * kDepth,
                            weightRow + int32_t(rank) * sizes.n, full(stage));
            } else {
              copyBox(rightOf(stage), w, s * kDepth, weightRow, full(stage));
              copyBox(rightOf(stage) + kHalfBytes, w, s * kDepth, weightRow + sizes.n, full(stage));
            }
          }
          if constexpr (gather) {
            const bool inside = s * kDepth + chunk * kChunk < sizes.k;
            const uint32_t to = leftOf(stage) + row0 * 128 + (chunk ^ (row0 & 7)) * 16;
#pragma unroll
            for (int i = 0; i < kGatherRows; ++i)
              if (rows[i])
                copyAsync(to + i * (kGatherThreads / 8) * 128,
                          inside ? rows[i] + s * kDepth : rows[i], inside);
            commitCopies();
            if (pending >= 0) {
              waitCopies<1>();
              finishPending();
            }
            pending = stage;
          }
          advance();
        }
      }
      if (gather && pending >= 0) {
        waitCopies<0>();
        finishPending();
      }
    }
  } else {
    takeRegisters<216>();
    const int consumer = warpgroup - 1, warp = int(threadIdx.x) / 32 - kWarpgroup / 32;
    bf16 *slabs =
        reinterpret_cast<bf16 *>(sharedBytes + Layout::slabsAt) + warp * kPairSlabs * kSlabValues;
    auto release = [&](int stage) { // in both blocks
      if (laneNumber() < 2)
        arriveInPair(empty(stage), uint32_t(laneNumber()));
    };
    uint32_t index = firstItem;
    Work work = workAt(starts, sizes, index, rank);
    auto nextWork = [&] { return workAt(starts, sizes, index += itemStep, rank); };
    while (!work.end) {
      if (work.group < 0) {
        if (work.rows > 0)
          for (int row = warp * kSlabRows; row < min((warp + 1) * kSlabRows, work.rows); ++row)
            for (int64_t column = work.column + laneNumber();
                 column < min(int64_t(sizes.n), int64_t(work.column) + kHalf); column += 32)
              args.out[int64_t(work.row + row) * sizes.n + column] = bf16(0.0f);
        work = nextWork();
        continue;
      }
      if (work.rows <= consumer * kConsumerRows) { // no rows for this warpgroup
        for (int s = 0; s < steps; ++s) {
          waitFor(full(stage), parity);
          __syncwarp(); // every lane has seen the stage
          release(stage);
          advance();
        }
        work = nextWork();
        continue;
      }
      float sum[128];
      auto multiply = [&](bool add) {
        const uint64_t left = tileDescriptor(leftOf(stage) + consumer * (kLeftBytes / kConsumers)),
                       right = tileDescriptor(rightOf(stage));
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply64x256(sum, left + d * kDescriptorStep, right + d * kDescriptorStep,
                         add || d > 0);
        commitProducts();
      };
      waitFor(full(stage), parity);
      multiply(false);
      for (int s = 1; s < steps; ++s) {
        const int last = stage;
        advance();
        waitFor(full(stage), parity);
        multiply(true);
        waitProducts<1>(); // those of the stage before
        release(last);
      }
      const Work next = nextWork(); // while the last products are made
      waitProducts<0>();
      release(stage);
      advance();
#pragma unroll
      for (int i = 0; i < 64; ++i)
        sum[i] = resultOf<epilogue>(args.form, sum[i], sum[64 + i]);
      storeSlabs<kPairSlabs>(sum, result, slabs, args.out,
                             {work.row, work.column, work.group, work.rows}, warp * kSlabRows,
                             sizes.n);
      work = next;
    }
    if (laneNumber() == 0)
      waitStores<0>(); // shared memory lives until it is read
  }
  __syncwarp();
  clusterSync(); // and until the other block's copies and arrivals are there
}

int64_t mostItems(int64_t m, int64_t n, int64_t groupCount) {
  return ceilDiv(n, kHalf) * mostRowTiles(m, groupCount, kRows);
}

template <bool gather, Epilogue epilogue> Status launch(const Call &call, const GroupedGlu &p) {
  CUtensorMap x{}, w{}, result{};
  if ((!gather && !describeMatrix(x, p.x, p.m, p.k, kRows)) ||
      !describeMatrix(w, p.w, p.groupCount * 2 * p.n, p.k, kHalf) ||
      !describeMatrix(result, p.out, p.m, p.n, kSlabRows))
    return noTensorMap(call);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, 2 * mostItems(p.m, p.n, p.groupCount), blocks); !s)
    return s;
  auto kernel = gluPairs<gather, epilogue>;
  if (Status s = allowSharedBytes(call, kernel, Layout::bytes); !s)
    return s;
  const PairArgs args{static_cast<const bf16 *>(p.x),
                      p.tokens,
                      int32_t(p.xRows),
                      static_cast<bf16 *>(p.out),
                      p.groups,
                      {int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k),
                       int32_t(ceilDiv(p.n, kHalf))},
                      p.form,
                      call.context.errorFlag};
  kernel<<<blocks / 2 * 2, kThreads, Layout::bytes, call.stream()>>>(x, w, result, args);
  return launched(call);
}

template <Epilogue epilogue> Status launchGlu(const Call &call, const GroupedGlu &p) {
  return p.tokens ? launch<true, epilogue>(call, p) : launch<false, epilogue>(call, p);
}

} // namespace

bool fitsWgmma(const GroupedGlu &p) {
  return p.dtype == fb::DType::bf16 && p.k > 0 && p.k % kChunk == 0 && p.n % kChunk == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0 && addressOf(p.out) % 16 == 0 &&
         p.m <= INT32_MAX && p.k <= INT32_MAX && p.xRows <= INT32_MAX &&
         p.groupCount <= kMostPairGroups && p.groupCount * 2 * p.n <= INT32_MAX - kColumns &&
         mostItems(p.m, p.n, p.groupCount) <= INT32_MAX;
}

Status launchGroupedGlu(const Call &call, const GroupedGlu &p) {
  switch (p.form.activation) {
  case Activation::silu:
    return p.form.limit == INFINITY && p.form.alpha == 1 && p.form.upShift == 0
               ? launchGlu<Epilogue::silu>(call, p)
               : launchGlu<Epilogue::clampedSilu>(call, p);
  case Activation::gelu:
    return launchGlu<Epilogue::gelu>(call, p);
  case Activation::geluTanh:
    return launchGlu<Epilogue::geluTanh>(call, p);
  case Activation::relu:
    return launchGlu<Epilogue::relu>(call, p);
  }
  return {};
}

} // namespace moira::rt::cuda
