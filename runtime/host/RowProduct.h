//===- RowProduct.h - products of rows by tiles -----------------*- C++ -*-===//
// What linear and grouped_matmul of RowProduct.cpp and FastProduct.cpp share.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_ROWPRODUCT_H
#define MOIRA_RT_HOST_ROWPRODUCT_H

#include "HostOps.h"

namespace moira::rt::host {

/// One product: out[m,n] = sum_k x[m,k] * w[n,k], all contiguous. Weights are read from memory once
/// and are never copied. Sums are those of RowTile.h, whatever m is.
template <typename S, typename O> struct RowProduct {
  const S *x, *w;
  O *out;
  int64_t m;
};

/// All products, which have one n and k, on this thread and its workers. S = float or Bf16, O =
/// float or S.
template <typename S, typename O>
void multiplyRows(std::span<const RowProduct<S, O>> products, int64_t n, int64_t k);

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_ROWPRODUCT_H
