//===- IntervalAllocator.cpp - places in memory for intervals of time -----===//
#include "moira/Conversion/IntervalAllocator.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/STLExtras.h"
#include <limits>
#include <map>

using namespace moira;

/// Up to so many intervals the quadratic strategies cost less than a tenth of a second.
static constexpr size_t kQuadraticLimit = 4096;

static uint64_t alignTo(uint64_t bytes, uint64_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

namespace {

/// Occupied bytes, by offset.
struct Block {
  uint64_t begin, end;
  bool operator<(const Block &other) const { return begin < other.begin; }
};

/// The tightest gap of at least `size` bytes between blocks (ordered, disjoint or not), or the end
/// of all.
template <typename Blocks> uint64_t bestFit(const Blocks &blocks, uint64_t size) {
  uint64_t best = 0, bestGap = std::numeric_limits<uint64_t>::max(), cursor = 0;
  for (const Block &block : blocks) {
    if (block.begin >= cursor + size && block.begin - cursor < bestGap) {
      best = cursor;
      bestGap = block.begin - cursor;
    }
    cursor = std::max(cursor, block.end);
  }
  return bestGap == std::numeric_limits<uint64_t>::max() ? cursor : best;
}

/// Numbers of the intervals, sorted.
template <typename Less> std::vector<unsigned> sorted(size_t count, Less less) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i)
    order[i] = i;
  llvm::stable_sort(order, less);
  return order;
}

/// In order of time, as a heap would: n · (alive at once).
Placement placeByTime(const std::vector<LiveInterval> &intervals,
                      const std::vector<uint64_t> &sizes) {
  Placement placement{std::vector<uint64_t>(intervals.size()), 0};
  struct Alive : Block {
    int64_t until;
  };
  std::vector<Alive> alive; // ordered
  for (unsigned i : sorted(intervals.size(), [&](unsigned a, unsigned b) {
         return intervals[a].start != intervals[b].start ? intervals[a].start < intervals[b].start
                                                         : sizes[a] > sizes[b];
       })) {
    llvm::erase_if(alive, [&](const Alive &block) { return block.until <= intervals[i].start; });
    uint64_t offset = bestFit(alive, sizes[i]);
    Alive block{{offset, offset + sizes[i]}, intervals[i].end};
    alive.insert(llvm::upper_bound(alive, block), block);
    placement.offsets[i] = offset;
    placement.peak = std::max(placement.peak, block.end);
  }
  return placement;
}

/// In a given order, wherever in time: n².
Placement placeInOrder(const std::vector<LiveInterval> &intervals,
                       const std::vector<uint64_t> &sizes, const std::vector<unsigned> &order) {
  Placement placement{std::vector<uint64_t>(intervals.size()), 0};
  std::vector<Block> together;
  for (auto [n, i] : llvm::enumerate(order)) {
    together.clear();
    for (unsigned j : llvm::ArrayRef(order).take_front(n))
      if (intervals[i].start < intervals[j].end && intervals[j].start < intervals[i].end)
        together.push_back({placement.offsets[j], placement.offsets[j] + sizes[j]});
    llvm::sort(together);
    placement.offsets[i] = bestFit(together, sizes[i]);
    placement.peak = std::max(placement.peak, placement.offsets[i] + sizes[i]);
  }
  return placement;
}

} // namespace

Placement moira::placeIntervals(const std::vector<LiveInterval> &intervals, uint64_t alignment) {
  std::vector<uint64_t> sizes;
  for (const LiveInterval &interval : intervals)
    sizes.push_back(alignTo(std::max<uint64_t>(interval.size, 1), alignment));
  Placement best = placeByTime(intervals, sizes);
  if (intervals.size() > kQuadraticLimit)
    return best;
  // Large ones first is usually tightest; ones that are large for long, or long, sometimes.
  auto length = [&](unsigned i) { return uint64_t(intervals[i].end - intervals[i].start); };
  auto area = [&](unsigned i) { return sizes[i] * length(i); };
  auto attempt = [&](auto key) {
    Placement other = placeInOrder(
        intervals, sizes, sorted(intervals.size(), [&](unsigned a, unsigned b) {
          return key(a) != key(b) ? key(a) > key(b) : intervals[a].start < intervals[b].start;
        }));
    if (other.peak < best.peak)
      best = std::move(other);
  };
  attempt([&](unsigned i) { return sizes[i]; });
  attempt(area);
  attempt(length);
  return best;
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
