//===- FastAttention.cpp - blocked attention --------------------------------===//
// Blocks of queries against blocks of keys with online softmax, sums in float. Keys and values are
// read where they lie, once for four queries. Block pairs in which nobody sees anybody are skipped,
// so causal attention does about half of the work. Each block of queries is a task of its own, in
// which the order of keys is fixed: same input, same bits.
//===----------------------------------------------------------------------===//
#include "AttentionShape.h"
#include "RowTile.h"
#include "Softmax.h"
#include "Vectors.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

namespace moira::rt::host {

namespace {

constexpr int64_t queryBlock = 64, keyBlock = 256;

/// How many rows of keys or values ahead of its loads a loop fetches. Rows of one head lie apart
/// from each other, where the processor does not expect them.
constexpr int64_t kAheadRows = 24;

template <typename S> [[gnu::always_inline]] inline void prefetchRow(const S *row, int64_t width) {
  for (int64_t i = 0; i < width; i += 64 / int64_t(sizeof(S)))
    __builtin_prefetch(row + i, 0, 2);
}

using Floats [[gnu::vector_size(64)]] = float;
using Words [[gnu::vector_size(64)]] = uint32_t;
using Halves [[gnu::vector_size(32)]] = uint16_t;
constexpr int64_t kFloats = 16;

/// sums[i * width + d] += sum_j weights[i * count + j] * v[j * stride + d], for `rows` rows i and
/// the kFloats * vectors columns from d on, in the order of j.
template <int rows, int vectors, typename S>
[[gnu::always_inline]] inline void addTile(const float *weights, int64_t count, const S *v,
                                           int64_t stride, float *sums, int64_t width) {
  Floats total[rows][vectors];
  for (int i = 0; i < rows; ++i)
    for (int c = 0; c < vectors; ++c)
      std::memcpy(&total[i][c], sums + i * width + c * kFloats, sizeof(Floats));
  for (int64_t j = 0; j < count; ++j) {
    Floats value[vectors];
    if (rows == 1)
      prefetchRow(v + (j + kAheadRows) * stride, vectors * kFloats);
    for (int c = 0; c < vectors; ++c)
      if constexpr (std::is_same_v<S, float>) {
        std::memcpy(&value[c], v + j * stride + c * kFloats, sizeof(Floats));
      } else {
        Halves bits;
        std::memcpy(&bits, v + j * stride + c * kFloats, sizeof bits);
        value[c] = reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
      }
    for (int i = 0; i < rows; ++i)
      for (int c = 0; c < vectors; ++c)
        total[i][c] += weights[i * count + j] * value[c];
  }
  for (int i = 0; i < rows; ++i)
    for (int c = 0; c < vectors; ++c)
      std::memcpy(sums + i * width + c * kFloats, &total[i][c], sizeof(Floats));
}

/// addTile for all `width` columns.
template <int rows, int vectors, typename S>
[[gnu::always_inline]] inline void addRows(const float *weights, int64_t count, const S *v,
                                           int64_t stride, float *sums, int64_t width) {
  int64_t d = 0;
  for (; d + vectors * kFloats <= width; d += vectors * kFloats)
    addTile<rows, vectors>(weights, count, v + d, stride, sums + d, width);
  for (; d + kFloats <= width; d += kFloats)
    addTile<rows, 1>(weights, count, v + d, stride, sums + d, width);
  for (; d < width; ++d)
    for (int i = 0; i < rows; ++i)
      for (int64_t j = 0; j < count; ++j)
        sums[i * width + d] += weights[i * count + j] * float(v[j * stride + d]);
}

template <typename S>
[[gnu::always_inline]] inline void addAll(const float *weights, int64_t rows, int64_t count,
                                          const S *v, int64_t stride, float *sums, int64_t width) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4)
    addRows<4, 4>(weights + i * count, count, v, stride, sums + i * width, width);
  for (; i < rows; ++i)
    addRows<1, 8>(weights + i * count, count, v, stride, sums + i * width, width);
}

/// sums[rows, width] += weights[rows, count] · v[count, width], rows of v `stride` apart.
MOIRA_VECTORS void addWeighted(const float *weights, int64_t rows, int64_t count, const float *v,
                               int64_t stride, float *sums, int64_t width) {
  addAll(weights, rows, count, v, stride, sums, width);
}
MOIRA_VECTORS void addWeighted(const float *weights, int64_t rows, int64_t count, const Bf16 *v,
                               int64_t stride, float *sums, int64_t width) {
  addAll(weights, rows, count, v, stride, sums, width);
}

/// A block of queries, packed for tiles.
template <typename S> class Queries {
public:
  Queries(const S *from, int64_t stride, int64_t rows, int64_t width)
      : rows(rows), width(width), packed(size_t(packedSize(1, width) * rows)) {
    for (int64_t i = 0; i < rows; i += kTileRows)
      packRows(from + i * stride, stride, rowsAt(i), width,
               packed.data() + packedSize(1, width) * i);
  }
  /// scores[rows, count] += scale * queries · keysᵀ, rows of the keys `stride` apart.
  void addScores(const S *keys, int64_t stride, int64_t count, float scale, float *scores) const {
    const RowTileKind<S> &tile = rowTiles<S>().front();
    float sums[kTileSums];
    for (int64_t j = 0; j < count; j += tile.columns) {
      int columns = int(std::min<int64_t>(tile.columns, count - j));
      const S *at = keys + j * stride;
      for (int64_t row = 0; row < columns; ++row)
        prefetchRow(at + (row + kAheadRows) * stride, width);
      for (int64_t i = 0; i < rows; i += kTileRows) {
        tile.block(packed.data() + packedSize(1, width) * i, rowsAt(i), at, stride, columns, width,
                   {at, 0}, sums);
        for (int r = 0; r < rowsAt(i); ++r)
          for (int c = 0; c < columns; ++c)
            scores[(i + r) * count + j + c] += scale * sums[r * columns + c];
      }
    }
  }

private:
  int rowsAt(int64_t i) const { return int(std::min<int64_t>(kTileRows, rows - i)); }
  int64_t rows, width;
  std::vector<S> packed;
};

} // namespace

template <typename S> Status fast::attention(const Call &call) {
  AttentionShape a;
  if (Status s = attentionShape(call, a); !s)
    return s;
  const S *q = call.input<S>(0), *k = call.input<S>(1), *v = call.input<S>(2);
  auto optional = []<typename T>(const TensorRef *t, T) {
    return t ? static_cast<const T *>(t->data) : nullptr;
  };
  const S *q2 = optional(a.q2, S()), *k2 = optional(a.k2, S());
  const float *bias = optional(a.bias, float()), *sinks = optional(a.sinks, float());
  S *out = call.output<S>(0);
  float *logSums = a.logSums ? static_cast<float *>(a.logSums->data) : nullptr;
  float scale = float(call.params.real("scale", 1));
  int64_t keyStride = a.kvHeads * a.keyDim, valueStride = a.kvHeads * a.valueDim;
  int64_t blocks = (a.queries + queryBlock - 1) / queryBlock;

  return parallelTry(a.batch * a.heads * blocks, [&](int64_t task) {
    int64_t b = task / blocks / a.heads, h = task / blocks % a.heads;
    int64_t i0 = task % blocks * queryBlock, nq = std::min(queryBlock, a.queries - i0);
    int64_t row0 = (b * a.queries + i0) * a.heads + h;
    std::vector<float> score(size_t(nq * std::min(keyBlock, a.keys)));
    std::vector<float> result(size_t(nq * a.valueDim));
    // A sink is a key that was seen before all others and adds nothing to the result.
    std::vector<float> largest(size_t(nq), sinks ? sinks[h] : -INFINITY);
    std::vector<float> total(size_t(nq), sinks ? 1.0f : 0.0f);
    Queries<S> queries(q + row0 * a.keyDim, a.heads * a.keyDim, nq, a.keyDim);
    std::optional<Queries<S>> queries2;
    if (q2)
      queries2.emplace(q2 + row0 * a.sharedDim, a.heads * a.sharedDim, nq, a.sharedDim);
    PositionRange queryRange(a.qpos + i0, nq);
    for (int64_t j0 = 0; j0 < a.keys; j0 += keyBlock) {
      auto [first, end] = a.keysInSight(queryRange, j0, std::min(j0 + keyBlock, a.keys));
      if (first == end)
        continue;
      int64_t nk = end - first, key0 = b * a.keys + first;
      int64_t kv = key0 * a.kvHeads + a.kvHeadOf[size_t(h)];
      std::fill_n(score.begin(), nq * nk, 0.0f);
      queries.addScores(k + kv * a.keyDim, keyStride, nk, scale, score.data());
      if (queries2)
        queries2->addScores(k2 + key0 * a.sharedDim, a.sharedDim, nk, scale, score.data());
      for (int64_t i = 0; i < nq; ++i) {
        float *row = score.data() + i * nk;
        if (bias) {
          const float *added = bias + (h * a.queries + i0 + i) * a.keys + first;
          for (int64_t j = 0; j < nk; ++j)
            row[j] += added[j];
        }
        for (int64_t j = 0; j < nk; ++j)
          if (!a.sees(b, i0 + i, first + j))
            row[j] = -INFINITY;
        float top = largestOf(row, nk, largest[size_t(i)]);
        if (top == -INFINITY) { // nothing seen yet: keep the block's weights zero
          std::fill_n(row, nk, 0.0f);
          continue;
        }
        float sum = exponentials(row, nk, top), keep = expNegative(largest[size_t(i)] - top);
        largest[size_t(i)] = top;
        total[size_t(i)] = total[size_t(i)] * keep + sum;
        for (int64_t d = 0; d < a.valueDim; ++d)
          result[size_t(i * a.valueDim + d)] *= keep;
      }
      addWeighted(score.data(), nq, nk, v + kv * a.valueDim, valueStride, result.data(),
                  a.valueDim);
    }
    for (int64_t i = 0; i < nq; ++i) {
      float factor = total[size_t(i)] > 0 ? 1 / total[size_t(i)] : 0;
      S *target = out + (row0 + i * a.heads) * a.valueDim;
      for (int64_t d = 0; d < a.valueDim; ++d)
        target[d] = S(result[size_t(i * a.valueDim + d)] * factor);
      if (logSums)
        logSums[(b * a.heads + h) * a.queries + i0 + i] =
            largest[size_t(i)] + std::log(total[size_t(i)]);
    }
    return Status();
  });
}
template Status fast::attention<float>(const Call &);
template Status fast::attention<Bf16>(const Call &);

} // namespace moira::rt::host
