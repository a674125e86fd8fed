//===- GradAttentionTables.cu - what is made before attention_grad ------------===//
// Ranges of tiles, positions and masks filled up to whole tiles, and dy rounded.
//===----------------------------------------------------------------------===//
#include "GradAttentionTables.h"
#include "Tiles.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

/// By a warp a tile of keys or queries.
__global__ void describe(AttentionArgs a, GradTables t) {
  int64_t tile = warpNumber();
  const bool isKeys = tile < a.batch * t.keyTiles;
  const int64_t b = isKeys ? tile / t.keyTiles : 0;
  if (isKeys)
    tile -= b * t.keyTiles;
  else if ((tile -= a.batch * t.keyTiles) >= t.queryTiles)
    return;
  const int64_t count = isKeys ? a.keys : a.queries;
  int32_t low = INT32_MAX, high = INT32_MIN;
  bool full = true;
  for (int64_t i = tile * kGradTile + laneNumber(); i < (tile + 1) * kGradTile; i += 32) {
    int32_t position = 0, mask = 0;
    if (i < count) {
      position = isKeys ? keyPositionOf(a, i) : queryPositionOf(a, i);
      mask = isKeys ? keyMaskOf(a, b, i) : 1;
    }
    if (mask != 0) {
      low = min(low, position);
      high = max(high, position);
    }
    full = full && mask != 0;
    if (!isKeys)
      t.queries[i] = position;
    else if (b == 0)
      t.keys[i] = position;
    if (isKeys)
      t.keyMasks[b * t.keyTiles * kGradTile + i] = mask;
  }
  const TileRange range{__reduce_min_sync(kAllLanes, low), __reduce_max_sync(kAllLanes, high),
                        __all_sync(kAllLanes, full), 0};
  if (laneNumber() == 0)
    (isKeys ? t.keyRanges[b * t.keyTiles + tile] : t.queryRanges[tile]) = range;
}

/// A chunk a thread.
__global__ void roundChunks(const float *dy, bf16 *out, AttentionArgs a, GradPart part) {
  const int64_t perRow = part.heads * a.valueDim / kChunk,
                chunks = part.batches * a.queries * perRow;
  for (int64_t i = threadNumber(); i < chunks; i += threadCount()) {
    int64_t row, chunk;
    divide(i, perRow, row, chunk);
    const float4 *from = reinterpret_cast<const float4 *>(
        dy + ((part.batch0 * a.queries + row) * a.heads + part.head0) * a.valueDim +
        chunk * kChunk);
    const float4 x = from[0], y = from[1];
    reinterpret_cast<uint4 *>(out)[i] =
        uint4{packPair(x.x, x.y), packPair(x.z, x.w), packPair(y.x, y.y), packPair(y.z, y.w)};
  }
}

/// A warp a row of `logSums`: a query of a head, or one past the last.
__global__ void readSums(GradArgs g, GradTables t) {
  const AttentionArgs &a = g.a;
  const int64_t padded = t.queryTiles * kGradTile;
  int64_t at = warpNumber(), head, i;
  if (at >= a.batch * a.heads * padded)
    return;
  divide(at, padded, head, i);
  const int64_t b = head / a.heads, h = head % a.heads;
  float logSum = INFINITY, mean = 0; // no weights
  if (i < a.queries) {
    const int64_t row = (b * a.queries + i) * a.heads + h;
    for (int d = laneNumber(); d < a.valueDim; d += 32)
      mean += g.dy[row * a.valueDim + d] * g.out[row * a.valueDim + d];
    mean = warpSum(mean);
    const float left = g.logSums[head * a.queries + i];
    if (left > -INFINITY)
      logSum = left * kPerNat;
    if (laneNumber() == 0) {
      g.largest[row] = left;
      g.total[row] = left > -INFINITY ? 1.0f : 0.0f;
      g.mean[row] = mean;
    }
  }
  if (laneNumber() == 0) {
    t.logSums[at] = logSum;
    t.means[at] = mean;
  }
}

} // namespace

Status takeSums(const Call &call, const GradArgs &g, const GradTables &t) {
  readSums<<<blocksOfWarps(g.a.batch * g.a.heads * t.queryTiles * kGradTile), kWarpBlock, 0,
             call.stream()>>>(g, t);
  return launched(call);
}

bool takeTables(const AttentionArgs &a, Scratch &scratch, GradTables &t) {
  t.queryTiles = ceilDiv(a.queries, kGradTile);
  t.keyTiles = ceilDiv(a.keys, kGradTile);
  const int64_t queries = t.queryTiles * kGradTile, keys = t.keyTiles * kGradTile;
  t.queryRanges = scratch.take<TileRange>(t.queryTiles);
  t.keyRanges = scratch.take<TileRange>(a.batch * t.keyTiles);
  t.queries = scratch.take<int32_t>(queries);
  t.keys = scratch.take<int32_t>(keys);
  t.keyMasks = scratch.take<int32_t>(a.batch * keys);
  t.logSums = scratch.take<float>(a.batch * a.heads * queries);
  t.means = scratch.take<float>(a.batch * a.heads * queries);
  return t.queryRanges && t.keyRanges && t.queries && t.keys && t.keyMasks && t.logSums && t.means;
}

Status describeTiles(const Call &call, const AttentionArgs &a, const GradTables &t) {
  describe<<<blocksOfWarps(a.batch * t.keyTiles + t.queryTiles), kWarpBlock, 0, call.stream()>>>(a,
                                                                                                 t);
  return launched(call);
}

GradPart partFrom(const AttentionArgs &a, int64_t batch, int64_t kv, int64_t most) {
  GradPart part{batch, 1, kv, 0, firstHeadOf(a, kv), 0};
  if (kv == 0 && a.heads <= most) {
    part.batches = std::min(a.batch - batch, most / a.heads);
    part.kvHeads = a.kvHeads;
  } else {
    while (kv + part.kvHeads < a.kvHeads &&
           firstHeadOf(a, kv + part.kvHeads + 1) - part.head0 <= most)
      ++part.kvHeads;
  }
  part.heads = firstHeadOf(a, kv + part.kvHeads) - part.head0;
  return part;
}

Status roundPart(const Call &call, const float *dy, bf16 *out, const AttentionArgs &a,
                 const GradPart &part) {
  const int64_t chunks = part.batches * a.queries * part.heads * a.valueDim / kChunk;
  roundChunks<<<blocksOfThreads(chunks), kWarpBlock, 0, call.stream()>>>(dy, out, a, part);
  return launched(call);
}

} // namespace moira::rt::cuda
