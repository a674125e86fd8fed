//===- Losses.cu - losses and their gradients --------------------------------===//
// next_tokens, row_max, cross_entropy_stats, both in one, cross_entropy, ratio and gradients. One
// block a row of logits, which are f32 or bf16; the sum over tokens is made by one block in one
// order.
//===----------------------------------------------------------------------===//
#include "Exponential.h"
#include "GradTools.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int32_t kNoLabel = -100, kNotGiven = INT32_MIN;

template <typename Id>
__global__ void shiftTokens(const void *ids, const int32_t *labels, int32_t *out, int64_t n,
                            int64_t columns) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    if ((i + 1) % columns == 0)
      out[i] = kNoLabel;
    else
      out[i] = labels && labels[i + 1] != kNotGiven ? labels[i + 1] : int32_t(idAt<Id>(ids, i + 1));
  }
}

/// The columns of logits [rows, width] that are classes here.
struct Columns {
  int64_t width, first, count;
  Columns(const Call &call, const TensorRef &logits)
      : width(trailing(logits, 1)), first(call.params.integer("column_offset")),
        count(std::clamp<int64_t>(call.params.integer("classes") - first, 0, width)) {}
  __device__ int64_t of(int32_t label) const {
    int64_t at = int64_t(label) - first;
    return label >= 0 && at >= 0 && at < count ? at : -1;
  }
};

/// Gives `take` all values of a row's classes, those that a thread reads one after the other, or,
/// in packs, several at once.
template <typename Take>
__device__ void forClasses(const Reader &x, int64_t row, const Columns &columns, bool packs,
                           Take take) {
  int64_t first = row * columns.width,
          whole = packs ? columns.count / kNeighbours * kNeighbours : 0;
  for (int64_t c = int64_t(threadIdx.x) * kNeighbours; c < whole;
       c += int64_t(blockDim.x) * kNeighbours) {
    float values[kNeighbours];
    x.load(first + c, values);
#pragma unroll
    for (int u = 0; u < kNeighbours; ++u)
      take(values[u]);
  }
  for (int64_t c = whole + threadIdx.x; c < columns.count; c += blockDim.x)
    take(x[first + c]);
}

/// For all threads what `join` makes of the values of the block's warps, whose lanes have the same.
template <typename Join> __device__ float overWarps(float own, float none, Join join) {
  __shared__ float parts[kWarpBlock / 32];
  __syncthreads();
  if (laneNumber() == 0)
    parts[threadIdx.x / 32] = own;
  __syncthreads();
  float all = none;
  for (int w = 0; w < int(blockDim.x) / 32; ++w)
    all = join(all, parts[w]);
  return all;
}

__device__ float blockSum(float own) {
  return overWarps(warpSum(own), 0.0f, [](float a, float b) { return a + b; });
}

__device__ float blockMax(float own) {
  for (int step = 16; step > 0; step /= 2)
    own = fmaxf(own, __shfl_xor_sync(kAllLanes, own, step));
  return overWarps(own, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
}

__global__ void largest(Reader x, float *out, Columns columns, bool packs) {
  float most = -INFINITY;
  forClasses(x, blockIdx.x, columns, packs, [&](float v) { most = fmaxf(most, v); });
  most = blockMax(most);
  if (threadIdx.x == 0)
    out[blockIdx.x] = most;
}

__global__ void statistics(Reader x, const float *max, const int32_t *labels, float *out,
                           Columns columns, bool packs) {
  int64_t t = blockIdx.x;
  float most = max[t], exponentials = 0, sum = 0;
  forClasses(x, t, columns, packs, [&](float v) {
    exponentials += expf(v - most);
    sum += v - most;
  });
  exponentials = blockSum(exponentials);
  sum = blockSum(sum);
  if (threadIdx.x != 0)
    return;
  int64_t label = columns.of(labels[t]);
  out[3 * t] = exponentials;
  out[3 * t + 1] = label < 0 ? 0.0f : x[t * columns.width + label] - most;
  out[3 * t + 2] = sum;
}

/// What a thread knows of the values it has read: the largest, and the sums over all less that.
struct Running {
  float most = -INFINITY, exponentials = 0, sum = 0, count = 0;

  /// From here on `larger` is the largest. A row of nothing but -inf gives no numbers, as it does
  /// where the largest is known before.
  __device__ void raise(float larger) {
    if (count > 0) {
      exponentials *= expf(most - larger);
      sum += count * (most - larger);
    }
    most = larger;
  }
  template <typename T, int n> __device__ void take(const Pack<T, n> &pack) {
    float values[n], larger = most;
#pragma unroll
    for (int u = 0; u < n; ++u) {
      values[u] = toFloat(pack.v[u]);
      larger = fmaxf(larger, values[u]);
    }
    if (larger > most)
      raise(larger);
    // Until there is a number, exponentials are 0 less anything.
    float centre = most == -INFINITY ? 0.0f : most, powers = 0, all = 0;
#pragma unroll
    for (int u = 0; u < n; ++u) {
      float centred = values[u] - centre;
      powers += powerOfTwo(kPerNat * centred);
      all += centred;
    }
    exponentials += powers;
    sum += all;
    count += n;
  }
};

/// Packs of which a thread starts to read the last before it has the first.
constexpr int kUnderWay = 4;

/// `largest` and `statistics` of logits that are read once.
template <typename T>
__global__ void __launch_bounds__(kWarpBlock)
    largestAndStatistics(const T *x, const int32_t *labels, float *max, float *out, Columns columns,
                         bool packs) {
  int64_t t = blockIdx.x, label = columns.of(labels[t]);
  const T *row = x + t * columns.width;
  const auto *neighbours = reinterpret_cast<const Pack<T, kNeighbours> *>(row);
  float atLabel = label < 0 ? 0.0f : toFloat(row[label]);
  int64_t whole = packs ? columns.count / kNeighbours : 0;
  Running own;
  for (int64_t c = threadIdx.x; c < whole; c += int64_t(blockDim.x) * kUnderWay) {
    Pack<T, kNeighbours> held[kUnderWay];
#pragma unroll
    for (int u = 0; u < kUnderWay; ++u)
      if (c + u * blockDim.x < whole)
        held[u] = neighbours[c + u * blockDim.x];
#pragma unroll
    for (int u = 0; u < kUnderWay; ++u)
      if (c + u * blockDim.x < whole)
        own.take(held[u]);
  }
  for (int64_t c = whole * kNeighbours + threadIdx.x; c < columns.count; c += blockDim.x)
    own.take(Pack<T, 1>{row[c]});
  own.raise(blockMax(own.most));
  float exponentials = blockSum(own.exponentials), sum = blockSum(own.sum);
  if (threadIdx.x != 0)
    return;
  max[t] = own.most;
  out[3 * t] = exponentials;
  out[3 * t + 1] = label < 0 ? 0.0f : atLabel - own.most;
  out[3 * t + 2] = sum;
}

__global__ void statisticsBack(const float *dy, Reader x, const float *max, const int32_t *labels,
                               Writer out, Columns columns, bool packs) {
  int64_t t = blockIdx.x, first = t * columns.width, label = columns.of(labels[t]);
  float most = max[t], exponential = dy[3 * t], atLabel = dy[3 * t + 1], each = dy[3 * t + 2];
  auto back = [&](int64_t c, float v) {
    float grad = c < columns.count ? exponential * expf(v - most) + each : 0.0f;
    return c == label ? grad + atLabel : grad;
  };
  int64_t whole = packs ? columns.width : 0;
  for (int64_t c = int64_t(threadIdx.x) * kNeighbours; c < whole;
       c += int64_t(blockDim.x) * kNeighbours) {
    float values[kNeighbours];
    x.load(first + c, values);
#pragma unroll
    for (int u = 0; u < kNeighbours; ++u)
      values[u] = back(c + u, values[u]);
    out.store(first + c, values);
  }
  for (int64_t c = whole + threadIdx.x; c < columns.width; c += blockDim.x)
    out.set(first + c, back(c, x[first + c]));
}

/// A block for each row of logits, of whole warps, no more than the row has work for.
unsigned threadsOfRow(const Columns &columns) {
  return unsigned(std::clamp<int64_t>(columns.width / kNeighbours / 32 * 32, 32, kWarpBlock));
}

/// One block. Sums in double, as a mean over very many tokens wants.
__global__ void sumLosses(const float *stats, const int32_t *labels, float *sum, float *count,
                          int64_t tokens, float smoothing, float classes) {
  __shared__ double sums[kWarpBlock], counts[kWarpBlock];
  double own = 0, counted = 0;
  for (int64_t t = threadIdx.x; t < tokens; t += blockDim.x) {
    if (labels[t] == kNoLabel)
      continue;
    float log = logf(stats[3 * t]);
    own += (1 - smoothing) * (log - stats[3 * t + 1]);
    if (smoothing > 0)
      own += smoothing * (log - stats[3 * t + 2] / classes);
    counted += 1;
  }
  sums[threadIdx.x] = own;
  counts[threadIdx.x] = counted;
  __syncthreads();
  if (threadIdx.x != 0)
    return;
  own = counted = 0;
  for (int i = 0; i < kWarpBlock; ++i) {
    own += sums[i];
    counted += counts[i];
  }
  *sum = float(own);
  *count = float(counted);
}

__global__ void lossBack(const float *dy, const float *stats, const int32_t *labels, float *out,
                         int64_t tokens, float smoothing, float classes) {
  for (int64_t t = threadNumber(); t < tokens; t += threadCount()) {
    bool counts = labels[t] != kNoLabel;
    out[3 * t] = counts ? *dy / stats[3 * t] : 0.0f;
    out[3 * t + 1] = counts ? -(1 - smoothing) * *dy : 0.0f;
    out[3 * t + 2] = counts ? -smoothing / classes * *dy : 0.0f;
  }
}

__global__ void divideAll(const float *a, const float *b, float *out, int64_t n) {
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    out[i] = b[i] == 0 ? 0.0f : a[i] / b[i];
}

} // namespace

Status ops::next_tokens(const Call &call) {
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  const int32_t *labels = call.in.size() > 1 ? call.input<int32_t>(1) : nullptr;
  auto run = [&]<typename Id>(Id) {
    shiftTokens<Id><<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
        call.in[0].data, labels, call.output<int32_t>(0), n, call.in[0].shape[1]);
    return launched(call);
  };
  return call.in[0].dtype == fb::DType::i64 ? run(int64_t()) : run(int32_t());
}

Status ops::row_max(const Call &call) {
  int64_t rows = call.out[0].elements();
  if (rows == 0)
    return {};
  Columns columns(call, call.in[0]);
  largest<<<unsigned(rows), threadsOfRow(columns), 0, call.stream()>>>(
      Reader(call.in[0]), call.output<float>(0), columns, inPacks(columns.width, call.in[0]));
  return launched(call);
}

Status ops::cross_entropy_stats(const Call &call) {
  int64_t rows = call.in[1].elements();
  if (rows == 0)
    return {};
  Columns columns(call, call.in[0]);
  statistics<<<unsigned(rows), threadsOfRow(columns), 0, call.stream()>>>(
      Reader(call.in[0]), call.input<float>(1), call.input<int32_t>(2), call.output<float>(0),
      columns, inPacks(columns.width, call.in[0]));
  return launched(call);
}

Status ops::row_max_stats(const Call &call) {
  int64_t rows = call.in[1].elements();
  if (rows == 0)
    return {};
  const TensorRef &logits = call.in[0];
  Columns columns(call, logits);
  auto run = [&]<typename T>(const T *x) {
    largestAndStatistics<<<unsigned(rows), threadsOfRow(columns), 0, call.stream()>>>(
        x, call.input<int32_t>(1), call.output<float>(0), call.output<float>(1), columns,
        inPacks(columns.width, logits));
    return launched(call);
  };
  return logits.dtype == fb::DType::bf16 ? run(call.input<bf16>(0)) : run(call.input<float>(0));
}

Status ops::cross_entropy_stats_grad(const Call &call) {
  int64_t rows = call.in[2].elements();
  if (rows == 0)
    return {};
  Columns columns(call, call.in[1]);
  statisticsBack<<<unsigned(rows), threadsOfRow(columns), 0, call.stream()>>>(
      call.input<float>(0), Reader(call.in[1]), call.input<float>(2), call.input<int32_t>(3),
      Writer(call.out[0]), columns, inPacks(columns.width, call.in[1], call.out[0]));
  return launched(call);
}

Status ops::cross_entropy(const Call &call) {
  sumLosses<<<1, kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<int32_t>(1), call.output<float>(0), call.output<float>(1),
      call.in[1].elements(), float(call.params.real("smoothing")),
      float(call.params.integer("classes")));
  return launched(call);
}

Status ops::cross_entropy_grad(const Call &call) {
  int64_t tokens = call.in[2].elements();
  if (tokens == 0)
    return {};
  lossBack<<<blocksOfThreads(tokens), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.input<int32_t>(2), call.output<float>(0),
      tokens, float(call.params.real("smoothing")), float(call.params.integer("classes")));
  return launched(call);
}

Status ops::ratio(const Call &call) {
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  divideAll<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.output<float>(0), n);
  return launched(call);
}

} // namespace moira::rt::cuda
