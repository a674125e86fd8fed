//===- HeadProduct.cu - head_linear -----------------------------------------===//
// Each head's matrix product for few rows, as decode has them: every value of a matrix is read once
// for up to kRows rows, sums are in f32.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

namespace moira::rt::cuda {
namespace {

constexpr int kRows = 8;

struct HeadProduct {
  int64_t rows, heads, inputs, outputs;
};

/// w[H,N,K]: one warp an output column of a head and kRows rows.
template <typename T>
__global__ void productByWarps(const T *x, const T *w, T *out, HeadProduct p) {
  int64_t work = warpNumber(), tiles = (p.rows + kRows - 1) / kRows;
  if (work >= p.heads * p.outputs * tiles)
    return;
  int64_t row0 = work % tiles * kRows, column = work / tiles % p.outputs,
          h = work / tiles / p.outputs;
  const T *matrix = w + (h * p.outputs + column) * p.inputs;
  float sum[kRows] = {};
  for (int64_t k = laneNumber(); k < p.inputs; k += 32) {
    float weight = toFloat(matrix[k]);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (row0 + r < p.rows)
        sum[r] = fmaf(weight, toFloat(x[((row0 + r) * p.heads + h) * p.inputs + k]), sum[r]);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float total = warpSum(sum[r]);
    if (row0 + r < p.rows && laneNumber() == 0)
      out[((row0 + r) * p.heads + h) * p.outputs + column] = fromFloat<T>(total);
  }
}

/// w[H,K,N]: one thread an output column of a head and kRows rows.
template <typename T>
__global__ void productByThreads(const T *x, const T *w, T *out, HeadProduct p) {
  int64_t tiles = (p.rows + kRows - 1) / kRows;
  for (int64_t work = threadNumber(); work < p.heads * p.outputs * tiles; work += threadCount()) {
    int64_t column = work % p.outputs, row0 = work / p.outputs % tiles * kRows,
            h = work / p.outputs / tiles;
    const T *matrix = w + h * p.inputs * p.outputs + column;
    float sum[kRows] = {};
    for (int64_t k = 0; k < p.inputs; ++k) {
      float weight = toFloat(matrix[k * p.outputs]);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (row0 + r < p.rows)
          sum[r] = fmaf(weight, toFloat(x[((row0 + r) * p.heads + h) * p.inputs + k]), sum[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (row0 + r < p.rows)
        out[((row0 + r) * p.heads + h) * p.outputs + column] = fromFloat<T>(sum[r]);
  }
}

} // namespace

Status ops::head_linear(const Call &call) {
  HeadProduct p{leading(call.in[0], 2), call.in[1].shape[0], call.in[0].shape.back(),
                call.out[0].shape.back()};
  if (call.in[1].dtype != call.in[0].dtype || call.out[0].dtype != call.in[0].dtype)
    return notOnCuda(call, "operands of several types");
  int64_t work = p.heads * p.outputs * ceilDiv(p.rows, kRows);
  if (work == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    if (call.params.integer("transposed") != 0)
      productByThreads<T><<<blocksOfThreads(work), kWarpBlock, 0, call.stream()>>>(
          call.input<T>(0), call.input<T>(1), call.output<T>(0), p);
    else
      productByWarps<T><<<blocksOfWarps(work), kWarpBlock, 0, call.stream()>>>(
          call.input<T>(0), call.input<T>(1), call.output<T>(0), p);
    return launched(call);
  });
}

} // namespace moira::rt::cuda
