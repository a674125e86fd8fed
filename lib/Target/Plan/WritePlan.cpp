//===- WritePlan.cpp - plan IR to the bytes of a plan file ----------------===//
// A walk over the plan in order, one function a table of runtime/schema/plan.fbs. Nothing is
// decided here: equal IR gives equal bytes.
//===----------------------------------------------------------------------===//
#include "moira/Dialect/Plan/IR/CallBridge.h"
#include "moira/Target/Plan/PlanFileIO.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;
using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;

namespace {

/// Strings by number, in order of first use.
class StringTable {
public:
  uint32_t intern(StringRef text) {
    auto [it, fresh] = numbers.try_emplace(text, strings.size());
    if (fresh)
      strings.push_back(text.str());
    return it->second;
  }
  std::vector<std::string> strings;

private:
  llvm::StringMap<uint32_t> numbers;
};

class Writer {
public:
  explicit Writer(PlanOp plan) : plan(plan) {}
  FailureOr<std::vector<uint8_t>> write();

private:
  Offset<fb::Program> writeProgram(ProgramOp program);
  Offset<fb::Kernel> writeKernel(KernelOp kernel);
  Offset<fb::ModelInfo> writeInfo(InfoAttr info);

  // --- one program; the tables that its instructions refer to are the members below
  void number(ProgramOp program);
  Offset<fb::Source> writeSource(Attribute attribute);
  Offset<fb::State> writeState(StateOp state);
  Offset<fb::View> writeView(ViewOp view);
  Offset<fb::Input> writeInput(InputOp input);
  Offset<fb::Output> writeOutput(OutputOp output);
  Offset<fb::Trace> writeTrace(TraceOp trace);
  Offset<fb::Instr> writeInstr(InstructionInterface instr);
  Offset<fb::Param> writeParam(StringRef name, Attribute value);

  // --- pieces; absent vectors stand for empty ones where the schema allows it
  Offset<flatbuffers::String> text(StringRef value) {
    return out.CreateString(value.data(), value.size());
  }
  Offset<flatbuffers::Vector<int64_t>> sizes(ArrayRef<int64_t> values) {
    return out.CreateVector(values.data(), values.size());
  }
  Offset<flatbuffers::Vector<uint8_t>> axes(ArrayRef<StringAttr> names);
  Offset<flatbuffers::Vector<uint32_t>> viewList(OperandRange values);
  Offset<flatbuffers::Vector<Offset<fb::DimSharding>>> dims(RankedTensorType type);

  PlanOp plan;
  FlatBufferBuilder out{1 << 16};
  StringTable calls, places;
  llvm::StringMap<uint32_t> kernels, sections;
  llvm::StringMap<uint16_t> arenas, queues;
  llvm::DenseMap<Value, uint32_t> views, events;
};

Offset<flatbuffers::Vector<uint8_t>> Writer::axes(ArrayRef<StringAttr> names) {
  if (names.empty())
    return 0;
  SmallVector<uint8_t> indices;
  for (StringAttr name : names)
    indices.push_back(plan.indexOfAxis(name.getValue()));
  return out.CreateVector(indices.data(), indices.size());
}

Offset<flatbuffers::Vector<uint32_t>> Writer::viewList(OperandRange values) {
  if (values.empty())
    return 0;
  SmallVector<uint32_t> indices;
  for (Value value : values)
    indices.push_back(views.lookup(value));
  return out.CreateVector(indices.data(), indices.size());
}

Offset<flatbuffers::Vector<Offset<fb::DimSharding>>> Writer::dims(RankedTensorType type) {
  dist::ShardingAttr sharding = dist::getSharding(type);
  std::vector<Offset<fb::DimSharding>> list;
  for (int64_t i = 0; i < type.getRank(); ++i) {
    auto cut =
        sharding ? sharding.getDims()[i] : dist::DimShardingAttr::replicated(type.getContext());
    auto names = axes(cut.getAxes());
    list.push_back(fb::CreateDimSharding(out, names, cut.getPad()));
  }
  return out.CreateVector(list);
}

Offset<fb::ModelInfo> Writer::writeInfo(InfoAttr info) {
  auto modelClass = text(info.getModelClass()), task = text(info.getTask());
  Offset<flatbuffers::Vector<Offset<flatbuffers::String>>> unused;
  if (ArrayAttr names = info.getUnusedTensors()) {
    std::vector<Offset<flatbuffers::String>> list;
    for (auto name : names.getAsRange<StringAttr>())
      list.push_back(text(name.getValue()));
    unused = out.CreateVector(list);
  }
  Offset<flatbuffers::String> schedule;
  if (StringAttr name = info.getSchedule())
    schedule = text(name.getValue());
  return fb::CreateModelInfo(out, modelClass, task, toDType(info.getDtype()), info.getBatch(),
                             info.getSeq(), info.getParameters(), info.getActiveParameters(),
                             info.getTensorsExpected(), info.getTensorsFound(), unused, schedule);
}

Offset<fb::Kernel> Writer::writeKernel(KernelOp kernel) {
  std::vector<Offset<fb::KernelOperand>> operands;
  for (auto operand : kernel.getTakes().getAsRange<OperandAttr>()) {
    auto inner = sizes(operand.getInner());
    operands.push_back(fb::CreateKernelOperand(out, toDType(operand.getElementType()), inner,
                                               operand.getRowwise(), operand.getOutput()));
  }
  auto name = text(kernel.getSymName());
  auto list = out.CreateVector(operands);
  return fb::CreateKernel(out, name, sections.lookup(*kernel.getSection()), list);
}

//===----------------------------------------------------------------------===//
// Programs
//===----------------------------------------------------------------------===//

void Writer::number(ProgramOp program) {
  arenas.clear();
  queues.clear();
  views.clear();
  events.clear();
  for (auto queue : program.getQueues().getAsRange<StringAttr>())
    queues[queue.getValue()] = queues.size();
  for (Operation &op : program.getBody().front()) {
    if (auto arena = dyn_cast<ArenaOp>(op))
      arenas[arena.getName()] = arenas.size();
    else if (auto view = dyn_cast<ViewOp>(op))
      views[view] = views.size();
    else if (auto record = dyn_cast<RecordOp>(op))
      events[record] = events.size();
  }
}

/// None for a null attribute.
Offset<fb::Source> Writer::writeSource(Attribute attribute) {
  auto source = dyn_cast_if_present<moe::SourceAttr>(attribute);
  if (!source)
    return {};
  std::vector<Offset<flatbuffers::String>> names;
  for (auto name : source.getNames().getAsRange<StringAttr>())
    names.push_back(text(name.getValue()));
  auto list = out.CreateVector(names);
  auto disk = sizes(source.getDiskShape().asArrayRef());
  Offset<flatbuffers::Vector<uint8_t>> permute;
  if (DenseI64ArrayAttr order = source.getPermute())
    permute = out.CreateVector(
        std::vector<uint8_t>(order.asArrayRef().begin(), order.asArrayRef().end()));
  Offset<flatbuffers::Vector<int64_t>> slice;
  if (DenseI64ArrayAttr part = source.getSlice())
    slice = sizes(part.asArrayRef());
  return fb::CreateSource(out, list, source.getPerExpert(), disk, permute, slice);
}

Offset<fb::State> Writer::writeState(StateOp state) {
  auto type = cast<RankedTensorType>(state.getType());
  Offset<fb::Source> from = writeSource(state.getSourceAttr());
  auto name = text(state.getName());
  auto shape = sizes(type.getShape());
  auto cuts = dims(type);
  return fb::CreateState(out, name, toDType(type.getElementType()), shape, cuts,
                         arenas.lookup(state.getArena()), state.getOffset(), from,
                         state.getLayer() ? static_cast<int32_t>(*state.getLayer()) : -1,
                         state.getTransient());
}

Offset<fb::View> Writer::writeView(ViewOp view) {
  ViewType type = view.getType();
  auto shape = sizes(type.getShape());
  return fb::CreateView(out, arenas.lookup(view.getArena()), *view.getOffset(),
                        view.getPerBound().value_or(0), toDType(type.getElementType()), shape,
                        static_cast<int32_t>(type.getBoundDim()));
}

Offset<fb::Param> Writer::writeParam(StringRef paramName, Attribute value) {
  auto name = text(paramName);
  return llvm::TypeSwitch<Attribute, Offset<fb::Param>>(value)
      .Case<IntegerAttr>([&](auto integer) {
        return fb::CreateParam(out, name, fb::ParamKind::integer, integer.getInt());
      })
      .Case<FloatAttr>([&](auto real) {
        return fb::CreateParam(out, name, fb::ParamKind::real, 0, real.getValueAsDouble());
      })
      .Case<StringAttr>([&](auto string) {
        auto value = text(string.getValue());
        return fb::CreateParam(out, name, fb::ParamKind::text, 0, 0, value);
      })
      .Case<DenseI64ArrayAttr>([&](auto integers) {
        auto values = sizes(integers.asArrayRef());
        return fb::CreateParam(out, name, fb::ParamKind::integers, 0, 0, 0, values);
      })
      .Case<ArrayAttr>([&](auto list) {
        std::vector<double> reals;
        for (auto real : list.template getAsRange<FloatAttr>())
          reals.push_back(real.getValueAsDouble());
        auto values = out.CreateVector(reals);
        return fb::CreateParam(out, name, fb::ParamKind::reals, 0, 0, 0, 0, 0, values);
      })
      .Case<dist::OffsetAttr>([&](auto offset) {
        auto along = axes(offset.getAxes());
        return fb::CreateParam(out, name, fb::ParamKind::offset, offset.getStride(), 0, 0, 0,
                               along);
      });
}

Offset<fb::Instr> Writer::writeInstr(InstructionInterface instr) {
  fb::InstrKind kind;
  uint32_t target = 0;
  std::vector<Offset<fb::Param>> params;
  SmallVector<StringAttr> along;
  auto writeAll = [&](DictionaryAttr dictionary) {
    for (NamedAttribute named : dictionary)
      params.push_back(writeParam(named.getName().getValue(), named.getValue()));
  };
  Builder builder(plan.getContext());
  llvm::TypeSwitch<Operation *>(instr.getOperation())
      .Case<LaunchOp>([&](auto launch) {
        kind = fb::InstrKind::launch;
        target = kernels.lookup(launch.getKernel());
        params.push_back(writeParam("rows", builder.getI64IntegerAttr(launch.getRows())));
        if (launch.getBounded())
          params.push_back(writeParam("rows_scale_bound", builder.getI64IntegerAttr(1)));
      })
      .Case<CallOp>([&](auto call) {
        kind = fb::InstrKind::call;
        target = calls.intern(call.getCallee());
        writeAll(call.getParams());
      })
      .Case<CollectiveOp>([&](auto collective) {
        kind = fb::InstrKind::collective;
        target = static_cast<uint32_t>(collective.getKind());
        llvm::append_range(along, collective.getAxes().template getAsRange<StringAttr>());
        writeAll(collective.getParams());
      })
      .Case<CopyOp>([&](auto copy) {
        kind = fb::InstrKind::copy;
        writeAll(copy.getParams());
      })
      .Case<FillOp>([&](auto fill) {
        kind = fb::InstrKind::fill;
        params.push_back(writeParam("value", fill.getValueAttr()));
      })
      .Case<RecordOp>([&](auto record) {
        kind = fb::InstrKind::record;
        target = events.lookup(record);
      })
      .Case<WaitOp>([&](auto wait) {
        kind = fb::InstrKind::wait;
        target = events.lookup(wait.getEvent());
      })
      .Case<RequireBoundOp>([&](auto) { kind = fb::InstrKind::require_bound; });
  auto inputs = viewList(instr.getReads());
  auto outputs = viewList(instr.getWrites());
  Offset<flatbuffers::Vector<Offset<fb::Param>>> paramList;
  if (!params.empty())
    paramList = out.CreateVector(params);
  auto axisList = axes(along);
  int32_t layer = instr.getLayer() ? static_cast<int32_t>(*instr.getLayer()) : -1;
  return fb::CreateInstr(out, kind, target, queues.lookup(instr.getQueue()), inputs, outputs,
                         paramList, axisList, layer, places.intern(instr.getPlace().value_or("")));
}

Offset<fb::Input> Writer::writeInput(InputOp input) {
  auto type = cast<RankedTensorType>(input.getType());
  auto name = text(input.getName());
  auto shape = sizes(type.getShape());
  auto cuts = dims(type);
  int64_t least = input.getRange() ? (*input.getRange())[0] : 0;
  int64_t most = input.getRange() ? (*input.getRange())[1] : 0;
  double fill = input.getFill() ? input.getFill()->convertToDouble() : 0;
  return fb::CreateInput(out, name, toDType(type.getElementType()), shape, cuts,
                         views.lookup(input.getView()), input.getOptional(), fill, least, most);
}

Offset<fb::Output> Writer::writeOutput(OutputOp output) {
  auto type = cast<RankedTensorType>(output.getType());
  auto name = text(output.getName());
  auto shape = sizes(type.getShape());
  auto cuts = dims(type);
  auto source = writeSource(output.getSourceAttr());
  return fb::CreateOutput(out, name, toDType(type.getElementType()), shape, cuts,
                          views.lookup(output.getView()), source);
}

Offset<fb::Trace> Writer::writeTrace(TraceOp trace) {
  auto type = cast<RankedTensorType>(trace.getType());
  auto name = text(trace.getName());
  auto shape = sizes(type.getShape());
  auto cuts = dims(type);
  return fb::CreateTrace(out, name, toDType(type.getElementType()), shape, cuts,
                         views.lookup(trace.getView()));
}

Offset<fb::Program> Writer::writeProgram(ProgramOp program) {
  number(program);
  // Table by table, whatever the order in the block: the same program has the same bytes.
  std::vector<Offset<fb::Queue>> queueList;
  for (auto queue : program.getQueues().getAsRange<StringAttr>()) {
    auto name = text(queue.getValue());
    queueList.push_back(fb::CreateQueue(out, name));
  }
  std::vector<Offset<fb::Arena>> arenaList;
  for (auto arena : program.getOps<ArenaOp>()) {
    auto name = text(arena.getName());
    arenaList.push_back(fb::CreateArena(out, name, static_cast<fb::Space>(arena.getSpace()),
                                        static_cast<fb::ArenaRole>(arena.getRole()),
                                        arena.getBytes(), arena.getPerBound()));
  }
  std::vector<Offset<fb::State>> stateList;
  for (auto state : program.getOps<StateOp>())
    stateList.push_back(writeState(state));
  std::vector<Offset<fb::View>> viewTables;
  for (auto view : program.getOps<ViewOp>())
    viewTables.push_back(writeView(view));
  std::vector<Offset<fb::Input>> inputList;
  for (auto input : program.getOps<InputOp>())
    inputList.push_back(writeInput(input));
  std::vector<Offset<fb::Output>> outputList;
  for (auto output : program.getOps<OutputOp>())
    outputList.push_back(writeOutput(output));
  std::vector<Offset<fb::Trace>> traceList;
  for (auto trace : program.getOps<TraceOp>())
    traceList.push_back(writeTrace(trace));
  std::vector<Offset<fb::Instr>> instrList;
  for (Operation &op : program.getBody().front())
    if (auto instr = dyn_cast<InstructionInterface>(op))
      instrList.push_back(writeInstr(instr));
  auto name = text(program.getSymName());
  auto queueVector = out.CreateVector(queueList);
  auto viewVector = out.CreateVector(viewTables);
  auto instrVector = out.CreateVector(instrList);
  auto inputVector = out.CreateVector(inputList);
  auto outputVector = out.CreateVector(outputList);
  auto stateVector = out.CreateVector(stateList);
  auto arenaVector = out.CreateVector(arenaList);
  Offset<flatbuffers::Vector<Offset<fb::Trace>>> traceVector;
  if (!traceList.empty())
    traceVector = out.CreateVector(traceList);
  return fb::CreateProgram(out, name, program.getRanks(), program.getReference(), queueVector,
                           events.size(), viewVector, instrVector, inputVector, outputVector,
                           stateVector, arenaVector, program.boundInitial(), program.boundMax(),
                           traceVector);
}

//===----------------------------------------------------------------------===//
// Plans
//===----------------------------------------------------------------------===//

/// What must have happened before a plan has bytes.
LogicalResult checkComplete(PlanOp plan) {
  bool complete = true;
  for (auto kernel : plan.getOps<KernelOp>())
    if (!kernel.getSection()) {
      kernel.emitOpError("MOE-0601: has no section; run plan-build-kernels first");
      complete = false;
    }
  for (auto program : plan.getOps<ProgramOp>())
    for (auto view : program.getOps<ViewOp>())
      if (!view.getOffset()) {
        view.emitOpError("MOE-0601: has no address; run plan-allocate first");
        return failure();
      }
  return success(complete);
}

FailureOr<std::vector<uint8_t>> Writer::write() {
  if (failed(checkComplete(plan)))
    return failure();
  std::vector<std::vector<uint8_t>> bytes;
  std::vector<Offset<fb::Section>> sectionList;
  for (auto section : plan.getOps<SectionOp>()) {
    sections[section.getSymName()] = sections.size();
    ArrayRef<char> data = section.getData();
    bytes.emplace_back(data.begin(), data.end());
    auto target = text(section.getTarget()), features = text(section.getFeatures());
    // Offset and checksum are patched once the buffer's length is known; 0 would leave them out.
    sectionList.push_back(fb::CreateSection(out, static_cast<fb::SectionKind>(section.getKind()),
                                            target, features, /*offset=*/1, data.size(),
                                            /*crc32c=*/1));
  }
  std::vector<Offset<fb::Kernel>> kernelList;
  for (auto kernel : plan.getOps<KernelOp>()) {
    kernels[kernel.getSymName()] = kernels.size();
    kernelList.push_back(writeKernel(kernel));
  }
  // The arenas of the first mesh program are those of all of them.
  for (auto program : plan.getOps<ProgramOp>())
    if (!program.getReference()) {
      number(program);
      break;
    }
  std::vector<Offset<fb::State>> stateList;
  for (auto state : plan.getOps<StateOp>())
    stateList.push_back(writeState(state));
  std::vector<Offset<fb::Program>> programList;
  for (auto program : plan.getOps<ProgramOp>())
    programList.push_back(writeProgram(program));
  std::vector<Offset<fb::Axis>> axisList;
  for (auto [name, size] : llvm::zip(plan.getAxes().getAsRange<StringAttr>(), plan.getSizes())) {
    auto axisName = text(name.getValue());
    axisList.push_back(fb::CreateAxis(out, axisName, size));
  }
  auto info = writeInfo(plan.getInfo());
  auto producer = text(plan.getProducer()), target = text(plan.getTarget());
  auto axisVector = out.CreateVector(axisList);
  auto callVector = out.CreateVectorOfStrings(calls.strings);
  auto placeVector = out.CreateVectorOfStrings(places.strings);
  auto kernelVector = out.CreateVector(kernelList);
  auto sectionVector = out.CreateVector(sectionList);
  auto programVector = out.CreateVector(programList);
  auto stateVector = out.CreateVector(stateList);
  out.Finish(fb::CreatePlan(out, producer, target, axisVector, callVector, placeVector,
                            kernelVector, sectionVector, programVector, info, stateVector));
  std::vector<uint8_t> buffer(out.GetBufferPointer(), out.GetBufferPointer() + out.GetSize());
  std::vector<uint8_t> file = rt::assemblePlanFile(std::move(buffer), bytes);

  rt::Expected<rt::PlanFile> accepted = rt::PlanFile::fromBytes(file);
  if (accepted)
    return file;
  for (const rt::Diagnostic &problem : accepted.status().diagnostics())
    plan.emitError() << "MOE-0699: the plan that was written breaks a rule: "
                     << rt::format("MOE-%04d", static_cast<int>(problem.id)) << ": "
                     << problem.message;
  return failure();
}

} // namespace

FailureOr<std::vector<uint8_t>> moira::writePlan(ModuleOp module) {
  PlanOp plan = getPlan(module);
  if (!plan) {
    module.emitError("MOE-0601: the module holds no plan.plan; run the phase `plan` first");
    return failure();
  }
  return Writer(plan).write();
}
