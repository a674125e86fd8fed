//===- DistVerifiers.cpp - constraints of the dist operations -------------===//
// One function an op; constraint numbers are those of DistOps.td. After localisation types carry no
// sharding: rules about shardings then do not apply.
//===----------------------------------------------------------------------===//
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "llvm/ADT/DenseSet.h"

using namespace mlir;
using namespace moira;
using namespace moira::dist;

#define GET_OP_CLASSES
#include "Dist/DistOps.cpp.inc"

LogicalResult MeshOp::verify() {
  if (getAxes().size() != getSizes().size())
    return emitOpError("C1: ") << getAxes().size() << " names for " << getSizes().size()
                               << " sizes";
  llvm::DenseSet<StringAttr> seen;
  int64_t ranks = 1;
  for (auto [name, size] : llvm::zip(getAxes().getAsRange<StringAttr>(), getSizes())) {
    if (name.empty() || !seen.insert(name).second)
      return emitOpError("C2: axis name ") << name << " is empty or stands twice";
    if (size < 2)
      return emitOpError("C3: axis ")
             << name << " has size " << size << "; an axis of size 1 is left out";
    if (size > (1 << 20) || (ranks *= size) > (1 << 20))
      return emitOpError("C4: more than 2^20 ranks");
  }
  if (auto module = dyn_cast_or_null<ModuleOp>((*this)->getParentOp()))
    if (*module.getOps<MeshOp>().begin() != *this)
      return emitOpError("C5: a module has one mesh");
  return success();
}

//===----------------------------------------------------------------------===//
// Reshard and collectives
//===----------------------------------------------------------------------===//

static ArrayRef<int64_t> shapeOf(Type type) {
  if (auto routing = dyn_cast<moe::RoutingType>(type))
    return routing.getTokens();
  return cast<RankedTensorType>(type).getShape();
}

/// Tensors of one element type, or routings to the same experts.
static bool haveSameElements(Type a, Type b) {
  auto x = dyn_cast<moe::RoutingType>(a), y = dyn_cast<moe::RoutingType>(b);
  if (x || y)
    return x && y && x.getExperts() == y.getExperts() && x.getK() == y.getK();
  return cast<RankedTensorType>(a).getElementType() == cast<RankedTensorType>(b).getElementType();
}

/// Shapes and element types of both sides agree. Returns the shardings, both null after
/// localisation.
static FailureOr<std::pair<ShardingAttr, ShardingAttr>> shardingsOf(Operation *op, Value from,
                                                                    Value to) {
  Type in = from.getType(), out = to.getType();
  if (!haveSameElements(in, out))
    return op->emitOpError("operand and result have different element types"), failure();
  ShardingAttr a = getSharding(in), b = getSharding(out);
  if (!a != !b)
    return op->emitOpError("either both types carry a sharding or neither does"), failure();
  if (a && shapeOf(in) != shapeOf(out))
    return op->emitOpError("operand and result have different global shapes"), failure();
  return std::make_pair(a, b);
}

static SmallVector<StringAttr> axesOf(ArrayAttr axes) {
  return llvm::to_vector(axes.getAsRange<StringAttr>());
}

/// True if `longer` is `shorter` followed by `axes`.
static bool endsWith(ArrayRef<StringAttr> longer, ArrayRef<StringAttr> shorter,
                     ArrayRef<StringAttr> axes) {
  return longer.size() == shorter.size() + axes.size() &&
         longer.take_front(shorter.size()) == shorter && longer.drop_front(shorter.size()) == axes;
}

/// All dimensions but those in `except` are cut alike.
static bool sameDims(ShardingAttr a, ShardingAttr b, ArrayRef<int64_t> except = {}) {
  for (auto [i, dims] : llvm::enumerate(llvm::zip(a.getDims(), b.getDims())))
    if (!llvm::is_contained(except, int64_t(i)) && std::get<0>(dims) != std::get<1>(dims))
      return false;
  return true;
}

static bool samePartial(ShardingAttr a, ShardingAttr b) {
  return a.getPartialAxes() == b.getPartialAxes() &&
         (!a.isPartial() || a.getPartialKind() == b.getPartialKind());
}

LogicalResult ReshardOp::verify() {
  auto pair = shardingsOf(*this, getX(), getResult());
  if (failed(pair))
    return failure();
  auto [a, b] = *pair;
  if (!a)
    return emitOpError("C2: both types must carry a sharding");
  if (a == b)
    return emitOpError("C3: the shardings are equal");
  for (DimShardingAttr dim : llvm::concat<const DimShardingAttr>(a.getDims(), b.getDims()))
    if (dim.isRagged())
      return emitOpError("C4: ragged rows are never resharded");
  for (StringAttr axis : b.getPartialAxes())
    if (!llvm::is_contained(a.getPartialAxes(), axis) || a.getPartialKind() != b.getPartialKind())
      return emitOpError("C5: the result is partial over ") << axis << ", the operand is not";
  return success();
}

OpFoldResult ReshardOp::fold(FoldAdaptor) {
  return getX().getType() == getType() ? getX() : Value();
}

/// The axes over which `a` stays partial when `axes` are reduced; an error (C1) if it is not
/// partial with `kind` over all of them.
static FailureOr<SmallVector<StringAttr>>
partialBesides(Operation *op, ShardingAttr a, ArrayRef<StringAttr> axes, ReduceKind kind) {
  for (StringAttr axis : axes)
    if (!llvm::is_contained(a.getPartialAxes(), axis) || a.getPartialKind() != kind)
      return op->emitOpError("C1: the operand is not partial(")
             << stringifyReduceKind(kind) << ") over " << axis;
  SmallVector<StringAttr> rest;
  for (StringAttr axis : a.getPartialAxes())
    if (!llvm::is_contained(axes, axis))
      rest.push_back(axis);
  return rest;
}

LogicalResult AllReduceOp::verify() {
  auto pair = shardingsOf(*this, getX(), getResult());
  if (failed(pair))
    return failure();
  auto [a, b] = *pair;
  if (!a)
    return success();
  SmallVector<StringAttr> axes = axesOf(getAxes());
  FailureOr<SmallVector<StringAttr>> rest = partialBesides(*this, a, axes, getKind());
  if (failed(rest))
    return failure();
  if (b != a.withPartial(*rest, a.getPartialKind())) {
    if (!sameDims(a, b))
      return emitOpError("C3: operand and result are cut differently");
    return emitOpError("C2: the result must be partial over the other axes only");
  }
  return success();
}

LogicalResult AllGatherOp::verify() {
  auto pair = shardingsOf(*this, getX(), getResult());
  if (failed(pair))
    return failure();
  auto [a, b] = *pair;
  if (!a)
    return success();
  int64_t dim = getDim();
  if (dim < 0 || dim >= int64_t(a.getDims().size()))
    return emitOpError("C1: no dimension ") << dim;
  if (a.getDims()[dim].isRagged() ||
      !endsWith(a.getDims()[dim].getAxes(), b.getDims()[dim].getAxes(), axesOf(getAxes())))
    return emitOpError("C1: dimension ")
           << dim << " of the operand must end in the axes, and the result's must lack them";
  if (a.getDims()[dim].getPad() &&
      (!b.getDims()[dim].getAxes().empty() || b.getDims()[dim].getPad()))
    return emitOpError("C3: dimension ") << dim << " is padded and not gathered whole";
  if (!sameDims(a, b, dim) || !samePartial(a, b))
    return emitOpError("C2: only dimension ") << dim << " may change";
  return success();
}

LogicalResult ReduceScatterOp::verify() {
  auto pair = shardingsOf(*this, getX(), getResult());
  if (failed(pair))
    return failure();
  auto [a, b] = *pair;
  if (!a)
    return success();
  SmallVector<StringAttr> axes = axesOf(getAxes());
  FailureOr<SmallVector<StringAttr>> rest = partialBesides(*this, a, axes, getKind());
  if (failed(rest))
    return failure();
  int64_t dim = getDim();
  if (dim < 0 || dim >= int64_t(a.getDims().size()) ||
      !endsWith(b.getDims()[dim].getAxes(), a.getDims()[dim].getAxes(), axes))
    return emitOpError("C2: dimension ") << dim << " of the result must end in the axes";
  if (!sameDims(a, b, dim) || ArrayRef(*rest) != b.getPartialAxes())
    return emitOpError("C3: only dimension ") << dim << " may change";
  return success();
}

LogicalResult AllToAllOp::verify() {
  auto pair = shardingsOf(*this, getX(), getResult());
  if (failed(pair))
    return failure();
  if (getFrom() == getTo())
    return emitOpError("C3: from and to are the same dimension");
  auto [a, b] = *pair;
  if (!a)
    return success();
  int64_t from = getFrom(), to = getTo(), rank = a.getDims().size();
  if (from < 0 || from >= rank || to < 0 || to >= rank)
    return emitOpError("C1: no such dimension");
  SmallVector<StringAttr> axes = axesOf(getAxes());
  if (!endsWith(a.getDims()[from].getAxes(), b.getDims()[from].getAxes(), axes) ||
      !endsWith(b.getDims()[to].getAxes(), a.getDims()[to].getAxes(), axes))
    return emitOpError("C1: the axes must end dimension ")
           << from << " of the operand and dimension " << to << " of the result";
  if (!sameDims(a, b, {from, to}) || !samePartial(a, b))
    return emitOpError("C2: only dimensions ") << from << " and " << to << " may change";
  return success();
}

LogicalResult SliceOp::verify() {
  auto pair = shardingsOf(*this, getX(), getResult());
  if (failed(pair))
    return failure();
  auto [a, b] = *pair;
  if (!a)
    return success();
  int64_t dim = getDim();
  if (dim < 0 || dim >= int64_t(a.getDims().size()) ||
      !endsWith(b.getDims()[dim].getAxes(), a.getDims()[dim].getAxes(), axesOf(getAxes())))
    return emitOpError("C1: dimension ")
           << dim << " of the result must end in the axes, and the operand's must lack them";
  if (!sameDims(a, b, dim) || !samePartial(a, b))
    return emitOpError("C2: only dimension ") << dim << " may change";
  return success();
}

//===----------------------------------------------------------------------===//
// Rows of experts
//===----------------------------------------------------------------------===//

static RankedTensorType tensorOf(Value v) { return cast<RankedTensorType>(v.getType()); }

static LogicalResult check(Operation *op, bool condition, const char *what) {
  return condition ? success() : op->emitOpError(what);
}

/// pos is [t.., k] of the routing.
static bool isPosOf(Value pos, moe::RoutingType routing) {
  SmallVector<int64_t> shape(routing.getTokens());
  shape.push_back(routing.getK());
  return tensorOf(pos).getShape() == ArrayRef(shape);
}

/// x is [t.., D] of the routing.
static bool isTokensOf(Value x, moe::RoutingType routing, int64_t hidden) {
  SmallVector<int64_t> shape(routing.getTokens());
  shape.push_back(hidden);
  return tensorOf(x).getShape() == ArrayRef(shape);
}

static bool isOne(Value need) { return tensorOf(need).getShape() == ArrayRef<int64_t>{1}; }

/// slots [G,P,B,D] and counts [G,P,C] agree.
static bool areSlots(Value slots, Value counts) {
  RankedTensorType s = tensorOf(slots), c = tensorOf(counts);
  return s.getRank() == 4 && c.getRank() == 3 &&
         s.getShape().take_front(2) == c.getShape().take_front(2);
}

LogicalResult RequireBoundOp::verify() {
  ShardingAttr sharding = getSharding(getNeed().getType());
  if (!isOne(getNeed()) || (sharding && sharding.isPartial()))
    return emitOpError("C1: need is a complete tensor<1xi32>");
  return check(*this, getInitial() >= 1 && getInitial() <= getWorst(),
               "C2: initial must lie between 1 and worst");
}

LogicalResult PackOp::verify() {
  moe::RoutingType routing = getRouting().getType();
  RankedTensorType slots = tensorOf(getSlots());
  if (!areSlots(getSlots(), getCounts()) || !isTokensOf(getX(), routing, slots.getShape().back()) ||
      !isPosOf(getPos(), routing) || !isOne(getNeedIn()) || !isOne(getNeed()))
    return emitOpError(
        "C1: shapes must be x[t..,D], slots[G,P,B,D], counts[G,P,C], pos[t..,k], need[1]");
  int64_t ranks = slots.getDimSize(1), segments = getSegments();
  if (segments < 1 || ranks < 1 || routing.getExperts() % ranks ||
      tensorOf(getCounts()).getDimSize(2) != routing.getExperts() / ranks * segments)
    return emitOpError("C2: P = ") << ranks << " must divide " << routing.getExperts()
                                   << " experts, and counts hold (experts/P)·segments";
  return success();
}

LogicalResult SampleCountsOp::verify() {
  moe::RoutingType routing = getRouting().getType();
  return check(*this,
               tensorOf(getCounts()).getShape() ==
                   ArrayRef<int64_t>{routing.getTokens().front(), routing.getExperts()},
               "C1: counts must be [B,E] of the routing");
}

LogicalResult RegroupOp::verify() {
  return check(*this,
               areSlots(getSlots(), getCounts()) && tensorOf(getRows()).getRank() == 2 &&
                   tensorOf(getGroups()).getRank() == 2 &&
                   tensorOf(getRows()).getDimSize(1) == tensorOf(getSlots()).getDimSize(3) &&
                   int64_t(getSegments()) >= 1,
               "C1: shapes must be slots[G,P,B,D], counts[G,P,C] → rows[R,D], groups[G/P,E]");
}

LogicalResult UngroupOp::verify() {
  return check(*this,
               areSlots(getSlots(), getCounts()) && tensorOf(getRows()).getRank() == 2 &&
                   tensorOf(getRows()).getDimSize(1) == tensorOf(getSlots()).getDimSize(3) &&
                   int64_t(getSegments()) >= 1,
               "C1: shapes must be rows[R,D], counts[G,P,C] → slots[G,P,B,D]");
}

LogicalResult UnpackOp::verify() {
  return check(
      *this,
      tensorOf(getSlots()).getRank() == 4 && isPosOf(getPos(), getRouting().getType()) &&
          isTokensOf(getResult(), getRouting().getType(), tensorOf(getSlots()).getDimSize(3)),
      "C1: shapes must be slots[G,P,B,D], pos[t..,k] → [t..,D]");
}

LogicalResult ChoiceDotsOp::verify() {
  ArrayRef<int64_t> x = tensorOf(getX()).getShape(), pos = tensorOf(getPos()).getShape();
  int64_t rank = tensorOf(getRows()).getRank();
  return check(*this,
               (rank == 2 || rank == 4) && !x.empty() && !pos.empty() &&
                   tensorOf(getRows()).getShape().back() == x.back() &&
                   x.drop_back() == pos.drop_back() && tensorOf(getResult()).getShape() == pos,
               "C1: shapes must be rows[R,D] or slots[G,P,B,D], x[t..,D], pos[t..,k] → [t..,k]");
}

LogicalResult SelectOp::verify() {
  moe::RoutingType routing = getRouting().getType();
  return check(*this,
               tensorOf(getRows()).getRank() == 2 &&
                   isTokensOf(getX(), routing, tensorOf(getRows()).getDimSize(1)) &&
                   isPosOf(getPos(), routing) && tensorOf(getGroups()).getRank() == 2 &&
                   isOne(getNeedIn()) && isOne(getNeed()),
               "C1: shapes must be x[t..,D] → rows[R,D], groups[G,E], pos[t..,k], need[1]");
}

LogicalResult MergeOp::verify() {
  return check(
      *this,
      tensorOf(getRows()).getRank() == 2 && isPosOf(getPos(), getRouting().getType()) &&
          isTokensOf(getResult(), getRouting().getType(), tensorOf(getRows()).getDimSize(1)),
      "C1: shapes must be rows[R,D], pos[t..,k] → [t..,D]");
}
