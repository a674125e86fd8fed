//===- ProgramRunner.h - one rank's programs on some device -----*- C++ -*-===//
// What a run needs of a device: weights in, steps, outputs back, figures. Programs that share state
// (prefill and decode) are one runner's. The host's is Executor.h; the CUDA device's comes from a
// plugin (DevicePlugin.h).
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_PROGRAMRUNNER_H
#define MOIRA_RT_PROGRAMRUNNER_H

#include "moira/rt/Checkpoint.h"
#include "moira/rt/Io.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/PlanFile.h"

#include <chrono>
#include <span>

namespace moira::rt {

class Communicator;
class HostImages;
struct RankProfile;
class RankRoutes;

/// What a runner runs. Everything pointed to outlives it.
struct ExecutorSetup {
  const PlanFile *plan = nullptr;
  /// One, or several mesh programs, which then share their arenas; all of one number of ranks.
  std::vector<const fb::Program *> programs;
  std::shared_ptr<const HostImages> images;    // of the host device; null for reference programs
  Communicator *communicator = nullptr;        // of the programs' ranks
  bool f64 = false;                            // reference programs only
  RankProfile *profile = nullptr;              // null: no times are taken
  RankRoutes *routes = nullptr;                // null: routers are left alone
  std::chrono::steady_clock::time_point epoch; // zero of the profile
};

/// Of one rank, in bytes but for the counts. Plain data: ranks exchange it as it lies.
struct RankFigures {
  uint64_t planned;   // arenas at the final bounds
  uint64_t allocated; // largest sum of blocks that the allocator had handed out at one time
  uint64_t staging;   // buffers that collectives pack into, outside the plan's arenas
  uint64_t bound;     // of the first program
  uint32_t retries;
  uint32_t graphs;    // instructions that are replayed from recorded graphs
  uint64_t context;   // of the device, in use when the runner was made
  uint64_t libraries; // taken since then besides the arenas: kernels, libraries, workspaces
};

/// One rank. Used by one thread.
class ProgramRunner {
public:
  virtual ~ProgramRunner() = default;

  /// Fills the state arenas. Needs a successful checkWeights; without a checkpoint (null) state
  /// stays zero, which is only right for a program without sources.
  virtual Status loadWeights(const Checkpoint *checkpoint) = 0;
  /// One step of a program: inputs, instructions, and again with a larger ragged arena if its bound
  /// was too small. Collective; returns when the outputs are there. A failure leaves the runner
  /// unusable.
  virtual Status step(const InputSet &inputs, size_t program = 0) = 0;
  /// Steps of a program with the same inputs, one for each of `seconds`, which become what each has
  /// taken, on a device by its own clock. Fails as step does. A device may be given several before
  /// it is waited for, so that they follow each other at once.
  virtual Status steps(const InputSet &inputs, std::span<double> seconds, size_t program = 0) {
    Status status;
    for (size_t i = 0; i < seconds.size() && status.ok(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      status = step(inputs, program);
      seconds[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    return status;
  }
  /// Whether the last step's failure was the same on all ranks and known to all.
  virtual bool failedTogether() const = 0;

  /// This rank's part of every output of the program that made the last step, in host memory, valid
  /// until the next one.
  virtual Expected<std::vector<TensorRef>> outputs(size_t program = 0) = 0;

  /// This rank's part of every state, in the plan's order. Its data are where it lies in host
  /// memory, to be read and written between steps; null where it lies on a device.
  virtual std::vector<TensorRef> states() = 0;
  /// Between steps, for the states that lie on a device: copies all of this rank's part to memory
  /// of the host or of that device, or from there.
  virtual Status readState(size_t state, void *to) = 0;
  virtual Status writeState(size_t state, const void *from) = 0;

  /// The instruction that the step is at, for people; empty between steps. Any thread may ask.
  virtual std::string where() const = 0;

  /// Seconds that each instruction of a program has taken in all steps, in the plan's order; empty
  /// where the device does not say.
  virtual std::span<const double> instructionSeconds(size_t = 0) const { return {}; }

  virtual const MeshPosition &position() const = 0;
  virtual RankFigures figures() const = 0;
  /// Of each arena at the present bounds, in the plan's order.
  virtual std::vector<uint64_t> arenaSizes() const = 0;
};

} // namespace moira::rt

#endif // MOIRA_RT_PROGRAMRUNNER_H
