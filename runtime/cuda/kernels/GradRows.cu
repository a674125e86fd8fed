//===- GradRows.cu - gradients of row-wise and element-wise calls -----------===//
// clamp_grad, act_grad, glu_grad, sigmoid_gate_grad. Norms are in GradNorms.cu.
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "GradTools.h"

namespace moira::rt::cuda {
namespace {

__global__ void clampBack(Reader dy, Reader x, Writer dx, int64_t n, float low, float high) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    float v = x[i];
    dx.set(i, v >= low && v <= high ? dy[i] : 0.0f);
  }
}

__global__ void actBack(Reader dy, Reader x, Writer dx, int64_t n, Activation activation) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    float value, slope;
    activate(activation, 1, x[i], value, slope);
    dx.set(i, dy[i] * slope);
  }
}

/// `n` neighbours of a row a thread.
template <int n>
__global__ void gluBack(Reader dy, Reader x, Writer dx, int64_t packs, int64_t packsOfRow,
                        GluForm form) {
  for (int64_t at = threadNumber(); at < packs; at += threadCount()) {
    int64_t row, column;
    divide(at, packsOfRow, row, column);
    const int64_t gateAt = (row * 2 * packsOfRow + column) * n, upAt = gateAt + packsOfRow * n;
    float gate[n], up[n], g[n];
    x.load(gateAt, gate);
    x.load(upAt, up);
    dy.load(at * n, g);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const GluSlopes slopes = slopesOf(form, gate[i], up[i]);
      gate[i] = g[i] * slopes.gate;
      up[i] = g[i] * slopes.up;
    }
    dx.store(gateAt, gate);
    dx.store(upAt, up);
  }
}

__global__ void gateBack(Reader x, Reader dy, Reader gate, Writer dg, int64_t rows, int64_t width) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  float dot = 0;
  for (int64_t i = laneNumber(); i < width; i += 32)
    dot += x[t * width + i] * dy[t * width + i];
  dot = warpSum(dot);
  float s = sigmoidOf(gate[t]);
  if (laneNumber() == 0)
    dg.set(t, dot * s * (1 - s));
}

} // namespace

Status ops::clamp_grad(const Call &call) {
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  clampBack<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n,
      float(call.params.real("min")), float(call.params.real("max")));
  return launched(call);
}

Status ops::act_grad(const Call &call) {
  Expected<Activation> activation = activationOf(call);
  if (!activation)
    return activation.takeStatus();
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  actBack<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n, *activation);
  return launched(call);
}

Status ops::glu_grad(const Call &call) {
  Expected<GluForm> form = gluForm(call);
  if (!form)
    return form.takeStatus();
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  const int64_t width = trailing(call.in[0], 1);
  auto launch = [&]<int neighbours>(std::integral_constant<int, neighbours>) {
    gluBack<neighbours><<<blocksOfThreads(n / neighbours), kWarpBlock, 0, call.stream()>>>(
        Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n / neighbours,
        width / neighbours, *form);
  };
  if (inPacks(width, call.in[0], call.in[1], call.out[0]))
    launch(std::integral_constant<int, kNeighbours>());
  else
    launch(std::integral_constant<int, 1>());
  return launched(call);
}

Status ops::sigmoid_gate_grad(const Call &call) {
  int64_t rows = leading(call.in[0], 1);
  if (rows == 0)
    return {};
  gateBack<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]), Writer(call.out[0]), rows,
      trailing(call.in[0], 1));
  return launched(call);
}

} // namespace moira::rt::cuda
