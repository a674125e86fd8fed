//===- CudaRunner.cpp - one rank runs one program on a CUDA device ----------===//
// See CudaRunner.h.
//===----------------------------------------------------------------------===//
#include "CudaRunner.h"

#include "moira/rt/Agree.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace moira::rt::cuda {

namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kInputAlignment = 64;

uint64_t bytesOfTensor(const TensorRef &tensor) {
  return static_cast<uint64_t>(tensor.elements()) * bytesOf(tensor.dtype);
}

} // namespace

Expected<std::unique_ptr<ProgramRunner>> makeRunner(const ExecutorSetup &setup,
                                                    const DeviceSetup &device) {
  auto runner = std::make_unique<CudaRunner>(setup, device);
  // Connecting is collective, so no rank does it before all know that nobody has failed.
  Status status = agree(runner->prepare(), *setup.communicator, "preparing memory and kernels");
  if (status)
    status = runner->connect();
  if (!status)
    return status;
  return std::unique_ptr<ProgramRunner>(std::move(runner));
}

CudaRunner::CudaRunner(const ExecutorSetup &setup, const DeviceSetup &device)
    : setup(setup), device(device), program(*setup.program),
      parts(new Parts(setup.plan->plan(), program, setup.communicator->rank())) {}

CudaRunner::~CudaRunner() {
  if (dead || !used())
    (void)parts.release();
}

/// Every thread that comes here works on this runner's device.
Status CudaRunner::used() {
  return check(cudaSetDevice(device.device), format("choosing device %d", device.device));
}

Status CudaRunner::prepare() {
  std::string_view target = setup.plan->plan().target()->string_view();
  if (target == "host" || program.reference() || setup.f64)
    return Status(ErrorId::PlanTarget,
                  format("the plan's target is %s, this device is cuda; compile with "
                         "--target=sm_90",
                         std::string(target).c_str()));
  if (Status s = used(); !s)
    return s;
  // The first call makes the context.
  size_t free = 0, total = 0;
  if (Status s = check(cudaFree(nullptr), "making a context"); !s)
    return s;
  if (Status s = check(cudaMemGetInfo(&free, &total), "reading the memory's size"); !s)
    return s;
  inUseBefore = total - free;
  parts->arenas.resize(parts->binding.arenaCount());
  if (Status s = allocate(false); !s)
    return s;
  Expected<std::unique_ptr<KernelModule>> kernels = KernelModule::load(*setup.plan);
  if (!kernels)
    return kernels.takeStatus();
  parts->kernels = std::move(*kernels);
  if (Status s = bind(); !s)
    return s;
  uint64_t inputBytes = 0;
  for (size_t i = 0; i < program.inputs()->size(); ++i)
    inputBytes += (bytesOfTensor(parts->binding.input(i)) + kInputAlignment - 1) / kInputAlignment *
                  kInputAlignment;
  Expected<PinnedBlock> inputs = PinnedBlock::allocate(inputBytes, "the inputs");
  if (!inputs)
    return inputs.takeStatus();
  parts->inputs = std::move(*inputs);
  Expected<std::unique_ptr<StepQueue>> queue =
      StepQueue::make(setup, parts->binding, parts->instrs, *parts->kernels, device.graphs);
  if (!queue)
    return queue.takeStatus();
  parts->queue = std::move(*queue);
  return {};
}

Status CudaRunner::connect() {
  prepareNccl(setup.communicator->rank(), device.shared, device.local);
  Expected<std::unique_ptr<DeviceGroups>> groups =
      DeviceGroups::make(parts->instrs, *setup.communicator, device.timeoutSeconds);
  if (!groups) {
    dead = true;
    return groups.takeStatus();
  }
  parts->groups = std::move(*groups);
  Watchdog::Subject subject;
  subject.host = setup.communicator;
  subject.groups = parts->groups.get();
  subject.progress = &parts->queue->progress();
  subject.timeoutSeconds = device.timeoutSeconds;
  subject.describe = [this](uint32_t instr) { return parts->binding.describe(instr); };
  subject.waitsForRanks = [this](uint32_t instr) {
    return program.instrs()->Get(instr)->kind() == fb::InstrKind::collective;
  };
  if (setup.communicator->size() > 1)
    parts->watchdog = std::make_unique<Watchdog>(std::move(subject));
  return {};
}

Status CudaRunner::allocate(bool raggedOnly) {
  for (size_t i = 0; i < parts->arenas.size(); ++i) {
    if (raggedOnly && !parts->binding.grows(i))
      continue;
    parts->arenas[i].release(); // before the larger one, so that the peak is what was planned
    Expected<DeviceBlock> block = DeviceBlock::allocate(parts->binding.arenaBytes(i),
                                                        parts->binding.arenaText(i), &parts->bytes);
    if (!block)
      return block.takeStatus();
    parts->arenas[i] = std::move(*block);
    parts->binding.placeArena(i, parts->arenas[i].data());
  }
  return {};
}

Status CudaRunner::bind() {
  Status status = parts->binding.bind(
      [&](uint32_t kernel) { return parts->kernels->kernel(kernel); }, parts->instrs);
  for (size_t i = 0; i < parts->instrs.size() && status.ok(); ++i)
    if (parts->instrs[i].kind == fb::InstrKind::collective)
      if (Status s = checkContiguous(parts->instrs[i]); !s)
        status.add(s.diagnostics().front().id,
                   parts->binding.describe(i) + ": " + s.diagnostics().front().message);
  return status;
}

Status CudaRunner::grow() {
  if (Status status = parts->binding.grow(parts->queue->needed()); !status)
    return status;
  if (Status status = allocate(true); !status)
    return status;
  parts->queue->rebound();
  return bind();
}

Status CudaRunner::loadWeights(const Checkpoint *checkpoint) {
  if (!checkpoint)
    return {};
  if (Status s = used(); !s)
    return s;
  // Two buffers: one is filled while the other is on its way.
  constexpr uint64_t kPieceBytes = uint64_t(32) << 20;
  uint64_t most = 0;
  auto pieces = [&](const fb::State &state, const Checkpoint *from, const auto &fn) {
    int64_t size = static_cast<int64_t>(bytesOf(state.dtype()));
    forEachPiece(state, position().shard(*state.shape(), *state.dims()), from,
                 static_cast<int64_t>(kPieceBytes) / size, fn);
  };
  for (const fb::State *state : *program.states())
    pieces(*state, nullptr, [&](const WeightPiece &piece) {
      most = std::max<uint64_t>(most, piece.elements() * bytesOf(state->dtype()));
    });
  PinnedBlock buffers[2];
  Event sent[2];
  for (int i = 0; i < 2; ++i) {
    Expected<PinnedBlock> block = PinnedBlock::allocate(most, "loading weights");
    if (!block)
      return block.takeStatus();
    buffers[i] = std::move(*block);
    Expected<Event> event = Event::make();
    if (!event)
      return event.takeStatus();
    sent[i] = std::move(*event);
  }
  cudaStream_t stream = parts->queue->firstStream();
  Status status;
  int turn = 0;
  for (const fb::State *state : *program.states())
    pieces(*state, checkpoint, [&](const WeightPiece &piece) {
      if (!status)
        return;
      size_t size = bytesOf(state->dtype());
      PinnedBlock &buffer = buffers[turn];
      // An event that was never recorded counts as done.
      status = check(cudaEventSynchronize(sent[turn].get()), "loading weights");
      if (!status)
        return;
      if (piece.inPiece.extent != piece.inPiece.shape)
        std::memset(buffer.data(), 0, piece.elements() * size);
      piece.load(*checkpoint, state->dtype(), buffer.data());
      status = check(cudaMemcpyAsync(parts->binding.stateData(*state) + piece.offset * size,
                                     buffer.data(), piece.elements() * size, cudaMemcpyHostToDevice,
                                     stream),
                     "loading weights");
      if (status)
        status = check(cudaEventRecord(sent[turn].get(), stream), "loading weights");
      turn = 1 - turn;
    });
  if (status)
    status = check(cudaStreamSynchronize(stream), "loading weights");
  dead |= !status.ok();
  return status;
}

Status CudaRunner::step(const InputSet &inputs) {
  if (Status s = used(); !s)
    return s;
  for (uint32_t number = 0;; ++number) {
    if (parts->watchdog)
      parts->watchdog->begin();
    Status status = attempt(inputs, number);
    if (parts->watchdog)
      parts->watchdog->end();
    if (!status) {
      dead = true;
      return status;
    }
    status = parts->queue->complaints();
    if (status)
      status = parts->queue->collectTimes(number);
    if (!status) {
      dead = true;
      return status;
    }
    parts->queue->collectRoutes();
    if (inUseAfter == 0) {
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      inUseAfter = total - free;
    }
    if (parts->queue->needed() <= static_cast<int64_t>(parts->binding.bound()))
      return {};
    // Every rank comes here with the same need, since plans reduce it over the mesh.
    Status grown = agree(grow(), *setup.communicator, "growing the ragged arena");
    if (!grown) {
      dead = true;
      together = grown.diagnostics().front().id != ErrorId::RankFailed;
      return grown;
    }
    ++retryCount;
    inUseAfter = 0;
  }
}

Status CudaRunner::attempt(const InputSet &inputs, uint32_t number) {
  auto upload = [&](cudaStream_t stream) -> Status {
    char *at = parts->inputs.data();
    for (size_t i = 0; i < program.inputs()->size(); ++i) {
      TensorRef view = parts->binding.input(i), staged = view;
      uint64_t bytes = bytesOfTensor(view);
      staged.data = at;
      inputs.store(i, position(), staged);
      if (Status s = check(cudaMemcpyAsync(view.data, at, bytes, cudaMemcpyHostToDevice, stream),
                           "sending the inputs");
          !s)
        return s;
      at += (bytes + kInputAlignment - 1) / kInputAlignment * kInputAlignment;
    }
    return {};
  };
  Status status = parts->queue->enqueue(upload, *parts->groups, number);
  if (!status) {
    // The device or a peer may have failed earlier than where it was noticed.
    if (Status device = deviceError(parts->queue->query()); !device)
      return device;
    Status verdict = parts->watchdog ? parts->watchdog->verdict() : Status();
    if (!verdict)
      return verdict;
    Status named;
    for (const Diagnostic &d : status.diagnostics())
      named.add(d.id, format("rank %d: %s", position().rank(), d.message.c_str()));
    return named;
  }
  return waitForDevice();
}

Status CudaRunner::waitForDevice() {
  auto start = Clock::now();
  for (;;) {
    cudaError_t code = parts->queue->query();
    if (code == cudaSuccess)
      return {};
    if (Status device = deviceError(code); !device)
      return device;
    if (parts->watchdog)
      if (Status verdict = parts->watchdog->verdict(); !verdict)
        return verdict;
    // Short steps are waited for awake.
    if (Clock::now() - start < std::chrono::milliseconds(200))
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

Status CudaRunner::deviceError(cudaError_t code) const {
  if (code == cudaSuccess || code == cudaErrorNotReady)
    return {};
  return Status(ErrorId::DeviceFailed,
                format("rank %d: %s: %s (%d) in %s", position().rank(), deviceText().c_str(),
                       cudaGetErrorString(code), static_cast<int>(code), failedAt().c_str()));
}

std::string CudaRunner::where() const {
  const Progress &progress = parts->queue->progress();
  auto kind = [&](uint32_t instr) { return program.instrs()->Get(instr)->kind(); };
  std::optional<uint32_t> best;
  for (size_t q = 0; q < progress.queues(); ++q) {
    std::optional<uint32_t> at = progress.at(q);
    if (!at)
      continue;
    // A queue that waits for another one is not where it happened.
    bool waits = kind(*at) == fb::InstrKind::wait;
    if (!best || (!waits && kind(*best) == fb::InstrKind::wait))
      best = at;
  }
  return best ? parts->binding.describe(*best) : "";
}

std::string CudaRunner::failedAt() const {
  std::string text = where();
  if (text.empty())
    return "the step";
  if (parts->queue->recorded())
    text += ", or what follows it in the same graph (--no-graphs tells)";
  return text;
}

Expected<std::vector<TensorRef>> CudaRunner::outputs() {
  if (Status s = used(); !s)
    return s;
  std::vector<TensorRef> refs;
  parts->outputs.resize(program.outputs()->size());
  for (size_t i = 0; i < parts->outputs.size(); ++i) {
    TensorRef view = parts->binding.output(i);
    parts->outputs[i].resize(bytesOfTensor(view));
    if (Status s = check(cudaMemcpy(parts->outputs[i].data(), view.data, parts->outputs[i].size(),
                                    cudaMemcpyDeviceToHost),
                         "reading the outputs");
        !s)
      return s;
    view.data = parts->outputs[i].data();
    refs.push_back(std::move(view));
  }
  return refs;
}

RankFigures CudaRunner::figures() const {
  uint64_t arenas = inUseBefore + parts->bytes.now;
  return {plannedBytes(program, parts->binding.bound(), false),
          parts->bytes.peak,
          0,
          parts->binding.bound(),
          retryCount,
          parts->queue->recorded(),
          inUseBefore,
          inUseAfter > arenas ? inUseAfter - arenas : 0};
}

} // namespace moira::rt::cuda
