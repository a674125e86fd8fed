//===- Dispatch.cu - tokens to expert rows: select and pack -----------------===//
// A stable counting sort of rows (one for each token and choice) into slots of bins, without
// atomics, so that equal inputs give equal bits. The order of rows is the contract of
// docs/architecture.md, section 2. Few rows are selected in SelectFew.cu. The inverse is in
// Combine.cu, the exchange between ranks in Exchange.cu.
//
// Up to kMostBins bins, in launches each of which starts while the one before it ends:
//
//   rankBlocks   a block a run of rows, which counts in shared memory: per row how many before it
//   in
//                the run are of its bin, and the counts [run, bin]
//   scanSlots    a block a slot: counts become places of its runs' first rows; counts placed, need
//   placeWhole   a warp a token: positions, and the copies of its row, by parts as large as
//                registers hold; other warps: zeros to the places past each slot's count
//
// Where tokens' numbers are placed, not their rows, and counts are few, two launches do:
//
//   rankBlocks   as above
//   placeNumbers a block a run, which adds up all runs' counts for itself: positions, numbers, and
//                zeros to its share of the places past the count
//
// More bins, or nothing to place:
//
//   rankRows     a warp a run; counts [bin, run]
//   scanRuns     a warp a bin: counts become the rows of the bin before each run; totals [bin]
//   scanBins     a block a slot: where each bin starts in its slot; counts placed, need
//   placeRows    as placeWhole; a warp a place past its slot's count
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

/// Which bin a row belongs to: select's bins are this rank's experts, pack's are (expert, segment).
struct BinRule {
  const int32_t *ids;           // per row
  int32_t experts, first, bins; // bins of all slots together
  int32_t segments;
  int32_t rowsPerSegment; // tokens of a segment times k
};

/// -1: dropped, not for any slot here, or an expert that does not exist (`bad`).
__device__ int32_t binOf(const BinRule &rule, int64_t row, bool &bad) {
  int32_t id = rule.ids[row];
  bad = id < -1 || id >= rule.experts;
  if (bad || id < 0)
    return -1;
  int64_t bin = int64_t(id) - rule.first;
  if (rule.segments > 1) // a division saved
    bin = bin * rule.segments + row / rule.rowsPerSegment;
  return bin >= 0 && bin < rule.bins ? int32_t(bin) : -1;
}

struct Sort {
  BinRule rule;
  int64_t rows, runRows, runs;
  int32_t slots, binsPerSlot;
  int64_t capacity;
  int32_t *runCounts; // [bins, runs]
  int32_t *totals;    // [bins]
  int32_t *starts;    // [bins], within the slot
  int32_t *filled;    // [slots]
  int32_t *counts;    // [bins], output
  int32_t *pos;       // [rows], output
  const int32_t *needIn;
  int32_t *needOut;
  int32_t *flag;
};

__global__ void rankRows(Sort sort) {
  if (threadNumber() == 0)
    *sort.needOut = *sort.needIn;
  int64_t run = warpNumber();
  if (run >= sort.runs)
    return;
  int64_t end = min(sort.rows, (run + 1) * sort.runRows);
  for (int64_t base = run * sort.runRows; base < end; base += 32) {
    int64_t row = base + laneNumber();
    bool bad = false;
    int32_t bin = row < end ? binOf(sort.rule, row, bad) : -1;
    if (bad)
      raise(sort.flag, Fault::expert);
    unsigned same = __match_any_sync(kAllLanes, bin);
    int leader = __ffs(int(same)) - 1;
    int32_t before = 0;
    if (bin >= 0 && laneNumber() == leader) {
      int32_t *count = sort.runCounts + bin * sort.runs + run;
      before = *count;
      *count = before + __popc(same);
    }
    before = __shfl_sync(kAllLanes, before, leader);
    if (row < end)
      sort.pos[row] = bin < 0 ? -1 : before + __popc(same & ((1u << laneNumber()) - 1));
    __syncwarp(); // the next 32 rows read the counts that this lane wrote
  }
}

__global__ void scanRuns(Sort sort) {
  int64_t bin = warpNumber();
  if (bin >= sort.rule.bins)
    return;
  int32_t *counts = sort.runCounts + bin * sort.runs;
  int32_t before = 0;
  for (int64_t base = 0; base < sort.runs; base += 32) {
    int64_t run = base + laneNumber();
    int32_t count = run < sort.runs ? counts[run] : 0;
    int32_t upTo = warpScan(count);
    if (run < sort.runs)
      counts[run] = before + upTo - count;
    before += __shfl_sync(kAllLanes, upTo, 31);
  }
  if (laneNumber() == 0)
    sort.totals[bin] = before;
}

__global__ void scanBins(Sort sort) {
  __shared__ int32_t partial[33];
  int64_t slot = blockIdx.x, first = slot * sort.binsPerSlot;
  int32_t at = 0;
  for (int32_t base = 0; base < sort.binsPerSlot; base += int32_t(blockDim.x)) {
    int32_t i = base + int32_t(threadIdx.x), total;
    int32_t size = i < sort.binsPerSlot ? sort.totals[first + i] : 0;
    int32_t start = at + blockScan(size, partial, total);
    if (i < sort.binsPerSlot) {
      sort.starts[first + i] = start;
      int64_t room = max(int64_t(0), sort.capacity - start);
      sort.counts[first + i] = int32_t(min(room, int64_t(size)));
    }
    at += total;
  }
  if (threadIdx.x == 0) {
    sort.filled[slot] = int32_t(min(int64_t(at), sort.capacity));
    atomicMax(sort.needOut, at); // a maximum: the order does not matter
  }
}

/// Where row `row` goes, among all slots' rows; -1: nowhere.
__device__ int64_t targetOf(const Sort &sort, int64_t row) {
  bool bad = false;
  int32_t bin = binOf(sort.rule, row, bad);
  if (bin < 0)
    return -1;
  int64_t place = int64_t(sort.starts[bin]) + sort.runCounts[bin * sort.runs + row / sort.runRows] +
                  sort.pos[row];
  return place < sort.capacity ? bin / sort.binsPerSlot * sort.capacity + place : -1;
}

/// Unit `at` of a token's row; without x a row is one unit, the token's number.
template <typename V> __device__ V unitOf(const V *x, int64_t token, int64_t units, int64_t at) {
  if constexpr (std::is_same_v<V, int32_t>)
    return x ? x[token * units + at] : int32_t(token);
  else
    return x[token * units + at];
}

/// Rows of x (one a token, k rows each) of `units` units to their places. With `weights`, one a
/// row, units are numbers and rows are multiplied by them.
template <typename V, bool weighed>
__global__ void placeRows(Sort sort, const V *x, const float *weights, V *out, int64_t tokens,
                          int64_t k, int64_t units) {
  awaitPrevious();
  const int64_t work = warpNumber();
  if (work >= tokens) {
    int64_t target = work - tokens;
    if (target < sort.slots * sort.capacity &&
        target % sort.capacity >= sort.filled[target / sort.capacity])
      warpMove<V>(out + target * units, nullptr, units);
    return;
  }
  // Up to 32 of the token's rows at a time, one a lane; x is read once for all of them.
  for (int64_t first = 0; first < k; first += 32) {
    const int64_t row = work * k + first + laneNumber();
    const int count = int(min(int64_t(32), k - first));
    int64_t target = -1;
    float weight = 0;
    if (laneNumber() < count) {
      target = targetOf(sort, row);
      sort.pos[row] = int32_t(target);
      if constexpr (weighed)
        weight = weights[row];
    }
    for (int64_t base = 0; base < units; base += 32) {
      const int64_t at = base + laneNumber();
      const V value = at < units ? unitOf(x, work, units, at) : V{};
      for (int j = 0; j < count; ++j) {
        const int64_t to = __shfl_sync(kAllLanes, target, j);
        V result = value;
        if constexpr (weighed)
          result = fromFloat<V>(toFloat(value) * __shfl_sync(kAllLanes, weight, j));
        if (to >= 0 && at < units)
          out[to * units + at] = result;
      }
    }
  }
}

constexpr int kSortWarps = 8, kShare = 4; // a warp's share of a run: so many times 32 rows
constexpr int64_t kRunRows = kSortWarps * kShare * 32;
constexpr int kMostBins = 1024, kScanThreads = 1024;

__global__ void __launch_bounds__(kSortWarps * 32) rankBlocks(Sort sort) {
  extern __shared__ int32_t seen[]; // [warp, bin]: rows of a bin in the warp's share
  awaitPrevious();
  if (threadNumber() == 0)
    *sort.needOut = *sort.needIn;
  const int bins = sort.rule.bins, lane = laneNumber(), warp = int(threadIdx.x) / 32;
  int32_t *own = seen + warp * bins;
  for (int i = lane; i < bins; i += 32)
    own[i] = 0;
  const int64_t first = blockIdx.x * kRunRows + warp * kShare * 32 + lane;
  int32_t bin[kShare], rank[kShare];
#pragma unroll
  for (int s = 0; s < kShare; ++s) {
    bool bad = false;
    bin[s] = first + s * 32 < sort.rows ? binOf(sort.rule, first + s * 32, bad) : -1;
    if (bad)
      raise(sort.flag, Fault::expert);
  }
  __syncwarp();
#pragma unroll
  for (int s = 0; s < kShare; ++s) {
    const unsigned same = __match_any_sync(kAllLanes, bin[s]);
    const int32_t before = bin[s] >= 0 ? own[bin[s]] : 0;
    rank[s] = before + __popc(same & ((1u << lane) - 1));
    __syncwarp(); // every lane has read it
    if (bin[s] >= 0 && lane == __ffs(int(same)) - 1)
      own[bin[s]] = before + __popc(same);
    __syncwarp();
  }
  __syncthreads();
  for (int b = int(threadIdx.x); b < bins; b += kSortWarps * 32) {
    int32_t sum = 0;
#pragma unroll
    for (int w = 0; w < kSortWarps; ++w) {
      const int32_t count = seen[w * bins + b];
      seen[w * bins + b] = sum;
      sum += count;
    }
    sort.runCounts[int64_t(blockIdx.x) * bins + b] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kShare; ++s)
    if (first + s * 32 < sort.rows)
      sort.pos[first + s * 32] = bin[s] < 0 ? -1 : own[bin[s]] + rank[s];
}

/// Threads stand in groups, one thread a bin in each, which share the runs.
__global__ void __launch_bounds__(kScanThreads) scanSlots(Sort sort) {
  __shared__ int32_t partial[33], sums[kScanThreads];
  awaitPrevious();
  constexpr int atOnce = 8; // loads under way
  const int64_t bins = sort.rule.bins, firstBin = int64_t(blockIdx.x) * sort.binsPerSlot;
  const int columns = (sort.binsPerSlot + 31) / 32 * 32, groups = kScanThreads / columns,
            bin = int(threadIdx.x) % columns, group = int(threadIdx.x) / columns;
  const bool mine = group < groups && bin < sort.binsPerSlot;
  const int64_t share = (sort.runs + groups - 1) / groups,
                begin = mine ? min(sort.runs, group * share) : 0,
                end = mine ? min(sort.runs, begin + share) : 0;
  int32_t *counts = sort.runCounts + firstBin + bin;
  int32_t sum = 0;
#pragma unroll 8
  for (int64_t run = begin; run < end; ++run)
    sum += counts[run * bins];
  sums[threadIdx.x] = sum;
  __syncthreads();
  int32_t place = 0, total = 0, all;
  for (int g = 0; mine && g < groups; ++g) {
    const int32_t one = sums[g * columns + bin];
    total += one;
    place += g < group ? one : 0;
  }
  const bool leads = mine && group == 0;
  const int32_t start = blockScan(leads ? total : 0, partial, all);
  if (leads) {
    sums[bin] = start;
    const int64_t room = max(int64_t(0), sort.capacity - start);
    sort.counts[firstBin + bin] = int32_t(min(room, int64_t(total)));
  }
  __syncthreads();
  if (mine)
    place += sums[bin];
  for (int64_t run = begin; run < end; run += atOnce) {
    int32_t held[atOnce];
#pragma unroll
    for (int u = 0; u < atOnce; ++u)
      held[u] = run + u < end ? counts[(run + u) * bins] : 0;
#pragma unroll
    for (int u = 0; u < atOnce; ++u)
      if (run + u < end) {
        counts[(run + u) * bins] = place;
        place += held[u];
      }
  }
  if (threadIdx.x == 0) {
    sort.filled[blockIdx.x] = int32_t(min(int64_t(all), sort.capacity));
    atomicMax(sort.needOut, all); // a maximum: the order does not matter
  }
}

/// Counts that every block of placeNumbers reads: as many as the L2 brings in a few microseconds.
constexpr int64_t kMostReadCounts = 1 << 16;

/// The numbers of one slot's tokens, after rankBlocks. Threads stand in groups as in scanSlots.
__global__ void __launch_bounds__(kScanThreads) placeNumbers(Sort sort, int32_t *out, int64_t k) {
  static_assert(kScanThreads == kRunRows, "a thread a row");
  __shared__ int32_t partial[33], totals[kScanThreads], befores[kScanThreads];
  awaitPrevious();
  const int bins = sort.rule.bins, columns = (bins + 31) / 32 * 32, groups = kScanThreads / columns,
            bin = int(threadIdx.x) % columns, group = int(threadIdx.x) / columns;
  int32_t all, total = 0, before = 0; // rows: all, the bin's, and the bin's in runs before this one
  if (bin < bins && group < groups) {
#pragma unroll 8
    for (int64_t run = group; run < sort.runs; run += groups) {
      const int32_t count = sort.runCounts[run * bins + bin];
      total += count;
      before += run < blockIdx.x ? count : 0;
    }
  }
  totals[threadIdx.x] = total;
  befores[threadIdx.x] = before;
  __syncthreads();
  const bool leads = bin < bins && group == 0;
  for (int g = 1; leads && g < groups; ++g) {
    total += totals[g * columns + bin];
    before += befores[g * columns + bin];
  }
  const int32_t start = blockScan(leads ? total : 0, partial, all);
  if (leads) {
    befores[bin] = start + before;
    if (blockIdx.x == 0) {
      const int64_t room = max(int64_t(0), sort.capacity - start);
      sort.counts[bin] = int32_t(min(room, int64_t(total)));
    }
  }
  if (threadNumber() == 0)
    atomicMax(sort.needOut, all); // behind rankBlocks' value
  __syncthreads();
  const int64_t row = blockIdx.x * kRunRows + threadIdx.x;
  if (row < sort.rows) {
    bool bad = false;
    const int32_t own = binOf(sort.rule, row, bad);
    const int64_t place = own < 0 ? sort.capacity : int64_t(befores[own]) + sort.pos[row];
    const bool there = place < sort.capacity;
    if (there)
      out[place] = int32_t(row / k);
    sort.pos[row] = there ? int32_t(place) : -1;
  }
  for (int64_t place = min(int64_t(all), sort.capacity) + threadNumber(); place < sort.capacity;
       place += threadCount())
    out[place] = 0;
}

/// As placeRows, after scanSlots. Warps past the tokens' share the places that stay empty.
template <typename V, bool weighed>
__global__ void __launch_bounds__(kWarpBlock)
    placeWhole(Sort sort, const V *x, const float *weights, V *out, int64_t tokens, int64_t k,
               int64_t units) {
  awaitPrevious();
  constexpr int atOnce = 8; // parts of a row that a lane holds
  const int64_t work = warpNumber(), spare = threadCount() / 32 - tokens;
  if (work >= tokens) {
    for (int64_t slot = 0; slot < sort.slots; ++slot)
      for (int64_t place = sort.filled[slot] + work - tokens; place < sort.capacity; place += spare)
        warpMove<V>(out + (slot * sort.capacity + place) * units, nullptr, units);
    return;
  }
  for (int64_t first = 0; first < k; first += 32) {
    const int count = int(min(int64_t(32), k - first));
    int64_t target = -1;
    float weight = 0;
    if (laneNumber() < count) {
      const int64_t row = work * k + first + laneNumber();
      bool bad = false;
      const int32_t bin = binOf(sort.rule, row, bad);
      if (bin >= 0) {
        const int64_t place =
            int64_t(sort.runCounts[row / kRunRows * sort.rule.bins + bin]) + sort.pos[row];
        if (place < sort.capacity)
          target = bin / sort.binsPerSlot * sort.capacity + place;
      }
      sort.pos[row] = int32_t(target);
      if constexpr (weighed)
        weight = weights[row];
    }
    for (int64_t base = laneNumber(); base - laneNumber() < units; base += 32 * atOnce) {
      V held[atOnce];
#pragma unroll
      for (int u = 0; u < atOnce; ++u)
        held[u] = base + u * 32 < units ? unitOf(x, work, units, base + u * 32) : V{};
      for (int j = 0; j < count; ++j) {
        const int64_t to = __shfl_sync(kAllLanes, target, j);
        float factor = 0;
        if constexpr (weighed)
          factor = __shfl_sync(kAllLanes, weight, j);
        if (to < 0)
          continue;
#pragma unroll
        for (int u = 0; u < atOnce; ++u) {
          V result = held[u];
          if constexpr (weighed)
            result = fromFloat<V>(toFloat(held[u]) * factor);
          if (base + u * 32 < units)
            out[to * units + base + u * 32] = result;
        }
      }
    }
  }
}

/// Whether a call places the numbers of tokens, not their rows.
bool placesNumbers(const Call &call) { return call.out[0].dtype == fb::DType::i32; }

/// Launches the last kernel of a sort: placeWhole after scanSlots, or placeRows.
Status place(const Call &call, const Sort &sort, int64_t work, int64_t tokens, int64_t k,
             bool whole) {
  if (placesNumbers(call))
    return launchEarly(call, whole ? placeWhole<int32_t, false> : placeRows<int32_t, false>,
                       blocksOfWarps(work), kWarpBlock, 0, sort, nullptr, nullptr,
                       call.output<int32_t>(0), tokens, k, 1);
  const TensorRef &x = call.in[0], &out = call.out[0];
  if (x.dtype != out.dtype)
    return badCall(call, "the rows are of another type than the tokens");
  if (call.in.size() > 3)
    return withFloat(x.dtype, [&]<typename T>(T) {
      return launchEarly(call, whole ? placeWhole<T, true> : placeRows<T, true>,
                         blocksOfWarps(work), kWarpBlock, 0, sort, call.input<T>(0),
                         call.input<float>(3), call.output<T>(0), tokens, k, trailing(x, 1));
    });
  size_t rowBytes = size_t(trailing(x, 1)) * elementBytes(x.dtype);
  return withUnit(commonUnit(rowBytes, addressOf(x.data), addressOf(out.data)), [&]<typename V>(V) {
    return launchEarly(call, whole ? placeWhole<V, false> : placeRows<V, false>,
                       blocksOfWarps(work), kWarpBlock, 0, sort, call.input<V>(0), nullptr,
                       call.output<V>(0), tokens, k, int64_t(rowBytes / sizeof(V)));
  });
}

/// The sort by blocks; false: too many bins for it, nothing to place, or too little scratch.
Expected<bool> runBlockSort(const Call &call, Sort sort, int64_t k) {
  constexpr int64_t kZeroWarps = 2048;
  const int64_t bins = sort.rule.bins, tokens = sort.rows / k, places = sort.slots * sort.capacity;
  if (bins == 0 || bins > kMostBins || tokens == 0 || places == 0)
    return false;
  Scratch scratch(call.context);
  sort.runs = ceilDiv(sort.rows, kRunRows);
  sort.filled = scratch.take<int32_t>(sort.slots);
  sort.runCounts = scratch.take<int32_t>(bins * sort.runs);
  if (!sort.filled || !sort.runCounts)
    return false;
  if (Status s = launchEarly(call, rankBlocks, unsigned(sort.runs), kSortWarps * 32,
                             size_t(kSortWarps * bins) * sizeof(int32_t), sort);
      !s)
    return s;
  if (placesNumbers(call) && sort.slots == 1 && bins * sort.runs <= kMostReadCounts) {
    if (Status s = launchEarly(call, placeNumbers, unsigned(sort.runs), kScanThreads, 0, sort,
                               call.output<int32_t>(0), k);
        !s)
      return s;
    return true;
  }
  if (Status s = launchEarly(call, scanSlots, unsigned(sort.slots), kScanThreads, 0, sort); !s)
    return s;
  if (Status s = place(call, sort, tokens + std::min(places, kZeroWarps), tokens, k, true); !s)
    return s;
  return true;
}

/// Fills in the scratch parts and runs the kernels.
Status runSort(const Call &call, Sort sort, int64_t k) {
  sort.counts = call.output<int32_t>(1);
  sort.pos = call.output<int32_t>(2);
  sort.needIn = call.input<int32_t>(placesNumbers(call) ? 1 : 2);
  sort.needOut = call.output<int32_t>(3);
  sort.flag = call.context.errorFlag;
  Expected<bool> done = runBlockSort(call, sort, k);
  if (!done || *done)
    return done.takeStatus();

  Scratch scratch(call.context);
  int64_t bins = sort.rule.bins;
  sort.totals = scratch.take<int32_t>(bins);
  sort.starts = scratch.take<int32_t>(bins);
  sort.filled = scratch.take<int32_t>(sort.slots);
  // Short runs for many warps at work, as far as their counts fit.
  sort.runRows = 256;
  auto runsOf = [&] { return std::max<int64_t>(1, ceilDiv(sort.rows, sort.runRows)); };
  while (runsOf() > 1 && size_t(runsOf() * bins) * sizeof(int32_t) + 256 > scratch.bytesLeft())
    sort.runRows *= 2;
  sort.runs = runsOf();
  sort.runCounts = scratch.take<int32_t>(bins * sort.runs);
  if (!sort.totals || !sort.starts || !sort.filled || !sort.runCounts)
    return noScratch(call);

  if (Status s = checked(call.name, cudaMemsetAsync(sort.runCounts, 0,
                                                    size_t(bins * sort.runs) * sizeof(int32_t),
                                                    call.stream()));
      !s)
    return s;
  rankRows<<<blocksOfWarps(sort.runs), kWarpBlock, 0, call.stream()>>>(sort);
  if (Status s = launched(call); !s)
    return s;
  if (bins > 0) {
    scanRuns<<<blocksOfWarps(bins), kWarpBlock, 0, call.stream()>>>(sort);
    if (Status s = launched(call); !s)
      return s;
  }
  if (sort.slots > 0) {
    scanBins<<<unsigned(sort.slots), 1024, 0, call.stream()>>>(sort);
    if (Status s = launched(call); !s)
      return s;
  }
  int64_t tokens = sort.rows / k, work = tokens + sort.slots * sort.capacity;
  return work == 0 ? Status() : place(call, sort, work, tokens, k, false);
}

} // namespace

Status ops::select(const Call &call) {
  if (selectsFewRows(call))
    return launchSelectFew(call);
  const TensorRef &ids = call.in[placesNumbers(call) ? 0 : 1];
  int64_t k = std::max<int64_t>(trailing(ids, 1), 1);
  Sort sort{};
  sort.rows = ids.elements();
  sort.slots = 1;
  sort.binsPerSlot = int32_t(call.out[1].elements());
  sort.capacity = call.out[0].shape[0];
  sort.rule = {static_cast<const int32_t *>(ids.data),
               int32_t(call.params.integer("experts")),
               int32_t(call.params.integer("expert_offset")),
               sort.binsPerSlot,
               1,
               INT32_MAX};
  return runSort(call, sort, k);
}

Status ops::select_tokens(const Call &call) { return select(call); }

Status ops::pack(const Call &call) {
  const TensorRef &ids = call.in[1];
  int64_t k = std::max<int64_t>(trailing(ids, 1), 1), rows = ids.elements();
  int64_t slots = call.out[0].shape[1], columns = call.out[1].shape[2];
  int64_t segments = call.params.integer("segments"), experts = call.params.integer("experts");
  if (segments < 1 || columns % segments != 0)
    return badCall(call, format("%lld segments do not divide %lld counts", (long long)segments,
                                (long long)columns));
  int64_t tokens = rows / k, tokensPerSegment = tokens / segments;
  if (experts != columns / segments * slots || tokensPerSegment * segments != tokens)
    return badCall(
        call, format("%lld experts and %lld tokens for %lld slots of %lld counts in %lld segments",
                     (long long)experts, (long long)tokens, (long long)slots, (long long)columns,
                     (long long)segments));
  Sort sort{};
  sort.rows = rows;
  sort.slots = int32_t(slots);
  sort.binsPerSlot = int32_t(columns);
  sort.capacity = call.out[0].shape[2];
  sort.rule = {call.input<int32_t>(1),
               int32_t(experts),
               0,
               int32_t(slots * columns),
               int32_t(segments),
               int32_t(std::max<int64_t>(tokensPerSegment * k, 1))};
  return runSort(call, sort, k);
}

} // namespace moira::rt::cuda
