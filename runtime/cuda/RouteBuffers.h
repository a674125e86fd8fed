//===- RouteBuffers.h - a router's choices to and from the device -*- C++ -*-===//
// What --dump-routing and --route-from need of one route call on a CUDA device. Everything is done
// in the order of the call's stream and with fixed addresses: nothing waits, and it can be recorded
// into a graph like the call itself.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_ROUTEBUFFERS_H
#define MOIRA_RT_CUDA_ROUTEBUFFERS_H

#include "moira/rt/Binding.h"
#include "moira/rt/RouteTrace.h"

#include "CudaCalls.h"
#include "CudaSupport.h"

namespace moira::rt::cuda {

class RouteBuffers {
public:
  /// Buffers of instruction `index`; sends the choices that are forced. `routes` outlives it.
  static Expected<RouteBuffers> make(RankRoutes &routes, size_t index, const BoundInstr &instr);

  /// Enqueues the call, and if choices are recorded copies of them to host memory.
  Status enqueue(const BoundInstr &instr, CallContext context);
  /// After the step: hands over what was chosen.
  void collect(const BoundInstr &instr);

private:
  RankRoutes *routes = nullptr;
  size_t index = 0;
  DeviceBlock forced;                         // empty: the gate chooses
  DeviceBlock gaps;                           // empty: nobody asks for them
  PinnedBlock hostIds, hostWeights, hostGaps; // empty if nothing is recorded
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_ROUTEBUFFERS_H
