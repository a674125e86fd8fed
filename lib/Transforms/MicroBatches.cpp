//===- MicroBatches.cpp - --moe-micro-batches -----------------------------===//
// A program that gives losses and gradients of a batch becomes two over the same states, for a
// batch that comes in parts: `accumulate` adds those of one micro-batch to what the step has so
// far, `update` gives those of the whole batch and is what an optimizer is added to. Sums are
// states "X.accumulated" that hold nothing between steps; the first micro-batch of a step (the
// input `micro_batch` is 0) overwrites them, so nobody needs to clear them. What else the program
// gives, it gives for every micro-batch.
//
// That the sums are those of the whole batch is the losses' business: they are divided by what the
// whole batch has (--moe-add-loss=micro-batches=N).
//===----------------------------------------------------------------------===//
#include "ProgramInputs.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOEMICROBATCHES
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct MicroBatches : moira::impl::MoeMicroBatchesBase<MicroBatches> {
  using MoeMicroBatchesBase::MoeMicroBatchesBase;

  void runOnOperation() override {
    if (count < 2)
      return;
    for (auto func : llvm::make_early_inc_range(getOperation().getOps<func::FuncOp>()))
      // The reference program takes the batch as a whole.
      if (!func.isExternal() && !func->hasAttr("moe.reference") && failed(split(func)))
        return signalPassFailure();
  }

private:
  /// What of the program is a sum over micro-batches: a gradient, a loss, a load.
  static bool isSummed(func::FuncOp func, unsigned result) {
    return func.getResultAttr(result, "moe.gradient_of") ||
           func.getResultAttr(result, "moe.loss_weight") ||
           func.getResultAttr(result, "moe.load_of");
  }

  LogicalResult split(func::FuncOp func) {
    SmallVector<unsigned> summed;
    for (unsigned i = 0; i < func.getNumResults(); ++i)
      if (isSummed(func, i))
        summed.push_back(i);
    if (summed.empty())
      return success();
    auto number = RankedTensorType::get({1}, IntegerType::get(&getContext(), 32));
    Value micro = getInput(func, "micro_batch", number, 0, InputRange{0, count - 1});

    OpBuilder b(func);
    b.setInsertionPointAfter(func);
    auto update =
        func::FuncOp::create(b, func.getLoc(), "update", b.getFunctionType({}, TypeRange()));
    Block *body = update.addEntryBlock();
    b.setInsertionPointToStart(body);
    SmallVector<Value> values;
    SmallVector<DictionaryAttr> names;
    Operation *end = func.front().getTerminator();
    for (unsigned i : summed) {
      if (moe::isZero(end->getOperand(i)))
        continue; // what no loss depends on
      FailureOr<moe::StateOp> state = stateFor(func, i);
      if (failed(state))
        return failure();
      Value value = end->getOperand(i);
      OpBuilder in = OpBuilder::atBlockBegin(&func.front());
      Value sum = paramOf(in, *state);
      in.setInsertionPoint(end);
      moe::AccumulateOp::create(in, state->getLoc(), sum, value, micro);
      values.push_back(paramOf(b, *state));
      names.push_back(func.getResultAttrDict(i));
    }
    func::ReturnOp::create(b, func.getLoc(), values);
    update.setFunctionType(b.getFunctionType({}, ValueRange(values).getTypes()));
    for (auto [i, name] : llvm::enumerate(names))
      update.setResultAttrs(i, name);
    for (unsigned i : llvm::reverse(summed)) {
      end->eraseOperand(i);
      (void)func.eraseResult(i);
    }
    func.setName("accumulate");
    sums += summed.size();
    return success();
  }

  static Value paramOf(OpBuilder &b, moe::StateOp state) {
    return moe::ParamOp::create(b, state.getLoc(), state.getTensorType(),
                                FlatSymbolRefAttr::get(state.getSymNameAttr()));
  }

  /// The state that a result is added up in, behind the state that it is the gradient of.
  FailureOr<moe::StateOp> stateFor(func::FuncOp func, unsigned result) {
    auto type = cast<RankedTensorType>(func.getResultTypes()[result]);
    auto name = func.getResultAttrOfType<StringAttr>(result, "moe.name");
    OpBuilder b = OpBuilder::atBlockBegin(getOperation().getBody());
    IntegerAttr layer;
    if (auto of = func.getResultAttrOfType<FlatSymbolRefAttr>(result, "moe.gradient_of")) {
      auto state = getOperation().lookupSymbol<moe::StateOp>(of.getAttr());
      if (!state)
        return func.emitError("MOE-0601: result ") << result << " is the gradient of no state";
      b.setInsertionPointAfter(state);
      name = state.getSymNameAttr();
      layer = state.getLayerAttr();
    }
    Type element = type.getElementType();
    if (!name || !(element.isF32() || element.isBF16()))
      return func.emitError("MOE-0601: result ")
             << result << " cannot be added up: it has no name, or is neither f32 nor bf16";
    type = RankedTensorType::get(type.getShape(), b.getF32Type());
    return moe::StateOp::create(b, func.getLoc(), (name.getValue() + ".accumulated").str(), type,
                                moe::SourceAttr(), layer, /*separate_experts=*/false,
                                /*transient=*/true);
  }
};
} // namespace
