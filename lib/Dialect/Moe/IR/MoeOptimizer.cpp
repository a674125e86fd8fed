//===- MoeOptimizer.cpp - operations that update weights ------------------===//
// Constraints (their numbers are those of MoeOptimizerOps.td) and sharding rules.
//===----------------------------------------------------------------------===//
#include "MoeUpdates.h"

#include <cmath>

using namespace mlir;
using namespace moira;
using namespace moira::moe;

static ArrayRef<int64_t> shapeOf(Value v) { return cast<RankedTensorType>(v.getType()).getShape(); }

bool moe::isZero(Value v) {
  auto full = v.getDefiningOp<FullOp>();
  return full && full.getValue().isZero();
}

bool moe::isOneNumber(Value v) { return !v || shapeOf(v) == ArrayRef<int64_t>{1}; }

bool moe::isFiniteAndNotNegative(const APFloat &value) {
  double number = value.convertToDouble();
  return std::isfinite(number) && number >= 0;
}

//===----------------------------------------------------------------------===//
// Verifiers
//===----------------------------------------------------------------------===//

#include "Moe/UpdateOpInterface.cpp.inc"

/// C1 of all updates, of the states that are as large as the weight.
static LogicalResult verifyShapes(Operation *op, OperandRange states, Value grad) {
  for (Value state : states)
    if (shapeOf(state) != shapeOf(grad))
      return op->emitOpError("C1: a state and what changes it must have one shape");
  for (Value result : op->getResults())
    if (shapeOf(result) != shapeOf(grad) || shapeOf(op->getOperand(0)) != shapeOf(grad))
      return op->emitOpError("C1: the weight before and after must have the gradient's shape");
  return success();
}

/// C3 of all updates.
LogicalResult moe::verifyStates(Operation *op, OperandRange updated) {
  llvm::SmallDenseSet<Attribute> states;
  for (Value value : updated) {
    auto param = value.getDefiningOp<ParamOp>();
    if (!param || !states.insert(param.getStateAttr()).second)
      return op->emitOpError("C3: what is updated must be parameters of different states");
  }
  for (Operation *later = op->getNextNode(); later; later = later->getNextNode()) {
    auto isUpdated = [&](Value value) {
      auto param = value.getDefiningOp<ParamOp>();
      return param && states.contains(param.getStateAttr());
    };
    auto param = dyn_cast<ParamOp>(later);
    if (llvm::any_of(later->getOperands(), isUpdated) ||
        (param && states.contains(param.getStateAttr()))) {
      InFlightDiagnostic diagnostic =
          op->emitOpError("C3: nothing behind it may read or change the states");
      diagnostic.attachNote(later->getLoc()) << "this does";
      return diagnostic;
    }
  }
  return success();
}

/// C4 of both forms of AdamW.
template <typename Op> static LogicalResult verifyAdamW(Op op) {
  for (const APFloat &beta : {op.getBeta1(), op.getBeta2()})
    if (!isFiniteAndNotNegative(beta) || beta.convertToDouble() >= 1)
      return op.emitOpError("C4: betas must be at least 0 and under 1");
  if (!isFiniteAndNotNegative(op.getEps()) || !isFiniteAndNotNegative(op.getWeightDecay()))
    return op.emitOpError("C4: eps and weight_decay must be finite and not negative");
  return success();
}

LogicalResult AdamWOp::verify() {
  if (!isOneNumber(getLr()) || !isOneNumber(getStep()) || !isOneNumber(getFactor()))
    return emitOpError("C2: lr, step and factor must be one number");
  if (failed(verifyAdamW(*this)) || failed(verifyShapes(*this, getUpdated(), getGrad())))
    return failure();
  return verifyStates(*this, getUpdated());
}

LogicalResult ExpertAdamWOp::verify() {
  for (Value perExpert : {getSteps(), getLoad()})
    if (shapeOf(getGrad()).empty() || shapeOf(perExpert) != shapeOf(getGrad()).take_front())
      return emitOpError("C1: steps and load must be [experts], the gradient [experts,..]");
  if (!isOneNumber(getLr()) || !isOneNumber(getFactor()))
    return emitOpError("C2: lr and factor must be one number");
  if (failed(verifyAdamW(*this)) ||
      failed(verifyShapes(*this, getUpdated().drop_back(), getGrad())))
    return failure();
  return verifyStates(*this, getUpdated());
}

LogicalResult SgdOp::verify() {
  if (!isOneNumber(getLr()) || !isOneNumber(getFactor()))
    return emitOpError("C2: lr and factor must be one number");
  if (!isFiniteAndNotNegative(getMomentum()) || !isFiniteAndNotNegative(getWeightDecay()))
    return emitOpError("C4: momentum and weight_decay must be finite and not negative");
  if (!getMomentumState() && (getNesterov() || getMomentum().convertToDouble() != 0))
    return emitOpError("C5: a momentum needs a state");
  if (failed(verifyShapes(*this, getUpdated(), getGrad())))
    return failure();
  return verifyStates(*this, getUpdated());
}

LogicalResult AssignOp::verify() {
  auto elementOf = [](Value v) { return cast<RankedTensorType>(v.getType()).getElementType(); };
  if (elementOf(getState()) != elementOf(getX()))
    return emitOpError("C2: the state and what it becomes must have one element type");
  if (failed(verifyShapes(*this, getUpdated(), getX())))
    return failure();
  return verifyStates(*this, getUpdated());
}

LogicalResult BalanceBiasOp::verify() {
  if (shapeOf(getLoad()).size() != 1)
    return emitOpError("C1: bias and load must have one dimension");
  if (!isFiniteAndNotNegative(getRate()))
    return emitOpError("C2: the rate must be finite and not negative");
  if (failed(verifyShapes(*this, getUpdated(), getLoad())))
    return failure();
  return verifyStates(*this, getUpdated());
}

LogicalResult AccumulateOp::verify() {
  if (!isOneNumber(getMicro()))
    return emitOpError("C2: micro must be one number");
  if (failed(verifyShapes(*this, getUpdated(), getX())))
    return failure();
  return verifyStates(*this, getUpdated());
}

LogicalResult SquaresOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX());
  int64_t keep = getKeep(), tail = getTail(), rank = x.size();
  if (keep < 0 || tail < 0 || keep + tail > rank)
    return emitOpError("C2: keep and tail must not be negative, nor more than x has");
  SmallVector<int64_t> kept(x.take_front(keep));
  llvm::append_range(kept, x.take_back(tail));
  if (kept.empty())
    kept.push_back(1);
  if (getExact()) {
    if (keep + tail > 0 || shapeOf(getResult()) != ArrayRef<int64_t>{kSquareDigits})
      return emitOpError("C3: an exact sum must keep no dimension and have a result of [160]");
    return success();
  }
  if (shapeOf(getResult()) != ArrayRef(kept))
    return emitOpError("C1: the result must have the shape of the kept dimensions, or [1]");
  return success();
}

LogicalResult ClipFactorOp::verify() {
  if ((!isOneNumber(getSquares()) && shapeOf(getSquares()) != ArrayRef<int64_t>{kSquareDigits}) ||
      !isOneNumber(getNorm()) || !isOneNumber(getFactor()))
    return emitOpError("C1: squares, norm and factor must be one number each, or squares 160 "
                       "digits");
  if (!isFiniteAndNotNegative(getMaxNorm()))
    return emitOpError("C2: max_norm must be finite and not negative");
  return success();
}

//===----------------------------------------------------------------------===//
// Sharding rules
//===----------------------------------------------------------------------===//

/// The weight and its states[x..] first, so that the gradient is laid out as they are; numbers are
/// whole.
static FactorRule updateRule(Operation *op, size_t updated) {
  FactorRule rule;
  SmallVector<int> x = rule.addFactors(FactorKind::passThrough, shapeOf(op->getOperand(0)));
  for (unsigned i = 0; i < op->getNumOperands(); ++i)
    rule.operands.push_back(i <= updated + op->getNumResults()
                                ? x
                                : SmallVector<int>{rule.addFactor(FactorKind::needReplication, 1)});
  rule.results.assign(op->getNumResults(), x);
  return rule;
}

FactorRule AdamWOp::getFactorRule() { return updateRule(*this, getUpdated().size()); }
FactorRule SgdOp::getFactorRule() { return updateRule(*this, getUpdated().size()); }
FactorRule AssignOp::getFactorRule() { return updateRule(*this, getUpdated().size()); }

/// w, m and v[e,x..], steps[e], grad[e,x..], lr[o], load[e], factor[o].
FactorRule ExpertAdamWOp::getFactorRule() {
  FactorRule rule;
  SmallVector<int> x = rule.addFactors(FactorKind::passThrough, shapeOf(getW()));
  int one = rule.addFactor(FactorKind::needReplication, 1);
  rule.operands = {x, x, x, {x.front()}, x, {one}, {x.front()}};
  if (getFactor())
    rule.operands.push_back({one});
  rule.results.assign(getOperation()->getNumResults(), x);
  return rule;
}

/// bias[e], load[e]: the mean is one over all experts.
FactorRule BalanceBiasOp::getFactorRule() {
  FactorRule rule;
  int experts = rule.addFactor(FactorKind::needReplication, shapeOf(getLoad())[0]);
  rule.operands = {{experts}, {experts}};
  return rule;
}

/// acc[x..], x[x..], micro[o]
FactorRule AccumulateOp::getFactorRule() {
  FactorRule rule = updateRule(*this, getUpdated().size());
  rule.linearity = Linearity::firstTwo;
  return rule;
}

/// x[a..,k..,b..] → [a..,b..] or [o], partial where k.. is cut.
FactorRule SquaresOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> shape = shapeOf(getX());
  SmallVector<int> x, kept;
  for (auto [dim, size] : llvm::enumerate(shape)) {
    bool isKept = int64_t(dim) < int64_t(getKeep()) || dim + getTail() >= shape.size();
    x.push_back(rule.addFactor(isKept ? FactorKind::passThrough : FactorKind::reduction, size));
    if (isKept)
      kept.push_back(x.back());
  }
  if (kept.empty())
    kept.push_back(rule.addFactor(FactorKind::needReplication, shapeOf(getResult())[0]));
  rule.operands = {x};
  rule.results = {kept};
  return rule;
}

FactorRule ClipFactorOp::getFactorRule() {
  FactorRule rule;
  int squares = rule.addFactor(FactorKind::needReplication, shapeOf(getSquares())[0]),
      one = rule.addFactor(FactorKind::needReplication, 1);
  rule.operands = {{squares}};
  rule.results = {{one}, {one}};
  return rule;
}
