//===- GradAttention.cpp - reference attention_grad -----------------------===//
// One query and head at a time: the weights again, then what flows back through them.
//===----------------------------------------------------------------------===//
#include "AttentionShape.h"
#include "SampleTree.h"
#include "Widened.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

namespace moira::rt::host {
namespace {

/// An optional operand behind the ones that are always there, null if it is not given.
const TensorRef *optionalOf(const Call &call, std::span<const TensorRef> operands, size_t behind,
                            std::string_view role) {
  int i = call.params.optional(role);
  return i < 0 ? nullptr : &operands[behind + size_t(i)];
}

template <typename A> std::unique_ptr<Widened<A>> widened(const TensorRef *tensor) {
  return tensor ? std::make_unique<Widened<A>>(*tensor) : nullptr;
}

double dotOf(const auto *x, const auto *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += double(x[i]) * double(y[i]);
  return sum;
}

/// sums += factor · x
void addTimes(double *sums, double factor, const auto *x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    sums[i] += factor * double(x[i]);
}

/// Sums of one output. Empty for one that is not there.
class Sums {
public:
  explicit Sums(const TensorRef *output)
      : output(output), values(output ? size_t(output->elements()) : 0, 0.0) {}
  double *at(int64_t i) { return values.data() + i; }
  int64_t size() const { return int64_t(values.size()); }
  /// Moves the sums to `target`; the next ones begin at 0.
  template <typename A> void take(A *target) {
    std::transform(values.begin(), values.end(), target, [](double v) { return A(v); });
    std::fill(values.begin(), values.end(), 0.0);
  }
  template <typename A> void store() const {
    if (!output)
      return;
    Rounded<A> to(*output);
    std::transform(values.begin(), values.end(), to.data(), [](double v) { return A(v); });
  }

private:
  const TensorRef *output;
  std::vector<double> values;
};

} // namespace

namespace ref {

template <typename S> Status attention_grad(const Call &call) {
  using A = Accumulator<S>;
  // The operands behind dy are attention's.
  Call forward{call.name, call.in.subspan(1), call.out, call.params, nullptr};
  AttentionShape a;
  if (Status s = attentionShape(forward, a); !s)
    return s;
  Widened<A> dy(call.in[0]), q(call.in[1]), k(call.in[2]), v(call.in[3]);
  std::unique_ptr<Widened<A>> q2 = widened<A>(a.q2), k2 = widened<A>(a.k2),
                              bias = widened<A>(a.bias), sinks = widened<A>(a.sinks);
  auto output = [&](std::string_view role) { return optionalOf(call, call.out, 3, role); };
  Sums dq(&call.out[0]), dk(&call.out[1]), dv(&call.out[2]), dq2(output("q2")), dk2(output("k2")),
      dbias(output("bias")), dsinks(output("sinks"));
  double scale = call.params.real("scale", 1);

  std::vector<double> weight(size_t(a.keys)), back(size_t(a.keys));
  auto addSample = [&](int64_t b) {
    for (int64_t i = 0; i < a.queries; ++i)
      for (int64_t h = 0; h < a.heads; ++h) {
        int64_t row = (b * a.queries + i) * a.heads + h;
        const A *query = q.data() + row * a.keyDim, *given = dy.data() + row * a.valueDim;
        const A *query2 = q2 ? q2->data() + row * a.sharedDim : nullptr;
        auto keyRow = [&](int64_t j) {
          return (b * a.keys + j) * a.kvHeads + a.kvHeadOf[size_t(h)];
        };
        auto sharedRow = [&](int64_t j) { return (b * a.keys + j) * a.sharedDim; };
        auto visible = [&](int64_t j) { return a.sees(b, i, j); };
        double largest = sinks ? double((*sinks)[h]) : -INFINITY;
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          double score = dotOf(query, k.data() + keyRow(j) * a.keyDim, a.keyDim);
          if (q2)
            score += dotOf(query2, k2->data() + sharedRow(j), a.sharedDim);
          weight[size_t(j)] =
              score * scale + (bias ? double((*bias)[(h * a.queries + i) * a.keys + j]) : 0.0);
          largest = std::max(largest, weight[size_t(j)]);
        }
        double sink = sinks ? std::exp(double((*sinks)[h]) - largest) : 0, total = sink;
        for (int64_t j = 0; j < a.keys; ++j)
          if (visible(j))
            total += weight[size_t(j)] = std::exp(weight[size_t(j)] - largest);
        if (total == 0)
          continue;      // sees nothing
        double mean = 0; // of what flows back, by the weights
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          weight[size_t(j)] /= total;
          back[size_t(j)] = dotOf(given, v.data() + keyRow(j) * a.valueDim, a.valueDim);
          mean += weight[size_t(j)] * back[size_t(j)];
        }
        for (int64_t j = 0; j < a.keys; ++j) {
          if (!visible(j))
            continue;
          double score = weight[size_t(j)] * (back[size_t(j)] - mean);
          addTimes(dv.at(keyRow(j) * a.valueDim), weight[size_t(j)], given, a.valueDim);
          addTimes(dq.at(row * a.keyDim), score * scale, k.data() + keyRow(j) * a.keyDim, a.keyDim);
          addTimes(dk.at(keyRow(j) * a.keyDim), score * scale, query, a.keyDim);
          if (q2) {
            addTimes(dq2.at(row * a.sharedDim), score * scale, k2->data() + sharedRow(j),
                     a.sharedDim);
            addTimes(dk2.at(sharedRow(j)), score * scale, query2, a.sharedDim);
          }
          if (bias)
            *dbias.at((h * a.queries + i) * a.keys + j) += score;
        }
        if (sinks)
          *dsinks.at(h) -= sink / total * mean;
      }
  };
  // Biases and sinks belong to all samples.
  int64_t samples = samplesOf(call, call.in[0]), each = a.batch / samples;
  std::vector<A> ofAll(size_t(dbias.size() + dsinks.size()));
  Status status = sumSamples(samples, ofAll.data(), int64_t(ofAll.size()), [&](int64_t s, A *into) {
    for (int64_t b = s * each; b < (s + 1) * each; ++b)
      addSample(b);
    dbias.take(into);
    dsinks.take(into + dbias.size());
    return Status();
  });
  for (const Sums *sums : {&dq, &dk, &dv, &dq2, &dk2})
    sums->store<A>();
  if (const TensorRef *out = output("bias"))
    std::copy_n(ofAll.data(), dbias.size(), static_cast<A *>(out->data));
  if (const TensorRef *out = output("sinks"))
    std::copy_n(ofAll.data() + dbias.size(), dsinks.size(), static_cast<A *>(out->data));
  return status;
}
template Status attention_grad<float>(const Call &);
template Status attention_grad<double>(const Call &);
template Status attention_grad<Bf16>(const Call &);

} // namespace ref
} // namespace moira::rt::host
