//===- StepQueue.cpp - a step's instructions on streams ---------------------===//
// See StepQueue.h.
//===----------------------------------------------------------------------===//
#include "StepQueue.h"

#include <algorithm>

namespace moira::rt::cuda {

namespace {

/// Steps that are enqueued together at most.
constexpr size_t kMostTogether = 32;

double microsecondsSince(std::chrono::steady_clock::time_point epoch) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - epoch)
      .count();
}

} // namespace

Expected<std::unique_ptr<StepQueue>> StepQueue::make(const ExecutorSetup &setup, uint32_t number,
                                                     const Binding &binding,
                                                     const std::vector<BoundInstr> &instrs,
                                                     const KernelModule &kernels,
                                                     const DeviceSetup &device) {
  std::unique_ptr<StepQueue> made(new StepQueue(setup, number, binding, instrs, kernels, device));
  StepQueue &q = *made;
  Status problems;
  auto take = [&](auto &to, auto expected) {
    if (expected)
      to = std::move(*expected);
    else
      problems.append(expected.takeStatus());
  };
  // A missing cuBLASLt is no reason to fail: products then run on Moira's own kernels.
  if (Expected<cublasLtHandle_t> handle = createBlasLt())
    q.blaslt = *handle;
  // Nor is a missing cuDNN, which only attention in order asks for.
  if (std::any_of(instrs.begin(), instrs.end(), [](const BoundInstr &instr) {
        return instr.call.starts_with("attention") && isInOrder(instr.params);
      }))
    if (Expected<cudnnHandle_t> handle = createCudnn())
      q.cudnn = *handle;
  take(q.base, Event::make(true));
  size_t count = std::max<size_t>(1, q.program.queues()->size());
  take(q.marks, Progress::make(count));
  q.queues.resize(count);
  q.requirements.assign(instrs.size(), 0);
  size_t slots = 1;
  for (size_t i = 0; i < instrs.size(); ++i)
    if (instrs[i].kind == fb::InstrKind::require_bound)
      q.requirements[i] = slots++;
  take(q.readBack, PinnedBlock::allocate(slots * sizeof(int32_t), "values read back"));
  q.gate = q.findGate();
  q.spans.resize(q.mostTogether());
  for (Span &span : q.spans) {
    take(span.ready, Event::make(true));
    take(span.finished, Event::make(true));
  }
  for (size_t n = 0; n < count && problems.ok(); ++n) {
    Queue &queue = q.queues[n];
    take(queue.stream, Stream::make());
    take(queue.joined, Event::make());
    auto has = [&](fb::InstrKind kind) {
      return std::any_of(instrs.begin(), instrs.end(), [&](const BoundInstr &instr) {
        return instr.queue == n && instr.kind == kind;
      });
    };
    if (has(fb::InstrKind::require_bound))
      take(queue.bounded, Event::make());
    bool calls = false; // of the device
    for (size_t i = 0; i < instrs.size(); ++i)
      calls |= instrs[i].queue == n && instrs[i].kind == fb::InstrKind::call &&
               q.memoryOf(i) == Memory::device;
    if (calls)
      take(queue.workspace, DeviceBlock::allocate(kWorkspaceBytes, "a workspace of library calls"));
    queue.context.stream = queue.stream.get();
    queue.context.blaslt = q.blaslt;
    queue.context.cudnn = q.cudnn;
    queue.context.workspace = queue.workspace.data();
    queue.context.workspaceBytes = queue.workspace.bytes();
    queue.context.errorFlag = q.readBack.as<int32_t>();
  }
  for (size_t i = 0; i < instrs.size() && setup.routes; ++i)
    if (instrs[i].isRoute)
      take(q.routes[i], RouteBuffers::make(*setup.routes, i, instrs[i]));
  q.events.resize(q.program.events());
  for (Event &event : q.events)
    take(event, Event::make());
  if (setup.profile)
    for (std::vector<Event> *list : {&q.starts, &q.stops}) {
      list->resize(instrs.size());
      for (Event &event : *list)
        take(event, Event::make(true));
    }
  if (!problems)
    return problems;
  q.cutIntoActions(false);
  return made;
}

StepQueue::~StepQueue() {
  dropGraphs();
  if (blaslt)
    destroyBlasLt(blaslt);
  if (cudnn)
    destroyCudnn(cudnn);
}

void StepQueue::dropGraphs() {
  for (Action &action : actions)
    if (action.graph)
      cudaGraphExecDestroy(action.graph);
  actions.clear();
  inGraphs = 0;
  recordedNow = false;
}

void StepQueue::rebound() {
  enqueuedOnce = false;
  cutIntoActions(false);
}

StepQueue::Memory StepQueue::memoryOf(size_t index) const {
  const fb::Instr &instr = *program.instrs()->Get(static_cast<unsigned>(index));
  bool device = false, host = false;
  for (const auto *views : {instr.inputs(), instr.outputs()})
    for (size_t i = 0; views && i < views->size(); ++i) {
      const fb::View *view = program.views()->Get(views->Get(static_cast<unsigned>(i)));
      bool onHost = program.arenas()->Get(view->arena())->space() == fb::Space::host;
      (onHost ? host : device) = true;
    }
  return !host ? Memory::device : device ? Memory::both : Memory::host;
}

cudaError_t StepQueue::move(const BoundInstr &instr, cudaStream_t stream) const {
  const TensorRef &from = instr.in[0], &to = instr.out[0];
  return cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(to.elements()) * bytesOf(to.dtype),
                         cudaMemcpyDefault, stream);
}

bool StepQueue::isLocal(size_t index) const {
  if (memoryOf(index) == Memory::host)
    return false;
  switch (instrs[index].kind) {
  case fb::InstrKind::launch:
  case fb::InstrKind::call:
  case fb::InstrKind::copy:
  case fb::InstrKind::fill:
    return true;
  default:
    return false;
  }
}

uint32_t StepQueue::settledInputs(size_t index) const {
  const std::vector<TensorRef> &inputs = instrs[index].in;
  auto bytes = [](const TensorRef &t) {
    return static_cast<size_t>(t.elements()) * bytesOf(t.dtype);
  };
  uint32_t settled = ~uint32_t(0);
  for (size_t i = index; i-- > 0;) {
    const BoundInstr &before = instrs[i];
    if (before.queue != instrs[index].queue)
      continue;
    if (!isLocal(i))
      return 0;
    for (const TensorRef &out : before.out) {
      const char *written = static_cast<const char *>(out.data);
      for (size_t n = 0; n < inputs.size() && n < 32; ++n) {
        const char *read = static_cast<const char *>(inputs[n].data);
        if (written < read + bytes(inputs[n]) && read < written + bytes(out))
          settled &= ~(uint32_t(1) << n);
      }
    }
    // What has nothing to do may launch nothing; then the one before it is the last one.
    bool works = before.kind != fb::InstrKind::launch || before.rows > 0;
    for (const auto *operands : {&before.in, &before.out})
      for (const TensorRef &operand : *operands)
        works &= bytes(operand) > 0;
    if (works)
      return settled;
  }
  return 0;
}

/// A step that is repeated must find the states that it found at first, so what changes them waits
/// for the bounds. Rows that are written anew (write_rows) may be written twice. The plan's order
/// has every such change behind every require_bound (docs/plan-format.md, rules O8 and O9).
size_t StepQueue::findGate() const {
  bool bounds = false;
  for (size_t i = 0; i < instrs.size(); ++i) {
    bounds |= instrs[i].kind == fb::InstrKind::require_bound;
    bool rows = instrs[i].kind == fb::InstrKind::call && instrs[i].call == "write_rows";
    const auto *outputs = program.instrs()->Get(static_cast<unsigned>(i))->outputs();
    if (!bounds || rows || !outputs)
      continue;
    for (uint32_t view : *outputs) {
      const fb::Arena *arena = program.arenas()->Get(program.views()->Get(view)->arena());
      if (arena->role() == fb::ArenaRole::state)
        return i;
    }
  }
  return instrs.size();
}

void StepQueue::cutIntoActions(bool record) {
  dropGraphs();
  for (size_t i = 0; i < instrs.size();) {
    size_t end = i + 1;
    if (record && isLocal(i))
      while (end < instrs.size() && end != gate && isLocal(end) &&
             instrs[end].queue == instrs[i].queue)
        ++end;
    actions.push_back({i, end});
    i = end;
  }
}

/// The stream's work becomes a graph of exactly the launches that were made the first time: the
/// same code runs with the same addresses, which do not change until rebound().
Status StepQueue::record(Action &action) {
  Queue &queue = queues[instrs[action.first].queue];
  cudaStream_t stream = queue.stream.get();
  if (Status s = check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                       "recording a graph");
      !s)
    return s;
  Status status;
  for (size_t i = action.first; i < action.last && status.ok(); ++i)
    status = runLocal(i, queue);
  cudaGraph_t graph = nullptr;
  cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (status && ended == cudaSuccess)
    ended = cudaGraphInstantiate(&action.graph, graph, 0);
  if (graph)
    cudaGraphDestroy(graph);
  if (status)
    status = check(ended, "recording a graph");
  if (status)
    status = check(cudaGraphUpload(action.graph, stream), "uploading a graph");
  return status;
}

size_t StepQueue::mostTogether() const {
  bool bounds = std::any_of(requirements.begin(), requirements.end(), [](size_t s) { return s; });
  return bounds || setup.routes || setup.profile ? 1 : kMostTogether;
}

void StepQueue::begin() {
  marks.reset();
  host.reset();
  readBack.as<int32_t>()[0] = 0;
  for (size_t slot : requirements)
    if (slot)
      readBack.as<int32_t>()[slot] = 0;
  enqueued = 0;
}

Status StepQueue::enqueue(const std::function<Status(cudaStream_t)> &inputs, DeviceGroups &groups,
                          uint32_t attempt, const std::function<Status(cudaEvent_t)> &wait) {
  // A graph has no times of its instructions.
  if (recordedNow && isTimed())
    rebound();
  if (graphsWanted && enqueuedOnce && !recordedNow && !isTimed()) {
    cutIntoActions(true);
    recordedNow = true;
    for (Action &action : actions) {
      if (action.last - action.first < 2)
        continue;
      if (Status s = record(action); !s) {
        // What cannot be recorded is enqueued as before, for good.
        cudaGetLastError();
        note = s.diagnostics().front().message;
        graphsWanted = false;
        cutIntoActions(false);
        break;
      }
      inGraphs += static_cast<uint32_t>(action.last - action.first);
    }
  }

  Span &span = spans[enqueued++];
  cudaStream_t first = firstStream();
  if (Status s = inputs(first); !s)
    return s;
  if (isTimed()) {
    cudaEventRecord(base.get(), first);
    baseTime = microsecondsSince(setup.epoch);
  }
  cudaEventRecord(span.ready.get(), first);
  for (size_t q = 1; q < queues.size(); ++q)
    cudaStreamWaitEvent(queues[q].stream.get(), span.ready.get(), 0);

  // Where there is one action, the device need not say that it is there.
  const bool marked = actions.size() != 1 || queues.size() != 1;
  if (!marked)
    marks.assume(0, static_cast<uint32_t>(actions.front().first));
  ran = 0;
  for (const Action &action : actions) {
    if (action.first == gate) {
      for (Queue &queue : queues)
        if (queue.bounded.get())
          if (Status s = wait(queue.bounded.get()); !s)
            return s;
      if (needed() > static_cast<int64_t>(binding.bound()))
        break;
    }
    Queue &queue = queues[instrs[action.first].queue];
    cudaStream_t stream = queue.stream.get();
    if (marked && instrs[action.first].kind != fb::InstrKind::record)
      if (Status s = check(
              marks.reach(instrs[action.first].queue, static_cast<uint32_t>(action.first), stream),
              binding.describe(action.first));
          !s)
        return s;
    if (isTimed())
      cudaEventRecord(starts[action.first].get(), stream);
    Status status = action.graph
                        ? located(action.first,
                                  check(cudaGraphLaunch(action.graph, stream), "replaying a graph"))
                        : run(action.first, groups);
    if (isTimed())
      cudaEventRecord(stops[action.first].get(), stream);
    if (!status)
      return status;
    ran = action.last;
  }

  for (size_t q = 0; q < queues.size(); ++q) {
    cudaStream_t stream = queues[q].stream.get();
    if (marked)
      marks.finish(q, stream);
    if (q == 0)
      continue;
    cudaEventRecord(queues[q].joined.get(), stream);
    cudaStreamWaitEvent(first, queues[q].joined.get(), 0);
  }
  enqueuedOnce = true;
  return check(cudaEventRecord(span.finished.get(), first), "the end of the step");
}

Status StepQueue::located(size_t index, Status status) const {
  Status result;
  for (const Diagnostic &d : status.diagnostics())
    result.add(d.id, binding.describe(index) + ": " + d.message);
  return result;
}

Status StepQueue::run(size_t index, DeviceGroups &groups) {
  const BoundInstr &instr = instrs[index];
  Queue &queue = queues[instr.queue];
  cudaStream_t stream = queue.stream.get();
  switch (instr.kind) {
  case fb::InstrKind::collective:
    return located(index, groups.run(instr, stream));
  case fb::InstrKind::require_bound:
    if (Status s =
            check(cudaMemcpyAsync(readBack.as<int32_t>() + requirements[index], instr.in[0].data,
                                  sizeof(int32_t), cudaMemcpyDeviceToHost, stream),
                  "reading the bound");
        !s)
      return located(index, s);
    return located(index, check(cudaEventRecord(queue.bounded.get(), stream), "an event"));
  case fb::InstrKind::record:
    return located(index, check(cudaEventRecord(events[instr.event].get(), stream), "an event"));
  case fb::InstrKind::wait:
    return located(index,
                   check(cudaStreamWaitEvent(stream, events[instr.event].get(), 0), "an event"));
  default:
    return runLocal(index, queue);
  }
}

Status StepQueue::runLocal(size_t index, Queue &queue) {
  const BoundInstr &instr = instrs[index];
  Memory memory = memoryOf(index);
  if (memory == Memory::both)
    return located(index, check(move(instr, queue.stream.get()), "a move"));
  if (memory == Memory::host)
    return located(index,
                   check(host.enqueue(index, instr, binding.describe(index), queue.stream.get()),
                         "work of the host"));
  switch (instr.kind) {
  case fb::InstrKind::launch:
    return located(index, kernels.launch(*static_cast<const Kernel *>(instr.kernel), instr.operands,
                                         instr.rows, queue.stream.get()));
  case fb::InstrKind::call:
    queue.context.settled = settledInputs(index);
    if (auto buffers = routes.find(index); buffers != routes.end())
      return located(index, buffers->second.enqueue(instr, queue.context));
    return located(index,
                   runCudaCall(instr.call, instr.in, instr.out, instr.params, queue.context));
  case fb::InstrKind::copy:
    return located(index, runCudaCopy(Box::all(instr.out[0].shape), instr.out[0].data, instr.box,
                                      instr.in[0].data, bytesOf(instr.in[0].dtype), queue.context));
  case fb::InstrKind::fill:
    return located(index, runCudaFill(instr.out[0], instr.fill, queue.context));
  default:
    return {};
  }
}

double StepQueue::seconds(size_t step) const {
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, spans[step].ready.get(), spans[step].finished.get());
  return milliseconds / 1e3;
}

void StepQueue::collectRoutes() {
  for (auto &[index, buffers] : routes)
    buffers.collect(instrs[index]);
}

int64_t StepQueue::needed() const {
  int64_t most = 0;
  for (size_t slot : requirements)
    if (slot)
      most = std::max<int64_t>(most, readBack.as<int32_t>()[slot]);
  return most;
}

Status StepQueue::complaints() const {
  if (Status failure = host.failure(); !failure)
    return failure;
  int32_t code = readBack.as<int32_t>()[0];
  if (code == 0)
    return {};
  return Status(ErrorId::BadRun,
                format("rank %d: %s; the plan or its data is damaged: compile the "
                       "plan again",
                       binding.position().rank(), describeErrorFlag(code).c_str()));
}

Status StepQueue::collectTimes(uint32_t attempt) {
  if (!isTimed())
    return {};
  for (size_t i = 0; i < ran; ++i) {
    float start = 0, took = 0;
    cudaError_t code = cudaEventElapsedTime(&start, base.get(), starts[i].get());
    if (code == cudaSuccess)
      code = cudaEventElapsedTime(&took, starts[i].get(), stops[i].get());
    if (Status s = check(code, "reading times"); !s)
      return s;
    setup.profile->events.push_back(
        {number, static_cast<uint32_t>(i), attempt, baseTime + start * 1e3, took * 1e3});
  }
  return {};
}

} // namespace moira::rt::cuda
