//===- Elementwise.cpp - reference element-wise and row-wise calls ----------===//
// Norms, add, scale, clamp, act, glu, sigmoid_gate, rope. The mesh program runs generated kernels
// instead of these.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "Widened.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::host::ref {

namespace {

template <typename S> double squares(const S *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += double(x[i]) * double(x[i]);
  return sum;
}

template <typename S>
void scaleRow(const S *x, const S *w, S *out, int64_t n, double meanSquare, double eps) {
  double factor = 1 / std::sqrt(meanSquare + eps);
  for (int64_t i = 0; i < n; ++i)
    out[i] = S(double(x[i]) * factor * double(w[i]));
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

using Activation = double (*)(double);

Activation activationNamed(std::string_view name) {
  if (name == "silu")
    return [](double x) { return x * sigmoid(x); };
  if (name == "gelu")
    return [](double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); };
  if (name == "gelu_tanh")
    return [](double x) {
      double inner = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1 + std::tanh(inner));
    };
  if (name == "relu")
    return [](double x) { return std::max(x, 0.0); };
  return nullptr;
}

Status unknownActivation(const Call &call) {
  return badCall(call, "unknown activation '" + std::string(call.params.text("activation")) + "'");
}

} // namespace

template <typename S> Status rms_norm(const Call &call) {
  if (Status s = checkTrailing(call, "norm_dims", {&call.in[0]}); !s)
    return s;
  const S *x = call.input<S>(0), *w = call.input<S>(1);
  S *out = call.output<S>(0);
  int64_t width = call.in[1].elements(),
          rows = leading(call.in[0], call.params.integer("norm_dims"));
  double eps = call.params.real("eps");
  for (int64_t t = 0; t < rows; ++t, x += width, out += width)
    scaleRow(x, w, out, width, squares(x, width) / double(width), eps);
  return {};
}

template <typename S> Status layer_norm(const Call &call) {
  if (Status s = checkTrailing(call, "norm_dims", {&call.in[0]}); !s)
    return s;
  const S *x = call.input<S>(0), *w = call.input<S>(1);
  const S *bias = call.in.size() > 2 ? call.input<S>(2) : nullptr;
  S *out = call.output<S>(0);
  int64_t width = call.in[1].elements(),
          rows = leading(call.in[0], call.params.integer("norm_dims"));
  for (int64_t t = 0; t < rows; ++t, x += width, out += width) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < width; ++i)
      mean += double(x[i]) / double(width);
    for (int64_t i = 0; i < width; ++i)
      variance += (double(x[i]) - mean) * (double(x[i]) - mean) / double(width);
    double factor = 1 / std::sqrt(variance + call.params.real("eps"));
    for (int64_t i = 0; i < width; ++i)
      out[i] = S((double(x[i]) - mean) * factor * double(w[i]) + (bias ? double(bias[i]) : 0));
  }
  return {};
}

template <typename S> Status sum_squares(const Call &call) {
  if (Status s = checkTrailing(call, "norm_dims", {&call.in[0]}); !s)
    return s;
  const S *x = call.input<S>(0);
  int64_t dims = call.params.integer("norm_dims");
  int64_t width = trailing(call.in[0], dims), rows = leading(call.in[0], dims);
  for (int64_t t = 0; t < rows; ++t)
    call.output<Accumulator<S>>(0)[t] = Accumulator<S>(squares(x + t * width, width));
  return {};
}

template <typename S> Status rms_apply(const Call &call) {
  const S *x = call.input<S>(0), *w = call.input<S>(2);
  const Accumulator<S> *sums = call.input<Accumulator<S>>(1);
  S *out = call.output<S>(0);
  int64_t width = call.in[2].elements(), rows = call.in[1].elements();
  double count = double(call.params.integer("count")), eps = call.params.real("eps");
  for (int64_t t = 0; t < rows; ++t)
    scaleRow(x + t * width, w, out + t * width, width, double(sums[t]) / count, eps);
  return {};
}

template <typename S> Status add(const Call &call) {
  const S *a = call.input<S>(0), *b = call.input<S>(1);
  S *out = call.output<S>(0);
  int64_t width = call.in[1].elements(), n = call.in[0].elements();
  for (int64_t i = 0; i < n; i += width)
    for (int64_t j = 0; j < width; ++j)
      out[i + j] = S(a[i + j] + b[j]);
  return {};
}

template <typename S> Status scale(const Call &call) {
  double factor = call.params.real("factor");
  Widened<Accumulator<S>> x(call.in[0]);
  Rounded<Accumulator<S>> out(call.out[0]);
  for (int64_t i = 0, n = call.in[0].elements(); i < n; ++i)
    out[i] = Accumulator<S>(double(x[i]) * factor);
  return {};
}

/// NaN stays NaN.
template <typename S> Status clamp(const Call &call) {
  const S *x = call.input<S>(0);
  S low = S(call.params.real("min")), high = S(call.params.real("max"));
  for (int64_t i = 0, n = call.in[0].elements(); i < n; ++i)
    call.output<S>(0)[i] = x[i] < low ? low : x[i] > high ? high : x[i];
  return {};
}

template <typename S> Status act(const Call &call) {
  Activation activation = activationNamed(call.params.text("activation"));
  if (!activation)
    return unknownActivation(call);
  for (int64_t i = 0, n = call.in[0].elements(); i < n; ++i)
    call.output<S>(0)[i] = S(activation(double(call.input<S>(0)[i])));
  return {};
}

template <typename S> Status glu(const Call &call) {
  Activation activation = activationNamed(call.params.text("activation"));
  if (!activation)
    return unknownActivation(call);
  double limit = call.params.real("limit", INFINITY), alpha = call.params.real("alpha", 1),
         shift = call.params.real("up_shift", 0);
  if (!(limit > 0) || (alpha != 1 && call.params.text("activation") != "silu"))
    return badCall(call, "its limit is not positive, or alpha is given without silu");
  const S *x = call.input<S>(0);
  S *out = call.output<S>(0);
  int64_t width = trailing(call.out[0], 1), rows = leading(call.out[0], 1);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; ++i) {
      // Comparisons that leave NaN as it is.
      double gate = double(x[2 * t * width + i]), up = double(x[(2 * t + 1) * width + i]);
      gate = gate > limit ? limit : gate;
      up = up > limit ? limit : up < -limit ? -limit : up;
      double activated = alpha == 1 ? activation(gate) : gate * sigmoid(alpha * gate);
      out[t * width + i] = S(activated * (up + shift));
    }
  return {};
}

template <typename S> Status sigmoid_gate(const Call &call) {
  const S *x = call.input<S>(0), *gate = call.input<S>(1);
  int64_t width = trailing(call.in[0], 1), rows = leading(call.in[0], 1);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; ++i)
      call.output<S>(0)[t * width + i] = S(double(x[t * width + i]) * sigmoid(double(gate[t])));
  return {};
}

namespace {

template <typename X, typename Out, typename A>
void rotate(const X *x, const A *cosines, const A *sines, Out *out, int64_t width, int64_t r,
            bool interleaved) {
  for (int64_t i = 0; i < r; ++i) {
    int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + r;
    A c = cosines[i], n = sines[i], low = x[first], high = x[second];
    out[first] = Out(low * c - high * n);
    out[second] = Out(high * c + low * n);
  }
  for (int64_t i = 2 * r; i < width; ++i)
    out[i] = Out(A(x[i]));
}

} // namespace

template <typename S> Status rope(const Call &call) {
  using A = Accumulator<S>;
  const A *cosines = call.input<A>(1), *sines = call.input<A>(2);
  const std::vector<int64_t> &shape = call.in[0].shape;
  int64_t sequence = shape[1], width = shape.back(), r = call.in[1].shape[1];
  int64_t heads = product(shape, 2, shape.size() - 1);
  if (r > width / 2)
    return badCall(
        call, format("%lld pairs to rotate in a head of %lld", (long long)r, (long long)width));
  bool interleaved = call.params.integer("interleaved") != 0;
  return withEither<S>(call.in[0].dtype, [&]<typename X>(X) {
    return withEither<S>(call.out[0].dtype, [&]<typename Out>(Out) {
      for (int64_t t = 0; t < shape[0] * sequence * heads; ++t) {
        int64_t s = t / heads % sequence;
        rotate(call.input<X>(0) + t * width, cosines + s * r, sines + s * r,
               call.output<Out>(0) + t * width, width, r, interleaved);
      }
      return Status();
    });
  });
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(rms_norm)
INSTANTIATE(layer_norm)
INSTANTIATE(sum_squares)
INSTANTIATE(rms_apply)
INSTANTIATE(add)
INSTANTIATE(scale)
INSTANTIATE(clamp)
INSTANTIATE(act)
INSTANTIATE(glu)
INSTANTIATE(sigmoid_gate)
INSTANTIATE(rope)

} // namespace moira::rt::host::ref
