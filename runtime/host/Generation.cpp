//===- Generation.cpp - reference write_rows, slot, sample ------------------===//
// What programs with caches do besides a forward pass.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "moira/rt/CallRegistry.h"
#include "moira/rt/Sample.h"

#include <algorithm>
#include <cstring>

namespace moira::rt::host::ref {

namespace {

/// The one number of an optional operand, or 0.
int64_t placeOf(const Call &call) { return call.in.size() > 1 ? *call.input<int32_t>(1) : 0; }

} // namespace

template <typename S> Status write_rows(const Call &call) {
  int64_t at = placeOf(call), count = call.in[0].shape[1], all = call.out[0].shape[1];
  if (at < 0 || at > all - count)
    return badCall(call, format("rows %lld..%lld of a state of %lld", (long long)at,
                                (long long)(at + count), (long long)all));
  for (size_t i = 0; i < call.out.size(); ++i) {
    const TensorRef &rows = call.in[i * 2], &state = call.out[i];
    int64_t row = product(rows.shape, 2, rows.shape.size()) * dtypeBytes(rows.dtype);
    for (int64_t b = 0; b < rows.shape[0]; ++b)
      std::memcpy(static_cast<char *>(state.data) + (b * all + at) * row,
                  static_cast<const char *>(rows.data) + b * count * row, count * row);
  }
  return {};
}

template <typename S> Status slot(const Call &call) {
  const TensorRef &x = call.in[0], &out = call.out[0];
  int64_t at = call.params.integer("index") + placeOf(call) - call.params.integer("start");
  int64_t row = product(x.shape, 2, x.shape.size()) * dtypeBytes(x.dtype);
  for (int64_t b = 0; b < x.shape[0]; ++b) {
    char *to = static_cast<char *>(out.data) + b * row;
    if (at < 0 || at >= x.shape[1])
      std::memset(to, 0, row);
    else
      std::memcpy(to, static_cast<const char *>(x.data) + (b * x.shape[1] + at) * row, row);
  }
  return {};
}

namespace {

/// Everything at least as large as this is kept: the k-th largest of the row.
float leastOfTopK(const float *logits, int64_t vocab, int64_t k) {
  std::vector<float> sorted(logits, logits + vocab);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(),
                   [](float a, float b) { return orderOf(a) > orderOf(b); });
  return sorted[k - 1];
}

/// The same for the fewest of the largest, of those that are at least `least`, that have the
/// probability topP.
float leastOfTopP(const float *logits, int64_t vocab, float least, const SampleRule &rule) {
  std::vector<float> kept;
  for (int64_t v = 0; v < vocab; ++v)
    if (orderOf(logits[v]) >= orderOf(least))
      kept.push_back(logits[v]);
  std::sort(kept.begin(), kept.end(), [](float a, float b) { return orderOf(a) > orderOf(b); });
  double sum = 0, taken = 0;
  auto weight = [&](float logit) {
    return std::exp((double(logit) - double(kept.front())) / rule.temperature);
  };
  for (float logit : kept)
    sum += weight(logit);
  for (float logit : kept) {
    taken += weight(logit);
    if (taken >= rule.topP * sum)
      return logit;
  }
  return kept.back();
}

int32_t sampleRow(const float *logits, int64_t vocab, const SampleRule &rule, uint32_t row) {
  if (rule.greedy())
    return int32_t(std::max_element(logits, logits + vocab,
                                    [](float a, float b) { return orderOf(a) < orderOf(b); }) -
                   logits);
  uint32_t least = 0;
  if (rule.topK > 0 && rule.topK < vocab)
    least = orderOf(leastOfTopK(logits, vocab, rule.topK));
  if (rule.cutsByP()) {
    float from = least ? leastOfTopK(logits, vocab, rule.topK)
                       : *std::min_element(logits, logits + vocab, [](float a, float b) {
                           return orderOf(a) < orderOf(b);
                         });
    least = orderOf(leastOfTopP(logits, vocab, from, rule));
  }
  int32_t best = 0;
  double most = -INFINITY;
  for (int64_t v = 0; v < vocab; ++v)
    if (orderOf(logits[v]) >= least)
      if (double score = drawScore(rule, logits[v], row, uint32_t(v)); score > most) {
        most = score;
        best = int32_t(v);
      }
  return best;
}

} // namespace

template <typename S> Status sample(const Call &call) {
  const TensorRef &logits = call.in[0];
  int64_t vocab = logits.shape[2], perRow = logits.shape[1];
  using A = Accumulator<S>;
  const A *sampling = call.input<A>(1);
  SampleRule rule = sampleRule(sampling[0], sampling[1], call.input<int32_t>(2));
  auto first = uint32_t(call.params.integer("row_offset"));
  std::vector<float> row(vocab);
  for (int64_t i = 0; i < logits.shape[0] * perRow; ++i) {
    std::copy_n(call.input<A>(0) + i * vocab, vocab, row.begin());
    call.output<int32_t>(0)[i] = sampleRow(row.data(), vocab, rule, first + uint32_t(i / perRow));
  }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(write_rows)
INSTANTIATE(slot)
INSTANTIATE(sample)

} // namespace moira::rt::host::ref
