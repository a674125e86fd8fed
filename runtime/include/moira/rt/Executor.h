//===- Executor.h - one rank runs one program -------------------*- C++ -*-===//
// Memory, binding and the instruction loop on the host device. Threads, launchers and files are
// Run.h's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_EXECUTOR_H
#define MOIRA_RT_EXECUTOR_H

#include "moira/rt/Checkpoint.h"
#include "moira/rt/Collectives.h"
#include "moira/rt/Image.h"
#include "moira/rt/Io.h"
#include "moira/rt/Memory.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/Profile.h"
#include "moira/rt/RouteTrace.h"

#include <chrono>

namespace moira::rt {

/// What an executor runs. Everything pointed to outlives it.
struct ExecutorSetup {
  const PlanFile *plan = nullptr;
  const fb::Program *program = nullptr;
  std::shared_ptr<const HostImages> images;    // null for reference programs
  Communicator *communicator = nullptr;        // of program->ranks() ranks
  bool f64 = false;                            // reference programs only
  RankProfile *profile = nullptr;              // null: no times are taken
  RouteTrace *routes = nullptr;                // null: routers are left alone
  std::chrono::steady_clock::time_point epoch; // zero of the profile
};

/// Bytes of a program's arenas on each rank when the ragged bound is `bound`.
uint64_t plannedBytes(const fb::Program &program, uint64_t bound, bool f64);

/// Of one rank, in bytes but for the counts. Plain data: ranks exchange it as it lies.
struct RankFigures {
  uint64_t planned;   // arenas at the final bound
  uint64_t allocated; // largest sum of blocks that the allocator had handed out at one time
  uint64_t staging;   // buffers that collectives pack into, outside the plan's arenas
  uint64_t bound;
  uint32_t retries;
};

/// One rank. Used by one thread. Memory: one Block for each arena, exactly as planned, alive as
/// long as the executor.
class Executor {
public:
  /// Allocates and binds. PlanTarget for a plan of another device, OutOfMemory, BadRun, PlanBounds.
  static Expected<std::unique_ptr<Executor>> create(const ExecutorSetup &setup);
  ~Executor();

  /// Fills the state arenas. Needs a successful checkWeights; without a checkpoint (null) state
  /// stays zero, which is only right for a program without sources.
  void loadWeights(const Checkpoint *checkpoint);
  /// One step: inputs, instructions, and again with a larger ragged arena if its bound was too
  /// small. Collective. A failure leaves the executor unusable.
  Status step(const InputSet &inputs);
  /// Whether the last step's failure was the same on all ranks and known to all.
  bool failedTogether() const { return together; }

  /// The view of output `index` (this rank's part), valid until the next step.
  TensorRef output(size_t index) const;
  std::vector<TensorRef> outputs() const;

  const MeshPosition &position() const { return place; }
  RankFigures figures() const;
  /// Of each arena at the present bound, in the plan's order.
  std::vector<uint64_t> arenaSizes() const;

private:
  struct Bound; // one instruction with its addresses
  explicit Executor(const ExecutorSetup &setup);
  Status allocate(bool raggedOnly);
  Status bind();
  Status bindInstr(size_t index, Bound &to);
  Status run(size_t index, const Bound &instr);
  Status grow(int64_t needed);
  TensorRef view(uint32_t index) const;
  std::string describe(size_t index) const;

  ExecutorSetup setup;
  const fb::Plan &plan;
  const fb::Program &program;
  MeshPosition place;
  uint64_t scale; // of every offset and size; 1, or more in an f64 run
  uint64_t boundNow;
  uint32_t retryCount = 0;
  bool together = false;
  int64_t needed = 0; // largest bound that this attempt asked for
  std::unique_ptr<MemoryCounter> counter;
  std::vector<Block> arenas;
  std::vector<Bound> instrs;
  std::map<std::vector<uint8_t>, Group> groups;
  Staging staging;
};

} // namespace moira::rt

#endif // MOIRA_RT_EXECUTOR_H
