//===- CudaRunner.cpp - one rank runs programs on a CUDA device -------------===//
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
    : setup(setup), device(device), parts(new Parts) {
  for (const fb::Program *program : setup.programs)
    parts->entries.push_back(
        std::make_unique<Entry>(setup.plan->plan(), *program, setup.communicator->rank()));
}

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
  if (target == "host" || setup.programs[0]->reference() || setup.f64)
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
  Expected<std::unique_ptr<KernelModule>> kernels = KernelModule::load(*setup.plan);
  if (!kernels)
    return kernels.takeStatus();
  parts->kernels = std::move(*kernels);
  if (Status s = allocate(); !s)
    return s;
  for (uint32_t number = 0; number < parts->entries.size(); ++number) {
    Entry &entry = *parts->entries[number];
    uint64_t inputBytes = 0;
    for (size_t i = 0; i < entry.program.inputs()->size(); ++i)
      inputBytes += (bytesOfTensor(entry.binding.input(i)) + kInputAlignment - 1) /
                    kInputAlignment * kInputAlignment;
    Expected<PinnedBlock> inputs = PinnedBlock::allocate(inputBytes, "the inputs");
    if (!inputs)
      return inputs.takeStatus();
    entry.inputs = std::move(*inputs);
    Expected<std::unique_ptr<StepQueue>> queue =
        StepQueue::make(setup, number, entry.binding, entry.instrs, *parts->kernels, device);
    if (!queue)
      return queue.takeStatus();
    entry.queue = std::move(*queue);
  }
  return {};
}

Status CudaRunner::connect() {
  prepareNccl(setup.communicator->rank(), device.shared, device.local);
  std::vector<const std::vector<BoundInstr> *> programs;
  for (const auto &entry : parts->entries)
    programs.push_back(&entry->instrs);
  Expected<std::unique_ptr<DeviceGroups>> groups =
      DeviceGroups::make(programs, *setup.communicator, device.timeoutSeconds);
  if (!groups) {
    dead = true;
    return groups.takeStatus();
  }
  parts->groups = std::move(*groups);
  if (setup.communicator->size() == 1)
    return {};
  for (const auto &each : parts->entries) {
    const Entry *entry = each.get();
    Watchdog::Subject subject;
    subject.host = setup.communicator;
    subject.groups = parts->groups.get();
    subject.progress = &entry->queue->progress();
    subject.timeoutSeconds = device.timeoutSeconds;
    subject.describe = [entry](uint32_t instr) { return entry->binding.describe(instr); };
    subject.waitsForRanks = [entry](uint32_t instr) {
      return entry->program.instrs()->Get(instr)->kind() == fb::InstrKind::collective;
    };
    each->watchdog = std::make_unique<Watchdog>(std::move(subject));
  }
  return {};
}

std::vector<uint64_t> CudaRunner::arenaSizes() const {
  std::vector<uint64_t> sizes;
  for (const auto &entry : parts->entries)
    mergeArenaSizes(entry->binding, sizes);
  return sizes;
}

Status CudaRunner::allocate() {
  std::vector<uint64_t> wanted = arenaSizes();
  parts->arenas.resize(wanted.size());
  parts->hostArenas.resize(wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (isOnHost(i)) {
      if (parts->hostArenas[i].data()) // does not grow with the bound
        continue;
      Expected<PinnedBlock> block = PinnedBlock::allocate(
          wanted[i], parts->entries[0]->binding.arenaText(i) + ", page-locked");
      if (!block)
        return block.takeStatus();
      parts->hostArenas[i] = std::move(*block);
      parts->hostBytes += wanted[i];
      continue;
    }
    if (parts->arenas[i].data() && parts->arenas[i].bytes() == wanted[i])
      continue;
    parts->arenas[i].release(); // before the larger one, so that the peak is what was planned
    const Entry *largest = nullptr;
    for (const auto &entry : parts->entries)
      if (i < entry->binding.arenaCount() && entry->binding.arenaBytes(i) == wanted[i])
        largest = entry.get();
    Expected<DeviceBlock> block =
        DeviceBlock::allocate(wanted[i], largest->binding.arenaText(i), &parts->bytes);
    if (!block)
      return block.takeStatus();
    parts->arenas[i] = std::move(*block);
  }
  Status status;
  for (const auto &entry : parts->entries) {
    for (size_t i = 0; i < entry->binding.arenaCount(); ++i)
      entry->binding.placeArena(i, isOnHost(i) ? parts->hostArenas[i].data()
                                               : parts->arenas[i].data());
    status.append(bind(*entry));
  }
  return status;
}

bool CudaRunner::isOnHost(size_t arena) const {
  for (const auto &entry : parts->entries)
    if (arena < entry->binding.arenaCount())
      return entry->program.arenas()->Get(static_cast<unsigned>(arena))->space() == fb::Space::host;
  return false;
}

bool CudaRunner::crosses(const Entry &entry, size_t copy) const {
  const fb::Instr &instr = *entry.program.instrs()->Get(static_cast<unsigned>(copy));
  auto onHost = [&](uint32_t view) { return isOnHost(entry.program.views()->Get(view)->arena()); };
  return onHost(instr.inputs()->Get(0)) != onHost(instr.outputs()->Get(0));
}

Status CudaRunner::bind(Entry &entry) {
  Status status = entry.binding.bind(
      [&](uint32_t kernel) { return parts->kernels->kernel(kernel); }, entry.instrs);
  for (size_t i = 0; i < entry.instrs.size() && status.ok(); ++i) {
    const BoundInstr &instr = entry.instrs[i];
    if (instr.kind == fb::InstrKind::copy && instr.box.extent != instr.box.shape &&
        crosses(entry, i))
      status.add(ErrorId::BadRun, entry.binding.describe(i) +
                                      ": moves a part of a tensor between device and host, which "
                                      "this device does not; compile the plan again");
    if (instr.kind == fb::InstrKind::collective)
      if (Status s = checkContiguous(entry.instrs[i]); !s)
        status.add(s.diagnostics().front().id,
                   entry.binding.describe(i) + ": " + s.diagnostics().front().message);
  }
  if (entry.queue)
    entry.queue->rebound();
  return status;
}

Status CudaRunner::grow(Entry &entry) {
  if (Status status = entry.binding.grow(entry.queue->needed()); !status)
    return status;
  return allocate();
}

Status CudaRunner::loadWeights(const Checkpoint *checkpoint) {
  if (!checkpoint)
    return {};
  if (Status s = used(); !s)
    return s;
  uint64_t most = 0;
  auto pieces = [&](const fb::State &state, const Checkpoint *from, const auto &fn) {
    int64_t size = static_cast<int64_t>(bytesOf(state.dtype()));
    forEachPiece(state, position().shard(*state.shape(), *state.dims()), from,
                 static_cast<int64_t>(Ferry::kBytes) / size, fn);
  };
  const Binding &binding = parts->entries[0]->binding; // the states are the same for all
  std::vector<const fb::State *> states;
  for (const fb::State *state : *setup.plan->plan().states())
    if (state->source())
      states.push_back(state);
  for (const fb::State *state : states)
    pieces(*state, nullptr, [&](const WeightPiece &piece) {
      most = std::max<uint64_t>(most, piece.elements() * bytesOf(state->dtype()));
    });
  Ferry ferry;
  if (Status s = ferry.make(most, "loading weights"); !s)
    return s;
  cudaStream_t stream = parts->entries[0]->queue->firstStream();
  Status status;
  int turn = 0;
  for (const fb::State *state : states)
    pieces(*state, checkpoint, [&](const WeightPiece &piece) {
      if (!status)
        return;
      size_t size = bytesOf(state->dtype());
      if (isOnHost(state->arena())) { // zeros as yet
        piece.load(*checkpoint, state->dtype(), binding.stateData(*state) + piece.offset * size);
        return;
      }
      PinnedBlock &buffer = ferry.buffers[turn];
      // An event that was never recorded counts as done.
      status = check(cudaEventSynchronize(ferry.moved[turn].get()), "loading weights");
      if (!status)
        return;
      if (piece.inPiece.extent != piece.inPiece.shape)
        std::memset(buffer.data(), 0, piece.elements() * size);
      piece.load(*checkpoint, state->dtype(), buffer.data());
      status = check(cudaMemcpyAsync(binding.stateData(*state) + piece.offset * size, buffer.data(),
                                     piece.elements() * size, cudaMemcpyHostToDevice, stream),
                     "loading weights");
      if (status)
        status = check(cudaEventRecord(ferry.moved[turn].get(), stream), "loading weights");
      turn = 1 - turn;
    });
  if (status)
    status = check(cudaStreamSynchronize(stream), "loading weights");
  dead |= !status.ok();
  return status;
}

Status CudaRunner::Ferry::make(uint64_t bytes, const std::string &what) {
  for (int i = 0; i < 2; ++i) {
    Expected<PinnedBlock> block = PinnedBlock::allocate(bytes, what);
    if (!block)
      return block.takeStatus();
    buffers[i] = std::move(*block);
    Expected<Event> event = Event::make();
    if (!event)
      return event.takeStatus();
    moved[i] = std::move(*event);
  }
  return {};
}

std::vector<TensorRef> CudaRunner::states() {
  std::vector<TensorRef> refs;
  for (const fb::State *state : *setup.plan->plan().states())
    refs.push_back(
        {isOnHost(state->arena()) ? parts->entries[0]->binding.stateData(*state) : nullptr,
         state->dtype(), position().shard(*state->shape(), *state->dims()).local});
  return refs;
}

Status CudaRunner::readState(size_t state, void *to) {
  return moveState(state, static_cast<char *>(to), false);
}

Status CudaRunner::writeState(size_t state, const void *from) {
  return moveState(state, const_cast<char *>(static_cast<const char *>(from)), true);
}

Status CudaRunner::moveState(size_t index, char *host, bool toDevice) {
  const char *what = toDevice ? "sending a state" : "fetching a state";
  if (Status s = used(); !s)
    return s;
  char *there = parts->entries[0]->binding.stateData(
      *setup.plan->plan().states()->Get(static_cast<unsigned>(index)));
  TensorRef ref = states()[index];
  uint64_t bytes = bytesOfTensor(ref);
  cudaStream_t stream = parts->entries[0]->queue->firstStream();
  cudaPointerAttributes attributes;
  if (Status s = check(cudaPointerGetAttributes(&attributes, host), what); !s)
    return s;
  if (attributes.type == cudaMemoryTypeDevice) {
    Status status = check(cudaMemcpyAsync(toDevice ? there : host, toDevice ? host : there, bytes,
                                          cudaMemcpyDefault, stream),
                          what);
    if (status)
      status = check(cudaStreamSynchronize(stream), what);
    dead |= !status.ok();
    return status;
  }
  if (ref.data) {
    std::memcpy(toDevice ? ref.data : host, toDevice ? host : ref.data, bytes);
    return {};
  }
  if (!parts->ferry) {
    auto ferry = std::make_unique<Ferry>();
    if (Status s = ferry->make(Ferry::kBytes, "moving states"); !s)
      return s;
    parts->ferry = std::move(ferry);
  }
  Ferry &ferry = *parts->ferry;
  Status status;
  // Piece i is copied on the host while piece i + 1, or i - 1, is copied by the device.
  uint64_t pieces = (bytes + Ferry::kBytes - 1) / Ferry::kBytes;
  auto sizeOf = [&](uint64_t i) { return std::min(Ferry::kBytes, bytes - i * Ferry::kBytes); };
  auto onHost = [&](uint64_t i) {
    status = check(cudaEventSynchronize(ferry.moved[i % 2].get()), what);
    char *buffer = ferry.buffers[i % 2].data(), *at = host + i * Ferry::kBytes;
    if (status)
      std::memcpy(toDevice ? buffer : at, toDevice ? at : buffer, sizeOf(i));
  };
  auto onDevice = [&](uint64_t i) {
    char *buffer = ferry.buffers[i % 2].data(), *at = there + i * Ferry::kBytes;
    status =
        check(cudaMemcpyAsync(toDevice ? at : buffer, toDevice ? buffer : at, sizeOf(i),
                              toDevice ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream),
              what);
    if (status)
      status = check(cudaEventRecord(ferry.moved[i % 2].get(), stream), what);
  };
  if (!toDevice && pieces > 0)
    onDevice(0);
  for (uint64_t i = 0; i < pieces && status; ++i) {
    if (toDevice) {
      onHost(i);
      if (status)
        onDevice(i);
      continue;
    }
    if (i + 1 < pieces)
      onDevice(i + 1);
    if (status)
      onHost(i);
  }
  if (status)
    status = check(cudaStreamSynchronize(stream), what);
  dead |= !status.ok();
  return status;
}

Status CudaRunner::step(const InputSet &inputs, size_t program) {
  return run(inputs, *parts->entries[program], 1);
}

Status CudaRunner::steps(const InputSet &inputs, std::span<double> seconds, size_t program) {
  Entry &entry = *parts->entries[program];
  const size_t most = setup.communicator->size() == 1 ? entry.queue->mostTogether() : 1;
  while (!seconds.empty()) {
    const size_t count = std::min(most, seconds.size());
    if (Status s = run(inputs, entry, count); !s)
      return s;
    for (size_t i = 0; i < count; ++i)
      seconds[i] = entry.queue->seconds(i);
    seconds = seconds.subspan(count);
  }
  return {};
}

Status CudaRunner::run(const InputSet &inputs, Entry &entry, size_t count) {
  if (Status s = used(); !s)
    return s;
  for (uint32_t number = 0;; ++number) {
    if (entry.watchdog)
      entry.watchdog->begin();
    Status status = attempt(entry, inputs, number, count);
    if (entry.watchdog)
      entry.watchdog->end();
    if (!status) {
      dead = true;
      return status;
    }
    status = entry.queue->complaints();
    if (status)
      status = entry.queue->collectTimes(number);
    if (!status) {
      dead = true;
      return status;
    }
    entry.queue->collectRoutes();
    if (inUseAfter == 0) {
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      inUseAfter = total - free;
    }
    if (entry.queue->needed() <= static_cast<int64_t>(entry.binding.bound()))
      return {};
    // Every rank comes here with the same need, since plans reduce it over the mesh.
    Status grown = agree(grow(entry), *setup.communicator, "growing the ragged arena");
    if (!grown) {
      dead = true;
      together = grown.diagnostics().front().id != ErrorId::RankFailed;
      return grown;
    }
    ++retryCount;
    inUseAfter = 0;
  }
}

Status CudaRunner::attempt(Entry &entry, const InputSet &inputs, uint32_t number, size_t count) {
  bool staged = false; // where the device copies from
  auto upload = [&](cudaStream_t stream) -> Status {
    char *at = entry.inputs.data();
    for (size_t i = 0; i < entry.program.inputs()->size(); ++i) {
      TensorRef view = entry.binding.input(i), source = view;
      uint64_t bytes = bytesOfTensor(view);
      source.data = at;
      if (!staged)
        inputs.store(i, position(), source);
      if (Status s = check(cudaMemcpyAsync(view.data, at, bytes, cudaMemcpyHostToDevice, stream),
                           "sending the inputs");
          !s)
        return s;
      at += (bytes + kInputAlignment - 1) / kInputAlignment * kInputAlignment;
    }
    staged = true;
    return {};
  };
  Status waited;
  auto wait = [&](cudaEvent_t event) { return waited = waitForDevice(entry, event); };
  entry.queue->begin();
  Status status;
  for (size_t i = 0; i < count && status.ok(); ++i)
    status = entry.queue->enqueue(upload, *parts->groups, number, wait);
  if (!waited)
    return waited;
  if (!status) {
    // The device or a peer may have failed earlier than where it was noticed.
    if (Status device = deviceError(entry, cudaEventQuery(entry.queue->end())); !device)
      return device;
    Status verdict = entry.watchdog ? entry.watchdog->verdict() : Status();
    if (!verdict)
      return verdict;
    Status named;
    for (const Diagnostic &d : status.diagnostics())
      named.add(d.id, format("rank %d: %s", position().rank(), d.message.c_str()));
    return named;
  }
  status = waitForDevice(entry, entry.queue->end());
  if (status)
    entry.queue->done();
  return status;
}

Status CudaRunner::waitForDevice(Entry &entry, cudaEvent_t event) {
  auto start = Clock::now();
  for (;;) {
    cudaError_t code = cudaEventQuery(event);
    if (code == cudaSuccess)
      return {};
    if (Status device = deviceError(entry, code); !device)
      return device;
    if (entry.watchdog)
      if (Status verdict = entry.watchdog->verdict(); !verdict)
        return verdict;
    // Short steps are waited for awake.
    if (Clock::now() - start < std::chrono::milliseconds(200))
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

Status CudaRunner::deviceError(const Entry &entry, cudaError_t code) const {
  if (code == cudaSuccess || code == cudaErrorNotReady)
    return {};
  return Status(ErrorId::DeviceFailed,
                format("rank %d: %s: %s (%d) in %s", position().rank(), deviceText().c_str(),
                       cudaGetErrorString(code), static_cast<int>(code), failedAt(entry).c_str()));
}

std::string CudaRunner::where() const {
  for (const auto &entry : parts->entries)
    if (std::string text = whereOf(*entry); !text.empty())
      return text;
  return "";
}

std::string CudaRunner::whereOf(const Entry &entry) {
  const Progress &progress = entry.queue->progress();
  auto kind = [&](uint32_t instr) { return entry.program.instrs()->Get(instr)->kind(); };
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
  return best ? entry.binding.describe(*best) : "";
}

std::string CudaRunner::failedAt(const Entry &entry) const {
  std::string text = whereOf(entry);
  if (text.empty())
    return "the step";
  if (entry.queue->recorded())
    text += ", or what follows it in the same graph (--no-graphs tells)";
  return text;
}

Expected<std::vector<TensorRef>> CudaRunner::outputs(size_t program) {
  if (Status s = used(); !s)
    return s;
  Entry &entry = *parts->entries[program];
  std::vector<TensorRef> refs;
  entry.outputs.resize(entry.program.outputs()->size());
  for (size_t i = 0; i < entry.outputs.size(); ++i) {
    TensorRef view = entry.binding.output(i);
    entry.outputs[i].resize(bytesOfTensor(view));
    if (Status s = check(cudaMemcpy(entry.outputs[i].data(), view.data, entry.outputs[i].size(),
                                    cudaMemcpyDeviceToHost),
                         "reading the outputs");
        !s)
      return s;
    view.data = entry.outputs[i].data();
    refs.push_back(std::move(view));
  }
  return refs;
}

RankFigures CudaRunner::figures() const {
  uint64_t arenas = inUseBefore + parts->bytes.now, planned = 0;
  for (uint64_t bytes : arenaSizes())
    planned += bytes;
  uint32_t recorded = 0;
  for (const auto &entry : parts->entries)
    recorded += entry->queue->recorded();
  return {planned,     parts->bytes.peak + parts->hostBytes,
          0,           parts->entries[0]->binding.bound(),
          retryCount,  recorded,
          inUseBefore, inUseAfter > arenas ? inUseAfter - arenas : 0};
}

} // namespace moira::rt::cuda
