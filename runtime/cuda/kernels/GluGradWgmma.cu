//===- GluGradWgmma.cu - gradients of experts' gated products, on Hopper -----===//
// The cotangents of rows times the experts' second weights from the other side, and in the epilogue
// what of it becomes of the gate, the up and the row's weight. The products before the gate come
// through the same stages as operands, behind those of a tile, 64 columns of both at a time, and
// become their gradients where they lie. Two blocks share weights (PairTiles.h).
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "PairTiles.h"

namespace moira::rt::cuda {
namespace {

using namespace product;

constexpr int kGradStages = 4, kGradSlabs = 2;
using Layout = PairLayout<kGradStages, kGradSlabs>;
using Ring = PairRing<kGradStages, kGradSlabs>;
/// Bytes of 64 columns of a stage of weights, and of as many gates or ups.
constexpr uint32_t kBlockBytes = kDepth * 64 * sizeof(bf16),
                   kPartBytes = kRows * kSlabColumns * sizeof(bf16);

struct GradArgs {
  const float *weights; ///< of rows
  bf16 *dz, *act;
  float *dots; ///< [column tiles, m]: each tile's part
  const int32_t *groups;
  Sizes sizes;
  GluForm form;
  int32_t *flag;
};

/// How many stages of gates and ups a tile has: in both blocks as many as in the first one.
__device__ inline int partsOf(const Work &work, const Sizes &sizes, uint32_t rank) {
  const int32_t first = work.shared ? work.column : work.column - int32_t(rank) * kColumns;
  return min(kColumns / kSlabColumns, (sizes.n - first + kSlabColumns - 1) / kSlabColumns);
}

/// What one thread copies for a stage.
struct Copies {
  const CUtensorMap &dy, &w, &z;
  const Sizes &sizes;
  uint32_t rank;

  __device__ int steps() const { return (sizes.k + kDepth - 1) / kDepth; }
  __device__ int stages(const Work &work) const { return steps() + partsOf(work, sizes, rank); }
  __device__ uint32_t bytes(const Work &, int s) const {
    return s < steps() ? kStageBytes : 2 * kPartBytes;
  }
  __device__ void operator()(const Work &work, int s, const Ring &ring) const {
    const uint32_t full = ring.full(ring.stage);
    if (s < steps()) {
      const int32_t weightRow = work.group * sizes.k + s * kDepth;
      copyBox(ring.left(), dy, s * kDepth, work.row, full);
      for (int i = 0; i < kColumns / 64; ++i) {
        if (!work.shared)
          copyBox(ring.right() + i * kBlockBytes, w, work.column + i * 64, weightRow, full);
        else if (uint32_t(i) / 2 == rank)
          copyBoxToPair(ring.right() + i * kBlockBytes, w, work.column + i * 64, weightRow, full);
      }
      return;
    }
    const int32_t column = work.column + (s - steps()) * kSlabColumns;
    copyBox(ring.left(), z, column, 0, work.row, 0, full);
    copyBox(ring.left() + kPartBytes, z, column, 1, work.row, 0, full);
  }
};

/// Zeros in the place of a warp's results.
__device__ void storeNothing(const GradArgs &args, const Work &work, int row0) {
  const int64_t n = args.sizes.n, last = min(n, int64_t(work.column) + kColumns);
  for (int row = row0; row < min(row0 + kSlabRows, work.rows); ++row)
    for (int64_t column = work.column + laneNumber(); column < last; column += 32) {
      const int64_t at = int64_t(work.row + row) * n;
      args.act[at + column] = bf16(0.0f);
      args.dz[at * 2 + column] = bf16(0.0f);
      args.dz[at * 2 + n + column] = bf16(0.0f);
    }
}

__device__ inline void unpackPair(uint32_t pair, float &low, float &high) {
  const float2 both = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&pair));
  low = both.x;
  high = both.y;
}

/// 64 columns of a warp's rows: gates and ups in shared memory become their gradients, `act` what
/// the gate gives times the row's weight; dots gain their terms. weight and dots are of the lane's
/// two rows.
template <GluEpilogue epilogue>
__device__ void gradients(const GluForm &form, const float *sum, bf16 *gates, bf16 *ups, bf16 *act,
                          const float (&weight)[2], float (&dots)[2]) {
#pragma unroll
  for (int j = 0; j < kSlabColumns / 16; ++j) {
    const int at = chunkOffset<8>(laneNumber() % 16, j * 2 + laneNumber() / 16);
    uint32_t gate[4], up[4], result[4];
    loadMatrices(gate, gates + at);
    loadMatrices(up, ups + at);
#pragma unroll
    for (int i = 0; i < 4; ++i) { // of row i % 2, a pair of columns
      float g[2], u[2], made[2];
      unpackPair(gate[i], g[0], g[1]);
      unpackPair(up[i], u[0], u[1]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float dy = sum[j * 8 + i * 2 + c], scaled = dy * weight[i % 2];
        const GluSlopes slopes = fastSlopesOf<epilogue>(form, g[c], u[c]);
        dots[i % 2] += dy * slopes.value;
        made[c] = slopes.value * weight[i % 2];
        g[c] = scaled * slopes.gate;
        u[c] = scaled * slopes.up;
      }
      gate[i] = packPair(g[0], g[1]);
      up[i] = packPair(u[0], u[1]);
      result[i] = packPair(made[0], made[1]);
    }
    storeMatrices(gates + at, gate[0], gate[1], gate[2], gate[3]);
    storeMatrices(ups + at, up[0], up[1], up[2], up[3]);
    storeMatrices(act + at, result[0], result[1], result[2], result[3]);
  }
}

template <GluEpilogue epilogue>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    gradPairs(const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap w,
              const __grid_constant__ CUtensorMap z, const __grid_constant__ CUtensorMap dz,
              const __grid_constant__ CUtensorMap act, const GradArgs args) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const uint32_t base = sharedAddress(sharedBytes);
  if (base % Shared::alignment != 0)
    __trap();
  Start *starts = reinterpret_cast<Start *>(sharedBytes + Layout::startsAt);
  Ring ring(base);
  const Sizes &sizes = args.sizes;
  const uint32_t rank = clusterRank();
  if (threadIdx.x == 0)
    ring.init(false);
  if (threadIdx.x < 32)
    findItems(args.groups, sizes, starts, args.flag);
  __syncthreads();
  clusterSync();

  const int warpgroup = int(threadIdx.x) / kWarpgroup;
  const Copies copies{dy, w, z, sizes, rank};
  if (warpgroup == 0) {
    giveRegisters<72>();
    fillStages<false>(ring, starts, sizes, kColumns, {}, args.flag, copies);
  } else {
    takeRegisters<216>();
    const int consumer = warpgroup - 1, warp = int(threadIdx.x) / 32 - kWarpgroup / 32,
              row0 = warp * kSlabRows, steps = copies.steps();
    bf16 *slabs =
        reinterpret_cast<bf16 *>(sharedBytes + Layout::slabsAt) + warp * kGradSlabs * kSlabValues;
    uint32_t index = blockIdx.x / 2;
    Work work = workAt(starts, sizes, kColumns, index, rank);
    auto nextWork = [&] { return workAt(starts, sizes, kColumns, index += gridDim.x / 2, rank); };
    int stored = -1; // the stage whose gradients are being stored
    auto releaseStored = [&] {
      if (stored >= 0)
        ring.release(stored);
      stored = -1;
    };
    while (!work.end) {
      if (work.group < 0) {
        storeNothing(args, work, row0);
        work = nextWork();
        continue;
      }
      if (work.rows <= consumer * kConsumerRows) { // no rows for this warpgroup
        for (int s = copies.stages(work); s > 0; --s) {
          ring.waitFull();
          __syncwarp(); // every lane has seen the stage
          ring.release(ring.stage);
          ring.advance();
          if (stored >= 0) {
            if (electOne())
              waitStores<0>();
            __syncwarp();
            releaseStored();
          }
        }
        work = nextWork();
        continue;
      }
      float sum[128];
      auto multiply = [&](bool add) {
        const uint64_t left = tileDescriptor(ring.left() + consumer * (kLeftBytes / kConsumers)),
                       right = columnDescriptor(ring.right(), kBlockBytes);
        beginProducts();
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d)
          multiply64x256<true>(sum, left + d * kDescriptorStep, right + d * kColumnDescriptorStep,
                               add || d > 0);
        commitProducts();
      };
      ring.waitFull();
      multiply(false);
      if (electOne())
        waitStores<0>();
      __syncwarp();
      releaseStored();
      for (int s = 1; s < steps; ++s) {
        const int last = ring.stage;
        ring.advance();
        ring.waitFull();
        multiply(true);
        waitProducts<1>(); // those of the stage before
        ring.release(last);
      }
      float weight[2], dots[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + half * 8 + laneNumber() / 4;
        weight[half] = row < work.rows ? args.weights[work.row + row] : 0.0f;
      }
      const Work next = nextWork(); // while the last products are made
      waitProducts<0>();
      ring.release(ring.stage);
      ring.advance();
      const int parts = partsOf(work, sizes, rank);
      const int64_t n = sizes.n, row = work.row + row0;
#pragma unroll
      for (int part = 0; part < kColumns / kSlabColumns; ++part) {
        if (part >= parts)
          break;
        ring.waitFull();
        bf16 *gates =
                 reinterpret_cast<bf16 *>(sharedBytes + (ring.left() - base)) + warp * kSlabValues,
             *ups = gates + kPartBytes / sizeof(bf16), *made = slabs + part % 2 * kSlabValues;
        const int32_t column = work.column + part * kSlabColumns;
        if (row0 < work.rows)
          gradients<epilogue>(args.form, sum + part * 32, gates, ups, made, weight, dots);
        if (row0 + kSlabRows <= work.rows) {
          publishToCopies();
          __syncwarp();
          if (electOne()) {
            storeBox(dz, column, 0, int32_t(row), 0, sharedAddress(gates));
            storeBox(dz, column, 1, int32_t(row), 0, sharedAddress(ups));
            storeBox(act, column, int32_t(row), sharedAddress(made));
          }
        } else if (row0 < work.rows) {
          publishToCopies(); // which overwrite the stage
          __syncwarp();
          const int rows = work.rows - row0;
          copySlab(gates, args.dz + row * 2 * n + column, 2 * n, rows, n - column);
          copySlab(ups, args.dz + (row * 2 + 1) * n + column, 2 * n, rows, n - column);
          copySlab(made, args.act + row * n + column, n, rows, n - column);
        }
        if (electOne()) {
          commitStores();
          waitStores<1>(); // the part before, whose stage and slab are free now
        }
        __syncwarp();
        releaseStored();
        stored = ring.stage;
        ring.advance();
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        dots[half] += __shfl_xor_sync(kAllLanes, dots[half], 1);
        dots[half] += __shfl_xor_sync(kAllLanes, dots[half], 2);
        const int at = row0 + half * 8 + laneNumber() / 4;
        if (laneNumber() % 4 == 0 && at < work.rows)
          args.dots[int64_t(work.column / kColumns) * sizes.m + work.row + at] = dots[half];
      }
      work = next;
    }
    if (electOne())
      waitStores<0>(); // shared memory lives until it is read
    __syncwarp();
    releaseStored();
  }
  __syncwarp();
  clusterSync(); // and until the other block's copies and arrivals are there
}

template <GluEpilogue epilogue> Status launch(const Call &call, const GluGradient &p) {
  CUtensorMap dy{}, w{}, z{}, dz{}, act{};
  if (!describeMatrix(dy, p.dy, p.m, p.k, kRows) ||
      !describeMatrix(w, p.w, p.groupCount * p.k, p.n, kDepth) ||
      !describeHeads(z, p.z, 1, p.m, 2, p.n, kSlabColumns, kRows) ||
      !describeHeads(dz, p.dz, 1, p.m, 2, p.n, kSlabColumns, kSlabRows) ||
      !describeMatrix(act, p.act, p.m, p.n, kSlabRows))
    return noTensorMap(call);
  const int64_t columnTiles = ceilDiv(p.n, kColumns);
  unsigned blocks = 0;
  if (Status s = persistentBlocks(call, 2 * mostItems(p.m, columnTiles, p.groupCount), blocks); !s)
    return s;
  auto kernel = gradPairs<epilogue>;
  if (Status s = allowSharedBytes(call, kernel, Layout::bytes); !s)
    return s;
  const GradArgs args{
      p.rowWeights,
      static_cast<bf16 *>(p.dz),
      static_cast<bf16 *>(p.act),
      p.rowDots,
      p.groups,
      {int32_t(p.groupCount), int32_t(p.m), int32_t(p.n), int32_t(p.k), int32_t(columnTiles)},
      p.form,
      call.context.errorFlag};
  kernel<<<blocks / 2 * 2, kThreads, Layout::bytes, call.stream()>>>(dy, w, z, dz, act, args);
  return launched(call);
}

} // namespace

bool fitsWgmma(const GluGradient &p) {
  for (const void *data :
       {p.dy, p.w, p.z, static_cast<const void *>(p.dz), static_cast<const void *>(p.act)})
    if (addressOf(data) % 16 != 0)
      return false;
  return p.dtype == fb::DType::bf16 && p.k > 0 && p.k % kChunk == 0 && p.n % kChunk == 0 &&
         p.m <= INT32_MAX && p.k <= INT32_MAX && p.groupCount <= kMostPairGroups &&
         p.groupCount * p.k <= INT32_MAX - kDepth &&
         mostItems(p.m, ceilDiv(p.n, kColumns), p.groupCount) <= INT32_MAX;
}

int64_t gluGradientTiles(const GluGradient &p) { return ceilDiv(p.n, kColumns); }

Status launchGluGradient(const Call &call, const GluGradient &p) {
  return withEpilogue(p.form, [&]<GluEpilogue epilogue>() { return launch<epilogue>(call, p); });
}

} // namespace moira::rt::cuda
