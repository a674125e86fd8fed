//===- Softmax.cpp - the pieces of a softmax over a row of floats -----------===//
// See Softmax.h.
//===----------------------------------------------------------------------===//
#include "Softmax.h"
#include "Vectors.h"

#include <algorithm>

namespace moira::rt::host {

MOIRA_VECTORS float largestOf(const float *x, int64_t n, float before) {
  float lanes[16];
  std::fill_n(lanes, 16, before);
  int64_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (int64_t l = 0; l < 16; ++l)
      lanes[l] = lanes[l] < x[j + l] ? x[j + l] : lanes[l];
  for (; j < n; ++j)
    lanes[0] = lanes[0] < x[j] ? x[j] : lanes[0];
  return *std::max_element(lanes, lanes + 16);
}

MOIRA_VECTORS float exponentials(float *x, int64_t n, float top) {
  float lanes[16] = {}, sum = 0;
  int64_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (int64_t l = 0; l < 16; ++l)
      lanes[l] += x[j + l] = expNegative(x[j + l] - top);
  for (; j < n; ++j)
    lanes[0] += x[j] = expNegative(x[j] - top);
  for (float lane : lanes)
    sum += lane;
  return sum;
}

} // namespace moira::rt::host
