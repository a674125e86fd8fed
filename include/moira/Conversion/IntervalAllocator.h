//===- IntervalAllocator.h - places in memory for intervals of time -*- C++ -*-===//
// Pure arithmetic: intervals in, offsets out. What an interval is and when it ends is the caller's
// business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CONVERSION_INTERVALALLOCATOR_H
#define MOIRA_CONVERSION_INTERVALALLOCATOR_H

#include <cstdint>
#include <vector>

namespace moira {

/// Something that occupies `size` bytes from time `start` until before time `end` (start < end).
struct LiveInterval {
  int64_t start = 0, end = 0;
  uint64_t size = 0;
};

struct Placement {
  std::vector<uint64_t> offsets; // one for each interval, multiples of `alignment`
  uint64_t peak = 0;             // end of the highest one, a multiple of `alignment`
};

/// Offsets such that intervals that are alive at the same time do not overlap. The best of some
/// greedy strategies: best fit in order of time, and (up to some thousands of intervals) in order
/// of size, of size times length, and of length. Deterministic.
Placement placeIntervals(const std::vector<LiveInterval> &intervals, uint64_t alignment);

/// The largest sum of (aligned) sizes alive at one time, and such a time: no placement has a lower
/// peak.
struct LiveMaximum {
  uint64_t bytes = 0;
  int64_t time = 0;
};
LiveMaximum maxLive(const std::vector<LiveInterval> &intervals, uint64_t alignment);

} // namespace moira

#endif // MOIRA_CONVERSION_INTERVALALLOCATOR_H
