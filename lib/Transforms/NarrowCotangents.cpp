//===- NarrowCotangents.cpp - --moe-narrow-cotangents ----------------------===//
// A program that --moe-vjp has differentiated takes the cotangents of its results, and gives the
// gradients of its arguments, in f32. Where the results and arguments are bf16 and part of
// something that is bf16 throughout, both are bf16, too, as PyTorch has them: half of what they
// take to read and write. All between them stays as it is.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOENARROWCOTANGENTS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {

Type elementOf(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return tensor ? tensor.getElementType() : Type();
}
bool isBF16(Type type) {
  Type element = elementOf(type);
  return element && element.isBF16();
}
bool isF32(Type type) {
  Type element = elementOf(type);
  return element && element.isF32();
}

struct NarrowCotangents : moira::impl::MoeNarrowCotangentsBase<NarrowCotangents> {
  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal())
        narrow(func);
  }

private:
  void narrow(func::FuncOp func) {
    llvm::StringMap<Type> results, arguments; // by name
    for (unsigned i = 0; i < func.getNumResults(); ++i)
      if (auto name = func.getResultAttrOfType<StringAttr>(i, "moe.name"))
        results[name.getValue()] = func.getResultTypes()[i];
    for (BlockArgument argument : func.getArguments())
      if (auto name = func.getArgAttrOfType<StringAttr>(argument.getArgNumber(), "moe.name"))
        arguments[name.getValue()] = argument.getType();
    /// Whether what is called `name` is f32, and what it belongs to, without the prefix, bf16.
    auto isNarrow = [](const llvm::StringMap<Type> &of, StringAttr name, StringRef prefix,
                       Type type) {
      StringRef whose = name ? name.getValue() : StringRef();
      return whose.consume_front(prefix) && isF32(type) && isBF16(of.lookup(whose));
    };
    for (BlockArgument argument : func.getArguments())
      if (isNarrow(results, func.getArgAttrOfType<StringAttr>(argument.getArgNumber(), "moe.name"),
                   "d.", argument.getType()))
        take(func, argument);
    Operation *end = func.front().getTerminator();
    OpBuilder b(end);
    for (OpOperand &result : end->getOpOperands())
      if (isNarrow(arguments,
                   func.getResultAttrOfType<StringAttr>(result.getOperandNumber(), "moe.name"),
                   "grad.", result.get().getType())) {
        result.set(moe::toElement(b, result.get(), b.getBF16Type()));
        ++narrowed;
      }
    func.setFunctionType(
        FunctionType::get(&getContext(), func.front().getArgumentTypes(), end->getOperandTypes()));
  }

  /// A cotangent in bf16: for who rounds it as it is, for the rest widened.
  void take(func::FuncOp func, BlockArgument cotangent) {
    OpBuilder b = OpBuilder::atBlockBegin(&func.front());
    cotangent.setType(cast<RankedTensorType>(cotangent.getType()).clone(b.getBF16Type()));
    Value wide;
    for (OpOperand &use : llvm::make_early_inc_range(cotangent.getUses())) {
      auto scale = dyn_cast<moe::ScaleOp>(use.getOwner());
      if (scale && scale.getFactor().isExactlyValue(1) && isBF16(scale.getType())) {
        scale.replaceAllUsesWith(cotangent);
        scale.erase();
      } else if (!isa<moe::ChoiceDotsOp, moe::AttentionGradOp>(use.getOwner())) {
        if (!wide)
          wide = moe::toElement(b, cotangent, b.getF32Type());
        use.set(wide);
      }
    }
    ++narrowed;
  }
};
} // namespace
