//===- ProgramBuilder.cpp - emitting one plan.program ---------------------===//
#include "ProgramBuilder.h"
#include "QueueClocks.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Support/Place.h"
#include "moira/rt/CallRegistry.h"
#include "llvm/ADT/StringSet.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

ProgramBuilder::ProgramBuilder(PlanOp plan, func::FuncOp source, const StatePlaces *shared,
                               kernels::KernelTable &kernels, bool fastest)
    : plan(plan), source(source), reference(!shared), fastest(fastest), kernels(kernels),
      builder(plan.getContext()), shared(shared), loc(source.getLoc()) {
  builder.setInsertionPointToEnd(&plan.getBody().front());
  SmallVector<StringRef> queues{kComputeQueue};
  if (!reference && plan.numRanks() > 1)
    queues.push_back(kCommQueue);
  if (shared && shared->hostBytes)
    queues.append({kToHostQueue, kToDeviceQueue, kHostQueue});
  StringRef name = reference ? "reference" : source.getName();
  program = ProgramOp::create(builder, loc, name, reference ? 1 : plan.numRanks(), reference,
                              builder.getStrArrayAttr(queues), DenseI64ArrayAttr());
  builder.createBlock(&program.getBody());
}

//===----------------------------------------------------------------------===//
// Views
//===----------------------------------------------------------------------===//

ViewType ProgramBuilder::viewType(ArrayRef<int64_t> shape, Type element, int64_t bound) const {
  // The reference program is exact: whatever the compute type, it runs in f32 (or f64 at run time).
  if (reference && (element.isBF16() || element.isF16()))
    element = Float32Type::get(element.getContext());
  return ViewType::get(element.getContext(), shape, element, bound);
}

ViewType ProgramBuilder::viewType(Type type) const {
  auto tensor = cast<RankedTensorType>(type);
  SmallVector<int64_t> shape(tensor.getShape());
  if (auto rows = dyn_cast_if_present<dist::RowsAttr>(tensor.getEncoding())) {
    shape[rows.getDim()] = rows.getScale();
    return viewType(shape, tensor.getElementType(), rows.getDim());
  }
  return viewType(shape, tensor.getElementType());
}

Value ProgramBuilder::define(ViewType type) {
  StringRef arena = onHost ? kHostArena : type.isBounded() ? kRaggedArena : kActivationArena;
  return ViewOp::create(builder, loc, type, arena, IntegerAttr(), IntegerAttr());
}

Value ProgramBuilder::define(Value tensor) {
  // What is gathered to become a state is gathered where that lies.
  if (tensor.hasOneUse() && tensor.getDefiningOp<dist::AllGatherOp>())
    if (auto assign = dyn_cast<moe::AssignOp>(*tensor.user_begin()))
      return views[tensor] = view(assign.getState());
  return views[tensor] = define(viewType(tensor.getType()));
}

int64_t ProgramBuilder::groupSize(ArrayAttr axes) {
  int64_t ranks = 1;
  for (auto axis : axes.getAsRange<StringAttr>())
    ranks *= plan.getSizes()[plan.indexOfAxis(axis.getValue())];
  return ranks;
}

Value ProgramBuilder::zeroNeed() {
  if (!zero) {
    zero = define(viewType({1}, builder.getI32Type()));
    fill(zero, 0);
  }
  return zero;
}

//===----------------------------------------------------------------------===//
// Instructions
//===----------------------------------------------------------------------===//

void ProgramBuilder::setSource(Operation *op) {
  loc = op->getLoc();
  auto move = dyn_cast<MoveOp>(op);
  onHost = op->hasAttr(kOnHostAttr) || (move && move.getTo() == Space::host);
  StringRef name = placeOf(loc);
  int64_t number = layerOf(name);
  place = name.empty() ? StringAttr() : builder.getStringAttr(name);
  layer = number < 0 ? IntegerAttr() : builder.getI64IntegerAttr(number);
}

void ProgramBuilder::call(StringRef callee, ArrayRef<Value> inputs, ArrayRef<Value> outputs,
                          ArrayRef<NamedAttribute> params) {
  SmallVector<NamedAttribute> all(params);
  const rt::CallDesc *desc = rt::findCall(callee);
  auto module = source->getParentOfType<ModuleOp>();
  if (!reference && module && module->hasAttr(moe::MoeDialect::kDeterministic) && desc &&
      llvm::any_of(desc->params, [](const auto &param) { return param.name == "per_sample"; }))
    all.push_back(integer("per_sample", 1));
  CallOp::create(builder, loc, builder.getStringAttr(callee), inputs, outputs,
                 builder.getDictionaryAttr(all),
                 builder.getStringAttr(onHost ? kHostQueue : kComputeQueue), place, layer);
}

void ProgramBuilder::collective(CollectiveKind kind, Value input, Value output, ArrayAttr axes,
                                ArrayRef<NamedAttribute> params) {
  CollectiveOp::create(builder, loc, CollectiveKindAttr::get(builder.getContext(), kind), input,
                       output, axes, builder.getDictionaryAttr(params),
                       builder.getStringAttr(kCommQueue), place, layer);
}

/// What crosses between memories has queues of its own, one a direction.
static StringRef queueOfCopy(Value input, Value output) {
  auto isHosts = [](Value view) {
    StringRef arena = view.getDefiningOp<ViewOp>().getArena();
    return arena == kHostStateArena || arena == kHostArena;
  };
  if (isHosts(input) != isHosts(output))
    return isHosts(output) ? kToHostQueue : kToDeviceQueue;
  return isHosts(input) ? kHostQueue : kComputeQueue;
}

void ProgramBuilder::copy(Value input, Value output, int64_t dim, Attribute start) {
  SmallVector<NamedAttribute> params{integer("dim", dim), integer("start", 0)};
  if (start)
    params.push_back(offset("offset", start));
  CopyOp::create(builder, loc, input, output, builder.getDictionaryAttr(params),
                 builder.getStringAttr(queueOfCopy(input, output)), place, layer);
}

void ProgramBuilder::fill(Value output, double value) {
  FillOp::create(builder, loc, output, builder.getF64FloatAttr(value),
                 builder.getStringAttr(kComputeQueue), place, layer);
}

void ProgramBuilder::requireBound(Value need, int64_t initial, int64_t worst) {
  program.setBoundAttr(builder.getDenseI64ArrayAttr({initial, worst}));
  RequireBoundOp::create(builder, loc, need, builder.getStringAttr(kComputeQueue), place, layer);
}

LogicalResult ProgramBuilder::launch(FusedOp fused) {
  Block &body = fused.getBody().front();
  SmallVector<Operation *> members;
  for (Operation &op : body.without_terminator())
    members.push_back(&op);
  SmallVector<Value> inputs(body.getArguments());
  auto yield = cast<YieldOp>(body.getTerminator());
  if (!llvm::all_of(members, isRowOp))
    return fused.emitOpError("MOE-0601: holds something other than row ops");
  std::optional<GroupKernel> group =
      makeGroupKernel(members, inputs, SmallVector<Value>(yield.getValues()));
  if (!group)
    return fused.emitOpError("MOE-0601: no kernel can run this group");
  unsigned index = kernels.intern(std::move(group->spec));
  StringRef name = kernels.kernels()[index].name;
  SmallVector<Value> reads, writes;
  for (Value input : fused.getInputs())
    reads.push_back(view(input));
  for (Value result : fused.getResults())
    writes.push_back(define(result));
  LaunchOp::create(builder, loc, FlatSymbolRefAttr::get(builder.getContext(), name), reads, writes,
                   builder.getI64IntegerAttr(group->rows),
                   group->bounded ? builder.getUnitAttr() : UnitAttr(),
                   builder.getStringAttr(kComputeQueue), place, layer);
  return success();
}

NamedAttribute ProgramBuilder::integer(StringRef name, int64_t value) {
  return builder.getNamedAttr(name, builder.getI64IntegerAttr(value));
}
NamedAttribute ProgramBuilder::real(StringRef name, double value) {
  return builder.getNamedAttr(name, builder.getF64FloatAttr(value));
}
NamedAttribute ProgramBuilder::text(StringRef name, StringRef value) {
  return builder.getNamedAttr(name, builder.getStringAttr(value));
}
NamedAttribute ProgramBuilder::offset(StringRef name, Attribute value) {
  if (!value)
    value = dist::OffsetAttr::get(builder.getContext(), {}, 0);
  return builder.getNamedAttr(name, value);
}

//===----------------------------------------------------------------------===//
// Weights, inputs, outputs
//===----------------------------------------------------------------------===//

/// `type` as the plan has it: without an encoding that cuts nothing.
static RankedTensorType globalType(RankedTensorType type, bool reference) {
  dist::ShardingAttr sharding = dist::getSharding(type);
  // Which axes a state is partial over is what its readers do about it.
  if (sharding)
    sharding = sharding.withPartial({});
  if (reference || (sharding && sharding.isFullyReplicated()))
    sharding = {};
  Type element = type.getElementType();
  if (reference && (element.isBF16() || element.isF16()))
    element = Float32Type::get(type.getContext());
  return RankedTensorType::get(type.getShape(), element, sharding);
}

StatePlaces moira::addStates(ModuleOp module, PlanOp plan, bool reference,
                             llvm::function_ref<bool(moe::StateOp)> wanted, OpBuilder &builder) {
  MeshInfo mesh = getMesh(plan);
  StatePlaces places;
  for (auto state : module.getOps<moe::StateOp>()) {
    if (!wanted(state))
      continue;
    RankedTensorType type = globalType(state.getTensorType(), reference);
    int64_t number = layerOf(state.getSymName());
    IntegerAttr stateLayer = state.getLayerAttr();
    if (!stateLayer && number >= 0)
      stateLayer = builder.getI64IntegerAttr(number);
    bool onHost = state->hasAttr(kOnHostAttr);
    StringRef arena = onHost ? kHostStateArena : kStateArena;
    uint64_t &used = onHost ? places.hostBytes : places.bytes;
    StateOp::create(builder, state.getLoc(), state.getSymName(), type, arena, used,
                    state.getSourceAttr(), stateLayer, state.getTransient());
    places.places[state.getSymName()] = {arena, used};
    uint64_t bytes = elementBytes(type.getElementType());
    for (int64_t size : shardShape(type, mesh))
      bytes *= size;
    used += alignUp(bytes);
  }
  return places;
}

LogicalResult ProgramBuilder::defineParam(moe::ParamOp param) {
  const StatePlaces &states = shared ? *shared : own;
  auto place = states.places.find(param.getState());
  if (place == states.places.end())
    return param.emitOpError("MOE-0601: reads a state that the module does not have");
  Value &view = stateViews[param.getState()];
  if (!view)
    view = ViewOp::create(builder, loc, viewType(param.getType()), place->second.arena,
                          builder.getI64IntegerAttr(place->second.offset), IntegerAttr());
  views[param.getResult()] = view;
  return success();
}

/// The global type of an argument or result: what `localize` noted, or its own.
static RankedTensorType globalTypeOf(Attribute noted, Type type) {
  if (auto global = dyn_cast_if_present<TypeAttr>(noted))
    type = global.getValue();
  return cast<RankedTensorType>(type);
}

LogicalResult ProgramBuilder::addInputs() {
  for (BlockArgument argument : source.getArguments()) {
    unsigned i = argument.getArgNumber();
    auto name = source.getArgAttrOfType<StringAttr>(i, "moe.name");
    if (!name)
      return source.emitError("MOE-0601: argument ") << i << " has no moe.name";
    RankedTensorType type = globalType(
        globalTypeOf(source.getArgAttr(i, "dist.global"), argument.getType()), reference);
    InputOp::create(builder, argument.getLoc(), name, define(argument), TypeAttr::get(type),
                    source.getArgAttrOfType<UnitAttr>(i, "moe.optional"),
                    source.getArgAttrOfType<FloatAttr>(i, "moe.fill"),
                    source.getArgAttrOfType<DenseI64ArrayAttr>(i, "moe.range"));
  }
  return success();
}

/// How the gradient of a state is written: as the state is read, every name behind `grad.`. Null
/// for other results.
static Attribute gradientSource(func::FuncOp func, unsigned result) {
  auto of = func.getResultAttrOfType<FlatSymbolRefAttr>(result, "moe.gradient_of");
  auto state = of ? SymbolTable::lookupNearestSymbolFrom<moe::StateOp>(func, of) : moe::StateOp();
  moe::SourceAttr from = state ? state.getSourceAttr() : moe::SourceAttr();
  if (!from)
    return {};
  Builder b(func.getContext());
  SmallVector<Attribute> names;
  for (auto name : from.getNames().getAsRange<StringAttr>())
    names.push_back(b.getStringAttr("grad." + name.getValue()));
  return moe::SourceAttr::get(b.getContext(), b.getArrayAttr(names), from.getPerExpert(),
                              from.getDiskShape(), from.getPermute(), from.getSlice());
}

LogicalResult ProgramBuilder::addOutputs() {
  for (OpOperand &operand : source.getBody().front().getTerminator()->getOpOperands()) {
    unsigned i = operand.getOperandNumber();
    auto name = source.getResultAttrOfType<StringAttr>(i, "moe.name");
    if (!name)
      return source.emitError("MOE-0601: result ") << i << " has no moe.name";
    Type own = operand.get().getType();
    RankedTensorType type =
        globalType(globalTypeOf(source.getResultAttr(i, "dist.global"), own), reference);
    Value result = view(operand.get());
    // What a state holds is given as it is now: outputs lie among the activations.
    if (operand.get().getDefiningOp<moe::ParamOp>()) {
      Value state = result;
      copy(state, result = define(viewType(own)), 0, Attribute());
    }
    OutputOp::create(builder, source.getLoc(), name, result, TypeAttr::get(type),
                     gradientSource(source, i));
  }
  return success();
}

LogicalResult ProgramBuilder::traceRouting(moe::RouteOp route) {
  moe::RoutingType type = route.getType();
  if (auto noted = route->getAttrOfType<TypeAttr>("dist.global")) {
    type = dyn_cast<moe::RoutingType>(noted.getValue());
    if (!type)
      return route.emitOpError("MOE-0601: its `dist.global` is not a routing");
  } else if (program.getRanks() != 1) {
    return success(); // nobody has said how its tokens are cut
  }
  TracedRoute traced{
      loc, layer, routings[route.getResult()], SmallVector<int64_t>(type.getTokens()), {}};
  traced.shape.push_back(type.getK());
  dist::ShardingAttr tokens = dist::getSharding(type);
  if (tokens && !reference) {
    SmallVector<dist::DimShardingAttr> cuts(tokens.getDims());
    cuts.push_back(dist::DimShardingAttr::replicated(builder.getContext()));
    traced.sharding = dist::ShardingAttr::get(builder.getContext(), cuts);
  }
  routes.push_back(std::move(traced));
  return success();
}

/// Named by the model's layers, or by the order of the routers where layers do not tell them apart.
void ProgramBuilder::addTraces() {
  llvm::DenseSet<int64_t> layers;
  bool byLayer = llvm::all_of(routes, [&](const TracedRoute &route) {
    return route.layer && layers.insert(route.layer.getInt()).second;
  });
  for (auto [i, route] : llvm::enumerate(routes)) {
    int64_t number = byLayer ? route.layer.getInt() : static_cast<int64_t>(i);
    auto add = [&](StringRef what, Value view) {
      Type element = cast<ViewType>(view.getType()).getElementType();
      RankedTensorType type =
          globalType(RankedTensorType::get(route.shape, element, route.sharding), reference);
      TraceOp::create(builder, route.loc,
                      builder.getStringAttr("layers." + Twine(number) + "." + what), view,
                      TypeAttr::get(type));
    };
    add("ids", route.views.ids);
    add("weights", route.views.inputWeights ? route.views.inputWeights : route.views.weights);
  }
}

/// True for what views can hold: a static tensor, cut up already.
static bool isLocalTensor(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return tensor && tensor.hasStaticShape() && elementBytes(tensor.getElementType()) &&
         !llvm::is_contained(tensor.getShape(), 0) &&
         (!tensor.getEncoding() || isa<dist::RowsAttr>(tensor.getEncoding()));
}

LogicalResult ProgramBuilder::checkTypes() {
  auto refuse = [](Location at, Type type) {
    return emitError(at)
           << "MOE-0601: a value of type " << type
           << " has no memory; the phase before `plan` leaves static tensors without shardings";
  };
  for (BlockArgument argument : source.getArguments())
    if (!isLocalTensor(argument.getType()))
      return refuse(argument.getLoc(), argument.getType());
  for (Operation &op : source.getBody().front())
    for (Type type : op.getResultTypes())
      if (!isLocalTensor(type) && !isa<moe::RoutingType>(type))
        return refuse(op.getLoc(), type);
  return success();
}

/// Erases instructions whose results nobody reads: lowerings leave out operands that say nothing.
static void eraseUnread(ProgramOp program) {
  auto isUnread = [](Value view) { return view.hasOneUse() && !isState(view); };
  SmallVector<InstructionInterface> instrs = instructionsOf(program);
  for (InstructionInterface instr : llvm::reverse(instrs))
    if (!instr.getWrites().empty() && llvm::all_of(instr.getWrites(), isUnread))
      instr->erase();
}

LogicalResult ProgramBuilder::build() {
  if (!source.getBody().hasOneBlock())
    return source.emitError("MOE-0601: a program has one block");
  if (failed(checkTypes()))
    return failure();
  if (reference) {
    llvm::StringSet<> read;
    source.walk([&](moe::ParamOp param) { read.insert(param.getState()); });
    own = addStates(
        source->getParentOfType<ModuleOp>(), plan, true,
        [&](moe::StateOp state) { return state.getSource() || read.contains(state.getSymName()); },
        builder);
  }
  if (failed(addInputs()))
    return failure();
  for (Operation &op : source.getBody().front().without_terminator()) {
    setSource(&op);
    if (failed(lowerOp(&op, *this)))
      return failure();
  }
  setSource(source);
  if (failed(addOutputs()))
    return failure();
  addTraces();
  eraseUnread(program);

  // Arenas stand first. Those without addresses yet get their sizes from plan-allocate.
  builder.setInsertionPointToStart(&program.getBody().front());
  auto arena = [&](StringRef name, ArenaRole role, uint64_t bytes, Space space = Space::device) {
    ArenaOp::create(builder, source.getLoc(), name, role, space, bytes, 0);
  };
  arena(kStateArena, ArenaRole::state, shared ? shared->bytes : own.bytes);
  arena(kActivationArena, ArenaRole::activations, 0);
  if (shared && shared->hostBytes) {
    arena(kHostStateArena, ArenaRole::state, shared->hostBytes, Space::host);
    arena(kHostArena, ArenaRole::activations, 0, Space::host);
  }
  if (program.getBound())
    arena(kRaggedArena, ArenaRole::ragged, 0);
  return success();
}
