//===- Capacity.cpp - which choices an expert has room for ------------------===//
// `limit`: a routing with the choices over an expert's capacity dropped (id -1, weight 0). The gate
// is in Routing.cpp.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "moira/rt/Limit.h"
#include "moira/rt/Philox.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// Something that wants a place with an expert. Smaller ones come first.
struct Claim {
  int64_t turn; // choice number, where all first choices come before any second one
  double merit; // larger is better; holds every float and every draw exactly
  int64_t token, choice;

  auto key() const { return std::make_tuple(turn, -merit, token, choice); }
  bool operator<(const Claim &other) const { return key() < other.key(); }
};

/// A merit that can be ordered: what is no number is worst.
double orderly(double merit) { return merit == merit ? merit : -INFINITY; }

/// The merit of a token whose choices stand together.
template <typename S> double bestOf(const S *weights, int64_t k) {
  double best = -INFINITY;
  for (int64_t j = 0; j < k; ++j)
    best = std::max(best, orderly(weights[j]));
  return best;
}

/// Weights of one token's k choices, of which those with `id` -1 are dropped.
template <typename S>
void weigh(const Limit &limit, const S *weights, const int32_t *ids, int64_t k, S *out) {
  S total = 0;
  for (int64_t j = 0; j < k; ++j)
    if (limit.renorm == LimitRenorm::before || ids[j] >= 0)
      total += weights[j];
  total = std::max(total + S(limit.renormEpsilon), S(limit.renormClampMin));
  for (int64_t j = 0; j < k; ++j)
    out[j] = ids[j] < 0 ? S(0)
                        : (limit.renorm == LimitRenorm::none ? weights[j] : weights[j] / total) *
                              S(limit.scale);
}

} // namespace

template <typename T> Status limit(const Call &call) {
  using S = Accumulator<T>;
  int64_t k = trailing(call.in[0], 1), tokens = leading(call.in[0], 1);
  std::string problem;
  Limit limit = readLimit(call.params, tokens, problem);
  if (!problem.empty())
    return badCall(call, problem);
  const int32_t *ids = call.input<int32_t>(0);
  const S *weights = call.input<S>(1);
  uint32_t step = call.in.size() > 2 ? uint32_t(*call.input<int32_t>(2)) : 0;
  int32_t *kept = call.output<int32_t>(0);
  std::copy_n(ids, tokens * k, kept);

  int64_t perDomain = tokens / limit.domains, offered = 0, dropped = 0;
  std::vector<std::vector<Claim>> claims(static_cast<size_t>(limit.experts));
  for (int64_t domain = 0; domain < limit.domains; ++domain) {
    for (std::vector<Claim> &one : claims)
      one.clear();
    for (int64_t t = domain * perDomain; t < (domain + 1) * perDomain; ++t)
      for (int64_t j = 0; j < k; ++j) {
        int32_t id = ids[t * k + j];
        if (id < -1 || id >= limit.experts)
          return badCall(call, format("token %lld chooses expert %d of 0..%lld", (long long)t, id,
                                      (long long)limit.experts - 1));
        if (id < 0)
          continue;
        ++offered;
        Claim claim{limit.choiceMajor ? j : 0, 0, t, j};
        if (limit.policy == DropPolicy::probs)
          claim.merit = orderly(weights[t * k + j]);
        else if (limit.policy == DropPolicy::random)
          claim.merit = tokenDraw(limit.seed, step, uint32_t(limit.layer),
                                  uint32_t(limit.tokenOffset + t), uint32_t(id));
        else if (limit.policy == DropPolicy::priority)
          claim.merit = bestOf(weights + t * k, k);
        claims[size_t(id)].push_back(claim);
      }
    for (std::vector<Claim> &one : claims) {
      if (int64_t(one.size()) <= limit.capacity)
        continue;
      std::nth_element(one.begin(), one.begin() + limit.capacity, one.end());
      for (auto claim = one.begin() + limit.capacity; claim != one.end(); ++claim) {
        kept[claim->token * k + claim->choice] = -1;
        ++dropped;
      }
    }
  }
  for (int64_t t = 0; t < tokens; ++t)
    weigh<S>(limit, weights + t * k, kept + t * k, k, call.output<S>(1) + t * k);
  call.output<S>(2)[0] = S(dropped);
  call.output<S>(2)[1] = S(offered);
  return {};
}

template Status limit<float>(const Call &);
template Status limit<double>(const Call &);
template Status limit<Bf16>(const Call &);

} // namespace moira::rt::host::ref
