//===- ExactSquares.h - sums of squares without any rounding ----*- C++ -*-===//
// The sum of squares of floats as digits that add up, element by element, to the digits of the sum
// of both: whichever rank has which elements, and in whatever order they are added, the sum is the
// same number. A digit is worth 16 times the one before; digits of a sum may be larger than 15, and
// are exact while they are below 2^24, of a million sums.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_EXACTSQUARES_H
#define MOIRA_RT_HOST_EXACTSQUARES_H

#include <cstdint>
#include <span>

namespace moira::rt::host {

/// Enough for 2^40 squares of the largest floats, down to the square of the smallest one.
inline constexpr int64_t kSquareDigits = 160;

/// digits = the sum of the squares of x; infinite or not a number as the sum would be.
void exactSquares(std::span<const float> x, std::span<float, kSquareDigits> digits);

/// What digits stand for.
double valueOfDigits(std::span<const float, kSquareDigits> digits);

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_EXACTSQUARES_H
