//===- GradRouting.cpp - gradients of gates, limits and row weights -------===//
// route_grad, limit_grad, choice_dots. The choices are given; only weights flow back. Computed in
// double.
//===----------------------------------------------------------------------===//
#include "Widened.h"
#include "moira/rt/Gate.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace moira::rt::host::ref {

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Weights divided by max(sum + epsilon, least) and times scale, differentiated: `grads` of the
/// quotients become those of the weights. `counts(j)`: whether weight j is in the sum.
struct Renormalisation {
  bool divides;
  double epsilon, least, scale;

  template <typename Counts>
  void back(std::span<const double> weights, std::span<double> grads, Counts counts) const {
    double total = 0, dot = 0;
    for (size_t j = 0; j < weights.size(); ++j) {
      total += counts(j) ? weights[j] : 0;
      dot += grads[j] * weights[j];
    }
    double divisor = std::max(total + epsilon, least);
    for (size_t j = 0; j < weights.size(); ++j) {
      if (divides) {
        grads[j] /= divisor;
        if (counts(j) && total + epsilon >= least)
          grads[j] -= dot / (divisor * divisor);
      }
      grads[j] *= scale;
    }
  }
};

/// One token: logits of all experts, the chosen, and the cotangents of their weights.
class TokenGrad {
public:
  explicit TokenGrad(const Gate &gate)
      : logits(size_t(gate.experts)), grads(logits.size()), gate(gate),
        renorm{gate.renorm, gate.renormEpsilon, gate.renormClampMin, gate.scale},
        weights(size_t(gate.k)), given(weights.size()) {}

  std::vector<double> logits, grads; // in, out
  const int32_t *ids = nullptr;
  void setGiven(size_t j, double value) { given[j] = value; }

  void run() {
    std::fill(grads.begin(), grads.end(), 0.0);
    if (gate.score == GateScore::sparsemixer)
      return sparsemixer();
    if (gate.score == GateScore::softmax)
      return gate.scoreFirst ? softmaxOfAll() : softmaxOfChosen();
    for (size_t j = 0; j < weights.size(); ++j)
      weights[j] = elementScore(logits[size_t(ids[j])]);
    renormalise();
    for (size_t j = 0; j < weights.size(); ++j)
      grads[size_t(ids[j])] += given[j] * elementSlope(logits[size_t(ids[j])]);
  }

private:
  void renormalise() {
    renorm.back(weights, given, [](size_t) { return true; });
  }

  double elementScore(double x) const {
    return gate.score == GateScore::sigmoid ? sigmoid(x) : std::sqrt(softplus(x));
  }
  double elementSlope(double x) const {
    double s = sigmoid(x);
    return gate.score == GateScore::sigmoid ? s * (1 - s) : s / (2 * std::sqrt(softplus(x)));
  }
  static double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

  /// Weight j is the share of expert ids[j] among those for which `among` holds.
  template <typename Among> void softmax(size_t j, Among among) {
    double largest = -INFINITY, total = 0;
    for (size_t e = 0; e < logits.size(); ++e)
      if (among(e))
        largest = std::max(largest, logits[e]);
    for (size_t e = 0; e < logits.size(); ++e)
      total += among(e) ? std::exp(logits[e] - largest) : 0;
    weights[j] = std::exp(logits[size_t(ids[j])] - largest) / total;
    shares.assign(logits.size(), 0.0);
    for (size_t e = 0; e < logits.size(); ++e)
      shares[e] = among(e) ? std::exp(logits[e] - largest) / total : 0;
  }

  /// grads += grad · d weight j / d logits, for the softmax that was taken last.
  void backThroughShares(size_t j, double grad) {
    for (size_t e = 0; e < logits.size(); ++e)
      grads[e] -= grad * weights[j] * shares[e];
    grads[size_t(ids[j])] += grad * weights[j];
  }

  template <typename Among> void softmaxOver(Among among) {
    for (size_t j = 0; j < weights.size(); ++j)
      softmax(j, among);
    renormalise();
    for (size_t j = 0; j < weights.size(); ++j)
      backThroughShares(j, given[j]);
  }
  void softmaxOfAll() {
    softmaxOver([](size_t) { return true; });
  }
  void softmaxOfChosen() {
    softmaxOver([&](size_t e) { return std::find(ids, ids + gate.k, int32_t(e)) != ids + gate.k; });
  }

  /// Each choice's softmax over the experts near the largest that is left, as the gate takes it.
  void sparsemixer() {
    std::vector<char> taken(logits.size(), 0);
    for (size_t j = 0; j < weights.size(); ++j) {
      double largest = -INFINITY;
      for (size_t e = 0; e < logits.size(); ++e)
        if (!taken[e])
          largest = std::max(largest, logits[e]);
      softmax(j, [&](size_t e) {
        return !taken[e] && !((largest - logits[e]) / std::max(std::abs(logits[e]), largest) >
                              2 * gate.jitterEps);
      });
      backThroughShares(j, given[j] * gate.scale);
      taken[size_t(ids[j])] = 1;
    }
  }

  const Gate &gate;
  Renormalisation renorm;
  std::vector<double> weights, given, shares;
};

} // namespace

template <typename S> Status route_grad(const Call &call) {
  using A = Accumulator<S>;
  int64_t experts = trailing(call.in[1], 1), tokens = leading(call.in[1], 1),
          k = trailing(call.in[2], 1);
  std::string problem;
  Gate gate = readGate(call.params, experts, k, problem);
  if (!problem.empty())
    return badCall(call, problem);
  Widened<A> dy(call.in[0]), logits(call.in[1]);
  const int32_t *ids = call.input<int32_t>(2);
  TokenGrad token(gate);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < k; ++j) {
      if (int32_t id = ids[t * k + j]; id < 0 || id >= experts)
        return badCall(call, format("token %lld chose expert %d of 0..%lld", (long long)t, id,
                                    (long long)experts - 1));
      token.setGiven(size_t(j), double(dy[t * k + j]));
    }
    token.ids = ids + t * k;
    std::copy_n(logits.data() + t * experts, experts, token.logits.begin());
    token.run();
    std::transform(token.grads.begin(), token.grads.end(), call.output<A>(0) + t * experts,
                   [](double v) { return A(v); });
  }
  return {};
}

template <typename S> Status limit_grad(const Call &call) {
  using A = Accumulator<S>;
  int64_t k = trailing(call.in[0], 1), tokens = leading(call.in[0], 1);
  std::string_view renorm = call.params.text("renorm");
  bool ofKept = renorm == "after";
  Renormalisation divide{renorm != "none", call.params.real("renorm_epsilon"),
                         call.params.real("renorm_clamp_min"), call.params.real("scale", 1)};
  Widened<A> dy(call.in[0]), before(call.in[1]);
  const int32_t *ids = call.input<int32_t>(2);
  std::vector<double> weights(static_cast<size_t>(k)), grads(weights.size());
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t *kept = ids + t * k;
    for (int64_t j = 0; j < k; ++j) {
      weights[size_t(j)] = double(before[t * k + j]);
      grads[size_t(j)] = kept[j] < 0 ? 0 : double(dy[t * k + j]);
    }
    divide.back(weights, grads, [&](size_t j) { return !ofKept || kept[j] >= 0; });
    std::transform(grads.begin(), grads.end(), call.output<A>(0) + t * k,
                   [](double v) { return A(v); });
  }
  return {};
}

template <typename S> Status choice_dots(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> rows(call.in[0]), x(call.in[1]);
  const int32_t *pos = call.input<int32_t>(2);
  int64_t k = trailing(call.in[2], 1), tokens = leading(call.in[2], 1);
  int64_t width = trailing(call.in[0], 1), available = leading(call.in[0], 1);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      if (Status s = checkRow(call, t, pos[j], available); !s)
        return s;
      double dot = 0;
      for (int64_t d = 0; d < width && pos[j] >= 0; ++d)
        dot += double(rows[pos[j] * width + d]) * double(x[t * width + d]);
      call.output<A>(0)[j] = A(dot);
    }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(route_grad)
INSTANTIATE(limit_grad)
INSTANTIATE(choice_dots)

} // namespace moira::rt::host::ref
