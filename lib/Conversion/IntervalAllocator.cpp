//===- IntervalAllocator.cpp - places in memory for intervals of time -----===//
#include "moira/Conversion/IntervalAllocator.h"
#include "llvm/ADT/STLExtras.h"
#include <limits>
#include <map>

using namespace moira;

static uint64_t alignTo(uint64_t bytes, uint64_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

Placement moira::placeIntervals(const std::vector<LiveInterval> &intervals, uint64_t alignment) {
  Placement placement;
  placement.offsets.resize(intervals.size());
  std::vector<unsigned> order(intervals.size());
  for (unsigned i = 0; i < order.size(); ++i)
    order[i] = i;
  llvm::stable_sort(order, [&](unsigned a, unsigned b) {
    const LiveInterval &x = intervals[a], &y = intervals[b];
    return x.start != y.start ? x.start < y.start : x.size > y.size;
  });
  struct Alive {
    uint64_t end;    // in memory
    int64_t endTime; // in time
  };
  std::map<uint64_t, Alive> alive; // by offset
  for (unsigned i : order) {
    const LiveInterval &interval = intervals[i];
    std::erase_if(alive, [&](const auto &entry) { return entry.second.endTime <= interval.start; });
    uint64_t size = alignTo(std::max<uint64_t>(interval.size, 1), alignment);
    uint64_t best = 0, bestGap = std::numeric_limits<uint64_t>::max(), cursor = 0;
    for (const auto &[offset, block] : alive) {
      if (uint64_t gap = offset - cursor; gap >= size && gap < bestGap) {
        best = cursor;
        bestGap = gap;
      }
      cursor = block.end;
    }
    if (bestGap == std::numeric_limits<uint64_t>::max())
      best = cursor;
    placement.offsets[i] = best;
    alive[best] = {best + size, interval.end};
    placement.peak = std::max(placement.peak, best + size);
  }
  return placement;
}

LiveMaximum moira::maxLive(const std::vector<LiveInterval> &intervals, uint64_t alignment) {
  std::map<int64_t, int64_t> change;
  for (const LiveInterval &interval : intervals) {
    int64_t size = alignTo(std::max<uint64_t>(interval.size, 1), alignment);
    change[interval.start] += size;
    change[interval.end] -= size;
  }
  LiveMaximum most;
  int64_t now = 0;
  for (auto [time, delta] : change) {
    now += delta;
    if (static_cast<uint64_t>(now) > most.bytes)
      most = {static_cast<uint64_t>(now), time};
  }
  return most;
}
