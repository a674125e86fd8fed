//===- Attention.cpp - reference attention, and what both flavors check -----===//
// Two passes over the keys of one query at a time. The fast flavor is in FastAttention.cpp.
//===----------------------------------------------------------------------===//
#include "AttentionShape.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace moira::rt::host {

Status attentionShape(const Call &call, AttentionShape &a) {
  const std::vector<int64_t> &q = call.in[0].shape, &k = call.in[1].shape;
  a = {q[0], q[1], k[1], q[2], k[2], q[3], call.params.integer("window"), {}};
  int64_t queryHeads = call.params.integer("q_heads"), kvHeads = call.params.integer("kv_heads");
  int64_t headOffset = call.params.integer("head_offset"),
          kvOffset = call.params.integer("kv_offset");
  if (queryHeads < 1 || kvHeads < 1 || kvHeads > queryHeads || headOffset < 0 || kvOffset < 0 ||
      headOffset > queryHeads - a.heads)
    return badCall(call, format("heads %lld..%lld of %lld query and %lld key/value heads",
                                (long long)headOffset, (long long)(headOffset + a.heads - 1),
                                (long long)queryHeads, (long long)kvHeads));
  for (int64_t h = 0; h < a.heads; ++h) {
    int64_t kv = int64_t(__int128(headOffset + h) * kvHeads / queryHeads) - kvOffset;
    if (kv < 0 || kv >= a.kvHeads)
      return badCall(call, format("query head %lld needs key/value head %lld of the %lld present",
                                  (long long)h, (long long)kv, (long long)a.kvHeads));
    a.kvHeadOf.push_back(kv);
  }
  return {};
}

namespace ref {

template <typename S> Status attention(const Call &call) {
  AttentionShape a;
  if (Status s = attentionShape(call, a); !s)
    return s;
  const S *q = call.input<S>(0), *k = call.input<S>(1), *v = call.input<S>(2);
  const int32_t *qpos = call.input<int32_t>(3), *kpos = call.input<int32_t>(4),
                *kmask = call.input<int32_t>(5);
  S *out = call.output<S>(0);
  double scale = call.params.real("scale", 1);

  std::vector<double> score(size_t(a.keys)), sum(size_t(a.headDim));
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t i = 0; i < a.queries; ++i)
      for (int64_t h = 0; h < a.heads; ++h) {
        const S *query = q + ((b * a.queries + i) * a.heads + h) * a.headDim;
        S *result = out + ((b * a.queries + i) * a.heads + h) * a.headDim;
        auto row = [&](const S *base, int64_t j) {
          return base + ((b * a.keys + j) * a.kvHeads + a.kvHeadOf[size_t(h)]) * a.headDim;
        };
        auto visible = [&](int64_t j) { return a.sees(qpos[i], kpos[j], kmask[b * a.keys + j]); };
        double largest = -INFINITY;
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          double dot = 0;
          for (int64_t d = 0; d < a.headDim; ++d)
            dot += double(query[d]) * double(row(k, j)[d]);
          score[size_t(j)] = dot * scale;
          largest = std::max(largest, score[size_t(j)]);
        }
        double total = 0;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          double weight = std::exp(score[size_t(j)] - largest);
          total += weight;
          for (int64_t d = 0; d < a.headDim; ++d)
            sum[size_t(d)] += weight * double(row(v, j)[d]);
        }
        for (int64_t d = 0; d < a.headDim; ++d)
          result[d] = total == 0 ? S(0) : S(sum[size_t(d)] / total);
      }
  return {};
}
template Status attention<float>(const Call &);
template Status attention<double>(const Call &);

} // namespace ref
} // namespace moira::rt::host
