//===- GateTools.h - what the gate's kernels share ----------------*- C++ -*-===//
// A gate's parameters on the device, and the most common gate.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GATETOOLS_H
#define MOIRA_RT_CUDA_KERNELS_GATETOOLS_H

#include "DeviceTools.h"
#include "moira/rt/Gate.h"

namespace moira::rt::cuda {

/// Gate, with its reals in float.
struct DeviceGate {
  explicit DeviceGate(const Gate &gate)
      : experts(gate.experts), k(gate.k), score(gate.score), scoreFirst(gate.scoreFirst),
        renorm(gate.renorm), top2Sum(gate.top2Sum), groups(gate.groups), groupKeep(gate.groupKeep),
        groupSize(gate.groupSize()), epsilon(float(gate.renormEpsilon)),
        clampMin(float(gate.renormClampMin)), twiceJitter(float(2 * gate.jitterEps)),
        scale(float(gate.scale)) {}

  int32_t experts, k;
  GateScore score;
  bool scoreFirst, renorm, top2Sum;
  int32_t groups, groupKeep, groupSize;
  float epsilon, clampMin, twiceJitter, scale;
};

/// Whether launchRouteTogether has this gate.
bool routesTogether(const Gate &gate);
/// `route` without a bias, given choices or gaps.
Status launchRouteTogether(const Call &call, const Gate &gate, int64_t tokens);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GATETOOLS_H
