//===- FastProduct.cpp - matrix products by oneDNN --------------------------===//
// linear and grouped_matmul in f32, and the number of threads that oneDNN may use. Called only
// where oneDNN is there (OneDnn.h).
//===----------------------------------------------------------------------===//
#include "GroupedProduct.h"
#include "OneDnn.h"

#include <algorithm>

namespace moira::rt {

void setHostThreads(int threads) {
  if (const host::OneDnn *library = host::OneDnn::get(); library && library->setThreads)
    library->setThreads(std::max(threads, 1));
}

namespace host {

Status fastProduct(const Call &call, const float *x, const float *w, float *out, int64_t m,
                   int64_t n, int64_t k) {
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

namespace fast {

Status linear(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[0], &call.in[1]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  return fastProduct(call, call.input<float>(0), call.input<float>(1), call.output<float>(0),
                     leading(call.in[0], contract), leading(call.in[1], contract),
                     trailing(call.in[0], contract));
}

Status grouped_matmul(const Call &call) {
  return groupedProduct<float>(call,
                               [&](const float *x, const float *w, float *out, int64_t m, int64_t n,
                                   int64_t k) { return fastProduct(call, x, w, out, m, n, k); });
}

} // namespace fast
} // namespace host
} // namespace moira::rt
