//===- GradProducts.cpp - gradients of dense and grouped products ---------===//
// embedding_grad, linear_input_grad, linear_weight_grad, head_weight_grad, sum_rows,
// grouped_input_grad, grouped_weight_grad, grouped_bias_grad. The products are plain loops that sum
// in double, or oneDNN's in the fast flavor. Where sums over tokens are made sample by sample,
// products of rows are such as do not depend on the number of rows, which oneDNN's may.
//===----------------------------------------------------------------------===//
#include "RowProduct.h"
#include "SampleTree.h"
#include "Sgemm.h"
#include "Widened.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <vector>

namespace moira::rt::host {
namespace {

/// Both products of a backward pass, on row-major matrices.
struct Plain {
  /// out[m,k] = a[m,n] · b[n,k]; a row's sums do not depend on m if `bySample`.
  template <typename A>
  static Status product(const Call &, bool, const A *a, const A *b, A *out, int64_t m, int64_t n,
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
  /// The same of some columns of a and b, whose rows are n and k apart: out[rows,columns].
  template <typename A>
  static Status transposedBlock(const Call &, const A *a, int64_t n, const A *b, int64_t k, A *out,
                                int64_t m, int64_t rows, int64_t columns) {
    std::vector<double> row(static_cast<size_t>(columns));
    for (int64_t j = 0; j < rows; ++j) {
      std::fill(row.begin(), row.end(), 0.0);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t c = 0; c < columns; ++c)
          row[size_t(c)] += double(a[i * n + j]) * double(b[i * k + c]);
      std::transform(row.begin(), row.end(), out + j * columns, [](double v) { return A(v); });
    }
    return {};
  }
};

struct Blas {
  static Status product(const Call &call, bool bySample, const float *a, const float *b, float *out,
                        int64_t m, int64_t n, int64_t k) {
    if (!bySample)
      return run(call, false, m, k, n, a, n, b, k, out);
    if (m > 0)
      multiplyTransposed(a, b, out, m, n, k);
    return {};
  }
  static Status transposed(const Call &call, const float *a, const float *b, float *out, int64_t m,
                           int64_t n, int64_t k) {
    return run(call, true, n, k, m, a, n, b, k, out);
  }
  static Status transposedBlock(const Call &call, const float *a, int64_t n, const float *b,
                                int64_t k, float *out, int64_t m, int64_t rows, int64_t columns) {
    return sgemm(call, {true, false, rows, columns, m, a, n, b, k, out, columns});
  }

private:
  /// out[rows,columns] = a' · b, summed over `inner`.
  static Status run(const Call &call, bool transpose, int64_t rows, int64_t columns, int64_t inner,
                    const float *a, int64_t lda, const float *b, int64_t ldb, float *out) {
    return sharedSgemm(call,
                       {transpose, false, rows, columns, inner, a, lda, b, ldb, out, columns});
  }
};

/// Some rows, one after the other.
struct RowRange {
  int64_t first, count;
};

/// out[g] = a[m,n]ᵀ · b[m,k] over the rows of group g, added up sample by sample: ranges[g *
/// samples
/// + s] are those of sample s. In blocks of the results, so that a sum's terms are small.
template <typename Products, typename A>
Status transposedBySample(const Call &call, std::span<const RowRange> ranges, int64_t samples,
                          const A *a, const A *b, A *out, int64_t n, int64_t k) {
  constexpr int64_t block = 256;
  int64_t rowBlocks = (n + block - 1) / block, blocks = rowBlocks * ((k + block - 1) / block);
  return parallelTry(int64_t(ranges.size()) / samples * blocks, [&](int64_t task) {
    const RowRange *of = ranges.data() + task / blocks * samples;
    int64_t i = task % blocks % rowBlocks * block, j = task % blocks / rowBlocks * block;
    int64_t rows = std::min(block, n - i), columns = std::min(block, k - j);
    std::vector<A> sums(size_t(rows * columns));
    Status status = sumSamples(
        samples, sums.data(), rows * columns, [&](int64_t s) { return of[s].count > 0; },
        [&](int64_t s, A *into) {
          return Products::transposedBlock(call, a + of[s].first * n + i, n,
                                           b + of[s].first * k + j, k, into, of[s].count, rows,
                                           columns);
        });
    A *target = out + (task / blocks * n + i) * k + j;
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(sums.data() + r * columns, columns, target + r * k);
    return status;
  });
}

/// `rows` rows that are as many for every sample.
std::vector<RowRange> evenRanges(int64_t rows, int64_t samples) {
  std::vector<RowRange> ranges;
  for (int64_t s = 0; s < samples; ++s)
    ranges.push_back({rows * s / samples, rows * (s + 1) / samples - rows * s / samples});
  return ranges;
}

template <typename A, typename Products> Status linearInputGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  Widened<A> dy(call.in[0]), w(call.in[1]);
  Rounded<A> out(call.out[0]);
  return Products::product(call, call.params.integer("per_sample") != 0, dy.data(), w.data(),
                           out.data(), leading(call.out[0], contract),
                           leading(call.in[1], contract), trailing(call.in[1], contract));
}

template <typename A, typename Products> Status linearWeightGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  Widened<A> dy(call.in[0]), x(call.in[1]);
  int64_t rows = leading(call.in[1], contract), n = leading(call.out[0], contract),
          k = trailing(call.in[1], contract), samples = samplesOf(call, call.in[1]);
  Rounded<A> out(call.out[0]);
  if (call.params.integer("per_sample") == 0)
    return Products::transposed(call, dy.data(), x.data(), out.data(), rows, n, k);
  return transposedBySample<Products>(call, evenRanges(rows, samples), samples, dy.data(), x.data(),
                                      out.data(), n, k);
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

/// The rows of every group of input 1 by sample, of which input `counts` [samples, groups] says how
/// many each has.
Status sampleRanges(const Call &call, size_t counts, int64_t room, std::vector<RowRange> &ranges) {
  int64_t samples = call.in[counts].shape[0], groups = call.in[1].elements(), used = 0;
  const int32_t *of = call.input<int32_t>(counts);
  return forEachGroup(call, room, used, [&](int64_t first, int64_t rows, int64_t e) {
    // While rows do not fit (and the step will be repeated), there are fewer than samples sent.
    int64_t end = first + rows;
    for (int64_t s = 0; s < samples; ++s) {
      int64_t count = std::clamp<int64_t>(of[s * groups + e], 0, end - first);
      ranges.push_back({first, count});
      first += count;
    }
    return Status();
  });
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
    return Products::product(call, call.params.integer("per_sample") != 0,
                             dy.data() + first * outer, w.data() + e * outer * inner,
                             out.data() + first * inner, rows, outer, inner);
  });
  if (s)
    std::fill_n(out.data() + used * inner, (room - used) * inner, A(0));
  return s;
}

template <typename A, typename Products> Status groupedWeightGrad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[2], &call.out[0]}); !s)
    return s;
  const int64_t inner = product(call.in[2].shape, 1, call.in[2].shape.size()),
                outer = product(call.in[0].shape, 1, call.in[0].shape.size()),
                room = call.in[0].shape[0];
  Widened<A> dy(call.in[0]), rows(call.in[2]);
  if (call.in.size() > 3) { // counts of samples
    std::vector<RowRange> ranges;
    if (Status s = sampleRanges(call, 3, room, ranges); !s)
      return s;
    Rounded<A> out(call.out[0]);
    return transposedBySample<Products>(call, ranges, call.in[3].shape[0], dy.data(), rows.data(),
                                        out.data(), outer, inner);
  }
  int64_t used = 0;
  return forEachGroup(call, room, used, [&](int64_t first, int64_t n, int64_t e) {
    Rounded<A> out(call.out[0], e * outer * inner, outer * inner);
    return Products::transposed(call, dy.data() + first * outer, rows.data() + first * inner,
                                out.data(), n, outer, inner);
  });
}

/// sums[width] = the sum of `rows` rows.
template <typename A> void addRows(const A *x, int64_t rows, int64_t width, A *sums) {
  std::vector<double> total(size_t(width), 0.0);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; ++i)
      total[size_t(i)] += double(x[t * width + i]);
  std::transform(total.begin(), total.end(), sums, [](double v) { return A(v); });
}

} // namespace

namespace ref {

template <typename S> Status embedding_grad(const Call &call) {
  using A = Accumulator<S>;
  const TensorRef &ids = call.in[0];
  Widened<A> dy(call.in[1]);
  A *out = call.output<A>(0);
  int64_t rows = call.out[0].shape[0], width = call.out[0].shape[1];
  int64_t first = call.params.integer("row_offset"), pad = call.params.integer("pad", -1);
  int64_t samples = samplesOf(call, ids), tokens = ids.elements(), each = tokens / samples;
  // By row, then by token.
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t t = 0; t < tokens; ++t) {
    int64_t id =
        ids.dtype == fb::DType::i64 ? call.input<int64_t>(0)[t] : call.input<int32_t>(0)[t];
    if (id >= first && id >= 0 && first >= 0 && id - first < rows && id != pad)
      found.push_back({id - first, t});
  }
  std::sort(found.begin(), found.end());
  std::fill_n(out, rows * width, A(0));
  std::vector<double> sums(static_cast<size_t>(width));
  for (auto at = found.begin(); at != found.end();) {
    int64_t row = at->first;
    auto end = std::find_if(at, found.end(), [&](auto &other) { return other.first != row; });
    auto isMine = [&](int64_t s) { return at != end && at->second / each == s; };
    // Samples are asked in their order, so that `at` is at the first token that is not added yet.
    Status status = sumSamples(samples, out + row * width, width, isMine, [&](int64_t s, A *into) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (; isMine(s); ++at)
        for (int64_t d = 0; d < width; ++d)
          sums[size_t(d)] += double(dy[at->second * width + d]);
      std::transform(sums.begin(), sums.end(), into, [](double v) { return A(v); });
      return Status();
    });
    if (!status)
      return status;
  }
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
  int64_t samples = samplesOf(call, call.in[0]), each = tokens / samples;
  std::vector<double> sums(static_cast<size_t>(heads * n * k));
  return sumSamples(samples, out, heads * n * k, [&](int64_t s, A *into) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t t = s * each; t < (s + 1) * each; ++t)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < k; ++j)
            sums[size_t((h * n + i) * k + j)] +=
                double(dy[(t * heads + h) * n + i]) * double(x[(t * heads + h) * k + j]);
    std::transform(sums.begin(), sums.end(), into, [](double v) { return A(v); });
    return Status();
  });
}

template <typename S> Status sum_rows(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> x(call.in[0]);
  int64_t width = call.out[0].elements(),
          rows = call.in[0].elements() / std::max<int64_t>(width, 1);
  int64_t samples = samplesOf(call, call.in[0]), each = rows / samples;
  return sumSamples(samples, call.output<A>(0), width, [&](int64_t s, A *into) {
    addRows(x.data() + s * each * width, each, width, into);
    return Status();
  });
}

template <typename S> Status grouped_bias_grad(const Call &call) {
  using A = Accumulator<S>;
  Widened<A> dy(call.in[0]);
  int64_t width = product(call.in[0].shape, 1, call.in[0].shape.size()), used = 0,
          room = call.in[0].shape[0];
  A *out = call.output<A>(0);
  if (call.in.size() > 2) {
    std::vector<RowRange> ranges;
    if (Status s = sampleRanges(call, 2, room, ranges); !s)
      return s;
    int64_t samples = call.in[2].shape[0];
    for (int64_t e = 0; e < call.in[1].elements(); ++e) {
      const RowRange *of = ranges.data() + e * samples;
      Status status = sumSamples(
          samples, out + e * width, width, [&](int64_t s) { return of[s].count > 0; },
          [&](int64_t s, A *into) {
            addRows(dy.data() + of[s].first * width, of[s].count, width, into);
            return Status();
          });
      if (!status)
        return status;
    }
    return {};
  }
  return forEachGroup(call, room, used, [&](int64_t first, int64_t n, int64_t e) {
    addRows(dy.data() + first * width, n, width, out + e * width);
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
