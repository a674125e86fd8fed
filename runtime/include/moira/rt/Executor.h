//===- Executor.h - one rank runs one program on the host -------*- C++ -*-===//
// Memory and the instruction loop of the host device. Addresses are Binding.h's; threads, launchers
// and files are Run.h's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_EXECUTOR_H
#define MOIRA_RT_EXECUTOR_H

#include "moira/rt/Binding.h"
#include "moira/rt/Image.h"
#include "moira/rt/Memory.h"
#include "moira/rt/Profile.h"
#include "moira/rt/ProgramRunner.h"
#include "moira/rt/RouteTrace.h"

#include <atomic>

namespace moira::rt {

/// Memory: one Block for each arena, exactly as planned, alive as long as the executor.
class Executor final : public ProgramRunner {
public:
  /// Allocates and binds. PlanTarget for a plan of another device, OutOfMemory, BadRun, PlanBounds.
  static Expected<std::unique_ptr<ProgramRunner>> create(const ExecutorSetup &setup);

  Status loadWeights(const Checkpoint *checkpoint) override;
  Status step(const InputSet &inputs) override;
  bool failedTogether() const override { return together; }
  Expected<std::vector<TensorRef>> outputs() override;
  std::string where() const override;
  const MeshPosition &position() const override { return binding.position(); }
  RankFigures figures() const override;
  std::vector<uint64_t> arenaSizes() const override { return binding.arenaSizes(); }

private:
  explicit Executor(const ExecutorSetup &setup);
  Status allocate(bool raggedOnly);
  Status bind();
  Status run(size_t index, const BoundInstr &instr);
  Status grow();

  ExecutorSetup setup;
  const fb::Program &program;
  Binding binding;
  uint32_t retryCount = 0;
  bool together = false;
  static constexpr size_t kNowhere = SIZE_MAX;
  std::atomic<size_t> at = kNowhere; // the instruction that runs
  int64_t needed = 0;                // largest bound that this attempt asked for
  std::unique_ptr<MemoryCounter> counter;
  std::vector<Block> arenas;
  std::vector<BoundInstr> instrs;
  Staging staging;
};

} // namespace moira::rt

#endif // MOIRA_RT_EXECUTOR_H
