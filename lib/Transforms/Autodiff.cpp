//===- Autodiff.cpp - --moe-autodiff and --moe-vjp ------------------------===//
// Reverse-mode differentiation of a global program. Operations say by themselves what their
// operands' cotangents are (DifferentiableOpInterface); here cotangents are collected in reverse
// program order. A value without a cotangent has a zero one, for which nothing is computed. Where
// several uses of a value give cotangents, they are added in the order in which they come, the last
// use's first, so that the order of a sum is that of the program.
//
// Everything that gradients need of the forward program is kept.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOEAUTODIFF
#define GEN_PASS_DEF_MOEVJP
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {

/// Whether a value of this type can have a cotangent.
bool isDifferentiable(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return isa<moe::RoutingType>(type) || (tensor && isa<FloatType>(tensor.getElementType()));
}

/// Differentiates one function: results' cotangents in, those of any other values out.
class Differentiator {
public:
  explicit Differentiator(func::FuncOp func)
      : end(func.front().getTerminator()), builder(func.getContext()) {
    for (Operation &op : func.front().without_terminator())
      program.push_back(&op);
    builder.setInsertionPoint(end);
  }

  /// Values from which on gradients are wanted; to be named before `run`.
  void want(Value root) { active.insert(root); }

  /// Adds to a value's cotangent.
  void give(Value value, Value cotangent) {
    Value &sum = cotangents[value];
    sum = sum ? moe::AddOp::create(builder, cotangent.getLoc(), sum.getType(), sum, cotangent)
                    .getResult()
              : cotangent;
  }

  /// Builds the backward program behind the forward one.
  LogicalResult run() {
    for (Operation *op : program)
      if (llvm::any_of(op->getOperands(), [&](Value v) { return active.contains(v); }))
        for (Value result : op->getResults())
          if (isDifferentiable(result.getType()))
            active.insert(result);
    for (Operation *op : llvm::reverse(program))
      if (failed(visit(op)))
        return failure();
    return success();
  }

  /// Null if it is zero.
  Value of(Value value) const { return cotangents.lookup(value); }

  OpBuilder &getBuilder() { return builder; }

  /// Removes what was built and nobody reads.
  void removeUnused() {
    for (Operation &op : llvm::make_early_inc_range(llvm::reverse(*end->getBlock())))
      if (&op != end && isOpTriviallyDead(&op))
        op.erase();
  }

private:
  LogicalResult visit(Operation *op) {
    SmallVector<Value> given;
    bool any = false;
    for (Value result : op->getResults()) {
      given.push_back(active.contains(result) ? of(result) : Value());
      any |= bool(given.back());
    }
    if (!any || op->getNumOperands() == 0)
      return success();
    auto differentiable = dyn_cast<DifferentiableOpInterface>(op);
    if (!differentiable)
      return op->emitOpError("MOE-0601: has no gradient, and the loss depends on it");
    SmallVector<Value> grads(op->getNumOperands());
    if (failed(differentiable.buildVJP(builder, given, grads)))
      return failure();
    for (auto [operand, grad] : llvm::zip(op->getOperands(), grads))
      if (grad && active.contains(operand))
        give(operand, grad);
    return success();
  }

  Operation *end;
  OpBuilder builder;
  SmallVector<Operation *> program;
  llvm::DenseSet<Value> active;
  llvm::DenseMap<Value, Value> cotangents;
};

/// The type of a result's cotangent, f32.
RankedTensorType cotangentType(Type type) {
  return RankedTensorType::get(cast<RankedTensorType>(type).getShape(),
                               Float32Type::get(type.getContext()));
}

void appendResult(func::FuncOp func, Value value, ArrayRef<NamedAttribute> attributes) {
  Operation *end = func.front().getTerminator();
  (void)func.insertResult(func.getNumResults(), value.getType(),
                          DictionaryAttr::get(func.getContext(), attributes));
  end->insertOperands(end->getNumOperands(), value);
}

StringRef nameOfResult(func::FuncOp func, unsigned i) {
  auto name = func.getResultAttrOfType<StringAttr>(i, "moe.name");
  return name ? name.getValue() : StringRef();
}

struct Autodiff : moira::impl::MoeAutodiffBase<Autodiff> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    for (func::FuncOp func : module.getOps<func::FuncOp>())
      if (!func.isExternal() && failed(differentiate(module, func)))
        return signalPassFailure();
  }

  /// Appends the gradient of every state to the results, if some of them are losses.
  LogicalResult differentiate(ModuleOp module, func::FuncOp func) {
    Builder attributes(&getContext());
    Differentiator gradients(func);
    OpBuilder &b = gradients.getBuilder();
    bool any = false;
    for (unsigned i = 0; i < func.getNumResults(); ++i)
      if (auto weight = func.getResultAttrOfType<FloatAttr>(i, "moe.loss_weight")) {
        Value loss = func.front().getTerminator()->getOperand(i);
        auto seed =
            moe::FullOp::create(b, func.getLoc(), cotangentType(loss.getType()), weight.getValue());
        if (!any)
          seed->setAttr(kBackwardAttr, b.getUnitAttr());
        gradients.give(loss, seed);
        any = true;
      }
    if (!any)
      return success();
    llvm::MapVector<Attribute, SmallVector<Value>> params;
    for (auto param : func.getOps<moe::ParamOp>()) {
      if (!isDifferentiable(param.getType()))
        continue;
      params[param.getStateAttr()].push_back(param.getResult());
      gradients.want(param.getResult());
    }
    if (failed(gradients.run()))
      return failure();
    SmallVector<std::pair<moe::StateOp, Value>> found;
    for (auto state : module.getOps<moe::StateOp>()) {
      if (!isDifferentiable(state.getTensorType()))
        continue;
      Value sum;
      for (Value param : params[FlatSymbolRefAttr::get(state.getSymNameAttr())])
        if (Value grad = gradients.of(param))
          sum = sum ? moe::AddOp::create(b, grad.getLoc(), sum.getType(), sum, grad).getResult()
                    : grad;
      if (!sum)
        sum = moe::FullOp::create(b, state.getLoc(), cotangentType(state.getTensorType()),
                                  llvm::APFloat(0.0));
      found.emplace_back(state, sum);
    }
    for (auto [state, grad] : found)
      appendResult(func, grad,
                   {attributes.getNamedAttr("moe.gradient_of",
                                            FlatSymbolRefAttr::get(state.getSymNameAttr())),
                    attributes.getNamedAttr(
                        "moe.name", attributes.getStringAttr("grad." + state.getSymName()))});
    gradients.removeUnused();
    this->gradients += found.size();
    return success();
  }
};

struct Vjp : moira::impl::MoeVjpBase<Vjp> {
  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal() && failed(transpose(func)))
        return signalPassFailure();
  }

  LogicalResult transpose(func::FuncOp func) {
    Builder attributes(&getContext());
    Block &body = func.front();
    SmallVector<Value> arguments(body.getArguments());
    Differentiator gradients(func);
    SmallVector<Value> results(body.getTerminator()->getOperands());
    for (auto [i, result] : llvm::enumerate(results)) {
      if (!isDifferentiable(result.getType()))
        continue;
      auto name = attributes.getNamedAttr("moe.name",
                                          attributes.getStringAttr("d." + nameOfResult(func, i)));
      unsigned index = func.getNumArguments();
      (void)func.insertArgument(index, cotangentType(result.getType()),
                                attributes.getDictionaryAttr(name), result.getLoc());
      gradients.give(result, func.getArgument(index));
    }
    for (Value argument : arguments)
      if (isDifferentiable(argument.getType()))
        gradients.want(argument);
    if (failed(gradients.run()))
      return failure();
    for (auto [i, argument] : llvm::enumerate(arguments)) {
      if (!isDifferentiable(argument.getType()))
        continue;
      Value grad = gradients.of(argument);
      if (!grad)
        grad = moe::FullOp::create(gradients.getBuilder(), argument.getLoc(),
                                   cotangentType(argument.getType()), llvm::APFloat(0.0));
      auto name = func.getArgAttrOfType<StringAttr>(i, "moe.name");
      appendResult(func, grad,
                   attributes.getNamedAttr(
                       "moe.name",
                       attributes.getStringAttr("grad." + (name ? name.getValue() : StringRef()))));
    }
    gradients.removeUnused();
    return success();
  }
};

} // namespace
