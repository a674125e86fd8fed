//===- GroupedGlu.cpp - grouped_glu ------------------------------------------===//
// The composition that the call is defined by: rows gathered, grouped_matmul's products, glu of
// them before they are rounded.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// The groups' rows one after the other, of type S.
template <typename S> Status gatherRows(const Call &call, int64_t width, std::vector<S> &rows) {
  const S *x = call.input<S>(0);
  const int64_t room = call.out[0].shape[0];
  std::span<const int32_t> groups(call.input<int32_t>(1), size_t(call.in[1].elements()));
  if (Status s = checkCounts(call, groups, room, "groups"); !s)
    return s;
  int64_t count = 0;
  for (int32_t size : groups)
    count += size;
  const int32_t *tokens = call.in.size() > 3 ? call.input<int32_t>(3) : nullptr;
  const int64_t available = width ? call.in[0].elements() / width : room;
  rows.reserve(size_t(count * width));
  for (int64_t row = 0; row < count; ++row) {
    const int64_t from = tokens ? tokens[row] : row;
    if (from < 0 || from >= available)
      return badCall(call, format("row %lld is token %lld of %lld", (long long)row, (long long)from,
                                  (long long)available));
    rows.insert(rows.end(), x + from * width, x + (from + 1) * width);
  }
  return {};
}

template <typename A> fb::DType dtypeOf() {
  return std::is_same_v<A, double> ? fb::DType::f64 : fb::DType::f32;
}

} // namespace

template <typename S> Status grouped_glu(const Call &call) {
  using A = Accumulator<S>;
  if (Status s = checkTrailing(call, "contract", {&call.in[0], &call.in[2]}); !s)
    return s;
  const int64_t inner = trailing(call.in[0], call.params.integer("contract")),
                room = call.out[0].shape[0],
                outer = trailing(call.out[0], int64_t(call.out[0].shape.size()) - 1);
  std::vector<S> rows;
  if (Status s = gatherRows(call, inner, rows); !s)
    return s;
  S *out = call.output<S>(0);
  const S *x = rows.data(), *w = call.input<S>(2);
  std::vector<A> product, result;
  int64_t left = room;
  for (int64_t g = 0; g < call.in[1].elements(); ++g) {
    const int64_t size = call.input<int32_t>(1)[g];
    product.resize(size_t(size * 2 * outer));
    result.resize(size_t(size * outer));
    refProduct(x, w, product.data(), size, 2 * outer, inner);
    const TensorRef pairs{product.data(), dtypeOf<A>(), {size, 2, outer}},
        made{result.data(), dtypeOf<A>(), {size, outer}};
    if (Status s = glu<A>({call.name, {&pairs, 1}, {&made, 1}, call.params, nullptr}); !s)
      return s;
    out = std::transform(result.begin(), result.end(), out, [](A v) { return S(v); });
    x += size * inner;
    w += 2 * outer * inner;
    left -= size;
  }
  std::fill_n(out, left * outer, S(0));
  return {};
}

template Status grouped_glu<float>(const Call &);
template Status grouped_glu<double>(const Call &);
template Status grouped_glu<Bf16>(const Call &);

} // namespace moira::rt::host::ref
