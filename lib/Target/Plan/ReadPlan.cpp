//===- ReadPlan.cpp - plan files to plan IR -------------------------------===//
// The inverse of WritePlan.cpp, one function a table. The file was accepted by the plan verifier,
// so indices need no checks here.
//===----------------------------------------------------------------------===//
#include "mlir/IR/DialectResourceBlobManager.h"
#include "mlir/IR/Verifier.h"
#include "moira/Dialect/Plan/IR/CallBridge.h"
#include "moira/Target/Plan/PlanFileIO.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

class Reader {
public:
  Reader(const rt::PlanFile &file, MLIRContext *context)
      : file(file), source(file.plan()), builder(context), loc(UnknownLoc::get(context)) {}
  OwningOpRef<ModuleOp> read();

private:
  void readSection(unsigned index);
  void readKernel(const fb::Kernel &kernel);
  LogicalResult readProgram(const fb::Program &program);

  // --- one program
  moe::SourceAttr sourceOf(const fb::Source *source);
  void readState(const fb::State &state);
  /// Creates all views up to this one, so that they keep their numbers, and returns it.
  Value view(uint32_t index);
  SmallVector<Value> viewList(const flatbuffers::Vector<uint32_t> *indices);
  LogicalResult readInstr(const fb::Instr &instr);
  DictionaryAttr readParams(const fb::Instr &instr);

  // --- pieces
  StringAttr text(const flatbuffers::String *string) {
    return builder.getStringAttr(string ? StringRef(string->data(), string->size()) : StringRef());
  }
  SmallVector<StringAttr> axes(const flatbuffers::Vector<uint8_t> *indices);
  RankedTensorType
  globalType(fb::DType dtype, const flatbuffers::Vector<int64_t> &shape,
             const flatbuffers::Vector<flatbuffers::Offset<fb::DimSharding>> &dims);
  IntegerAttr layer(int32_t number) {
    return number < 0 ? IntegerAttr() : builder.getI64IntegerAttr(number);
  }

  const rt::PlanFile &file;
  const fb::Plan &source;
  OpBuilder builder;
  Location loc;
  PlanOp plan;
  SmallVector<StringAttr> axisNames;
  const fb::Program *program = nullptr;
  std::vector<Value> views, events;
};

std::vector<int64_t> toVector(const flatbuffers::Vector<int64_t> &values) {
  return {values.begin(), values.end()};
}

SmallVector<StringAttr> Reader::axes(const flatbuffers::Vector<uint8_t> *indices) {
  SmallVector<StringAttr> names;
  for (size_t i = 0; indices && i < indices->size(); ++i)
    names.push_back(axisNames[indices->Get(i)]);
  return names;
}

RankedTensorType
Reader::globalType(fb::DType dtype, const flatbuffers::Vector<int64_t> &shape,
                   const flatbuffers::Vector<flatbuffers::Offset<fb::DimSharding>> &dims) {
  SmallVector<dist::DimShardingAttr> cuts;
  for (const fb::DimSharding *dim : dims)
    cuts.push_back(
        dist::DimShardingAttr::split(builder.getContext(), axes(dim->axes()), dim->pad()));
  auto sharding = dist::ShardingAttr::get(builder.getContext(), cuts);
  bool cut = llvm::any_of(cuts, [](auto dim) { return !dim.isReplicated() || dim.getPad(); });
  return RankedTensorType::get(toVector(shape), fromDType(dtype, builder.getContext()),
                               cut ? sharding : dist::ShardingAttr());
}

void Reader::readSection(unsigned index) {
  const fb::Section *section = source.sections()->Get(index);
  std::span<const uint8_t> data = file.section(index);
  std::string name = "section" + std::to_string(index);
  auto type = RankedTensorType::get({static_cast<int64_t>(data.size())}, builder.getI8Type());
  ArrayRef<char> chars(reinterpret_cast<const char *>(data.data()), data.size());
  auto bytes = DenseResourceElementsAttr::get(
      type, name, HeapAsmResourceBlob::allocateAndCopyWithAlign(chars, kAlignment));
  SectionOp::create(
      builder, loc, builder.getStringAttr(name),
      SectionKindAttr::get(builder.getContext(), static_cast<SectionKind>(section->kind())),
      text(section->target()), text(section->features()), bytes);
}

void Reader::readKernel(const fb::Kernel &kernel) {
  SmallVector<Attribute> operands;
  for (const fb::KernelOperand *operand : *kernel.operands())
    operands.push_back(OperandAttr::get(builder.getContext(), operand->output(), operand->rowwise(),
                                        toVector(*operand->inner()),
                                        fromDType(operand->dtype(), builder.getContext())));
  KernelOp::create(
      builder, loc, text(kernel.name()),
      FlatSymbolRefAttr::get(builder.getContext(), "section" + std::to_string(kernel.section())),
      builder.getArrayAttr(operands), StringAttr());
}

//===----------------------------------------------------------------------===//
// Programs
//===----------------------------------------------------------------------===//

/// Null for an absent source.
moe::SourceAttr Reader::sourceOf(const fb::Source *source) {
  if (!source)
    return {};
  SmallVector<Attribute> names;
  for (const flatbuffers::String *name : *source->names())
    names.push_back(text(name));
  DenseI64ArrayAttr permute, slice;
  if (source->permute())
    permute = builder.getDenseI64ArrayAttr(
        SmallVector<int64_t>(source->permute()->begin(), source->permute()->end()));
  if (source->slice())
    slice = builder.getDenseI64ArrayAttr(toVector(*source->slice()));
  return moe::SourceAttr::get(
      builder.getContext(), builder.getArrayAttr(names), source->per_expert(),
      builder.getDenseI64ArrayAttr(toVector(*source->disk_shape())), permute, slice);
}

void Reader::readState(const fb::State &state) {
  StateOp::create(builder, loc, text(state.name()),
                  TypeAttr::get(globalType(state.dtype(), *state.shape(), *state.dims())),
                  text(program->arenas()->Get(state.arena())->name()),
                  builder.getI64IntegerAttr(state.offset()), sourceOf(state.source()),
                  layer(state.layer()), state.transient() ? builder.getUnitAttr() : UnitAttr());
}

Value Reader::view(uint32_t index) {
  while (views.size() <= index) {
    const fb::View *view = program->views()->Get(views.size());
    auto type = ViewType::get(builder.getContext(), toVector(*view->shape()),
                              fromDType(view->dtype(), builder.getContext()), view->bound_dim());
    bool ragged = view->bound_dim() >= 0 || view->offset_per_bound();
    views.push_back(ViewOp::create(
        builder, loc, type, text(program->arenas()->Get(view->arena())->name()),
        builder.getI64IntegerAttr(view->offset()),
        ragged ? builder.getI64IntegerAttr(view->offset_per_bound()) : IntegerAttr()));
  }
  return views[index];
}

SmallVector<Value> Reader::viewList(const flatbuffers::Vector<uint32_t> *indices) {
  SmallVector<Value> values;
  for (size_t i = 0; indices && i < indices->size(); ++i)
    values.push_back(view(indices->Get(i)));
  return values;
}

DictionaryAttr Reader::readParams(const fb::Instr &instr) {
  SmallVector<NamedAttribute> params;
  for (size_t i = 0; instr.params() && i < instr.params()->size(); ++i) {
    const fb::Param *param = instr.params()->Get(i);
    Attribute value;
    switch (param->kind()) {
    case fb::ParamKind::integer:
      value = builder.getI64IntegerAttr(param->i());
      break;
    case fb::ParamKind::real:
      value = builder.getF64FloatAttr(param->r());
      break;
    case fb::ParamKind::text:
      value = text(param->s());
      break;
    case fb::ParamKind::integers:
      value = builder.getDenseI64ArrayAttr(param->ints() ? toVector(*param->ints())
                                                         : std::vector<int64_t>());
      break;
    case fb::ParamKind::reals:
      value = builder.getF64ArrayAttr(param->reals()
                                          ? ArrayRef(param->reals()->data(), param->reals()->size())
                                          : ArrayRef<double>());
      break;
    case fb::ParamKind::offset:
      value = dist::OffsetAttr::get(builder.getContext(), axes(param->axes()), param->i());
      break;
    }
    params.emplace_back(text(param->name()), value);
  }
  return builder.getDictionaryAttr(params);
}

LogicalResult Reader::readInstr(const fb::Instr &instr) {
  SmallVector<Value> inputs = viewList(instr.inputs()), outputs = viewList(instr.outputs());
  DictionaryAttr params = readParams(instr);
  StringAttr queue = text(program->queues()->Get(instr.queue())->name());
  StringAttr place;
  Location at = loc;
  if (instr.location() < source.locations()->size())
    place = text(source.locations()->Get(instr.location()));
  if (place && place.empty())
    place = {};
  if (place)
    at = NameLoc::get(place);
  IntegerAttr number = layer(instr.layer());
  switch (instr.kind()) {
  case fb::InstrKind::launch:
    LaunchOp::create(builder, at,
                     FlatSymbolRefAttr::get(text(source.kernels()->Get(instr.target())->name())),
                     inputs, outputs, params.getAs<IntegerAttr>("rows"),
                     params.contains("rows_scale_bound") ? builder.getUnitAttr() : UnitAttr(),
                     queue, place, number);
    break;
  case fb::InstrKind::call:
    CallOp::create(builder, at, text(source.calls()->Get(instr.target())), inputs, outputs, params,
                   queue, place, number);
    break;
  case fb::InstrKind::collective: {
    SmallVector<Attribute> along;
    llvm::append_range(along, axes(instr.axes()));
    CollectiveOp::create(
        builder, at,
        CollectiveKindAttr::get(builder.getContext(), static_cast<CollectiveKind>(instr.target())),
        inputs, outputs, builder.getArrayAttr(along), params, queue, place, number);
    break;
  }
  case fb::InstrKind::copy:
    CopyOp::create(builder, at, inputs, outputs, params, queue, place, number);
    break;
  case fb::InstrKind::fill:
    FillOp::create(builder, at, outputs[0], params.getAs<FloatAttr>("value"), queue, place, number);
    break;
  case fb::InstrKind::record:
    if (events[instr.target()])
      return emitError(at, "MOE-0405: event ") << instr.target() << " is recorded twice";
    events[instr.target()] =
        RecordOp::create(builder, at, EventType::get(builder.getContext()), queue, place, number);
    break;
  case fb::InstrKind::wait:
    WaitOp::create(builder, at, events[instr.target()], queue, place, number);
    break;
  case fb::InstrKind::require_bound:
    RequireBoundOp::create(builder, at, inputs[0], queue, place, number);
    break;
  }
  return success();
}

LogicalResult Reader::readProgram(const fb::Program &table) {
  program = &table;
  views.clear();
  events.assign(table.events(), Value());
  OpBuilder::InsertionGuard guard(builder);
  SmallVector<Attribute> queues;
  for (const fb::Queue *queue : *table.queues())
    queues.push_back(text(queue->name()));
  DenseI64ArrayAttr bound;
  if (table.bound_max())
    bound = builder.getDenseI64ArrayAttr(
        {static_cast<int64_t>(table.bound_initial()), static_cast<int64_t>(table.bound_max())});
  auto op = ProgramOp::create(
      builder, loc, text(table.name()), builder.getI64IntegerAttr(table.ranks()),
      table.reference() ? builder.getUnitAttr() : UnitAttr(), builder.getArrayAttr(queues), bound);
  builder.createBlock(&op.getBody());
  for (const fb::Arena *arena : *table.arenas())
    ArenaOp::create(builder, loc, text(arena->name()),
                    ArenaRoleAttr::get(builder.getContext(), static_cast<ArenaRole>(arena->role())),
                    SpaceAttr::get(builder.getContext(), static_cast<Space>(arena->space())),
                    builder.getI64IntegerAttr(arena->bytes()),
                    builder.getI64IntegerAttr(arena->bytes_per_bound()));
  for (const fb::State *state : *table.states())
    readState(*state);
  for (const fb::Input *input : *table.inputs()) {
    FloatAttr fill = input->fill() != 0 ? builder.getF64FloatAttr(input->fill()) : FloatAttr();
    DenseI64ArrayAttr range;
    if (input->minimum() || input->maximum())
      range = builder.getDenseI64ArrayAttr({input->minimum(), input->maximum()});
    InputOp::create(builder, loc, text(input->name()), view(input->view()),
                    TypeAttr::get(globalType(input->dtype(), *input->shape(), *input->dims())),
                    input->optional() ? builder.getUnitAttr() : UnitAttr(), fill, range);
  }
  for (const fb::Instr *instr : *table.instrs())
    if (failed(readInstr(*instr)))
      return failure();
  for (const fb::Output *output : *table.outputs())
    OutputOp::create(builder, loc, text(output->name()), view(output->view()),
                     TypeAttr::get(globalType(output->dtype(), *output->shape(), *output->dims())),
                     sourceOf(output->source()));
  for (size_t i = 0; table.traces() && i < table.traces()->size(); ++i) {
    const fb::Trace *trace = table.traces()->Get(i);
    TraceOp::create(builder, loc, text(trace->name()), view(trace->view()),
                    TypeAttr::get(globalType(trace->dtype(), *trace->shape(), *trace->dims())));
  }
  if (table.views()->size() > 0)
    view(table.views()->size() - 1); // those that nothing uses
  return success();
}

OwningOpRef<ModuleOp> Reader::read() {
  MLIRContext *context = builder.getContext();
  context->loadDialect<PlanDialect>();
  OwningOpRef<ModuleOp> module = ModuleOp::create(loc);
  builder.setInsertionPointToEnd(module->getBody());
  SmallVector<Attribute> names;
  SmallVector<int64_t> sizes;
  for (const fb::Axis *axis : *source.axes()) {
    axisNames.push_back(text(axis->name()));
    names.push_back(axisNames.back());
    sizes.push_back(axis->size());
  }
  const fb::ModelInfo *info = source.info();
  auto infoText = [](const flatbuffers::String *string) {
    return string ? StringRef(string->data(), string->size()) : StringRef();
  };
  ArrayAttr unused;
  if (const auto *list = info->unused_tensors()) {
    SmallVector<StringRef> names;
    for (const flatbuffers::String *name : *list)
      names.push_back(infoText(name));
    unused = builder.getStrArrayAttr(names);
  }
  auto infoAttr = InfoAttr::get(
      context, infoText(info->model_class()), infoText(info->task()),
      fromDType(info->dtype(), context), info->batch(), info->seq(), info->parameters(),
      info->active_parameters(), info->tensors_expected(), info->tensors_found(), unused,
      info->schedule() ? builder.getStringAttr(infoText(info->schedule())) : StringAttr());
  plan = PlanOp::create(builder, loc, text(source.target()), builder.getArrayAttr(names),
                        builder.getDenseI64ArrayAttr(sizes), text(source.producer()), infoAttr);
  builder.createBlock(&plan.getBody());
  for (unsigned i = 0; i < source.sections()->size(); ++i)
    readSection(i);
  for (const fb::Kernel *kernel : *source.kernels())
    readKernel(*kernel);
  for (const fb::Program *table : *source.programs())
    if (!table->reference() && !program)
      program = table; // whose arenas the states name
  for (const fb::State *state : *source.states())
    readState(*state);
  for (const fb::Program *table : *source.programs())
    if (failed(readProgram(*table)))
      return {};
  if (failed(verify(*module))) {
    emitError(loc, "MOE-0405: this plan, though safe to run, has no form as plan IR");
    return {};
  }
  return module;
}

} // namespace

OwningOpRef<ModuleOp> moira::readPlan(const rt::PlanFile &file, MLIRContext *context) {
  return Reader(file, context).read();
}
