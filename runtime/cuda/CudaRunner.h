//===- CudaRunner.h - one rank runs one program on a CUDA device -*- C++ -*-===//
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
  Status step(const InputSet &inputs) override;
  bool failedTogether() const override { return together; }
  Expected<std::vector<TensorRef>> outputs() override;
  std::string where() const override;
  const MeshPosition &position() const override { return parts->binding.position(); }
  RankFigures figures() const override;
  std::vector<uint64_t> arenaSizes() const override { return parts->binding.arenaSizes(); }

private:
  Status allocate(bool raggedOnly);
  Status bind();
  Status grow();
  /// Everything of one attempt, until the device has done it.
  Status attempt(const InputSet &inputs, uint32_t number);
  Status waitForDevice();
  /// Where the device was when it failed, as far as is known.
  /// What a step's query says, as an error that names where the device was.
  Status deviceError(cudaError_t code) const;
  std::string failedAt() const;
  Status used();

  /// All that lies on the device. Not given back after the device has failed: that could hang.
  struct Parts {
    Parts(const fb::Plan &plan, const fb::Program &program, int rank)
        : binding(plan, program, rank, /*f64=*/false) {}
    Binding binding;
    DeviceBytes bytes;
    std::vector<DeviceBlock> arenas;
    std::unique_ptr<KernelModule> kernels;
    std::vector<BoundInstr> instrs;
    std::unique_ptr<DeviceGroups> groups;
    std::unique_ptr<StepQueue> queue;
    std::unique_ptr<Watchdog> watchdog;
    PinnedBlock inputs;
    std::vector<std::vector<char>> outputs;
  };

  ExecutorSetup setup;
  DeviceSetup device;
  const fb::Program &program;
  std::unique_ptr<Parts> parts;
  bool dead = false, together = false;
  uint32_t retryCount = 0;
  uint64_t inUseBefore = 0, inUseAfter = 0; // device memory, of all processes
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_CUDARUNNER_H
