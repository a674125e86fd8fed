//===- Crc32c.cpp - CRC-32C (Castagnoli) ------------------------*- C++ -*-===//
// crc32c() of PlanFile.h. The instruction where the processor has it, else a table of eight times
// 256 entries (slicing by 8); both give the same numbers.
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
__attribute__((target("sse4.2"))) uint32_t updateByInstruction(uint32_t crc, const uint8_t *p,
                                                               size_t n) {
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    wide = _mm_crc32_u64(wide, word);
  }
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
