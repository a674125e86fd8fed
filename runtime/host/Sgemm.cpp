//===- Sgemm.cpp - f32 products of matrices by oneDNN -----------------------===//
// See Sgemm.h.
//===----------------------------------------------------------------------===//
#include "Sgemm.h"
#include "OneDnn.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <csignal>
#include <pthread.h>

namespace moira::rt::host {
namespace {

/// Pieces of c that are worth a thread's while and oneDNN's copies of their operands.
constexpr int64_t kPieceRows = 512, kPieceColumns = 256;
/// Multiplications below which a product is one piece.
constexpr int64_t kWholeWork = 1 << 20;

/// No signal reaches this thread while it lives. oneDNN's f32 kernels let the stack pointer point
/// to memory of their own (jit_avx512_common_gemm_f32.cpp and jit_avx_gemm_f32.cpp: `mov rsp, ws`),
/// and what the system writes for a signal's handler, below it, would then land in somebody else's.
/// Faults stay deliverable: they end the process.
class SignalsHeld {
public:
  SignalsHeld() {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS})
      sigdelset(&all, fault);
    pthread_sigmask(SIG_BLOCK, &all, &before);
  }
  ~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
  SignalsHeld(const SignalsHeld &) = delete;
  SignalsHeld &operator=(const SignalsHeld &) = delete;

private:
  sigset_t before;
};

/// OpenMP has one thread here while it lives: sharing out is parallelTry's, and bits must not
/// depend on it. The setting is also that of whoever else uses OpenMP on this thread, who gets it
/// back.
class OneThread {
public:
  explicit OneThread(const OneDnn &given) : library(given) {
    if (!library.threads || !library.setThreads)
      return;
    before = library.threads();
    if (before != 1)
      library.setThreads(1);
  }
  ~OneThread() {
    if (before != 1)
      library.setThreads(before);
  }
  OneThread(const OneThread &) = delete;
  OneThread &operator=(const OneThread &) = delete;

private:
  const OneDnn &library;
  int before = 1;
};

dnnl_status_t run(const OneDnn &library, const Sgemm &p) {
  OneThread alone(library);
  SignalsHeld held;
  return library.sgemm(p.transposeA ? 'T' : 'N', p.transposeB ? 'T' : 'N', p.m, p.n, p.k, p.alpha,
                       p.a, p.lda, p.b, p.ldb, p.beta, p.c, p.ldc);
}

} // namespace

Status sgemm(const Call &call, const Sgemm &p) {
  if (p.m == 0 || p.n == 0)
    return {};
  if (p.k == 0) {
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j)
        p.c[i * p.ldc + j] = p.beta == 0 ? 0 : p.beta * p.c[i * p.ldc + j];
    return {};
  }
  dnnl_status_t result = run(*OneDnn::get(), p);
  if (result == dnnl_success)
    return {};
  return Status(result == dnnl_out_of_memory ? ErrorId::OutOfMemory : ErrorId::Internal,
                format("call '%s': oneDNN refused a product of %lld x %lld x %lld (status %d); %s",
                       std::string(call.name).c_str(), (long long)p.m, (long long)p.n,
                       (long long)p.k, int(result),
                       result == dnnl_out_of_memory ? "free memory or use more ranks"
                                                    : "please report this"));
}

Status sharedSgemm(const Call &call, const Sgemm &p) {
  if (p.m * p.n * p.k < kWholeWork)
    return sgemm(call, p);
  int64_t columns = (p.n + kPieceColumns - 1) / kPieceColumns,
          rows = (p.m + kPieceRows - 1) / kPieceRows;
  return parallelTry(rows * columns, [&](int64_t piece) {
    int64_t i = piece % rows * kPieceRows, j = piece / rows * kPieceColumns;
    Sgemm part = p;
    part.m = std::min(kPieceRows, p.m - i);
    part.n = std::min(kPieceColumns, p.n - j);
    part.a += p.transposeA ? i : i * p.lda;
    part.b += p.transposeB ? j * p.ldb : j;
    part.c += i * p.ldc + j;
    return sgemm(call, part);
  });
}

} // namespace moira::rt::host
