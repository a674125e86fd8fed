//===- GradRows.cu - gradients of row-wise and element-wise calls -----------===//
// rms_sums, rms_norm_grad, layer_norm_grad, clamp_grad, act_grad, glu_grad, sigmoid_gate_grad. A
// row is a warp's work; the gradient of a weight is summed over the rows by one thread a column,
// from what the rows leave in the workspace.
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

__device__ void rowSums(Reader dy, Reader x, Reader w, int64_t first, int64_t width, float &squares,
                        float &dot) {
  squares = dot = 0;
  for (int64_t i = laneNumber(); i < width; i += 32) {
    float v = x[first + i];
    squares += v * v;
    dot += dy[first + i] * w[i] * v;
  }
  squares = warpSum(squares);
  dot = warpSum(dot);
}

__global__ void rmsSums(Reader dy, Reader x, Reader w, float *ss, float *dot, int64_t rows,
                        int64_t width) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  float squares, product;
  rowSums(dy, x, w, t * width, width, squares, product);
  if (laneNumber() == 0) {
    ss[t] = squares;
    dot[t] = product;
  }
}

/// dx; and the row's r, or mean and r, for the weight's gradient.
__global__ void rmsRows(Reader dy, Reader x, Reader w, const float *ss, const float *dots,
                        Writer dx, float *factors, int64_t rows, int64_t width, float count,
                        float eps) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  float squares, dot;
  if (ss) {
    squares = ss[t];
    dot = dots[t];
  } else {
    rowSums(dy, x, w, t * width, width, squares, dot);
  }
  float r = 1.0f / sqrtf(squares / count + eps), back = r * r * r * dot / count;
  for (int64_t i = laneNumber(); i < width; i += 32)
    dx.set(t * width + i, r * dy[t * width + i] * w[i] - x[t * width + i] * back);
  if (laneNumber() == 0)
    factors[2 * t] = 0, factors[2 * t + 1] = r;
}

__global__ void layerRows(Reader dy, Reader x, Reader w, Writer dx, float *factors, int64_t rows,
                          int64_t width, float eps) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  int64_t first = t * width;
  float n = float(width), mean = 0, variance = 0, grad = 0, product = 0;
  for (int64_t i = laneNumber(); i < width; i += 32)
    mean += x[first + i];
  mean = warpSum(mean) / n;
  for (int64_t i = laneNumber(); i < width; i += 32)
    variance += (x[first + i] - mean) * (x[first + i] - mean);
  float r = 1.0f / sqrtf(warpSum(variance) / n + eps);
  for (int64_t i = laneNumber(); i < width; i += 32) {
    float scaled = dy[first + i] * w[i];
    grad += scaled;
    product += scaled * (x[first + i] - mean) * r;
  }
  grad = warpSum(grad) / n;
  product = warpSum(product) / n;
  for (int64_t i = laneNumber(); i < width; i += 32)
    dx.set(first + i, r * (dy[first + i] * w[i] - grad - (x[first + i] - mean) * r * product));
  if (laneNumber() == 0)
    factors[2 * t] = mean, factors[2 * t + 1] = r;
}

/// dw = Σ dy · (x − mean) · r and db = Σ dy over the rows; db may be null.
__global__ void weightSums(Reader dy, Reader x, const float *factors, float *dw, float *db,
                           int64_t rows, int64_t width) {
  for (int64_t i = threadNumber(); i < width; i += threadCount()) {
    float sum = 0, plain = 0;
    for (int64_t t = 0; t < rows; ++t) {
      float g = dy[t * width + i];
      sum += g * (x[t * width + i] - factors[2 * t]) * factors[2 * t + 1];
      plain += g;
    }
    dw[i] = sum;
    if (db)
      db[i] = plain;
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

__global__ void gluBack(Reader dy, Reader x, Writer dx, int64_t n, int64_t width, Act act,
                        float limit, float alpha, float shift) {
  for (int64_t at = threadNumber(); at < n; at += threadCount()) {
    int64_t gateAt = at / width * 2 * width + at % width, upAt = gateAt + width;
    float gate = x[gateAt], up = x[upAt], g = dy[at], value, slope;
    bool gateMoves = gate <= limit, upMoves = up >= -limit && up <= limit;
    activate(act, alpha, fminf(gate, limit), value, slope);
    up = fmaxf(fminf(up, limit), -limit);
    dx.set(gateAt, gateMoves ? g * slope * (up + shift) : 0.0f);
    dx.set(upAt, upMoves ? g * value : 0.0f);
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

/// The weight's part of a norm's gradient.
Status sumWeights(const Call &call, const float *factors, float *db, int64_t rows, int64_t width) {
  weightSums<<<blocksOfThreads(width), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), factors, call.output<float>(1), db, rows, width);
  return launched(call);
}

} // namespace

Status ops::rms_sums(const Call &call) {
  int64_t width = call.in[2].elements(), rows = call.out[0].elements();
  if (rows == 0)
    return {};
  rmsSums<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]), call.output<float>(0),
      call.output<float>(1), rows, width);
  return launched(call);
}

Status ops::rms_norm_grad(const Call &call) {
  int64_t width = call.in[2].elements(), rows = width ? call.in[0].elements() / width : 0;
  float *factors = Scratch(call.context).take<float>(2 * rows);
  if (!factors)
    return noScratch(call);
  bool given = call.in.size() > 3;
  if (rows > 0)
    rmsRows<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
        Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]),
        given ? call.input<float>(3) : nullptr, given ? call.input<float>(4) : nullptr,
        Writer(call.out[0]), factors, rows, width, float(call.params.integer("count")),
        float(call.params.real("eps")));
  if (Status s = launched(call); !s)
    return s;
  return sumWeights(call, factors, nullptr, rows, width);
}

Status ops::layer_norm_grad(const Call &call) {
  int64_t width = call.in[2].elements(), rows = width ? call.in[0].elements() / width : 0;
  float *factors = Scratch(call.context).take<float>(2 * rows);
  if (!factors)
    return noScratch(call);
  if (rows > 0)
    layerRows<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
        Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]), Writer(call.out[0]), factors,
        rows, width, float(call.params.real("eps")));
  if (Status s = launched(call); !s)
    return s;
  return sumWeights(call, factors, call.output<float>(2), rows, width);
}

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
  gluBack<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n, trailing(call.in[0], 1), act,
      float(call.params.real("limit", INFINITY)), float(call.params.real("alpha", 1)),
      float(call.params.real("up_shift", 0)));
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
