//===- FastProduct.cpp - linear and grouped_matmul in f32 -----------------===//
// Products of few rows, which are bound by reading weights, by tiles (RowProduct.h); others by
// oneDNN. Called only where oneDNN is there. bf16 is in RowProduct.cpp.
//===----------------------------------------------------------------------===//
#include "GroupedProduct.h"
#include "RowProduct.h"
#include "Sgemm.h"

namespace moira::rt::host {
namespace {

/// Most rows that meet weights faster by tiles than oneDNN copies the weights.
constexpr int64_t kFewRows = 8;

Sgemm weightProduct(const float *x, const float *w, float *out, int64_t m, int64_t n, int64_t k) {
  return {false, true, m, n, k, x, k, w, k, out, n};
}

} // namespace

template <> Status fast::linear<float>(const Call &call) {
  if (Status s = checkLinear(call); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  const float *x = call.input<float>(0), *w = call.input<float>(1);
  float *out = call.output<float>(0);
  int64_t m = leading(call.in[0], contract), n = leading(call.in[1], contract),
          k = trailing(call.in[0], contract);
  if (m > kFewRows)
    return sharedSgemm(call, weightProduct(x, w, out, m, n, k));
  RowProduct<float, float> product{x, w, out, m};
  multiplyRows<float, float>({&product, 1}, n, k);
  return {};
}

template <> Status fast::grouped_matmul<float>(const Call &call) {
  std::vector<RowProduct<float, float>> few;
  int64_t outer = 0, inner = 0;
  Status s = groupedProduct<float>(
      call, [&](const float *x, const float *w, float *out, int64_t m, int64_t n, int64_t k) {
        outer = n, inner = k;
        if (m > kFewRows)
          return sharedSgemm(call, weightProduct(x, w, out, m, n, k));
        if (m > 0)
          few.push_back({x, w, out, m});
        return Status();
      });
  if (s)
    multiplyRows<float, float>(few, outer, inner);
  return s;
}

} // namespace moira::rt::host
