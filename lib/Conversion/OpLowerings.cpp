//===- OpLowerings.cpp - which op becomes which instruction ---------------===//
// One function an op, in a table; those of gradients and losses are in GradLowerings.cpp,
// attention's in AttentionLowerings.cpp. Operand orders and parameters are those of
// runtime/include/moira/rt/Calls.def.
//===----------------------------------------------------------------------===//
#include "LoweringTable.h"
#include "moira/Dialect/Dist/IR/DistOps.h"

using namespace mlir;
using namespace moira;

using B = ProgramBuilder;
using plan::ViewType;

LoweringTable::LoweringTable() {
  addDense();
  addRowWise();
  addAttention();
  addAttentionOverKeys();
  addExperts();
  addGeneration();
  addExchange();
  addCollectives();
  addDenseGradients();
  addExpertGradients();
  addLosses();
  addOptimizers();
}

void LoweringTable::addDense() {
  add<moe::ParamOp>(+[](moe::ParamOp op, B &b) { return b.defineParam(op); });
  add<moe::EmbeddingOp>(+[](moe::EmbeddingOp op, B &b) {
    b.call("embedding", {b.view(op.getIds()), b.view(op.getTable())}, {b.define(op.getResult())},
           {b.offset("row_offset", op.getRowOffsetAttr())});
    return success();
  });
  add<moe::FullOp>(+[](moe::FullOp op, B &b) {
    b.fill(b.define(op.getResult()), toDouble(op.getValue()));
    return success();
  });
  add<moe::LookupOp>(+[](moe::LookupOp op, B &b) {
    b.call("lookup", {b.view(op.getIds()), b.view(op.getTable())}, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::LinearOp>(+[](moe::LinearOp op, B &b) {
    b.call("linear", {b.view(op.getX()), b.view(op.getW())}, {b.define(op.getResult())},
           {b.integer("contract", op.getContract())});
    return success();
  });
}

static LogicalResult groupedGlu(moe::GluOp op, B &b);

/// What generated kernels do in the mesh program: calls in the reference program, and where no
/// kernel can.
void LoweringTable::addRowWise() {
  add<plan::FusedOp>(+[](plan::FusedOp op, B &b) { return b.launch(op); });
  add<plan::MoveOp>(+[](plan::MoveOp op, B &b) {
    b.copy(b.view(op.getX()), b.define(op.getResult()), 0, {});
    return success();
  });
  add<moe::RmsNormOp>(+[](moe::RmsNormOp op, B &b) {
    b.call("rms_norm", {b.view(op.getX()), b.view(op.getW())}, {b.define(op.getResult())},
           {b.real("eps", toDouble(op.getEps())), b.integer("norm_dims", rankOf(op.getW()))});
    return success();
  });
  add<moe::LayerNormOp>(+[](moe::LayerNormOp op, B &b) {
    SmallVector<Value> inputs{b.view(op.getX()), b.view(op.getW())};
    if (op.getB())
      inputs.push_back(b.view(op.getB()));
    b.call("layer_norm", inputs, {b.define(op.getResult())},
           {b.real("eps", toDouble(op.getEps())), b.integer("norm_dims", rankOf(op.getW()))});
    return success();
  });
  add<moe::SumSquaresOp>(+[](moe::SumSquaresOp op, B &b) {
    b.call("sum_squares", {b.view(op.getX())}, {b.define(op.getResult())},
           {b.integer("norm_dims", op.getNormDims())});
    return success();
  });
  add<moe::RmsApplyOp>(+[](moe::RmsApplyOp op, B &b) {
    b.call("rms_apply", {b.view(op.getX()), b.view(op.getSs()), b.view(op.getW())},
           {b.define(op.getResult())},
           {b.real("eps", toDouble(op.getEps())), b.integer("count", op.getCount()),
            b.integer("norm_dims", rankOf(op.getW()))});
    return success();
  });
  add<moe::AddOp>(+[](moe::AddOp op, B &b) {
    b.call("add", {b.view(op.getA()), b.view(op.getB())}, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::ClampOp>(+[](moe::ClampOp op, B &b) {
    b.call("clamp", {b.view(op.getX())}, {b.define(op.getResult())},
           {b.real("min", toDouble(op.getLo())), b.real("max", toDouble(op.getHi()))});
    return success();
  });
  add<moe::ScaleOp>(+[](moe::ScaleOp op, B &b) {
    b.call("scale", {b.view(op.getX())}, {b.define(op.getResult())},
           {b.real("factor", toDouble(op.getFactor()))});
    return success();
  });
  add<moe::ActOp>(+[](moe::ActOp op, B &b) {
    b.call("act", {b.view(op.getX())}, {b.define(op.getResult())},
           {b.text("activation", moe::stringifyActivation(op.getActivation()))});
    return success();
  });
  add<moe::GluOp>(+[](moe::GluOp op, B &b) {
    if (op->hasAttr(plan::kInProductAttr))
      return groupedGlu(op, b);
    b.call("glu", {b.view(op.getX())}, {b.define(op.getResult())}, gluParams(b, op));
    return LogicalResult(success());
  });
  add<moe::SigmoidGateOp>(+[](moe::SigmoidGateOp op, B &b) {
    b.call("sigmoid_gate", {b.view(op.getX()), b.view(op.getG())}, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::RopeOp>(+[](moe::RopeOp op, B &b) {
    SmallVector<NamedAttribute> params;
    if (op.getInterleaved())
      params.push_back(b.integer("interleaved", 1));
    b.call("rope", {b.view(op.getX()), b.view(op.getCos()), b.view(op.getSin())},
           {b.define(op.getResult())}, params);
    return success();
  });
}

void LoweringTable::addAttention() {
  add<moe::PositionsOp>(+[](moe::PositionsOp op, B &b) {
    b.call("positions", {}, {b.define(op.getResult())}, {b.offset("start", op.getStartAttr())});
    return success();
  });
  add<moe::WholeOp>(+[](moe::WholeOp op, B &b) {
    b.alias(op.getResult(), b.view(op.getX()));
    return success();
  });
  add<moe::TokenPositionsOp>(+[](moe::TokenPositionsOp op, B &b) {
    SmallVector<Value> inputs{b.view(op.getIds())};
    if (op.getCounts())
      inputs.push_back(b.view(op.getCounts()));
    b.call("token_positions", inputs, {b.define(op.getResult())},
           {b.integer("pad", op.getPad()), b.offset("start", op.getStartAttr())});
    return success();
  });
  add<moe::SinusoidOp>(+[](moe::SinusoidOp op, B &b) {
    b.call("sinusoid", {b.view(op.getPos())}, {b.define(op.getResult())},
           {b.integer("offset", op.getOffset()), b.integer("zero", op.getZero())});
    return success();
  });
  add<moe::RelativeBiasOp>(+[](moe::RelativeBiasOp op, B &b) {
    b.call("relative_bias", {b.view(op.getTable()), b.view(op.getQpos()), b.view(op.getKpos())},
           {b.define(op.getResult())},
           {b.integer("max_distance", op.getMaxDistance()),
            b.integer("bidirectional", op.getBidirectional())});
    return success();
  });
  add<moe::RopeTableOp>(+[](moe::RopeTableOp op, B &b) {
    b.call("rope_table", {b.view(op.getPos())}, {b.define(op.getCos()), b.define(op.getSin())},
           {{"frequencies", op.getFrequenciesAttr()}, b.real("factor", toDouble(op.getFactor()))});
    return success();
  });
  add<moe::HeadLinearOp>(+[](moe::HeadLinearOp op, B &b) {
    b.call("head_linear", {b.view(op.getX()), b.view(op.getW())}, {b.define(op.getResult())},
           {b.integer("transposed", op.getTransposed())});
    return success();
  });
}

Value moira::countsOf(Operation *op, Value groups, B &b) {
  bool sorted = isa<moe::RoutingType>(groups.getType());
  Value counts = sorted ? b.routing(groups).groups : b.view(groups);
  if (!counts)
    op->emitOpError("MOE-0601: no moe.dispatch before it has sorted rows by this routing");
  return counts;
}

SmallVector<NamedAttribute> moira::gateParams(ProgramBuilder &b, const moe::RouterFields &gate) {
  return {b.text("score", moe::stringifyScore(gate.score)),
          b.text("order", moe::stringifyRouteOrder(gate.order)),
          b.text("renorm", moe::stringifyRenorm(gate.renorm)),
          b.real("renorm_epsilon", gate.renormEpsilon),
          b.real("renorm_clamp_min", gate.renormClampMin),
          b.real("scale", gate.scale)};
}

/// Weights of 1 for the choices of `routing`.
static Value unitWeights(ProgramBuilder &b, RoutingViews routing) {
  auto ids = cast<ViewType>(routing.ids.getType());
  Value ones = b.define(b.viewType(ids.getShape(), Float32Type::get(ids.getContext())));
  b.fill(ones, 1);
  return ones;
}

/// Fresh views for a routing, which `call` fills.
static void defineRouting(ProgramBuilder &b, Value result, const moe::RouterFields &gate,
                          llvm::function_ref<void(Value ids, Value weights)> call) {
  auto type = cast<moe::RoutingType>(result.getType());
  SmallVector<int64_t> shape(type.getTokens());
  shape.push_back(type.getK());
  Builder types(result.getContext());
  RoutingViews routing;
  routing.ids = b.define(b.viewType(shape, types.getI32Type()));
  Value weights = b.define(b.viewType(shape, types.getF32Type()));
  call(routing.ids, weights);
  if (gate.apply == moe::RouteApply::input) {
    routing.inputWeights = weights;
    weights = unitWeights(b, routing);
  }
  routing.weights = weights;
  b.routing(result) = routing;
}

/// x, ids, need, and what rows are multiplied by where there is something: inputs of select and
/// pack. `weighted`: by the weights of the outputs.
static SmallVector<Value> dispatchInputs(const RoutingViews &routing, Value x, Value need,
                                         bool weighted) {
  SmallVector<Value> inputs{x, routing.ids, need};
  if (weighted)
    inputs.push_back(routing.weights);
  else if (routing.inputWeights)
    inputs.push_back(routing.inputWeights);
  return inputs;
}

/// Whether a selection gives the numbers of its rows' tokens. A routing that multiplies what
/// experts get needs the rows after all.
static bool givesNumbers(Operation *op, const RoutingViews &routing) {
  return op->hasAttr(plan::kNumbersOnlyAttr) && !routing.inputWeights;
}

/// The view of a selection's rows, or of the numbers that stand for them.
static Value defineRows(Operation *op, Value rows, const RoutingViews &routing, B &b) {
  if (!givesNumbers(op, routing))
    return b.define(rows);
  ViewType type = b.viewType(rows.getType());
  Value numbers = b.define(b.viewType({type.getShape()[0]}, IntegerType::get(op->getContext(), 32),
                                      type.isBounded() ? 0 : -1));
  b.alias(rows, numbers);
  return numbers;
}

static void select(Operation *op, B &b, const RoutingViews &routing, Value x, Value need,
                   bool weighted, ArrayRef<Value> outputs, ArrayRef<NamedAttribute> params) {
  if (givesNumbers(op, routing))
    b.call("select_tokens", {routing.ids, need}, outputs, params);
  else
    b.call("select", dispatchInputs(routing, x, need, weighted), outputs, params);
}

/// The glu and the product before it.
static LogicalResult groupedGlu(moe::GluOp op, B &b) {
  auto product = op.getX().getDefiningOp<moe::GroupedMatmulOp>();
  Value counts = countsOf(product, product.getGroups(), b), rows = b.view(product.getRows());
  if (!counts)
    return failure();
  SmallVector<Value> inputs{rows, counts, b.view(product.getW())};
  if (cast<ViewType>(rows.getType()).getElementType().isInteger()) {
    Operation *selection = product.getRows().getDefiningOp();
    inputs[0] = b.view(selection->getOperand(0));
    inputs.push_back(rows);
  }
  SmallVector<NamedAttribute> params = gluParams(b, op);
  params.push_back(b.integer("contract", product.getContract()));
  SmallVector<Value> outputs{b.define(op.getResult())};
  if (!product->hasOneUse()) // something else reads it
    outputs.push_back(b.define(product.getResult()));
  b.call("grouped_glu", inputs, outputs, params);
  return success();
}

/// What a combine multiplies rows by. `unit`: what the dispatch did.
static Value combineWeights(ProgramBuilder &b, const RoutingViews &routing, bool unit) {
  if (!unit)
    return routing.weights;
  return routing.inputWeights ? routing.inputWeights : unitWeights(b, routing);
}

/// Where a shard's tokens [batch, sequence] stand in the whole.
template <typename Op>
static SmallVector<NamedAttribute> placeOfTokens(ProgramBuilder &b, Op op,
                                                 ArrayRef<int64_t> shape) {
  return {b.integer("rows", op.getRows().value_or(shape[0])),
          b.integer("columns", op.getColumns().value_or(shape[1])),
          b.offset("row_offset", op.getRowOffsetAttr()),
          b.offset("column_offset", op.getColumnOffsetAttr())};
}

/// Routing; dispatch and combine where the experts are not split, which is always so in a global
/// program.
void LoweringTable::addExperts() {
  add<moe::RouteOp>(+[](moe::RouteOp op, B &b) {
    moe::RouterFields gate = op.getRouter().getFields();
    SmallVector<Value> inputs{b.view(op.getLogits())};
    if (op.getStep()) {
      inputs.push_back(b.view(op.getStep()));
      if (op.getPart())
        inputs.push_back(b.view(op.getPart()));
      SmallVector<NamedAttribute> params{
          b.real("jitter_eps", gate.jitterEps), b.real("scale", gate.scale),
          b.integer("seed", op.getSeed()), b.integer("layer", *op.getLayer())};
      params.append(placeOfTokens(b, op, op.getLogits().getType().getShape()));
      defineRouting(b, op.getResult(), gate, [&](Value ids, Value weights) {
        b.call("sampled_route", inputs, {ids, weights}, params);
      });
      return b.traceRouting(op);
    }
    if (op.getBias())
      inputs.push_back(b.view(op.getBias()));
    SmallVector<NamedAttribute> params = gateParams(b, gate);
    params.append({b.integer("groups", gate.groups), b.integer("group_keep", gate.groupKeep),
                   b.text("group_score", moe::stringifyGroupScore(gate.groupScore)),
                   b.real("jitter_eps", gate.jitterEps)});
    defineRouting(b, op.getResult(), gate, [&](Value ids, Value weights) {
      b.call("route", inputs, {ids, weights}, params);
    });
    return b.traceRouting(op);
  });
  add<moe::RouteToOp>(+[](moe::RouteToOp op, B &b) {
    moe::RouterFields gate = op.getRouter().getFields();
    defineRouting(b, op.getResult(), gate, [&](Value ids, Value weights) {
      b.call("route_to", {b.view(op.getLogits()), b.view(op.getChoices())}, {ids, weights},
             gateParams(b, gate));
    });
    return success();
  });
  add<moe::JitterOp>(+[](moe::JitterOp op, B &b) {
    SmallVector<Value> inputs{b.view(op.getX()), b.view(op.getStep())};
    if (op.getPart())
      inputs.push_back(b.view(op.getPart()));
    SmallVector<NamedAttribute> params{b.real("eps", toDouble(op.getEps())),
                                       b.integer("seed", op.getSeed()),
                                       b.integer("layer", op.getLayer())};
    params.append(placeOfTokens(b, op, op.getX().getType().getShape()));
    b.call("jitter", inputs, {b.define(op.getResult())}, params);
    return success();
  });
  add<moe::LimitOp>(+[](moe::LimitOp op, B &b) {
    RoutingViews routing = b.routing(op.getRouting());
    moe::CapacityFields capacity = op.getCapacity().getFields();
    Value &weights = routing.inputWeights ? routing.inputWeights : routing.weights;
    SmallVector<Value> inputs{routing.ids, weights};
    if (op.getStep())
      inputs.push_back(b.view(op.getStep()));
    routing.ids = b.define(cast<ViewType>(routing.ids.getType()));
    weights = b.define(cast<ViewType>(weights.getType()));
    routing.pos = routing.groups = Value();
    b.routing(op.getResult()) = routing;
    b.call("limit", inputs, {routing.ids, weights, b.define(op.getDropped())},
           {b.integer("experts", op.getRouting().getType().getExperts()),
            b.integer("capacity", op.capacityPerDomain()), b.integer("domains", op.numDomains()),
            b.text("policy", moe::stringifyDropPolicy(capacity.policy)),
            b.text("order", moe::stringifyCapacityOrder(capacity.order)),
            b.text("renorm", moe::stringifyLimitRenorm(capacity.renorm)),
            b.real("renorm_epsilon", capacity.renormEpsilon),
            b.real("renorm_clamp_min", capacity.renormClampMin), b.real("scale", capacity.scale),
            b.integer("seed", capacity.seed), b.integer("layer", capacity.layer),
            b.offset("token_offset", op.getTokenOffsetAttr())});
    return success();
  });
  add<moe::RedirectOp>(+[](moe::RedirectOp op, B &b) {
    RoutingViews routing = b.routing(op.getRouting());
    Value from = routing.ids;
    routing.ids = b.define(cast<ViewType>(from.getType()));
    routing.pos = routing.groups = Value();
    b.routing(op.getResult()) = routing;
    b.call("redirect", {from}, {routing.ids},
           {b.integer("first", op.getFirst()), b.integer("rest", op.getRest())});
    return success();
  });
  add<moe::DispatchOp>(+[](moe::DispatchOp op, B &b) {
    int64_t experts = op.getRouting().getType().getExperts();
    RoutingViews &routing = b.routing(op.getRouting());
    Type i32 = IntegerType::get(op.getContext(), 32);
    // All rows fit by their number: the need is not looked at.
    Value need = b.zeroNeed();
    routing.groups = b.define(b.viewType({1, experts}, i32));
    routing.pos = b.define(cast<plan::ViewType>(routing.ids.getType()));
    select(op, b, routing, b.view(op.getX()), need, op.getWeighted(),
           {defineRows(op, op.getResult(), routing, b), routing.groups, routing.pos,
            b.define(b.viewType({1}, i32))},
           {b.integer("experts", experts), b.offset("expert_offset", {})});
    return success();
  });
  add<moe::GroupedMatmulOp>(+[](moe::GroupedMatmulOp op, B &b) -> LogicalResult {
    if (llvm::any_of(op->getUsers(),
                     [](Operation *user) { return user->hasAttr(plan::kInProductAttr); }))
      return success(); // it is made with the glu
    Value counts = countsOf(op, op.getGroups(), b);
    if (!counts)
      return failure();
    b.call("grouped_matmul", {b.view(op.getRows()), counts, b.view(op.getW())},
           {b.define(op.getResult())}, {b.integer("contract", op.getContract())});
    return success();
  });
  add<moe::GroupedBiasOp>(+[](moe::GroupedBiasOp op, B &b) -> LogicalResult {
    Value counts = countsOf(op, op.getGroups(), b);
    if (!counts)
      return failure();
    b.call("grouped_bias", {b.view(op.getRows()), counts, b.view(op.getB())},
           {b.define(op.getResult())}, {b.offset("part", op.getPartAttr())});
    return success();
  });
  add<moe::CombineOp>(+[](moe::CombineOp op, B &b) {
    RoutingViews &routing = b.routing(op.getRouting());
    if (!routing.pos)
      return LogicalResult(
          op.emitOpError("MOE-0601: no moe.dispatch before it has sorted rows by this routing"));
    b.call("combine", {b.view(op.getRows()), routing.pos, combineWeights(b, routing, op.getUnit())},
           {b.define(op.getResult())}, {});
    return LogicalResult(success());
  });
}

void LoweringTable::addGeneration() {
  add<moe::WriteRowsOp>(+[](moe::WriteRowsOp op, B &b) {
    // The state's own memory is the result's.
    Value state = b.view(op.getCache());
    SmallVector<Value> inputs{b.view(op.getRows())};
    if (op.getAt())
      inputs.push_back(b.view(op.getAt()));
    b.call("write_rows", inputs, {state}, {});
    b.alias(op.getResult(), state);
    return success();
  });
  add<moe::SlotOp>(+[](moe::SlotOp op, B &b) {
    SmallVector<Value> inputs{b.view(op.getX())};
    if (op.getAt())
      inputs.push_back(b.view(op.getAt()));
    int64_t last = cast<RankedTensorType>(op.getX().getType()).getDimSize(1) - 1;
    b.call("slot", inputs, {b.define(op.getResult())},
           {b.integer("index", op.getIndex().value_or(op.getAt() ? 0 : last)),
            b.offset("start", op.getStartAttr())});
    return success();
  });
  add<moe::SampleOp>(+[](moe::SampleOp op, B &b) {
    b.call("sample", {b.view(op.getLogits()), b.view(op.getSampling()), b.view(op.getDraw())},
           {b.define(op.getResult())}, {b.offset("row_offset", op.getRowOffsetAttr())});
    return success();
  });
}

/// Rows of experts that are split over ranks.
void LoweringTable::addExchange() {
  add<dist::ZeroNeedOp>(+[](dist::ZeroNeedOp op, B &b) {
    b.fill(b.define(op.getNeed()), 0);
    return success();
  });
  add<dist::RequireBoundOp>(+[](dist::RequireBoundOp op, B &b) {
    b.requireBound(b.view(op.getNeed()), op.getInitial(), op.getWorst());
    return success();
  });
  add<dist::SelectOp>(+[](dist::SelectOp op, B &b) {
    const RoutingViews &routing = b.routing(op.getRouting());
    select(op, b, routing, b.view(op.getX()), b.view(op.getNeedIn()), op.getWeighted(),
           {defineRows(op, op.getRows(), routing, b), b.define(op.getGroups()),
            b.define(op.getPos()), b.define(op.getNeed())},
           {b.integer("experts", op.getRouting().getType().getExperts()),
            b.offset("expert_offset", op.getExpertOffsetAttr())});
    return success();
  });
  add<dist::PackOp>(+[](dist::PackOp op, B &b) {
    b.call("pack",
           dispatchInputs(b.routing(op.getRouting()), b.view(op.getX()), b.view(op.getNeedIn()),
                          op.getWeighted()),
           {b.define(op.getSlots()), b.define(op.getCounts()), b.define(op.getPos()),
            b.define(op.getNeed())},
           {b.integer("experts", op.getRouting().getType().getExperts()),
            b.integer("segments", op.getSegments())});
    return success();
  });
  add<dist::SampleCountsOp>(+[](dist::SampleCountsOp op, B &b) {
    b.call("sample_counts", {b.routing(op.getRouting()).ids}, {b.define(op.getCounts())}, {});
    return success();
  });
  add<dist::RegroupOp>(+[](dist::RegroupOp op, B &b) {
    b.call("regroup", {b.view(op.getSlots()), b.view(op.getCounts())},
           {b.define(op.getRows()), b.define(op.getGroups())},
           {b.integer("segments", op.getSegments())});
    return success();
  });
  add<dist::UngroupOp>(+[](dist::UngroupOp op, B &b) {
    b.call("ungroup", {b.view(op.getRows()), b.view(op.getCounts())}, {b.define(op.getSlots())},
           {b.integer("segments", op.getSegments())});
    return success();
  });
  add<dist::UnpackOp>(+[](dist::UnpackOp op, B &b) {
    b.call("combine",
           {b.view(op.getSlots()), b.view(op.getPos()),
            combineWeights(b, b.routing(op.getRouting()), op.getUnit())},
           {b.define(op.getResult())}, {});
    return success();
  });
  add<dist::MergeOp>(+[](dist::MergeOp op, B &b) {
    b.call("combine",
           {b.view(op.getRows()), b.view(op.getPos()),
            combineWeights(b, b.routing(op.getRouting()), op.getUnit())},
           {b.define(op.getResult())}, {});
    return success();
  });
}

// Collectives move contiguous blocks: those along an inner dimension get a split or join beside
// them, whose buffers are planned like any other.

/// True if blocks along `dim` lie one after another: all dimensions before it are 1.
static bool isOutermost(ViewType type, int64_t dim) {
  return llvm::all_of(type.getShape().take_front(dim), [](int64_t size) { return size == 1; });
}

/// `type` with its blocks along dimension 0 instead of `dim`.
static ViewType blockedType(ProgramBuilder &b, ViewType type, int64_t blocks, int64_t dim) {
  SmallVector<int64_t> shape(type.getShape());
  shape[0] *= blocks;
  shape[dim] /= blocks;
  return b.viewType(shape, type.getElementType());
}

/// A view of `whole` whose `blocks` along `dim` lie along dimension 0.
static Value splitBlocks(ProgramBuilder &b, Value whole, int64_t blocks, int64_t dim) {
  Value parts = b.define(blockedType(b, cast<ViewType>(whole.getType()), blocks, dim));
  b.call("split_blocks", {whole}, {parts}, {b.integer("blocks", blocks), b.integer("dim", dim)});
  return parts;
}

/// Calls `exchange` on a view that will be joined along `dim` into `whole`.
static void joinBlocks(ProgramBuilder &b, Value whole, int64_t blocks, int64_t dim,
                       llvm::function_ref<void(Value)> exchange) {
  Value parts = b.define(blockedType(b, cast<ViewType>(whole.getType()), blocks, dim));
  exchange(parts);
  b.call("join_blocks", {parts}, {whole}, {b.integer("blocks", blocks), b.integer("dim", dim)});
}

/// Calls move(in, out) for a tensor's view and a fresh one of the result's type, and for a routing
/// with those of its ids and weights. Row positions do not move: they belong to one rank.
static void forEachView(ProgramBuilder &b, Value from, Value to,
                        llvm::function_ref<void(Value, Value)> move) {
  auto type = dyn_cast<moe::RoutingType>(to.getType());
  if (!type)
    return move(b.view(from), b.define(to));
  SmallVector<int64_t> shape(type.getTokens());
  shape.push_back(type.getK());
  auto moved = [&](Value in) {
    Value out = b.define(b.viewType(shape, cast<ViewType>(in.getType()).getElementType()));
    move(in, out);
    return out;
  };
  RoutingViews source = b.routing(from), target;
  target.ids = moved(source.ids);
  if (source.inputWeights) {
    target.inputWeights = moved(source.inputWeights);
    target.weights = unitWeights(b, target);
  } else {
    target.weights = moved(source.weights);
  }
  b.routing(to) = target;
}

void LoweringTable::addCollectives() {
  add<dist::AllReduceOp>(+[](dist::AllReduceOp op, B &b) {
    b.collective(plan::CollectiveKind::all_reduce, b.view(op.getX()), b.define(op.getResult()),
                 op.getAxes(), {b.integer("op", static_cast<int64_t>(op.getKind()))});
    return success();
  });
  add<dist::AllGatherOp>(+[](dist::AllGatherOp op, B &b) {
    forEachView(b, op.getX(), op.getResult(), [&](Value in, Value out) {
      int64_t dim = op.getDim();
      // Pads are gathered with the rest and left behind.
      SmallVector<int64_t> gathered(cast<ViewType>(in.getType()).getShape());
      gathered[dim] *= b.groupSize(op.getAxes());
      Value kept = out;
      bool padded = gathered[dim] != cast<ViewType>(out.getType()).getShape()[dim];
      if (padded)
        out = b.define(b.viewType(gathered, cast<ViewType>(out.getType()).getElementType()));
      auto whole = cast<ViewType>(out.getType());
      auto gather = [&](Value to, int64_t along) {
        b.collective(plan::CollectiveKind::all_gather, in, to, op.getAxes(),
                     {b.integer("dim", along)});
      };
      if (isOutermost(whole, dim))
        gather(out, dim);
      else
        joinBlocks(b, out, whole.getShape()[dim] / cast<ViewType>(in.getType()).getShape()[dim],
                   dim, [&](Value parts) { gather(parts, 0); });
      if (padded)
        b.copy(out, kept, dim, {});
    });
    return success();
  });
  add<dist::ReduceScatterOp>(+[](dist::ReduceScatterOp op, B &b) {
    int64_t dim = op.getDim();
    Value in = b.view(op.getX()), out = b.define(op.getResult());
    auto whole = cast<ViewType>(in.getType());
    bool outermost = isOutermost(whole, dim);
    if (!outermost)
      in = splitBlocks(b, in, whole.getShape()[dim] / cast<ViewType>(out.getType()).getShape()[dim],
                       dim);
    b.collective(plan::CollectiveKind::reduce_scatter, in, out, op.getAxes(),
                 {b.integer("op", static_cast<int64_t>(op.getKind())),
                  b.integer("dim", outermost ? dim : 0)});
    return success();
  });
  add<dist::AllToAllOp>(+[](dist::AllToAllOp op, B &b) {
    // The dimension that gains the axes is cut, the one that loses them is put together.
    int64_t cut = op.getTo(), joined = op.getFrom();
    Value in = b.view(op.getX()), out = b.define(op.getResult());
    auto inType = cast<ViewType>(in.getType()), outType = cast<ViewType>(out.getType());
    int64_t blocks = outType.getShape()[joined] / inType.getShape()[joined];
    auto exchange = [&](Value from, Value to, int64_t split, int64_t concat) {
      b.collective(plan::CollectiveKind::all_to_all, from, to, op.getAxes(),
                   {b.integer("split_dim", split), b.integer("concat_dim", concat)});
    };
    if (isOutermost(inType, cut) && isOutermost(outType, joined)) {
      exchange(in, out, cut, joined);
      return success();
    }
    if (cut != 0)
      in = splitBlocks(b, in, blocks, cut);
    if (joined != 0)
      joinBlocks(b, out, blocks, joined, [&](Value parts) { exchange(in, parts, 0, 0); });
    else
      exchange(in, out, 0, 0);
    return success();
  });
  add<dist::SliceOp>(+[](dist::SliceOp op, B &b) {
    forEachView(b, op.getX(), op.getResult(),
                [&](Value in, Value out) { b.copy(in, out, op.getDim(), op.getStartAttr()); });
    return success();
  });
}

LogicalResult moira::lowerOp(Operation *op, ProgramBuilder &builder) {
  static const LoweringTable table;
  return table.lower(op, builder);
}
