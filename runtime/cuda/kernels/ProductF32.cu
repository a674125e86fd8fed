//===- ProductF32.cu - grouped products in f32 ------------------------------===//
// One launch for all groups, multiply and add in f32 (never TF32): a block makes 128 × 128 results
// of one group, a thread 8 × 8 of them; the next 16 deep tiles wait in registers.
//===----------------------------------------------------------------------===//
#include "GroupTiles.h"

namespace moira::rt::cuda {
namespace {

constexpr int kRows = 128, kColumns = 128, kDepth = 16, kThreads = 256;
constexpr int kPad =
    4; // values after each row of a tile, against bank conflicts when it is written
constexpr int kLoads = kRows * kDepth / kThreads;
static_assert(kRows == kColumns);

__global__ void __launch_bounds__(kThreads, 2)
    productTiles(const float *x, const float *w, float *out, const int32_t *groups,
                 int64_t groupCount, int64_t m, int64_t n, int64_t k, int64_t columnTiles,
                 int32_t *flag) {
  __shared__ __align__(16) float a[kDepth][kRows + kPad], b[kDepth][kColumns + kPad];
  int64_t column0 = blockIdx.x % columnTiles * kColumns;
  RowTile tile = rowTile(groups, groupCount, m, blockIdx.x / columnTiles, kRows, flag);
  if (tile.count == 0)
    return;
  x += tile.row * k;
  if (tile.group > 0)
    w += tile.group * n * k;
  w += column0 * k;
  int64_t depth = tile.group < 0 ? 0 : k;
  int64_t columns = n - column0;

  // Thread t loads value t % 16 of rows t / 16, t / 16 + 16, ...
  const int inner = int(threadIdx.x) % kDepth, firstRow = int(threadIdx.x) / kDepth;
  constexpr int rowStep = kThreads / kDepth;
  float nextA[kLoads], nextB[kLoads];
  auto fetch = [&](int64_t at) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      int row = firstRow + i * rowStep;
      bool inside = at + inner < depth;
      nextA[i] = inside && row < tile.count ? x[row * k + at + inner] : 0.0f;
      nextB[i] = inside && row < columns ? w[row * k + at + inner] : 0.0f;
    }
  };

  // Thread (ty, tx) makes rows ty*4 + {0..3, 64..67} and columns tx*4 + {0..3, 64..67}.
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  float sum[8][8] = {};
  fetch(0);
  for (int64_t at = 0; at < depth; at += kDepth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      a[inner][firstRow + i * rowStep] = nextA[i];
      b[inner][firstRow + i * rowStep] = nextB[i];
    }
    __syncthreads();
    fetch(at + kDepth);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float left[8], right[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 u = *reinterpret_cast<const float4 *>(&a[d][ty * 4 + half * 64]);
        float4 v = *reinterpret_cast<const float4 *>(&b[d][tx * 4 + half * 64]);
        left[half * 4] = u.x, left[half * 4 + 1] = u.y;
        left[half * 4 + 2] = u.z, left[half * 4 + 3] = u.w;
        right[half * 4] = v.x, right[half * 4 + 1] = v.y;
        right[half * 4 + 2] = v.z, right[half * 4 + 3] = v.w;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < 8; ++i) {
    int row = ty * 4 + i / 4 * 64 + i % 4;
    if (row >= tile.count)
      continue;
    float *to = out + (tile.row + row) * n + column0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      int column = tx * 4 + j / 4 * 64 + j % 4;
      if (column < columns)
        to[column] = sum[i][j];
    }
  }
}

} // namespace

Status launchProductF32(const Call &call, const GroupedProduct &p) {
  int64_t columnTiles = ceilDiv(p.n, kColumns);
  int64_t blocks =
      columnTiles * (p.groups ? mostRowTiles(p.m, p.groupCount, kRows) : ceilDiv(p.m, kRows));
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of results", (long long)blocks));
  if (p.outType != fb::DType::f32)
    return notOnCuda(call, "f32 operands with a bf16 result");
  productTiles<<<unsigned(blocks), kThreads, 0, call.stream()>>>(
      static_cast<const float *>(p.x), static_cast<const float *>(p.w), static_cast<float *>(p.out),
      p.groups, p.groupCount, p.m, p.n, p.k, columnTiles, call.context.errorFlag);
  return launched(call);
}

} // namespace moira::rt::cuda
