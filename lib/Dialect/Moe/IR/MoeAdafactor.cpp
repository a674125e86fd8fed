//===- MoeAdafactor.cpp - operations of Adafactor's steps -----------------===//
// Constraints (their numbers are those of MoeOptimizerOps.td) and sharding rules.
//===----------------------------------------------------------------------===//
#include "MoeUpdates.h"
#include "ShardingRuleTools.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;

namespace {
/// How a state's dimensions are parameters and matrices.
struct Layout {
  int64_t parameters, kept, rows;

  bool fits(int64_t rank) const {
    return 0 <= parameters && parameters <= kept && kept <= rank && rows >= 0 &&
           (rows == 0 || kept + rows < rank);
  }
  /// Of something that has one element (or index) for each dimension: that of the i-th moment.
  template <typename T> SmallVector<T> ofMoment(ArrayRef<T> all, size_t i) const {
    if (rows == 0)
      return SmallVector<T>(all);
    SmallVector<T> dims(all.take_front(i == 0 ? kept + rows : kept));
    if (i == 1)
      llvm::append_range(dims, all.drop_front(kept + rows));
    return dims;
  }
  size_t numMoments() const { return rows == 0 ? 1 : 3; }
};
} // namespace

template <typename Op> static Layout layoutOf(Op op) {
  return {int64_t(op.getParameters()), int64_t(op.getKept()), int64_t(op.getRows())};
}

static bool hasShape(Value v, ArrayRef<int64_t> wanted) {
  return shapeOf(v) == (wanted.empty() ? ArrayRef<int64_t>{1} : wanted);
}

static bool areMoments(ValueRange moments, Layout layout, ArrayRef<int64_t> shape) {
  if (moments.size() != layout.numMoments())
    return false;
  for (auto [i, moment] : llvm::enumerate(moments))
    if (!hasShape(moment, layout.ofMoment(shape, i)))
      return false;
  return true;
}

//===----------------------------------------------------------------------===//
// Verifiers
//===----------------------------------------------------------------------===//

LogicalResult SecondMomentOp::verify() {
  if (shapeOf(getV()) != shapeOf(getSquares()) || shapeOf(getV()) != shapeOf(getResult()))
    return emitOpError("C1: v, squares and the result must have one shape");
  if (!isOneNumber(getStep()) || !isOneNumber(getFactor()))
    return emitOpError("C2: step and factor must be one number");
  if (int64_t(getCount()) < 1 || !isFiniteAndNotNegative(getDecay()) ||
      !isFiniteAndNotNegative(getEps()))
    return emitOpError("C3: count must be at least 1, decay and eps finite and not negative");
  return success();
}

LogicalResult AdafactorNormOp::verify() {
  ArrayRef<int64_t> shape = shapeOf(getGrad());
  Layout layout = layoutOf(*this);
  if (!layout.fits(shape.size()))
    return emitOpError("C1: parameters, kept and rows do not fit ") << getGrad().getType();
  if (!areMoments(getMoments(), layout, shape))
    return emitOpError("C2: the moments are not those of the layout");
  if (!hasShape(getResult(), shape.take_front(layout.parameters)))
    return emitOpError("C3: the result must have one number for each parameter");
  return success();
}

LogicalResult AdafactorOp::verify() {
  ArrayRef<int64_t> shape = shapeOf(getGrad());
  Layout layout = layoutOf(*this);
  if (shapeOf(getW()) != shape || !layout.fits(shape.size()) ||
      !areMoments(getMoments(), layout, shape) || !areMoments(getFresh(), layout, shape))
    return emitOpError("C1: the moments are not those of the layout, or w is not like grad");
  ArrayRef<int64_t> parameters = shape.take_front(layout.parameters);
  if (!isOneNumber(getLr()) || !isOneNumber(getFactor()) || !hasShape(getNorms(), parameters) ||
      (getWeights() && !hasShape(getWeights(), parameters)))
    return emitOpError("C2: lr and factor must be one number, norms and weights one for each "
                       "parameter");
  if (int64_t(getCount()) < 1 || !isFiniteAndNotNegative(getClip()) || getClip().isZero() ||
      !isFiniteAndNotNegative(getEps()) || !isFiniteAndNotNegative(getWeightDecay()))
    return emitOpError("C4: count and clip must be positive, eps and weight_decay finite and not "
                       "negative");
  return verifyStates(*this, getUpdated());
}

//===----------------------------------------------------------------------===//
// Sharding rules
//===----------------------------------------------------------------------===//

/// The factors, or one of a single number where there are none.
static SmallVector<int> orOne(FactorRule &rule, SmallVector<int> factors) {
  if (factors.empty())
    factors.push_back(rule.addFactor(FactorKind::needReplication, 1));
  return factors;
}

/// v[x..], squares[x..], numbers → [x..]
FactorRule SecondMomentOp::getFactorRule() {
  FactorRule rule;
  SmallVector<int> x = rule.addFactors(FactorKind::passThrough, shapeOf(getV()));
  rule.operands = {x, x};
  for (unsigned i = 2; i < getNumOperands(); ++i)
    rule.operands.push_back({rule.addFactor(FactorKind::needReplication, 1)});
  rule.results = {x};
  return rule;
}

/// grad[p..,k..], moments → [p..], partial where k.. is cut
FactorRule AdafactorNormOp::getFactorRule() {
  FactorRule rule;
  Layout layout = layoutOf(*this);
  ArrayRef<int64_t> shape = shapeOf(getGrad());
  SmallVector<int> p =
      rule.addFactors(FactorKind::passThrough, shape.take_front(layout.parameters));
  SmallVector<int> x = p;
  llvm::append_range(x,
                     rule.addFactors(FactorKind::reduction, shape.drop_front(layout.parameters)));
  rule.operands = {x};
  for (size_t i = 0; i < getMoments().size(); ++i)
    rule.operands.push_back(orOne(rule, layout.ofMoment(ArrayRef<int>(x), i)));
  rule.results = {orOne(rule, p)};
  return rule;
}

/// w[x..], moments, grad[x..], fresh, norms[p..], weights[p..], numbers
FactorRule AdafactorOp::getFactorRule() {
  FactorRule rule;
  Layout layout = layoutOf(*this);
  SmallVector<int> x = rule.addFactors(FactorKind::passThrough, shapeOf(getGrad()));
  auto addMoments = [&](size_t count) {
    for (size_t i = 0; i < count; ++i)
      rule.operands.push_back(orOne(rule, layout.ofMoment(ArrayRef<int>(x), i)));
  };
  rule.operands = {x};
  addMoments(getMoments().size());
  rule.operands.push_back(x);
  addMoments(getFresh().size());
  SmallVector<int> p(ArrayRef<int>(x).take_front(layout.parameters));
  for (int i = 0; i < (getWeights() ? 2 : 1); ++i)
    rule.operands.push_back(orOne(rule, p));
  for (int i = 0; i < (getFactor() ? 2 : 1); ++i)
    rule.operands.push_back({rule.addFactor(FactorKind::needReplication, 1)});
  return rule;
}
