//===- GradProducts.cpp - gradients of dense and grouped products ---------===//
// embedding_grad, linear_input_grad, linear_weight_grad, head_weight_grad, sum_rows,
// grouped_input_grad, grouped_weight_grad, grouped_bias_grad. The products are plain loops that sum
// in double, or oneDNN's in the fast flavor.
//===----------------------------------------------------------------------===//
#include "Sgemm.h"
#include "Widened.h"

#include <algorithm>
#include <vector>

namespace moira::rt::host {
namespace {

/// Both products of a backward pass, on row-major matrices.
struct Plain {
  /// out[m,k] = a[m,n] · b[n,k]
  template <typename A>
  static Status product(const Call &, const A *a, const A *b, A *out, int64_t m, int64_t n,
                        int64_t k) {
    std::vector<double> row(static_cast<size_t>(k));
    for (int64_t i = 0; i < m; ++i) {
      std::fill(row.begin(), row.end(), 0.0);
      for (int64_t j = 0; j < n; ++j)
        for (int64_t c = 0; c < k; ++c)
          row[size_t(c)] += double(a[i * n + j]) * double(b[j * k + c]);
      std::transform(row.begin(), row.end(), out + i * k, [](double v) { return A(v); });
    }
    return {};
  }
  /// out[n,k] = a[m,n]ᵀ · b[m,k]
  template <typename A>
  static Status transposed(const Call &, const A *a, const A *b, A *out, int64_t m, int64_t n,
                           int64_t k) {
    std::vector<double> row(static_cast<size_t>(k));
    for (int64_t j = 0; j < n; ++j) {
      std::fill(row.begin(), row.end(), 0.0);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < k; ++c)
          row[size_t(c)] += double(a[i * n + j]) * double(b[i * k + c]);
      std::transform(row.begin(), row.end(), out + j * k, [](double v) { return A(v); });
    }
    return {};
  }
};

struct Blas {
  static Status product(const Call &call, const float *a, const float *b, float *out, int64_t m,
                        int64_t n, int64_t k) {
    return run(call, false, m, k, n, a, n, b, k, out);
  }
  static Status transposed(const Call &call, const float *a, const float *b, float *out, int64_t m,
                           int64_t n, int64_t k) {
    return run(call, true, n, k, m, a, n, b, k, out);
  }

private:
  /// out[rows,columns] = a' · b, summed over `inner`.
  static Status run(const Call &call, bool transpose, int64_t rows, int64_t columns, int64_t inner,
                    const float *a, int64_t lda, const float *b, int64_t ldb, float *out) {
    return sharedSgemm(call,
                       {transpose, false, rows, columns, inner, a, lda, b, ldb, out, columns});
  }
};

template <typename A, typename Products> Status linearInputGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  Widened<A> dy(call.in[0]), w(call.in[1]);
  Rounded<A> out(call.out[0]);
  return Products::product(call, dy.data(), w.data(), out.data(), leading(call.out[0], contract),
                           leading(call.in[1], contract), trailing(call.in[1], contract));
}

template <typename A, typename Products> Status linearWeightGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  Widened<A> dy(call.in[0]), x(call.in[1]);
  return Products::transposed(call, dy.data(), x.data(), call.output<A>(0),
                              leading(call.in[1], contract), leading(call.out[0], contract),
                              trailing(call.in[1], contract));
}

/// Calls group(first row, rows, expert) for every group; fails on counts that do not fit. Returns
/// the number of rows through `used`.
template <typename Group>
Status forEachGroup(const Call &call, int64_t room, int64_t &used, Group group) {
  std::span<const int32_t> groups(call.input<int32_t>(1), size_t(call.in[1].elements()));
  if (Status s = checkCounts(call, groups, room, "groups"); !s)
    return s;
  used = 0;
  for (size_t e = 0; e < groups.size(); ++e) {
    if (Status s = group(used, int64_t(groups[e]), int64_t(e)); !s)
      return s;
    used += groups[e];
  }
  return {};
}

template <typename A, typename Products> Status groupedInputGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[2], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract"), room = call.in[0].shape[0], used = 0;
  int64_t inner = trailing(call.in[2], contract),
          outer = product(call.in[0].shape, 1, call.in[0].shape.size());
  Widened<A> dy(call.in[0]), w(call.in[2]);
  Rounded<A> out(call.out[0]);
  Status s = forEachGroup(call, room, used, [&](int64_t first, int64_t rows, int64_t e) {
    return Products::product(call, dy.data() + first * outer, w.data() + e * outer * inner,
                             out.data() + first * inner, rows, outer, inner);
  });
  if (s)
    std::fill_n(out.data() + used * inner, (room - used) * inner, A(0));
  return s;
}

template <typename A, typename Products> Status groupedWeightGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[2], &call.out[0]}); !s)
    return s;
  int64_t inner = product(call.in[2].shape, 1, call.in[2].shape.size()), used = 0;
  int64_t outer = product(call.in[0].shape, 1, call.in[0].shape.size());
  Widened<A> dy(call.in[0]), rows(call.in[2]);
  A *out = call.output<A>(0);
  return forEachGroup(call, call.in[0].shape[0], used, [&](int64_t first, int64_t n, int64_t e) {
    return Products::transposed(call, dy.data() + first * outer, rows.data() + first * inner,
                                out + e * outer * inner, n, outer, inner);
  });
}

} // namespace

namespace ref {

template <typename S> Status embedding_grad(const Call &call) {
  using A = Accumulator<S>;
  const TensorRef &ids = call.in[0];
  Widened<A> dy(call.in[1]);
  A *out = call.output<A>(0);
  int64_t rows = call.out[0].shape[0], width = call.out[0].shape[1];
  int64_t first = call.params.integer("row_offset");
  std::vector<double> sums(size_t(rows * width), 0.0);
  for (int64_t t = 0, n = ids.elements(); t < n; ++t) {
    int64_t id =
        ids.dtype == fb::DType::i64 ? call.input<int64_t>(0)[t] : call.input<int32_t>(0)[t];
    if (id < first || id < 0 || first < 0 || id - first >= rows)
      continue;
    for (int64_t d = 0; d < width; ++d)
      sums[size_t((id - first) * width + d)] += double(dy[t * width + d]);
  }
  std::transform(sums.begin(), sums.end(), out, [](double v) { return A(v); });
  return {};
}

template <typename S> Status linear_input_grad(const Call &call) {
  return linearInputGrad<Accumulator<S>, Plain>(call);
}

template <typename S> Status linear_weight_grad(const Call &call) {
  return linearWeightGrad<Accumulator<S>, Plain>(call);
}

template <typename S> Status grouped_input_grad(const Call &call) {
  return groupedInputGrad<Accumulator<S>, Plain>(call);
}

template <typename S> Status grouped_weight_grad(const Call &call) {
  return groupedWeightGrad<Accumulator<S>, Plain>(call);
}

template <typename S> Status head_weight_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]), x(call.in[1]);
  A *out = call.output<A>(0);
  const std::vector<int64_t> &shape = call.out[0].shape;
  int64_t heads = shape[0], n = shape[1], k = shape[2], tokens = leading(call.in[0], 2);
  std::vector<double> sums(size_t(heads * n * k), 0.0);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j)
          sums[size_t((h * n + i) * k + j)] +=
              double(dy[(t * heads + h) * n + i]) * double(x[(t * heads + h) * k + j]);
  std::transform(sums.begin(), sums.end(), out, [](double v) { return A(v); });
  return {};
}

template <typename S> Status sum_rows(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> x(call.in[0]);
  int64_t width = call.out[0].elements(),
          rows = call.in[0].elements() / std::max<int64_t>(width, 1);
  std::vector<double> sums(size_t(width), 0.0);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; ++i)
      sums[size_t(i)] += double(x[t * width + i]);
  std::transform(sums.begin(), sums.end(), call.output<A>(0), [](double v) { return A(v); });
  return {};
}

template <typename S> Status grouped_bias_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]);
  int64_t width = product(call.in[0].shape, 1, call.in[0].shape.size()), used = 0;
  std::vector<double> sums(static_cast<size_t>(width));
  return forEachGroup(call, call.in[0].shape[0], used, [&](int64_t first, int64_t n, int64_t e) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t i = 0; i < n * width; ++i)
      sums[size_t(i % width)] += double(dy[first * width + i]);
    std::transform(sums.begin(), sums.end(), call.output<A>(0) + e * width,
                   [](double v) { return A(v); });
    return Status();
  });
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(embedding_grad)
INSTANTIATE(linear_input_grad)
INSTANTIATE(linear_weight_grad)
INSTANTIATE(head_weight_grad)
INSTANTIATE(sum_rows)
INSTANTIATE(grouped_input_grad)
INSTANTIATE(grouped_weight_grad)
INSTANTIATE(grouped_bias_grad)

} // namespace ref

namespace fast {

template <typename S> Status linear_input_grad(const Call &call) {
  return linearInputGrad<float, Blas>(call);
}
template <typename S> Status linear_weight_grad(const Call &call) {
  return linearWeightGrad<float, Blas>(call);
}
template <typename S> Status grouped_input_grad(const Call &call) {
  return groupedInputGrad<float, Blas>(call);
}
template <typename S> Status grouped_weight_grad(const Call &call) {
  return groupedWeightGrad<float, Blas>(call);
}

#define INSTANTIATE_FAST(name)                                                                     \
  template Status name<float>(const Call &);                                                       \
  template Status name<Bf16>(const Call &);
INSTANTIATE_FAST(linear_input_grad)
INSTANTIATE_FAST(linear_weight_grad)
INSTANTIATE_FAST(grouped_input_grad)
INSTANTIATE_FAST(grouped_weight_grad)

} // namespace fast
} // namespace moira::rt::host
