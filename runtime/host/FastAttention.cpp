//===- FastAttention.cpp - blocked attention --------------------------------===//
// Blocks of queries against blocks of keys, products by oneDNN, online softmax, all in float:
// blocks of bf16 are converted before use. Block pairs in which nobody sees anybody are skipped, so
// causal attention does about half of the work. Order of blocks is fixed: same input, same bits.
//===----------------------------------------------------------------------===//
#include "AttentionShape.h"
#include "OneDnn.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace moira::rt::host {

namespace {

constexpr int64_t queryBlock = 64, keyBlock = 256;

/// e^x for x <= 0 within 2 ulp, without branches or calls so that loops over it vectorise. Zero
/// below -87, NaN for NaN.
inline float expNegative(float x) {
  constexpr float toInteger =
      12582912.0f; // 1.5 * 2^23: the sum's low mantissa bits are the integer
  float clamped = x < -87.0f ? -87.0f : x;
  float shifted = clamped * 1.44269504f + toInteger;
  float n = shifted - toInteger;
  float r = clamped - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : p * power;
}

/// Positions of a block, to rule whole pairs out.
struct Range {
  int32_t low, high;
  Range(const int32_t *first, int64_t n) {
    auto [l, h] = std::minmax_element(first, first + n);
    low = *l;
    high = *h;
  }
};

/// `rows` rows of `width` elements as floats: where they lie, or converted.
template <typename S> class Block {
public:
  Block(int64_t mostRows, int64_t width) : width(width) {
    if constexpr (!std::is_same_v<S, float>)
      converted.resize(size_t(mostRows * width));
  }
  void load(const S *from, int64_t fromStride, int64_t rows) {
    if constexpr (std::is_same_v<S, float>) {
      data = from;
      stride = fromStride;
    } else {
      for (int64_t i = 0; i < rows; ++i)
        std::copy_n(from + i * fromStride, width, converted.data() + i * width);
      data = converted.data();
      stride = width;
    }
  }
  const float *data = nullptr;
  int64_t stride = 0;

private:
  int64_t width;
  std::vector<float> converted;
};

} // namespace

template <typename S> Status fast::attention(const Call &call) {
  AttentionShape a;
  if (Status s = attentionShape(call, a); !s)
    return s;
  const S *q = call.input<S>(0), *k = call.input<S>(1), *v = call.input<S>(2);
  const int32_t *qpos = call.input<int32_t>(3), *kpos = call.input<int32_t>(4),
                *kmask = call.input<int32_t>(5);
  auto optional = []<typename T>(const TensorRef *t, T) {
    return t ? static_cast<const T *>(t->data) : nullptr;
  };
  const S *q2 = optional(a.q2, S()), *k2 = optional(a.k2, S());
  const float *bias = optional(a.bias, float()), *sinks = optional(a.sinks, float());
  S *out = call.output<S>(0);
  float scale = float(call.params.real("scale", 1));
  int64_t keyStride = a.kvHeads * a.keyDim, valueStride = a.kvHeads * a.valueDim;

  std::vector<float> score(size_t(queryBlock * keyBlock)), largest(queryBlock), total(queryBlock),
      result(size_t(queryBlock * a.valueDim));
  Block<S> queries(queryBlock, a.keyDim), keys(keyBlock, a.keyDim), values(keyBlock, a.valueDim),
      queries2(queryBlock, a.sharedDim), keys2(keyBlock, a.sharedDim);
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t h = 0; h < a.heads; ++h)
      for (int64_t i0 = 0; i0 < a.queries; i0 += queryBlock) {
        int64_t nq = std::min(queryBlock, a.queries - i0);
        Range queryRange(qpos + i0, nq);
        // A sink is a key that was seen before all others and adds nothing to the result.
        std::fill(largest.begin(), largest.end(), sinks ? sinks[h] : -INFINITY);
        std::fill(total.begin(), total.end(), sinks ? 1.0f : 0.0f);
        std::fill(result.begin(), result.end(), 0.0f);
        int64_t row0 = (b * a.queries + i0) * a.heads + h;
        queries.load(q + row0 * a.keyDim, a.heads * a.keyDim, nq);
        if (q2)
          queries2.load(q2 + row0 * a.sharedDim, a.heads * a.sharedDim, nq);
        for (int64_t j0 = 0; j0 < a.keys; j0 += keyBlock) {
          int64_t nk = std::min(keyBlock, a.keys - j0);
          Range keyRange(kpos + j0, nk);
          if ((a.causal && keyRange.low > queryRange.high) ||
              (a.window > 0 && int64_t(queryRange.low) - keyRange.high >= a.window))
            continue;
          int64_t key0 = b * a.keys + j0, kv = key0 * a.kvHeads + a.kvHeadOf[size_t(h)];
          auto scores = [&](const Block<S> &x, const Block<S> &y, int64_t width, float before) {
            return OneDnn::get()->sgemm('N', 'T', nq, nk, width, scale, x.data, x.stride, y.data,
                                        y.stride, before, score.data(), nk) == dnnl_success;
          };
          keys.load(k + kv * a.keyDim, keyStride, nk);
          values.load(v + kv * a.valueDim, valueStride, nk);
          if (q2)
            keys2.load(k2 + key0 * a.sharedDim, a.sharedDim, nk);
          if (!scores(queries, keys, a.keyDim, 0.0f) ||
              (q2 && !scores(queries2, keys2, a.sharedDim, 1.0f)))
            return badCall(call, "oneDNN refused the product of queries and keys");
          for (int64_t i = 0; i < nq; ++i) {
            float *row = score.data() + i * nk;
            if (bias) {
              const float *added = bias + (h * a.queries + i0 + i) * a.keys + j0;
              for (int64_t j = 0; j < nk; ++j)
                row[j] += added[j];
            }
            float top = largest[size_t(i)];
            for (int64_t j = 0; j < nk; ++j) {
              bool seen = a.sees(qpos[i0 + i], kpos[j0 + j], kmask[key0 + j]);
              row[j] = seen ? row[j] : -INFINITY;
              top = std::max(top, row[j]);
            }
            if (top == -INFINITY) { // nothing seen yet: keep the block's weights zero
              std::fill_n(row, nk, 0.0f);
              continue;
            }
            float sum = 0;
            for (int64_t j = 0; j < nk; ++j)
              row[j] = expNegative(row[j] - top);
            for (int64_t j = 0; j < nk; ++j)
              sum += row[j];
            float keep = expNegative(largest[size_t(i)] - top);
            largest[size_t(i)] = top;
            total[size_t(i)] = total[size_t(i)] * keep + sum;
            for (int64_t d = 0; d < a.valueDim; ++d)
              result[size_t(i * a.valueDim + d)] *= keep;
          }
          if (OneDnn::get()->sgemm('N', 'N', nq, a.valueDim, nk, 1.0f, score.data(), nk,
                                   values.data, values.stride, 1.0f, result.data(),
                                   a.valueDim) != dnnl_success)
            return badCall(call, "oneDNN refused the product of weights and values");
        }
        for (int64_t i = 0; i < nq; ++i) {
          float factor = total[size_t(i)] > 0 ? 1 / total[size_t(i)] : 0;
          S *target = out + (row0 + i * a.heads) * a.valueDim;
          for (int64_t d = 0; d < a.valueDim; ++d)
            target[d] = S(result[size_t(i * a.valueDim + d)] * factor);
        }
      }
  return {};
}
template Status fast::attention<float>(const Call &);
template Status fast::attention<Bf16>(const Call &);

} // namespace moira::rt::host
