//===- Sgemm.h - f32 products of matrices by oneDNN -------------*- C++ -*-===//
// The one way to oneDNN's product. It always runs on one thread: products are shared out here (or
// by the caller), in pieces that do not depend on the number of threads, so that no bit does.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_SGEMM_H
#define MOIRA_RT_HOST_SGEMM_H

#include "HostOps.h"

namespace moira::rt::host {

/// c[m,n] = alpha · a·b + beta · c, row-major: a is [m,k], or [k,m] where transposeA; b is [k,n],
/// or [n,k] where transposeB; ld* is the distance between rows.
struct Sgemm {
  bool transposeA, transposeB;
  int64_t m, n, k;
  const float *a;
  int64_t lda;
  const float *b;
  int64_t ldb;
  float *c;
  int64_t ldc;
  float alpha = 1, beta = 0;
};

/// On the calling thread. Any of m, n and k may be 0. Where oneDNN is there.
Status sgemm(const Call &call, const Sgemm &product);

/// On the calling thread and its workers.
Status sharedSgemm(const Call &call, const Sgemm &product);

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_SGEMM_H
