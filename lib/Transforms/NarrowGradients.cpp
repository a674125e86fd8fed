//===- NarrowGradients.cpp - --moe-narrow-gradients -----------------------===//
// Weights' gradients in bf16 are half of what a step stores, sends and reads again (as in models
// that are bf16 throughout). Sums are made in f32 and rounded where they are stored, so only what a
// product of bf16, or attention's gradient, gives as it is becomes narrow; a gradient that is a sum
// of several (tied weights), and those of routers, norms and embeddings, which f32 made, stay.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOENARROWGRADIENTS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {

/// What decides whether a product's gradient may be narrow: what it multiplies cotangents with, or,
/// of attention, the operand whose gradient it is. Null for all else.
Value narrowAs(OpResult gradient) {
  Operation *op = gradient.getOwner();
  if (auto linear = dyn_cast<moe::LinearWeightGradOp>(op))
    return linear.getX();
  if (auto grouped = dyn_cast<moe::GroupedWeightGradOp>(op))
    return grouped.getRows();
  auto attention = dyn_cast<moe::AttentionGradOp>(op);
  if (!attention || gradient.getResultNumber() >= 3)
    return {};
  return ValueRange{attention.getQ(), attention.getK(),
                    attention.getV()}[gradient.getResultNumber()];
}

struct NarrowGradients : moira::impl::MoeNarrowGradientsBase<NarrowGradients> {
  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal())
        narrow(func);
  }

  void narrow(func::FuncOp func) {
    Operation *end = func.front().getTerminator();
    for (Value result : end->getOperands()) {
      auto made = dyn_cast<OpResult>(result);
      Value like = made && result.hasOneUse() ? narrowAs(made) : Value();
      if (!like)
        continue;
      Type element = cast<RankedTensorType>(like.getType()).getElementType();
      if (!element.isBF16())
        continue;
      result.setType(cast<RankedTensorType>(result.getType()).clone(element));
      ++narrowed;
    }
    func.setFunctionType(
        FunctionType::get(&getContext(), func.getArgumentTypes(), end->getOperandTypes()));
  }
};
} // namespace
