//===- ExactSquares.cpp - sums of squares without any rounding --------------===//
// exact_squares. A float is m * 2^(e - 150) with m < 2^24: squares of floats of one exponent e are
// added up as integers, and these then, where they belong, to one wide integer.
//===----------------------------------------------------------------------===//
#include "ExactSquares.h"
#include "Widened.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <mutex>

namespace moira::rt::host {
namespace {

/// The last digit is worth 2^-kPoint.
constexpr int kPoint = 304;
/// Squares that an integer of 64 bits takes.
constexpr size_t kBlock = 1 << 15;

/// A sum in limbs of 32 bits, each with room for as many carries as there are blocks.
struct Wide {
  std::array<uint64_t, kSquareDigits / 8 + 1> limbs{};
  float special = 0; // the squares of what is not finite
};

void addBlock(std::span<const float> x, Wide &sum) {
  std::array<std::array<uint64_t, 256>, 2> sums{}; // by exponent; two, as one waits for itself
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t bits = std::bit_cast<uint32_t>(x[i]), exponent = bits >> 23 & 255;
    uint64_t m = (bits & 0x7fffff) | uint64_t(exponent > 0) << 23;
    sums[i % 2][exponent] += m * m;
  }
  auto of = [&](size_t exponent) { return sums[0][exponent] + sums[1][exponent]; };
  if (of(255) != 0)
    for (float v : x)
      sum.special += std::isfinite(v) ? 0 : v * v;
  for (int exponent = 0; exponent < 255; ++exponent) {
    // Subnormal numbers have the place of exponent 1.
    int place = 2 * (std::max(exponent, 1) - 150) + kPoint;
    auto value = static_cast<unsigned __int128>(of(size_t(exponent))) << place % 32;
    for (size_t limb = size_t(place / 32); value != 0; ++limb, value >>= 32)
      sum.limbs[limb] += uint32_t(value);
  }
}

} // namespace

void exactSquares(std::span<const float> x, std::span<float, kSquareDigits> digits) {
  Wide sum;
  std::mutex mutex;
  parallelFor(int64_t((x.size() + kBlock - 1) / kBlock), [&](int64_t block) {
    Wide part;
    size_t first = size_t(block) * kBlock;
    addBlock(x.subspan(first, std::min(kBlock, x.size() - first)), part);
    std::lock_guard lock(mutex); // integers: in any order
    for (size_t i = 0; i < part.limbs.size(); ++i)
      sum.limbs[i] += part.limbs[i];
    sum.special += part.special;
  });
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i % 8 == 0)
      sum.limbs[i / 8 + 1] += sum.limbs[i / 8] >> 32;
    digits[i] = float(sum.limbs[i / 8] >> i % 8 * 4 & 15);
  }
  if (sum.special != 0)
    digits[0] = sum.special;
}

double valueOfDigits(std::span<const float, kSquareDigits> digits) {
  if (!std::isfinite(digits[0]))
    return double(digits[0]);
  // As one number has them, so that their sum below is one number's.
  double value = 0;
  int64_t carry = 0;
  for (size_t i = 0; i < digits.size(); ++i) {
    carry += int64_t(digits[i]);
    value += std::ldexp(double(carry & 15), int(4 * i) - kPoint);
    carry >>= 4;
  }
  return value;
}

template <typename S> Status ref::exact_squares(const Call &call) {
  if constexpr (std::is_same_v<S, double>) {
    return badCall(call, "it takes no f64");
  } else {
    Widened<float> x(call.in[0]);
    exactSquares({x.data(), size_t(call.in[0].elements())},
                 std::span<float, kSquareDigits>(call.output<float>(0), kSquareDigits));
    return {};
  }
}
template Status ref::exact_squares<float>(const Call &);
template Status ref::exact_squares<double>(const Call &);
template Status ref::exact_squares<Bf16>(const Call &);

} // namespace moira::rt::host
