//===- Adafactor.cpp - the calls of Adafactor's steps -----------------------===//
// second_moment, adafactor_norm and both forms of adafactor, in double between a load and a store.
// What an update reads and writes in place are its outputs.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::host {
namespace {

/// The elements of a state by parameter, matrix, row and column.
struct Layout {
  int64_t parameters, matrices, rows, columns; // matrices of all parameters; sizes of a matrix
  bool factored;

  explicit Layout(const Call &call, const std::vector<int64_t> &shape) {
    auto kept = size_t(call.params.integer("kept")), r = size_t(call.params.integer("rows"));
    factored = r > 0;
    parameters = product(shape, 0, size_t(call.params.integer("parameters")));
    matrices = factored ? product(shape, 0, kept) : parameters;
    rows = factored ? product(shape, kept, kept + r) : 1;
    columns = std::max<int64_t>(1, product(shape, 0, shape.size())) /
              std::max<int64_t>(1, matrices * rows);
  }

  /// fn(element, parameter, reciprocal root of its moment) for each element.
  template <typename A, typename Fn> void forEach(const A *r, const A *c, const A *m, Fn fn) const {
    int64_t at = 0;
    for (int64_t k = 0; k < matrices; ++k)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j, ++at) {
          double moment = factored
                              ? double(r[k * rows + i]) / double(m[k]) * double(c[k * columns + j])
                              : double(r[at]);
          fn(at, k * parameters / matrices, 1 / std::sqrt(moment));
        }
  }
};

} // namespace

template <typename S> Status ref::second_moment(const Call &call) {
  using A = Accumulator<S>;
  const A *v = call.input<A>(0), *squares = call.input<A>(1);
  double factor = call.in.size() > 3 ? double(call.input<A>(3)[0]) : 1;
  double step = *call.input<int32_t>(2), keep = 1 - std::pow(step, -call.params.real("decay"));
  double scale = factor * factor / double(call.params.integer("count")),
         eps = call.params.real("eps");
  A *out = call.output<A>(0);
  for (int64_t i = 0, n = call.out[0].elements(); i < n; ++i)
    out[i] = A(keep * double(v[i]) + (1 - keep) * (scale * double(squares[i]) + eps));
  return {};
}

template <typename S> Status ref::adafactor_norm(const Call &call) {
  using A = Accumulator<S>;
  Layout layout(call, call.in[0].shape);
  bool factored = layout.factored;
  const A *grad = call.input<A>(0);
  std::vector<double> sums(size_t(layout.parameters));
  layout.forEach(call.input<A>(1), factored ? call.input<A>(2) : nullptr,
                 factored ? call.input<A>(3) : nullptr, [&](int64_t i, int64_t p, double root) {
                   double u = double(grad[i]) * root;
                   sums[size_t(p)] += u * u;
                 });
  std::copy(sums.begin(), sums.end(), call.output<A>(0));
  return {};
}

/// Both forms of the update: what they have of moments stands behind grad, lr and norms.
template <typename A> static Status step(const Call &call) {
  Layout layout(call, call.out[0].shape);
  size_t moments = call.out.size() - 1, behind = 3 + moments;
  auto moment = [&](size_t i) { return i < moments ? call.input<A>(3 + i) : nullptr; };
  auto optional = [&](const char *role) {
    int at = call.params.optional(role);
    return at < 0 ? nullptr : call.input<A>(behind + size_t(at));
  };
  const A *grad = call.input<A>(0), *norms = call.input<A>(2);
  const A *weights = optional("weights"), *scale = optional("factor");
  double lr = double(call.input<A>(1)[0]), factor = scale ? double(*scale) : 1;
  double count = double(call.params.integer("count")), eps = call.params.real("eps");
  std::vector<double> rates, decays; // of u and of w, for each parameter
  for (int64_t p = 0; p < layout.parameters; ++p) {
    double rms = factor * std::sqrt(double(norms[p]) / count);
    double rate = lr;
    if (weights)
      rate *= std::max(eps, std::sqrt(double(weights[p]) / count));
    rates.push_back(factor * rate / std::max(1.0, rms / call.params.real("clip")));
    decays.push_back(1 - rate * call.params.real("weight_decay"));
  }
  A *w = call.output<A>(0);
  layout.forEach(moment(0), moment(1), moment(2), [&](int64_t i, int64_t p, double root) {
    w[i] = A(double(w[i]) * decays[size_t(p)] - rates[size_t(p)] * double(grad[i]) * root);
  });
  for (size_t i = 0; i < moments; ++i)
    std::copy_n(moment(i), call.out[1 + i].elements(), call.output<A>(1 + i));
  return {};
}

template <typename S> Status ref::adafactor(const Call &call) { return step<Accumulator<S>>(call); }

template <typename S> Status ref::adafactor_vector(const Call &call) {
  return step<Accumulator<S>>(call);
}

#define INSTANTIATE(S)                                                                             \
  template Status ref::second_moment<S>(const Call &);                                             \
  template Status ref::adafactor_norm<S>(const Call &);                                            \
  template Status ref::adafactor<S>(const Call &);                                                 \
  template Status ref::adafactor_vector<S>(const Call &);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bf16)

} // namespace moira::rt::host
