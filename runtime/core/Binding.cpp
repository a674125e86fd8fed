//===- Binding.cpp - from plan instructions to addresses ------------------===//
// Resolves views, parameters, groups and kernels for one rank and the present bound. What the plan
// verifier cannot see (a rank's offsets, a kernel's address) is checked here.
//===----------------------------------------------------------------------===//
#include "moira/rt/Binding.h"

#include "moira/rt/CallRegistry.h"
#include "moira/rt/Profile.h"
#include "moira/rt/SafeTensors.h"

#include <algorithm>
#include <numeric>

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
  for (const fb::State *state : *program.states()) // a reference program's own
    look(state->dtype());
  return 8 / smallest;
}

uint64_t arenaBytes(const fb::Arena &arena, uint64_t bound, uint64_t scale) {
  return (arena.bytes() + bound * arena.bytes_per_bound()) * scale;
}

CallParams resolveParams(const fb::Instr &instr, const MeshPosition &place) {
  CallParams params;
  if (!instr.params())
    return params;
  for (const fb::Param *param : *instr.params()) {
    std::string name = param->name()->str();
    switch (param->kind()) {
    case fb::ParamKind::integer:
      params.integers[name] = param->i();
      break;
    case fb::ParamKind::real:
      params.reals[name] = param->r();
      break;
    case fb::ParamKind::text:
      params.texts[name] = param->s() ? param->s()->str() : std::string();
      break;
    case fb::ParamKind::offset:
      params.integers[name] = param->i() * place.index(axesOf(param->axes()));
      break;
    case fb::ParamKind::reals:
      if (param->reals())
        params.realLists[name].assign(param->reals()->begin(), param->reals()->end());
      break;
    case fb::ParamKind::integers:
      break; // no call takes such a list
    }
  }
  return params;
}

} // namespace

uint64_t plannedBytes(std::span<const fb::Program *const> programs, bool f64) {
  std::vector<uint64_t> arenas;
  for (const fb::Program *program : programs) {
    arenas.resize(std::max<size_t>(arenas.size(), program->arenas()->size()));
    for (size_t i = 0; i < program->arenas()->size(); ++i)
      arenas[i] = std::max(arenas[i], arenaBytes(*program->arenas()->Get(i),
                                                 program->bound_initial(), scaleOf(*program, f64)));
  }
  return std::accumulate(arenas.begin(), arenas.end(), uint64_t(0));
}

Binding::Binding(const fb::Plan &plan, const fb::Program &program, int rank, bool f64)
    : plan(plan), program(program), place(plan, program, rank), f64(f64),
      scale(scaleOf(program, f64)), boundNow(program.bound_initial()),
      bases(program.arenas()->size(), nullptr) {}

uint64_t Binding::arenaBytes(size_t arena) const {
  return rt::arenaBytes(*program.arenas()->Get(arena), boundNow, scale);
}

void mergeArenaSizes(const Binding &binding, std::vector<uint64_t> &sizes) {
  sizes.resize(std::max(sizes.size(), binding.arenaCount()));
  for (size_t i = 0; i < binding.arenaCount(); ++i)
    sizes[i] = std::max(sizes[i], binding.arenaBytes(i));
}

std::string Binding::arenaText(size_t arena) const {
  std::string text =
      format("arena %s of rank %d", program.arenas()->Get(arena)->name()->c_str(), place.rank());
  if (grows(arena) && boundNow != program.bound_initial())
    text += format(" with a bound of %llu rows", static_cast<unsigned long long>(boundNow));
  return text;
}

TensorRef Binding::view(uint32_t index) const {
  const fb::View &view = *program.views()->Get(index);
  TensorRef ref;
  ref.dtype = f64 && isFloat(view.dtype()) ? fb::DType::f64 : view.dtype();
  ref.shape.assign(view.shape()->begin(), view.shape()->end());
  if (view.bound_dim() >= 0)
    ref.shape[view.bound_dim()] *= static_cast<int64_t>(boundNow);
  ref.data = bases[view.arena()] + (view.offset() + boundNow * view.offset_per_bound()) * scale;
  return ref;
}

fb::DType Binding::stateType(const fb::State &state) const {
  return f64 && isFloat(state.dtype()) ? fb::DType::f64 : state.dtype();
}

char *Binding::stateData(const fb::State &state) const {
  return bases[state.arena()] + state.offset() * scale;
}

Status Binding::grow(int64_t need) {
  uint64_t largest = program.bound_max(), wanted = static_cast<uint64_t>(need);
  if (wanted > largest)
    return Status(ErrorId::BoundOverflow,
                  format("a slot needs %llu rows, the plan's largest bound is %llu; this is a "
                         "defect of the plan, compile it again",
                         static_cast<unsigned long long>(wanted),
                         static_cast<unsigned long long>(largest)));
  boundNow = std::min(largest, (wanted + 3) / 4 * 4);
  return {};
}

std::string Binding::describe(size_t index) const {
  const fb::Instr &instr = *program.instrs()->Get(index);
  std::string location = instrLocation(plan, instr);
  return format("instruction %zu (%s)%s%s", index, instrName(plan, instr).c_str(),
                location.empty() ? "" : " at ", location.c_str());
}

Status Binding::bind(const std::function<void *(uint32_t)> &kernelOf,
                     std::vector<BoundInstr> &instrs) {
  Status problems;
  instrs.assign(program.instrs()->size(), BoundInstr());
  for (size_t i = 0; i < instrs.size() && problems.diagnostics().size() < 20; ++i)
    problems.append(bindInstr(i, kernelOf, instrs[i]));
  return problems;
}

Status Binding::bindInstr(size_t index, const std::function<void *(uint32_t)> &kernelOf,
                          BoundInstr &to) {
  const fb::Instr &instr = *program.instrs()->Get(index);
  to.kind = instr.kind();
  to.queue = instr.queue();
  if (instr.inputs())
    for (uint32_t v : *instr.inputs())
      to.in.push_back(view(v));
  if (instr.outputs())
    for (uint32_t v : *instr.outputs())
      to.out.push_back(view(v));
  CallParams params = resolveParams(instr, place);
  auto fail = [&](ErrorId id, const std::string &what) {
    return Status(id, describe(index) + ": " + what);
  };

  switch (to.kind) {
  case fb::InstrKind::launch: {
    to.kernel = kernelOf(instr.target());
    if (!to.kernel)
      return fail(ErrorId::BadRun, "the plan has no code of this device for this kernel");
    const auto &operands = *plan.kernels()->Get(instr.target())->operands();
    if (operands.size() > kMaxOperands)
      return fail(ErrorId::BadRun, format("the kernel has %u operands, at most %zu can be passed",
                                          operands.size(), kMaxOperands));
    size_t in = 0, out = 0;
    for (const fb::KernelOperand *operand : operands) {
      size_t &next = operand->output() ? out : in;
      const std::vector<TensorRef> &list = operand->output() ? to.out : to.in;
      if (next == list.size())
        return fail(ErrorId::PlanShape, "fewer operands than the kernel has");
      to.operands.push_back(list[next++].data);
      int64_t bytes = operand->rowwise() ? static_cast<int64_t>(bytesOf(operand->dtype())) : 0;
      for (int64_t dim : *operand->inner())
        bytes *= dim;
      to.rowBytes.push_back(bytes);
    }
    to.rows = params.integer("rows");
    if (params.integer("rows_scale_bound"))
      to.rows *= static_cast<int64_t>(boundNow);
    return {};
  }

  case fb::InstrKind::call:
    to.call = plan.calls()->Get(instr.target())->string_view();
    to.isRoute = choosesExperts(to.call);
    to.params = std::move(params);
    return {};

  case fb::InstrKind::collective: {
    to.collective.kind = static_cast<fb::CollectiveKind>(instr.target());
    to.collective.op = static_cast<fb::Reduce>(params.integer("op"));
    to.collective.dim = params.integer("dim");
    to.collective.splitDim = params.integer("split_dim");
    to.collective.concatDim = params.integer("concat_dim");
    std::span<const uint8_t> axes = axesOf(instr.axes());
    auto [entry, added] = groups.try_emplace({axes.begin(), axes.end()});
    if (added)
      entry->second = place.group(axes);
    to.group = &entry->second;
    Expected<std::vector<int64_t>> shape = collectiveShape(
        to.collective, to.in[0].shape, static_cast<int64_t>(to.group->members.size()));
    if (!shape)
      return fail(ErrorId::PlanShape, shape.status().diagnostics().front().message);
    if (*shape != to.out[0].shape || to.in[0].dtype != to.out[0].dtype)
      return fail(ErrorId::PlanShape,
                  format("gives shape %s, the output has %s", shapeText(*shape).c_str(),
                         shapeText(to.out[0].shape).c_str()));
    return {};
  }

  case fb::InstrKind::copy: {
    const std::vector<int64_t> &from = to.in[0].shape, &box = to.out[0].shape;
    int64_t dim = params.integer("dim");
    int64_t start = params.integer("start") + params.integer("offset");
    bool fits = from.size() == box.size() && dim >= 0 &&
                (dim < static_cast<int64_t>(from.size()) || from.empty());
    for (size_t d = 0; d < from.size() && fits; ++d)
      fits = static_cast<int64_t>(d) == dim ? start >= 0 && start <= from[d] - box[d]
                                            : from[d] == box[d];
    if (!fits || to.in[0].dtype != to.out[0].dtype)
      return fail(ErrorId::PlanBounds,
                  format("rank %d reads a box of shape %s from %lld on along dimension %lld of %s",
                         place.rank(), shapeText(box).c_str(), static_cast<long long>(start),
                         static_cast<long long>(dim), shapeText(from).c_str()));
    to.box = Box::all(from);
    to.box.extent = box;
    if (!from.empty())
      to.box.start[dim] = start;
    return {};
  }

  case fb::InstrKind::fill:
    to.fill = params.real("value");
    return {};
  case fb::InstrKind::require_bound:
    return {};
  case fb::InstrKind::record:
  case fb::InstrKind::wait:
    to.event = instr.target();
    return {};
  }
  return {};
}

} // namespace moira::rt
