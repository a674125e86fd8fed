//===- GradRows.cpp - gradients of row-wise and element-wise calls --------===//
// rms_sums, rms_norm_grad, layer_norm_grad, clamp_grad, act_grad, glu_grad, sigmoid_gate_grad.
//===----------------------------------------------------------------------===//
#include "SampleTree.h"
#include "Widened.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace moira::rt::host::ref {

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// An activation and its derivative at x.
struct ValueAndSlope {
  double value, slope;
};
using Activation = ValueAndSlope (*)(double);

ValueAndSlope silu(double x, double alpha) {
  double s = sigmoid(alpha * x);
  return {x * s, s + alpha * x * s * (1 - s)};
}

/// Null for a name that is none.
Activation activationNamed(std::string_view name) {
  if (name == "silu")
    return [](double x) { return silu(x, 1); };
  if (name == "gelu")
    return [](double x) -> ValueAndSlope {
      double cumulative = 0.5 * std::erfc(-x * std::sqrt(0.5));
      double density = std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0));
      return {x * cumulative, cumulative + x * density};
    };
  if (name == "gelu_tanh")
    return [](double x) -> ValueAndSlope {
      double factor = std::sqrt(2 / std::acos(-1.0));
      double t = std::tanh(factor * (x + 0.044715 * x * x * x));
      double inner = factor * (1 + 3 * 0.044715 * x * x);
      return {0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner};
    };
  if (name == "relu")
    return [](double x) -> ValueAndSlope { return {std::max(x, 0.0), x > 0 ? 1.0 : 0.0}; };
  return nullptr;
}

Status unknownActivation(const Call &call) {
  return badCall(call, "unknown activation '" + std::string(call.params.text("activation")) + "'");
}

/// Σ x² and Σ dy·w·x of one row.
template <typename A>
void rowSums(const A *dy, const A *x, const A *w, int64_t width, double &squares, double &dot) {
  squares = dot = 0;
  for (int64_t i = 0; i < width; ++i) {
    squares += double(x[i]) * double(x[i]);
    dot += double(dy[i]) * double(w[i]) * double(x[i]);
  }
}

template <typename A> void store(const std::vector<double> &sums, A *out) {
  std::transform(sums.begin(), sums.end(), out, [](double v) { return A(v); });
}

} // namespace

template <typename S> Status rms_sums(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]), x(call.in[1]), w(call.in[2]);
  int64_t width = call.in[2].elements(), rows = call.out[0].elements();
  for (int64_t t = 0; t < rows; ++t) {
    double squares, dot;
    rowSums(dy.data() + t * width, x.data() + t * width, w.data(), width, squares, dot);
    call.output<A>(0)[t] = A(squares);
    call.output<A>(1)[t] = A(dot);
  }
  return {};
}

template <typename S> Status rms_norm_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]), x(call.in[1]), w(call.in[2]);
  Rounded<A> dx(call.out[0]);
  int64_t width = call.in[2].elements(), rows = call.in[0].elements() / width;
  double count = double(call.params.integer("count")), eps = call.params.real("eps");
  int64_t samples = samplesOf(call, call.in[0]), each = rows / samples;
  std::vector<double> dw(static_cast<size_t>(width));
  return sumSamples(samples, call.output<A>(1), width, [&](int64_t s, A *into) {
    std::fill(dw.begin(), dw.end(), 0.0);
    for (int64_t t = s * each; t < (s + 1) * each; ++t) {
      const A *g = dy.data() + t * width, *row = x.data() + t * width;
      double squares, dot;
      if (call.in.size() > 3) {
        squares = double(call.input<A>(3)[t]);
        dot = double(call.input<A>(4)[t]);
      } else {
        rowSums(g, row, w.data(), width, squares, dot);
      }
      double r = 1 / std::sqrt(squares / count + eps), back = r * r * r * dot / count;
      for (int64_t i = 0; i < width; ++i) {
        dx[t * width + i] = A(r * double(g[i]) * double(w[i]) - double(row[i]) * back);
        dw[size_t(i)] += double(g[i]) * double(row[i]) * r;
      }
    }
    store(dw, into);
    return Status();
  });
}

template <typename S> Status layer_norm_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]), x(call.in[1]), w(call.in[2]);
  Rounded<A> dx(call.out[0]);
  int64_t width = call.in[2].elements(), rows = call.in[0].elements() / width;
  double eps = call.params.real("eps"), n = double(width);
  int64_t samples = samplesOf(call, call.in[0]), each = rows / samples;
  std::vector<double> sums(size_t(2 * width)); // dw and db
  std::vector<A> total(sums.size());
  Status status = sumSamples(samples, total.data(), 2 * width, [&](int64_t s, A *into) {
    std::fill(sums.begin(), sums.end(), 0.0);
    double *dw = sums.data(), *db = dw + width;
    for (int64_t t = s * each; t < (s + 1) * each; ++t) {
      const A *g = dy.data() + t * width, *row = x.data() + t * width;
      double mean = 0, variance = 0, meanGrad = 0, meanProduct = 0;
      for (int64_t i = 0; i < width; ++i)
        mean += double(row[i]) / n;
      for (int64_t i = 0; i < width; ++i)
        variance += (double(row[i]) - mean) * (double(row[i]) - mean) / n;
      double r = 1 / std::sqrt(variance + eps);
      for (int64_t i = 0; i < width; ++i) {
        double scaled = double(g[i]) * double(w[i]), normal = (double(row[i]) - mean) * r;
        meanGrad += scaled / n;
        meanProduct += scaled * normal / n;
        dw[i] += double(g[i]) * normal;
        db[i] += double(g[i]);
      }
      for (int64_t i = 0; i < width; ++i)
        dx[t * width + i] = A(r * (double(g[i]) * double(w[i]) - meanGrad -
                                   (double(row[i]) - mean) * r * meanProduct));
    }
    store(sums, into);
    return Status();
  });
  std::copy_n(total.data(), width, call.output<A>(1));
  std::copy_n(total.data() + width, width, call.output<A>(2));
  return status;
}

template <typename S> Status clamp_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]), x(call.in[1]);
  Rounded<A> dx(call.out[0]);
  A low = A(call.params.real("min")), high = A(call.params.real("max"));
  for (int64_t i = 0, n = call.in[0].elements(); i < n; ++i)
    dx[i] = x[i] >= low && x[i] <= high ? dy[i] : A(0);
  return {};
}

template <typename S> Status act_grad(const Call &call) {
  using A = Accumulator<S>;
  Activation activation = activationNamed(call.params.text("activation"));
  if (!activation)
    return unknownActivation(call);
  Widened<A> dy(call.in[0]), x(call.in[1]);
  Rounded<A> dx(call.out[0]);
  for (int64_t i = 0, n = call.in[0].elements(); i < n; ++i)
    dx[i] = A(double(dy[i]) * activation(double(x[i])).slope);
  return {};
}

template <typename S> Status glu_grad(const Call &call) {
  using A = Accumulator<S>;
  Activation activation = activationNamed(call.params.text("activation"));
  if (!activation)
    return unknownActivation(call);
  double limit = call.params.real("limit", INFINITY), alpha = call.params.real("alpha", 1),
         shift = call.params.real("up_shift", 0);
  Widened<A> dy(call.in[0]), x(call.in[1]);
  Rounded<A> dx(call.out[0]);
  int64_t width = trailing(call.in[0], 1), rows = leading(call.in[0], 1);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; ++i) {
      double gate = double(x[2 * t * width + i]), up = double(x[(2 * t + 1) * width + i]);
      bool gateMoves = gate <= limit, upMoves = up >= -limit && up <= limit;
      gate = std::min(gate, limit);
      up = std::clamp(up, -limit, limit);
      ValueAndSlope a = alpha == 1 ? activation(gate) : silu(gate, alpha);
      double g = double(dy[t * width + i]);
      dx[2 * t * width + i] = A(gateMoves ? g * a.slope * (up + shift) : 0);
      dx[(2 * t + 1) * width + i] = A(upMoves ? g * a.value : 0);
    }
  return {};
}

template <typename S> Status sigmoid_gate_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> x(call.in[0]), dy(call.in[1]), gate(call.in[2]);
  Rounded<A> dg(call.out[0]);
  int64_t width = trailing(call.in[0], 1), rows = leading(call.in[0], 1);
  for (int64_t t = 0; t < rows; ++t) {
    double dot = 0, s = sigmoid(double(gate[t]));
    for (int64_t i = 0; i < width; ++i)
      dot += double(x[t * width + i]) * double(dy[t * width + i]);
    dg[t] = A(dot * s * (1 - s));
  }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(rms_sums)
INSTANTIATE(rms_norm_grad)
INSTANTIATE(layer_norm_grad)
INSTANTIATE(clamp_grad)
INSTANTIATE(act_grad)
INSTANTIATE(glu_grad)
INSTANTIATE(sigmoid_gate_grad)

} // namespace moira::rt::host::ref
