//===- FastProduct.cpp - matrix products by oneDNN --------------------------===//
// linear and grouped_matmul in f32, and the number of threads that products may use. Called only
// where oneDNN is there (OneDnn.h). bf16 is in Bf16Product.cpp.
//===----------------------------------------------------------------------===//
#include "GroupedProduct.h"
#include "OneDnn.h"

#include <algorithm>

namespace moira::rt {

namespace {
thread_local int threadsOfProducts = 1;
}

int host::hostThreads() { return threadsOfProducts; }

void setHostThreads(int threads) {
  threadsOfProducts = std::max(threads, 1);
  if (const host::OneDnn *library = host::OneDnn::get(); library && library->setThreads)
    library->setThreads(threadsOfProducts);
}

namespace host {
namespace {

Status product(const Call &call, const float *x, const float *w, float *out, int64_t m, int64_t n,
               int64_t k) {
  if (m == 0 || n == 0)
    return {};
  if (k == 0) {
    std::fill_n(out, m * n, 0.0f);
    return {};
  }
  dnnl_status_t result = OneDnn::get()->sgemm('N', 'T', m, n, k, 1.0f, x, k, w, k, 0.0f, out, n);
  if (result == dnnl_success)
    return {};
  return Status(result == dnnl_out_of_memory ? ErrorId::OutOfMemory : ErrorId::Internal,
                format("call '%s': oneDNN refused a product of %lld x %lld x %lld (status %d); %s",
                       std::string(call.name).c_str(), (long long)m, (long long)n, (long long)k,
                       int(result),
                       result == dnnl_out_of_memory ? "free memory or use more ranks"
                                                    : "please report this"));
}

} // namespace

namespace fast {

template <> Status linear<float>(const Call &call) {
  if (Status s = checkLinear(call); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  return product(call, call.input<float>(0), call.input<float>(1), call.output<float>(0),
                 leading(call.in[0], contract), leading(call.in[1], contract),
                 trailing(call.in[0], contract));
}

template <> Status grouped_matmul<float>(const Call &call) {
  return groupedProduct<float>(call,
                               [&](const float *x, const float *w, float *out, int64_t m, int64_t n,
                                   int64_t k) { return product(call, x, w, out, m, n, k); });
}

} // namespace fast
} // namespace host
} // namespace moira::rt
