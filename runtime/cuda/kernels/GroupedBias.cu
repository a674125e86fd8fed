//===- GroupedBias.cu - an expert's bias on its rows -----------------------===//
// grouped_bias: one launch for all groups, in f32 between a load and a store.
//===----------------------------------------------------------------------===//
#include "GroupTiles.h"

namespace moira::rt::cuda {
namespace {

constexpr int32_t kHeight = 8; // rows of one block

/// One block a tile of rows. A null bias, and rows past all groups: copied.
template <typename T>
__global__ void addBias(const T *rows, const int32_t *groups, const T *bias, T *out,
                        int64_t groupCount, int64_t m, int64_t width, int32_t *flag) {
  RowTile tile = rowTile(groups, groupCount, m, blockIdx.x, kHeight, flag);
  const T *own = bias && tile.group >= 0 ? bias + tile.group * width : nullptr;
  for (int32_t r = 0; r < tile.count; ++r) {
    int64_t first = (tile.row + r) * width;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
      float v = toFloat(rows[first + i]);
      out[first + i] = fromFloat<T>(own ? v + toFloat(own[i]) : v);
    }
  }
}

} // namespace

Status ops::grouped_bias(const Call &call) {
  int64_t m = call.in[0].shape[0], n = call.in[1].elements();
  if (call.in[2].dtype != call.in[0].dtype || call.out[0].dtype != call.in[0].dtype)
    return notOnCuda(call, "rows and a bias of different types");
  if (m == 0 || call.in[0].elements() == 0)
    return {};
  return withFloat(call.in[0].dtype, [&]<typename T>(T) {
    addBias<T><<<unsigned(mostRowTiles(m, n, kHeight)), kWarpBlock, 0, call.stream()>>>(
        call.input<T>(0), call.input<int32_t>(1),
        call.params.integer("part") == 0 ? call.input<T>(2) : nullptr, call.output<T>(0), n, m,
        call.in[0].elements() / m, call.context.errorFlag);
    return launched(call);
  });
}

} // namespace moira::rt::cuda
