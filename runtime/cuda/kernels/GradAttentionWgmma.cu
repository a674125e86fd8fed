//===- GradAttentionWgmma.cu - attention_grad in bf16, on Hopper --------------===//
// Two launches of one kernel. The first one's blocks take 128 queries of a head, 64 a warpgroup,
// and go over the keys twice: for the queries' sums of weights and means of what flows back, unless
// attention has left what gives these, and for dq. The second one's take 128 keys and go over the
// queries for dk and dv. Either way a warp finds the tiles of 64 that are seen and keeps copies of
// them ahead; weights and cotangents of scores stay in registers and are rounded to bf16 for the
// products with them. Every output has one block, so the order of its sums is one.
//===----------------------------------------------------------------------===//
#include "GradAttentionTables.h"
#include "TensorMaps.h"
#include "Warpgroups.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kTile = kGradTile, kConsumers = 2, kStages = 4, kWarpgroup = 128,
              kThreads = (kConsumers + 1) * kWarpgroup;
/// Head dimensions come in blocks of 64 columns, each with all the rows of its tile.
constexpr int kBlock = 64;
constexpr uint32_t kBlockBytes = kTile * kBlock * sizeof(bf16), kColumnBytes = kTile * 4;

struct Maps {
  CUtensorMap q, dy, k, v; // [batch, rows, heads, width]
};

template <int keyBlocks, int valueBlocks> struct Shared {
  static constexpr uint32_t alignment = 1024; // of swizzled tiles
  static constexpr uint32_t ownKeyBytes = keyBlocks * kBlockBytes,
                            ownBytes = ownKeyBytes + valueBlocks * kBlockBytes,
                            stagesAt = kConsumers * ownBytes,
                            columnsAt = stagesAt + kStages * ownBytes,
                            rangesAt = columnsAt + kStages * 3 * kColumnBytes,
                            moreAt = rangesAt + kStages * sizeof(TileRange),
                            barriersAt = moreAt + kStages * 4,
                            bytes = barriersAt + (2 * kStages + 1) * 8 + alignment;
};

/// Keeps what is computed from results of products behind the wait for them.
__device__ inline void settle(float (&values)[32]) {
#pragma unroll
  for (float &v : values)
    asm volatile("" : "+f"(v)::"memory");
}

__device__ inline float sumOfFour(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 1);
  return v + __shfl_xor_sync(kAllLanes, v, 2);
}

/// A warp's rows of a result, times `factor`: lane / 4 to at[0], and the one 8 further to at[1],
/// unless that is negative.
template <int n>
__device__ void storeRows(const float (&sum)[n], float factor, const Writer &to,
                          const int64_t (&at)[2], int width) {
#pragma unroll
  for (int j = 0; j < n / 4; ++j) {
    const int column = j * 8 + laneNumber() % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (at[r] >= 0 && column < width)
        to.store(at[r] + column, {sum[j * 4 + r * 2] * factor, sum[j * 4 + r * 2 + 1] * factor});
  }
}

/// byKeys: dk and dv of 128 keys; else dq of 128 queries, which is `first`. The block's own rows
/// are of k and v, or q and dy; the tiles that it goes over, of the others.
template <bool byKeys, int keyBlocks, int valueBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    gradTiles(const __grid_constant__ Maps maps, GradArgs g, GradTables t, GradPart part,
              Writer first, Writer second) {
  using S = Shared<keyBlocks, valueBlocks>;
  const AttentionArgs &a = g.a;
  extern __shared__ unsigned char sharedBytes[];
  const uint32_t base =
      (sharedAddress(sharedBytes) + S::alignment - 1) / S::alignment * S::alignment;
  unsigned char *aligned = sharedBytes + (base - sharedAddress(sharedBytes));
  const TileRange *ranges = reinterpret_cast<const TileRange *>(aligned + S::rangesAt);
  int32_t *more = reinterpret_cast<int32_t *>(aligned + S::moreAt);
  auto fullBarrier = [&](int stage) { return base + S::barriersAt + stage * 8; };
  auto emptyBarrier = [&](int stage) { return base + S::barriersAt + (kStages + stage) * 8; };
  const uint32_t ownBarrier = base + S::barriersAt + 2 * kStages * 8;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      initBarrier(fullBarrier(s), 1);
      initBarrier(emptyBarrier(s), kConsumers * 128); // each lane that reads arrives
    }
    initBarrier(ownBarrier, 1);
    publishBarriers();
  }
  __syncthreads();

  // What has most to do starts first: late queries, which see more keys, and early keys.
  const int64_t heads = byKeys ? part.kvHeads : part.heads,
                tiles = byKeys ? t.keyTiles : t.queryTiles,
                groups = (tiles + kConsumers - 1) / kConsumers;
  const int64_t head = blockIdx.x % heads, batch = blockIdx.x / heads % part.batches,
                order = blockIdx.x / heads / part.batches,
                tile0 = (byKeys ? order : groups - 1 - order) * kConsumers, b = part.batch0 + batch;
  const int64_t h0 = part.head0 + head, // byKeys: unused
      kv = byKeys ? part.kv0 + head : kvHeadOf(a, h0);
  const int64_t headBegin = byKeys ? firstHeadOf(a, kv) : h0,
                headEnd = byKeys ? firstHeadOf(a, kv + 1) : h0 + 1;
  const TileRange *ownRanges = byKeys ? t.keyRanges + b * t.keyTiles : t.queryRanges,
                  *otherRanges = byKeys ? t.queryRanges : t.keyRanges + b * t.keyTiles;
  const int64_t otherTiles = byKeys ? t.queryTiles : t.keyTiles;
  auto sight = [&](const TileRange &own, const TileRange &other) {
    const TileRange &keys = byKeys ? own : other, &queries = byKeys ? other : own;
    return sightOfRange(a, keys.low, keys.high, keys.full != 0, queries.low, queries.high);
  };
  const int warpgroup = int(threadIdx.x) / kWarpgroup, lane = laneNumber();

  if (warpgroup == 0) {
    giveRegisters<24>();
    if (threadIdx.x < 32) {
      auto copyTile = [&](uint32_t to, bool keys, int64_t h, int64_t tile, uint32_t done) {
        const CUtensorMap &one = keys ? maps.k : maps.q, &other = keys ? maps.v : maps.dy;
        const int32_t row = int32_t(tile * kTile), head = int32_t(keys ? kv : h),
                      otherHead = int32_t(keys ? kv : h - part.head0);
        for (int c = 0; c < keyBlocks; ++c)
          copyBox(to + c * kBlockBytes, one, c * kBlock, head, row, int32_t(b), done);
        for (int c = 0; c < valueBlocks; ++c)
          copyBox(to + S::ownKeyBytes + c * kBlockBytes, other, c * kBlock, otherHead, row,
                  int32_t(keys ? b : batch), done);
      };
      if (electOne()) {
        arriveExpecting(ownBarrier, kConsumers * S::ownBytes);
        for (int c = 0; c < kConsumers; ++c)
          copyTile(base + c * S::ownBytes, byKeys, h0, tile0 + c, ownBarrier);
      }
      TileRange own = ownRanges[tile0];
      if (tile0 + 1 < tiles) {
        const TileRange next = ownRanges[tile0 + 1];
        own.low = min(own.low, next.low);
        own.high = max(own.high, next.high);
      }
      int stage = 0;
      uint32_t parity = 1;
      auto advance = [&] {
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      };
      auto finish = [&] {
        if (electOne()) {
          waitFor(emptyBarrier(stage), parity);
          more[stage] = 0;
          arrive(fullBarrier(stage));
        }
        advance();
      };
      constexpr uint32_t copied =
          S::ownBytes + (byKeys ? 3 : 2) * kColumnBytes + uint32_t(sizeof(TileRange));
      const int64_t padded = t.queryTiles * kTile;
      for (int64_t h = headBegin; h < headEnd; ++h)
        for (int pass = byKeys || g.logSums ? 1 : 0; pass < 2; ++pass) {
          for (int64_t from = 0; from < otherTiles; from += 32) {
            const bool seen =
                from + lane < otherTiles && sight(own, otherRanges[from + lane]) != Sight::none;
            for (uint32_t left = __ballot_sync(kAllLanes, seen); left; left &= left - 1) {
              const int64_t tile = from + __ffs(int(left)) - 1;
              if (electOne()) {
                waitFor(emptyBarrier(stage), parity);
                more[stage] = 1;
                const uint32_t done = fullBarrier(stage),
                               columns = base + S::columnsAt + stage * 3 * kColumnBytes;
                arriveExpecting(done, copied);
                copyBytes(base + S::rangesAt + stage * uint32_t(sizeof(TileRange)),
                          otherRanges + tile, sizeof(TileRange), done);
                if constexpr (byKeys) {
                  const int64_t row = (b * a.heads + h) * padded + tile * kTile;
                  copyBytes(columns, t.queries + tile * kTile, kColumnBytes, done);
                  copyBytes(columns + kColumnBytes, t.logSums + row, kColumnBytes, done);
                  copyBytes(columns + 2 * kColumnBytes, t.means + row, kColumnBytes, done);
                } else {
                  copyBytes(columns, t.keys + tile * kTile, kColumnBytes, done);
                  copyBytes(columns + kColumnBytes, t.keyMasks + (b * t.keyTiles + tile) * kTile,
                            kColumnBytes, done);
                }
                copyTile(base + S::stagesAt + stage * S::ownBytes, !byKeys, h, tile, done);
              }
              advance();
            }
          }
          if (!byKeys)
            finish();
        }
      if (byKeys)
        finish();
    }
  } else {
    takeRegisters<240>();
    const int consumer = warpgroup - 1,
              laneRow = (int(threadIdx.x) / 32 - warpgroup * 4) * 16 + lane / 4;
    const int64_t ownTile = tile0 + consumer, rows = byKeys ? a.keys : a.queries;
    const bool present = ownTile < tiles;
    const TileRange own = present ? ownRanges[ownTile] : TileRange{INT32_MAX, INT32_MIN, 0, 0};
    int64_t row[2]; // of keys or queries; tables have them up to the end of the tile
    int32_t position[2], mask[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = ownTile * kTile + laneRow + r * 8;
      position[r] = !present ? 0 : byKeys ? t.keys[row[r]] : t.queries[row[r]];
      mask[r] = present && byKeys ? t.keyMasks[b * t.keyTiles * kTile + row[r]] : 0;
    }
    const float scale = a.scale * kPerNat;
    const uint32_t ownRows = base + consumer * S::ownBytes;

    // The tile in hand: the next one of which this warpgroup sees anything.
    int next = 0, stage = 0;
    uint32_t parity = 0;
    bool partly = false;
    auto release = [&](int which) { arrive(emptyBarrier(which)); };
    auto take = [&]() -> bool {
      for (;;) {
        waitFor(fullBarrier(next), parity);
        stage = next;
        if (++next == kStages) {
          next = 0;
          parity ^= 1;
        }
        const bool end = more[stage] == 0;
        const Sight seen = end || !present ? Sight::none : sight(own, ranges[stage]);
        partly = seen == Sight::some;
        if (seen != Sight::none)
          return true;
        release(stage);
        if (end)
          return false;
      }
    };
    auto columnsOf = [&](int which) {
      return aligned + S::columnsAt + (stage * 3 + which) * kColumnBytes;
    };

    float score[32], back[32];
    auto multiply = [&](float (&sum)[32], uint32_t at, int blocks) {
      beginProducts();
#pragma unroll
      for (int d = 0; d < 8; ++d)
        if (d < blocks * 4) {
          const uint32_t block = at + d / 4 * kBlockBytes;
          multiply64x64(sum, tileDescriptor(ownRows + block) + d % 4 * kDescriptorStep,
                        tileDescriptor(base + S::stagesAt + stage * S::ownBytes + block) +
                            d % 4 * kDescriptorStep,
                        d > 0);
        }
      commitProducts();
    };
    auto hideUnseen = [&] {
      if (partly)
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          const int column = i / 4 * 8 + lane % 4 * 2 + i % 2, r = i / 2 % 2;
          const int32_t other = reinterpret_cast<const int32_t *>(columnsOf(0))[column];
          const bool seen = byKeys ? sees(a, other, position[r], mask[r])
                                   : sees(a, position[r], other,
                                          reinterpret_cast<const int32_t *>(columnsOf(1))[column]);
          if (!seen)
            score[i] = -INFINITY;
        }
    };

    /// Scores of the tile in hand, hidden where nobody sees them; the products for `back` may be
    /// under way.
    auto scoreTile = [&] {
      multiply(score, 0, keyBlocks);
      multiply(back, S::ownKeyBytes, valueBlocks);
      waitProducts<1>();
      settle(score);
      hideUnseen();
    };

    float logSum[2] = {INFINITY, INFINITY}, mean[2] = {0, 0}; // of queries
    waitFor(ownBarrier, 0);
    if (!byKeys && g.logSums) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (present) {
          const int64_t at = (b * a.heads + h0) * t.queryTiles * kTile + row[r];
          logSum[r] = t.logSums[at];
          mean[r] = t.means[at];
        }
    } else if constexpr (!byKeys) {
      float largest[2], total[2]; // maxima of scores that are not scaled yet
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        // A sink is a key that was seen before all others. Sums are kept in 4 parts.
        largest[r] = a.sinks ? a.sinks[h0] / a.scale : -INFINITY;
        total[r] = a.sinks && lane % 4 == 0 ? 1.0f : 0.0f;
      }
      while (take()) {
        scoreTile();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float most = largest[r];
#pragma unroll
          for (int j = 0; j < 8; ++j)
            most = fmaxf(most, fmaxf(score[j * 4 + r * 2], score[j * 4 + r * 2 + 1]));
          most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
          most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
          const float shift = most == -INFINITY ? 0.0f : most * scale,
                      shrink = powerOfTwo(largest[r] * scale - shift);
          largest[r] = most;
          total[r] *= shrink;
          mean[r] *= shrink;
#pragma unroll
          for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              float &s = score[j * 4 + r * 2 + c];
              s = powerOfTwo(fmaf(s, scale, -shift));
              total[r] += s;
            }
        }
        waitProducts<0>();
        settle(back);
        release(stage);
#pragma unroll
        for (int i = 0; i < 32; ++i)
          mean[i / 2 % 2] = fmaf(score[i], back[i], mean[i / 2 % 2]);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        total[r] = sumOfFour(total[r]);
        mean[r] = sumOfFour(mean[r]);
        const bool any = total[r] != 0 && row[r] < rows;
        mean[r] = any ? mean[r] / total[r] : 0.0f;
        logSum[r] = any ? fmaf(largest[r], scale, log2f(total[r])) : INFINITY; // no weights
        if (lane % 4 != 0 || !present)
          continue;
        const int64_t at = (b * a.heads + h0) * t.queryTiles * kTile + row[r];
        t.logSums[at] = logSum[r];
        t.means[at] = mean[r];
        if (row[r] < rows) {
          const int64_t query = (b * a.queries + row[r]) * a.heads + h0;
          g.largest[query] = largest[r] * a.scale;
          g.total[query] = total[r];
          g.mean[query] = mean[r];
        }
      }
    }

    float keySum[keyBlocks * 32], valueSum[byKeys ? valueBlocks * 32 : 1];
#pragma unroll
    for (float &s : keySum)
      s = 0;
#pragma unroll
    for (float &s : valueSum)
      s = 0;
    uint32_t weights[4][4], grads[4][4];
    auto pack = [&](const float (&from)[32], uint32_t (&to)[4][4]) {
#pragma unroll
      for (int d = 0; d < 4; ++d)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          to[d][c] = packPair(from[d * 8 + c * 2], from[d * 8 + c * 2 + 1]);
    };
    auto addProduct = [&](auto &sum, const uint32_t (&left)[4][4], uint32_t at) {
      beginProducts();
      const uint64_t right =
          columnDescriptor(base + S::stagesAt + stage * S::ownBytes + at, kBlockBytes);
#pragma unroll
      for (int d = 0; d < 4; ++d)
        multiplyRegisters(sum, left[d], right + d * kColumnDescriptorStep);
      commitProducts();
    };
    while (take()) {
      scoreTile();
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float2 sums{};
        if constexpr (byKeys)
          sums = reinterpret_cast<const float2 *>(columnsOf(1))[j * 4 + lane % 4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float &s = score[j * 4 + c];
          s = powerOfTwo(fmaf(s, scale, -(!byKeys ? logSum[c / 2] : c % 2 ? sums.y : sums.x)));
        }
      }
      if constexpr (byKeys) {
        pack(score, weights);
        addProduct(valueSum, weights, S::ownKeyBytes);
        waitProducts<1>();
      } else {
        waitProducts<0>();
      }
      settle(back);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float2 means{};
        if constexpr (byKeys)
          means = reinterpret_cast<const float2 *>(columnsOf(2))[j * 4 + lane % 4];
#pragma unroll
        for (int c = 0; c < 4; ++c)
          back[j * 4 + c] = score[j * 4 + c] * (back[j * 4 + c] - (!byKeys ? mean[c / 2]
                                                                   : c % 2 ? means.y
                                                                           : means.x));
      }
      pack(back, grads);
      addProduct(keySum, grads, 0);
      waitProducts<0>();
      release(stage);
    }

    int64_t keyAt[2] = {-1, -1}, valueAt[2] = {-1, -1};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (present && row[r] < rows) {
        const int64_t at = byKeys ? (b * a.keys + row[r]) * a.kvHeads + kv
                                  : (b * a.queries + row[r]) * a.heads + h0;
        keyAt[r] = at * a.keyDim;
        valueAt[r] = at * a.valueDim;
      }
    storeRows(keySum, a.scale, first, keyAt, a.keyDim);
    if constexpr (byKeys)
      storeRows(valueSum, 1.0f, second, valueAt, a.valueDim);
  }
}

template <int keyBlocks, int valueBlocks>
Status launchPart(const Call &call, const GradArgs &g, const GradTables &t, const GradPart &part,
                  const void *dy, const GradResults &made) {
  const AttentionArgs &a = g.a;
  Maps maps{};
  if (!describeHeads(maps.q, g.q.data, a.batch, a.queries, a.heads, a.keyDim, kBlock, kTile) ||
      !describeHeads(maps.dy, dy, part.batches, a.queries, part.heads, a.valueDim, kBlock, kTile) ||
      !describeHeads(maps.k, g.k.data, a.batch, a.keys, a.kvHeads, a.keyDim, kBlock, kTile) ||
      !describeHeads(maps.v, g.v.data, a.batch, a.keys, a.kvHeads, a.valueDim, kBlock, kTile))
    return noTensorMap(call);
  auto launchOne = [&](auto kernel, int64_t tiles, int64_t heads, Writer first, Writer second) {
    constexpr uint32_t bytes = Shared<keyBlocks, valueBlocks>::bytes;
    if (Status s = allowSharedBytes(call, kernel, bytes); !s)
      return s;
    kernel<<<unsigned(ceilDiv(tiles, kConsumers) * heads * part.batches), kThreads, bytes,
             call.stream()>>>(maps, g, t, part, first, second);
    return launched(call);
  };
  if (Status s = launchOne(gradTiles<false, keyBlocks, valueBlocks>, t.queryTiles, part.heads,
                           made.q, made.q);
      !s)
    return s;
  return launchOne(gradTiles<true, keyBlocks, valueBlocks>, t.keyTiles, part.kvHeads, made.k,
                   made.v);
}

} // namespace

bool attentionGradFitsWgmma(const GradArgs &g, const GradResults &made) {
  const AttentionArgs &a = g.a;
  constexpr int32_t kMost = 128;
  constexpr int64_t kFew = 32; // queries or keys that make no tile worth its while
  const size_t addresses = addressOf(g.q.data) | addressOf(g.k.data) | addressOf(g.v.data) |
                           addressOf(g.dy.data) | addressOf(made.q.data) | addressOf(made.k.data) |
                           addressOf(made.v.data);
  const int64_t blocks =
      std::max(ceilDiv(a.queries, kTile) * a.heads, ceilDiv(a.keys, kTile) * a.kvHeads) * a.batch;
  return g.q.isBf16 && g.k.isBf16 && g.v.isBf16 && addresses % 16 == 0 && a.sharedDim == 0 &&
         !a.bias && a.scale > 0 && (a.keyDim | a.valueDim) % kChunk == 0 && a.keyDim <= kMost &&
         a.valueDim <= kMost && a.queries > kFew && a.keys > kFew && a.queries <= INT32_MAX &&
         a.keys <= INT32_MAX && blocks <= INT32_MAX;
}

Expected<bool> launchAttentionGradWgmma(const Call &call, const GradArgs &g, Scratch scratch,
                                        const GradResults &made) {
  const AttentionArgs &a = g.a;
  GradTables t;
  if (!takeTables(a, scratch, t))
    return false;
  const int64_t headValues = a.queries * a.valueDim;
  bf16 *rounded = nullptr;
  int64_t most = a.batch * a.heads; // queries of a head that a part may have
  if (!g.dy.isBf16) {
    most = std::min(most, int64_t(scratch.bytesLeft() / 256 * 256 / sizeof(bf16)) / headValues);
    rounded = scratch.take<bf16>(most * headValues);
  }
  for (int64_t kv = 0; kv < a.kvHeads && a.heads > most; ++kv)
    if (firstHeadOf(a, kv + 1) - firstHeadOf(a, kv) > most)
      return false;

  if (Status status = describeTiles(call, a, t); !status)
    return status;
  if (g.logSums)
    if (Status status = takeSums(call, g, t); !status)
      return status;
  int64_t batch = 0, kv = 0;
  while (batch < a.batch) {
    const GradPart part = partFrom(a, batch, kv, most);
    const void *dy = g.dy.data;
    if (rounded) {
      if (Status status = roundPart(call, static_cast<const float *>(g.dy.data), rounded, a, part);
          !status)
        return status;
      dy = rounded;
    }
    auto launchBlocks = [&]<int keyBlocks>(std::integral_constant<int, keyBlocks>) {
      return a.valueDim <= kBlock ? launchPart<keyBlocks, 1>(call, g, t, part, dy, made)
                                  : launchPart<keyBlocks, 2>(call, g, t, part, dy, made);
    };
    if (Status s = a.keyDim <= kBlock ? launchBlocks(std::integral_constant<int, 1>())
                                      : launchBlocks(std::integral_constant<int, 2>());
        !s)
      return s;
    kv += part.kvHeads;
    if (kv == a.kvHeads) {
      batch += part.batches;
      kv = 0;
    }
  }
  return true;
}

} // namespace moira::rt::cuda
