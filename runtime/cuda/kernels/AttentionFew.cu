//===- AttentionFew.cu - attention of few queries over many keys ------------===//
// Decode: what takes time is reading the cache. All query rows of a key/value head (its query heads
// times the queries) are one tile of 16 rows, so keys and values are read once. The keys are shared
// out, 16 at a time, among the warps of a cluster; each warp has its own ring of copies under way
// and its own running softmax. The parts are put together in shared memory: each block of the
// cluster is sent the others' parts of its columns, and adds them in the order of the blocks.
//===----------------------------------------------------------------------===//
#include "AttentionTools.h"
#include "BulkCopies.h"
#include "Tiles.h"

#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kRows = 16, kKeys = 16;
/// The largest cluster that every device of this generation takes, and the largest of all.
constexpr int kPortableBlocks = 8, kMostBlocks = 16;
/// Multiprocessors of a large device, each of which holds one of the largest blocks.
constexpr int64_t kProcessors = 132;

/// Shared memory for keys of up to `keyWidth` values, both parts, and values of up to `valueWidth`.
template <int keyWidth, int valueWidth, int warpCount, int stageCount> struct Layout {
  static constexpr int warps = warpCount, threads = warps * 32, stages = stageCount;
  static constexpr int queryValues = kRows * keyWidth,
                       stageValues = kKeys * (keyWidth + valueWidth),
                       ringValues = stages * stageValues;
  /// Partial results of a warp lie in its ring once that is read.
  /// Rows of such a part, in f32: a little apart, so that eight rows meet no bank together.
  static constexpr int partStride = valueWidth + 8;
  static_assert(kRows * partStride * 2 <= ringValues);
  /// What a block gets of all parts: its columns of each, which are as many f32 as one part has.
  static constexpr int inboxValues = kRows * valueWidth * 2;
  static constexpr size_t bytes =
      size_t(queryValues + warps * ringValues + inboxValues) * sizeof(bf16);
};

/// The query heads of this rank that read key/value head `head`: [first, end).
__device__ inline void headsOf(const AttentionArgs &a, int64_t head, int64_t &first, int64_t &end) {
  auto from = [&](int64_t kv) { // the first query head that reads kv head `kv` or a later one
    int64_t h = ((kv + a.kvOffset) * a.allHeads + a.allKvHeads - 1) / a.allKvHeads - a.headOffset;
    return max(int64_t(0), min(int64_t(a.heads), h));
  };
  first = from(head);
  end = from(head + 1);
}

// A block's barrier of its cluster: what it did before it arrived is done; none of its memory is
// meant. And stores to a block's shared memory that count down a barrier of that block.
__device__ inline void arriveInCluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
}
__device__ inline void awaitCluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}
/// The place in block `rank` of the cluster that is `address` in this one.
__device__ inline uint32_t inBlock(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
__device__ inline void send(uint32_t to, float4 v, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, "
               "%3, %4}, [%5];\n" ::"r"(to),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
               : "memory");
}
__device__ inline void send(uint32_t to, float x, float y, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, "
               "[%3];\n" ::"r"(to),
               "f"(x), "f"(y), "r"(barrier)
               : "memory");
}

/// Maximum and sum of the exponentials (of 2) of a row's scores, as far as seen.
struct RowState {
  float largest, total;
};

/// All operands are 16-byte aligned and the head dimensions multiples of 8.
template <int keyWidth, int valueWidth, int warpCount, int stageCount>
__global__ void __launch_bounds__(Layout<keyWidth, valueWidth, warpCount, stageCount>::threads)
    attendFew(AttentionArgs a, int32_t rowTiles) {
  using L = Layout<keyWidth, valueWidth, warpCount, stageCount>;
  namespace cg = cooperative_groups;
  constexpr int kWarps = L::warps, kThreads = L::threads;
  constexpr int keyChunks = keyWidth / kChunk, valueChunks = valueWidth / kChunk;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  __shared__ int32_t positions[kWarps][L::stages][kKeys], masks[kWarps][L::stages][kKeys];
  __shared__ int32_t tileNumbers[kWarps][L::stages];
  __shared__ RowState states[kWarps][kRows], blockStates[kMostBlocks][kRows];
  __shared__ float factors[kWarps][kRows]; // of the parts that are put together
  __shared__ uint64_t receivedWord;
  bf16 *queryTile = reinterpret_cast<bf16 *>(sharedBytes);
  const int lane = laneNumber(), warp = int(threadIdx.x) / 32;
  bf16 *ring = queryTile + L::queryValues + warp * L::ringValues;

  cg::cluster_group cluster = cg::this_cluster();
  const int blocks = int(cluster.num_blocks()), rank = int(cluster.block_rank());
  const int64_t kvHead = blockIdx.y / rowTiles, b = blockIdx.z;
  int64_t head0, headEnd;
  headsOf(a, kvHead, head0, headEnd);
  const int32_t heads = int32_t(headEnd - head0);
  const int32_t row0 = int32_t(blockIdx.y % rowTiles) * kRows;
  const int32_t rows = int32_t(max(int64_t(0), min(int64_t(kRows), a.queries * heads - row0)));
  // Row r is query (row0 + r) / heads, head head0 + (row0 + r) % heads.
  auto queryOf = [&](int r) { return int64_t(uint32_t(row0 + r) / uint32_t(heads)); };
  auto headOf = [&](int r) { return head0 + uint32_t(row0 + r) % uint32_t(heads); };
  auto placeOf = [&](int r) { return (b * a.queries + queryOf(r)) * a.heads + headOf(r); };

  // What is sent to this block counts down a barrier.
  const uint32_t received = sharedAddress(&receivedWord);
  const int columns = valueWidth / blocks; // that this block puts together
  if (threadIdx.x == 0) {
    initBarrier(received, 1);
    publishBarriers();
    arriveExpecting(received,
                    uint32_t(blocks * rows) * uint32_t(columns * sizeof(float) + sizeof(RowState)));
  }
  __syncwarp();
  arriveInCluster();

  const int64_t keyStride = int64_t(a.kvHeads) * a.keyDim,
                valueStride = int64_t(a.kvHeads) * a.valueDim, key00 = b * a.keys;
  const bf16 *k = static_cast<const bf16 *>(a.k) + (key00 * a.kvHeads + kvHead) * a.keyDim,
             *k2 = static_cast<const bf16 *>(a.k2) + key00 * a.sharedDim,
             *v = static_cast<const bf16 *>(a.v) + (key00 * a.kvHeads + kvHead) * a.valueDim;

  const int64_t tiles = rows > 0 ? (a.keys + kKeys - 1) / kKeys : 0, step = blocks * kWarps;
  int64_t tile = rank * kWarps + warp;
  int issued = 0;
  // Positions and masks are loaded one tile ahead, key `lane` in this lane.
  int32_t nextPosition = 0, nextMask = 0;
  auto look = [&] {
    const int64_t key = tile * kKeys + lane;
    const bool there = lane < kKeys && key < a.keys;
    nextPosition = there ? keyPositionOf(a, key) : 0;
    nextMask = there ? keyMaskOf(a, b, key) : 0;
  };
  awaitPrevious();
  look();
  // The queries, both parts, zeros behind them.
  for (int i = int(threadIdx.x); i < kRows * keyChunks; i += kThreads) {
    const int row = i / keyChunks, value = i % keyChunks * kChunk;
    const bf16 *from = nullptr;
    if (row < rows && value < a.keyDim)
      from = static_cast<const bf16 *>(a.q) + placeOf(row) * a.keyDim + value;
    else if (row < rows && value < a.keyDim + a.sharedDim)
      from = static_cast<const bf16 *>(a.q2) + placeOf(row) * a.sharedDim + value - a.keyDim;
    copyAsync(queryTile + chunkOffset<keyChunks>(row, i % keyChunks), from ? from : k,
              from != nullptr);
  }
  commitCopies();

  int32_t least = INT32_MAX, greatest = INT32_MIN, queryPosition[2];
  const int32_t firstQuery = rows > 0 ? int32_t(queryOf(0)) : 0,
                lastQuery = rows > 0 ? int32_t(queryOf(rows - 1)) : -1;
  for (int32_t i = firstQuery; i <= lastQuery; ++i) {
    const int32_t position = queryPositionOf(a, i);
    least = min(least, position);
    greatest = max(greatest, position);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    queryPosition[r] = rows > 0 ? queryPositionOf(a, queryOf(min(rows - 1, lane / 4 + r * 8))) : 0;

  // Eight lanes copy eight chunks of a row, four rows at once. Rows 4 i + lane / 8 have one of two
  // swizzles.
  const int laneRow = lane / 8, laneChunk = lane % 8;
  const uint32_t swizzled[2] = {uint32_t(laneChunk ^ laneRow) * 16,
                                uint32_t(laneChunk ^ (laneRow + 4)) * 16};
  const uint32_t ringAddress = sharedAddress(ring);
  auto copyRows = [&](uint32_t to, auto width, unsigned seen, const bf16 *own, int64_t stride,
                      int32_t ownWidth, const bf16 *more, int64_t moreStride, int32_t allWidth) {
    constexpr int chunks = decltype(width)::value / kChunk;
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      const bool wanted = seen >> (i * 4 + laneRow) & 1;
      const uint32_t rowTo = to + (i * 4 + laneRow) * chunks * 16 + swizzled[i % 2];
#pragma unroll
      for (int c = 0; c < chunks / 8; ++c) {
        const int value = (c * 8 + laneChunk) * kChunk;
        const bf16 *from = value < ownWidth ? own + value : more + (value - ownWidth);
        const bool there = wanted && value < allWidth;
        asm volatile(
            "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(rowTo + c * 128),
            "l"(there ? from : own), "r"(there ? 16 : 0)
            : "memory");
      }
      own += 4 * stride;
      more += 4 * moreStride;
    }
  };
  // Starts copying this warp's next tile of which some query sees a key; one group of copies in any
  // case. Keys that no query sees are not read, so that nothing depends on what lies there.
  auto issue = [&] {
    while (tile < tiles) {
      const int32_t position = nextPosition, mask = nextMask;
      const int64_t key0 = tile * kKeys;
      const int32_t number = int32_t(tile);
      tile += step;
      look();
      const unsigned seen =
          __ballot_sync(kAllLanes, mask != 0 && (!a.causal || position <= greatest) &&
                                       (a.window <= 0 || int64_t(least) - position < a.window));
      if (seen == 0)
        continue;
      const int stage = issued % L::stages;
      if (lane < kKeys) {
        positions[warp][stage][lane] = position;
        masks[warp][stage][lane] = mask;
      }
      if (lane == 0)
        tileNumbers[warp][stage] = number;
      // Rows that are not wanted are not read: their addresses may lie behind the end.
      const uint32_t to = ringAddress + stage * L::stageValues * sizeof(bf16);
      copyRows(to, std::integral_constant<int, keyWidth>(), seen, k + (key0 + laneRow) * keyStride,
               keyStride, a.keyDim, k2 + (key0 + laneRow) * a.sharedDim, a.sharedDim,
               a.keyDim + a.sharedDim);
      copyRows(to + kKeys * keyWidth * sizeof(bf16), std::integral_constant<int, valueWidth>(),
               seen, v + (key0 + laneRow) * valueStride, valueStride, a.valueDim, v, 0, a.valueDim);
      ++issued;
      break;
    }
    commitCopies();
  };
#pragma unroll
  for (int s = 0; s < L::stages - 1; ++s)
    issue();
  waitCopies<L::stages - 1>(); // the queries are there
  __syncthreads();

  const int keySteps = (a.keyDim + a.sharedDim + 15) / 16, valueSteps = (a.valueDim + 15) / 16;
  constexpr float perNat = 1.44269504088896341f; // exponentials are powers of two
  const float scale = a.scale * perNat;
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {}, sum[valueWidth / 8][4] = {};
  for (int used = 0; used < issued; ++used) {
    const int stage = used % L::stages;
    issue();
    waitCopies<L::stages - 1>();
    __syncwarp();
    const bf16 *keyTile = ring + stage * L::stageValues, *valueTile = keyTile + kKeys * keyWidth;
    float score[2][4] = {};
#pragma unroll 4
    for (int s = 0; s < keySteps; ++s) {
      uint32_t left[4], right[4];
      loadA<keyChunks>(left, queryTile, 0, s);
      loadB<keyChunks>(right, keyTile, 0, s);
      multiplyAdd(score[0], left, right[0], right[1]);
      multiplyAdd(score[1], left, right[2], right[3]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int key = j * 8 + lane % 4 * 2 + c % 2;
        const bool visible =
            sees(a, queryPosition[c / 2], positions[warp][stage][key], masks[warp][stage][key]);
        score[j][c] = visible ? score[j][c] * scale : -INFINITY;
      }
    if (a.bias)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int row = lane / 4 + c / 2 * 8;
          const int64_t at =
              int64_t(tileNumbers[warp][stage]) * kKeys + j * 8 + lane % 4 * 2 + c % 2;
          if (row < rows && at < a.keys)
            score[j][c] += a.bias[(headOf(row) * a.queries + queryOf(row)) * a.keys + at] * perNat;
        }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(largest[r], fmaxf(fmaxf(score[0][r * 2], score[0][r * 2 + 1]),
                                           fmaxf(score[1][r * 2], score[1][r * 2 + 1])));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float shift = most == -INFINITY ? 0.0f : most; // no key seen: all weights are 2^-inf
      shrink[r] = exp2f(largest[r] - shift);
      largest[r] = most;
      total[r] *= shrink[r];
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          score[j][r * 2 + c] = exp2f(score[j][r * 2 + c] - shift);
          total[r] += score[j][r * 2 + c];
        }
    }
    const uint32_t weights[4] = {
        packPair(score[0][0], score[0][1]), packPair(score[0][2], score[0][3]),
        packPair(score[1][0], score[1][1]), packPair(score[1][2], score[1][3])};
#pragma unroll
    for (int d = 0; d < valueWidth / 16; ++d) {
      if (d >= valueSteps)
        break;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sum[d * 2][c] *= shrink[c / 2];
        sum[d * 2 + 1][c] *= shrink[c / 2];
      }
      uint32_t right[4];
      loadBTransposed<valueChunks>(right, valueTile, 0, d);
      multiplyAdd(sum[d * 2], weights, right[0], right[1]);
      multiplyAdd(sum[d * 2 + 1], weights, right[2], right[3]);
    }
    __syncwarp(); // the stage is free
  }
  waitCopies<0>();
  __syncwarp();

  // This warp's part.
  float *part = reinterpret_cast<float *>(ring);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 1);
    total[r] += __shfl_xor_sync(kAllLanes, total[r], 2);
    const int row = lane / 4 + r * 8;
    if (row >= rows)
      continue;
    if (lane % 4 == 0)
      states[warp][row] = {largest[r], total[r]};
#pragma unroll
    for (int d = 0; d < valueWidth / 8; ++d)
      *reinterpret_cast<float2 *>(part + row * L::partStride + d * 8 + lane % 4 * 2) =
          make_float2(sum[d][r * 2], sum[d][r * 2 + 1]);
  }
  awaitCluster();
  __syncthreads();

  // The block's part: each row's state to all blocks, columns to the block that they belong to.
  for (int i = int(threadIdx.x); i < kRows * blocks; i += kThreads) {
    const int row = i % kRows, to = i / kRows;
    if (row >= rows)
      continue;
    float most = -INFINITY, all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      most = fmaxf(most, states[w][row].largest);
    const float shift = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(states[w][row].largest - shift);
      if (to == 0)
        factors[w][row] = factor;
      all += factor * states[w][row].total;
    }
    if (blocks == 1)
      blockStates[0][row] = {most, all};
    else
      send(inBlock(sharedAddress(&blockStates[rank][row]), to), most, all, inBlock(received, to));
  }
  __syncthreads();
  float *inbox = reinterpret_cast<float *>(queryTile + L::queryValues + kWarps * L::ringValues);
  for (int i = int(threadIdx.x) * 4; i < rows * valueWidth; i += kThreads * 4) {
    const int row = i / valueWidth, column = i % valueWidth, to = column / columns;
    float4 value{};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float4 one = *reinterpret_cast<const float4 *>(
          reinterpret_cast<const float *>(queryTile + L::queryValues + w * L::ringValues) +
          row * L::partStride + column);
      const float factor = factors[w][row];
      value.x += factor * one.x;
      value.y += factor * one.y;
      value.z += factor * one.z;
      value.w += factor * one.w;
    }
    float *at = inbox + (rank * kRows + row) * columns + column % columns;
    if (blocks == 1)
      *reinterpret_cast<float4 *>(at) = value;
    else
      send(inBlock(sharedAddress(at), to), value, inBlock(received, to));
  }
  if (blocks == 1) // nothing was sent
    __syncthreads();
  else
    waitFor(received, 0);

  // The whole of this block's columns: 16 lanes have a row's states.
  static_assert(kMostBlocks == 16);
  __shared__ float blockFactors[kMostBlocks][kRows];
  for (int row = warp * 2 + lane / 16; row < kRows; row += kWarps * 2) {
    const int s = lane % 16;
    const RowState state = s < blocks && row < rows ? blockStates[s][row] : RowState{-INFINITY, 0};
    // A sink is a key that adds nothing to the result.
    const float sink = a.sinks && row < rows ? a.sinks[headOf(row)] * perNat : -INFINITY;
    float most = fmaxf(sink, state.largest);
#pragma unroll
    for (int step = 8; step > 0; step /= 2)
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
    const float shift = most == -INFINITY ? 0.0f : most;
    const float factor = exp2f(state.largest - shift);
    float all = factor * state.total;
#pragma unroll
    for (int step = 8; step > 0; step /= 2)
      all += __shfl_xor_sync(kAllLanes, all, step);
    all += exp2f(sink - shift);
    blockFactors[s][row] = all == 0 ? 0.0f : factor / all;
  }
  __syncthreads();
  bf16 *out = static_cast<bf16 *>(a.out);
  for (int i = int(threadIdx.x); i < rows * columns; i += kThreads) {
    const int row = i / columns, column = rank * columns + i % columns;
    if (column >= a.valueDim)
      continue;
    float value = 0;
#pragma unroll 8
    for (int s = 0; s < blocks; ++s)
      value += blockFactors[s][row] * inbox[s * kRows * columns + i];
    out[placeOf(row) * a.valueDim + column] = fromFloat<bf16>(value);
  }
}

int64_t rowsOf(const AttentionArgs &a) {
  return a.queries * std::min<int64_t>(a.heads, ceilDiv(a.allHeads, a.allKvHeads));
}

template <int keyWidth, int valueWidth, int warpCount, int stageCount>
Status launch(const Call &call, const AttentionArgs &a) {
  using L = Layout<keyWidth, valueWidth, warpCount, stageCount>;
  const int64_t rowTiles = ceilDiv(rowsOf(a), kRows), tiles = rowTiles * a.kvHeads;
  auto kernel = attendFew<keyWidth, valueWidth, warpCount, stageCount>;
  constexpr size_t bytes = L::bytes;
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(L::threads);
  config.dynamicSmemBytes = bytes;
  config.stream = call.stream();
  config.attrs = attributes;
  config.numAttrs = call.context.early ? 2 : 1;
  auto cut = [&](int blocks) { // the keys among so many
    attributes[0].val.clusterDim = {unsigned(blocks), 1, 1};
    config.gridDim = dim3(unsigned(blocks), unsigned(tiles), unsigned(a.batch));
  };
  // As many blocks as a large device runs at once, as long as each warp has a tile of keys.
  auto wants = [&](int blocks) {
    return blocks * tiles * a.batch <= kProcessors && blocks / 2 * L::warps * kKeys < a.keys;
  };
  int blocks = 1;
  while (blocks < kPortableBlocks && wants(blocks * 2))
    blocks *= 2;
  if (blocks == kPortableBlocks && wants(kMostBlocks)) {
    if (Status s = checked(
            call.name,
            cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
        !s)
      return s;
    cut(kMostBlocks);
    int clusters = 0; // that run at once here
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess)
      cudaGetLastError(); // such clusters are not for this device
    if (clusters >= tiles * a.batch)
      blocks = kMostBlocks;
  }
  cut(blocks);
  return checked(call.name, cudaLaunchKernelEx(&config, kernel, a, int32_t(rowTiles)));
}

} // namespace

bool hasFewQueries(const AttentionArgs &a) {
  const size_t addresses = addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out) |
                           addressOf(a.q2) | addressOf(a.k2);
  constexpr int64_t most = 65535; // of a grid's dimensions
  return (a.queries == 1 || rowsOf(a) <= kRows) && addresses % 16 == 0 &&
         (a.keyDim | a.sharedDim | a.valueDim) % kChunk == 0 && a.batch <= most &&
         ceilDiv(rowsOf(a), kRows) * a.kvHeads <= most;
}

Status launchAttentionFew(const Call &call, const AttentionArgs &a) {
  const int32_t keys = a.keyDim + a.sharedDim, values = a.valueDim;
  if (keys <= 64 && values <= 64)
    return launch<64, 64, 8, 3>(call, a);
  if (keys <= 128 && values <= 128) {
    // More heads than large blocks run at once: four small ones run on a multiprocessor.
    if (ceilDiv(rowsOf(a), kRows) * a.kvHeads * a.batch > kProcessors)
      return launch<128, 128, 2, 2>(call, a);
    return launch<128, 128, 8, 3>(call, a);
  }
  if (keys <= 192 && values <= 128)
    return launch<192, 128, 8, 2>(call, a);
  return launch<256, 256, 4, 2>(call, a);
}

} // namespace moira::rt::cuda
