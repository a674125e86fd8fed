//===- StepQueue.h - a step's instructions on streams -----------*- C++ -*-===//
// A stream for each queue of the program, an event for each of its events. The first step after a
// binding is enqueued instruction by instruction; later ones replay recorded graphs for every run
// of instructions that needs nothing but its own stream.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_STEPQUEUE_H
#define MOIRA_RT_CUDA_STEPQUEUE_H

#include "moira/rt/DevicePlugin.h"
#include "moira/rt/Profile.h"
#include "moira/rt/ProgramRunner.h"

#include "DeviceGroups.h"
#include "HostWork.h"
#include "KernelModule.h"
#include "Progress.h"
#include "RouteBuffers.h"

#include "CudaCalls.h"

namespace moira::rt::cuda {

class StepQueue {
public:
  /// Streams, events, workspaces and what is read back. Everything passed outlives it.
  /// `number`: the program's among those of the setup.
  static Expected<std::unique_ptr<StepQueue>> make(const ExecutorSetup &setup, uint32_t number,
                                                   const Binding &binding,
                                                   const std::vector<BoundInstr> &instrs,
                                                   const KernelModule &kernels,
                                                   const DeviceSetup &device);
  ~StepQueue();

  /// Addresses have changed: recorded graphs are dropped, the next step is enqueued anew.
  void rebound();

  /// Steps that may be enqueued one behind the other before the first is waited for: one, where
  /// the host looks at something after every step.
  size_t mostTogether() const;
  /// Before the first enqueue, when nothing is running: forgets what the last steps have left in
  /// the host's memory.
  void begin();
  /// Enqueues a whole step: `inputs` copies from host memory on the given stream before everything
  /// else. Nothing is waited for, but in a program that changes states for good behind a bound:
  /// what changes them is enqueued once `wait` has come back from the bounds, and not at all if one
  /// was too small (needed() says so). Errors name the instruction.
  Status enqueue(const std::function<Status(cudaStream_t)> &inputs, DeviceGroups &groups,
                 uint32_t attempt, const std::function<Status(cudaEvent_t)> &wait);
  /// After enqueue: what the device comes to when it has done all of it.
  cudaEvent_t end() const { return spans[enqueued - 1].finished.get(); }
  /// The device has come there: it is at no instruction.
  void done() { marks.reset(); }
  /// After that: seconds of a step since begin(), from where its inputs were there to its end.
  double seconds(size_t step) const;

  /// After the step is done: the largest bound that was asked for, and what kernels complained of.
  int64_t needed() const;
  Status complaints() const;
  /// What the routers have chosen, if somebody looks.
  void collectRoutes();
  /// Times of the step for the profile.
  Status collectTimes(uint32_t attempt);

  cudaStream_t firstStream() const { return queues[0].stream.get(); }
  const Progress &progress() const { return marks; }
  /// Instructions that are replayed from graphs.
  uint32_t recorded() const { return inGraphs; }
  /// Why graphs are not used although they were wanted, or empty.
  const std::string &graphNote() const { return note; }

private:
  struct Queue {
    Stream stream;
    DeviceBlock workspace;
    CallContext context;
    Event joined;
    Event bounded; // behind its last require_bound; none if it has none
  };
  /// Of a step that is enqueued.
  struct Span {
    Event ready, finished;
  };
  /// A run of instructions [first, last) of one queue, with a graph once it is recorded.
  struct Action {
    size_t first, last;
    cudaGraphExec_t graph = nullptr;
  };

  StepQueue(const ExecutorSetup &setup, uint32_t number, const Binding &binding,
            const std::vector<BoundInstr> &instrs, const KernelModule &kernels,
            const DeviceSetup &device)
      : setup(setup), number(number), program(*setup.programs[number]), binding(binding),
        instrs(instrs), kernels(kernels), host(device.hostThreads), graphsWanted(device.graphs) {}
  Status run(size_t index, DeviceGroups &groups);
  /// Launch, call, copy or fill: what needs nothing but its stream.
  Status runLocal(size_t index, Queue &queue);
  bool isLocal(size_t index) const;
  /// CallContext::settled of a call: which of its inputs the instruction before it did not write.
  uint32_t settledInputs(size_t index) const;
  /// Whose memory an instruction works on; copies may go from one to the other.
  enum class Memory { device, host, both };
  Memory memoryOf(size_t index) const;
  /// A copy between the device's memory and the host's.
  cudaError_t move(const BoundInstr &instr, cudaStream_t stream) const;
  size_t findGate() const;
  /// Whether times of this step are wanted.
  bool isTimed() const { return setup.profile && setup.profile->recording; }
  void cutIntoActions(bool record);
  Status record(Action &action);
  void dropGraphs();
  Status located(size_t index, Status status) const;

  ExecutorSetup setup;
  uint32_t number;
  const fb::Program &program;
  const Binding &binding;
  const std::vector<BoundInstr> &instrs;
  const KernelModule &kernels;
  HostWork host;
  bool graphsWanted;

  std::vector<Queue> queues;
  std::vector<Event> events; // of the program
  std::vector<Span> spans;   // of the steps since begin(), and unused ones
  size_t enqueued = 0;       // of them
  Event base;
  std::vector<Event> starts, stops; // one an instruction, for the profile
  double baseTime = 0;              // of `base`, microseconds since the run's start
  cublasLtHandle_t blaslt = nullptr;
  cudnnHandle_t cudnn = nullptr;
  Progress marks;
  // The error flag, which kernels write only when something is wrong, then one i32 for each
  // require_bound.
  PinnedBlock readBack;
  std::vector<size_t> requirements;      // slot of each instruction in readBack, 0: none
  std::map<size_t, RouteBuffers> routes; // by instruction; none if nobody looks or forces
  std::vector<Action> actions;
  size_t gate = 0; // the first instruction that may run only if every bound was large enough
  size_t ran = 0;  // instructions of the last step that were enqueued
  bool enqueuedOnce = false, recordedNow = false;
  uint32_t inGraphs = 0;
  std::string note;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_STEPQUEUE_H
