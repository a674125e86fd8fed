//===- Routing.cpp - the gate: score, choose, weigh -------------------------===//
// `route`, `sampled_route`, `route_to` and `redirect`; what follows from the chosen experts is in
// Experts.cpp. The steps are those of #moe.router, in the same order for every device.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "moira/rt/Gate.h"
#include "moira/rt/Sampled.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// Replaces logits by scores, in S. Not for a sparsemixer, whose scores depend on the choices.
template <typename S> void applyScore(GateScore score, std::span<S> v) {
  if (score == GateScore::sigmoid) {
    for (S &x : v)
      x = S(1) / (S(1) + std::exp(-x));
    return;
  }
  if (score == GateScore::sqrtSoftplus) {
    for (S &x : v) // ln(1 + e^x), without overflow
      x = std::sqrt(std::max(x, S(0)) + std::log1p(std::exp(-std::abs(x))));
    return;
  }
  S largest = *std::max_element(v.begin(), v.end()), total = 0;
  for (S &x : v)
    total += x = std::exp(x - largest);
  for (S &x : v)
    x /= total;
}

/// Whether key a comes before key b: larger first, what is no number last. Among equals the first
/// one seen stays.
template <typename S> bool before(S a, S b) { return a > b || (b != b && a == a); }

/// Index of the first of `keys` that is not taken and comes before all others; -1 if all are taken.
template <typename S> int32_t best(std::span<const S> keys, std::span<const char> taken) {
  int32_t found = -1;
  for (int32_t e = 0; e < int32_t(keys.size()); ++e)
    if (!taken[size_t(e)] && (found < 0 || before(keys[size_t(e)], keys[size_t(found)])))
      found = e;
  return found;
}

/// The margin of a choice: infinite where nobody is left out.
template <typename S> float marginOf(std::span<const S> keys, int32_t last, int32_t next) {
  return next < 0 ? std::numeric_limits<float>::infinity()
                  : float(keys[size_t(last)] - keys[size_t(next)]);
}

/// One token's gate. `margin` of a choice: the key of the last chosen minus that of the first left
/// out, or the same of the groups if that is smaller.
template <typename S> class TokenGate {
public:
  explicit TokenGate(const Gate &gate)
      : gate(gate), keys(size_t(gate.experts)), choiceKeys(keys.size()),
        groupScores(size_t(gate.groups)), taken(keys.size()), groupTaken(groupScores.size()),
        ids(size_t(gate.k)), weights(ids.size()), shares(ids.size()) {}

  std::vector<int32_t> &chosen() { return ids; }
  const std::vector<S> &weighed() const { return weights; }
  float margin() const { return gap; }

  /// Chooses among the experts of these logits. `bias` may be null.
  template <typename L> void choose(const L *logits, const S *bias) {
    std::copy_n(logits, keys.size(), keys.begin());
    if (gate.scoreFirst && gate.score != GateScore::sparsemixer)
      applyScore<S>(gate.score, keys);
    for (size_t e = 0; e < keys.size(); ++e)
      choiceKeys[e] = bias ? keys[e] + bias[e] : keys[e];
    std::fill(taken.begin(), taken.end(), 0);
    gap = std::numeric_limits<float>::infinity();
    if (gate.groups > 1)
      leaveGroups();
    for (int32_t &id : ids)
      taken[size_t(id = best<S>(choiceKeys, taken))] = 1;
    gap = std::min(gap, marginOf<S>(choiceKeys, ids.back(), best<S>(choiceKeys, taken)));
  }

  /// Chooses as a sparsemixer does in training: uniform(choice, number) gives what it draws.
  /// weighed() then has the chosen experts' weights, those of midpoints in part.
  template <typename L, typename Uniform> void sample(const L *logits, Uniform uniform) {
    std::copy_n(logits, keys.size(), keys.begin());
    std::fill(taken.begin(), taken.end(), 0);
    for (size_t j = 0; j < ids.size(); ++j) {
      int32_t largest = best<S>(keys, taken), drawn = largest;
      double most = -std::numeric_limits<double>::infinity();
      for (size_t e = 0; e < keys.size(); ++e) {
        if (!isNear(e, keys[size_t(largest)]))
          continue;
        // The largest of scores and draws of Gumbel's distribution: a draw of their softmax.
        double key = double(keys[e]) - std::log(-std::log(uniform(j, e)));
        if (key > most)
          most = key, drawn = int32_t(e);
      }
      ids[j] = drawn;
      shares[j] = drawn == largest || uniform(j, keys.size()) > kInFull ? 1 : kSampledShare;
      taken[size_t(drawn)] = 1;
    }
    weigh();
    for (size_t j = 0; j < ids.size(); ++j)
      weights[j] = S(double(weights[j]) * shares[j]);
  }

  /// The weights of chosen(), which are experts of the gate.
  void weigh() {
    if (gate.score == GateScore::sparsemixer) {
      weighSparsely();
    } else {
      for (size_t j = 0; j < ids.size(); ++j)
        weights[j] = keys[size_t(ids[j])];
      if (!gate.scoreFirst)
        applyScore<S>(gate.score, weights);
    }
    S total = 0;
    for (S w : weights)
      total += w;
    if (gate.renorm)
      for (S &w : weights)
        w /= std::max(total + S(gate.renormEpsilon), S(gate.renormClampMin));
    for (S &w : weights)
      w *= S(gate.scale);
  }

private:
  /// Takes away the experts of all groups but the best.
  void leaveGroups() {
    size_t size = size_t(gate.groupSize());
    for (size_t g = 0; g < groupScores.size(); ++g) {
      std::span<const S> members(choiceKeys.data() + g * size, size);
      std::span<char> out(taken.data() + g * size, size);
      int32_t first = best<S>(members, out);
      groupScores[g] = members[size_t(first)];
      if (!gate.top2Sum)
        continue;
      out[size_t(first)] = 1;
      groupScores[g] += members[size_t(best<S>(members, out))];
      out[size_t(first)] = 0;
    }
    std::fill(groupTaken.begin(), groupTaken.end(), 0);
    int32_t last = -1;
    for (int32_t i = 0; i < gate.groupKeep; ++i)
      groupTaken[size_t(last = best<S>(groupScores, groupTaken))] = 1;
    gap = marginOf<S>(groupScores, last, best<S>(groupScores, groupTaken));
    for (size_t e = 0; e < taken.size(); ++e)
      taken[e] = !groupTaken[e / size];
  }

  /// Each choice's softmax over the experts near the largest that is left.
  void weighSparsely() {
    std::fill(taken.begin(), taken.end(), 0);
    for (size_t j = 0; j < ids.size(); ++j) {
      S largest = keys[size_t(best<S>(keys, taken))], total = 0, own = 0;
      for (size_t e = 0; e < keys.size(); ++e) {
        if (!isNear(e, largest))
          continue;
        S exponential = std::exp(keys[e] - largest);
        total += exponential;
        if (int32_t(e) == ids[j])
          own = exponential;
      }
      weights[j] = own / total;
      taken[size_t(ids[j])] = 1;
    }
  }

  /// Whether a sparsemixer's choice is among those that e belongs to: not taken, and near the
  /// largest that is left.
  bool isNear(size_t e, S largest) const {
    return !taken[e] &&
           !((largest - keys[e]) / std::max(std::abs(keys[e]), largest) > S(2 * gate.jitterEps));
  }

  const Gate &gate;
  std::vector<S> keys, choiceKeys, groupScores;
  std::vector<char> taken, groupTaken;
  std::vector<int32_t> ids;
  std::vector<S> weights;
  std::vector<double> shares;
  float gap = 0;
};

} // namespace

/// Logits of type L; scores and weights in its accumulator.
template <typename L> Status route(const Call &call) {
  using S = Accumulator<L>;
  int64_t experts = trailing(call.in[0], 1), tokens = leading(call.in[0], 1),
          k = trailing(call.out[0], 1);
  std::string problem;
  Gate gate = readGate(call.params, experts, k, problem);
  if (!problem.empty())
    return badCall(call, problem);
  const S *bias = call.in.size() > 1 ? call.input<S>(1) : nullptr;
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

  TokenGate<S> token(gate);
  for (int64_t t = 0; t < tokens; ++t) {
    token.choose(call.input<L>(0) + t * experts, bias);
    if (gaps)
      (*gaps)[size_t(t)] = token.margin();
    if (!forced.empty())
      std::copy_n(forced.begin() + t * k, k, token.chosen().begin());
    for (int32_t id : token.chosen())
      if (id < 0 || id >= experts)
        return Status(
            ErrorId::BadInput,
            format("forced routing sends token %lld to expert %d; the layer has experts 0..%lld",
                   (long long)t, id, (long long)experts - 1));
    token.weigh();
    std::copy_n(token.chosen().begin(), k, call.output<int32_t>(0) + t * k);
    std::copy_n(token.weighed().begin(), k, call.output<S>(1) + t * k);
  }
  return {};
}

template <typename L> Status sampled_route(const Call &call) {
  using S = Accumulator<L>;
  const std::vector<int64_t> &shape = call.in[0].shape;
  auto integer = [&](const char *name) { return call.params.integer(name); };
  Gate gate;
  gate.experts = int32_t(shape[2]), gate.k = int32_t(trailing(call.out[0], 1));
  gate.score = GateScore::sparsemixer;
  gate.jitterEps = call.params.real("jitter_eps"), gate.scale = call.params.real("scale");
  if (call.hooks && !call.hooks->forcedIds.empty())
    return Status(ErrorId::BadInput,
                  "choices are forced on a gate that draws them; compile without --router-noise");
  if (call.hooks && call.hooks->gaps)
    call.hooks->gaps->assign(size_t(shape[0] * shape[1]), 0);
  uint64_t seed = uint64_t(integer("seed"));
  uint32_t layer = uint32_t(integer("layer")), step = uint32_t(*call.input<int32_t>(1));
  int64_t part = call.in.size() > 2 ? *call.input<int32_t>(2) : 0;
  int64_t firstRow = part * integer("rows") + integer("row_offset");
  TokenGate<S> token(gate);
  for (int64_t t = 0; t < shape[0] * shape[1]; ++t) {
    int64_t number =
        (firstRow + t / shape[1]) * integer("columns") + integer("column_offset") + t % shape[1];
    token.sample(call.input<L>(0) + t * gate.experts, [&](size_t choice, size_t i) {
      return sampledUniform(seed, step, layer, uint32_t(number), uint32_t(choice),
                            uint32_t(gate.experts), uint32_t(i));
    });
    std::copy_n(token.chosen().begin(), gate.k, call.output<int32_t>(0) + t * gate.k);
    std::copy_n(token.weighed().begin(), gate.k, call.output<S>(1) + t * gate.k);
  }
  return {};
}

template <typename L> Status route_to(const Call &call) {
  using S = Accumulator<L>;
  int64_t experts = trailing(call.in[0], 1), tokens = leading(call.in[0], 1),
          k = trailing(call.in[1], 1);
  std::string problem;
  Gate gate = readGate(call.params, experts, k, problem);
  if (!problem.empty())
    return badCall(call, problem);
  TokenGate<S> token(gate);
  for (int64_t t = 0; t < tokens; ++t) {
    token.choose(call.input<L>(0) + t * experts, nullptr);
    std::copy_n(call.input<int32_t>(1) + t * k, k, token.chosen().begin());
    for (int32_t id : token.chosen())
      if (id < 0 || id >= experts)
        return Status(
            ErrorId::BadInput,
            format("the table of a hash gate sends token %lld to expert %d; the layer has "
                   "experts 0..%lld",
                   (long long)t, id, (long long)experts - 1));
    token.weigh();
    std::copy_n(token.chosen().begin(), k, call.output<int32_t>(0) + t * k);
    std::copy_n(token.weighed().begin(), k, call.output<S>(1) + t * k);
  }
  return {};
}

template <typename S> Status redirect(const Call &call) {
  int64_t k = trailing(call.in[0], 1), choices = call.in[0].elements();
  int32_t first = int32_t(call.params.integer("first")),
          rest = int32_t(call.params.integer("rest"));
  for (int64_t i = 0; i < choices; ++i) {
    int32_t id = call.input<int32_t>(0)[i];
    call.output<int32_t>(0)[i] = id < 0 ? -1 : i % k == 0 ? first : rest;
  }
  return {};
}

template Status route<float>(const Call &);
template Status route<double>(const Call &);
template Status route<Bf16>(const Call &);
template Status sampled_route<float>(const Call &);
template Status sampled_route<double>(const Call &);
template Status sampled_route<Bf16>(const Call &);
template Status route_to<float>(const Call &);
template Status route_to<double>(const Call &);
template Status route_to<Bf16>(const Call &);
template Status redirect<float>(const Call &);
template Status redirect<Bf16>(const Call &);
template Status redirect<double>(const Call &);

} // namespace moira::rt::host::ref
