//===- AttentionWgmma.cu - attention of many queries, on Hopper -------------===//
// A block makes the results of 128 queries of one head, 64 a warpgroup, from tiles of 128 keys. One
// warp finds the tiles that some query sees and keeps tensor copies of keys and values two tiles
// ahead. While a tile's weights are made, the tensor cores multiply the values by the weights of
// the tile before, or work for the other warpgroup.
//===----------------------------------------------------------------------===//
#include "AttentionSums.h"
#include "AttentionTools.h"
#include "TensorMaps.h"
#include "Warpgroups.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kQueries = 128, kKeys = 128, kStages = 2, kWarpgroup = 128, kConsumers = 2,
              kThreads = (kConsumers + 1) * kWarpgroup, kConsumerWarps = kConsumers * 4;
/// Head dimensions come in blocks of 64 columns, each with all the rows of its tile.
constexpr int kBlock = 64;
constexpr uint32_t kBlockBytes = 128 * kBlock * sizeof(bf16);
static_assert(kQueries == 128 && kKeys == 128);

/// What the consumers must know of a tile of keys, in one word.
struct KeyTile {
  int32_t word;

  __device__ explicit KeyTile(int32_t word) : word(word) {}
  /// From key `first` on, of less than 2^31. none: no more tiles.
  __device__ KeyTile(int64_t first, Sight sight)
      : word(int32_t(first / kKeys) * 4 + int32_t(sight)) {}
  __device__ int64_t first() const { return int64_t(word / 4) * kKeys; }
  __device__ Sight sight() const { return Sight(word % 4); }
};

template <int keyBlocks, int valueBlocks> struct Shared {
  static constexpr uint32_t alignment = 1024; // of swizzled tiles
  static constexpr uint32_t keysAt = keyBlocks * kBlockBytes,
                            valuesAt = keysAt + kStages * keyBlocks * kBlockBytes,
                            tilesAt = valuesAt + kStages * valueBlocks * kBlockBytes,
                            positionsAt = tilesAt + kStages * sizeof(KeyTile),
                            masksAt = positionsAt + kStages * kKeys * 4,
                            barriersAt = masksAt + kStages * kKeys * 4,
                            bytes = barriersAt + (4 * kStages + 1) * 8 + alignment;
};

/// A lane's share of a tile's positions and masks: key i * 32 + lane.
struct LaneKeys {
  int32_t position[kKeys / 32], mask[kKeys / 32]; // 0 past the end

  __device__ static LaneKeys load(const AttentionArgs &a, int64_t b, int64_t first) {
    LaneKeys keys;
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i) {
      const int64_t key = first + i * 32 + laneNumber();
      keys.position[i] = key < a.keys ? keyPositionOf(a, key) : 0;
      keys.mask[i] = key < a.keys ? keyMaskOf(a, b, key) : 0;
    }
    return keys;
  }
  /// As sightOf.
  __device__ Sight sight(const AttentionArgs &a, int64_t count, int32_t least,
                         int32_t greatest) const {
    int32_t low = INT32_MAX, high = INT32_MIN;
    bool unmasked = count == kKeys;
#pragma unroll
    for (int i = 0; i < kKeys / 32; ++i)
      if (mask[i] != 0) {
        low = min(low, position[i]);
        high = max(high, position[i]);
      } else {
        unmasked = false;
      }
    return sightOfRange(a, __reduce_min_sync(kAllLanes, low), __reduce_max_sync(kAllLanes, high),
                        __all_sync(kAllLanes, unmasked), least, greatest);
  }
};

/// Tensors [batch, rows, heads, width] of the operands; of q2 and k2 only if there are any.
struct Maps {
  CUtensorMap q, k, v, q2, k2;
};

/// The first `keyBlocks` of q and k that hold the unshared part; the rest are q2's and k2's.
template <int keyBlocks, int valueBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    attendTiles(const __grid_constant__ Maps maps, AttentionArgs a, float *logSums,
                int64_t queryTiles, int32_t ownBlocks) {
  using S = Shared<keyBlocks, valueBlocks>;
  extern __shared__ unsigned char sharedBytes[];
  const uint32_t base =
      (sharedAddress(sharedBytes) + S::alignment - 1) / S::alignment * S::alignment;
  unsigned char *aligned = sharedBytes + (base - sharedAddress(sharedBytes));
  KeyTile *tiles = reinterpret_cast<KeyTile *>(aligned + S::tilesAt);
  int32_t *positions = reinterpret_cast<int32_t *>(aligned + S::positionsAt),
          *masks = reinterpret_cast<int32_t *>(aligned + S::masksAt);
  auto barrier = [&](int number, int stage) {
    return base + S::barriersAt + (number * kStages + stage) * 8;
  };
  enum { keysFull, keysEmpty, valuesFull, valuesEmpty, queriesFull };
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      // Positions and masks pass from lane to lane: each of these arrives.
      initBarrier(barrier(keysFull, s), 32);
      initBarrier(barrier(valuesFull, s), 1);
      initBarrier(barrier(keysEmpty, s), kConsumerWarps * 32);
      initBarrier(barrier(valuesEmpty, s), kConsumerWarps);
    }
    initBarrier(barrier(queriesFull, 0), 1);
    publishBarriers();
  }
  __syncthreads();

  // Later queries see more keys: they start first. Heads that share keys follow one another.
  const int64_t h = blockIdx.x % a.heads, b = blockIdx.x / a.heads % a.batch;
  const int64_t query0 = (queryTiles - 1 - blockIdx.x / a.heads / a.batch) * kQueries;
  const int32_t queries = int32_t(min(int64_t(kQueries), a.queries - query0));
  const int warpgroup = int(threadIdx.x) / kWarpgroup;

  if (warpgroup == 0) {
    giveRegisters<56>();
    if (threadIdx.x < 32) {
      const int lane = laneNumber();
      const int32_t head = int32_t(kvHeadOf(a, h));
      auto copy = [&](uint32_t to, const CUtensorMap &own, const CUtensorMap &shared, int32_t from,
                      int32_t sharedFrom, int64_t row, uint32_t done) {
        for (int32_t c = 0; c < keyBlocks; ++c)
          if (c < ownBlocks)
            copyBox(to + c * kBlockBytes, own, c * kBlock, from, int32_t(row), int32_t(b), done);
          else
            copyBox(to + c * kBlockBytes, shared, (c - ownBlocks) * kBlock, sharedFrom,
                    int32_t(row), int32_t(b), done);
      };
      if (electOne()) {
        arriveExpecting(barrier(queriesFull, 0), keyBlocks * kBlockBytes);
        copy(base, maps.q, maps.q2, int32_t(h), int32_t(h), query0, barrier(queriesFull, 0));
      }
      int32_t least, greatest;
      queryRange(a, query0, queries, least, greatest);
      int stage = 0;
      uint32_t parity = 1;
      LaneKeys next = LaneKeys::load(a, b, 0);
      for (int64_t first = 0;; first += kKeys) {
        const LaneKeys keys = next;
        next = LaneKeys::load(a, b, first + kKeys);
        const bool end = first >= a.keys;
        const Sight sight =
            end ? Sight::none : keys.sight(a, min(int64_t(kKeys), a.keys - first), least, greatest);
        if (!end && sight == Sight::none)
          continue;
        waitFor(barrier(keysEmpty, stage), parity);
        if (sight == Sight::some)
#pragma unroll
          for (int i = 0; i < kKeys / 32; ++i) {
            positions[stage * kKeys + i * 32 + lane] = keys.position[i];
            masks[stage * kKeys + i * 32 + lane] = keys.mask[i];
          }
        if (!electOne()) {
          arrive(barrier(keysFull, stage));
        } else {
          tiles[stage] = KeyTile(end ? 0 : first, sight);
          if (end) {
            arrive(barrier(keysFull, stage));
          } else {
            arriveExpecting(barrier(keysFull, stage), keyBlocks * kBlockBytes);
            copy(base + S::keysAt + stage * keyBlocks * kBlockBytes, maps.k, maps.k2, head, 0,
                 first, barrier(keysFull, stage));
            waitFor(barrier(valuesEmpty, stage), parity);
            arriveExpecting(barrier(valuesFull, stage), valueBlocks * kBlockBytes);
            for (int32_t c = 0; c < valueBlocks; ++c)
              copyBox(base + S::valuesAt + (stage * valueBlocks + c) * kBlockBytes, maps.v,
                      c * kBlock, head, int32_t(first), int32_t(b), barrier(valuesFull, stage));
          }
        }
        __syncwarp();
        if (end)
          break;
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  } else {
    takeRegisters<224>();
    const int lane = laneNumber(), consumer = warpgroup - 1,
              warp = int(threadIdx.x) / 32 - kWarpgroup / 32, row0 = warp * 16 + lane / 4;
    auto tileOf = [&](int stage) {
      return KeyTile(__shfl_sync(kAllLanes, lane == 0 ? tiles[stage].word : 0, 0));
    };
    // Lanes that have read positions arrive themselves; else the first one does for all.
    auto releaseKeys = [&](const KeyTile &tile, int stage) {
      if (tile.sight() == Sight::some)
        arrive(barrier(keysEmpty, stage));
      else if (lane == 0)
        arrive(barrier(keysEmpty, stage), 32);
    };
    const float scale = a.scale * kPerNat;
    int32_t queryPosition[2];
    float largest[2], total[2]; // maxima of scores that are not scaled yet
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      queryPosition[r] = queryPositionOf(a, query0 + min(queries - 1, row0 + r * 8));
      // A sink is a key that was seen before all others and adds nothing to the result. Totals are
      // kept in 4 parts.
      largest[r] = a.sinks ? a.sinks[h] / a.scale : -INFINITY;
      total[r] = a.sinks && lane % 4 == 0 ? 1.0f : 0.0f;
    }
    float sum[valueBlocks * 32], score[64], shrink[2];
#pragma unroll
    for (float &s : sum)
      s = 0;
    uint32_t weights[kKeys / 16][4];
    const uint32_t queryTile = base + consumer * (kBlockBytes / kConsumers);

    auto multiplyKeys = [&](int stage) {
      beginProducts();
#pragma unroll
      for (int d = 0; d < keyBlocks * 4; ++d) {
        const uint32_t at = d / 4 * kBlockBytes;
        multiply64x128(score, tileDescriptor(queryTile + at) + d % 4 * kDescriptorStep,
                       tileDescriptor(base + S::keysAt + stage * keyBlocks * kBlockBytes + at) +
                           d % 4 * kDescriptorStep,
                       d > 0);
      }
      commitProducts();
    };
    auto multiplyValues = [&](int stage) {
      beginProducts();
      const uint64_t values =
          columnDescriptor(base + S::valuesAt + stage * valueBlocks * kBlockBytes, kBlockBytes);
#pragma unroll
      for (int d = 0; d < kKeys / 16; ++d)
        multiplyRegisters(sum, weights[d], values + d * kColumnDescriptorStep);
      commitProducts();
    };
    // Scores to exponentials; what was summed so far is to shrink.
    auto soften = [&](const KeyTile &tile, int stage) {
      if (tile.sight() == Sight::some || a.bias)
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int key = j * 8 + lane % 4 * 2 + c % 2, row = row0 + c / 2 * 8;
            if (a.bias && row < queries && tile.first() + key < a.keys)
              score[j * 4 + c] +=
                  a.bias[(h * a.queries + query0 + row) * a.keys + tile.first() + key] / a.scale;
            if (tile.sight() == Sight::some &&
                !sees(a, queryPosition[c / 2], positions[stage * kKeys + key],
                      masks[stage * kKeys + key]))
              score[j * 4 + c] = -INFINITY;
          }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = largest[r];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
          most = fmaxf(most, fmaxf(score[j * 4 + r * 2], score[j * 4 + r * 2 + 1]));
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
        const float shift = most == -INFINITY ? 0.0f : most * scale;
        shrink[r] = powerOfTwo(largest[r] * scale - shift);
        largest[r] = most;
        float all = 0;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float &s = score[j * 4 + r * 2 + c];
            s = powerOfTwo(fmaf(s, scale, -shift));
            all += s;
          }
        total[r] = total[r] * shrink[r] + all;
      }
    };
    auto keepWeights = [&] {
#pragma unroll
      for (int d = 0; d < kKeys / 16; ++d)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          weights[d][c] = packPair(score[d * 8 + c * 2], score[d * 8 + c * 2 + 1]);
    };

    waitFor(barrier(queriesFull, 0), 0);
    waitFor(barrier(keysFull, 0), 0);
    KeyTile tile = tileOf(0);
    if (tile.sight() != Sight::none) {
      multiplyKeys(0);
      waitProducts<0>();
      soften(tile, 0);
      releaseKeys(tile, 0);
      keepWeights();
      int stage = 0;
      uint32_t parity = 0;
      for (;;) {
        const int last = stage;
        const uint32_t lastParity = parity;
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
        waitFor(barrier(keysFull, stage), parity);
        tile = tileOf(stage);
        if (tile.sight() == Sight::none) {
          waitFor(barrier(valuesFull, last), lastParity);
          multiplyValues(last);
          waitProducts<0>();
          break;
        }
        multiplyKeys(stage);
        waitFor(barrier(valuesFull, last), lastParity);
        multiplyValues(last);
        waitProducts<1>(); // the scores are there
        soften(tile, stage);
        releaseKeys(tile, stage);
        waitProducts<0>();
        if (lane == 0)
          arrive(barrier(valuesEmpty, last));
#pragma unroll
        for (int i = 0; i < valueBlocks * 32; ++i)
          sum[i] *= shrink[i / 2 % 2];
        keepWeights();
      }
    }

    // The results, through the place of this warp's queries.
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] += __shfl_xor_sync(kAllLanes, total[r], 1);
      total[r] += __shfl_xor_sync(kAllLanes, total[r], 2);
      shrink[r] = total[r] == 0 ? 0.0f : 1.0f / total[r];
      if (logSums && lane % 4 == 0 && row0 + r * 8 < queries)
        logSums[(b * a.heads + h) * a.queries + query0 + row0 + r * 8] =
            total[r] == 0 ? -INFINITY : fmaf(largest[r], scale, log2f(total[r])) / kPerNat;
    }
    bf16 *to = static_cast<bf16 *>(a.out) +
               ((b * a.queries + query0 + warp * 16) * a.heads + h) * a.valueDim;
    bf16 *buffer = reinterpret_cast<bf16 *>(aligned) + warp * 16 * kBlock;
    asm volatile("bar.sync %0, 128;\n" ::"r"(warpgroup) : "memory"); // all have read the queries
#pragma unroll
    for (int block = 0; block < valueBlocks; ++block) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kBlock / 16; ++j) {
        const float *s = sum + block * 32 + j * 8;
        storeMatrices(buffer + chunkOffset<8>(lane % 16, j * 2 + lane / 16),
                      packPair(s[0] * shrink[0], s[1] * shrink[0]),
                      packPair(s[2] * shrink[1], s[3] * shrink[1]),
                      packPair(s[4] * shrink[0], s[5] * shrink[0]),
                      packPair(s[6] * shrink[1], s[7] * shrink[1]));
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 16 / 4; ++i) {
        const int row = i * 4 + lane / 8, column = block * kBlock + lane % 8 * kChunk;
        const uint4 values =
            *reinterpret_cast<const uint4 *>(buffer + chunkOffset<8>(row, lane % 8));
        if (warp * 16 + row < queries && column < a.valueDim)
          *reinterpret_cast<uint4 *>(to + int64_t(row) * a.heads * a.valueDim + column) = values;
      }
    }
  }
}

template <int keyBlocks, int valueBlocks> Status launch(const Call &call, const AttentionArgs &a) {
  Maps maps{};
  auto describe = [&](CUtensorMap &map, const void *data, int64_t rows, int64_t heads,
                      int64_t width) {
    return describeHeads(map, data, a.batch, rows, heads, width, kBlock, kQueries);
  };
  const bool shared = a.q2 != nullptr;
  if (!describe(maps.q, a.q, a.queries, a.heads, a.keyDim) ||
      !describe(maps.k, a.k, a.keys, a.kvHeads, a.keyDim) ||
      !describe(maps.v, a.v, a.keys, a.kvHeads, a.valueDim) ||
      (shared && (!describe(maps.q2, a.q2, a.queries, a.heads, a.sharedDim) ||
                  !describe(maps.k2, a.k2, a.keys, 1, a.sharedDim))))
    return noTensorMap(call);
  const int64_t queryTiles = ceilDiv(a.queries, kQueries), blocks = queryTiles * a.heads * a.batch;
  auto kernel = attendTiles<keyBlocks, valueBlocks>;
  constexpr uint32_t bytes = Shared<keyBlocks, valueBlocks>::bytes;
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  kernel<<<unsigned(blocks), kThreads, bytes, call.stream()>>>(
      maps, a, logSumsOf(call), queryTiles, shared ? a.keyDim / kBlock : keyBlocks);
  return launched(call);
}

} // namespace

bool attentionFitsWgmma(const AttentionArgs &a) {
  const size_t addresses = addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out) |
                           addressOf(a.q2) | addressOf(a.k2);
  return addresses % 16 == 0 && (a.keyDim | a.sharedDim | a.valueDim) % kChunk == 0 &&
         (!a.q2 || a.keyDim % kBlock == 0) && a.keyDim + a.sharedDim <= 3 * kBlock &&
         a.valueDim <= 2 * kBlock && a.scale > 0 && a.keys > 0 && a.keys <= INT32_MAX &&
         ceilDiv(a.queries, kQueries) * a.heads * a.batch <= INT32_MAX;
}

Status launchAttentionWgmma(const Call &call, const AttentionArgs &a) {
  const int64_t keyBlocks = ceilDiv(a.keyDim + a.sharedDim, kBlock);
  if (a.valueDim <= kBlock)
    return keyBlocks == 1   ? launch<1, 1>(call, a)
           : keyBlocks == 2 ? launch<2, 1>(call, a)
                            : launch<3, 1>(call, a);
  return keyBlocks == 1   ? launch<1, 2>(call, a)
         : keyBlocks == 2 ? launch<2, 2>(call, a)
                          : launch<3, 2>(call, a);
}

} // namespace moira::rt::cuda
