//===- Optimizer.cpp - reference updates of weights -------------------------===//
// adamw, expert_adamw, sgd, balance_bias, accumulate, squares, clip_factor, in double between a
// load and a store. What an update reads and writes in place are its outputs.
//===----------------------------------------------------------------------===//
#include "ExactSquares.h"
#include "HostOps.h"
#include "Widened.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::host {
namespace {

template <typename A> double scalar(const Call &call, size_t input) {
  return input < call.in.size() ? double(call.input<A>(input)[0]) : 1.0;
}

/// adamw of the elements [begin, end), which are at their step `step`.
template <typename A>
void updateAdamW(const Call &call, double factor, double step, int64_t begin, int64_t end, A *w) {
  const Widened<A> grad(call.in[0], begin, end - begin);
  double lr = scalar<A>(call, 1);
  double beta1 = call.params.real("beta1"), beta2 = call.params.real("beta2"),
         eps = call.params.real("eps"), decay = 1 - lr * call.params.real("weight_decay");
  double correction1 = 1 - std::pow(beta1, step), correction2 = 1 - std::pow(beta2, step);
  A *m = call.output<A>(1), *v = call.output<A>(2);
  for (int64_t i = begin; i < end; ++i) {
    double g = factor * double(grad[i - begin]);
    m[i] = A(beta1 * double(m[i]) + (1 - beta1) * g);
    v[i] = A(beta2 * double(v[i]) + (1 - beta2) * g * g);
    double divisor = std::sqrt(double(v[i]) / correction2) + eps;
    w[i] = A(double(w[i]) * decay - lr / correction1 * double(m[i]) / divisor);
  }
}

} // namespace

std::pair<size_t, size_t> keptBySquares(const Call &call) {
  return {size_t(call.params.integer("keep")), size_t(call.params.integer("tail"))};
}

template <typename S> Status ref::adamw(const Call &call) {
  using A = Accumulator<S>;
  if (call.out.size() > 3) {
    const Widened<A> grad(call.in[0]);
    double sum = 0;
    for (int64_t i = 0, n = call.out[0].elements(); i < n; ++i)
      sum += double(grad[i]) * double(grad[i]);
    call.output<A>(3)[0] = A(sum);
  }
  updateAdamW(call, scalar<A>(call, 3), *call.input<int32_t>(2), 0, call.out[0].elements(),
              call.output<A>(0));
  return {};
}

template <typename S> Status ref::expert_adamw(const Call &call) {
  using A = Accumulator<S>;
  const A *load = call.input<A>(2);
  A *steps = call.output<A>(3);
  int64_t experts = call.out[3].elements();
  int64_t each = experts == 0 ? 0 : call.out[0].elements() / experts;
  for (int64_t e = 0; e < experts; ++e)
    if (load[e] != 0)
      updateAdamW(call, scalar<A>(call, 3), double(steps[e] += 1), e * each, (e + 1) * each,
                  call.output<A>(0));
  return {};
}

template <typename S> Status ref::sgd(const Call &call) {
  using A = Accumulator<S>;
  const Widened<A> grad(call.in[0]);
  double lr = scalar<A>(call, 1), factor = scalar<A>(call, 2);
  double momentum = call.params.real("momentum"), decay = call.params.real("weight_decay");
  bool nesterov = call.params.integer("nesterov") != 0;
  A *w = call.output<A>(0), *b = call.out.size() > 1 ? call.output<A>(1) : nullptr;
  for (int64_t i = 0, n = call.out[0].elements(); i < n; ++i) {
    double g = factor * double(grad[i]) + decay * double(w[i]);
    if (b) {
      b[i] = A(momentum * double(b[i]) + g);
      g = nesterov ? g + momentum * double(b[i]) : double(b[i]);
    }
    w[i] = A(double(w[i]) - lr * g);
  }
  return {};
}

template <typename S> Status ref::balance_bias(const Call &call) {
  using A = Accumulator<S>;
  const A *load = call.input<A>(0);
  A *bias = call.output<A>(0);
  int64_t experts = call.out[0].elements();
  double sum = 0, rate = call.params.real("rate");
  for (int64_t e = 0; e < experts; ++e)
    sum += double(load[e]);
  // Loads are whole numbers: compared without a division, so that an even load is one.
  for (int64_t e = 0; e < experts; ++e)
    if (double over = double(load[e]) * double(experts) - sum; over != 0)
      bias[e] = A(double(bias[e]) - std::copysign(rate, over));
  return {};
}

template <typename S> Status ref::accumulate(const Call &call) {
  using A = Accumulator<S>;
  const Widened<A> x(call.in[0]);
  bool first = *call.input<int32_t>(1) == 0;
  A *sum = call.output<A>(0);
  for (int64_t i = 0, n = call.out[0].elements(); i < n; ++i)
    sum[i] = first ? x[i] : sum[i] + x[i];
  return {};
}

template <typename S> Status ref::squares(const Call &call) {
  using A = Accumulator<S>;
  // [keep][summed][tail]
  const std::vector<int64_t> &shape = call.in[0].shape;
  auto [keep, tail] = keptBySquares(call);
  int64_t a = product(shape, 0, keep), b = product(shape, shape.size() - tail, shape.size());
  int64_t n = product(shape, keep, shape.size() - tail);
  return withEither<S>(call.in[0].dtype, [&]<typename X>(X) {
    const X *x = call.input<X>(0);
    for (int64_t i = 0; i < a; ++i)
      for (int64_t j = 0; j < b; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < n; ++k) {
          auto value = double(x[(i * n + k) * b + j]);
          sum += value * value;
        }
        call.output<A>(0)[i * b + j] = A(sum);
      }
    return Status();
  });
}

template <typename S> Status ref::clip_factor(const Call &call) {
  using A = Accumulator<S>;
  double squares = double(call.input<A>(0)[0]), most = call.params.real("max_norm");
  if constexpr (std::is_same_v<A, float>)
    if (call.in[0].elements() == kSquareDigits)
      squares =
          valueOfDigits(std::span<const float, kSquareDigits>(call.input<float>(0), kSquareDigits));
  double norm = std::sqrt(squares);
  call.output<A>(0)[0] = A(norm);
  call.output<A>(1)[0] = A(most > 0 ? std::min(1.0, most / (norm + 1e-6)) : 1.0);
  return {};
}

#define INSTANTIATE(S)                                                                             \
  template Status ref::adamw<S>(const Call &);                                                     \
  template Status ref::expert_adamw<S>(const Call &);                                              \
  template Status ref::sgd<S>(const Call &);                                                       \
  template Status ref::balance_bias<S>(const Call &);                                              \
  template Status ref::accumulate<S>(const Call &);                                                \
  template Status ref::squares<S>(const Call &);                                                   \
  template Status ref::clip_factor<S>(const Call &);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bf16)

} // namespace moira::rt::host
