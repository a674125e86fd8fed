//===- PlanInstructions.cpp - the rules of single instructions --*- C++ -*-===//
// Operand counts, shapes, types and parameters of every instruction by itself. What depends on
// other instructions is in PlanOrder.cpp, the contracts of library calls are in CallChecks.cpp.
//===----------------------------------------------------------------------===//
#include "PlanVerifierImpl.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::verify {

std::string ProgramContext::describe(size_t index) const {
  const fb::Instr *instr = (*program.instrs())[index];
  fb::InstrKind kind = instr->kind();
  std::string text = format("%s instruction %zu", where.c_str(), index);
  if (kind > fb::InstrKind::MAX)
    return text;
  text += std::string(" (") + fb::EnumNameInstrKind(kind);
  uint32_t target = instr->target();
  const fb::Plan &plan = parent.plan;
  if (kind == fb::InstrKind::call && target < parent.calls.size() && parent.calls[target])
    text += " " + parent.calls[target]->name;
  else if (kind == fb::InstrKind::launch && target < plan.kernels()->size())
    text += " " + quoted((*plan.kernels())[target]->name());
  else if (kind == fb::InstrKind::collective && target <= unsigned(fb::CollectiveKind::MAX))
    text += std::string(" ") + fb::EnumNameCollectiveKind(static_cast<fb::CollectiveKind>(target));
  if (instr->location() < plan.locations()->size())
    text += " at " + quoted(plan.locations()->Get(instr->location()));
  return text + ")";
}

bool ProgramContext::isState(size_t view) const {
  return (*program.arenas())[views[view].arena]->role() == fb::ArenaRole::state;
}

bool ProgramContext::isOnHost(size_t view) const {
  return (*program.arenas())[views[view].arena]->space() == fb::Space::host;
}

ProgramContext::StateChange ProgramContext::changeOf(const fb::Instr &instr) const {
  // A weight that ranks update in parts becomes what is gathered of them.
  if (instr.kind() == fb::InstrKind::copy ||
      (instr.kind() == fb::InstrKind::collective &&
       instr.target() == uint32_t(fb::CollectiveKind::all_gather)))
    return StateChange::whole;
  if (instr.kind() != fb::InstrKind::call || instr.target() >= parent.calls.size() ||
      !parent.calls[instr.target()])
    return StateChange::none;
  const std::string &name = parent.calls[instr.target()]->name;
  if (name == "write_rows")
    return StateChange::rows;
  if (name == "join_blocks")
    return StateChange::whole;
  constexpr std::string_view kUpdates[] = {"adamw",           "expert_adamw", "sgd",
                                           "accumulate",      "balance_bias", "adafactor",
                                           "adafactor_vector"};
  bool updates = std::find(std::begin(kUpdates), std::end(kUpdates), name) != std::end(kUpdates);
  return updates ? StateChange::update : StateChange::none;
}

namespace {

using Params = flatbuffers::Vector<flatbuffers::Offset<fb::Param>>;

/// Checks one instruction.
class InstrCheck {
public:
  InstrCheck(ProgramContext &ctx, size_t index)
      : ctx(ctx), index(index), instr(*(*ctx.program.instrs())[index]) {}
  void run();

private:
  void fail(ErrorId id, const std::string &message) {
    ctx.report.add(id, ctx.describe(index) + ": " + message);
  }
  bool checkCommon();
  bool checkViews(const flatbuffers::Vector<uint32_t> *views, const char *side, bool written);
  bool operands(size_t inputs, size_t outputs);
  struct Wanted {
    const char *name;
    fb::ParamKind kind;
    bool optional = false;
  };
  bool params(std::initializer_list<Wanted> wanted);
  const fb::Param *param(std::string_view name) const;
  int64_t integer(std::string_view name) const {
    const fb::Param *p = param(name);
    return p ? p->i() : 0;
  }
  /// Value of the parameter `name` as an index of a dimension of `shape`, or nullopt.
  std::optional<size_t> dimension(const char *name, const std::vector<Dim> &shape);

  uint32_t in(size_t i) const { return instr.inputs()->Get(i); }
  uint32_t out(size_t i) const { return instr.outputs()->Get(i); }

  void launch();
  void call();
  void collective();
  void copy();
  void event();
  void requireBound();
  void place();

  ProgramContext &ctx;
  size_t index;
  const fb::Instr &instr;
};

bool InstrCheck::checkViews(const flatbuffers::Vector<uint32_t> *views, const char *side,
                            bool written) {
  bool sound = true;
  for (size_t i = 0; i < sizeOf(views); ++i) {
    uint32_t view = views->Get(i);
    if (view >= ctx.views.size()) {
      fail(ErrorId::PlanIndex, format("%s %zu is view %u of %zu", side, i, view, ctx.views.size()));
      sound = false;
      continue;
    }
    sound &= ctx.views[view].sound; // what is wrong with it is reported already
    if (written && ctx.views[view].sound && ctx.isState(view) &&
        ctx.changeOf(instr) == ProgramContext::StateChange::none) {
      fail(ErrorId::PlanStructure,
           format("%s %zu writes to the state arena; a repeated step would see it", side, i));
      sound = false;
    }
  }
  return sound;
}

bool InstrCheck::checkCommon() {
  size_t before = ctx.report.count();
  size_t locations = ctx.parent.plan.locations()->size();
  if (instr.kind() > fb::InstrKind::MAX) {
    fail(ErrorId::PlanStructure, format("unknown kind %d", static_cast<int>(instr.kind())));
    return false;
  }
  if (instr.queue() >= ctx.program.queues()->size())
    fail(ErrorId::PlanIndex, format("queue %u of %u", instr.queue(), ctx.program.queues()->size()));
  if (instr.location() >= locations && (locations != 0 || instr.location() != 0))
    fail(ErrorId::PlanIndex, format("location %u of %zu", instr.location(), locations));
  if (instr.layer() < -1)
    fail(ErrorId::PlanStructure, "layer under -1");
  if (sizeOf(instr.axes()) != 0 && instr.kind() != fb::InstrKind::collective)
    fail(ErrorId::PlanStructure, "only collectives have axes");
  for (size_t count : {sizeOf(instr.inputs()), sizeOf(instr.outputs()), sizeOf(instr.params())})
    if (count > kMaxOperands) {
      fail(ErrorId::PlanStructure,
           format("%zu operands or parameters, more than %zu", count, kMaxOperands));
      return false;
    }
  for (size_t i = 0; i < sizeOf(instr.params()); ++i) {
    const fb::Param *p = instr.params()->Get(i);
    if (p->kind() > fb::ParamKind::MAX)
      fail(ErrorId::PlanStructure,
           format("parameter %zu has unknown kind %d", i, static_cast<int>(p->kind())));
    if (p->name()->size() > kMaxName || (p->s() && p->s()->size() > kMaxName))
      fail(ErrorId::PlanStructure, format("parameter %zu is longer than %zu bytes", i, kMaxName));
  }
  if (ctx.report.count() != before)
    return false;
  bool sound = checkViews(instr.inputs(), "input", false);
  return checkViews(instr.outputs(), "output", true) && sound;
}

const fb::Param *InstrCheck::param(std::string_view name) const {
  for (size_t i = 0; i < sizeOf(instr.params()); ++i)
    if (instr.params()->Get(i)->name()->string_view() == name)
      return instr.params()->Get(i);
  return nullptr;
}

bool InstrCheck::params(std::initializer_list<Wanted> wanted) {
  size_t before = ctx.report.count();
  for (const Wanted &w : wanted) {
    const fb::Param *p = param(w.name);
    if (!p && !w.optional)
      fail(ErrorId::PlanShape, format("parameter %s is missing", w.name));
    else if (p && p->kind() != w.kind)
      fail(ErrorId::PlanShape,
           format("parameter %s is of kind %s, not %s", w.name, fb::EnumNameParamKind(p->kind()),
                  fb::EnumNameParamKind(w.kind)));
  }
  for (size_t i = 0; i < sizeOf(instr.params()); ++i) {
    const fb::Param *p = instr.params()->Get(i);
    bool known = std::any_of(wanted.begin(), wanted.end(),
                             [&](const Wanted &w) { return p->name()->string_view() == w.name; });
    if (!known || param(p->name()->string_view()) != p)
      fail(ErrorId::PlanShape, "parameter " + quoted(p->name()) +
                                   (known ? " is given twice" : " is not one of this instruction"));
  }
  return ctx.report.count() == before;
}

bool InstrCheck::operands(size_t inputs, size_t outputs) {
  if (sizeOf(instr.inputs()) == inputs && sizeOf(instr.outputs()) == outputs)
    return true;
  fail(ErrorId::PlanShape,
       format("%zu inputs and %zu outputs where %zu and %zu are wanted", sizeOf(instr.inputs()),
              sizeOf(instr.outputs()), inputs, outputs));
  return false;
}

std::optional<size_t> InstrCheck::dimension(const char *name, const std::vector<Dim> &shape) {
  int64_t value = integer(name);
  if (value >= 0 && value < static_cast<int64_t>(shape.size()))
    return static_cast<size_t>(value);
  fail(ErrorId::PlanIndex,
       format("%s is %lld of %zu dimensions", name, static_cast<long long>(value), shape.size()));
  return std::nullopt;
}

void InstrCheck::launch() {
  if (ctx.program.reference())
    return fail(ErrorId::PlanStructure, "a reference program has only library calls");
  if (instr.target() >= ctx.parent.kernels.size())
    return fail(ErrorId::PlanIndex,
                format("kernel %u of %zu", instr.target(), ctx.parent.kernels.size()));
  const KernelInfo &info = ctx.parent.kernels[instr.target()];
  using fb::ParamKind;
  if (!info.sound ||
      !params({{"rows", ParamKind::integer}, {"rows_scale_bound", ParamKind::integer, true}}))
    return;
  int64_t rows = integer("rows"), scaled = integer("rows_scale_bound");
  if (rows < 1 || rows > int64_t(kMaxBytes) || scaled < 0 || scaled > 1)
    return fail(ErrorId::PlanShape,
                format("rows %lld, rows_scale_bound %lld; wanted are rows >= 1 "
                       "and 0 or 1",
                       static_cast<long long>(rows), static_cast<long long>(scaled)));
  const auto &kernelOperands = *(*ctx.parent.plan.kernels())[instr.target()]->operands();
  size_t outputs = 0;
  for (const fb::KernelOperand *operand : kernelOperands)
    outputs += operand->output();
  if (!operands(kernelOperands.size() - outputs, outputs))
    return;
  size_t nextIn = 0, nextOut = 0;
  for (size_t i = 0; i < kernelOperands.size(); ++i) {
    const fb::KernelOperand *operand = kernelOperands[i];
    uint32_t index = operand->output() ? out(nextOut++) : in(nextIn++);
    const ViewInfo &view = ctx.views[index];
    Dim want{info.innerElements[i], false};
    if (operand->rowwise()) {
      want.ragged = scaled;
      if (__builtin_mul_overflow(want.scale, rows, &want.scale))
        want.scale = 0; // no view has that many
    }
    if (view.dtype != operand->dtype() || view.elements != want)
      fail(ErrorId::PlanShape,
           format("operand %zu is view %u of %s %s; the kernel wants %s with %lld%s elements%s", i,
                  index, dtypeText(view.dtype).c_str(), shapeText(ctx.shapeOf(index)).c_str(),
                  dtypeText(operand->dtype()).c_str(),
                  static_cast<long long>(info.innerElements[i]),
                  operand->rowwise() ? (scaled ? " a row, rows times bound" : " a row") : "",
                  operand->rowwise() ? format(", rows %lld", static_cast<long long>(rows)).c_str()
                                     : ""));
  }
}

void InstrCheck::call() {
  if (instr.target() >= ctx.parent.calls.size())
    return fail(ErrorId::PlanIndex,
                format("call %u of %zu", instr.target(), ctx.parent.calls.size()));
  const CallDesc *desc = ctx.parent.calls[instr.target()];
  if (!desc)
    return;
  std::vector<CallOperand> inputs, outputs;
  for (size_t i = 0; i < sizeOf(instr.inputs()); ++i)
    inputs.push_back({ctx.views[in(i)].dtype, ctx.shapeOf(in(i))});
  for (size_t i = 0; i < sizeOf(instr.outputs()); ++i)
    outputs.push_back({ctx.views[out(i)].dtype, ctx.shapeOf(out(i))});
  std::vector<CallParam> callParams;
  for (size_t i = 0; i < sizeOf(instr.params()); ++i) {
    const fb::Param *p = instr.params()->Get(i);
    CallParam param{
        .name = p->name()->string_view(), .kind = p->kind(), .integer = p->i(), .real = p->r()};
    if (p->s())
      param.text = p->s()->string_view();
    if (p->axes())
      param.axes = {p->axes()->data(), p->axes()->size()};
    if (p->reals())
      param.reals = {p->reals()->data(), p->reals()->size()};
    callParams.push_back(param);
  }
  CallEnv env;
  env.compute = ctx.program.reference() ? fb::DType::f32 : ctx.parent.plan.info()->dtype();
  env.axisSizes = ctx.axisSizes;
  env.boundMax = static_cast<int64_t>(ctx.boundMax);
  Status status = checkCall(*desc, inputs, outputs, callParams, env);
  for (const Diagnostic &d : status.diagnostics())
    fail(d.id, d.message);
}

void InstrCheck::collective() {
  if (ctx.program.reference())
    return fail(ErrorId::PlanStructure, "a reference program has only library calls");
  if (instr.target() > unsigned(fb::CollectiveKind::MAX))
    return fail(ErrorId::PlanStructure, format("unknown collective %u", instr.target()));
  auto kind = static_cast<fb::CollectiveKind>(instr.target());
  using enum fb::CollectiveKind;
  using fb::ParamKind;
  if (sizeOf(instr.axes()) == 0)
    return fail(ErrorId::PlanStructure, "names no mesh axes");
  std::vector<bool> seen(ctx.axisSizes.size());
  std::optional<uint64_t> group = axesProduct(ctx, instr.axes(), seen, ctx.describe(index));
  bool ok = kind == all_reduce   ? params({{"op", ParamKind::integer}})
            : kind == all_gather ? params({{"dim", ParamKind::integer}})
            : kind == reduce_scatter
                ? params({{"op", ParamKind::integer}, {"dim", ParamKind::integer}})
                : params({{"split_dim", ParamKind::integer}, {"concat_dim", ParamKind::integer}});
  if (!operands(1, 1) || !ok || !group)
    return;
  if (kind == all_reduce || kind == reduce_scatter) {
    fb::DType dtype = ctx.views[in(0)].dtype;
    if (integer("op") < 0 || integer("op") > int64_t(fb::Reduce::MAX))
      fail(ErrorId::PlanStructure,
           format("unknown reduction %lld", static_cast<long long>(integer("op"))));
    if (dtype != fb::DType::f32 && dtype != fb::DType::f64 && dtype != fb::DType::bf16 &&
        dtype != fb::DType::i32)
      fail(ErrorId::PlanShape, "cannot reduce " + dtypeText(dtype));
  }
  std::vector<Dim> want = ctx.shapeOf(in(0)), have = ctx.shapeOf(out(0));
  auto parts = static_cast<int64_t>(*group);
  auto divide = [&](size_t dim) {
    if (want[dim].scale % parts == 0) {
      want[dim].scale /= parts;
      return true;
    }
    fail(ErrorId::PlanShape, format("dimension %zu of %s does not divide into %lld parts", dim,
                                    shapeText(want).c_str(), static_cast<long long>(parts)));
    return false;
  };
  if (kind == all_gather) {
    std::optional<size_t> dim = dimension("dim", want);
    if (!dim)
      return;
    want[*dim].scale *= parts; // 2^47 * 2^20 at most
  } else if (kind == reduce_scatter) {
    std::optional<size_t> dim = dimension("dim", want);
    if (!dim || !divide(*dim))
      return;
  } else if (kind == all_to_all) {
    std::optional<size_t> split = dimension("split_dim", want);
    std::optional<size_t> concat = dimension("concat_dim", want);
    if (!split || !concat || !divide(*split))
      return;
    want[*concat].scale *= parts;
  }
  if (ctx.views[in(0)].dtype != ctx.views[out(0)].dtype || have != want)
    fail(ErrorId::PlanShape,
         format("%s of %s over %lld ranks gives %s, view %u is %s of %s",
                shapeText(ctx.shapeOf(in(0))).c_str(), dtypeText(ctx.views[in(0)].dtype).c_str(),
                static_cast<long long>(parts), shapeText(want).c_str(), out(0),
                shapeText(have).c_str(), dtypeText(ctx.views[out(0)].dtype).c_str()));
}

void InstrCheck::copy() {
  using fb::ParamKind;
  if (!operands(1, 1) || !params({{"dim", ParamKind::integer},
                                  {"start", ParamKind::integer},
                                  {"offset", ParamKind::offset, true}}))
    return;
  std::vector<Dim> from = ctx.shapeOf(in(0)), to = ctx.shapeOf(out(0));
  bool same = from.size() == to.size() && ctx.views[in(0)].dtype == ctx.views[out(0)].dtype;
  std::optional<size_t> dim = dimension("dim", from);
  if (!dim)
    return;
  for (size_t i = 0; same && i < from.size(); ++i)
    same = i == *dim || from[i] == to[i];
  if (!same)
    return fail(ErrorId::PlanShape,
                format("view %u of %s is no box along dimension %zu of view %u of %s", out(0),
                       shapeText(to).c_str(), *dim, in(0), shapeText(from).c_str()));
  int64_t start = integer("start");
  OffsetRange range;
  if (const fb::Param *offset = param("offset")) {
    std::span<const uint8_t> axes;
    if (offset->axes())
      axes = {offset->axes()->data(), offset->axes()->size()};
    Expected<OffsetRange> found = offsetRange(offset->i(), axes, ctx.axisSizes);
    if (!found) {
      for (const Diagnostic &d : found.status().diagnostics())
        fail(d.id, d.message);
      return;
    }
    range = *found;
  }
  bool inside =
      start <= int64_t(kMaxBytes) && start >= -int64_t(kMaxBytes) && start + range.least >= 0;
  for (uint64_t bound : {ctx.boundLeast, ctx.boundMax}) {
    auto size = [&](Dim d) { return d.scale * (d.ragged ? static_cast<int64_t>(bound) : 1); };
    inside = inside && start + range.most <= size(from[*dim]) - size(to[*dim]);
  }
  if (!inside)
    fail(ErrorId::PlanBounds,
         format("the box from %lld + %lld … %lld leaves dimension %zu of %s on some rank or for "
                "some bound",
                static_cast<long long>(start), static_cast<long long>(range.least),
                static_cast<long long>(range.most), *dim, shapeText(from).c_str()));
}

void InstrCheck::event() {
  if (ctx.program.reference())
    return fail(ErrorId::PlanStructure, "a reference program has no events");
  if (instr.target() >= ctx.program.events())
    fail(ErrorId::PlanIndex, format("event %u of %u", instr.target(), ctx.program.events()));
  if (operands(0, 0))
    params({});
}

void InstrCheck::requireBound() {
  if (ctx.boundMax == 0)
    return fail(ErrorId::PlanStructure, "the program has no bound");
  if (!operands(1, 0) || !params({}))
    return;
  std::vector<Dim> shape = ctx.shapeOf(in(0));
  if (ctx.views[in(0)].dtype != fb::DType::i32 || shape != std::vector<Dim>{{1, false}})
    fail(ErrorId::PlanShape,
         format("view %u is %s of %s, not [1] of i32", in(0), shapeText(shape).c_str(),
                dtypeText(ctx.views[in(0)].dtype).c_str()));
}

/// Who reads and writes memory works on its own: a device on its memory, its host on the host's.
/// Copies may cross.
void InstrCheck::place() {
  size_t host = 0, device = 0;
  for (const auto *views : {instr.inputs(), instr.outputs()})
    for (size_t i = 0; i < sizeOf(views); ++i)
      ++(ctx.isOnHost(views->Get(i)) ? host : device);
  switch (instr.kind()) {
  case fb::InstrKind::copy:
    return;
  case fb::InstrKind::call:
    if (host && device)
      fail(ErrorId::PlanStructure,
           "works on the device's memory and on the host's; only copies do");
    return;
  default:
    if (host)
      fail(ErrorId::PlanStructure, "works on the host's memory; only calls and copies do");
  }
}

void InstrCheck::run() {
  if (!checkCommon())
    return;
  place();
  switch (instr.kind()) {
  case fb::InstrKind::launch:
    return launch();
  case fb::InstrKind::call:
    return call();
  case fb::InstrKind::collective:
    return collective();
  case fb::InstrKind::copy:
    return copy();
  case fb::InstrKind::fill:
    if (operands(0, 1))
      params({{"value", fb::ParamKind::real}});
    return;
  case fb::InstrKind::record:
  case fb::InstrKind::wait:
    return event();
  case fb::InstrKind::require_bound:
    return requireBound();
  }
}

/// A trace says what lies in its view after the instruction that writes it, so there must be one.
void verifyWritersOfTraces(ProgramContext &ctx) {
  if (sizeOf(ctx.program.traces()) == 0)
    return;
  std::vector<uint32_t> writers(ctx.views.size(), 0);
  for (const fb::Instr *instr : *ctx.program.instrs())
    for (size_t i = 0; i < std::min(sizeOf(instr->outputs()), kMaxOperands); ++i)
      if (uint32_t view = instr->outputs()->Get(i); view < writers.size())
        ++writers[view];
  for (size_t i = 0; i < ctx.program.traces()->size(); ++i) {
    const fb::Trace *trace = ctx.program.traces()->Get(i);
    if (trace->view() < writers.size() && writers[trace->view()] != 1)
      ctx.report.add(ErrorId::PlanStructure,
                     format("%s trace %zu %s: %u instructions write view %u, not exactly one",
                            ctx.where.c_str(), i, quoted(trace->name()).c_str(),
                            writers[trace->view()], trace->view()));
  }
}

/// Runtimes give each queue to one of three: the device, its host, and what copies between them.
void verifyQueues(ProgramContext &ctx) {
  enum class Engine { none, device, host, copies };
  std::vector<Engine> engines(ctx.program.queues()->size());
  for (size_t i = 0; i < ctx.program.instrs()->size(); ++i) {
    const fb::Instr *instr = (*ctx.program.instrs())[i];
    size_t host = 0, views = 0;
    for (const auto *list : {instr->inputs(), instr->outputs()})
      for (size_t j = 0; j < sizeOf(list); ++j, ++views) {
        if (!ctx.views[list->Get(j)].sound)
          return; // reported already
        host += ctx.isOnHost(list->Get(j));
      }
    if (views == 0)
      continue; // of events
    Engine engine = host == 0 ? Engine::device : host == views ? Engine::host : Engine::copies;
    Engine &mine = engines[instr->queue()];
    if (mine != Engine::none && mine != engine) {
      ctx.report.add(ErrorId::PlanStructure,
                     ctx.describe(i) + ": its queue has work of another memory");
      return;
    }
    mine = engine;
  }
}

} // namespace

void verifyInstructions(ProgramContext &ctx) {
  size_t before = ctx.report.count();
  bool required = false;
  for (size_t i = 0; i < ctx.program.instrs()->size(); ++i) {
    InstrCheck(ctx, i).run();
    required |= (*ctx.program.instrs())[i]->kind() == fb::InstrKind::require_bound;
  }
  if (ctx.boundMax != 0 && !required)
    ctx.report.add(ErrorId::PlanStructure,
                   ctx.where + ": has a bound, but no require_bound checks it");
  if (ctx.report.count() == before)
    verifyQueues(ctx);
  verifyWritersOfTraces(ctx);
}

} // namespace moira::rt::verify
