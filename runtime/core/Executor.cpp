//===- Executor.cpp - one rank runs one program ---------------------------===//
// Memory, the step and its repetition. Binding is in Binding.cpp.
//===----------------------------------------------------------------------===//
#include "moira/rt/Executor.h"

#include "moira/rt/Agree.h"
#include "moira/rt/HostThreads.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace moira::rt {
namespace {

template <size_t> using PointerFor = void *;

template <size_t... I>
void callKernel(void *kernel, void *const *operands, int64_t rows, std::index_sequence<I...>) {
  // One argument type for each operand: `void k(void *op0, …, int64_t rows)`.
  reinterpret_cast<void (*)(PointerFor<I>..., int64_t)>(kernel)(operands[I]..., rows);
}

template <size_t N = 0>
void callKernel(void *kernel, std::span<void *const> operands, int64_t rows) {
  if constexpr (N <= kMaxOperands) {
    if (operands.size() == N)
      return callKernel(kernel, operands.data(), rows, std::make_index_sequence<N>());
    callKernel<N + 1>(kernel, operands, rows);
  }
}

/// Bytes of a kernel's operands that are worth a thread's while.
constexpr int64_t kLaunchBytes = 256 << 10;

/// Rows are computed each by itself, so they may be shared out among threads.
void launch(const BoundInstr &instr) {
  int64_t bytes = std::accumulate(instr.rowBytes.begin(), instr.rowBytes.end(), int64_t(0));
  int64_t piece = std::max<int64_t>(1, kLaunchBytes / std::max<int64_t>(1, bytes));
  host::parallelFor((instr.rows + piece - 1) / piece, [&](int64_t i) {
    void *operands[kMaxOperands];
    for (size_t j = 0; j < instr.operands.size(); ++j)
      operands[j] = static_cast<char *>(instr.operands[j]) + i * piece * instr.rowBytes[j];
    callKernel(instr.kernel, {operands, instr.operands.size()},
               std::min(piece, instr.rows - i * piece));
  });
}

void fillTensor(const TensorRef &out, double value) {
  int64_t n = out.elements();
  switch (out.dtype) {
  case fb::DType::i32:
    std::fill_n(static_cast<int32_t *>(out.data), n, static_cast<int32_t>(value));
    return;
  case fb::DType::i64:
    std::fill_n(static_cast<int64_t *>(out.data), n, static_cast<int64_t>(value));
    return;
  case fb::DType::u8:
    std::fill_n(static_cast<uint8_t *>(out.data), n, static_cast<uint8_t>(value));
    return;
  default:
    break;
  }
  size_t size = bytesOf(out.dtype);
  char element[8];
  convertRun(element, out.dtype, &value, fb::DType::f64, 1);
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(static_cast<char *>(out.data) + i * size, element, size);
}

} // namespace

Executor::Entry::Entry(const ExecutorSetup &setup, const fb::Program &program, uint32_t number)
    : program(program), number(number),
      binding(setup.plan->plan(), program, setup.communicator->rank(), setup.f64),
      seconds(program.instrs()->size()) {}

Executor::Executor(const ExecutorSetup &setup)
    : setup(setup), counter(std::make_unique<MemoryCounter>()) {
  for (const fb::Program *program : setup.programs)
    entries.push_back(
        std::make_unique<Entry>(setup, *program, static_cast<uint32_t>(entries.size())));
}

Expected<std::unique_ptr<ProgramRunner>> Executor::create(const ExecutorSetup &setup) {
  std::string_view target = setup.plan->plan().target()->string_view();
  if (!setup.programs[0]->reference() && target != "host")
    return Status(ErrorId::PlanTarget,
                  format("the plan's target is %s, this device is host; compile with "
                         "--target=host, or run with --reference",
                         quoteName(target).c_str()));
  std::unique_ptr<Executor> executor(new Executor(setup));
  if (Status status = executor->allocate(); !status)
    return status;
  return std::unique_ptr<ProgramRunner>(std::move(executor));
}

Status Executor::allocate() {
  std::vector<uint64_t> wanted = arenaSizes();
  arenas.resize(wanted.size());
  for (size_t i = 0; i < arenas.size(); ++i) {
    if (arenas[i].data() && arenas[i].bytes() == wanted[i])
      continue;
    arenas[i].release(); // before the larger one, so that the peak is what was planned
    const Entry *largest = nullptr;
    for (const auto &entry : entries)
      if (i < entry->binding.arenaCount() && entry->binding.arenaBytes(i) == wanted[i])
        largest = entry.get();
    Expected<Block> block = Block::allocate(wanted[i], largest->binding.arenaText(i), *counter);
    if (!block)
      return block.takeStatus();
    arenas[i] = std::move(*block);
  }
  Status problems;
  for (const auto &entry : entries) {
    for (size_t i = 0; i < entry->binding.arenaCount(); ++i)
      entry->binding.placeArena(i, arenas[i].data());
    problems.append(entry->binding.bind(
        [&](uint32_t kernel) { return setup.images ? setup.images->kernel(kernel) : nullptr; },
        entry->instrs));
  }
  return problems;
}

std::vector<uint64_t> Executor::arenaSizes() const {
  std::vector<uint64_t> sizes;
  for (const auto &entry : entries)
    mergeArenaSizes(entry->binding, sizes);
  return sizes;
}

Expected<std::vector<TensorRef>> Executor::outputs(size_t program) {
  const Entry &entry = *entries[program];
  std::vector<TensorRef> refs;
  for (size_t i = 0; i < entry.program.outputs()->size(); ++i)
    refs.push_back(entry.binding.output(i));
  return refs;
}

RankFigures Executor::figures() const {
  std::vector<uint64_t> sizes = arenaSizes();
  return {std::accumulate(sizes.begin(), sizes.end(), uint64_t(0)),
          counter->peak(),
          staging.bytes(),
          entries[0]->binding.bound(),
          retryCount,
          0,
          0,
          0};
}

Status Executor::loadWeights(const Checkpoint *checkpoint) {
  const Entry &first = *entries[0]; // the states are the same for all
  if (checkpoint)
    for (const fb::State *state : statesOf(setup.plan->plan(), first.program))
      if (state->source())
        loadState(*state, position().shard(*state->shape(), *state->dims()), *checkpoint,
                  first.binding.stateType(*state), first.binding.stateData(*state));
  return {};
}

std::vector<TensorRef> Executor::states() {
  const Entry &first = *entries[0];
  std::vector<TensorRef> refs;
  for (const fb::State *state : statesOf(setup.plan->plan(), first.program)) {
    Shard shard = position().shard(*state->shape(), *state->dims());
    refs.push_back({first.binding.stateData(*state), first.binding.stateType(*state), shard.local});
  }
  return refs;
}

Status Executor::readState(size_t state, void *to) {
  TensorRef from = states()[state];
  std::memcpy(to, from.data, static_cast<size_t>(from.elements()) * bytesOf(from.dtype));
  return {};
}

Status Executor::writeState(size_t state, const void *from) {
  TensorRef to = states()[state];
  std::memcpy(to.data, from, static_cast<size_t>(to.elements()) * bytesOf(to.dtype));
  return {};
}

Status Executor::step(const InputSet &inputs, size_t number) {
  Entry &entry = *entries[number];
  for (uint32_t attempt = 0;; ++attempt) {
    // Activations share memory, so every attempt needs its inputs anew.
    for (size_t i = 0; i < entry.program.inputs()->size(); ++i)
      inputs.store(i, position(), entry.binding.input(i));
    needed = 0;
    // The list is a valid linear order of the plan's queues and events. The host has one thread for
    // each rank, so it runs the list in that order and the events need no action.
    // It is left where the bound turns out to be too small: what comes behind may change states.
    bool profiled = setup.profile && setup.profile->recording;
    auto begin = std::chrono::steady_clock::now();
    for (size_t i = 0;
         i < entry.instrs.size() && needed <= static_cast<int64_t>(entry.binding.bound()); ++i) {
      at.store(uint64_t(number) << 32 | i, std::memory_order_relaxed);
      Status status = run(entry, i);
      auto end = std::chrono::steady_clock::now();
      std::chrono::duration<double, std::micro> start = begin - setup.epoch, took = end - begin;
      entry.seconds[i] += took.count() * 1e-6;
      if (profiled)
        setup.profile->events.push_back(
            {entry.number, static_cast<uint32_t>(i), attempt, start.count(), took.count()});
      if (!status)
        return status;
      begin = end;
    }
    if (needed <= static_cast<int64_t>(entry.binding.bound())) {
      at.store(kNowhere, std::memory_order_relaxed);
      return {};
    }
    // Every rank comes here with the same need, since plans reduce it over the mesh.
    Status grown = agree(grow(entry), *setup.communicator, "growing the ragged arena");
    if (!grown) {
      together = grown.diagnostics().front().id != ErrorId::RankFailed;
      return grown;
    }
    ++retryCount;
  }
}

std::string Executor::where() const {
  uint64_t place = at.load(std::memory_order_relaxed);
  return place == kNowhere ? "" : entries[place >> 32]->binding.describe(uint32_t(place));
}

Status Executor::grow(Entry &entry) {
  if (Status status = entry.binding.grow(needed); !status)
    return status;
  return allocate();
}

Status Executor::run(const Entry &entry, size_t index) {
  const BoundInstr &instr = entry.instrs[index];
  switch (instr.kind) {
  case fb::InstrKind::launch:
    launch(instr);
    return {};
  case fb::InstrKind::call: {
    RouteHooks hooks;
    bool hooked = instr.isRoute && setup.routes;
    if (hooked)
      hooks = setup.routes->before(index);
    CallFlavor flavor = entry.program.reference() ? CallFlavor::reference : CallFlavor::fast;
    Status status = runHostCall(instr.call, flavor, instr.in, instr.out, instr.params,
                                hooked ? &hooks : nullptr);
    if (hooked && status)
      setup.routes->after(index, instr.out[0], instr.out[1]);
    if (status)
      return {};
    Status located;
    for (const Diagnostic &d : status.diagnostics())
      located.add(d.id, entry.binding.describe(index) + ": " + d.message);
    return located;
  }
  case fb::InstrKind::collective:
    return runCollective(instr.collective, *instr.group, *setup.communicator, instr.in[0],
                         instr.out[0], staging, entry.binding.describe(index));
  case fb::InstrKind::copy:
    copyBox(Box::all(instr.out[0].shape), instr.out[0].data, instr.box, instr.in[0].data,
            bytesOf(instr.in[0].dtype));
    return {};
  case fb::InstrKind::fill:
    fillTensor(instr.out[0], instr.fill);
    return {};
  case fb::InstrKind::require_bound:
    needed = std::max<int64_t>(needed, *static_cast<const int32_t *>(instr.in[0].data));
    return {};
  case fb::InstrKind::record:
  case fb::InstrKind::wait:
    return {};
  }
  return {};
}

} // namespace moira::rt
