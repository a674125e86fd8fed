//===- Routing.cpp - the gate: score, top-k, renormalise --------------------===//
// `route` only; what follows from the chosen experts is in Experts.cpp.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace moira::rt::host::ref {

namespace {

enum class Score { softmax, sigmoid };

/// Replaces logits by scores, in S.
template <typename S> void applyScore(Score score, std::span<S> v) {
  if (score == Score::sigmoid) {
    for (S &x : v)
      x = S(1) / (S(1) + std::exp(-x));
    return;
  }
  S largest = *std::max_element(v.begin(), v.end()), total = 0;
  for (S &x : v)
    total += x = std::exp(x - largest);
  for (S &x : v)
    x /= total;
}

/// The `count` largest of `keys` in descending order, ties to the lower index. Keys that are not
/// numbers come last, so the result is always `count` different valid indices.
template <typename S>
void topK(std::span<const S> keys, std::vector<char> &taken, std::span<int32_t> chosen) {
  std::fill(taken.begin(), taken.end(), 0);
  for (int32_t &slot : chosen) {
    int32_t best = -1;
    for (int32_t e = 0; e < int32_t(keys.size()); ++e)
      if (!taken[size_t(e)] &&
          (best < 0 || keys[size_t(e)] > keys[size_t(best)] ||
           (keys[size_t(best)] != keys[size_t(best)] && keys[size_t(e)] == keys[size_t(e)])))
        best = e;
    taken[size_t(best)] = 1;
    slot = best;
  }
}

} // namespace

/// Logits of type L; scores and weights in its accumulator.
template <typename L> Status route(const Call &call) {
  using S = Accumulator<L>;
  int64_t experts = trailing(call.in[0], 1), tokens = leading(call.in[0], 1),
          k = trailing(call.out[0], 1);
  std::string_view scoreName = call.params.text("score"), order = call.params.text("order"),
                   renorm = call.params.text("renorm");
  if ((scoreName != "softmax" && scoreName != "sigmoid") ||
      (order != "score_topk" && order != "topk_score") || (renorm != "none" && renorm != "sum"))
    return badCall(call, "unknown gate: score '" + std::string(scoreName) + "', order '" +
                             std::string(order) + "', renorm '" + std::string(renorm) + "'");
  if (k < 1 || k > experts)
    return badCall(call,
                   format("%lld choices among %lld experts", (long long)k, (long long)experts));
  Score score = scoreName == "softmax" ? Score::softmax : Score::sigmoid;
  bool scoreFirst = order == "score_topk";
  S scale = S(call.params.real("scale", 1));
  std::span<const int32_t> forced = call.hooks ? call.hooks->forcedIds : std::span<const int32_t>();
  std::vector<float> *gaps = call.hooks ? call.hooks->gaps : nullptr;
  if (!forced.empty() && int64_t(forced.size()) != tokens * k)
    return Status(
        ErrorId::BadInput,
        format(
            "forced routing has %zu expert ids where %lld tokens choose %lld each; use a routing "
            "file of the same model, batch and mesh",
            forced.size(), (long long)tokens, (long long)k));
  if (gaps)
    gaps->resize(size_t(tokens));

  // One more choice than asked, to know the gap between the last chosen and the first left out.
  int64_t ranked = std::min(k + 1, experts);
  std::vector<S> keys(static_cast<size_t>(experts)), weights(static_cast<size_t>(k));
  std::vector<char> taken(static_cast<size_t>(experts));
  std::vector<int32_t> chosen(static_cast<size_t>(ranked));
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(call.input<L>(0) + t * experts, experts, keys.begin());
    if (scoreFirst)
      applyScore<S>(score, keys);
    topK<S>(keys, taken, chosen);
    if (gaps)
      (*gaps)[size_t(t)] =
          ranked > k ? float(keys[size_t(chosen[size_t(k - 1)])] - keys[size_t(chosen[size_t(k)])])
                     : std::numeric_limits<float>::infinity();
    int32_t *ids = call.output<int32_t>(0) + t * k;
    for (int64_t j = 0; j < k; ++j) {
      ids[j] = forced.empty() ? chosen[size_t(j)] : forced[size_t(t * k + j)];
      if (ids[j] < 0 || ids[j] >= experts)
        return Status(
            ErrorId::BadInput,
            format("forced routing sends token %lld to expert %d; the layer has experts 0..%lld",
                   (long long)t, ids[j], (long long)experts - 1));
      weights[size_t(j)] = keys[size_t(ids[j])];
    }
    if (!scoreFirst)
      applyScore<S>(score, weights);
    S total = 0;
    for (S w : weights)
      total += w;
    for (int64_t j = 0; j < k; ++j)
      call.output<S>(1)[t * k + j] =
          (renorm == "sum" ? weights[size_t(j)] / total : weights[size_t(j)]) * scale;
  }
  return {};
}
template Status route<float>(const Call &);
template Status route<double>(const Call &);
template Status route<Bf16>(const Call &);

} // namespace moira::rt::host::ref
