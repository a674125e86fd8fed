//===- Philox.h - random numbers by counter ---------------------*- C++ -*-===//
// Philox 4x32-10: four random words for a key and a counter, without state, so that a draw depends
// on what it is for and not on who makes it. Header only, for host and device code.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_PHILOX_H
#define MOIRA_RT_PHILOX_H

#include <cstdint>

#if defined(__CUDACC__)
#define MOIRA_HOST_DEVICE __host__ __device__
#else
#define MOIRA_HOST_DEVICE
#endif

namespace moira::rt {

struct PhiloxWords {
  uint32_t words[4];
};

/// The words of a counter become those drawn for it under this key. `Word` is uint32_t, or a vector
/// of 64-bit lanes, each with a counter, of which the lower halves count.
template <typename Word>
MOIRA_HOST_DEVICE inline void philoxRounds(uint64_t key, Word &c0, Word &c1, Word &c2, Word &c3) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    auto a = uint64_t(0xD2511F53u) * (c0 & 0xFFFFFFFFu);
    auto b = uint64_t(0xCD9E8D57u) * (c2 & 0xFFFFFFFFu);
    c0 = Word(b >> 32) ^ c1 ^ k0;
    c1 = Word(b);
    c2 = Word(a >> 32) ^ c3 ^ k1;
    c3 = Word(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/// The four words of this counter under this key.
MOIRA_HOST_DEVICE inline PhiloxWords philox4(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                             uint32_t c3) {
  philoxRounds(key, c0, c1, c2, c3);
  return {{c0, c1, c2, c3}};
}

/// The first of them.
MOIRA_HOST_DEVICE inline uint32_t philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                         uint32_t c3) {
  return philox4(key, c0, c1, c2, c3).words[0];
}

/// What random token selection draws for a token and an expert of a layer in a step.
MOIRA_HOST_DEVICE inline uint32_t tokenDraw(uint64_t seed, uint32_t step, uint32_t layer,
                                            uint32_t token, uint32_t expert) {
  return philox(seed, token, expert, layer, step);
}

} // namespace moira::rt

#endif // MOIRA_RT_PHILOX_H
