//===- SampleTree.h - sums over tokens, sample by sample --------*- C++ -*-===//
// The order of sums over tokens under --deterministic: each sample (row of the batch) gives one
// term, and terms are added as a binary tree that depends on nothing but how many there are. Half
// of an even number of samples is a subtree, so ranks that hold such halves, and OrderedReduce.h,
// which adds up theirs alike, together give what one rank gives, to the bit.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_SAMPLETREE_H
#define MOIRA_RT_HOST_SAMPLETREE_H

#include "HostOps.h"

#include <algorithm>
#include <array>
#include <vector>

namespace moira::rt::host {

/// The samples of tokens [samples, ..] that a call adds up one by one; 1, for all of them together,
/// unless the call says `per_sample`.
inline int64_t samplesOf(const Call &call, const TensorRef &tokens) {
  return call.params.integer("per_sample") != 0 ? std::max<int64_t>(1, tokens.shape[0]) : 1;
}

/// One sum. has(s): whether sample s has a term, which is zero otherwise; term(s, A *into) ->
/// Status overwrites `into` with it.
template <typename A, typename Has, typename Term> class SampleTree {
public:
  SampleTree(int64_t size, Has has, Term term)
      : size(size), has(std::move(has)), term(std::move(term)) {}

  Status sum(int64_t samples, A *out) {
    if (!add(0, samples, out, 0))
      std::fill_n(out, size, A(0));
    else if (missing) // as if zeros had been added: -0 becomes 0
      for (int64_t i = 0; i < size; ++i)
        out[i] += A(0);
    return std::move(status);
  }

private:
  /// Whether any sample of [first, first + count) has a term; out is their sum then.
  bool add(int64_t first, int64_t count, A *out, size_t depth) {
    if (count == 1) {
      if (!has(first)) {
        missing = true;
        return false;
      }
      if (status)
        status = term(first, out);
      return true;
    }
    // Halves, or, of an odd number, one after the other.
    int64_t part = count % 2 ? 1 : count / 2;
    bool any = add(first, part, out, depth + 1);
    for (int64_t next = first + part; next < first + count; next += part) {
      std::vector<A> &spare = spares[depth];
      spare.resize(any ? size_t(size) : spare.size());
      A *into = any ? spare.data() : out;
      if (!add(next, part, into, depth + 1))
        continue;
      for (int64_t i = 0; any && i < size; ++i)
        out[i] += into[i];
      any = true;
    }
    return any;
  }

  int64_t size;
  Has has;
  Term term;
  Status status;
  bool missing = false;
  std::array<std::vector<A>, 64> spares; // one for each level, as many as a count has bits
};

/// out[0, size) = the sum of all samples' terms.
template <typename A, typename Term>
Status sumSamples(int64_t samples, A *out, int64_t size, Term term) {
  auto always = [](int64_t) { return true; };
  return SampleTree<A, decltype(always), Term>(size, always, std::move(term)).sum(samples, out);
}

/// The same where some may have none.
template <typename A, typename Has, typename Term>
Status sumSamples(int64_t samples, A *out, int64_t size, Has has, Term term) {
  return SampleTree<A, Has, Term>(size, std::move(has), std::move(term)).sum(samples, out);
}

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_SAMPLETREE_H
