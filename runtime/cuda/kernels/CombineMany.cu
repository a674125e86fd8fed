//===- CombineMany.cu - combine of many tokens through shared memory --------===//
// Up to kMostChoices choices a token, rows of whole 16 bytes: the copy engine brings the rows'
// pieces to a ring in shared memory, as many bytes ahead as memory needs under way, while threads
// add what is there, in the order of the choices.
//===----------------------------------------------------------------------===//
#include "BulkCopies.h"
#include "Pack.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

constexpr int kMostChoices = 8;
/// Bytes of a row that are brought at a time, 16 for each thread that adds.
constexpr int kPieceBytes = 4096, kAddThreads = kPieceBytes / 16;
/// The ring of a block, which a multiprocessor holds two of.
constexpr int kMostStages = 8, kRingBytes = 96 << 10, kBlocks = 2;
/// With less work for a block than this the ring has no time to fill.
constexpr int64_t kFewPieces = 4;

/// What came to a stage beside the rows: their weights, and which of them are there.
struct Stage {
  float weight[kMostChoices];
  uint32_t there;
};

/// `kAddThreads` threads that add and a warp that has pieces brought.
template <typename T, typename Out>
__global__ void __launch_bounds__(kAddThreads + 32, kBlocks)
    combinePieces(const T *rows, const int32_t *pos, const float *weights, Out *out, int64_t tokens,
                  int32_t k, int64_t width, int64_t available, int32_t stages, int32_t *flag) {
  constexpr int n = kPieceBytes / int(sizeof(T)), each = 16 / int(sizeof(T));
  extern __shared__ __align__(128) unsigned char ring[]; // [stages, k, kPieceBytes]
  __shared__ uint64_t barriers[2 * kMostStages];
  __shared__ Stage beside[kMostStages];
  const uint32_t full = sharedAddress(barriers), empty = full + kMostStages * 8;
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      initBarrier(full + s * 8, 32);
      initBarrier(empty + s * 8, kAddThreads);
    }
    publishBarriers();
  }
  __syncthreads();
  awaitPrevious();

  const int64_t pieces = (width + n - 1) / n, work = tokens * pieces;
  int stage = 0;
  uint32_t parity = 0;
  auto advance = [&] {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (threadIdx.x >= kAddThreads) {
    const int lane = laneNumber();
    auto choiceAt = [&](int64_t at, int32_t &row, float &weight) {
      row = -1;
      weight = 0;
      if (at < work && lane < k) {
        row = pos[at / pieces * k + lane];
        weight = weights[at / pieces * k + lane];
      }
    };
    int32_t row, nextRow;
    float weight, nextWeight;
    choiceAt(blockIdx.x, nextRow, nextWeight);
    for (int64_t at = blockIdx.x; at < work; at += gridDim.x, advance()) {
      row = nextRow;
      weight = nextWeight;
      choiceAt(at + gridDim.x, nextRow, nextWeight);
      const bool there = row >= 0 && row < available;
      if (row < -1 || row >= available)
        raise(flag, Fault::row);
      const int64_t first = at % pieces * n;
      const uint32_t bytes = uint32_t(min(int64_t(n), width - first)) * sizeof(T),
                     mask = __ballot_sync(kAllLanes, there);
      waitFor(empty + stage * 8, parity ^ 1);
      if (lane < kMostChoices)
        beside[stage].weight[lane] = weight;
      if (lane == 0) {
        beside[stage].there = mask;
        arriveExpecting(full + stage * 8, __popc(mask) * bytes);
      } else {
        arrive(full + stage * 8);
      }
      __syncwarp(); // the bytes are expected
      if (there)
        copyBytes(sharedAddress(ring) + (stage * k + lane) * kPieceBytes,
                  rows + row * width + first, bytes, full + stage * 8);
    }
    return;
  }

  for (int64_t at = blockIdx.x; at < work; at += gridDim.x, advance()) {
    const int64_t first = at % pieces * n + threadIdx.x * each;
    waitFor(full + stage * 8, parity);
    const Stage &now = beside[stage];
    float sum[each] = {};
#pragma unroll
    for (int u = 0; u < kMostChoices; ++u)
      if (now.there >> u & 1) {
        const auto part = *reinterpret_cast<const Pack<T, each> *>(
            ring + (stage * k + u) * kPieceBytes + threadIdx.x * 16);
        const float weight = now.weight[u];
#pragma unroll
        for (int i = 0; i < each; ++i)
          sum[i] += weight * toFloat(part.v[i]);
      }
    arrive(empty + stage * 8);
    if (first < width) {
      Pack<Out, each> result;
#pragma unroll
      for (int i = 0; i < each; ++i)
        result.v[i] = fromFloat<Out>(sum[i]);
      *reinterpret_cast<Pack<Out, each> *>(out + at / pieces * width + first) = result;
    }
  }
}

} // namespace

Expected<bool> combineMany(const Call &call) {
  const TensorRef &rows = call.in[0], &pos = call.in[1], &out = call.out[0];
  const int64_t k = trailing(pos, 1), tokens = leading(pos, 1), width = trailing(rows, 1);
  const int64_t rowBytes = width * elementBytes(rows.dtype);
  if (k > kMostChoices || rowBytes % 16 != 0 || addressOf(rows.data) % 16 != 0 ||
      addressOf(out.data) % 32 != 0)
    return false;
  int processors = 0;
  if (Status s = countMultiprocessors(call, processors); !s)
    return s;
  const int64_t blocks = int64_t(processors) * kBlocks;
  if (tokens * ceilDiv(rowBytes, kPieceBytes) < kFewPieces * blocks)
    return false;
  const int32_t stages = std::min(kMostStages, int32_t(kRingBytes / (k * kPieceBytes)));
  const size_t bytes = size_t(stages * k * kPieceBytes);
  Status done = withFloat(rows.dtype, [&]<typename T>(T) {
    return withFloat(out.dtype, [&]<typename Out>(Out) {
      auto kernel = combinePieces<T, Out>;
      if (Status s = allowSharedBytes(call, kernel, kRingBytes); !s)
        return s;
      return launchEarly(call, kernel, unsigned(blocks), kAddThreads + 32, bytes, call.input<T>(0),
                         call.input<int32_t>(1), call.input<float>(2), call.output<Out>(0), tokens,
                         k, width, leading(rows, 1), stages, call.context.errorFlag);
    });
  });
  if (!done)
    return done;
  return true;
}

} // namespace moira::rt::cuda
