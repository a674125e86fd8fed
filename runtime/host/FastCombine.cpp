//===- FastCombine.cpp - weighted sum of expert rows in f32 -----------------===//
// As the reference, but sums in float in place, so that the inner loop vectorises and touches each
// row once.
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>

namespace moira::rt::host {

Status fast::combine(const Call &call) {
  const float *rows = call.input<float>(0), *weights = call.input<float>(2);
  const int32_t *pos = call.input<int32_t>(1);
  float *__restrict out = call.output<float>(0);
  int64_t k = trailing(call.in[1], 1), tokens = leading(call.in[1], 1);
  int64_t width = trailing(call.in[0], 1), available = leading(call.in[0], 1);
  for (int64_t t = 0; t < tokens; ++t, out += width) {
    std::fill_n(out, width, 0.0f);
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      if (Status s = checkRow(call, t, pos[j], available); !s)
        return s;
      if (pos[j] < 0)
        continue;
      const float *__restrict row = rows + pos[j] * width;
      for (int64_t d = 0; d < width; ++d)
        out[d] += weights[j] * row[d];
    }
  }
  return {};
}

} // namespace moira::rt::host
