//===- AddOptimizer.cpp - --moe-add-optimizer -----------------------------===//
// A program that gives gradients becomes one that trains: every state's gradient goes to an update
// of that state instead of a result, behind everything else. What the optimizer keeps of a state W
// are states "W.<optimizer>.<what>" without a source. The learning rate and the number of the step
// are inputs, `lr` and `step`; the norm of all gradients is a result, `grad_norm`.
//===----------------------------------------------------------------------===//
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
    Value rate = argument(func, "lr", RankedTensorType::get({1}, b.getF32Type()), lr);
    Value step = optimizer == "adamw"
                     ? argument(func, "step", RankedTensorType::get({1}, b.getI32Type()), 1)
                     : Value();
    Value factor = clip(func, b, *gradients);
    for (const Gradient &gradient : *gradients)
      update(func, b, gradient, rate, step, factor);
    updates += gradients->size();
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
      gradients.push_back({state, end->getOperand(i)});
      end->eraseOperand(i);
      (void)func.eraseResult(i);
    }
    std::reverse(gradients.begin(), gradients.end());
    return gradients;
  }

  /// The program's input of that name, added if it has none.
  static Value argument(func::FuncOp func, StringRef name, Type type, double otherwise) {
    for (BlockArgument value : func.getArguments())
      if (auto own = func.getArgAttrOfType<StringAttr>(value.getArgNumber(), "moe.name");
          own && own.getValue() == name)
        return value;
    Builder b(func.getContext());
    SmallVector<NamedAttribute> attributes{
        b.getNamedAttr("moe.name", b.getStringAttr(name)),
        b.getNamedAttr("moe.optional", b.getUnitAttr()),
        b.getNamedAttr("moe.fill", b.getF64FloatAttr(otherwise))};
    if (name == "step")
      attributes.push_back(b.getNamedAttr("moe.range", b.getDenseI64ArrayAttr({0, INT32_MAX})));
    unsigned index = func.getNumArguments();
    (void)func.insertArgument(index, type, b.getDictionaryAttr(attributes), func.getLoc());
    return func.getArgument(index);
  }

  /// The norm of all gradients as a result; what they are to be multiplied by, null for nothing.
  Value clip(func::FuncOp func, OpBuilder &b, ArrayRef<Gradient> gradients) {
    auto number = RankedTensorType::get({1}, b.getF32Type());
    Value sum;
    for (Gradient gradient : gradients) {
      Value squares = moe::SquaresOp::create(b, gradient.state.getLoc(), number, gradient.value);
      sum = sum ? moe::AddOp::create(b, func.getLoc(), number, sum, squares).getResult() : squares;
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

  /// How many choices in this step went to each of the experts whose weights these are; null if no
  /// routing chooses among them.
  static Value loadOf(OpBuilder &b, Location loc, Value weights, int64_t experts) {
    auto type = RankedTensorType::get({experts}, b.getF32Type());
    llvm::SetVector<Value> routings;
    SmallVector<Operation *> readers(weights.getUsers());
    for (Operation *user : weights.getUsers())
      if (user->getNumResults() == 1 && moe::paramOf(user->getResult(0))) // rounds them
        llvm::append_range(readers, user->getUsers());
    for (Operation *user : readers)
      for (Value operand : user->getOperands())
        if (auto routing = dyn_cast<moe::RoutingType>(operand.getType());
            routing && routing.getExperts() == experts)
          routings.insert(operand);
    Value sum;
    for (Value routing : routings) {
      Value load = moe::ExpertLoadOp::create(b, loc, type, routing);
      sum = sum ? moe::AddOp::create(b, loc, type, sum, load).getResult() : load;
    }
    return sum;
  }

  void update(func::FuncOp func, OpBuilder &b, const Gradient &gradient, Value rate, Value step,
              Value factor) {
    moe::StateOp state = gradient.state;
    Location loc = state.getLoc();
    Value w = paramOf(func, state);
    if (optimizer == "adamw") {
      Value m = kept(func, state, "m"), v = kept(func, state, "v");
      int64_t experts = state.getTensorType().getDimSize(0);
      Value load = state.getSeparateExperts() ? loadOf(b, loc, w, experts) : Value();
      if (load) {
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
