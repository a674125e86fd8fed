//===- OptimizerLowerings.cpp - instructions of updates -------------------===//
// As OpLowerings.cpp. What an update changes are its outputs, the states' own memory.
//===----------------------------------------------------------------------===//
#include "LoweringTable.h"

using namespace mlir;
using namespace moira;

using B = ProgramBuilder;

/// The views of the values that are there.
static SmallVector<Value> viewsOf(B &b, std::initializer_list<Value> values) {
  SmallVector<Value> views;
  for (Value value : values)
    if (value)
      views.push_back(b.view(value));
  return views;
}

template <typename Op> static SmallVector<NamedAttribute> adamwParams(B &b, Op op) {
  return {b.real("beta1", toDouble(op.getBeta1())), b.real("beta2", toDouble(op.getBeta2())),
          b.real("eps", toDouble(op.getEps())),
          b.real("weight_decay", toDouble(op.getWeightDecay()))};
}

/// How a state's dimensions are parameters and matrices.
template <typename Op> static SmallVector<NamedAttribute> layoutParams(B &b, Op op) {
  return {b.integer("parameters", op.getParameters()), b.integer("kept", op.getKept()),
          b.integer("rows", op.getRows())};
}

/// Where an update of `w` works: on the state itself, or, where the new weight is a result, on a
/// copy, which what is sliced or moved for nobody else is already.
static Value updatedView(B &b, Value w, Value result) {
  if (!result)
    return b.view(w);
  if (w.hasOneUse() && isa_and_present<dist::SliceOp, plan::MoveOp>(w.getDefiningOp()))
    b.alias(result, b.view(w));
  else
    b.copy(b.view(w), b.define(result), 0, {});
  return b.view(result);
}

void LoweringTable::addOptimizers() {
  // A gather that is to become the state has been made in it (ProgramBuilder::define).
  add<moe::AssignOp>(+[](moe::AssignOp op, B &b) {
    if (b.view(op.getX()) != b.view(op.getState()))
      b.copy(b.view(op.getX()), b.view(op.getState()), 0, {});
    return success();
  });
  add<moe::AdamWOp>(+[](moe::AdamWOp op, B &b) {
    Value w = updatedView(b, op.getW(), op.getResult());
    b.call("adamw", viewsOf(b, {op.getGrad(), op.getLr(), op.getStep(), op.getFactor()}),
           {w, b.view(op.getM()), b.view(op.getV())}, adamwParams(b, op));
    return success();
  });
  add<moe::ExpertAdamWOp>(+[](moe::ExpertAdamWOp op, B &b) {
    Value w = updatedView(b, op.getW(), op.getResult());
    b.call("expert_adamw", viewsOf(b, {op.getGrad(), op.getLr(), op.getLoad(), op.getFactor()}),
           {w, b.view(op.getM()), b.view(op.getV()), b.view(op.getSteps())}, adamwParams(b, op));
    return success();
  });
  add<moe::SgdOp>(+[](moe::SgdOp op, B &b) {
    SmallVector<Value> updated{updatedView(b, op.getW(), op.getResult())};
    llvm::append_range(updated, viewsOf(b, {op.getMomentumState()}));
    b.call("sgd", viewsOf(b, {op.getGrad(), op.getLr(), op.getFactor()}), updated,
           {b.real("momentum", toDouble(op.getMomentum())),
            b.real("weight_decay", toDouble(op.getWeightDecay())),
            b.integer("nesterov", op.getNesterov())});
    return success();
  });
  add<moe::BalanceBiasOp>(+[](moe::BalanceBiasOp op, B &b) {
    b.call("balance_bias", {b.view(op.getLoad())}, {b.view(op.getBias())},
           {b.real("rate", toDouble(op.getRate()))});
    return success();
  });
  add<moe::AccumulateOp>(+[](moe::AccumulateOp op, B &b) {
    b.call("accumulate", {b.view(op.getX()), b.view(op.getMicro())}, {b.view(op.getAcc())}, {});
    return success();
  });
  add<moe::SquaresOp>(+[](moe::SquaresOp op, B &b) {
    if (op.getExact()) {
      b.call("exact_squares", {b.view(op.getX())}, {b.define(op.getResult())}, {});
      return success();
    }
    SmallVector<NamedAttribute> params;
    if (op.getKeep() || op.getTail())
      params = {b.integer("keep", op.getKeep()), b.integer("tail", op.getTail())};
    b.call("squares", {b.view(op.getX())}, {b.define(op.getResult())}, params);
    return success();
  });
  add<moe::SecondMomentOp>(+[](moe::SecondMomentOp op, B &b) {
    b.call("second_moment", viewsOf(b, {op.getV(), op.getSquares(), op.getStep(), op.getFactor()}),
           {b.define(op.getResult())},
           {b.integer("count", op.getCount()), b.real("decay", toDouble(op.getDecay())),
            b.real("eps", toDouble(op.getEps()))});
    return success();
  });
  add<moe::AdafactorNormOp>(+[](moe::AdafactorNormOp op, B &b) {
    SmallVector<Value> reads{b.view(op.getGrad())};
    for (Value moment : op.getMoments())
      reads.push_back(b.view(moment));
    b.call("adafactor_norm", reads, {b.define(op.getResult())}, layoutParams(b, op));
    return success();
  });
  add<moe::AdafactorOp>(+[](moe::AdafactorOp op, B &b) {
    SmallVector<Value> reads = viewsOf(b, {op.getGrad(), op.getLr(), op.getNorms()});
    SmallVector<Value> writes = viewsOf(b, {op.getW()});
    for (Value moment : op.getFresh())
      reads.push_back(b.view(moment));
    for (Value moment : op.getMoments())
      writes.push_back(b.view(moment));
    std::string with;
    for (auto [role, value] : {std::pair("weights", op.getWeights()), {"factor", op.getFactor()}})
      if (value) {
        with += (with.empty() ? "" : " ") + std::string(role);
        reads.push_back(b.view(value));
      }
    bool matrices = op.getRows() > 0;
    SmallVector<NamedAttribute> params =
        matrices ? layoutParams(b, op)
                 : SmallVector<NamedAttribute>{b.integer("parameters", op.getParameters())};
    params.append({b.integer("count", op.getCount()), b.real("clip", toDouble(op.getClip())),
                   b.real("eps", toDouble(op.getEps())),
                   b.real("weight_decay", toDouble(op.getWeightDecay()))});
    if (!with.empty())
      params.push_back(b.text("with", with));
    b.call(matrices ? "adafactor" : "adafactor_vector", reads, writes, params);
    return success();
  });
  add<moe::ClipFactorOp>(+[](moe::ClipFactorOp op, B &b) {
    b.call("clip_factor", {b.view(op.getSquares())},
           {b.define(op.getNorm()), b.define(op.getFactor())},
           {b.real("max_norm", toDouble(op.getMaxNorm()))});
    return success();
  });
}
