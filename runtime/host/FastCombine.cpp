//===- FastCombine.cpp - weighted sum of expert rows ------------------------===//
// As the reference, but sums in float, in vectors and with tokens shared out among threads.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "Vectors.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <vector>

namespace moira::rt::host {
namespace {

/// Tokens of a task.
constexpr int64_t kTaskTokens = 16;

MOIRA_VECTORS void addTimes(float *__restrict sum, float weight, const float *__restrict row,
                            int64_t width) {
  for (int64_t d = 0; d < width; ++d)
    sum[d] += weight * row[d];
}
MOIRA_VECTORS void addTimes(float *__restrict sum, float weight, const Bf16 *__restrict row,
                            int64_t width) {
  for (int64_t d = 0; d < width; ++d)
    sum[d] += weight * float(row[d]);
}

} // namespace

template <typename S> Status fast::combine(const Call &call) {
  const S *rows = call.input<S>(0);
  const float *weights = call.input<float>(2);
  const int32_t *pos = call.input<int32_t>(1);
  int64_t k = trailing(call.in[1], 1), tokens = leading(call.in[1], 1);
  int64_t width = trailing(call.in[0], 1), available = leading(call.in[0], 1);
  bool inPlace = call.out[0].dtype == fb::DType::f32;
  return parallelTry((tokens + kTaskTokens - 1) / kTaskTokens, [&](int64_t task) {
    std::vector<float> row32(inPlace ? 0 : size_t(width));
    for (int64_t t = task * kTaskTokens, end = std::min(tokens, t + kTaskTokens); t < end; ++t) {
      float *sum = inPlace ? call.output<float>(0) + t * width : row32.data();
      std::fill_n(sum, width, 0.0f);
      for (int64_t j = t * k; j < (t + 1) * k; ++j) {
        if (Status s = checkRow(call, t, pos[j], available); !s)
          return s;
        if (pos[j] >= 0)
          addTimes(sum, weights[j], rows + pos[j] * width, width);
      }
      if (!inPlace)
        std::transform(row32.begin(), row32.end(), call.output<Bf16>(0) + t * width,
                       [](float v) { return Bf16(v); });
    }
    return Status();
  });
}
template Status fast::combine<float>(const Call &);
template Status fast::combine<Bf16>(const Call &);

} // namespace moira::rt::host
