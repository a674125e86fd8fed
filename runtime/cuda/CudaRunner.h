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
  /// As many at a time as the program lets the device do without the host.
  Status steps(const InputSet &inputs, std::span<double> seconds, size_t program = 0) override;
  bool failedTogether() const override { return together; }
  Expected<std::vector<TensorRef>> outputs(size_t program = 0) override;
  std::vector<TensorRef> states() override;
  Status readState(size_t state, void *to) override;
  Status writeState(size_t state, const void *from) override;
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
  /// Whether an arena lies in the host's memory.
  bool isOnHost(size_t arena) const;
  /// Whether a copy goes from one memory to the other.
  bool crosses(const Entry &entry, size_t copy) const;
  Status bind(Entry &entry);
  Status grow(Entry &entry);
  /// `count` steps, together; if it is one, again with a larger arena if a bound was too small.
  Status run(const InputSet &inputs, Entry &entry, size_t count);
  /// Everything of one attempt, until the device has done it.
  Status attempt(Entry &entry, const InputSet &inputs, uint32_t number, size_t count);
  /// Until the device has come to the event.
  Status waitForDevice(Entry &entry, cudaEvent_t event);
  /// What a step's query says, as an error that names where the device was.
  Status deviceError(const Entry &entry, cudaError_t code) const;
  /// Where the device was when it failed, as far as is known.
  std::string failedAt(const Entry &entry) const;
  static std::string whereOf(const Entry &entry);
  Status used();
  /// Copies between a state and memory of the host, which the device cannot reach by itself, or of
  /// the device.
  Status moveState(size_t state, char *host, bool toDevice);

  /// Page-locked buffers, one of which is filled or emptied while the other is on its way.
  struct Ferry {
    static constexpr uint64_t kBytes = uint64_t(32) << 20; // of a buffer that is large enough
    PinnedBlock buffers[2];
    Event moved[2];
    Status make(uint64_t bytes, const std::string &what);
  };

  /// All that lies on the device. Not given back after the device has failed: that could hang.
  struct Parts {
    DeviceBytes bytes;
    std::vector<DeviceBlock> arenas;
    std::vector<PinnedBlock> hostArenas; // by arena, too
    uint64_t hostBytes = 0;              // of them
    std::unique_ptr<KernelModule> kernels;
    std::unique_ptr<DeviceGroups> groups;
    std::vector<std::unique_ptr<Entry>> entries;
    std::unique_ptr<Ferry> ferry; // once a state has been moved
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
