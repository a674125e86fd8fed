//===- ProductFewRowsF32.cu - f32 products of few rows by few columns ---------===//
// What a router is in decode: a megabyte of weights, which a general product reads in several
// launches. A block makes one column for up to eight rows of up to 32; its warps share the depth,
// and their sums are added in the order of the warps.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

namespace moira::rt::cuda {
namespace {

constexpr int kRowsOfBlock = 8, kMostRows = 32;
/// Values, by four, of a column that a lane asks for at once.
constexpr int kAhead = 4;
constexpr int64_t kMostColumns = 1024;

template <int rows, int warps>
__global__ void __launch_bounds__(warps * 32)
    dotColumns(const float4 *x, const float4 *w, float *out, int m, int64_t n, int64_t vectors,
               bool settled) {
  __shared__ float sums[warps][rows];
  const int64_t column = blockIdx.x, row0 = int64_t(blockIdx.y) * rows;
  const int warp = int(threadIdx.x) / 32;
  x += row0 * vectors;
  out += row0 * n;
  m = min(rows, m - int(row0));
  if (!settled)
    awaitPrevious();
  float4 held[kAhead];
  auto load = [&](int64_t from) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (const int64_t at = from + u * (warps * 32); at < vectors)
        held[u] = w[column * vectors + at];
  };
  load(threadIdx.x);
  if (settled)
    awaitPrevious();
  float sum[rows] = {};
  for (int64_t from = threadIdx.x; from < vectors; from += kAhead * warps * 32) {
    if (from != threadIdx.x)
      load(from);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const int64_t at = from + u * (warps * 32);
      if (at >= vectors)
        break;
      const float4 b = held[u];
#pragma unroll
      for (int r = 0; r < rows; ++r)
        if (r < m) {
          const float4 a = x[r * vectors + at];
          sum[r] += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
    }
  }
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    const float total = warpSum(sum[r]);
    if (laneNumber() == 0)
      sums[warp][r] = total;
  }
  __syncthreads();
  const int row = int(threadIdx.x);
  if (row >= m)
    return;
  float total = 0;
#pragma unroll
  for (int s = 0; s < warps; ++s)
    total += sums[s][row];
  out[row * n + column] = total;
}

} // namespace

bool hasFewF32Rows(const GroupedProduct &p) {
  return !p.groups && p.inType == fb::DType::f32 && p.outType == fb::DType::f32 && p.m > 0 &&
         p.m <= kMostRows && p.n > 0 && p.n <= kMostColumns && p.k > 0 && p.k % 4 == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0;
}

Status launchProductFewF32Rows(const Call &call, const GroupedProduct &p) {
  auto run = [&](auto kernel, int warps) {
    const dim3 blocks(unsigned(p.n), unsigned(ceilDiv(p.m, kRowsOfBlock)));
    return launchEarly(call, kernel, blocks, unsigned(warps) * 32, 0,
                       static_cast<const float4 *>(p.x), static_cast<const float4 *>(p.w),
                       static_cast<float *>(p.out), int(p.m), p.n, p.k / 4, p.settled);
  };
  return p.m == 1 ? run(dotColumns<1, 4>, 4) : run(dotColumns<kRowsOfBlock, 8>, 8);
}

} // namespace moira::rt::cuda
