//===- Executor.cpp - one rank runs one program ---------------------------===//
// Memory, the step and its repetition. Binding is in Binding.cpp.
//===----------------------------------------------------------------------===//
#include "BoundInstr.h"

#include "moira/rt/Agree.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace moira::rt {
namespace {

/// In an f64 run every float becomes 8 bytes. Offsets and sizes grow by one factor, the largest
/// that any element type of the program needs, so that nothing overlaps that did not before.
uint64_t scaleOf(const fb::Program &program, bool f64) {
  if (!f64)
    return 1;
  size_t smallest = 4;
  auto look = [&](fb::DType type) {
    if (isFloat(type))
      smallest = std::min(smallest, bytesOf(type));
  };
  for (const fb::View *view : *program.views())
    look(view->dtype());
  for (const fb::State *state : *program.states())
    look(state->dtype());
  return 8 / smallest;
}

uint64_t arenaBytes(const fb::Arena &arena, uint64_t bound, uint64_t scale) {
  return (arena.bytes() + bound * arena.bytes_per_bound()) * scale;
}

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

uint64_t plannedBytes(const fb::Program &program, uint64_t bound, bool f64) {
  uint64_t total = 0, scale = scaleOf(program, f64);
  for (const fb::Arena *arena : *program.arenas())
    total += arenaBytes(*arena, bound, scale);
  return total;
}

Executor::Executor(const ExecutorSetup &setup)
    : setup(setup), plan(setup.plan->plan()), program(*setup.program),
      place(plan, program, setup.communicator->rank()), scale(scaleOf(program, setup.f64)),
      boundNow(program.bound_initial()), counter(std::make_unique<MemoryCounter>()) {}

Executor::~Executor() = default;

Expected<std::unique_ptr<Executor>> Executor::create(const ExecutorSetup &setup) {
  if (!setup.program->reference() && setup.plan->plan().target()->string_view() != "host")
    return Status(ErrorId::PlanTarget,
                  format("the plan's target is %s, this device is host; compile with "
                         "--target=host, or run with --reference",
                         quoteName(setup.plan->plan().target()->string_view()).c_str()));
  std::unique_ptr<Executor> executor(new Executor(setup));
  if (Status status = executor->allocate(false); !status)
    return status;
  if (Status status = executor->bind(); !status)
    return status;
  return executor;
}

Status Executor::allocate(bool raggedOnly) {
  arenas.resize(program.arenas()->size());
  for (size_t i = 0; i < arenas.size(); ++i) {
    const fb::Arena &arena = *program.arenas()->Get(i);
    if (raggedOnly && arena.bytes_per_bound() == 0)
      continue;
    arenas[i].release(); // before the larger one, so that the peak is what was planned
    Expected<Block> block =
        Block::allocate(arenaBytes(arena, boundNow, scale),
                        format("arena %s of rank %d%s", arena.name()->c_str(), place.rank(),
                               raggedOnly ? format(" with a bound of %llu rows",
                                                   static_cast<unsigned long long>(boundNow))
                                                .c_str()
                                          : ""),
                        *counter);
    if (!block)
      return block.takeStatus();
    arenas[i] = std::move(*block);
  }
  return {};
}

TensorRef Executor::view(uint32_t index) const {
  const fb::View &view = *program.views()->Get(index);
  TensorRef ref;
  ref.dtype = setup.f64 && isFloat(view.dtype()) ? fb::DType::f64 : view.dtype();
  ref.shape.assign(view.shape()->begin(), view.shape()->end());
  if (view.bound_dim() >= 0)
    ref.shape[view.bound_dim()] *= static_cast<int64_t>(boundNow);
  ref.data =
      arenas[view.arena()].data() + (view.offset() + boundNow * view.offset_per_bound()) * scale;
  return ref;
}

TensorRef Executor::output(size_t index) const {
  return view(program.outputs()->Get(index)->view());
}

std::vector<TensorRef> Executor::outputs() const {
  std::vector<TensorRef> refs;
  for (size_t i = 0; i < program.outputs()->size(); ++i)
    refs.push_back(output(i));
  return refs;
}

std::vector<uint64_t> Executor::arenaSizes() const {
  std::vector<uint64_t> sizes;
  for (const fb::Arena *arena : *program.arenas())
    sizes.push_back(arenaBytes(*arena, boundNow, scale));
  return sizes;
}

RankFigures Executor::figures() const {
  return {plannedBytes(program, boundNow, setup.f64), counter->peak(), staging.bytes(), boundNow,
          retryCount};
}

void Executor::loadWeights(const Checkpoint *checkpoint) {
  if (!checkpoint)
    return;
  for (const fb::State *state : *program.states()) {
    fb::DType type = setup.f64 && isFloat(state->dtype()) ? fb::DType::f64 : state->dtype();
    loadState(*state, place.shard(*state->shape(), *state->dims()), *checkpoint, type,
              arenas[state->arena()].data() + state->offset() * scale);
  }
}

Status Executor::step(const InputSet &inputs) {
  for (uint32_t attempt = 0;; ++attempt) {
    // Activations share memory, so every attempt needs its inputs anew.
    for (size_t i = 0; i < program.inputs()->size(); ++i)
      inputs.store(i, place, view(program.inputs()->Get(i)->view()));
    needed = 0;
    // The list is a valid linear order of the plan's queues and events. The host has one thread for
    // each rank, so it runs the list in that order and the events need no action.
    for (size_t i = 0; i < instrs.size(); ++i) {
      if (!setup.profile) {
        if (Status status = run(i, instrs[i]); !status)
          return status;
        continue;
      }
      auto begin = std::chrono::steady_clock::now();
      Status status = run(i, instrs[i]);
      std::chrono::duration<double, std::micro> start = begin - setup.epoch;
      std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
      setup.profile->events.push_back(
          {static_cast<uint32_t>(i), attempt, start.count(), took.count()});
      if (!status)
        return status;
    }
    if (needed <= static_cast<int64_t>(boundNow))
      return {};
    // Every rank comes here with the same need, since plans reduce it over the mesh.
    Status grown = agree(grow(needed), *setup.communicator, "growing the ragged arena");
    if (!grown) {
      together = grown.diagnostics().front().id != ErrorId::RankFailed;
      return grown;
    }
    ++retryCount;
  }
}

Status Executor::grow(int64_t need) {
  uint64_t largest = program.bound_max(), wanted = static_cast<uint64_t>(need);
  if (wanted > largest)
    return Status(ErrorId::BoundOverflow,
                  format("a slot needs %llu rows, the plan's largest bound is %llu; this is a "
                         "defect of the plan, compile it again",
                         static_cast<unsigned long long>(wanted),
                         static_cast<unsigned long long>(largest)));
  boundNow = std::min(largest, (wanted + 3) / 4 * 4);
  if (Status status = allocate(true); !status)
    return status;
  return bind();
}

Status Executor::run(size_t index, const Bound &instr) {
  switch (instr.kind) {
  case fb::InstrKind::launch:
    callKernel(instr.kernel, instr.operands, instr.rows);
    return {};
  case fb::InstrKind::call: {
    RouteHooks hooks;
    bool hooked = instr.isRoute && setup.routes;
    if (hooked)
      hooks = setup.routes->before(index);
    CallFlavor flavor = program.reference() ? CallFlavor::reference : CallFlavor::fast;
    Status status = runHostCall(instr.call, flavor, instr.in, instr.out, instr.params,
                                hooked ? &hooks : nullptr);
    if (hooked && status)
      setup.routes->after(index, instr.out[0], instr.out[1]);
    if (status)
      return {};
    Status located;
    for (const Diagnostic &d : status.diagnostics())
      located.add(d.id, describe(index) + ": " + d.message);
    return located;
  }
  case fb::InstrKind::collective:
    return runCollective(instr.collective, *instr.group, *setup.communicator, instr.in[0],
                         instr.out[0], staging, describe(index));
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
