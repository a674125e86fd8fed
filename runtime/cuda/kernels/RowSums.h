//===- RowSums.h - sums over rows in double ---------------------*- C++ -*-===//
// out[row] = the sum of term(row, i) over i, for rows of any number and length: a block for each
// chunk of a row, then one for each row of several chunks. In double, as thousands of tensors are
// added up; the order depends on the sizes alone.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_ROWSUMS_H
#define MOIRA_RT_CUDA_KERNELS_ROWSUMS_H

#include "DeviceTools.h"

#include <algorithm>

namespace moira::rt::cuda {

inline constexpr int kSumThreads = 256;

/// For thread 0 the sum of `own` over the block's threads, for the others a part of it. Once a
/// kernel.
__device__ inline double blockSum(double own) {
  __shared__ double partial[kSumThreads];
  partial[threadIdx.x] = own;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half)
      partial[threadIdx.x] = own += partial[threadIdx.x + half];
  }
  return own; // not read back: all threads would, beside thread 0's last write
}

/// Chunk c of a row is its elements [c * length, (c + 1) * length). `partial` is not used where
/// rows are of one chunk.
template <typename Term>
__global__ void sumChunks(int64_t n, int64_t chunks, int64_t length, Term term, double *partial,
                          float *out) {
  int64_t row = blockIdx.x / chunks, first = (blockIdx.x - row * chunks) * length;
  int64_t last = first + length < n ? first + length : n;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kSumThreads)
    sum += term(row, i);
  sum = blockSum(sum);
  if (threadIdx.x != 0)
    return;
  if (chunks == 1)
    out[row] = float(sum);
  else
    partial[blockIdx.x] = sum;
}

static __global__ void addChunks(const double *partial, int64_t chunks, float *out) {
  double sum = 0;
#pragma unroll 16
  for (int64_t c = threadIdx.x; c < chunks; c += kSumThreads)
    sum += partial[blockIdx.x * chunks + c];
  sum = blockSum(sum);
  if (threadIdx.x == 0)
    out[blockIdx.x] = float(sum);
}

/// `term`: a functor of (int64_t row, int64_t i) to float or double, on the device.
template <typename Term>
Status sumRows(const Call &call, int64_t rows, int64_t n, Term term, float *out) {
  constexpr int64_t kChunk = 4096, kBlocks = 1024; // elements of a chunk, blocks worth having
  if (rows == 0)
    return {};
  int64_t chunks = std::clamp<int64_t>(ceilDiv(n, kChunk), 1, std::max<int64_t>(1, kBlocks / rows));
  if (rows * chunks > INT32_MAX)
    return notOnCuda(call, format("%lld sums", (long long)rows));
  double *partial = nullptr;
  if (chunks > 1) {
    Scratch scratch(call.context);
    partial = scratch.take<double>(rows * chunks);
    if (!partial)
      return noScratch(call);
  }
  sumChunks<<<unsigned(rows * chunks), kSumThreads, 0, call.stream()>>>(
      n, chunks, ceilDiv(n, chunks), term, partial, out);
  if (chunks > 1)
    addChunks<<<unsigned(rows), kSumThreads, 0, call.stream()>>>(partial, chunks, out);
  return launched(call);
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_ROWSUMS_H
