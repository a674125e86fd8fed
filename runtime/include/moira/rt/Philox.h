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

/// The four words of this counter under this key.
MOIRA_HOST_DEVICE inline PhiloxWords philox4(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                             uint32_t c3) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
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
