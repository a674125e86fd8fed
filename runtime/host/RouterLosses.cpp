//===- RouterLosses.cpp - reference losses of routers and their gradients -===//
// expert_load, expert_probs, balance, sequence_balance, router_z and gradients. Sums are made in
// double.
//===----------------------------------------------------------------------===//
#include "SampleTree.h"
#include "Widened.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// The softmax of one row, and the logarithm of its normaliser.
template <typename A> double softmax(const A *logits, std::vector<double> &shares) {
  double largest = double(*std::max_element(logits, logits + shares.size())), total = 0;
  for (size_t e = 0; e < shares.size(); ++e)
    total += shares[e] = std::exp(double(logits[e]) - largest);
  for (double &share : shares)
    share /= total;
  return largest + std::log(total);
}

/// The gradient of a softmax's logits, times `factor`, from that of its shares.
template <typename A, typename G>
void softmaxGrad(const std::vector<double> &shares, const G *grad, double factor, A *out) {
  double mean = 0;
  for (size_t e = 0; e < shares.size(); ++e)
    mean += shares[e] * double(grad[e]);
  for (size_t e = 0; e < shares.size(); ++e)
    out[e] = A(factor * shares[e] * (double(grad[e]) - mean));
}

/// counts[e] becomes how many of the choices `ids` are expert e; -1 is none.
Status countChoices(const Call &call, std::span<const int32_t> ids, std::vector<int64_t> &counts) {
  std::fill(counts.begin(), counts.end(), 0);
  for (size_t i = 0; i < ids.size(); ++i) {
    int32_t id = ids[i];
    if (id < -1 || id >= int64_t(counts.size()))
      return badCall(call, format("choice %lld is expert %d of 0..%lld", (long long)i, id,
                                  (long long)counts.size() - 1));
    if (id >= 0)
      ++counts[size_t(id)];
  }
  return {};
}

} // namespace

template <typename S> Status expert_load(const Call &call) {
  using A = Accumulator<S>;
  std::vector<int64_t> counts(static_cast<size_t>(call.out[0].elements()));
  Status status =
      countChoices(call, {call.input<int32_t>(0), size_t(call.in[0].elements())}, counts);
  std::transform(counts.begin(), counts.end(), call.output<A>(0), [](int64_t n) { return A(n); });
  return status;
}

template <typename S> Status expert_probs(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> logits(call.in[0]);
  int64_t experts = call.out[0].elements(), tokens = leading(call.in[0], 1);
  int64_t samples = samplesOf(call, call.in[0]), each = tokens / samples;
  std::vector<double> shares(static_cast<size_t>(experts)), sums(shares.size());
  return sumSamples(samples, call.output<A>(0), experts, [&](int64_t s, A *into) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t t = s * each; t < (s + 1) * each; ++t) {
      softmax(logits.data() + t * experts, shares);
      for (size_t e = 0; e < shares.size(); ++e)
        sums[e] += shares[e];
    }
    std::transform(sums.begin(), sums.end(), into, [](double v) { return A(v); });
    return Status();
  });
}

template <typename S> Status expert_probs_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> logits(call.in[1]);
  const A *dy = call.input<A>(0);
  int64_t experts = call.in[0].elements(), tokens = leading(call.in[1], 1);
  std::vector<double> shares(static_cast<size_t>(experts));
  for (int64_t t = 0; t < tokens; ++t) {
    softmax(logits.data() + t * experts, shares);
    softmaxGrad(shares, dy, 1, call.output<A>(0) + t * experts);
  }
  return {};
}

template <typename S> Status balance(const Call &call) {
  using A = Accumulator<S>;
  const A *load = call.input<A>(0), *probs = call.input<A>(1);
  int64_t experts = call.in[0].elements();
  double tokens = double(call.params.integer("tokens")), sum = 0;
  for (int64_t e = 0; e < experts; ++e)
    sum += double(load[e]) / tokens * (double(probs[e]) / tokens);
  *call.output<A>(0) = A(sum * double(experts));
  return {};
}

template <typename S> Status balance_grad(const Call &call) {
  using A = Accumulator<S>;
  const A *load = call.input<A>(1);
  int64_t experts = call.in[1].elements();
  double tokens = double(call.params.integer("tokens"));
  double factor = double(*call.input<A>(0)) * double(experts) / (tokens * tokens);
  for (int64_t e = 0; e < experts; ++e)
    call.output<A>(0)[e] = A(factor * double(load[e]));
  return {};
}

template <typename S> Status sequence_balance(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> logits(call.in[1]);
  int64_t sequences = call.in[1].shape[0], tokens = call.in[1].shape[1],
          experts = call.in[1].shape[2], choices = tokens * call.in[0].shape[2];
  double over = double(call.params.integer("sequences")) * double(tokens) * double(tokens);
  std::vector<int64_t> counts(static_cast<size_t>(experts));
  std::vector<double> shares(counts.size());
  if (sequences == 0)
    return *call.output<A>(0) = A(0), Status();
  return sumSamples(sequences, call.output<A>(0), 1, [&](int64_t s, A *into) {
    Status status =
        countChoices(call, {call.input<int32_t>(0) + s * choices, size_t(choices)}, counts);
    double sum = 0;
    for (int64_t t = s * tokens; t < (s + 1) * tokens; ++t) {
      softmax(logits.data() + t * experts, shares);
      for (size_t e = 0; e < shares.size(); ++e)
        sum += shares[e] * double(counts[e]);
    }
    *into = A(sum * double(experts) / over);
    return status;
  });
}

template <typename S> Status sequence_balance_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> logits(call.in[2]);
  int64_t sequences = call.in[2].shape[0], tokens = call.in[2].shape[1],
          experts = call.in[2].shape[2], choices = tokens * call.in[1].shape[2];
  double factor = double(*call.input<A>(0)) * double(experts) /
                  (double(call.params.integer("sequences")) * double(tokens) * double(tokens));
  std::vector<int64_t> counts(static_cast<size_t>(experts));
  std::vector<double> shares(counts.size());
  for (int64_t s = 0; s < sequences; ++s) {
    if (Status status =
            countChoices(call, {call.input<int32_t>(1) + s * choices, size_t(choices)}, counts);
        !status)
      return status;
    for (int64_t t = s * tokens; t < (s + 1) * tokens; ++t) {
      softmax(logits.data() + t * experts, shares);
      softmaxGrad(shares, counts.data(), factor, call.output<A>(0) + t * experts);
    }
  }
  return {};
}

template <typename S> Status router_z(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> logits(call.in[0]);
  int64_t experts = trailing(call.in[0], 1), tokens = leading(call.in[0], 1);
  int64_t samples = samplesOf(call, call.in[0]), each = tokens / samples;
  std::vector<double> shares(static_cast<size_t>(experts));
  return sumSamples(samples, call.output<A>(0), 1, [&](int64_t s, A *into) {
    double sum = 0;
    for (int64_t t = s * each; t < (s + 1) * each; ++t) {
      double z = softmax(logits.data() + t * experts, shares);
      sum += z * z;
    }
    *into = A(sum / double(call.params.integer("tokens")));
    return Status();
  });
}

template <typename S> Status router_z_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> logits(call.in[1]);
  int64_t experts = trailing(call.in[1], 1), tokens = leading(call.in[1], 1);
  std::vector<double> shares(static_cast<size_t>(experts));
  double factor = 2 * double(*call.input<A>(0)) / double(call.params.integer("tokens"));
  for (int64_t t = 0; t < tokens; ++t) {
    double z = softmax(logits.data() + t * experts, shares);
    for (size_t e = 0; e < shares.size(); ++e)
      call.output<A>(0)[t * experts + int64_t(e)] = A(factor * z * shares[e]);
  }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(expert_load)
INSTANTIATE(expert_probs)
INSTANTIATE(expert_probs_grad)
INSTANTIATE(balance)
INSTANTIATE(balance_grad)
INSTANTIATE(sequence_balance)
INSTANTIATE(sequence_balance_grad)
INSTANTIATE(router_z)
INSTANTIATE(router_z_grad)

} // namespace moira::rt::host::ref
