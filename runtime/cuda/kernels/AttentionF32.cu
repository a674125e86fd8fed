//===- AttentionF32.cu - attention in f32 -----------------------------------===//
// Online softmax over tiles of 64 keys for 64 queries of one head, multiply and add in f32. 256
// threads: thread (ty, tx) has queries ty*4..+3, and of scores the keys tx, tx+16, .., of results
// the columns tx*4..+3, +64, ..
//===----------------------------------------------------------------------===//
#include "AttentionTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kQueries = 64, kKeys = 64, kThreads = 256, kPad = 4;

/// `keyWidth`: of queries and keys, both parts; `valueWidth`: of values and results.
template <int keyWidth, int valueWidth> struct Layout {
  static constexpr int stride = keyWidth + kPad; // of queries and keys: rows in different banks
  static constexpr int weightStride = kKeys + kPad;
  static constexpr int queriesAt = 0, keysAt = queriesAt + kQueries * stride,
                       valuesAt = keysAt + kKeys * stride,
                       weightsAt = valuesAt + kKeys * valueWidth,
                       positionsAt = weightsAt + kQueries * weightStride,
                       masksAt = positionsAt + kKeys, words = masksAt + kKeys;
};

/// Rows of one operand: the first at `at`, of `width` values.
struct Rows {
  const float *at;
  int64_t stride;
  int32_t width;
};

/// rows × width values with `stride`: of each row `first`'s and then `second`'s values, zeros past
/// them and past `count` rows.
template <int rows, int width, int stride>
__device__ void loadRows(float *tile, Rows first, Rows second, int32_t count) {
  for (int i = int(threadIdx.x); i < rows * width; i += kThreads) {
    int row = i / width, column = i % width, later = column - first.width;
    float value = 0;
    if (row < count && later < 0)
      value = first.at[row * first.stride + column];
    else if (row < count && later < second.width)
      value = second.at[row * second.stride + later];
    tile[row * stride + column] = value;
  }
}

/// Of the smallest tiles two fit a multiprocessor's shared memory.
template <int keyWidth, int valueWidth>
__global__ void __launch_bounds__(kThreads, keyWidth <= 64 ? 2 : 1)
    attendTiles(AttentionArgs a, int64_t queryTiles) {
  using L = Layout<keyWidth, valueWidth>;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  float *shared = reinterpret_cast<float *>(sharedBytes);
  float *queryTile = shared + L::queriesAt, *keyTile = shared + L::keysAt,
        *valueTile = shared + L::valuesAt, *weights = shared + L::weightsAt;
  int32_t *positions = reinterpret_cast<int32_t *>(shared + L::positionsAt),
          *masks = reinterpret_cast<int32_t *>(shared + L::masksAt);

  const int64_t query0 = (queryTiles - 1 - blockIdx.x % queryTiles) * kQueries;
  const int64_t h = blockIdx.x / queryTiles % a.heads, b = blockIdx.x / queryTiles / a.heads;
  const int32_t queries = int32_t(min(int64_t(kQueries), a.queries - query0));
  const int64_t keyStride = int64_t(a.kvHeads) * a.keyDim,
                valueStride = int64_t(a.kvHeads) * a.valueDim;
  const int64_t row0 = (b * a.queries + query0) * a.heads + h, key00 = b * a.keys,
                head0 = key00 * a.kvHeads + kvHeadOf(a, h);
  const float *k = static_cast<const float *>(a.k) + head0 * a.keyDim,
              *k2 = static_cast<const float *>(a.k2) + key00 * a.sharedDim,
              *v = static_cast<const float *>(a.v) + head0 * a.valueDim;
  float *out = static_cast<float *>(a.out) + row0 * a.valueDim;

  int32_t least, greatest;
  queryRange(a, query0, queries, least, greatest);
  loadRows<kQueries, keyWidth, L::stride>(
      queryTile,
      {static_cast<const float *>(a.q) + row0 * a.keyDim, int64_t(a.heads) * a.keyDim, a.keyDim},
      {static_cast<const float *>(a.q2) + row0 * a.sharedDim, int64_t(a.heads) * a.sharedDim,
       a.sharedDim},
      queries);

  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  const int depth = (a.keyDim + a.sharedDim + 3) / 4 * 4;
  int32_t queryPosition[4];
  float largest[4], total[4], sum[4][valueWidth / 64][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int row = ty * 4 + i;
    queryPosition[i] = row < queries ? queryPositionOf(a, query0 + row) : least;
    // A sink is a key that was seen before all others and adds nothing to the result. Totals are
    // kept in 16 parts.
    largest[i] = a.sinks ? a.sinks[h] : -INFINITY;
    total[i] = a.sinks && tx == 0 ? 1.0f : 0.0f;
  }

  for (int64_t key0 = 0; key0 < a.keys; key0 += kKeys) {
    const int32_t count = int32_t(min(int64_t(kKeys), a.keys - key0));
    Sight sight = sightOf(a, b, key0, count, kKeys, least, greatest);
    if (sight == Sight::none) // the same in every warp
      continue;
    __syncthreads(); // the tile before is used up
    loadRows<kKeys, keyWidth, L::stride>(keyTile, {k + key0 * keyStride, keyStride, a.keyDim},
                                         {k2 + key0 * a.sharedDim, a.sharedDim, a.sharedDim},
                                         count);
    loadRows<kKeys, valueWidth, valueWidth>(
        valueTile, {v + key0 * valueStride, valueStride, a.valueDim}, {nullptr, 0, 0}, count);
    if (int j = int(threadIdx.x); j < kKeys) {
      positions[j] = j < count ? keyPositionOf(a, key0 + j) : 0;
      masks[j] = j < count ? keyMaskOf(a, b, key0 + j) : 0;
    }
    __syncthreads();

    float score[4][4] = {};
    for (int d = 0; d < depth; d += 4) {
      float4 left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        left[i] = *reinterpret_cast<const float4 *>(queryTile + (ty * 4 + i) * L::stride + d);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        right[j] = *reinterpret_cast<const float4 *>(keyTile + (tx + j * 16) * L::stride + d);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          score[i][j] = fmaf(left[i].x, right[j].x, score[i][j]);
          score[i][j] = fmaf(left[i].y, right[j].y, score[i][j]);
          score[i][j] = fmaf(left[i].z, right[j].z, score[i][j]);
          score[i][j] = fmaf(left[i].w, right[j].w, score[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = largest[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int key = tx + j * 16;
        bool visible = sight == Sight::all || sees(a, queryPosition[i], positions[key], masks[key]);
        float added = 0;
        if (a.bias && key < count && ty * 4 + i < queries)
          added = a.bias[(h * a.queries + query0 + ty * 4 + i) * a.keys + key0 + key];
        score[i][j] = visible ? score[i][j] * a.scale + added : -INFINITY;
        most = fmaxf(most, score[i][j]);
      }
      for (int step = 8; step > 0; step /= 2) // over tx: half a warp
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
      float shift = most == -INFINITY ? 0.0f : most, shrink = expf(largest[i] - shift);
      largest[i] = most;
      total[i] *= shrink;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float weight = expf(score[i][j] - shift);
        total[i] += weight;
        weights[(ty * 4 + i) * L::weightStride + tx + j * 16] = weight;
      }
#pragma unroll
      for (int c = 0; c < valueWidth / 64; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sum[i][c][e] *= shrink;
    }
    __syncwarp(); // a row of weights belongs to half a warp
    for (int j = 0; j < kKeys; ++j) {
      float weight[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weight[i] = weights[(ty * 4 + i) * L::weightStride + j];
#pragma unroll
      for (int c = 0; c < valueWidth / 64; ++c) {
        float4 value =
            *reinterpret_cast<const float4 *>(valueTile + j * valueWidth + c * 64 + tx * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[i][c][0] = fmaf(weight[i], value.x, sum[i][c][0]);
          sum[i][c][1] = fmaf(weight[i], value.y, sum[i][c][1]);
          sum[i][c][2] = fmaf(weight[i], value.z, sum[i][c][2]);
          sum[i][c][3] = fmaf(weight[i], value.w, sum[i][c][3]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    for (int step = 8; step > 0; step /= 2)
      total[i] += __shfl_xor_sync(kAllLanes, total[i], step);
    int row = ty * 4 + i;
    if (row >= queries)
      continue;
    float factor = total[i] == 0 ? 0.0f : 1.0f / total[i];
#pragma unroll
    for (int c = 0; c < valueWidth / 64; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int column = c * 64 + tx * 4 + e;
        if (column < a.valueDim)
          out[int64_t(row) * a.heads * a.valueDim + column] = sum[i][c][e] * factor;
      }
  }
}

template <int keyWidth, int valueWidth> Status launch(const Call &call, const AttentionArgs &a) {
  int64_t queryTiles = ceilDiv(a.queries, kQueries), blocks = queryTiles * a.heads * a.batch;
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of queries", (long long)blocks));
  auto kernel = attendTiles<keyWidth, valueWidth>;
  constexpr size_t bytes = Layout<keyWidth, valueWidth>::words * sizeof(float);
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  kernel<<<unsigned(blocks), kThreads, bytes, call.stream()>>>(a, queryTiles);
  return launched(call);
}

} // namespace

Status launchAttentionF32(const Call &call, const AttentionArgs &a) {
  int32_t keys = a.keyDim + a.sharedDim, values = a.valueDim;
  return keys <= 64 && values <= 64     ? launch<64, 64>(call, a)
         : keys <= 128 && values <= 128 ? launch<128, 128>(call, a)
         : keys <= 192 && values <= 128 ? launch<192, 128>(call, a)
                                        : launch<256, 256>(call, a);
}

} // namespace moira::rt::cuda
