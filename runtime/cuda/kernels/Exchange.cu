//===- Exchange.cu - slots of all ranks to expert rows and back -------------===//
// regroup and ungroup. Both are one walk over the runs of rows that are contiguous in the slots [P,
// B] (each rank's in (expert, segment) order) and in (expert, segment, rank) order: planRuns finds
// where the runs start on both sides, and then every row written looks for the run it belongs to.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

namespace moira::rt::cuda {
namespace {

/// counts [ranks, columns], columns = (local expert, segment).
struct Runs {
  const int32_t *counts;
  int32_t ranks, columns;
  int64_t capacity, room; // rows of a slot, rows of the grouped side
  int32_t *groupedStart;  // [columns, ranks]
  int32_t *slotStart;     // [ranks, columns], within the slot
  int32_t *slotTotal;     // [ranks]
  int32_t *groupedTotal;  // one
  int32_t *flag;
};

/// One block. Counts that are negative or do not fit raise the flag and make every total zero. With
/// `groups`: the rows of each of `local` experts.
__global__ void planRuns(Runs runs, int32_t *groups, int32_t local) {
  __shared__ int64_t partial[33];
  __shared__ int bad;
  if (threadIdx.x == 0)
    bad = 0;
  __syncthreads();
  int64_t n = int64_t(runs.ranks) * runs.columns, grouped = 0;
  for (int64_t base = 0; base < n; base += blockDim.x) {
    int64_t i = base + threadIdx.x, total;
    int64_t count =
        i < n ? runs.counts[i % runs.ranks * runs.columns + i / runs.ranks] : int64_t(0);
    if (count < 0)
      bad = 1;
    int64_t start = grouped + blockScan(count, partial, total);
    if (i < n)
      runs.groupedStart[i] = int32_t(start);
    grouped += total;
  }
  for (int p = int(threadIdx.x / 32); p < runs.ranks; p += int(blockDim.x / 32)) {
    int64_t before = 0;
    for (int32_t base = 0; base < runs.columns; base += 32) {
      int32_t column = base + laneNumber();
      int64_t at = int64_t(p) * runs.columns + column;
      int64_t count = column < runs.columns ? runs.counts[at] : int64_t(0);
      int64_t upTo = warpScan(count);
      if (column < runs.columns)
        runs.slotStart[at] = int32_t(before + upTo - count);
      before += __shfl_sync(kAllLanes, upTo, 31);
    }
    if (laneNumber() == 0) {
      runs.slotTotal[p] = int32_t(before);
      if (before > runs.capacity)
        bad = 1;
    }
  }
  if (threadIdx.x == 0 && grouped > runs.room)
    bad = 1;
  __syncthreads();
  if (bad)
    for (int p = int(threadIdx.x); p < runs.ranks; p += int(blockDim.x))
      runs.slotTotal[p] = 0;
  if (threadIdx.x == 0) {
    *runs.groupedTotal = bad ? 0 : int32_t(grouped);
    if (bad)
      raise(runs.flag, Fault::counts);
  }
  if (!groups)
    return;
  int64_t perExpert = local > 0 ? n / local : 0;
  for (int32_t e = int32_t(threadIdx.x); e < local; e += int32_t(blockDim.x)) {
    int64_t size = 0;
    for (int64_t i = e * perExpert; i < (e + 1) * perExpert && !bad; ++i)
      size += runs.counts[i % runs.ranks * runs.columns + i / runs.ranks];
    groups[e] = int32_t(size);
  }
}

/// One warp a grouped row.
template <typename V>
__global__ void moveToRows(Runs runs, const V *slots, V *rows, int64_t units) {
  int64_t row = warpNumber();
  if (row >= runs.room)
    return;
  const V *from = nullptr;
  if (row < *runs.groupedTotal) {
    int64_t run = lastAtMost(runs.groupedStart, int64_t(runs.ranks) * runs.columns, row);
    int64_t p = run % runs.ranks, column = run / runs.ranks;
    from = slots + (p * runs.capacity + runs.slotStart[p * runs.columns + column] + row -
                    runs.groupedStart[run]) *
                       units;
  }
  warpMove(rows + row * units, from, units);
}

/// One warp a slot row.
template <typename V>
__global__ void moveToSlots(Runs runs, const V *rows, V *slots, int64_t units) {
  int64_t target = warpNumber();
  if (target >= runs.ranks * runs.capacity)
    return;
  int64_t p = target / runs.capacity, place = target % runs.capacity;
  const V *from = nullptr;
  if (place < runs.slotTotal[p]) {
    const int32_t *starts = runs.slotStart + p * runs.columns;
    int64_t column = lastAtMost(starts, runs.columns, place);
    from = rows + (runs.groupedStart[column * runs.ranks + p] + place - starts[column]) * units;
  }
  warpMove(slots + target * units, from, units);
}

/// Checks the parameters, takes scratch, runs planRuns.
Status planned(const Call &call, Runs &runs, int32_t *groups, int64_t local) {
  const TensorRef &counts = call.in[1];
  int64_t columns = counts.shape[2], segments = call.params.integer("segments");
  if (segments < 1 || columns % segments != 0)
    return badCall(call, format("%lld segments do not divide %lld counts", (long long)segments,
                                (long long)columns));
  if (groups && local * segments != columns)
    return badCall(call, format("%lld groups for %lld counts in %lld segments", (long long)local,
                                (long long)columns, (long long)segments));
  if (call.in[0].dtype != call.out[0].dtype)
    return badCall(call, "rows and slots are of different types");
  runs.counts = call.input<int32_t>(1);
  runs.ranks = int32_t(counts.shape[0]);
  runs.columns = int32_t(columns);
  runs.flag = call.context.errorFlag;
  Scratch scratch(call.context);
  runs.groupedStart = scratch.take<int32_t>(runs.ranks * columns);
  runs.slotStart = scratch.take<int32_t>(runs.ranks * columns);
  runs.slotTotal = scratch.take<int32_t>(runs.ranks);
  runs.groupedTotal = scratch.take<int32_t>(1);
  if (!runs.groupedStart || !runs.slotStart || !runs.slotTotal || !runs.groupedTotal)
    return noScratch(call);
  planRuns<<<1, 1024, 0, call.stream()>>>(runs, groups, int32_t(local));
  return launched(call);
}

/// Calls launch(V(), units a row) for the widest unit that fits rows of `width` elements.
template <typename Launch> Status moveRows(const Call &call, int64_t width, Launch launch) {
  const TensorRef &in = call.in[0], &out = call.out[0];
  size_t rowBytes = size_t(width) * elementBytes(in.dtype);
  return withUnit(commonUnit(rowBytes, addressOf(in.data), addressOf(out.data)),
                  [&]<typename V>(V unit) {
                    launch(unit, int64_t(rowBytes / sizeof(V)));
                    return launched(call);
                  });
}

} // namespace

Status ops::regroup(const Call &call) {
  Runs runs{};
  runs.capacity = call.in[0].shape[2];
  runs.room = call.out[0].shape[0];
  if (Status s = planned(call, runs, call.output<int32_t>(1), call.out[1].elements()); !s)
    return s;
  if (runs.room == 0)
    return {};
  return moveRows(call, call.in[0].shape[3], [&]<typename V>(V, int64_t units) {
    moveToRows<<<blocksOfWarps(runs.room), kWarpBlock, 0, call.stream()>>>(
        runs, call.input<V>(0), call.output<V>(0), units);
  });
}

Status ops::ungroup(const Call &call) {
  Runs runs{};
  runs.capacity = call.out[0].shape[2];
  runs.room = call.in[0].shape[0];
  if (Status s = planned(call, runs, nullptr, 0); !s)
    return s;
  if (runs.ranks * runs.capacity == 0)
    return {};
  return moveRows(call, call.out[0].shape[3], [&]<typename V>(V, int64_t units) {
    moveToSlots<<<blocksOfWarps(runs.ranks * runs.capacity), kWarpBlock, 0, call.stream()>>>(
        runs, call.input<V>(0), call.output<V>(0), units);
  });
}

} // namespace moira::rt::cuda
