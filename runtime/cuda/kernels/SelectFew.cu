//===- SelectFew.cu - select for few rows, in one launch --------------------===//
// A warp a row counts, over all rows, those that come before it: few enough that this takes less
// than the launches of Dispatch.cu's sort would. The order of rows is the same.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

/// Above this, sorting is faster: counting looks at every pair of rows.
constexpr int64_t kFewRows = 2048;

struct Selection {
  const int32_t *ids; // per row
  int32_t rows, k, experts, first, bins, capacity;
  int32_t *groups, *pos;
  const int32_t *needIn;
  int32_t *needOut;
  int32_t *flag;
};

/// -1: dropped, another rank's, or an expert that does not exist.
__device__ int32_t binOf(const Selection &s, int32_t id) {
  const int64_t bin = int64_t(id) - s.first;
  return id >= 0 && id < s.experts && bin >= 0 && bin < s.bins ? int32_t(bin) : -1;
}

/// Over all rows: how many have a bin below `bin`, and how many have it and stand before `row`. On
/// every lane.
struct Counts {
  int32_t below, same;
};
__device__ Counts countRows(const Selection &s, int32_t bin, int32_t row) {
  int32_t below = 0, same = 0;
#pragma unroll 8
  for (int32_t i = laneNumber(); i < s.rows; i += 32) {
    const int32_t other = binOf(s, s.ids[i]);
    below += int32_t(other >= 0 && other < bin);
    same += int32_t(other == bin && i < row);
  }
  return {__reduce_add_sync(kAllLanes, below), __reduce_add_sync(kAllLanes, same)};
}

/// Warps are rows, then groups, then one for the need, then places of the output, which are zero
/// behind the last row. With `weights`, units are numbers and rows are multiplied by them; without
/// x a row is its token's number.
template <typename V, bool weighed>
__global__ void selectRows(Selection s, const V *x, const float *weights, V *out, int64_t units) {
  awaitPrevious();
  const int64_t work = warpNumber();
  const bool leader = laneNumber() == 0;
  if (work < s.rows) {
    const int32_t row = int32_t(work), id = s.ids[row], bin = binOf(s, id);
    if (leader && (id < -1 || id >= s.experts))
      raise(s.flag, Fault::expert);
    const Counts counts = countRows(s, bin, row);
    const int32_t place = counts.below + counts.same;
    const bool placed = bin >= 0 && place < s.capacity;
    if (leader)
      s.pos[row] = placed ? place : -1;
    if (!placed)
      return;
    V *to = out + int64_t(place) * units;
    if constexpr (std::is_same_v<V, int32_t>) {
      if (leader)
        *to = row / s.k;
      return;
    }
    const V *from = x + int64_t(row / s.k) * units;
    if constexpr (weighed) {
      const float weight = weights[row];
      for (int64_t at = laneNumber(); at < units; at += 32)
        to[at] = fromFloat<V>(toFloat(from[at]) * weight);
    } else {
      warpMove(to, from, units);
    }
  } else if (work < s.rows + s.bins) {
    const int32_t bin = int32_t(work - s.rows);
    const Counts counts = countRows(s, bin, s.rows);
    if (leader)
      s.groups[bin] = min(counts.same, max(0, s.capacity - counts.below));
  } else {
    const int32_t all = countRows(s, s.bins, 0).below;
    const int64_t place = work - s.rows - s.bins - 1;
    if (place < 0 && leader)
      *s.needOut = max(*s.needIn, all);
    if (place >= all && place < s.capacity)
      warpMove<V>(out + place * units, nullptr, units);
  }
}

} // namespace

bool selectsFewRows(const Call &call) {
  const bool numbers = call.out[0].dtype == fb::DType::i32;
  return call.in[numbers ? 0 : 1].elements() <= kFewRows && call.out[0].shape[0] <= kFewRows;
}

Status launchSelectFew(const Call &call) {
  const bool numbers = call.out[0].dtype == fb::DType::i32; // of tokens, not their rows
  const TensorRef &x = call.in[0], &ids = call.in[numbers ? 0 : 1], &out = call.out[0];
  if (!numbers && x.dtype != out.dtype)
    return badCall(call, "the rows are of another type than the tokens");
  const Selection s{static_cast<const int32_t *>(ids.data),
                    int32_t(ids.elements()),
                    int32_t(std::max<int64_t>(trailing(ids, 1), 1)),
                    int32_t(call.params.integer("experts")),
                    int32_t(call.params.integer("expert_offset")),
                    int32_t(call.out[1].elements()),
                    int32_t(out.shape[0]),
                    call.output<int32_t>(1),
                    call.output<int32_t>(2),
                    call.input<int32_t>(numbers ? 1 : 2),
                    call.output<int32_t>(3),
                    call.context.errorFlag};
  const int64_t warps = int64_t(s.rows) + s.bins + 1 + s.capacity;
  if (numbers)
    return launchEarly(call, selectRows<int32_t, false>, blocksOfWarps(warps), kWarpBlock, 0, s,
                       nullptr, nullptr, call.output<int32_t>(0), 1);
  if (call.in.size() > 3)
    return withFloat(x.dtype, [&]<typename T>(T) {
      return launchEarly(call, selectRows<T, true>, blocksOfWarps(warps), kWarpBlock, 0, s,
                         call.input<T>(0), call.input<float>(3), call.output<T>(0), trailing(x, 1));
    });
  const size_t rowBytes = size_t(trailing(x, 1)) * elementBytes(x.dtype);
  return withUnit(commonUnit(rowBytes, addressOf(x.data), addressOf(out.data)), [&]<typename V>(V) {
    return launchEarly(call, selectRows<V, false>, blocksOfWarps(warps), kWarpBlock, 0, s,
                       call.input<V>(0), nullptr, call.output<V>(0), int64_t(rowBytes / sizeof(V)));
  });
}

} // namespace moira::rt::cuda
