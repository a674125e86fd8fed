//===- AddOptimizer.cpp - --moe-add-optimizer -----------------------------===//
// A program that gives gradients becomes one that trains: every state's gradient goes to an update
// of that state instead of a result, behind everything else. What the optimizer keeps of a state W
// are states "W.<optimizer>.<what>" without a source. The learning rate and the number of the step
// are inputs, `lr` and `step`; the norm of all gradients is a result, `grad_norm`. A state that no
// loss depends on is not updated, as torch's optimizers pass over what has no gradient. Where there
// are several losses, `loss` becomes what is minimised, and the cross-entropy `ce_loss`.
//===----------------------------------------------------------------------===//
#include "Adafactor.h"
#include "ProgramInputs.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOEADDOPTIMIZER
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {

/// A state and its gradient, a value of the program.
struct Gradient {
  moe::StateOp state;
  Value value;
};

struct AddOptimizer : moira::impl::MoeAddOptimizerBase<AddOptimizer> {
  using MoeAddOptimizerBase::MoeAddOptimizerBase;

  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal() && failed(addTo(func)))
        return signalPassFailure();
  }

private:
  LogicalResult addTo(func::FuncOp func) {
    FailureOr<SmallVector<Gradient>> gradients = takeGradients(func);
    if (failed(gradients))
      return failure();
    if (gradients->empty())
      return success();
    OpBuilder b(func.front().getTerminator());
    Value rate = getInput(func, "lr", RankedTensorType::get({1}, b.getF32Type()), lr);
    Value step = optimizer != "sgd" // of step 0 it would divide by 0
                     ? getInput(func, "step", RankedTensorType::get({1}, b.getI32Type()), 1,
                                InputRange{1, INT32_MAX})
                     : Value();
    addTotalLoss(func, b);
    takeLoads(func);
    Value factor = clip(func, b, *gradients);
    for (Gradient gradient : *gradients) {
      update(func, b, gradient, rate, step, factor);
      loads.erase(gradient.state.getSymNameAttr());
    }
    updates += gradients->size();
    if (biasRate > 0 && loads.empty())
      return func.emitError("MOE-0102: --bias-update-rate: no gate of this model chooses with a "
                            "bias of its own");
    // What has a load and no gradient is a bias that experts are chosen with.
    for (auto [name, load] : loads) {
      auto bias = getOperation().lookupSymbol<moe::StateOp>(name);
      moe::BalanceBiasOp::create(b, bias.getLoc(), paramOf(func, bias), load,
                                 b.getF64FloatAttr(biasRate));
      ++updates;
    }
    return success();
  }

  /// Removes the gradients from the results.
  FailureOr<SmallVector<Gradient>> takeGradients(func::FuncOp func) {
    SmallVector<Gradient> gradients;
    Operation *end = func.front().getTerminator();
    for (unsigned i = func.getNumResults(); i-- > 0;) {
      auto of = func.getResultAttrOfType<FlatSymbolRefAttr>(i, "moe.gradient_of");
      if (!of)
        continue;
      auto state = getOperation().lookupSymbol<moe::StateOp>(of.getAttr());
      if (!state)
        return func.emitError("MOE-0601: result ") << i << " is the gradient of no state";
      if (!state.getTensorType().getElementType().isF32())
        return state.emitOpError("MOE-0601: is not f32, which optimizers update");
      if (!moe::isZero(end->getOperand(i)))
        gradients.push_back({state, end->getOperand(i)});
      end->eraseOperand(i);
      (void)func.eraseResult(i);
    }
    std::reverse(gradients.begin(), gradients.end());
    return gradients;
  }

  /// Removes the loads of experts from the results: of a state, how many choices in this step went
  /// to each of its experts.
  void takeLoads(func::FuncOp func) {
    loads.clear();
    Operation *end = func.front().getTerminator();
    for (unsigned i = func.getNumResults(); i-- > 0;)
      if (auto of = func.getResultAttrOfType<ArrayAttr>(i, "moe.load_of")) {
        for (auto state : of.getAsRange<FlatSymbolRefAttr>())
          loads[state.getAttr()] = end->getOperand(i);
        end->eraseOperand(i);
        (void)func.eraseResult(i);
      }
  }
  llvm::MapVector<StringAttr, Value> loads; // by state

  /// The sum of several losses, each as much of it as its weight says.
  static void addTotalLoss(func::FuncOp func, OpBuilder &b) {
    Operation *end = func.front().getTerminator();
    auto one = RankedTensorType::get({1}, b.getF32Type());
    Value sum;
    unsigned losses = 0;
    for (unsigned i = 0; i < func.getNumResults(); ++i) {
      auto weight = func.getResultAttrOfType<FloatAttr>(i, "moe.loss_weight");
      if (!weight)
        continue;
      Value part = end->getOperand(i);
      if (!weight.getValue().isExactlyValue(1))
        part = moe::ScaleOp::create(b, func.getLoc(), one, part, weight.getValue());
      sum = sum ? moe::AddOp::create(b, func.getLoc(), one, sum, part).getResult() : part;
      ++losses;
    }
    if (losses < 2)
      return;
    auto name = b.getStringAttr("moe.name"), loss = b.getStringAttr("loss");
    for (unsigned i = 0; i < func.getNumResults(); ++i)
      if (func.getResultAttr(i, name) == loss)
        func.setResultAttr(i, name, b.getStringAttr("ce_loss"));
    (void)func.insertResult(0, one, b.getDictionaryAttr(b.getNamedAttr(name, loss)));
    end->insertOperands(0, sum);
  }

  /// The norm of all gradients as a result; what they are to be multiplied by, null for nothing.
  Value clip(func::FuncOp func, OpBuilder &b, ArrayRef<Gradient> gradients) {
    auto number = RankedTensorType::get({1}, b.getF32Type());
    // Which rank has which part of a gradient must not matter where meshes are to agree.
    bool exact =
        getOperation()->hasAttr(moe::MoeDialect::kDeterministic) && !func->hasAttr("moe.reference");
    auto sumType = exact ? RankedTensorType::get({moe::kSquareDigits}, b.getF32Type()) : number;
    Value sum;
    for (Gradient gradient : gradients) {
      Value squares = moe::SquaresOp::create(b, gradient.state.getLoc(), sumType, gradient.value,
                                             /*keep=*/0, /*tail=*/0, exact);
      sum = sum ? moe::AddOp::create(b, func.getLoc(), sumType, sum, squares).getResult() : squares;
    }
    auto clip = moe::ClipFactorOp::create(b, func.getLoc(), number, number, sum,
                                          b.getF64FloatAttr(clipNorm));
    Operation *end = func.front().getTerminator();
    (void)func.insertResult(
        func.getNumResults(), number,
        b.getDictionaryAttr(b.getNamedAttr("moe.name", b.getStringAttr("grad_norm"))));
    end->insertOperands(end->getNumOperands(), clip.getNorm());
    return clipNorm > 0 ? clip.getFactor() : Value();
  }

  /// The value of a state; one parameter for each state of a program.
  static Value paramOf(func::FuncOp func, moe::StateOp state) {
    auto name = FlatSymbolRefAttr::get(state.getSymNameAttr());
    for (auto param : func.getOps<moe::ParamOp>())
      if (param.getStateAttr() == name)
        return param;
    OpBuilder b = OpBuilder::atBlockBegin(&func.front());
    return moe::ParamOp::create(b, state.getLoc(), state.getTensorType(), name);
  }

  /// What the optimizer keeps of a state, made at the first program that needs it.
  Value kept(func::FuncOp func, moe::StateOp state, StringRef what, RankedTensorType type = {}) {
    std::string name = (state.getSymName() + "." + optimizer + "." + what).str();
    auto known = getOperation().lookupSymbol<moe::StateOp>(name);
    if (!known) {
      OpBuilder b(state->getContext());
      b.setInsertionPointAfter(state);
      known = moe::StateOp::create(b, state.getLoc(), name, type ? type : state.getTensorType(),
                                   moe::SourceAttr(), state.getLayerAttr());
    }
    return paramOf(func, known);
  }

  void update(func::FuncOp func, OpBuilder &b, const Gradient &gradient, Value rate, Value step,
              Value factor) {
    moe::StateOp state = gradient.state;
    Location loc = state.getLoc();
    Value w = paramOf(func, state);
    if (optimizer == "adafactor") {
      // Its moments and its update read it several times, in f32.
      Value wide = gradient.value;
      if (!cast<RankedTensorType>(wide.getType()).getElementType().isF32())
        wide = moe::ScaleOp::create(b, loc, state.getTensorType(), wide, llvm::APFloat(1.0));
      auto keep = [&](StringRef what, RankedTensorType type) {
        return kept(func, state, what, type);
      };
      addAdafactor(b, state, {w, wide, rate, step, factor, keep},
                   {decayRate, eps, eps2, clipThreshold, weightDecay, scaleParameter});
      return;
    }
    if (optimizer == "adamw") {
      Value m = kept(func, state, "m"), v = kept(func, state, "v");
      int64_t experts = state.getTensorType().getDimSize(0);
      if (Value load = loads.lookup(state.getSymNameAttr())) {
        Value steps = kept(func, state, "steps", RankedTensorType::get({experts}, b.getF32Type()));
        moe::ExpertAdamWOp::create(b, loc, Type(), w, m, v, steps, gradient.value, rate, load,
                                   factor, b.getF64FloatAttr(beta1), b.getF64FloatAttr(beta2),
                                   b.getF64FloatAttr(eps), b.getF64FloatAttr(weightDecay));
        return;
      }
      moe::AdamWOp::create(b, loc, Type(), w, m, v, gradient.value, rate, step, factor,
                           b.getF64FloatAttr(beta1), b.getF64FloatAttr(beta2),
                           b.getF64FloatAttr(eps), b.getF64FloatAttr(weightDecay));
      return;
    }
    Value momentumState = momentum > 0 ? kept(func, state, "b") : Value();
    moe::SgdOp::create(b, loc, Type(), w, momentumState, gradient.value, rate, factor,
                       b.getF64FloatAttr(momentum), b.getF64FloatAttr(weightDecay),
                       nesterov ? b.getUnitAttr() : UnitAttr());
  }
};
} // namespace
