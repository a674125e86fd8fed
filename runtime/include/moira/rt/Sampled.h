//===- Sampled.h - what SparseMixer draws in training -----------*- C++ -*-===//
// The random numbers of `sampled_route`, by counter: who makes them does not matter. Header only,
// for host and device code.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SAMPLED_H
#define MOIRA_RT_SAMPLED_H

#include "moira/rt/Jitter.h"

namespace moira::rt {

/// A number in (0, 1) for a token's choice (0, 1, ..) among `experts`: of expert 0 to experts - 1,
/// and number `experts`, which says whether a choice that is not the largest counts in full. The
/// counters' highest bit keeps these apart from jitter's.
MOIRA_HOST_DEVICE inline double sampledUniform(uint64_t seed, uint32_t step, uint32_t layer,
                                               uint32_t token, uint32_t choice, uint32_t experts,
                                               uint32_t number) {
  uint32_t q = choice * (experts / 4 + 1) + number / 4;
  uint32_t word = jitterDraws(seed, step, layer, token, q | uint32_t(1) << 31).words[number % 4];
  return (double(word) + 0.5) * 0x1p-32;
}

/// The share of the weight of a choice that is not the largest, unless its number is above
/// kInFull. Both are Heun's third-order method as PhiMoE's code has it.
constexpr double kSampledShare = 0.3333, kInFull = 0.75;

} // namespace moira::rt

#endif // MOIRA_RT_SAMPLED_H
