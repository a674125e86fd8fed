//===- Sample.h - choosing the next token -----------------------*- C++ -*-===//
// The rule of the call `sample`, for host and device code. A token is drawn from
// softmax(logits / temperature) after what top_k and top_p leave out:
//
//   top_k  keeps the k largest logits, and all that equal the smallest of them;
//   top_p  of these the fewest of the largest whose probabilities sum to top_p or more, and all
//          that equal the smallest of them.
//
// The draw is an argmax: of logit / temperature + noise, where the noise of a token is -log(-log u)
// (Gumbel) of a number u that depends on seed, step, row and token only. So it needs no sums, and
// every mesh and device that sees the same logits draws the same token. Ties: the first.
// Header only.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SAMPLE_H
#define MOIRA_RT_SAMPLE_H

#include "moira/rt/Philox.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace moira::rt {

/// What the operands `sampling` and `draw` say.
struct SampleRule {
  double temperature, topP;
  int32_t topK;
  uint64_t seed;
  uint32_t step;

  MOIRA_HOST_DEVICE bool greedy() const { return !(temperature > 0); }
  MOIRA_HOST_DEVICE bool cutsByP() const { return topP > 0 && topP < 1; }
};

MOIRA_HOST_DEVICE inline SampleRule sampleRule(double temperature, double topP,
                                               const int32_t *draw) {
  return {temperature, topP, draw[0],
          uint64_t(uint32_t(draw[1])) | uint64_t(uint32_t(draw[2])) << 32, uint32_t(draw[3])};
}

/// Floats in an order of unsigned numbers; what is no number comes last, as torch's argmax has it.
MOIRA_HOST_DEVICE inline uint32_t orderOf(float value) {
  if (value != value)
    return UINT32_MAX;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (bits == 0x80000000u) // -0 equals 0
    bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// A token's score in the draw.
MOIRA_HOST_DEVICE inline double drawScore(const SampleRule &rule, float logit, uint32_t row,
                                          uint32_t token) {
  // Never 0 or 1.
  double u = (philox(rule.seed, token, row, 0x73616d70u, rule.step) + 0.5) * 0x1p-32;
  return double(logit) / rule.temperature - log(-log(u));
}

} // namespace moira::rt

#endif // MOIRA_RT_SAMPLE_H
