//===- FastCombine.cpp - weighted sum of expert rows ------------------------===//
// As the reference, but sums in float, so that the inner loop vectorises and touches each row once.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <vector>

namespace moira::rt::host {

template <typename S> Status fast::combine(const Call &call) {
  const S *rows = call.input<S>(0);
  const float *weights = call.input<float>(2);
  const int32_t *pos = call.input<int32_t>(1);
  int64_t k = trailing(call.in[1], 1), tokens = leading(call.in[1], 1);
  int64_t width = trailing(call.in[0], 1), available = leading(call.in[0], 1);
  bool inPlace = call.out[0].dtype == fb::DType::f32;
  std::vector<float> row32(inPlace ? 0 : size_t(width));
  for (int64_t t = 0; t < tokens; ++t) {
    float *__restrict sum = inPlace ? call.output<float>(0) + t * width : row32.data();
    std::fill_n(sum, width, 0.0f);
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      if (Status s = checkRow(call, t, pos[j], available); !s)
        return s;
      if (pos[j] < 0)
        continue;
      const S *__restrict row = rows + pos[j] * width;
      for (int64_t d = 0; d < width; ++d)
        sum[d] += weights[j] * row[d];
    }
    if (!inPlace)
      std::transform(row32.begin(), row32.end(), call.output<Bf16>(0) + t * width,
                     [](float v) { return Bf16(v); });
  }
  return {};
}
template Status fast::combine<float>(const Call &);
template Status fast::combine<Bf16>(const Call &);

} // namespace moira::rt::host
