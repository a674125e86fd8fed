//===- CudaRunner.h - one rank runs programs on a CUDA device ----*- C++ -*-===//
// Memory, weights, the step and its repetition. How the instructions get onto streams is
// StepQueue.h's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_CUDARUNNER_H
#define MOIRA_RT_CUDA_CUDARUNNER_H

#include "moira/rt/DevicePlugin.h"

#include "StepQueue.h"
#include "Watchdog.h"

namespace moira::rt::cuda {

/// Makes the runner; see DevicePlugin::create.
Expected<std::unique_ptr<ProgramRunner>> makeRunner(const ExecutorSetup &setup,
                                                    const DeviceSetup &device);

class CudaRunner final : public ProgramRunner {
public:
  CudaRunner(const ExecutorSetup &setup, const DeviceSetup &device);
  ~CudaRunner() override;
  /// The parts of makeRunner before and after the ranks have agreed that memory and kernels are
  /// there.
  Status prepare();
  Status connect();

  Status loadWeights(const Checkpoint *checkpoint) override;
  Status step(const InputSet &inputs, size_t program = 0) override;
  bool failedTogether() const override { return together; }
  Expected<std::vector<TensorRef>> outputs(size_t program = 0) override;
  std::string where() const override;
  const MeshPosition &position() const override { return parts->entries[0]->binding.position(); }
  RankFigures figures() const override;
  std::vector<uint64_t> arenaSizes() const override;

private:
  /// A program with its addresses and its streams.
  struct Entry {
    Entry(const fb::Plan &plan, const fb::Program &program, int rank)
        : program(program), binding(plan, program, rank, /*f64=*/false) {}
    const fb::Program &program;
    Binding binding;
    std::vector<BoundInstr> instrs;
    std::unique_ptr<StepQueue> queue;
    std::unique_ptr<Watchdog> watchdog;
    PinnedBlock inputs;
    std::vector<std::vector<char>> outputs;
  };

  /// Makes every arena as large as the programs need it now, and binds where one has moved.
  Status allocate();
  Status bind(Entry &entry);
  Status grow(Entry &entry);
  /// Everything of one attempt, until the device has done it.
  Status attempt(Entry &entry, const InputSet &inputs, uint32_t number);
  Status waitForDevice(Entry &entry);
  /// What a step's query says, as an error that names where the device was.
  Status deviceError(const Entry &entry, cudaError_t code) const;
  /// Where the device was when it failed, as far as is known.
  std::string failedAt(const Entry &entry) const;
  static std::string whereOf(const Entry &entry);
  Status used();

  /// All that lies on the device. Not given back after the device has failed: that could hang.
  struct Parts {
    DeviceBytes bytes;
    std::vector<DeviceBlock> arenas;
    std::unique_ptr<KernelModule> kernels;
    std::unique_ptr<DeviceGroups> groups;
    std::vector<std::unique_ptr<Entry>> entries;
  };

  ExecutorSetup setup;
  DeviceSetup device;
  std::unique_ptr<Parts> parts;
  bool dead = false, together = false;
  uint32_t retryCount = 0;
  uint64_t inUseBefore = 0, inUseAfter = 0; // device memory, of all processes
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_CUDARUNNER_H
