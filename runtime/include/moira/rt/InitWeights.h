//===- InitWeights.h - weights to begin training with -----------*- C++ -*-===//
// Random weights that depend on a seed, the tensor's name and the element's global place, so that
// every mesh begins with the same ones.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_INITWEIGHTS_H
#define MOIRA_RT_INITWEIGHTS_H

#include "moira/rt/TrainingCheckpoint.h"

namespace moira::rt {

struct InitOptions {
  uint64_t seed = 0;
  double deviation = 0.02; ///< of the normal distribution, whose mean is 0
};

/// Fills the part, without its pads, by what its name says of it: the weights of norms are 1
/// (vectors with "norm" in their names), biases and sinks 0, all else is drawn. f32 and f64.
void initWeight(const StatePart &part, const InitOptions &options);

} // namespace moira::rt

#endif // MOIRA_RT_INITWEIGHTS_H
