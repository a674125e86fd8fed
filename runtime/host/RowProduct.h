//===- RowProduct.h - products of rows with weights -------------*- C++ -*-===//
// What RowProduct.cpp has for calls beside linear and grouped_matmul.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_ROWPRODUCT_H
#define MOIRA_RT_HOST_ROWPRODUCT_H

#include <cstdint>

namespace moira::rt::host {

/// out[m,k] = x[m,n] · w[n,k], row-major, shared out among threads. A row's sums are the same
/// whatever m is. Copies w.
void multiplyTransposed(const float *x, const float *w, float *out, int64_t m, int64_t n,
                        int64_t k);

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_ROWPRODUCT_H
