//===- Executor.h - one rank runs programs on the host ----------*- C++ -*-===//
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
  Status step(const InputSet &inputs, size_t program = 0) override;
  bool failedTogether() const override { return together; }
  Expected<std::vector<TensorRef>> outputs(size_t program = 0) override;
  std::vector<TensorRef> states() override;
  Status readState(size_t state, void *to) override;
  Status writeState(size_t state, const void *from) override;
  std::string where() const override;
  std::span<const double> instructionSeconds(size_t program = 0) const override {
    return entries[program]->seconds;
  }
  const MeshPosition &position() const override { return entries[0]->binding.position(); }
  RankFigures figures() const override;
  std::vector<uint64_t> arenaSizes() const override;

private:
  /// A program with its addresses.
  struct Entry {
    Entry(const ExecutorSetup &setup, const fb::Program &program, uint32_t number);
    const fb::Program &program;
    uint32_t number;
    Binding binding;
    std::vector<BoundInstr> instrs;
    std::vector<double> seconds; // by instruction
  };

  explicit Executor(const ExecutorSetup &setup);
  /// Makes every arena as large as the programs need it now, and binds where one has moved.
  Status allocate();
  Status run(const Entry &entry, size_t index);
  Status grow(Entry &entry);

  ExecutorSetup setup;
  std::vector<std::unique_ptr<Entry>> entries;
  uint32_t retryCount = 0;
  bool together = false;
  /// What runs: the program's number and the instruction's.
  static constexpr uint64_t kNowhere = UINT64_MAX;
  std::atomic<uint64_t> at = kNowhere;
  int64_t needed = 0; // largest bound that this attempt asked for
  std::unique_ptr<MemoryCounter> counter;
  std::vector<Block> arenas;
  Staging staging;
};

} // namespace moira::rt

#endif // MOIRA_RT_EXECUTOR_H
