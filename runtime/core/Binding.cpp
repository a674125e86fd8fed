//===- Binding.cpp - from plan instructions to addresses ------------------===//
// Resolves views, parameters, groups and kernels for this rank and the present bound. What the plan
// verifier cannot see (a rank's offsets, a kernel's address) is checked here.
//===----------------------------------------------------------------------===//
#include "BoundInstr.h"

#include <algorithm>

namespace moira::rt {
namespace {

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
    case fb::ParamKind::integers:
      break; // no call takes a list
    }
  }
  return params;
}

} // namespace

std::string Executor::describe(size_t index) const {
  const fb::Instr &instr = *program.instrs()->Get(index);
  std::string location = instrLocation(plan, instr);
  return format("instruction %zu (%s)%s%s", index, instrName(plan, instr).c_str(),
                location.empty() ? "" : " at ", location.c_str());
}

Status Executor::bind() {
  Status problems;
  instrs.assign(program.instrs()->size(), Bound());
  for (size_t i = 0; i < instrs.size() && problems.diagnostics().size() < 20; ++i)
    problems.append(bindInstr(i, instrs[i]));
  return problems;
}

Status Executor::bindInstr(size_t index, Bound &to) {
  const fb::Instr &instr = *program.instrs()->Get(index);
  to.kind = instr.kind();
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
    to.kernel = setup.images ? setup.images->kernel(instr.target()) : nullptr;
    if (!to.kernel)
      return fail(ErrorId::BadRun, "the plan has no host code for this kernel");
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
    }
    to.rows = params.integer("rows");
    if (params.integer("rows_scale_bound"))
      to.rows *= static_cast<int64_t>(boundNow);
    return {};
  }

  case fb::InstrKind::call:
    to.call = plan.calls()->Get(instr.target())->string_view();
    to.isRoute = to.call == "route";
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
  case fb::InstrKind::record:
  case fb::InstrKind::wait:
    return {};
  }
  return {};
}

} // namespace moira::rt
