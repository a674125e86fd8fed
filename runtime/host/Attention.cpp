//===- Attention.cpp - reference attention, and what both flavors check -----===//
// Two passes over the keys of one query at a time. The fast flavor is in FastAttention.cpp.
//===----------------------------------------------------------------------===//
#include "AttentionShape.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace moira::rt::host {

Status attentionShape(const Call &call, AttentionShape &a) {
  const std::vector<int64_t> &q = call.in[0].shape, &k = call.in[1].shape;
  auto optional = [&](std::string_view role) {
    int i = call.params.optional(role);
    return i < 0 ? nullptr : &call.in[size_t(3 + i)];
  };
  a = {.batch = q[0],
       .queries = q[1],
       .keys = k[1],
       .heads = q[2],
       .kvHeads = k.size() == 4 ? k[2] : 1,
       .keyDim = q[3],
       .valueDim = call.in[2].shape.back(),
       .sharedDim = 0,
       .window = call.params.integer("window"),
       .causal = call.params.integer("causal", 1) != 0,
       .kvHeadOf = {},
       .q2 = optional("q2"),
       .k2 = optional("k2"),
       .bias = optional("bias"),
       .sinks = optional("sinks"),
       .logSums = nullptr,
       .qpos = nullptr,
       .kpos = nullptr,
       .kmask = nullptr,
       .order = {},
       .ones = {}};
  if (call.name == "attention" && call.params.optional("log_sums") >= 0)
    a.logSums = &call.out[1];
  const TensorRef *qpos = optional("qpos"), *kpos = optional("kpos"), *kmask = optional("kmask");
  if (!qpos || !kpos)
    a.order.resize(size_t(std::max(a.queries, a.keys)));
  std::iota(a.order.begin(), a.order.end(), 0);
  if (!kmask)
    a.ones.assign(size_t(a.batch * a.keys), 1);
  auto given = [](const TensorRef *t, const std::vector<int32_t> &otherwise) {
    return t ? static_cast<const int32_t *>(t->data) : otherwise.data();
  };
  a.qpos = given(qpos, a.order);
  a.kpos = given(kpos, a.order);
  a.kmask = given(kmask, a.ones);
  if (!a.q2 != !a.k2)
    return badCall(call, "q2 and k2 are given together or not at all");
  if (a.q2)
    a.sharedDim = a.q2->shape[3];
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
  using A = Accumulator<S>;
  auto optional = []<typename T>(const TensorRef *t, T) {
    return t ? static_cast<const T *>(t->data) : nullptr;
  };
  const S *q2 = optional(a.q2, S()), *k2 = optional(a.k2, S());
  const A *bias = optional(a.bias, A()), *sinks = optional(a.sinks, A());
  S *out = call.output<S>(0);
  A *logSums = a.logSums ? static_cast<A *>(a.logSums->data) : nullptr;
  double scale = call.params.real("scale", 1);
  auto product = [](const S *x, const S *y, int64_t n) {
    double dot = 0;
    for (int64_t d = 0; d < n; ++d)
      dot += double(x[d]) * double(y[d]);
    return dot;
  };

  std::vector<double> score(size_t(a.keys)), sum(size_t(a.valueDim));
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t i = 0; i < a.queries; ++i)
      for (int64_t h = 0; h < a.heads; ++h) {
        int64_t row = (b * a.queries + i) * a.heads + h;
        const S *query = q + row * a.keyDim;
        S *result = out + row * a.valueDim;
        auto keyRow = [&](int64_t j) {
          return (b * a.keys + j) * a.kvHeads + a.kvHeadOf[size_t(h)];
        };
        auto visible = [&](int64_t j) { return a.sees(b, i, j); };
        double largest = sinks ? double(sinks[h]) : -INFINITY;
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          double dot = product(query, k + keyRow(j) * a.keyDim, a.keyDim);
          if (q2)
            dot +=
                product(q2 + row * a.sharedDim, k2 + (b * a.keys + j) * a.sharedDim, a.sharedDim);
          score[size_t(j)] =
              dot * scale + (bias ? double(bias[(h * a.queries + i) * a.keys + j]) : 0.0);
          largest = std::max(largest, score[size_t(j)]);
        }
        double total = sinks ? std::exp(double(sinks[h]) - largest) : 0;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          double weight = std::exp(score[size_t(j)] - largest);
          total += weight;
          for (int64_t d = 0; d < a.valueDim; ++d)
            sum[size_t(d)] += weight * double(v[keyRow(j) * a.valueDim + d]);
        }
        for (int64_t d = 0; d < a.valueDim; ++d)
          result[d] = total == 0 ? S(0) : S(sum[size_t(d)] / total);
        if (logSums)
          logSums[(b * a.heads + h) * a.queries + i] = A(largest + std::log(total));
      }
  return {};
}
template Status attention<float>(const Call &);
template Status attention<double>(const Call &);
template Status attention<Bf16>(const Call &);

} // namespace ref
} // namespace moira::rt::host
