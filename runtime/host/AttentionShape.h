//===- AttentionShape.h - sizes and visibility of one attention call ------===//
// Shared by the reference and the fast attention, so that they cannot disagree on who sees what.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_ATTENTIONSHAPE_H
#define MOIRA_RT_HOST_ATTENTIONSHAPE_H

#include "HostOps.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace moira::rt::host {

/// The least and the largest of some positions.
struct PositionRange {
  int32_t low, high;
  PositionRange(const int32_t *first, int64_t n) {
    auto [l, h] = std::minmax_element(first, first + n);
    low = *l;
    high = *h;
  }
};

/// Not to be copied: it points into itself.
struct AttentionShape {
  int64_t batch, queries, keys, heads, kvHeads;
  int64_t keyDim, valueDim;
  int64_t sharedDim; // of q2 and k2; 0: not given
  int64_t window;
  bool causal;
  std::vector<int64_t> kvHeadOf;           // row of k and v that each query head of this rank reads
  const TensorRef *q2, *k2, *bias, *sinks; // null: not given
  const TensorRef *logSums;                // an output of attention; null: nobody asks
  const int32_t *qpos, *kpos, *kmask;      // the operands, or of these two:
  std::vector<int32_t> order, ones;        // what those are that are not given

  /// The keys of [first, end) without those at its ends that no query at these positions sees,
  /// whatever the mask; first = end if nobody sees any.
  std::pair<int64_t, int64_t> keysInSight(const PositionRange &queries, int64_t first,
                                          int64_t end) const {
    auto hidden = [&](int32_t key) {
      return (causal && key > queries.high) || (window > 0 && int64_t(queries.low) - key >= window);
    };
    while (first < end && hidden(kpos[first]))
      ++first;
    while (first < end && hidden(kpos[end - 1]))
      --end;
    return {first, end};
  }

  /// Whether query i sees key j of row b of the batch.
  bool sees(int64_t b, int64_t i, int64_t j) const {
    int64_t query = qpos[i], key = kpos[j];
    return kmask[b * keys + j] != 0 && (!causal || key <= query) &&
           (window <= 0 || query - key < window);
  }
};

/// Fills `shape` from the operands and parameters; fails if a query head's key/value head is not
/// present.
Status attentionShape(const Call &call, AttentionShape &shape);

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_ATTENTIONSHAPE_H
