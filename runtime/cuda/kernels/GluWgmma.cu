//===- GluWgmma.cu - experts' gated products of many rows, on Hopper --------===//
// As ProductWgmma.cu, with glu in the epilogue: a tile's columns are 128 gates and the 128 ups that
// belong to them, so that a thread has both. Rows are copied as boxes, or gathered by the numbers
// of their tokens; two blocks share weights (PairTiles.h). Where gradients want it, the product is
// kept beside the result.
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "PairTiles.h"

namespace moira::rt::cuda {
namespace {

using namespace product;

constexpr int kHalf = kColumns / 2;
constexpr uint32_t kHalfBytes = kHalf * kDepth * sizeof(bf16);

/// Without the product, results are half as wide as a product's and so is what stores them: that
/// leaves room for a stage more.
template <bool keep> struct Shape {
  static constexpr int stages = keep ? 3 : 4, slabs = keep ? 5 : 2;
  using Layout = PairLayout<stages, slabs>;
  using Ring = PairRing<stages, slabs>;
};

struct PairArgs {
  GatheredRows from;
  bf16 *out, *kept;
  const int32_t *groups;
  Sizes sizes;
  GluForm form;
  int32_t *flag;
};

/// What one thread copies for a stage.
template <bool gather> struct Copies {
  const CUtensorMap &x, &w;
  const Sizes &sizes;
  uint32_t rank;

  __device__ int stages(const Work &) const { return (sizes.k + kDepth - 1) / kDepth; }
  __device__ uint32_t bytes(const Work &, int) const { return gather ? kRightBytes : kStageBytes; }
  template <typename Ring>
  __device__ void operator()(const Work &work, int s, const Ring &ring) const {
    const uint32_t full = ring.full(ring.stage);
    const int32_t weightRow = work.group * 2 * sizes.n + work.column;
    if constexpr (!gather)
      copyBox(ring.left(), x, s * kDepth, work.row, full);
    if (work.shared) {
      copyBoxToPair(ring.right() + rank * kHalfBytes, w, s * kDepth,
                    weightRow + int32_t(rank) * sizes.n, full);
    } else {
      copyBox(ring.right(), w, s * kDepth, weightRow, full);
      copyBox(ring.right() + kHalfBytes, w, s * kDepth, weightRow + sizes.n, full);
    }
  }
};

/// A warp's gated results, and the products before them: 64 columns of each at a time, through
/// five slabs.
template <GluEpilogue epilogue>
__device__ void storeBoth(float (&sum)[128], const CUtensorMap &result, const CUtensorMap &kept,
                          bf16 *slabs, const PairArgs &args, const Work &work, int row0) {
  if (row0 >= work.rows)
    return;
  const int64_t n = args.sizes.n, row = work.row + row0;
  const bool whole = row0 + kSlabRows <= work.rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float *gates = sum + half * 32, *ups = gates + 64;
    bf16 *gate = slabs + half * 3 * kSlabValues, *up = gate + kSlabValues,
         *out = half ? slabs : up + kSlabValues;
    const int32_t column = work.column + half * kSlabColumns;
    auto free = [&] { // what was stored from slabs is read
      if (electOne())
        waitStores<0>();
      __syncwarp();
    };
    if (half == 0)
      free();
    fillSlab(gate, gates);
    fillSlab(up, ups);
#pragma unroll
    for (int i = 0; i < 32; ++i)
      gates[i] = fastGluOf<epilogue>(args.form, gates[i], ups[i]);
    if (half == 1)
      free();
    fillSlab(out, gates);
    if (whole) {
      publishToCopies();
      __syncwarp();
      if (electOne()) {
        storeBox(kept, column, 0, int32_t(row), 0, sharedAddress(gate));
        storeBox(kept, column, 1, int32_t(row), 0, sharedAddress(up));
        storeBox(result, column, int32_t(row), sharedAddress(out));
        commitStores();
      }
    } else {
      __syncwarp();
      const int rows = work.rows - row0;
      copySlab(gate, args.kept + row * 2 * n + column, 2 * n, rows, n - column);
      copySlab(up, args.kept + (row * 2 + 1) * n + column, 2 * n, rows, n - column);
      copySlab(out, args.out + row * n + column, n, rows, n - column);
      __syncwarp();
    }
  }
}

/// Zeros in the place of a warp's results.
template <bool keep>
__device__ void storeNothing(const PairArgs &args, const Work &work, int row0) {
  const int64_t n = args.sizes.n, last = min(n, int64_t(work.column) + kHalf);
  for (int row = row0; row < min(row0 + kSlabRows, work.rows); ++row)
    for (int64_t column = work.column + laneNumber(); column < last; column += 32) {
      const int64_t at = int64_t(work.row + row) * n;
      args.out[at + column] = bf16(0.0f);
      if constexpr (keep) {
        args.kept[at * 2 + column] = bf16(0.0f);
        args.kept[at * 2 + n + column] = bf16(0.0f);
      }
    }
}

template <bool gather, bool keep, GluEpilogue epilogue>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    gluPairs(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
             const __grid_constant__ CUtensorMap result, const __grid_constant__ CUtensorMap kept,
             const PairArgs args) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  using Layout = typename Shape<keep>::Layout;
  const uint32_t base = sharedAddress(sharedBytes);
  if (base % Shared::alignment != 0)
    __trap();
  Start *starts = reinterpret_cast<Start *>(sharedBytes + Layout::startsAt);
  typename Shape<keep>::Ring ring(base);
  const Sizes &sizes = args.sizes;
  const uint32_t rank = clusterRank();
  if (threadIdx.x == 0)
    ring.init(gather);
  if (threadIdx.x < 32)
    findItems(args.groups, sizes, starts, args.flag);
  __syncthreads();
  clusterSync();

  const int steps = int((sizes.k + kDepth - 1) / kDepth), warpgroup = int(threadIdx.x) / kWarpgroup;
  if (warpgroup == 0) {
    giveRegisters<72>();
    fillStages<gather>(ring, starts, sizes, kHalf, args.from, args.flag,
                       Copies<gather>{x, w, sizes, rank});
  } else {
    takeRegisters<216>();
    const int consumer = warpgroup - 1, warp = int(threadIdx.x) / 32 - kWarpgroup / 32;
    bf16 *slabs = reinterpret_cast<bf16 *>(sharedBytes + Layout::slabsAt) +
                  warp * Shape<keep>::slabs * kSlabValues;
    uint32_t index = blockIdx.x / 2;
    Work work = workAt(starts, sizes, kHalf, index, rank);
    auto nextWork = [&] { return workAt(starts, sizes, kHalf, index += gridDim.x / 2, rank); };
    while (!work.end) {
      if (work.group < 0) {
        storeNothing<keep>(args, work, warp * kSlabRows);
        work = nextWork();
        continue;
      }
      if (work.rows <= consumer * kConsumerRows) { // no rows for this warpgroup
        for (int s = 0; s < steps; ++s) {
          ring.waitFull();
          __syncwarp(); // every lane has seen the stage
          ring.release(ring.stage);
          ring.advance();
        }
        work = nextWork();
        continue;
      }
      float sum[128];
      auto multiply = [&](bool add) {
        const uint64_t left = tileDescriptor(ring.left() + consumer * (kLeftBytes / kConsumers)),
                       right = tileDescriptor(ring.right());
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply64x256(sum, left + d * kDescriptorStep, right + d * kDescriptorStep,
                         add || d > 0);
        commitProducts();
      };
      ring.waitFull();
      multiply(false);
      for (int s = 1; s < steps; ++s) {
        const int last = ring.stage;
        ring.advance();
        ring.waitFull();
        multiply(true);
        waitProducts<1>(); // those of the stage before
        ring.release(last);
      }
      const Work next = nextWork(); // while the last products are made
      waitProducts<0>();
      ring.release(ring.stage);
      ring.advance();
      if constexpr (keep) {
        storeBoth<epilogue>(sum, result, kept, slabs, args, work, warp * kSlabRows);
      } else {
#pragma unroll
        for (int i = 0; i < 64; ++i)
          sum[i] = fastGluOf<epilogue>(args.form, sum[i], sum[64 + i]);
        storeSlabs<Shape<keep>::slabs>(sum, result, slabs, args.out,
                                       {work.row, work.column, work.group, work.rows},
                                       warp * kSlabRows, sizes.n);
      }
      work = next;
    }
    if (electOne())
      waitStores<0>(); // shared memory lives until it is read
  }
  __syncwarp();
  clusterSync(); // and until the other block's copies and arrivals are there
}

template <bool gather, bool keep, GluEpilogue epilogue>
Status launch(const Call &call, const GroupedGlu &p) {
  using Layout = typename Shape<keep>::Layout;
  CUtensorMap x{}, w{}, result{}, kept{};
  if ((!gather && !describeMatrix(x, p.x, p.m, p.k, kRows)) ||
      !describeMatrix(w, p.w, p.groupCount * 2 * p.n, p.k, kHalf) ||
      !describeMatrix(result, p.out, p.m, p.n, kSlabRows) ||
      (keep && !describeHeads(kept, p.kept, 1, p.m, 2, p.n, kSlabColumns, kSlabRows)))
    return noTensorMap(call);
  const int64_t columnTiles = ceilDiv(p.n, kHalf);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, 2 * mostItems(p.m, columnTiles, p.groupCount), blocks); !s)
    return s;
  auto kernel = gluPairs<gather, keep, epilogue>;
  if (Status s = allowSharedBytes(call, kernel, Layout::bytes); !s)
    return s;
  const PairArgs args{
      {static_cast<const bf16 *>(p.x), p.tokens, int32_t(p.xRows)},
      static_cast<bf16 *>(p.out),
      static_cast<bf16 *>(p.kept),
      p.groups,
      {int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k), int32_t(columnTiles)},
      p.form,
      call.context.errorFlag};
  kernel<<<blocks / 2 * 2, kThreads, Layout::bytes, call.stream()>>>(x, w, result, kept, args);
  return launched(call);
}

} // namespace

bool fitsWgmma(const GroupedGlu &p) {
  return p.dtype == fb::DType::bf16 && p.k > 0 && p.k % kChunk == 0 && p.n % kChunk == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0 && addressOf(p.out) % 16 == 0 &&
         addressOf(p.kept) % 16 == 0 && p.m <= INT32_MAX && p.k <= INT32_MAX &&
         p.xRows <= INT32_MAX && p.groupCount <= kMostPairGroups &&
         p.groupCount * 2 * p.n <= INT32_MAX - kColumns &&
         mostItems(p.m, ceilDiv(p.n, kHalf), p.groupCount) <= INT32_MAX;
}

Status launchGroupedGlu(const Call &call, const GroupedGlu &p) {
  return withEpilogue(p.form, [&]<GluEpilogue epilogue>() {
    if (p.kept)
      return p.tokens ? launch<true, true, epilogue>(call, p)
                      : launch<false, true, epilogue>(call, p);
    return p.tokens ? launch<true, false, epilogue>(call, p)
                    : launch<false, false, epilogue>(call, p);
  });
}

} // namespace moira::rt::cuda
