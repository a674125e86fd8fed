//===- AttentionBf16.cu - attention on tensor cores -------------------------===//
// Online softmax over tiles of 64 keys for 64 queries of one head: scores, maxima, sums and results
// in f32, the weights rounded to bf16 for the second product. The next tile of keys and values that
// some query sees is copied while this one is worked on.
//===----------------------------------------------------------------------===//
#include "AttentionTools.h"
#include "Tiles.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kQueries = 64, kKeys = 64, kThreads = 128;

/// Shared memory for keys of up to `keyWidth` values, both parts, and values of up to `valueWidth`:
/// queries, and two stages of keys, values and the keys' positions and masks.
template <int keyWidth, int valueWidth> struct Layout {
  static constexpr int queryValues = kQueries * keyWidth, keyValues = kKeys * keyWidth,
                       valueValues = kKeys * valueWidth;
  static constexpr size_t positionsAt =
      size_t(queryValues + 2 * keyValues + 2 * valueValues) * sizeof(bf16);
  static constexpr size_t bytes = positionsAt + 4 * kKeys * sizeof(int32_t);
};

/// As loadTile, of rows in two aligned parts: `width` values at rowAt(i), and `moreWidth` behind
/// them at moreAt(i).
template <int rows, int chunks, typename RowAt, typename MoreAt>
__device__ void loadParts(bf16 *tile, const bf16 *readable, int width, RowAt rowAt, int moreWidth,
                          MoreAt moreAt) {
#pragma unroll
  for (int at = 0; at < rows * chunks; at += kThreads) {
    int i = at + int(threadIdx.x), row = i / chunks, chunk = i % chunks, value = chunk * kChunk;
    const bf16 *from = value < width               ? rowAt(row)
                       : value < width + moreWidth ? moreAt(row)
                                                   : nullptr;
    if (from)
      from += value < width ? value : value - width;
    copyAsync(tile + chunkOffset<chunks>(row, chunk), from ? from : readable, from != nullptr);
  }
}

/// `aligned`: all operands are 16-byte aligned and the head dimensions are multiples of 8. Only
/// then may there be a q2.
template <int keyWidth, int valueWidth, bool aligned>
__global__ void __launch_bounds__(kThreads) attendTiles(AttentionArgs a, int64_t queryTiles) {
  using L = Layout<keyWidth, valueWidth>;
  constexpr int keyChunks = keyWidth / kChunk, valueChunks = valueWidth / kChunk;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  bf16 *queryTile = reinterpret_cast<bf16 *>(sharedBytes), *keyTiles = queryTile + L::queryValues,
       *valueTiles = keyTiles + 2 * L::keyValues;
  int32_t *positions = reinterpret_cast<int32_t *>(sharedBytes + L::positionsAt),
          *masks = positions + 2 * kKeys;

  // Later queries see more keys: they start first.
  const int64_t query0 = (queryTiles - 1 - blockIdx.x % queryTiles) * kQueries;
  const int64_t h = blockIdx.x / queryTiles % a.heads, b = blockIdx.x / queryTiles / a.heads;
  const int32_t queries = int32_t(min(int64_t(kQueries), a.queries - query0));
  const int64_t keyStride = int64_t(a.kvHeads) * a.keyDim,
                valueStride = int64_t(a.kvHeads) * a.valueDim;
  const int64_t row0 = (b * a.queries + query0) * a.heads + h, key00 = b * a.keys,
                head0 = key00 * a.kvHeads + kvHeadOf(a, h);
  const bf16 *q = static_cast<const bf16 *>(a.q) + row0 * a.keyDim,
             *q2 = static_cast<const bf16 *>(a.q2) + row0 * a.sharedDim,
             *k = static_cast<const bf16 *>(a.k) + head0 * a.keyDim,
             *k2 = static_cast<const bf16 *>(a.k2) + key00 * a.sharedDim,
             *v = static_cast<const bf16 *>(a.v) + head0 * a.valueDim;
  bf16 *out = static_cast<bf16 *>(a.out) + row0 * a.valueDim;

  int32_t least, greatest;
  queryRange(a, query0, queries, least, greatest);
  const int64_t keyTileCount = (a.keys + kKeys - 1) / kKeys;
  auto keysOf = [&](int64_t tile) { return int32_t(min(int64_t(kKeys), a.keys - tile * kKeys)); };
  // The first tile from `tile` on that some query sees.
  auto nextTile = [&](int64_t tile, Sight &sight) {
    for (; tile < keyTileCount; ++tile) {
      sight = sightOf(a, b, tile * kKeys, keysOf(tile), kKeys, least, greatest);
      if (sight != Sight::none)
        break;
    }
    return tile;
  };
  auto load = [&](int64_t tile, int stage) {
    const int64_t key0 = tile * kKeys;
    const int32_t count = keysOf(tile);
    auto keyAt = [&](int row) { return row < count ? k + (key0 + row) * keyStride : nullptr; };
    bf16 *keyTile = keyTiles + stage * L::keyValues;
    if (aligned && a.q2)
      loadParts<kKeys, keyChunks>(keyTile, k, a.keyDim, keyAt, a.sharedDim, [&](int row) {
        return row < count ? k2 + (key0 + row) * a.sharedDim : nullptr;
      });
    else
      loadTile<kKeys, keyChunks, kThreads, aligned>(keyTile, k, a.keyDim, keyAt);
    loadTile<kKeys, valueChunks, kThreads, aligned>(
        valueTiles + stage * L::valueValues, v, a.valueDim,
        [&](int row) { return row < count ? v + (key0 + row) * valueStride : nullptr; });
    if (int j = int(threadIdx.x); j < kKeys) {
      positions[stage * kKeys + j] = j < count ? keyPositionOf(a, key0 + j) : 0;
      masks[stage * kKeys + j] = j < count ? keyMaskOf(a, b, key0 + j) : 0;
    }
  };

  Sight sight = Sight::none;
  int64_t tile = nextTile(0, sight);
  auto queryAt = [&](int row) {
    return row < queries ? q + int64_t(row) * a.heads * a.keyDim : nullptr;
  };
  if (aligned && a.q2)
    loadParts<kQueries, keyChunks>(queryTile, q, a.keyDim, queryAt, a.sharedDim, [&](int row) {
      return row < queries ? q2 + int64_t(row) * a.heads * a.sharedDim : nullptr;
    });
  else
    loadTile<kQueries, keyChunks, kThreads, aligned>(queryTile, q, a.keyDim, queryAt);
  if (tile < keyTileCount)
    load(tile, 0);
  commitCopies();

  // This warp's 16 queries; this thread's are rows lane/4 and lane/4 + 8 of them.
  const int lane = laneNumber(), warpRow = int(threadIdx.x) / 32 * 16;
  const int keySteps = (a.keyDim + a.sharedDim + 15) / 16, valueSteps = (a.valueDim + 15) / 16;
  // Exponentials are powers of two.
  constexpr float perNat = 1.44269504088896341f;
  const float scale = a.scale * perNat;
  int32_t queryPosition[2];
  float largest[2], total[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int row = warpRow + lane / 4 + r * 8;
    queryPosition[r] = row < queries ? queryPositionOf(a, query0 + row) : least;
    // A sink is a key that was seen before all others and adds nothing to the result. Totals are
    // kept in 4 parts.
    largest[r] = a.sinks ? a.sinks[h] * perNat : -INFINITY;
    total[r] = a.sinks && lane % 4 == 0 ? 1.0f : 0.0f;
  }
  float sum[valueWidth / 8][4] = {};

  for (int stage = 0; tile < keyTileCount; stage ^= 1) {
    Sight nextSight = Sight::none;
    int64_t next = nextTile(tile + 1, nextSight);
    if (next < keyTileCount)
      load(next, stage ^ 1);
    commitCopies();
    waitCopies<1>();
    __syncthreads();

    const bf16 *keyTile = keyTiles + stage * L::keyValues,
               *valueTile = valueTiles + stage * L::valueValues;
    float score[kKeys / 8][4] = {};
    for (int step = 0; step < keySteps; ++step) {
      uint32_t left[4];
      loadA<keyChunks>(left, queryTile, warpRow, step);
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t right[4];
        loadB<keyChunks>(right, keyTile, j * 16, step);
        multiplyAdd(score[j * 2], left, right[0], right[1]);
        multiplyAdd(score[j * 2 + 1], left, right[2], right[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        int key = j * 8 + lane % 4 * 2 + c % 2, at = stage * kKeys + key,
            row = warpRow + lane / 4 + c / 2 * 8;
        bool visible =
            sight == Sight::all || sees(a, queryPosition[c / 2], positions[at], masks[at]);
        float added = 0;
        if (a.bias && row < queries && tile * kKeys + key < a.keys)
          added = a.bias[(h * a.queries + query0 + row) * a.keys + tile * kKeys + key] * perNat;
        score[j][c] = visible ? score[j][c] * scale + added : -INFINITY;
      }
    float shrink[2], shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = largest[r];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        most = fmaxf(most, fmaxf(score[j][r * 2], score[j][r * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      shift[r] = most == -INFINITY ? 0.0f : most; // no key seen so far: all weights are 2^-inf
      shrink[r] = exp2f(largest[r] - shift[r]);
      largest[r] = most;
      total[r] *= shrink[r];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        score[j][c] = exp2f(score[j][c] - shift[c / 2]);
        total[c / 2] += score[j][c];
      }
#pragma unroll
    for (int d = 0; d < valueWidth / 8; ++d)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        sum[d][c] *= shrink[c / 2];
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t left[4] = {packPair(score[j * 2][0], score[j * 2][1]),
                          packPair(score[j * 2][2], score[j * 2][3]),
                          packPair(score[j * 2 + 1][0], score[j * 2 + 1][1]),
                          packPair(score[j * 2 + 1][2], score[j * 2 + 1][3])};
#pragma unroll
      for (int d = 0; d < valueWidth / 16; ++d) {
        if (d >= valueSteps)
          break;
        uint32_t right[4];
        loadBTransposed<valueChunks>(right, valueTile, j * 16, d);
        multiplyAdd(sum[d * 2], left, right[0], right[1]);
        multiplyAdd(sum[d * 2 + 1], left, right[2], right[3]);
      }
    }
    __syncthreads(); // the stage is free
    tile = next;
    sight = nextSight;
  }
  waitCopies<0>();

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 1);
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 2);
    int row = warpRow + lane / 4 + r * 8;
    if (row >= queries)
      continue;
    float factor = total[r] == 0 ? 0.0f : 1.0f / total[r];
#pragma unroll
    for (int d = 0; d < valueWidth / 8; ++d) {
      int column = d * 8 + lane % 4 * 2;
      float low = sum[d][r * 2] * factor, high = sum[d][r * 2 + 1] * factor;
      bf16 *to = out + int64_t(row) * a.heads * a.valueDim + column;
      if constexpr (aligned) {
        if (column < a.valueDim)
          *reinterpret_cast<uint32_t *>(to) = packPair(low, high);
      } else {
        if (column < a.valueDim)
          to[0] = fromFloat<bf16>(low);
        if (column + 1 < a.valueDim)
          to[1] = fromFloat<bf16>(high);
      }
    }
  }
}

template <int keyWidth, int valueWidth, bool aligned>
Status launch(const Call &call, const AttentionArgs &a) {
  int64_t queryTiles = ceilDiv(a.queries, kQueries), blocks = queryTiles * a.heads * a.batch;
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of queries", (long long)blocks));
  auto kernel = attendTiles<keyWidth, valueWidth, aligned>;
  constexpr size_t bytes = Layout<keyWidth, valueWidth>::bytes;
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  kernel<<<unsigned(blocks), kThreads, bytes, call.stream()>>>(a, queryTiles);
  return launched(call);
}

} // namespace

Status launchAttentionBf16(const Call &call, const AttentionArgs &a) {
  size_t addresses = addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out) |
                     addressOf(a.q2) | addressOf(a.k2);
  bool aligned = addresses % 16 == 0 && a.keyDim % kChunk == 0 && a.sharedDim % kChunk == 0 &&
                 a.valueDim % kChunk == 0;
  auto choose =
      [&]<int keyWidth, int valueWidth>(std::integer_sequence<int, keyWidth, valueWidth>) {
        return aligned ? launch<keyWidth, valueWidth, true>(call, a)
                       : launch<keyWidth, valueWidth, false>(call, a);
      };
  int32_t keys = a.keyDim + a.sharedDim, values = a.valueDim;
  if (keys <= 64 && values <= 64)
    return choose(std::integer_sequence<int, 64, 64>());
  if (keys <= 128 && values <= 128)
    return choose(std::integer_sequence<int, 128, 128>());
  if (keys <= 192 && values <= 128)
    return choose(std::integer_sequence<int, 192, 128>());
  return choose(std::integer_sequence<int, 256, 256>());
}

} // namespace moira::rt::cuda
