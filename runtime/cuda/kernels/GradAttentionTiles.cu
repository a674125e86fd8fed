//===- GradAttentionTiles.cu - attention_grad by tiles ------------------------===//
// The same sums as GradAttention.cu's, for heads of up to 128 dimensions without a second part: a
// block takes 64 queries (or keys) and goes over the keys (or queries) 64 at a time, so that what
// it reads is used 64 times. f32 arithmetic; every output has one block, so the order of its sums
// is one. Nothing of the size of the scores is stored.
//===----------------------------------------------------------------------===//
#include "GradAttention.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kTile = 64, kThreads = 256;
constexpr int kScoreStride =
    kTile + 1; // of scores in shared memory, so that columns meet no bank twice

/// A thread makes scores (y + 16 i, x + 16 j) of a tile, and of a row's dimensions x + 16 c.
__device__ int threadX() { return int(threadIdx.x) % 16; }
__device__ int threadY() { return int(threadIdx.x) / 16; }

/// Rows [first, first + kTile) of a head, `apart` elements from one to the next: zeros past
/// `count`.
__device__ void loadRows(float *tile, int stride, const Reader &x, int64_t head, int64_t apart,
                         int64_t first, int64_t count, int width) {
  for (int r = int(threadIdx.x) / 32; r < kTile; r += kThreads / 32)
    for (int d = laneNumber(); d < width; d += 32)
      tile[r * stride + d] = first + r < count ? x[head + (first + r) * apart + d] : 0.0f;
}

/// sum[i][j] = the product of row y + 16 i of a and row x + 16 j of b.
__device__ void multiplyRows(const float *a, const float *b, int stride, int width,
                             float (&sum)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sum[i][j] = 0;
  a += threadY() * stride;
  b += threadX() * stride;
#pragma unroll 4
  for (int d = 0; d < width; ++d) {
    float left[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = a[16 * i * stride + d];
      right[i] = b[16 * i * stride + d];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sum[i][j] += left[i] * right[j];
  }
}

/// sum[i][c] += Σ over t of weights[t · along + (y + 16 i) · across] · rows[t][x + 16 c].
template <int kColumns>
__device__ void addRows(const float *weights, int along, int across, const float *rows, int stride,
                        int width, float (&sum)[4][kColumns]) {
  weights += threadY() * across;
#pragma unroll 2
  for (int t = 0; t < kTile; ++t) {
    float left[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      left[i] = weights[t * along + 16 * i * across];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      int d = threadX() + 16 * c;
      float right = d < width ? rows[t * stride + d] : 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[i][c] += left[i] * right;
    }
  }
}

template <int kColumns>
__device__ void storeRows(const Writer &out, int64_t head, int64_t apart, int64_t first,
                          int64_t count, int width, const float (&sum)[4][kColumns]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int64_t row = first + threadY() + 16 * i;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      int d = threadX() + 16 * c;
      if (row < count && d < width)
        out.set(head + row * apart + d, sum[i][c]);
    }
  }
}

/// Which of this thread's 4 x 4 scores of queries from i0 and keys from j0 are seen: a bit for
/// each.
__device__ uint32_t seenBits(const AttentionArgs &a, int64_t b, int64_t i0, int64_t j0) {
  uint32_t bits = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    int64_t key = j0 + threadX() + 16 * j;
    if (key >= a.keys)
      continue;
    int32_t position = keyPositionOf(a, key), mask = keyMaskOf(a, b, key);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int64_t query = i0 + threadY() + 16 * i;
      if (query < a.queries && sees(a, queryPositionOf(a, query), position, mask))
        bits |= 1u << (4 * i + j);
    }
  }
  return bits;
}

__device__ float biasOf(const AttentionArgs &a, int64_t h, int64_t i, int64_t j) {
  return a.bias ? a.bias[(h * a.queries + i) * a.keys + j] : 0.0f;
}

/// Where rows of a batch and head begin, and how far they are apart.
struct Rows {
  int64_t head, apart;
};
__device__ Rows rowsOf(int64_t b, int64_t count, int64_t h, int64_t heads, int64_t width) {
  return {(b * count * heads + h) * width, heads * width};
}

/// Over the 16 threads of a row of scores, which are half a warp.
template <typename Join> __device__ float joinRow(float v, Join join) {
  for (int step = 8; step > 0; step /= 2)
    v = join(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

extern __shared__ float sharedMemory[];

/// Largest score, sum of weights and mean of what flows back, of 64 queries of a head.
__global__ void __launch_bounds__(kThreads) summariseTiles(GradArgs g, int stride) {
  const AttentionArgs &a = g.a;
  int64_t i0 = int64_t(blockIdx.x) * kTile, h = blockIdx.y, b = blockIdx.z;
  float *q = sharedMemory, *dy = q + kTile * stride, *k = dy + kTile * stride,
        *v = k + kTile * stride;
  int64_t kv = kvHeadOf(a, h);
  Rows queries = rowsOf(b, a.queries, h, a.heads, a.keyDim),
       backs = rowsOf(b, a.queries, h, a.heads, a.valueDim),
       keys = rowsOf(b, a.keys, kv, a.kvHeads, a.keyDim),
       values = rowsOf(b, a.keys, kv, a.kvHeads, a.valueDim);
  loadRows(q, stride, g.q, queries.head, queries.apart, i0, a.queries, a.keyDim);
  loadRows(dy, stride, g.dy, backs.head, backs.apart, i0, a.queries, a.valueDim);
  float largest[4], total[4], mean[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    largest[i] = a.sinks ? a.sinks[h] : -INFINITY;
    total[i] = a.sinks ? 1.0f : 0.0f;
    mean[i] = 0;
  }
  for (int64_t j0 = 0; j0 < a.keys; j0 += kTile) {
    uint32_t seen = seenBits(a, b, i0, j0);
    if (!__syncthreads_or(int(seen != 0))) // also: nobody reads the last keys any more
      continue;
    loadRows(k, stride, g.k, keys.head, keys.apart, j0, a.keys, a.keyDim);
    loadRows(v, stride, g.v, values.head, values.apart, j0, a.keys, a.valueDim);
    __syncthreads();
    float score[4][4], back[4][4];
    multiplyRows(q, k, stride, a.keyDim, score);
    multiplyRows(dy, v, stride, a.valueDim, back);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (!(seen >> (4 * i + j) & 1))
          continue;
        score[i][j] =
            score[i][j] * a.scale + biasOf(a, h, i0 + threadY() + 16 * i, j0 + threadX() + 16 * j);
        most = fmaxf(most, score[i][j]);
      }
      most = fmaxf(largest[i], joinRow(most, [](float x, float y) { return fmaxf(x, y); }));
      float weights = 0, weighted = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (seen >> (4 * i + j) & 1) {
          float weight = expf(score[i][j] - most);
          weights += weight;
          weighted += weight * back[i][j];
        }
      weights = joinRow(weights, [](float x, float y) { return x + y; });
      weighted = joinRow(weighted, [](float x, float y) { return x + y; });
      float shrink = largest[i] == -INFINITY ? 0.0f : expf(largest[i] - most);
      total[i] = total[i] * shrink + weights;
      mean[i] = mean[i] * shrink + weighted;
      largest[i] = most;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int64_t query = i0 + threadY() + 16 * i;
    if (threadX() != 0 || query >= a.queries)
      continue;
    int64_t row = (b * a.queries + query) * a.heads + h;
    g.largest[row] = largest[i];
    g.total[row] = total[i];
    g.mean[row] = total[i] == 0 ? 0.0f : mean[i] / total[i];
  }
}

/// The weights of this thread's scores, and the cotangents of what the scale multiplies; zero where
/// they are not seen. `weights` null: only the latter.
__device__ void storeWeights(const GradArgs &g, int64_t b, int64_t h, int64_t i0, int64_t j0,
                             uint32_t seen, const float (&score)[4][4], const float (&back)[4][4],
                             float *weights, float *grads) {
  const AttentionArgs &a = g.a;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int r = threadY() + 16 * i;
    bool any = (seen >> (4 * i) & 15) != 0;
    int64_t row = any ? (b * a.queries + i0 + r) * a.heads + h : 0;
    float largest = any ? g.largest[row] : 0.0f, total = any ? g.total[row] : 1.0f,
          mean = any ? g.mean[row] : 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int c = threadX() + 16 * j;
      float weight = 0, grad = 0;
      if (seen >> (4 * i + j) & 1) {
        weight = expf(score[i][j] * a.scale + biasOf(a, h, i0 + r, j0 + c) - largest) / total;
        grad = weight * (back[i][j] - mean) * a.scale;
      }
      if (weights)
        weights[r * kScoreStride + c] = weight;
      grads[r * kScoreStride + c] = grad;
    }
  }
}

/// dq of 64 queries of a head.
template <int kColumns>
__global__ void __launch_bounds__(kThreads) queryTiles(GradArgs g, int stride, Writer dq) {
  const AttentionArgs &a = g.a;
  int64_t i0 = int64_t(blockIdx.x) * kTile, h = blockIdx.y, b = blockIdx.z;
  float *q = sharedMemory, *dy = q + kTile * stride, *k = dy + kTile * stride,
        *v = k + kTile * stride, *grads = v + kTile * stride;
  int64_t kv = kvHeadOf(a, h);
  Rows queries = rowsOf(b, a.queries, h, a.heads, a.keyDim),
       backs = rowsOf(b, a.queries, h, a.heads, a.valueDim),
       keys = rowsOf(b, a.keys, kv, a.kvHeads, a.keyDim),
       values = rowsOf(b, a.keys, kv, a.kvHeads, a.valueDim);
  loadRows(q, stride, g.q, queries.head, queries.apart, i0, a.queries, a.keyDim);
  loadRows(dy, stride, g.dy, backs.head, backs.apart, i0, a.queries, a.valueDim);
  float sum[4][kColumns] = {};
  for (int64_t j0 = 0; j0 < a.keys; j0 += kTile) {
    uint32_t seen = seenBits(a, b, i0, j0);
    if (!__syncthreads_or(int(seen != 0)))
      continue;
    loadRows(k, stride, g.k, keys.head, keys.apart, j0, a.keys, a.keyDim);
    loadRows(v, stride, g.v, values.head, values.apart, j0, a.keys, a.valueDim);
    __syncthreads();
    float score[4][4], back[4][4];
    multiplyRows(q, k, stride, a.keyDim, score);
    multiplyRows(dy, v, stride, a.valueDim, back);
    storeWeights(g, b, h, i0, j0, seen, score, back, nullptr, grads);
    __syncthreads();
    addRows<kColumns>(grads, 1, kScoreStride, k, stride, a.keyDim, sum);
  }
  storeRows<kColumns>(dq, queries.head, queries.apart, i0, a.queries, a.keyDim, sum);
}

/// dk and dv of 64 keys of a key/value head, over all query heads that read it.
template <int kColumns>
__global__ void __launch_bounds__(kThreads) keyTiles(GradArgs g, int stride, Writer dk, Writer dv) {
  const AttentionArgs &a = g.a;
  int64_t j0 = int64_t(blockIdx.x) * kTile, kv = blockIdx.y, b = blockIdx.z;
  float *q = sharedMemory, *dy = q + kTile * stride, *k = dy + kTile * stride,
        *v = k + kTile * stride, *weights = v + kTile * stride,
        *grads = weights + kTile * kScoreStride;
  Rows keys = rowsOf(b, a.keys, kv, a.kvHeads, a.keyDim),
       values = rowsOf(b, a.keys, kv, a.kvHeads, a.valueDim);
  loadRows(k, stride, g.k, keys.head, keys.apart, j0, a.keys, a.keyDim);
  loadRows(v, stride, g.v, values.head, values.apart, j0, a.keys, a.valueDim);
  float keySum[4][kColumns] = {}, valueSum[4][kColumns] = {};
  for (int64_t h = 0; h < a.heads; ++h) {
    if (kvHeadOf(a, h) != kv)
      continue;
    Rows queries = rowsOf(b, a.queries, h, a.heads, a.keyDim),
         backs = rowsOf(b, a.queries, h, a.heads, a.valueDim);
    for (int64_t i0 = 0; i0 < a.queries; i0 += kTile) {
      uint32_t seen = seenBits(a, b, i0, j0);
      if (!__syncthreads_or(int(seen != 0)))
        continue;
      loadRows(q, stride, g.q, queries.head, queries.apart, i0, a.queries, a.keyDim);
      loadRows(dy, stride, g.dy, backs.head, backs.apart, i0, a.queries, a.valueDim);
      __syncthreads();
      float score[4][4], back[4][4];
      multiplyRows(q, k, stride, a.keyDim, score);
      multiplyRows(dy, v, stride, a.valueDim, back);
      storeWeights(g, b, h, i0, j0, seen, score, back, weights, grads);
      __syncthreads();
      addRows<kColumns>(grads, kScoreStride, 1, q, stride, a.keyDim, keySum);
      addRows<kColumns>(weights, kScoreStride, 1, dy, stride, a.valueDim, valueSum);
    }
  }
  storeRows<kColumns>(dk, keys.head, keys.apart, j0, a.keys, a.keyDim, keySum);
  storeRows<kColumns>(dv, values.head, values.apart, j0, a.keys, a.valueDim, valueSum);
}

template <typename... Params, typename... Args>
Status launchTiles(const Call &call, void (*kernel)(Params...), dim3 blocks, size_t bytes,
                   Args... args) {
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  kernel<<<blocks, kThreads, bytes, call.stream()>>>(args...);
  return launched(call);
}

} // namespace

bool attentionGradFitsTiles(const AttentionArgs &args) {
  constexpr int32_t kMost = 128;
  constexpr int64_t kFew = 32; // queries or keys that make no tile worth its while
  return args.sharedDim == 0 && args.keyDim <= kMost && args.valueDim <= kMost &&
         args.queries >= kFew && args.keys >= kFew && args.heads <= 65535 && args.batch <= 65535;
}

Status launchAttentionGradTiles(const Call &call, const GradArgs &g, const GradResults &made) {
  const AttentionArgs &a = g.a;
  int width = std::max(a.keyDim, a.valueDim), stride = width | 1; // odd: no bank is met twice
  size_t rows = sizeof(float) * 4 * kTile * size_t(stride),
         scores = sizeof(float) * kTile * kScoreStride;
  dim3 byQueries(unsigned(ceilDiv(a.queries, kTile)), unsigned(a.heads), unsigned(a.batch));
  dim3 byKeys(unsigned(ceilDiv(a.keys, kTile)), unsigned(a.kvHeads), unsigned(a.batch));
  if (Status s = launchTiles(call, summariseTiles, byQueries, rows, g, stride); !s)
    return s;
  auto launchBoth = [&]<int kColumns>(std::integral_constant<int, kColumns>) {
    Status s = launchTiles(call, queryTiles<kColumns>, byQueries, rows + scores, g, stride, made.q);
    return s ? launchTiles(call, keyTiles<kColumns>, byKeys, rows + 2 * scores, g, stride, made.k,
                           made.v)
             : s;
  };
  return width <= 64 ? launchBoth(std::integral_constant<int, 4>())
                     : launchBoth(std::integral_constant<int, 8>());
}

} // namespace moira::rt::cuda
