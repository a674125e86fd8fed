//===- GroupedGlu.cpp - grouped_glu and grouped_glu_grad ---------------------===//
// The compositions that the calls are defined by: rows gathered, grouped products, glu of them
// before they are rounded, and its gradient likewise.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// The groups' rows one after the other, of type S; `tokens` may be null.
template <typename S>
Status gatherRows(const Call &call, int64_t width, const int32_t *tokens, std::vector<S> &rows) {
  const S *x = call.input<S>(0);
  const int64_t room = call.out[0].shape[0];
  std::span<const int32_t> groups(call.input<int32_t>(1), size_t(call.in[1].elements()));
  if (Status s = checkCounts(call, groups, room, "groups"); !s)
    return s;
  int64_t count = 0;
  for (int32_t size : groups)
    count += size;
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
  const int32_t *tokens = call.in.size() > 3 ? call.input<int32_t>(3) : nullptr;
  std::vector<S> rows;
  if (Status s = gatherRows(call, inner, tokens, rows); !s)
    return s;
  S *out = call.output<S>(0), *z = call.out.size() > 1 ? call.output<S>(1) : nullptr;
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
    if (z)
      z = std::transform(product.begin(), product.end(), z, [](A v) { return S(v); });
    x += size * inner;
    w += 2 * outer * inner;
    left -= size;
  }
  std::fill_n(out, left * outer, S(0));
  if (z)
    std::fill_n(z, left * 2 * outer, S(0));
  return {};
}

template <typename S> Status grouped_glu_grad(const Call &call) {
  using A = Accumulator<S>;
  const int64_t depth = trailing(call.in[0], 1), width = trailing(call.in[3], 1),
                room = call.in[3].shape[0], choices = call.in[4].elements();
  std::vector<S> rows;
  if (Status s = gatherRows(call, depth, nullptr, rows); !s)
    return s;
  const int32_t *pos = call.input<int32_t>(4);
  const A *weights = call.input<A>(5);
  A *dots = call.output<A>(2);
  std::vector<int64_t> choiceOf(size_t(room), -1);
  for (int64_t i = 0; i < choices; ++i) {
    if (pos[i] < -1 || pos[i] >= room)
      return badCall(call, format("choice %lld has row %d of %lld", (long long)i, int(pos[i]),
                                  (long long)room));
    dots[i] = 0;
    if (pos[i] >= 0)
      choiceOf[size_t(pos[i])] = i;
  }
  S *dz = call.output<S>(0), *act = call.output<S>(1);
  std::fill_n(dz, room * 2 * width, S(0));
  std::fill_n(act, room * width, S(0));
  int64_t row = 0;
  std::vector<A> turned(size_t(width * depth)), dh, pairs, slopes, values;
  for (int64_t g = 0; g < call.in[1].elements(); ++g) {
    const int64_t size = call.input<int32_t>(1)[g];
    const S *w = call.input<S>(2) + g * depth * width, *z = call.input<S>(3) + row * 2 * width;
    for (int64_t d = 0; d < depth; ++d)
      for (int64_t f = 0; f < width; ++f)
        turned[size_t(f * depth + d)] = A(w[d * width + f]);
    const std::vector<A> dy(rows.begin() + row * depth, rows.begin() + (row + size) * depth);
    pairs.assign(z, z + size * 2 * width);
    dh.resize(size_t(size * width));
    values.resize(dh.size());
    slopes.resize(pairs.size());
    refProduct(dy.data(), turned.data(), dh.data(), size, width, depth);
    const TensorRef inputs[] = {{dh.data(), dtypeOf<A>(), {size, width}},
                                {pairs.data(), dtypeOf<A>(), {size, 2, width}}},
                    gradient{slopes.data(), dtypeOf<A>(), {size, 2, width}},
                    value{values.data(), dtypeOf<A>(), {size, width}};
    if (Status s = glu<A>({call.name, {&inputs[1], 1}, {&value, 1}, call.params, nullptr}); !s)
      return s;
    if (Status s = glu_grad<A>({call.name, inputs, {&gradient, 1}, call.params, nullptr}); !s)
      return s;
    for (int64_t i = 0; i < size; ++i, ++row) {
      const int64_t choice = choiceOf[size_t(row)];
      const A weight = choice < 0 ? A(0) : weights[choice];
      double dot = 0;
      for (int64_t f = 0; f < width; ++f) {
        dot += double(dh[size_t(i * width + f)]) * double(values[size_t(i * width + f)]);
        act[row * width + f] = S(weight * values[size_t(i * width + f)]);
      }
      for (int64_t f = 0; f < 2 * width; ++f)
        dz[row * 2 * width + f] = S(weight * slopes[size_t(i * 2 * width + f)]);
      if (choice >= 0)
        dots[choice] = A(dot);
    }
  }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(grouped_glu)
INSTANTIATE(grouped_glu_grad)

} // namespace moira::rt::host::ref
