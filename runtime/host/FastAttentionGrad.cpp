//===- FastAttentionGrad.cpp - gradients of attention by products -----------===//
// As the reference in GradAttention.cpp, all in float: the weights of a block of queries again,
// then what flows back through them, as products of matrices by oneDNN. Queries and heads that add
// to the same gradient are in one task, in a fixed order: same input, same bits.
//===----------------------------------------------------------------------===//
#include "AttentionShape.h"
#include "SampleTree.h"
#include "Sgemm.h"
#include "Softmax.h"
#include "Widened.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace moira::rt::host {
namespace {

constexpr int64_t queryBlock = 64;

/// One call's operands as floats, and the gradients; those of parts that are not there are null.
struct Backward {
  const Call &call;
  const AttentionShape &a;
  float scale;
  const float *dy, *q, *k, *v, *q2, *k2, *bias, *sinks;
  float *dq, *dk, *dv, *dq2, *dk2, *dbias, *dsinks;

  Status run(int64_t b, int64_t h, int64_t i0) const;
};

/// A matrix whose rows are `stride` apart.
template <typename T> struct Rows {
  T *data;
  int64_t stride;
};

/// Query head h of row b, the queries from i0 on: adds to all gradients.
Status Backward::run(int64_t b, int64_t h, int64_t i0) const {
  int64_t nq = std::min(queryBlock, a.queries - i0);
  auto [first, end] = a.keysInSight(PositionRange(a.qpos + i0, nq), 0, a.keys);
  int64_t nk = end - first;
  if (nk == 0)
    return {};
  int64_t row = (b * a.queries + i0) * a.heads + h, key = b * a.keys + first;
  int64_t kv = key * a.kvHeads + a.kvHeadOf[size_t(h)];
  auto queries = [&](auto *of, int64_t width) { // a part of the queries, or of dy
    return Rows<std::remove_pointer_t<decltype(of)>>{of + row * width, a.heads * width};
  };
  auto keys = [&](auto *of, int64_t width) {
    return Rows<std::remove_pointer_t<decltype(of)>>{of + kv * width, a.kvHeads * width};
  };
  auto shared = [&](auto *of) { // of keys without heads
    return Rows<std::remove_pointer_t<decltype(of)>>{of + key * a.sharedDim, a.sharedDim};
  };
  std::vector<float> weights(size_t(nq * nk)), back(size_t(nq * nk));
  // out[nq,nk] = factor · x·yᵀ + before · out
  auto scores = [&](Rows<const float> x, Rows<const float> y, int64_t width, float factor,
                    float before, std::vector<float> &out) {
    return sgemm(call, {false, true, nq, nk, width, x.data, x.stride, y.data, y.stride, out.data(),
                        nk, factor, before});
  };
  // out[nq,width] += factor · back · y
  auto toQueries = [&](Rows<const float> y, int64_t width, Rows<float> out) {
    return sgemm(call, {false, false, nq, width, nk, back.data(), nk, y.data, y.stride, out.data,
                        out.stride, scale, 1});
  };
  // out[nk,width] += factor · xᵀ · y
  auto toKeys = [&](const std::vector<float> &x, Rows<const float> y, int64_t width, float factor,
                    Rows<float> out) {
    return sgemm(call, {true, false, nk, width, nq, x.data(), nk, y.data, y.stride, out.data,
                        out.stride, factor, 1});
  };

  if (Status s = scores(queries(q, a.keyDim), keys(k, a.keyDim), a.keyDim, scale, 0, weights); !s)
    return s;
  if (q2)
    if (Status s = scores(queries(q2, a.sharedDim), shared(k2), a.sharedDim, scale, 1, weights); !s)
      return s;
  if (Status s = scores(queries(dy, a.valueDim), keys(v, a.valueDim), a.valueDim, 1, 0, back); !s)
    return s;
  for (int64_t i = 0; i < nq; ++i) {
    float *weight = weights.data() + i * nk, *flow = back.data() + i * nk;
    int64_t biasRow = (h * a.queries + i0 + i) * a.keys + first;
    for (int64_t j = 0; j < nk; ++j)
      weight[j] = !a.sees(b, i0 + i, first + j) ? -INFINITY
                  : bias                        ? weight[j] + bias[biasRow + j]
                                                : weight[j];
    float sink = sinks ? sinks[h] : -INFINITY, top = largestOf(weight, nk, sink);
    if (top == -INFINITY) { // sees nothing
      std::fill_n(weight, nk, 0.0f);
      std::fill_n(flow, nk, 0.0f);
      continue;
    }
    float sinkWeight = sinks ? expNegative(sink - top) : 0;
    float total = exponentials(weight, nk, top) + sinkWeight, mean = 0;
    for (int64_t j = 0; j < nk; ++j) {
      weight[j] /= total;
      mean += weight[j] * flow[j];
    }
    for (int64_t j = 0; j < nk; ++j)
      flow[j] = weight[j] * (flow[j] - mean);
    if (bias)
      for (int64_t j = 0; j < nk; ++j)
        dbias[biasRow + j] += flow[j];
    if (sinks)
      dsinks[h] -= sinkWeight / total * mean;
  }
  Status s = toKeys(weights, queries(dy, a.valueDim), a.valueDim, 1, keys(dv, a.valueDim));
  if (s)
    s = toQueries(keys(k, a.keyDim), a.keyDim, queries(dq, a.keyDim));
  if (s)
    s = toKeys(back, queries(q, a.keyDim), a.keyDim, scale, keys(dk, a.keyDim));
  if (s && q2)
    s = toQueries(shared(k2), a.sharedDim, queries(dq2, a.sharedDim));
  if (s && q2)
    s = toKeys(back, queries(q2, a.sharedDim), a.sharedDim, scale, shared(dk2));
  return s;
}

std::unique_ptr<Widened<float>> widened(const TensorRef *tensor) {
  return tensor ? std::make_unique<Widened<float>>(*tensor) : nullptr;
}

} // namespace

template <typename S> Status fast::attention_grad(const Call &call) {
  // The operands behind dy are attention's.
  Call forward{call.name, call.in.subspan(1), call.out, call.params, nullptr};
  AttentionShape a;
  if (Status s = attentionShape(forward, a); !s)
    return s;
  Widened<float> dy(call.in[0]), q(call.in[1]), k(call.in[2]), v(call.in[3]);
  std::unique_ptr<Widened<float>> q2 = widened(a.q2), k2 = widened(a.k2), bias = widened(a.bias),
                                  sinks = widened(a.sinks);
  auto given = [](const auto &part) { return part ? part->data() : nullptr; };
  auto output = [&](std::string_view role) {
    int i = call.params.optional(role);
    return i < 0 ? nullptr : call.output<float>(3 + size_t(i));
  };
  Rounded<float> dq(call.out[0]), dk(call.out[1]), dv(call.out[2]);
  for (auto [sums, out] : {std::pair(dq.data(), 0), {dk.data(), 1}, {dv.data(), 2}})
    std::fill_n(sums, call.out[size_t(out)].elements(), 0.0f);
  for (const TensorRef &out : call.out.subspan(3))
    std::fill_n(static_cast<float *>(out.data), out.elements(), 0.0f);
  Backward backward{call,
                    a,
                    float(call.params.real("scale", 1)),
                    dy.data(),
                    q.data(),
                    k.data(),
                    v.data(),
                    given(q2),
                    given(k2),
                    given(bias),
                    given(sinks),
                    dq.data(),
                    dk.data(),
                    dv.data(),
                    output("q2"),
                    output("k2"),
                    output("bias"),
                    output("sinks")};
  // Heads that read the same keys add to the same gradients, and so do all heads where keys are
  // shared, and all rows of the batch where there are biases or sinks.
  int64_t batchTasks = a.bias || a.sinks ? 1 : a.batch, headTasks = a.q2 ? 1 : a.kvHeads;
  auto addRows = [&](const Backward &to, int64_t first, int64_t end, int64_t tasks) {
    return parallelTry(tasks * headTasks, [&](int64_t task) {
      for (int64_t b = first; b < end; ++b)
        for (int64_t h = 0; h < a.heads; ++h) {
          bool isMine = (tasks == 1 || b - first == task / headTasks) &&
                        (headTasks == 1 || a.kvHeadOf[size_t(h)] == task % headTasks);
          for (int64_t i0 = 0; isMine && i0 < a.queries; i0 += queryBlock)
            if (Status s = to.run(b, h, i0); !s)
              return s;
        }
      return Status();
    });
  };
  int64_t samples = samplesOf(call, call.in[0]);
  if (batchTasks != 1 || samples == 1)
    return addRows(backward, 0, a.batch, batchTasks);
  // The gradients of biases and sinks by sample: side by side, one after the other.
  int64_t biases = a.bias ? a.bias->elements() : 0, sinkCount = a.sinks ? a.sinks->elements() : 0;
  std::vector<float> ofAll(size_t(biases + sinkCount));
  Status status =
      sumSamples(samples, ofAll.data(), biases + sinkCount, [&](int64_t s, float *into) {
        std::fill_n(into, biases + sinkCount, 0.0f);
        Backward one = backward;
        one.dbias = into;
        one.dsinks = into + biases;
        return addRows(one, s, s + 1, 1);
      });
  if (a.bias)
    std::copy_n(ofAll.data(), biases, backward.dbias);
  if (a.sinks)
    std::copy_n(ofAll.data() + biases, sinkCount, backward.dsinks);
  return status;
}
template Status fast::attention_grad<float>(const Call &);
template Status fast::attention_grad<Bf16>(const Call &);

} // namespace moira::rt::host
