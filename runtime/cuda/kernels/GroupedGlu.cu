//===- GroupedGlu.cu - the call grouped_glu ---------------------------------===//
// Its operands, the choice of a kernel, and one for what the fast ones do not take: a block a row,
// a warp a result.
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "GroupTiles.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

template <typename T> __global__ void gluRows(GroupedGlu p, int32_t *flag) {
  const int64_t row = blockIdx.x;
  const RowTile tile = rowTile(p.groups, p.groupCount, p.m, row, 1, flag);
  int64_t from = row;
  if (p.tokens && tile.group >= 0) {
    from = p.tokens[row];
    if (from < 0 || from >= p.xRows) {
      raise(flag, Fault::row);
      return;
    }
  }
  const T *x = static_cast<const T *>(p.x) + from * p.k;
  T *out = static_cast<T *>(p.out) + row * p.n;
  const int64_t warps = blockDim.x / 32;
  for (int64_t column = threadIdx.x / 32; column < p.n; column += warps) {
    float gate = 0, up = 0;
    if (tile.group >= 0) {
      const T *w = static_cast<const T *>(p.w) + (tile.group * 2 * p.n + column) * p.k;
      for (int64_t i = laneNumber(); i < p.k; i += 32) {
        const float value = toFloat(x[i]);
        gate += value * toFloat(w[i]);
        up += value * toFloat(w[p.n * p.k + i]);
      }
      gate = warpSum(gate);
      up = warpSum(up);
    }
    if (laneNumber() == 0)
      out[column] = fromFloat<T>(tile.group < 0 ? 0.0f : gluOf(p.form, gate, up));
  }
}

} // namespace

Status ops::grouped_glu(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[0], &call.in[2]}); !s)
    return s;
  Expected<GluForm> form = gluForm(call);
  if (!form)
    return form.takeStatus();
  const TensorRef &x = call.in[0], &out = call.out[0];
  if (x.dtype != call.in[2].dtype || x.dtype != out.dtype)
    return badCall(call, "x, w and out are of different types");
  const int64_t contract = call.params.integer("contract");
  const GroupedGlu product{x.data,
                           call.in[2].data,
                           out.data,
                           x.dtype,
                           call.input<int32_t>(1),
                           call.in.size() > 3 ? call.input<int32_t>(3) : nullptr,
                           call.in[1].elements(),
                           out.shape[0],
                           trailing(out, int64_t(out.shape.size()) - 1),
                           trailing(x, contract),
                           leading(x, contract),
                           *form,
                           call.areSettled(1, 3)};
  if (product.m == 0 || product.n == 0)
    return {};
  if (fitsStreamed(product) && isHopper())
    return launchGluStreamed(call, product);
  if (hasFewRows(product))
    return launchGluFewRows(call, product);
  if (fitsWgmma(product) && isHopper())
    return launchGroupedGlu(call, product);
  if (product.m > INT32_MAX)
    return notOnCuda(call, format("%lld rows", (long long)product.m));
  return withFloat(x.dtype, [&]<typename T>(T) {
    gluRows<T>
        <<<unsigned(product.m), kWarpBlock, 0, call.stream()>>>(product, call.context.errorFlag);
    return launched(call);
  });
}

} // namespace moira::rt::cuda
