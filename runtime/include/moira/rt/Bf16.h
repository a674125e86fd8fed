//===- Bf16.h - the 16-bit float that is the upper half of a float -*- C++ -*-===//
// Storage only: values are converted to float to compute, and rounded when they are stored.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_BF16_H
#define MOIRA_RT_BF16_H

#include <bit>
#include <concepts>
#include <cstdint>

namespace moira::rt {

struct Bf16 {
  uint16_t bits;

  Bf16() = default;
  /// Rounds to nearest, ties to even. A NaN stays one whatever its low bits are. From a double it
  /// rounds twice, by way of float.
  template <typename T>
    requires std::integral<T> || std::floating_point<T>
  constexpr explicit Bf16(T value) {
    uint32_t wide = std::bit_cast<uint32_t>(static_cast<float>(value));
    bool isNan = (wide & 0x7fffffff) > 0x7f800000;
    bits =
        static_cast<uint16_t>(isNan ? wide >> 16 | 0x40 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  /// Exact.
  constexpr operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};
static_assert(sizeof(Bf16) == 2);

} // namespace moira::rt

#endif // MOIRA_RT_BF16_H
