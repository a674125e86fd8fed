//===- Dense.cpp - reference embedding, linear, positions, rope_table -------===//
// Plain loops; the contracts are in Calls.def.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace moira::rt::host {

template <typename S, typename O>
void refProduct(const S *x, const S *w, O *out, int64_t m, int64_t n, int64_t k) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c)
        sum += double(x[i * k + c]) * double(w[j * k + c]);
      out[i * n + j] = O(sum);
    }
}
template void refProduct(const float *, const float *, float *, int64_t, int64_t, int64_t);
template void refProduct(const double *, const double *, double *, int64_t, int64_t, int64_t);
template void refProduct(const Bf16 *, const Bf16 *, float *, int64_t, int64_t, int64_t);
template void refProduct(const Bf16 *, const Bf16 *, Bf16 *, int64_t, int64_t, int64_t);

Status checkLinear(const Call &call) {
  if (call.in[0].dtype != call.in[1].dtype)
    return badCall(call, "the operands are of two types");
  return checkTrailing(call, "contract", {&call.in[0], &call.in[1]});
}

Status eachLinear(const Call &call, Implementation linear) {
  if (call.in.size() != call.out.size() + 1)
    return badCall(call, format("%zu weights, %zu results", call.in.size() - 1, call.out.size()));
  for (size_t i = 0; i < call.out.size(); ++i) {
    const TensorRef operands[] = {call.in[0], call.in[i + 1]};
    if (Status s = linear({call.name, operands, call.out.subspan(i, 1), call.params, call.hooks});
        !s)
      return s;
  }
  return {};
}

namespace ref {

template <typename S> Status embedding(const Call &call) {
  const TensorRef &ids = call.in[0], &tableRef = call.in[1];
  const S *table = call.input<S>(1);
  int64_t vocabulary = tableRef.shape[0], width = tableRef.shape[1], n = ids.elements();
  int64_t first = call.params.integer("row_offset");
  return withEither<S>(call.out[0].dtype, [&]<typename O>(O) {
    O *out = call.output<O>(0);
    for (int64_t t = 0; t < n; ++t, out += width) {
      int64_t id =
          ids.dtype == fb::DType::i64 ? call.input<int64_t>(0)[t] : call.input<int32_t>(0)[t];
      // first >= 0 and id < 0 both belong to "not ours"; no subtraction that could overflow.
      if (id >= first && id - first < vocabulary && id >= 0 && first >= 0)
        std::copy_n(table + (id - first) * width, width, out);
      else
        std::fill_n(out, width, O(0));
    }
    return Status();
  });
}

template <typename S> Status lookup(const Call &call) {
  const TensorRef &ids = call.in[0], &table = call.in[1];
  int64_t rows = table.shape[0], width = table.shape[1], n = ids.elements();
  int32_t *out = call.output<int32_t>(0);
  for (int64_t t = 0; t < n; ++t) {
    int64_t id =
        ids.dtype == fb::DType::i64 ? call.input<int64_t>(0)[t] : call.input<int32_t>(0)[t];
    if (id >= 0 && id < rows)
      std::copy_n(call.input<int32_t>(1) + id * width, width, out + t * width);
    else
      std::fill_n(out + t * width, width, -1);
  }
  return {};
}

template <typename S> Status linear(const Call &call) {
  if (Status s = checkLinear(call); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  return withEither<S>(call.out[0].dtype, [&]<typename O>(O) {
    refProduct(call.input<S>(0), call.input<S>(1), call.output<O>(0), leading(call.in[0], contract),
               leading(call.in[1], contract), trailing(call.in[0], contract));
    return Status();
  });
}

template <typename S> Status linears(const Call &call) { return eachLinear(call, linear<S>); }

template <typename S> Status positions(const Call &call) {
  int32_t *out = call.output<int32_t>(0);
  int64_t n = call.out[0].elements(), start = call.params.integer("start");
  if (start < 0 || start > INT32_MAX - n)
    return badCall(call, format("start is %lld", (long long)start));
  for (int64_t i = 0; i < n; ++i)
    out[i] = int32_t(start + i);
  return {};
}

/// As the published models round it: angles in the type of the table, so in float for f32.
template <typename T> Status rope_table(const Call &call) {
  using S = Accumulator<T>;
  const int32_t *pos = call.input<int32_t>(0);
  S *cosines = call.output<S>(0), *sines = call.output<S>(1);
  int64_t n = call.in[0].elements(), r = call.out[0].shape[1];
  std::span<const double> frequencies = call.params.list("frequencies");
  if (int64_t(frequencies.size()) != r)
    return badCall(call,
                   format("%zu frequencies for %lld columns", frequencies.size(), (long long)r));
  S factor = S(call.params.real("factor", 1));
  for (int64_t i = 0; i < r; ++i) {
    S frequency = S(frequencies[size_t(i)]);
    for (int64_t p = 0; p < n; ++p) {
      S angle = S(pos[p]) * frequency;
      cosines[p * r + i] = std::cos(angle) * factor;
      sines[p * r + i] = std::sin(angle) * factor;
    }
  }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(embedding)
INSTANTIATE(lookup)
INSTANTIATE(linear)
INSTANTIATE(linears)
INSTANTIATE(positions)
INSTANTIATE(rope_table)

} // namespace ref
} // namespace moira::rt::host
