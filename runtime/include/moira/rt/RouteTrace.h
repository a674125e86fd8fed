//===- RouteTrace.h - seeing and forcing expert choices ---------*- C++ -*-===//
// The files of --dump-routing and --route-from. They hold global tensors, so one that any mesh (or
// the reference program) has written can be used by any other:
//
//   layers.<n>.ids      i32 [tokens.., k]   n: the model's layer, or the router's number if layers
//   layers.<n>.weights  f32 [tokens.., k]      do not tell the routers apart
//   layers.<n>.gaps     f32 [tokens..]      selection score of choice k minus that of choice k+1;
//                                           absent where every expert is chosen
//
// The plan names these tensors and says how they are cut (its traces); executors only see the
// choices of their rank's tokens.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_ROUTETRACE_H
#define MOIRA_RT_ROUTETRACE_H

#include "moira/rt/Device.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/PlanFile.h"

#include <map>

namespace moira::rt {

/// One program's routers and the choices that they are given, for all ranks of a process. Not
/// changed once made, so ranks may share it.
class RouteTrace {
public:
  /// `dump`: choices will be recorded. `forceFrom`: a file whose ids replace the gate's choice, or
  /// empty. BadRun if the program has no router or does not say how its choices are cut; BadInput
  /// with every problem of the file: tensors that are missing, mis-shaped or of no router, experts
  /// out of range, a token that goes to one expert twice.
  static Expected<RouteTrace> create(const fb::Plan &plan, const fb::Program &program, bool dump,
                                     const std::string &forceFrom);

  size_t routers() const { return sites.size(); }

private:
  friend class RankRoutes;
  struct Site {
    std::string name; // "layers.3"
    const fb::Trace *ids = nullptr, *weights = nullptr;
    int64_t experts = 0;
    std::vector<int32_t> forced; // global; empty: the gate chooses
    std::vector<int64_t> shape() const { return {ids->shape()->begin(), ids->shape()->end()}; }
    bool hasGaps() const { return experts > ids->shape()->Get(ids->shape()->size() - 1); }
  };
  Status readForced(const std::string &path);

  bool dump = false;
  std::map<size_t, Site> sites; // by instruction
};

/// The same for the tokens of one rank. Used by that rank's thread.
class RankRoutes {
public:
  /// `trace` outlives it.
  RankRoutes(const RouteTrace &trace, const MeshPosition &position);

  /// For executors, around each route call; `instr` is its index in the program. What the hooks
  /// point to stays where it is. `after` keeps a copy of host memory.
  bool isRecording() const { return trace.dump; }
  RouteHooks before(size_t instr);
  void after(size_t instr, const TensorRef &ids, const TensorRef &weights);

  /// Writes what all ranks have chosen last. Collective; all ranks return the same.
  Status write(const std::string &path, Communicator &communicator);

  /// Adds what was chosen last to the experts' loads.
  void addLoads();
  /// Of the loads that were added since the last call: the most that one expert got, over its
  /// layer's mean, of the layer where that is largest; 1 where nothing was chosen. Collective.
  Expected<double> largestLoad(Communicator &communicator);

private:
  struct Site {
    Shard shard; // of ids and weights
    std::vector<int32_t> forced, ids;
    std::vector<float> weights, gaps;
  };

  const RouteTrace &trace;
  std::map<size_t, Site> sites; // by instruction
  std::vector<int32_t> loads;   // of all experts of the sites, one site after another
};

} // namespace moira::rt

#endif // MOIRA_RT_ROUTETRACE_H
