//===- RoundCotangents.cpp - --plan-round-cotangents -----------------------===//
// Gradients of products of bf16 take cotangents in f32, too, but on a GPU each rounds them for
// itself, as many at a time as fit its room to work in. Here a cotangent is rounded once, where it
// is made: by the product that gives it, if nobody wants it wider, or by a kernel that
// --plan-fuse-kernels may make part of another one. For all targets, so that these compute alike.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace moira;

namespace {

bool isF32(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  return type && type.getElementType().isF32();
}
bool isBF16(Value value) {
  return cast<RankedTensorType>(value.getType()).getElementType().isBF16();
}

/// Whether this operand is a cotangent that is multiplied in bf16.
bool isRounded(OpOperand &operand) {
  if (operand.getOperandNumber() != 0)
    return false;
  return llvm::TypeSwitch<Operation *, bool>(operand.getOwner())
      .Case<moe::LinearInputGradOp>([](auto op) { return isBF16(op.getW()); })
      .Case<moe::LinearWeightGradOp>([](auto op) { return isBF16(op.getX()); })
      .Default(false);
}

struct RoundCotangentsPass : PassWrapper<RoundCotangentsPass, OperationPass<func::FuncOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(RoundCotangentsPass)
  StringRef getArgument() const final { return "plan-round-cotangents"; }
  StringRef getDescription() const final {
    return "Round cotangents once for all products of bf16 that take them";
  }
  void runOnOperation() final {
    SmallVector<Value> cotangents;
    getOperation().walk([&](Operation *op) {
      for (Value result : op->getResults())
        if (isF32(result) && llvm::any_of(result.getUses(), isRounded))
          cotangents.push_back(result);
    });
    for (Value cotangent : cotangents)
      round(cotangent);
  }

private:
  void round(Value cotangent) {
    ++numRounded;
    OpBuilder b(&getContext());
    auto product = cotangent.getDefiningOp<moe::LinearInputGradOp>();
    if (product && isBF16(product.getW()) && llvm::all_of(cotangent.getUses(), isRounded)) {
      cotangent.setType(cast<RankedTensorType>(cotangent.getType()).clone(b.getBF16Type()));
      return;
    }
    b.setInsertionPointAfterValue(cotangent);
    cotangent.replaceUsesWithIf(moe::toElement(b, cotangent, b.getBF16Type()), isRounded);
  }
  Statistic numRounded{this, "rounded", "cotangents that are rounded once"};
};

} // namespace

std::unique_ptr<Pass> moira::createPlanRoundCotangentsPass() {
  return std::make_unique<RoundCotangentsPass>();
}
