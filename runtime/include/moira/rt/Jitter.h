//===- Jitter.h - the noise of routers in training --------------*- C++ -*-===//
// Which factor an element of a router's input is multiplied by. Header only, for host and device
// code.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_JITTER_H
#define MOIRA_RT_JITTER_H

#include "moira/rt/Philox.h"

namespace moira::rt {

/// The draws for the elements 4q to 4q + 3 of a token. Seeds are not negative: the key's highest
/// bit keeps them apart from draws for other ends with the same seed.
MOIRA_HOST_DEVICE inline PhiloxWords jitterDraws(uint64_t seed, uint32_t step, uint32_t layer,
                                                 uint32_t token, uint32_t q) {
  return philox4(seed | uint64_t(1) << 63, token, q, layer, step);
}

/// What a draw stands for: uniform in (1 - eps, 1 + eps).
MOIRA_HOST_DEVICE inline double jitterFactor(uint32_t draw, double eps) {
  return 1 + eps * ((double(draw) + 0.5) * 0x1p-31 - 1);
}

} // namespace moira::rt

#endif // MOIRA_RT_JITTER_H
