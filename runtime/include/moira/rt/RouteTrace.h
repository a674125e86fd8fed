//===- RouteTrace.h - seeing and forcing expert choices ---------*- C++ -*-===//
// The files of --dump-routing and --route-from: one `route` call after the other, in program order.
//
//   layers.<n>.ids      i32 [tokens.., k]   n: the model's layer, or the call's number if layers do
//   layers.<n>.weights  f32 [tokens.., k]      not tell the calls apart
//   layers.<n>.gaps     f32 [tokens..]      selection score of choice k minus that of choice k+1
//
// Only for programs of one rank: a mesh's route calls see their rank's tokens only, and a plan does
// not say which those are.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_ROUTETRACE_H
#define MOIRA_RT_ROUTETRACE_H

#include "moira/rt/Device.h"
#include "moira/rt/PlanFile.h"

#include <map>

namespace moira::rt {

class RouteTrace {
public:
  /// `dump`: choices will be recorded. `forceFrom`: a file whose ids replace the gate's choice, or
  /// empty. BadRun if the program has several ranks or no route calls; BadInput with every problem
  /// of the file (missing, mis-shaped, expert out of range).
  static Expected<RouteTrace> create(const fb::Plan &plan, const fb::Program &program, bool dump,
                                     const std::string &forceFrom);

  /// Called by the executor around each route call; `instr` is its index in the program.
  RouteHooks before(size_t instr);
  void after(size_t instr, const TensorRef &ids, const TensorRef &weights);
  Status write(const std::string &path) const;

private:
  struct Site {
    std::string name; // "layers.3"
    std::vector<int64_t> shape;
    std::vector<int32_t> forced, ids;
    std::vector<float> weights, gaps;
  };
  Status readForced(const std::string &path, const fb::Plan &plan, const fb::Program &program);

  bool dump = false;
  std::map<size_t, Site> sites; // by instruction
};

} // namespace moira::rt

#endif // MOIRA_RT_ROUTETRACE_H
