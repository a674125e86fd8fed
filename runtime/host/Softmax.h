//===- Softmax.h - the pieces of a softmax over a row of floats -*- C++ -*-===//
// What attention and its gradient share, vectorised.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_SOFTMAX_H
#define MOIRA_RT_HOST_SOFTMAX_H

#include <bit>
#include <cstdint>

namespace moira::rt::host {

/// e^x for x <= 0 within 2 ulp, without branches or calls so that loops over it vectorise. Zero
/// below -87, NaN for NaN.
inline float expNegative(float x) {
  constexpr float toInteger =
      12582912.0f; // 1.5 * 2^23: the sum's low mantissa bits are the integer
  float clamped = x < -87.0f ? -87.0f : x;
  float shifted = clamped * 1.44269504f + toInteger;
  float n = shifted - toInteger;
  float r = clamped - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : p * power;
}

/// The largest of n numbers and `before`.
float largestOf(const float *x, int64_t n, float before);

/// x becomes e^(x - top). Returns the sum, made in an order that depends on n only.
float exponentials(float *x, int64_t n, float top);

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_SOFTMAX_H
