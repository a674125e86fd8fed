//===- GradRows.cu - gradients of row-wise and element-wise calls -----------===//
// clamp_grad, act_grad, glu_grad, sigmoid_gate_grad. Norms are in GradNorms.cu.
//===----------------------------------------------------------------------===//
#include "GradTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

enum class Act : int32_t { silu, gelu, geluTanh, relu };

bool actNamed(std::string_view name, Act &act) {
  act = name == "gelu"        ? Act::gelu
        : name == "gelu_tanh" ? Act::geluTanh
        : name == "relu"      ? Act::relu
                              : Act::silu;
  return act != Act::silu || name == "silu";
}

Status unknownActivation(const Call &call) {
  return badCall(call, "unknown activation '" + std::string(call.params.text("activation")) + "'");
}

/// An activation and its derivative at x.
__device__ void activate(Act act, float alpha, float x, float &value, float &slope) {
  switch (act) {
  case Act::silu: {
    float s = sigmoidOf(alpha * x);
    value = x * s;
    slope = s + alpha * x * s * (1 - s);
    return;
  }
  case Act::gelu: {
    float cumulative = 0.5f * erfcf(-x * 0.70710678f);
    value = x * cumulative;
    slope = cumulative + x * expf(-0.5f * x * x) * 0.39894228f;
    return;
  }
  case Act::geluTanh: {
    float t = tanhf(0.79788456f * (x + 0.044715f * x * x * x));
    value = 0.5f * x * (1 + t);
    slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456f * (1 + 3 * 0.044715f * x * x);
    return;
  }
  case Act::relu:
    value = fmaxf(x, 0.0f);
    slope = x > 0 ? 1.0f : 0.0f;
  }
}

__global__ void clampBack(Reader dy, Reader x, Writer dx, int64_t n, float low, float high) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    float v = x[i];
    dx.set(i, v >= low && v <= high ? dy[i] : 0.0f);
  }
}

__global__ void actBack(Reader dy, Reader x, Writer dx, int64_t n, Act act) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    float value, slope;
    activate(act, 1, x[i], value, slope);
    dx.set(i, dy[i] * slope);
  }
}

/// A gated pair's gradients.
struct GluBack {
  Act act;
  float limit, alpha, shift;
  __device__ void operator()(float gate, float up, float dy, float &dGate, float &dUp) const {
    float value, slope;
    const bool gateMoves = gate <= limit, upMoves = up >= -limit && up <= limit;
    activate(act, alpha, fminf(gate, limit), value, slope);
    up = fmaxf(fminf(up, limit), -limit);
    dGate = gateMoves ? dy * slope * (up + shift) : 0.0f;
    dUp = upMoves ? dy * value : 0.0f;
  }
};

/// `n` neighbours of a row a thread.
template <int n>
__global__ void gluBack(Reader dy, Reader x, Writer dx, int64_t packs, int64_t packsOfRow,
                        GluBack back) {
  for (int64_t at = threadNumber(); at < packs; at += threadCount()) {
    int64_t row, column;
    divide(at, packsOfRow, row, column);
    const int64_t gateAt = (row * 2 * packsOfRow + column) * n, upAt = gateAt + packsOfRow * n;
    float gate[n], up[n], g[n];
    x.load(gateAt, gate);
    x.load(upAt, up);
    dy.load(at * n, g);
#pragma unroll
    for (int i = 0; i < n; ++i)
      back(gate[i], up[i], g[i], gate[i], up[i]);
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
  Act act;
  if (!actNamed(call.params.text("activation"), act))
    return unknownActivation(call);
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  actBack<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n, act);
  return launched(call);
}

Status ops::glu_grad(const Call &call) {
  Act act;
  if (!actNamed(call.params.text("activation"), act))
    return unknownActivation(call);
  int64_t n = call.in[0].elements();
  if (n == 0)
    return {};
  const GluBack back{act, float(call.params.real("limit", INFINITY)),
                     float(call.params.real("alpha", 1)), float(call.params.real("up_shift", 0))};
  const int64_t width = trailing(call.in[0], 1);
  auto launch = [&]<int neighbours>(std::integral_constant<int, neighbours>) {
    gluBack<neighbours><<<blocksOfThreads(n / neighbours), kWarpBlock, 0, call.stream()>>>(
        Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n / neighbours,
        width / neighbours, back);
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
