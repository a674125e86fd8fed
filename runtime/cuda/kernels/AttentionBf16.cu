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

/// Shared memory for head dimensions up to `width`: queries, and two stages of keys, values and the
/// keys' positions and masks.
template <int width> struct Layout {
  static constexpr int queryValues = kQueries * width, keyValues = kKeys * width;
  static constexpr size_t positionsAt = size_t(queryValues + 4 * keyValues) * sizeof(bf16);
  static constexpr size_t bytes = positionsAt + 4 * kKeys * sizeof(int32_t);
};

/// `aligned`: all operands are 16-byte aligned and the head dimension is a multiple of 8.
template <int width, bool aligned>
__global__ void __launch_bounds__(kThreads) attendTiles(AttentionArgs a, int64_t queryTiles) {
  using L = Layout<width>;
  constexpr int chunks = width / kChunk;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  bf16 *queryTile = reinterpret_cast<bf16 *>(sharedBytes), *keyTiles = queryTile + L::queryValues,
       *valueTiles = keyTiles + 2 * L::keyValues;
  int32_t *positions = reinterpret_cast<int32_t *>(sharedBytes + L::positionsAt),
          *masks = positions + 2 * kKeys;

  // Later queries see more keys: they start first.
  const int64_t query0 = (queryTiles - 1 - blockIdx.x % queryTiles) * kQueries;
  const int64_t h = blockIdx.x / queryTiles % a.heads, b = blockIdx.x / queryTiles / a.heads;
  const int32_t queries = int32_t(min(int64_t(kQueries), a.queries - query0));
  const int64_t queryStride = int64_t(a.heads) * a.headDim,
                keyStride = int64_t(a.kvHeads) * a.headDim;
  const int64_t queryBase = (b * a.queries + query0) * queryStride + h * a.headDim;
  const int64_t keyBase = b * a.keys * keyStride + kvHeadOf(a, h) * a.headDim;
  const bf16 *q = static_cast<const bf16 *>(a.q) + queryBase,
             *k = static_cast<const bf16 *>(a.k) + keyBase,
             *v = static_cast<const bf16 *>(a.v) + keyBase;
  bf16 *out = static_cast<bf16 *>(a.out) + queryBase;

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
    loadTile<kKeys, chunks, kThreads, aligned>(
        keyTiles + stage * L::keyValues, k, a.headDim,
        [&](int row) { return row < count ? k + (key0 + row) * keyStride : nullptr; });
    loadTile<kKeys, chunks, kThreads, aligned>(
        valueTiles + stage * L::keyValues, v, a.headDim,
        [&](int row) { return row < count ? v + (key0 + row) * keyStride : nullptr; });
    if (int j = int(threadIdx.x); j < kKeys) {
      positions[stage * kKeys + j] = j < count ? a.kpos[key0 + j] : 0;
      masks[stage * kKeys + j] = j < count ? a.kmask[b * a.keys + key0 + j] : 0;
    }
  };

  Sight sight = Sight::none;
  int64_t tile = nextTile(0, sight);
  loadTile<kQueries, chunks, kThreads, aligned>(queryTile, q, a.headDim, [&](int row) {
    return row < queries ? q + row * queryStride : nullptr;
  });
  if (tile < keyTileCount)
    load(tile, 0);
  commitCopies();

  // This warp's 16 queries; this thread's are rows lane/4 and lane/4 + 8 of them.
  const int lane = laneNumber(), row0 = int(threadIdx.x) / 32 * 16;
  const int steps = (a.headDim + 15) / 16;
  const float scale = a.scale * 1.44269504088896341f; // exponentials are powers of two
  int32_t queryPosition[2];
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int row = row0 + lane / 4 + r * 8;
    queryPosition[r] = row < queries ? a.qpos[query0 + row] : least;
  }
  float sum[width / 8][4] = {};

  for (int stage = 0; tile < keyTileCount; stage ^= 1) {
    Sight nextSight = Sight::none;
    int64_t next = nextTile(tile + 1, nextSight);
    if (next < keyTileCount)
      load(next, stage ^ 1);
    commitCopies();
    waitCopies<1>();
    __syncthreads();

    const bf16 *keyTile = keyTiles + stage * L::keyValues,
               *valueTile = valueTiles + stage * L::keyValues;
    float score[kKeys / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
      uint32_t left[4];
      loadA<chunks>(left, queryTile, row0, step);
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t right[4];
        loadB<chunks>(right, keyTile, j * 16, step);
        multiplyAdd(score[j * 2], left, right[0], right[1]);
        multiplyAdd(score[j * 2 + 1], left, right[2], right[3]);
      }
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        int key = stage * kKeys + j * 8 + lane % 4 * 2 + c % 2;
        bool visible =
            sight == Sight::all || sees(queryPosition[c / 2], positions[key], masks[key], a.window);
        score[j][c] = visible ? score[j][c] * scale : -INFINITY;
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
    for (int d = 0; d < width / 8; ++d)
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
      for (int d = 0; d < width / 16; ++d) {
        if (d >= steps)
          break;
        uint32_t right[4];
        loadBTransposed<chunks>(right, valueTile, j * 16, d);
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
    int row = row0 + lane / 4 + r * 8;
    if (row >= queries)
      continue;
    float factor = total[r] == 0 ? 0.0f : 1.0f / total[r];
#pragma unroll
    for (int d = 0; d < width / 8; ++d) {
      int column = d * 8 + lane % 4 * 2;
      float low = sum[d][r * 2] * factor, high = sum[d][r * 2 + 1] * factor;
      bf16 *to = out + row * queryStride + column;
      if constexpr (aligned) {
        if (column < a.headDim)
          *reinterpret_cast<uint32_t *>(to) = packPair(low, high);
      } else {
        if (column < a.headDim)
          to[0] = fromFloat<bf16>(low);
        if (column + 1 < a.headDim)
          to[1] = fromFloat<bf16>(high);
      }
    }
  }
}

template <int width, bool aligned> Status launch(const Call &call, const AttentionArgs &a) {
  int64_t queryTiles = ceilDiv(a.queries, kQueries), blocks = queryTiles * a.heads * a.batch;
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of queries", (long long)blocks));
  auto kernel = attendTiles<width, aligned>;
  constexpr size_t bytes = Layout<width>::bytes;
  if (Status s = checked(
          call.name,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
      !s)
    return s;
  kernel<<<unsigned(blocks), kThreads, bytes, call.stream()>>>(a, queryTiles);
  return launched(call);
}

} // namespace

Status launchAttentionBf16(const Call &call, const AttentionArgs &a) {
  size_t addresses = addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out);
  bool aligned = addresses % 16 == 0 && a.headDim % kChunk == 0;
  auto choose = [&]<int width>(std::integral_constant<int, width>) {
    return aligned ? launch<width, true>(call, a) : launch<width, false>(call, a);
  };
  if (a.headDim <= 64)
    return choose(std::integral_constant<int, 64>());
  if (a.headDim <= 128)
    return choose(std::integral_constant<int, 128>());
  return choose(std::integral_constant<int, 256>());
}

} // namespace moira::rt::cuda
