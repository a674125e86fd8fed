//===- ProductBf16.cu - grouped products on tensor cores --------------------===//
// One launch for all groups: a block makes 128 × 128 results of one group, from tiles 64 deep that
// arrive in shared memory three stages ahead.
//===----------------------------------------------------------------------===//
#include "GroupTiles.h"
#include "Tiles.h"

namespace moira::rt::cuda {
namespace {

constexpr int kRows = 128, kColumns = 128, kDepth = 64, kStages = 3, kThreads = 256;
constexpr int kChunks = kDepth / kChunk;
constexpr int kStageValues = (kRows + kColumns) * kDepth;
constexpr size_t kSharedBytes = size_t(kStages) * kStageValues * sizeof(bf16);

/// Stores two neighbours of a row, as one if `paired`.
template <bool paired, typename Out>
__device__ void storeTwo(Out *row, int64_t column, int64_t n, float low, float high) {
  if constexpr (paired) {
    if (column >= n)
      return;
    if constexpr (sizeof(Out) == 2)
      *reinterpret_cast<uint32_t *>(row + column) = packPair(low, high);
    else
      *reinterpret_cast<float2 *>(row + column) = make_float2(low, high);
  } else {
    if (column < n)
      row[column] = fromFloat<Out>(low);
    if (column + 1 < n)
      row[column + 1] = fromFloat<Out>(high);
  }
}

/// `aligned`: x and w are 16-byte aligned and k is a multiple of 8; out's rows are aligned to two
/// values.
template <bool aligned, typename Out>
__global__ void __launch_bounds__(kThreads, 2)
    productTiles(const bf16 *x, const bf16 *w, Out *out, const int32_t *groups, int64_t groupCount,
                 int64_t m, int64_t n, int64_t k, int64_t columnTiles, int32_t *flag) {
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  bf16 *shared = reinterpret_cast<bf16 *>(sharedBytes);
  int64_t column0 = blockIdx.x % columnTiles * kColumns;
  RowTile tile = rowTile(groups, groupCount, m, blockIdx.x / columnTiles, kRows, flag);
  if (tile.count == 0)
    return;
  x += tile.row * k;
  if (tile.group > 0)
    w += tile.group * n * k;
  int64_t steps = tile.group < 0 ? 0 : (k + kDepth - 1) / kDepth;

  auto load = [&](int64_t step) {
    bf16 *a = shared + step % kStages * kStageValues, *b = a + kRows * kDepth;
    int64_t at = step * kDepth;
    loadTile<kRows, kChunks, kThreads, aligned>(
        a, x, k - at, [&](int row) { return row < tile.count ? x + row * k + at : nullptr; });
    loadTile<kColumns, kChunks, kThreads, aligned>(b, w, k - at, [&](int row) {
      return column0 + row < n ? w + (column0 + row) * k + at : nullptr;
    });
  };

  // 8 warps of 64 rows × 32 columns.
  const int warp = int(threadIdx.x / 32), row0 = warp / 4 * 64, warpColumn = warp % 4 * 32;
  float sum[4][4][4] = {}; // [16 rows][8 columns][fragment]
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps)
      load(s);
    commitCopies();
  }
  for (int64_t step = 0; step < steps; ++step) {
    waitCopies<kStages - 2>();
    __syncthreads(); // everyone's part of this stage is there, and the stage before is read
    if (step + kStages - 1 < steps)
      load(step + kStages - 1);
    commitCopies();
    const bf16 *a = shared + step % kStages * kStageValues, *b = a + kRows * kDepth;
#pragma unroll
    for (int inner = 0; inner < kDepth / 16; ++inner) {
      uint32_t left[4][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        loadA<kChunks>(left[i], a, row0 + i * 16, inner);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        loadB<kChunks>(right[j], b, warpColumn + j * 16, inner);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiplyAdd(sum[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
    }
  }

  const int lane = laneNumber();
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int row = row0 + i * 16 + half * 8 + lane / 4;
      if (row >= tile.count)
        continue;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        storeTwo<aligned>(out + (tile.row + row) * n, column0 + warpColumn + j * 8 + lane % 4 * 2,
                          n, sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
    }
}

template <bool aligned, typename Out> Status launch(const Call &call, const GroupedProduct &p) {
  int64_t columnTiles = ceilDiv(p.n, kColumns);
  int64_t blocks =
      columnTiles * (p.groups ? mostRowTiles(p.m, p.groupCount, kRows) : ceilDiv(p.m, kRows));
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of results", (long long)blocks));
  auto kernel = productTiles<aligned, Out>;
  if (Status s = allowSharedBytes(call, kernel, kSharedBytes); !s)
    return s;
  kernel<<<unsigned(blocks), kThreads, kSharedBytes, call.stream()>>>(
      static_cast<const bf16 *>(p.x), static_cast<const bf16 *>(p.w), static_cast<Out *>(p.out),
      p.groups, p.groupCount, p.m, p.n, p.k, columnTiles, call.context.errorFlag);
  return launched(call);
}

} // namespace

Status launchProductBf16(const Call &call, const GroupedProduct &p) {
  size_t pair = 2 * elementBytes(p.outType);
  bool aligned = p.k % kChunk == 0 && p.n % 2 == 0 && addressOf(p.x) % 16 == 0 &&
                 addressOf(p.w) % 16 == 0 && addressOf(p.out) % pair == 0;
  return withFloat(p.outType, [&]<typename Out>(Out) {
    return aligned ? launch<true, Out>(call, p) : launch<false, Out>(call, p);
  });
}

} // namespace moira::rt::cuda
