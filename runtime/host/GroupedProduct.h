//===- GroupedProduct.h - grouped_matmul over any product -------*- C++ -*-===//
// The part of grouped_matmul that both flavors share: sizes, checks, the walk over groups, zero
// rows past the last one.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_GROUPEDPRODUCT_H
#define MOIRA_RT_HOST_GROUPEDPRODUCT_H

#include "HostOps.h"

#include <algorithm>

namespace moira::rt::host {

/// Calls multiply(x, w, out, m, n, k) -> Status for every group; empty groups have m = 0.
template <typename S, typename Multiply>
Status groupedProduct(const Call &call, Multiply multiply) {
  if (Status s = checkTrailing(call, "contract", {&call.in[0], &call.in[2]}); !s)
    return s;
  int64_t room = call.in[0].shape[0];
  int64_t inner = trailing(call.in[0], call.params.integer("contract"));
  int64_t outer = trailing(call.out[0], int64_t(call.out[0].shape.size()) - 1);
  std::span<const int32_t> groups(call.input<int32_t>(1), size_t(call.in[1].elements()));
  if (Status s = checkCounts(call, groups, room, "groups"); !s)
    return s;
  const S *rows = call.input<S>(0), *w = call.input<S>(2);
  S *out = call.output<S>(0);
  for (int32_t size : groups) {
    if (Status s = multiply(rows, w, out, int64_t(size), outer, inner); !s)
      return s;
    rows += size * inner;
    out += size * outer;
    w += outer * inner;
    room -= size;
  }
  std::fill_n(out, room * outer, S(0));
  return {};
}

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_GROUPEDPRODUCT_H
