//===- Crc32c.cpp - CRC-32C (Castagnoli) ------------------------*- C++ -*-===//
// crc32c() of PlanFile.h. The instruction where the processor has it, else a table of eight times
// 256 entries (slicing by 8); both give the same numbers. The instruction takes three cycles and
// one can begin in each, so long runs are added up as three parts at a time.
//===----------------------------------------------------------------------===//
#include "moira/rt/PlanFile.h"

#include <array>
#include <cstring>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace moira::rt {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables makeTables() {
  Tables t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit)
      c = (c >> 1) ^ (c & 1 ? 0x82F63B78u : 0u);
    t[0][i] = c;
  }
  for (size_t k = 1; k < 8; ++k)
    for (uint32_t i = 0; i < 256; ++i)
      t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 0xff];
  return t;
}
constexpr Tables kTables = makeTables();

uint32_t updateByTable(uint32_t crc, const uint8_t *p, size_t n) {
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8); // plans and their readers are little-endian
    word ^= crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k)
      crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; n; ++p, --n)
    crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xff];
  return crc;
}

#if defined(__x86_64__)
constexpr size_t kPart = 4096; // bytes, a power of two

/// The sum that kPart zeros make of each byte of a sum, which is linear in its bits.
using PartTables = std::array<std::array<uint32_t, 256>, 4>;

constexpr PartTables makePartTables() {
  auto apply = [](const std::array<uint32_t, 32> &columns, uint32_t x) {
    uint32_t y = 0;
    for (int bit = 0; bit < 32; ++bit)
      y ^= x >> bit & 1 ? columns[bit] : 0;
    return y;
  };
  std::array<uint32_t, 32> zeros{}; // one byte of them, then two, four, …
  for (int bit = 0; bit < 32; ++bit)
    zeros[bit] = (uint32_t(1) << bit) >> 8 ^ kTables[0][(uint32_t(1) << bit) & 0xff];
  for (size_t n = 1; n < kPart; n *= 2) {
    std::array<uint32_t, 32> twice{};
    for (int bit = 0; bit < 32; ++bit)
      twice[bit] = apply(zeros, zeros[bit]);
    zeros = twice;
  }
  PartTables t{};
  for (uint32_t i = 0; i < 4 * 256; ++i)
    t[i / 256][i % 256] = apply(zeros, (i % 256) << (8 * (i / 256)));
  return t;
}
constexpr PartTables kPartTables = makePartTables();

uint32_t afterPart(uint64_t crc) {
  return kPartTables[0][crc & 0xff] ^ kPartTables[1][crc >> 8 & 0xff] ^
         kPartTables[2][crc >> 16 & 0xff] ^ kPartTables[3][crc >> 24 & 0xff];
}

uint64_t wordAt(const uint8_t *p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

__attribute__((target("sse4.2"))) uint32_t updateByInstruction(uint32_t crc, const uint8_t *p,
                                                               size_t n) {
  uint64_t wide = crc;
  for (; n >= 3 * kPart; p += 3 * kPart, n -= 3 * kPart) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kPart; i += 8) {
      wide = _mm_crc32_u64(wide, wordAt(p + i));
      second = _mm_crc32_u64(second, wordAt(p + kPart + i));
      third = _mm_crc32_u64(third, wordAt(p + 2 * kPart + i));
    }
    wide = afterPart(afterPart(wide) ^ second) ^ third;
  }
  for (; n >= 8; p += 8, n -= 8)
    wide = _mm_crc32_u64(wide, wordAt(p));
  crc = static_cast<uint32_t>(wide);
  for (; n; ++p, --n)
    crc = _mm_crc32_u8(crc, *p);
  return crc;
}
#endif

} // namespace

uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t seed) {
#if defined(__x86_64__)
  static const bool hasInstruction = __builtin_cpu_supports("sse4.2");
  if (hasInstruction)
    return ~updateByInstruction(~seed, bytes.data(), bytes.size());
#endif
  return ~updateByTable(~seed, bytes.data(), bytes.size());
}

} // namespace moira::rt
