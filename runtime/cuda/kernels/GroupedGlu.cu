//===- GroupedGlu.cu - the calls grouped_glu and grouped_glu_grad -----------===//
// Their operands, the choice of a kernel, and ones for what the fast ones do not take: a block a
// row, a warp or a thread a result. What a choice of a token has, a weight and its gradient, a
// row's kernel reads and writes by rows.
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
    if (laneNumber() == 0) {
      out[column] = fromFloat<T>(tile.group < 0 ? 0.0f : gluOf(p.form, gate, up));
      if (p.kept) {
        T *kept = static_cast<T *>(p.kept) + row * 2 * p.n;
        kept[column] = fromFloat<T>(gate);
        kept[p.n + column] = fromFloat<T>(up);
      }
    }
  }
}

template <typename T> __global__ void gluGradRows(GluGradient p, int32_t *flag) {
  __shared__ float parts[kWarpBlock / 32];
  const int64_t row = blockIdx.x;
  const RowTile tile = rowTile(p.groups, p.groupCount, p.m, row, 1, flag);
  const T *dy = static_cast<const T *>(p.dy) + row * p.k,
          *z = static_cast<const T *>(p.z) + row * 2 * p.n;
  T *dz = static_cast<T *>(p.dz) + row * 2 * p.n, *act = static_cast<T *>(p.act) + row * p.n;
  const float weight = tile.group < 0 ? 0.0f : p.rowWeights[row];
  float dot = 0;
  for (int64_t column = threadIdx.x; column < p.n; column += blockDim.x) {
    if (tile.group < 0) {
      dz[column] = dz[p.n + column] = act[column] = fromFloat<T>(0.0f);
      continue;
    }
    const T *w = static_cast<const T *>(p.w) + tile.group * p.k * p.n + column;
    float dh = 0;
    for (int64_t i = 0; i < p.k; ++i)
      dh += toFloat(dy[i]) * toFloat(w[i * p.n]);
    const GluSlopes slopes = slopesOf(p.form, toFloat(z[column]), toFloat(z[p.n + column]));
    dot += dh * slopes.value;
    act[column] = fromFloat<T>(weight * slopes.value);
    dz[column] = fromFloat<T>(weight * dh * slopes.gate);
    dz[p.n + column] = fromFloat<T>(weight * dh * slopes.up);
  }
  dot = warpSum(dot);
  if (laneNumber() == 0)
    parts[threadIdx.x / 32] = dot;
  __syncthreads();
  dot = warpSum(laneNumber() < int(blockDim.x / 32) ? parts[laneNumber()] : 0.0f);
  if (threadIdx.x == 0 && tile.group >= 0)
    p.rowDots[row] = dot;
}

/// Numbers of choices to those of their rows.
__global__ void placeByRow(const int32_t *pos, const float *weights, float *rowWeights,
                           int64_t choices, int64_t rows, int32_t *flag) {
  for (int64_t i = threadNumber(); i < choices; i += threadCount()) {
    const int32_t row = pos[i];
    if (row < -1 || row >= rows)
      raise(flag, Fault::row);
    else if (row >= 0)
      rowWeights[row] = weights[i];
  }
}

/// The parts of rows' dots added up, by choices; one without a row has none.
__global__ void sumByChoice(const int32_t *pos, const float *rowDots, float *dots, int64_t choices,
                            int64_t rows, int64_t parts) {
  for (int64_t i = threadNumber(); i < choices; i += threadCount()) {
    const int32_t row = pos[i];
    float sum = 0;
    if (row >= 0 && row < rows)
      for (int64_t part = 0; part < parts; ++part)
        sum += rowDots[part * rows + row];
    dots[i] = sum;
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
  const bool keeps = call.out.size() > 1;
  if (x.dtype != call.in[2].dtype || x.dtype != out.dtype ||
      (keeps && x.dtype != call.out[1].dtype))
    return badCall(call, "x, w and the results are of different types");
  const int64_t contract = call.params.integer("contract");
  const GroupedGlu product{x.data,
                           call.in[2].data,
                           out.data,
                           keeps ? call.out[1].data : nullptr,
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

Status ops::grouped_glu_grad(const Call &call) {
  Expected<GluForm> form = gluForm(call);
  if (!form)
    return form.takeStatus();
  const TensorRef &dy = call.in[0], &w = call.in[2], &z = call.in[3], &pos = call.in[4];
  for (const TensorRef *other : {&w, &z, &call.out[0], &call.out[1]})
    if (other->dtype != dy.dtype)
      return badCall(call, "dy, w, z and the results are of different types");
  GluGradient gradient{dy.data,
                       w.data,
                       z.data,
                       call.out[0].data,
                       call.out[1].data,
                       nullptr,
                       nullptr,
                       dy.dtype,
                       call.input<int32_t>(1),
                       call.in[1].elements(),
                       z.shape[0],
                       trailing(z, 1),
                       trailing(dy, 1),
                       *form};
  const int64_t choices = pos.elements(), rows = gradient.m;
  const bool fast = rows > 0 && gradient.n > 0 && fitsWgmma(gradient) && isHopper();
  const int64_t parts = fast ? gluGradientTiles(gradient) : 1;
  Scratch scratch(call.context);
  float *rowWeights = scratch.take<float>(rows), *rowDots = scratch.take<float>(parts * rows);
  if (!rowWeights || !rowDots)
    return noScratch(call);
  gradient.rowWeights = rowWeights;
  gradient.rowDots = rowDots;
  if (rows > INT32_MAX)
    return notOnCuda(call, format("%lld rows", (long long)rows));
  if (choices > 0)
    placeByRow<<<blocksOfThreads(choices), kWarpBlock, 0, call.stream()>>>(
        call.input<int32_t>(4), call.input<float>(5), rowWeights, choices, rows,
        call.context.errorFlag);
  if (Status s = launched(call); !s)
    return s;
  if (fast) {
    if (Status s = launchGluGradient(call, gradient); !s)
      return s;
  } else if (rows > 0) {
    Status s = withFloat(dy.dtype, [&]<typename T>(T) {
      gluGradRows<T>
          <<<unsigned(rows), kWarpBlock, 0, call.stream()>>>(gradient, call.context.errorFlag);
      return launched(call);
    });
    if (!s)
      return s;
  }
  if (choices > 0)
    sumByChoice<<<blocksOfThreads(choices), kWarpBlock, 0, call.stream()>>>(
        call.input<int32_t>(4), rowDots, call.output<float>(2), choices, rows, parts);
  return launched(call);
}

} // namespace moira::rt::cuda
