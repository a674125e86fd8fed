//===- Losses.cpp - reference losses and their gradients ------------------===//
// next_tokens, row_max, cross_entropy_stats, both in one, cross_entropy, ratio and gradients. In
// the accumulator's type but for logits and their gradient; sums are made in double.
//===----------------------------------------------------------------------===//
#include "SampleTree.h"
#include "Widened.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moira::rt::host::ref {

namespace {

constexpr int32_t kNoLabel = -100;                                    // counts in no loss
constexpr int32_t kNotGiven = std::numeric_limits<int32_t>::lowest(); // an optional label

/// The columns of logits [t..,V] that are classes here.
struct Columns {
  int64_t width, first, count;
  Columns(const Call &call, const TensorRef &logits)
      : width(trailing(logits, 1)), first(call.params.integer("column_offset")),
        count(std::clamp<int64_t>(call.params.integer("classes") - first, 0, width)) {}
  /// The column of a label, or -1.
  int64_t of(int32_t label) const {
    int64_t at = int64_t(label) - first;
    return label >= 0 && at >= 0 && at < count ? at : -1;
  }
  template <typename A> A largest(const Widened<A> &x) const {
    return count ? *std::max_element(x.data(), x.data() + count)
                 : -std::numeric_limits<A>::infinity();
  }
  /// The three sums of a row.
  template <typename A> void statistics(const Widened<A> &x, A max, int32_t label, A *out) const {
    double exponentials = 0, sum = 0;
    for (int64_t c = 0; c < count; ++c) {
      double centred = double(x[c]) - double(max);
      exponentials += std::exp(centred);
      sum += centred;
    }
    int64_t at = of(label);
    out[0] = A(exponentials);
    out[1] = at < 0 ? A(0) : A(double(x[at]) - double(max));
    out[2] = A(sum);
  }
};

} // namespace

template <typename> Status next_tokens(const Call &call) {
  const TensorRef &ids = call.in[0];
  const int32_t *labels = call.in.size() > 1 ? call.input<int32_t>(1) : nullptr;
  int32_t *out = call.output<int32_t>(0);
  int64_t columns = ids.shape[1];
  for (int64_t i = 0, n = ids.elements(); i < n; ++i) {
    if ((i + 1) % columns == 0) {
      out[i] = kNoLabel;
    } else if (labels && labels[i + 1] != kNotGiven) {
      out[i] = labels[i + 1];
    } else {
      out[i] = ids.dtype == fb::DType::i64 ? int32_t(call.input<int64_t>(0)[i + 1])
                                           : call.input<int32_t>(0)[i + 1];
    }
  }
  return {};
}

template <typename S> Status row_max(const Call &call) {
  using A = Accumulator<S>;
  Columns columns(call, call.in[0]);
  for (int64_t t = 0, n = call.out[0].elements(); t < n; ++t)
    call.output<A>(0)[t] =
        columns.largest(Widened<A>(call.in[0], t * columns.width, columns.width));
  return {};
}

template <typename S> Status cross_entropy_stats(const Call &call) {
  using A = Accumulator<S>;
  Columns columns(call, call.in[0]);
  for (int64_t t = 0, n = call.in[1].elements(); t < n; ++t)
    columns.statistics(Widened<A>(call.in[0], t * columns.width, columns.width),
                       call.input<A>(1)[t], call.input<int32_t>(2)[t], call.output<A>(0) + 3 * t);
  return {};
}

template <typename S> Status row_max_stats(const Call &call) {
  using A = Accumulator<S>;
  Columns columns(call, call.in[0]);
  for (int64_t t = 0, n = call.in[1].elements(); t < n; ++t) {
    Widened<A> x(call.in[0], t * columns.width, columns.width);
    A max = call.output<A>(0)[t] = columns.largest(x);
    columns.statistics(x, max, call.input<int32_t>(1)[t], call.output<A>(1) + 3 * t);
  }
  return {};
}

template <typename S> Status cross_entropy_stats_grad(const Call &call) {
  using A = Accumulator<S>;
  Columns columns(call, call.in[1]);
  const A *dy = call.input<A>(0), *max = call.input<A>(2);
  const int32_t *labels = call.input<int32_t>(3);
  for (int64_t t = 0, n = call.in[2].elements(); t < n; ++t, dy += 3) {
    Widened<A> x(call.in[1], t * columns.width, columns.width);
    Rounded<A> out(call.out[0], t * columns.width, columns.width);
    for (int64_t c = 0; c < columns.count; ++c)
      out[c] = A(double(dy[0]) * std::exp(double(x[c]) - double(max[t])) + double(dy[2]));
    std::fill(out.data() + columns.count, out.data() + columns.width, A(0));
    if (int64_t label = columns.of(labels[t]); label >= 0)
      out[label] += dy[1];
  }
  return {};
}

template <typename S> Status cross_entropy(const Call &call) {
  using A = Accumulator<S>;
  const int32_t *labels = call.input<int32_t>(1);
  double smoothing = call.params.real("smoothing");
  double classes = double(call.params.integer("classes"));
  int64_t samples = samplesOf(call, call.in[1]), each = call.in[1].elements() / samples;
  A total[2];
  Status status = sumSamples(samples, total, 2, [&](int64_t s, A *into) {
    double sum = 0, count = 0;
    for (int64_t t = s * each; t < (s + 1) * each; ++t) {
      const A *stats = call.input<A>(0) + 3 * t;
      if (labels[t] == kNoLabel)
        continue;
      double log = std::log(double(stats[0]));
      sum += (1 - smoothing) * (log - double(stats[1]));
      if (smoothing > 0)
        sum += smoothing * (log - double(stats[2]) / classes);
      count += 1;
    }
    into[0] = A(sum);
    into[1] = A(count);
    return Status();
  });
  *call.output<A>(0) = total[0];
  *call.output<A>(1) = total[1];
  return status;
}

template <typename S> Status cross_entropy_grad(const Call &call) {
  using A = Accumulator<S>;
  const A *stats = call.input<A>(1);
  const int32_t *labels = call.input<int32_t>(2);
  A *out = call.output<A>(0);
  double smoothing = call.params.real("smoothing"), dy = double(*call.input<A>(0));
  double classes = double(call.params.integer("classes"));
  for (int64_t t = 0, n = call.in[2].elements(); t < n; ++t, stats += 3, out += 3) {
    bool counts = labels[t] != kNoLabel;
    out[0] = counts ? A(dy / double(stats[0])) : A(0);
    out[1] = counts ? A(-(1 - smoothing) * dy) : A(0);
    out[2] = counts ? A(-smoothing / classes * dy) : A(0);
  }
  return {};
}

template <typename S> Status ratio(const Call &call) {
  using A = Accumulator<S>;
  const A *a = call.input<A>(0), *b = call.input<A>(1);
  for (int64_t i = 0, n = call.in[0].elements(); i < n; ++i)
    call.output<A>(0)[i] = b[i] == A(0) ? A(0) : a[i] / b[i];
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(next_tokens)
INSTANTIATE(row_max)
INSTANTIATE(cross_entropy_stats)
INSTANTIATE(row_max_stats)
INSTANTIATE(cross_entropy_stats_grad)
INSTANTIATE(cross_entropy)
INSTANTIATE(cross_entropy_grad)
INSTANTIATE(ratio)

} // namespace moira::rt::host::ref
