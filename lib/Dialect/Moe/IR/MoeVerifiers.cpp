//===- MoeVerifiers.cpp - constraints of the moe operations ---------------===//
// One function an op; constraint numbers are those of the .td files. Shapes are compared without
// shardings, so that the same rules hold for global and for local programs.
//===----------------------------------------------------------------------===//
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"

#include <cmath>

using namespace mlir;
using namespace moira;
using namespace moira::moe;

#define GET_OP_CLASSES
#include "Moe/MoeOps.cpp.inc"

static RankedTensorType tensorOf(Value v) { return cast<RankedTensorType>(v.getType()); }
static ArrayRef<int64_t> shapeOf(Value v) { return tensorOf(v).getShape(); }
static Type elementOf(Value v) { return tensorOf(v).getElementType(); }

/// An element-wise result may have its operands' type or a narrower one, to which it is rounded.
static bool mayRoundTo(Value from, Value to) {
  return elementOf(from) == elementOf(to) ||
         elementOf(from).getIntOrFloatBitWidth() > elementOf(to).getIntOrFloatBitWidth();
}

static SmallVector<int64_t> concat(ArrayRef<int64_t> a, ArrayRef<int64_t> b) {
  SmallVector<int64_t> shape(a);
  llvm::append_range(shape, b);
  return shape;
}

static bool isSuffix(ArrayRef<int64_t> suffix, ArrayRef<int64_t> shape) {
  return suffix.size() <= shape.size() && shape.take_back(suffix.size()) == suffix;
}

//===----------------------------------------------------------------------===//
// State
//===----------------------------------------------------------------------===//

LogicalResult StateOp::verify() {
  auto type = dyn_cast<RankedTensorType>(getType());
  if (!type || !type.hasStaticShape() ||
      (!isa<FloatType>(type.getElementType()) && !type.getElementType().isInteger(32)))
    return emitOpError("C1: the type must be a static ranked tensor of floats or of i32");
  if (getTransient() && getSourceAttr())
    return emitOpError("C4: what holds nothing between steps has no source");
  if (dist::ShardingAttr sharding = dist::getSharding(type);
      sharding && sharding.isPartial() && !getTransient())
    return emitOpError("C4: only a transient state may be partial");
  return getSourceAttr() ? verifySource(*this, getSourceAttr(), type) : success();
}

LogicalResult moe::verifySource(Operation *op, SourceAttr source, RankedTensorType type) {
  int64_t block = 1, names = source.getNames().size(),
          leading = (source.getPerExpert() ? 1 : 0) + (names > 1 ? 1 : 0);
  for (int64_t size : source.getDiskShape().asArrayRef())
    block *= size;
  int64_t wanted = 1;
  if (type.getRank() < leading || (names > 1 && type.getDimSize(leading - 1) != names))
    return op->emitOpError("C2: the leading dimensions must index ")
           << (source.getPerExpert() ? "the expert and " : "") << names << " names";
  SmallVector<int64_t> stored(type.getShape().drop_front(leading));
  if (DenseI64ArrayAttr slice = source.getSlice()) {
    int64_t dim = slice[0];
    if (dim >= int64_t(stored.size()) || stored[dim] > slice[2] - slice[1])
      return op->emitOpError("C2: slice ") << slice << " is not within a block's dimensions";
    stored[dim] = slice[2];
  }
  for (int64_t size : stored)
    wanted *= size;
  if (block != wanted)
    return op->emitOpError("C2: a block has ")
           << wanted << " elements, the tensors in the file have " << block;
  if (DenseI64ArrayAttr permute = source.getPermute();
      permute && permute.size() != type.getRank() - leading)
    return op->emitOpError("C2: permute orders ")
           << permute.size() << " dimensions, a block has " << type.getRank() - leading;
  return success();
}

RouterAttr moe::routerOf(Value routing) {
  Operation *op = routing.getDefiningOp();
  if (auto route = dyn_cast_if_present<RouteOp>(op))
    return route.getRouter();
  auto route = dyn_cast_if_present<RouteToOp>(op);
  return route ? route.getRouter() : RouterAttr();
}

RouterAttr moe::firstRouterOf(Value routing) {
  if (RouterAttr router = routerOf(routing))
    return router;
  if (Operation *op = routing.getDefiningOp())
    for (Value operand : op->getOperands())
      if (isa<RoutingType>(operand.getType()))
        return firstRouterOf(operand);
  return {};
}

ParamOp moe::paramOf(Value weight) {
  if (auto rounded = weight.getDefiningOp<ScaleOp>();
      rounded && rounded.getFactor().isExactlyValue(1.0))
    weight = rounded.getX();
  return weight.getDefiningOp<ParamOp>();
}

Value moe::toElement(OpBuilder &b, Value x, Type element) {
  auto type = cast<RankedTensorType>(x.getType());
  if (type.getElementType() == element)
    return x;
  return ScaleOp::create(b, x.getLoc(), type.clone(element), x, llvm::APFloat(1.0));
}

LogicalResult ParamOp::verifySymbolUses(SymbolTableCollection &symbolTable) {
  auto state = symbolTable.lookupNearestSymbolFrom<StateOp>(*this, getStateAttr());
  if (!state)
    return emitOpError("C1: ") << getStateAttr() << " is not a moe.state";
  RankedTensorType type = state.getTensorType(), result = getType();
  // After localisation the state keeps its global type and sharding, the value has the local shape.
  if (dist::ShardingAttr sharding = dist::getSharding(type); sharding && !result.getEncoding()) {
    MeshInfo mesh = dist::getMesh((*this)->getParentOfType<ModuleOp>());
    type = RankedTensorType::get(dist::localShape(type.getShape(), sharding, mesh),
                                 type.getElementType());
  }
  if (result != type)
    return emitOpError("C2: the result has type ") << result << ", the state gives " << type;
  return success();
}

//===----------------------------------------------------------------------===//
// Generation
//===----------------------------------------------------------------------===//

static bool isOneNumber(Value at) { return shapeOf(at) == ArrayRef<int64_t>{1}; }

LogicalResult WriteRowsOp::verify() {
  ArrayRef<int64_t> rows = shapeOf(getRows()), cache = shapeOf(getCache());
  if (rows.size() < 2 || rows.size() != cache.size() || rows[0] != cache[0] || rows[1] > cache[1] ||
      rows.drop_front(2) != cache.drop_front(2))
    return emitOpError("C1: rows ")
           << tensorOf(getRows()) << " are none of " << tensorOf(getCache());
  if (cache != shapeOf(getResult()) || elementOf(getCache()) != elementOf(getResult()) ||
      elementOf(getRows()) != elementOf(getCache()))
    return emitOpError("C2: the result must have the cache's type, and rows its element type");
  if (getAt() && (!isOneNumber(getAt()) || !isa<BlockArgument>(getAt())))
    return emitOpError("C3: at must be one number and an argument of the program");
  auto param = getCache().getDefiningOp<ParamOp>();
  if (!param || !param->hasOneUse())
    return emitOpError("C4: the cache must be a moe.param that nothing else uses");
  auto module = (*this)->getParentOfType<ModuleOp>();
  auto state = module ? module.lookupSymbol<StateOp>(param.getState()) : StateOp();
  if (!state || state.getSource())
    return emitOpError("C4: ") << param.getStateAttr() << " is not a state without a source";
  for (Operation &op : *(*this)->getBlock())
    if (auto other = dyn_cast<ParamOp>(op);
        other && other != param && other.getState() == param.getState())
      return emitOpError("C4: ") << param.getStateAttr() << " is read besides";
  return success();
}

LogicalResult SlotOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX()), out = shapeOf(getResult());
  if (x.size() < 2 || out.size() != x.size() || out[0] != x[0] || out[1] != 1 ||
      out.drop_front(2) != x.drop_front(2) || elementOf(getX()) != elementOf(getResult()))
    return emitOpError("C1: x must be [B,S,..] and the result [B,1,..] of its element type");
  if (getAt() && !isOneNumber(getAt()))
    return emitOpError("C2: at must be one number");
  return success();
}

LogicalResult SampleOp::verify() {
  if (tensorOf(getLogits()).getRank() != 3 ||
      shapeOf(getLogits()).drop_back() != shapeOf(getResult()))
    return emitOpError("C1: logits must be [B,S,V] and the result [B,S]");
  if (shapeOf(getSampling()) != ArrayRef<int64_t>{2} || shapeOf(getDraw()) != ArrayRef<int64_t>{4})
    return emitOpError("C2: sampling must be [2] and draw [4]");
  return success();
}

//===----------------------------------------------------------------------===//
// Dense
//===----------------------------------------------------------------------===//

LogicalResult EmbeddingOp::verify() {
  if (tensorOf(getTable()).getRank() != 2 ||
      ArrayRef(concat(shapeOf(getIds()), shapeOf(getTable()).take_back())) != shapeOf(getResult()))
    return emitOpError(
        "C1: the result must have the shape of ids followed by the table's last dimension");
  if (elementOf(getResult()) != elementOf(getTable()) && !elementOf(getResult()).isF32())
    return emitOpError("C2: the result must have the table's element type or be f32");
  if (IntegerAttr pad = getPadAttr(); pad && pad.getInt() < 0)
    return emitOpError("C3: pad = ") << pad.getInt() << " must not be negative";
  return success();
}

LogicalResult FullOp::verify() {
  return getValue().isFinite() ? success() : emitOpError("C1: the value must be finite");
}

LogicalResult LookupOp::verify() {
  if (tensorOf(getTable()).getRank() != 2 ||
      ArrayRef(concat(shapeOf(getIds()), shapeOf(getTable()).take_back())) != shapeOf(getResult()))
    return emitOpError(
        "C1: the result must have the shape of ids followed by the table's last dimension");
  return success();
}

LogicalResult LinearOp::verify() {
  int64_t n = getContract();
  ArrayRef<int64_t> x = shapeOf(getX()), w = shapeOf(getW());
  if (n < 1 || n > int64_t(x.size()) || n > int64_t(w.size()))
    return emitOpError("C1: contract = ")
           << n << " must lie between 1 and the ranks of the operands";
  if (x.take_back(n) != w.take_back(n))
    return emitOpError("C2: the contracted dimensions differ: ")
           << getX().getType() << " and " << getW().getType();
  if (ArrayRef(concat(x.drop_back(n), w.drop_back(n))) != shapeOf(getResult()))
    return emitOpError("C3: the result must be x's and then w's other dimensions");
  if (elementOf(getX()) != elementOf(getW()) ||
      (elementOf(getResult()) != elementOf(getX()) && !elementOf(getResult()).isF32()))
    return emitOpError("C4: operands must have one element type, and the result that or f32");
  return success();
}

LogicalResult RmsNormOp::verify() {
  if (!isSuffix(shapeOf(getW()), shapeOf(getX())))
    return emitOpError("C1: w's shape must be a suffix of x's");
  if (shapeOf(getX()) != shapeOf(getResult()))
    return emitOpError("C2: result and x must have one shape");
  if (!(getEps().convertToDouble() >= 0))
    return emitOpError("C3: eps must not be negative");
  return success();
}

LogicalResult LayerNormOp::verify() {
  if (!isSuffix(shapeOf(getW()), shapeOf(getX())))
    return emitOpError("C1: w's shape must be a suffix of x's");
  if (shapeOf(getX()) != shapeOf(getResult()))
    return emitOpError("C2: result and x must have one shape");
  if (!(getEps().convertToDouble() >= 0))
    return emitOpError("C3: eps must not be negative");
  if (getB() && shapeOf(getB()) != shapeOf(getW()))
    return emitOpError("C4: b must have w's shape");
  return success();
}

LogicalResult SumSquaresOp::verify() {
  int64_t n = getNormDims();
  if (n < 1 || n > tensorOf(getX()).getRank())
    return emitOpError("C1: dims must lie between 1 and the rank of x");
  if (shapeOf(getX()).drop_back(n) != shapeOf(getResult()))
    return emitOpError("C2: the result must have x's leading shape");
  return success();
}

LogicalResult RmsApplyOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX()), w = shapeOf(getW());
  if (!isSuffix(w, x))
    return emitOpError("C1: w's shape must be a suffix of x's");
  if (x.drop_back(w.size()) != shapeOf(getSs()))
    return emitOpError("C2: ss must have x's leading shape");
  if (x != shapeOf(getResult()))
    return emitOpError("C3: result and x must have one shape");
  if (int64_t(getCount()) < 1)
    return emitOpError("C4: count must be at least 1");
  return success();
}

LogicalResult AddOp::verify() {
  if (!isSuffix(shapeOf(getB()), shapeOf(getA())))
    return emitOpError("C1: b's shape must be a suffix of a's: ")
           << getA().getType() << " and " << getB().getType();
  if (shapeOf(getA()) != shapeOf(getResult()))
    return emitOpError("C2: the result must have a's shape");
  if (elementOf(getA()) != elementOf(getB()) || !mayRoundTo(getA(), getResult()))
    return emitOpError(
        "C3: operands must have one element type, the result that or a narrower one");
  return success();
}

LogicalResult ClampOp::verify() {
  if (!(getLo().convertToDouble() <= getHi().convertToDouble()))
    return emitOpError("C1: lo must not exceed hi");
  if (shapeOf(getX()) != shapeOf(getResult()) || !mayRoundTo(getX(), getResult()))
    return emitOpError(
        "C2: the result must have x's shape, and its element type or a narrower one");
  return success();
}

LogicalResult ScaleOp::verify() {
  if (!std::isfinite(getFactor().convertToDouble()))
    return emitOpError("C1: the factor must be finite");
  if (shapeOf(getX()) != shapeOf(getResult()))
    return emitOpError("C2: result and x must have one shape");
  return success();
}

LogicalResult ActOp::verify() {
  if (shapeOf(getX()) != shapeOf(getResult()))
    return emitOpError("C1: result and x must have one shape");
  return success();
}

LogicalResult GluOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX());
  if (x.size() < 2 || x[x.size() - 2] != 2)
    return emitOpError("C1: the last dimension but one of x must be 2");
  if (ArrayRef(concat(x.drop_back(2), x.take_back())) != shapeOf(getResult()))
    return emitOpError("C2: the result must be x without that dimension");
  if ((getLimit() && !(getLimit()->convertToDouble() > 0)) ||
      (getAlpha() && !getAlpha()->isFinite()) || (getUpShift() && !getUpShift()->isFinite()))
    return emitOpError("C3: the limit must be positive, alpha and up_shift finite");
  if (getAlpha() && getActivation() != Activation::silu)
    return emitOpError("C4: alpha is for silu only");
  return success();
}

LogicalResult SigmoidGateOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX()), g = shapeOf(getG());
  if (x.empty() || ArrayRef(concat(x.drop_back(), {1})) != g)
    return emitOpError("C1: g must have x's leading shape and a last dimension of 1");
  if (x != shapeOf(getResult()))
    return emitOpError("C2: result and x must have one shape");
  return success();
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

LogicalResult PositionsOp::verify() {
  return tensorOf(getResult()).getRank() == 1
             ? success()
             : emitOpError("C1: the result must have one dimension");
}

LogicalResult WholeOp::verify() {
  SmallVector<int64_t> dims(getDims());
  llvm::sort(dims);
  if (dims.empty() || dims.front() < 0 || dims.back() >= tensorOf(getX()).getRank() ||
      std::adjacent_find(dims.begin(), dims.end()) != dims.end())
    return emitOpError("C1: dims must be dimensions of x, each once");
  if (shapeOf(getX()) != shapeOf(getResult()) || elementOf(getX()) != elementOf(getResult()))
    return emitOpError("C2: result and x must have one type");
  return success();
}

LogicalResult RopeTableOp::verify() {
  int64_t r = getFrequencies().size();
  if (r < 1 || tensorOf(getPos()).getRank() != 1 || shapeOf(getCos()) != shapeOf(getSin()) ||
      shapeOf(getCos()) != ArrayRef(concat(shapeOf(getPos()), {r})))
    return emitOpError("C1: the results must be [S, ") << r << "], a column for each frequency";
  if (!llvm::all_of(getFrequencies().getAsRange<FloatAttr>(),
                    [](FloatAttr f) { return f.getValue().isFinite(); }) ||
      !getFactor().isFinite() || !(getFactor().convertToDouble() > 0))
    return emitOpError("C2: frequencies must be finite and factor a positive number");
  return success();
}

LogicalResult TokenPositionsOp::verify() {
  ArrayRef<int64_t> ids = shapeOf(getIds()), out = shapeOf(getResult());
  if (ids.size() != 2 || out.size() != 2 || ids[0] != out[0] ||
      (getStart() ? out[1] > ids[1] : out[1] != ids[1]))
    return emitOpError("C1: ids must be [B, S] and the result have their shape");
  if (getCounts() && shapeOf(getCounts()) != out)
    return emitOpError("C2: counts must have the result's shape");
  if (static_cast<int64_t>(getPad()) < 0)
    return emitOpError("C3: pad must not be negative");
  return success();
}

LogicalResult SinusoidOp::verify() {
  ArrayRef<int64_t> out = shapeOf(getResult());
  if (out.empty() || out.drop_back() != shapeOf(getPos()))
    return emitOpError("C1: the result must be the shape of pos followed by D");
  if (out.back() < 4)
    return emitOpError("C2: D must be at least 4");
  return success();
}

LogicalResult RelativeBiasOp::verify() {
  ArrayRef<int64_t> table = shapeOf(getTable()), q = shapeOf(getQpos()), k = shapeOf(getKpos());
  if (table.size() != 2 || q.size() != 1 || k.size() != 1 ||
      shapeOf(getResult()) != ArrayRef<int64_t>{table[1], q[0], k[0]})
    return emitOpError(
        "C1: shapes must be table[N,H], qpos[Sq], kpos[Sk] and the result [H,Sq,Sk]");
  if (table[0] < 2 || table[0] % (getBidirectional() ? 4 : 2))
    return emitOpError("C2: ") << table[0] << " buckets do not fall into "
                               << (getBidirectional() ? "two halves of exact and growing ones"
                                                      : "exact and growing ones");
  if (int64_t exact = table[0] / (getBidirectional() ? 4 : 2);
      static_cast<int64_t>(getMaxDistance()) <= exact)
    return emitOpError("C3: max_distance must exceed the ") << exact << " exact buckets";
  return success();
}

LogicalResult RopeOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX()), cos = shapeOf(getCos());
  if ((x.size() != 3 && x.size() != 4) || x != shapeOf(getResult()))
    return emitOpError("C1: x must have three or four dimensions and the result its shape");
  if (cos.size() != 2 || cos != shapeOf(getSin()) || cos[0] != x[1] || cos[1] * 2 > x.back())
    return emitOpError("C2: cos and sin must be [S, r] with 2r at most the head's size");
  return success();
}

LogicalResult HeadLinearOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX()), w = shapeOf(getW());
  if (x.size() < 2)
    return emitOpError("C1: x must be [t.., H, K]");
  int64_t n = w.size() == 3 ? w[getTransposed() ? 2 : 1] : 0;
  if (w.size() != 3 || w[0] != x[x.size() - 2] || w[getTransposed() ? 1 : 2] != x.back())
    return emitOpError("C2: w must be [H, ")
           << (getTransposed() ? "K, N" : "N, K") << "] where x is [t.., H, K]";
  if (ArrayRef(concat(x.drop_back(), {n})) != shapeOf(getResult()))
    return emitOpError("C3: the result must be [t.., H, N]");
  if (elementOf(getX()) != elementOf(getW()) || elementOf(getX()) != elementOf(getResult()))
    return emitOpError("C4: operands and result must have one element type");
  return success();
}

LogicalResult AttentionOp::verify() {
  ArrayRef<int64_t> q = shapeOf(getQ()), k = shapeOf(getK()), v = shapeOf(getV());
  if (q.size() != 4 || (k.size() != 3 && k.size() != 4) || v.size() != k.size() ||
      k.drop_back() != v.drop_back() || q[0] != k[0] || q[3] != k.back() ||
      ArrayRef(concat(q.take_front(3), v.take_back())) != shapeOf(getResult()) ||
      shapeOf(getQpos()) != ArrayRef<int64_t>{q[1]} ||
      shapeOf(getKpos()) != ArrayRef<int64_t>{k[1]} ||
      shapeOf(getKmask()) != ArrayRef<int64_t>{k[0], k[1]})
    return emitOpError("C1: shapes must be q[B,Sq,H,d], k[B,Sk,Hk,d], v[B,Sk,Hk,e] (both may lack "
                       "Hk), qpos[Sq], kpos[Sk], kmask[B,Sk] and the result [B,Sq,H,e]");
  int64_t heads = getQHeads(), kvHeads = getKvHeads();
  if (kvHeads < 1 || heads < 1 || heads % kvHeads)
    return emitOpError("C2: ") << kvHeads << " key/value heads must divide " << heads
                               << " query heads";
  if (int64_t(getWindow()) < 0 || !std::isfinite(getScale().convertToDouble()))
    return emitOpError("C3: window must not be negative and scale must be finite");
  if ((!getHeadOffset() && q[2] != heads) ||
      (!getKvOffset() && (k.size() == 4 ? k[2] : 1) != kvHeads))
    return emitOpError("C4: without offsets the operands must hold all heads");
  if (bool(getQ2()) != bool(getK2()))
    return emitOpError("C5: q2 and k2 must both be given or neither");
  if (getQ2()) {
    ArrayRef<int64_t> q2 = shapeOf(getQ2());
    if (q2.size() != 4 || q2.take_front(3) != q.take_front(3) ||
        shapeOf(getK2()) != ArrayRef<int64_t>{k[0], k[1], q2[3]})
      return emitOpError("C5: q2 must be [B,Sq,H,r] and k2 [B,Sk,r]");
  }
  if (getBias() && shapeOf(getBias()) != ArrayRef<int64_t>{q[2], q[1], k[1]})
    return emitOpError("C5: bias must be [H,Sq,Sk]");
  if (getSinks() && shapeOf(getSinks()) != ArrayRef<int64_t>{q[2]})
    return emitOpError("C5: sinks must be [H]");
  if (getBidirectional() && getWindow() != 0)
    return emitOpError("C6: bidirectional attention has no window");
  return success();
}

void AttentionOp::build(OpBuilder &b, OperationState &state, Type result, Value q, Value k, Value v,
                        Value qpos, Value kpos, Value kmask, double scale, int64_t window,
                        int64_t qHeads, int64_t kvHeads) {
  build(b, state, result, q, k, v, qpos, kpos, kmask, /*q2=*/Value(), /*k2=*/Value(),
        /*bias=*/Value(), /*sinks=*/Value(), APFloat(scale), window, qHeads, kvHeads,
        /*bidirectional=*/false, /*head_offset=*/Attribute(), /*kv_offset=*/Attribute());
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

LogicalResult RouteOp::verify() {
  RoutingType routing = getType();
  if (ArrayRef(concat(routing.getTokens(), {routing.getExperts()})) != shapeOf(getLogits()))
    return emitOpError("C1: logits must be the routing's tokens followed by its experts");
  if (getRouter().getK() != routing.getK())
    return emitOpError("C2: the router chooses ")
           << getRouter().getK() << " experts, the routing holds " << routing.getK();
  int64_t experts = routing.getExperts();
  if (getBias() && shapeOf(getBias()) != ArrayRef<int64_t>{experts})
    return emitOpError("C3: bias must have one number for each of the ") << experts << " experts";
  RouterAttr router = getRouter();
  int64_t groups = router.getGroups(), size = experts / groups;
  if (size * groups != experts)
    return emitOpError("C4: ") << groups << " groups do not divide " << experts << " experts";
  if (size * router.getGroupKeep() < router.getK())
    return emitOpError("C4: ") << router.getGroupKeep() << " groups of " << size
                               << " experts hold fewer than k = " << router.getK();
  if (groups > 1 && size < 2 && router.getGroupScore() == GroupScore::top2_sum)
    return emitOpError("C4: groups of one expert have no top-2 sum");
  if (getBias() && router.getScore() == Score::sparsemixer)
    return emitOpError("C5: a sparsemixer has no bias");
  if (bool(getStep()) != getLayer().has_value() || (getPart() && !getStep()))
    return emitOpError("C6: step and layer must be given together, and part with them");
  for (Value number : {getStep(), getPart()})
    if (number && shapeOf(number) != ArrayRef<int64_t>{1})
      return emitOpError("C6: step and part must be tensor<1xi32>");
  if (getStep() && (router.getScore() != Score::sparsemixer || routing.getTokens().size() != 2))
    return emitOpError("C6: only a sparsemixer of tokens [batch, sequence] draws");
  if (int64_t(getLayer().value_or(0)) < 0 || int64_t(getSeed()) < 0)
    return emitOpError("C6: layer and seed must not be negative");
  return success();
}

LogicalResult RouteToOp::verify() {
  RoutingType routing = getType();
  if (ArrayRef(concat(routing.getTokens(), {routing.getExperts()})) != shapeOf(getLogits()))
    return emitOpError("C1: logits must be the routing's tokens followed by its experts");
  RouterAttr router = getRouter();
  if (router.getK() != routing.getK())
    return emitOpError("C2: the router chooses ")
           << router.getK() << " experts, the routing holds " << routing.getK();
  if (ArrayRef(concat(routing.getTokens(), {routing.getK()})) != shapeOf(getChoices()))
    return emitOpError("C3: choices must be the routing's tokens followed by k");
  if (router.getGroups() != 1 || router.getScore() == Score::sparsemixer)
    return emitOpError("C4: groups and sparsemixer belong to gates that choose");
  return success();
}

LogicalResult JitterOp::verify() {
  if (shapeOf(getX()).size() != 3 || shapeOf(getX()) != shapeOf(getResult()) ||
      getX().getType().getElementType() != getResult().getType().getElementType())
    return emitOpError("C1: x must be [batch, sequence, hidden], and the result alike");
  if (double eps = getEps().convertToDouble(); !(eps > 0 && eps <= 1))
    return emitOpError("C2: eps must be above 0 and at most 1");
  if (int64_t(getLayer()) < 0 || int64_t(getSeed()) < 0)
    return emitOpError("C3: layer and seed must not be negative");
  for (Value number : {getStep(), getPart()})
    if (number && shapeOf(number) != ArrayRef<int64_t>{1})
      return emitOpError("C4: step and part must be tensor<1xi32>");
  return success();
}

LogicalResult LimitOp::verify() {
  RoutingType from = getRouting().getType(), to = getResult().getType();
  if (from.getTokens() != to.getTokens() || from.getExperts() != to.getExperts() ||
      from.getK() != to.getK())
    return emitOpError("C1: operand and result must have the same tokens, experts and k");
  bool random = getCapacity().getPolicy() == DropPolicy::random;
  if (random != bool(getStep()) || (random && shapeOf(getStep()) != ArrayRef<int64_t>{1}))
    return emitOpError("C2: step must be tensor<1xi32>, given if and only if the policy is random");
  if (shapeOf(getDropped()) != ArrayRef<int64_t>{2})
    return emitOpError("C3: dropped must have two numbers");
  if (getCapacity().getDomain() == CapacityDomain::sequence && from.getTokens().size() < 2)
    return emitOpError("C4: one dimension of tokens is no set of sequences");
  return success();
}

int64_t LimitOp::numDomains() {
  return getCapacity().getDomain() == CapacityDomain::batch ? 1
                                                            : getRouting().getType().getTokens()[0];
}

int64_t LimitOp::capacityPerDomain() {
  RoutingType routing = getRouting().getType();
  return getCapacity().capacityFor(routing.numTokens() / numDomains(), routing.getExperts(),
                                   routing.getK());
}

LogicalResult RedirectOp::verify() {
  int64_t experts = getRouting().getType().getExperts();
  for (int64_t expert : {int64_t(getFirst()), int64_t(getRest())})
    if (expert < 0 || expert >= experts)
      return emitOpError("C1: there is no expert ") << expert << " among the routing's " << experts;
  return success();
}

/// rows are [T·k, D]. A shard's rows never meet this op: the partition phase replaces it.
static bool areRowsOf(Value rows, RoutingType routing) {
  return tensorOf(rows).getRank() == 2 && shapeOf(rows)[0] == routing.numTokens() * routing.getK();
}

LogicalResult DispatchOp::verify() {
  RoutingType routing = getRouting().getType();
  if (tensorOf(getX()).getRank() < 1 ||
      ArrayRef(concat(routing.getTokens(), shapeOf(getX()).take_back())) != shapeOf(getX()))
    return emitOpError("C1: x must be the routing's tokens followed by D");
  if (!areRowsOf(getResult(), routing) || shapeOf(getResult())[1] != shapeOf(getX()).back())
    return emitOpError("C2: the result must be [T·k, D]");
  return success();
}

/// The experts that a grouped op's `groups` count; −1 if they have no such form.
static int64_t expertsOf(Value groups) {
  if (auto routing = dyn_cast<RoutingType>(groups.getType()))
    return routing.getExperts();
  return shapeOf(groups).size() == 2 ? shapeOf(groups)[1] : -1;
}

LogicalResult GroupedMatmulOp::verify() {
  int64_t n = getContract();
  ArrayRef<int64_t> rows = shapeOf(getRows()), w = shapeOf(getW());
  if (n < 1 || n >= int64_t(w.size()))
    return emitOpError("C1: contract must lie between 1 and the rank of w less one");
  if (rows.empty() || rows.drop_front() != w.take_back(n))
    return emitOpError("C2: rows must be [R, K..] with w's contracted dimensions");
  if (ArrayRef(concat(rows.take_front(), w.drop_front().drop_back(n))) != shapeOf(getResult()))
    return emitOpError("C3: the result must be [R, N..]");
  if (int64_t experts = expertsOf(getGroups()); experts != w[0])
    return emitOpError("C4: the groups count ") << experts << " experts, w has " << w[0];
  return success();
}

LogicalResult GroupedBiasOp::verify() {
  ArrayRef<int64_t> rows = shapeOf(getRows()), b = shapeOf(getB());
  if (rows.empty() || b.empty() || rows.drop_front() != b.drop_front())
    return emitOpError("C1: rows must be [R, N..] where b is [E, N..]");
  if (rows != shapeOf(getResult()) || elementOf(getRows()) != elementOf(getResult()))
    return emitOpError("C2: result and rows must have one type");
  if (int64_t experts = expertsOf(getGroups()); experts != b[0])
    return emitOpError("C3: the groups count ") << experts << " experts, b has " << b[0];
  if (elementOf(getB()) != elementOf(getRows()))
    return emitOpError("C4: b must have the rows' element type");
  return success();
}

LogicalResult CombineOp::verify() {
  RoutingType routing = getRouting().getType();
  if (!areRowsOf(getRows(), routing))
    return emitOpError("C1: rows must be [T·k, D]");
  if (ArrayRef(concat(routing.getTokens(), shapeOf(getRows()).take_back())) != shapeOf(getResult()))
    return emitOpError("C2: the result must be the routing's tokens followed by D");
  return success();
}
