//===- FuseLinalg.cpp - Fusion of elementwise producers -------------------===//
//
// Upstream's elementwise fusion, driven so that what a kernel stores is stored by the first pass
// that computes it, and everything else is recomputed where it is used.
//
//===----------------------------------------------------------------------===//
#include "Lowering.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/Dialect/Linalg/Transforms/Transforms.h"
#include "mlir/IR/Dominance.h"
#include "mlir/IR/PatternMatch.h"
#include "mlir/Transforms/CSE.h"
#include "mlir/Transforms/GreedyPatternRewriteDriver.h"
#include "mlir/Transforms/RegionUtils.h"

using namespace mlir;
using linalg::GenericOp;

/// The operand of `consumer` to fuse next, or null.
static OpOperand *findFusable(GenericOp consumer) {
  for (OpOperand *operand : consumer.getDpsInputOperands())
    if (linalg::areElementwiseOpsFusable(operand))
      return operand;
  return nullptr;
}

static LogicalResult fuseFunc(func::FuncOp func) {
  IRRewriter rewriter(func.getContext());
  Block &block = func.getBody().front();
  for (Operation *op = &block.front(); op; op = op->getNextNode()) {
    auto consumer = dyn_cast<GenericOp>(op);
    if (!consumer)
      continue;
    while (OpOperand *operand = findFusable(consumer)) {
      auto producer = operand->get().getDefiningOp<GenericOp>();
      bool returned = llvm::any_of(producer->getUsers(),
                                   [](Operation *user) { return isa<func::ReturnOp>(user); });
      bool storesHere = returned && consumer.getMatchingIndexingMap(operand).isIdentity() &&
                        llvm::all_of(producer->getUsers(), [&](Operation *user) {
                          return user == consumer || consumer->isBeforeInBlock(user);
                        });
      rewriter.setInsertionPoint(consumer);
      if (!storesHere) {
        // The consumer gets a copy of its own, which disappears in the fusion.
        auto copy = cast<GenericOp>(rewriter.clone(*producer));
        unsigned number = cast<OpResult>(operand->get()).getResultNumber();
        rewriter.modifyOpInPlace(consumer, [&] { operand->set(copy.getResult(number)); });
        producer = copy;
      }
      FailureOr<linalg::ElementwiseOpFusionResult> fused =
          linalg::fuseElementwiseOps(rewriter, operand);
      if (failed(fused))
        return consumer.emitError("elementwise fusion failed");
      for (auto [before, after] : fused->replacements)
        rewriter.replaceUsesWithIf(
            before, after, [&](OpOperand &use) { return use.getOwner() != fused->fusedOp; });
      rewriter.eraseOp(consumer);
      if (producer->use_empty())
        rewriter.eraseOp(producer);
      consumer = cast<GenericOp>(fused->fusedOp);
    }
    op = consumer;
  }
  // What only fused copies were made of is dead now.
  for (Operation &op : llvm::make_early_inc_range(llvm::reverse(block)))
    if (isOpTriviallyDead(&op))
      rewriter.eraseOp(&op);
  return success();
}

LogicalResult moira::kernels::fuseLinalg(ModuleOp module) {
  for (auto func : module.getOps<func::FuncOp>())
    if (failed(fuseFunc(func)))
      return failure();
  RewritePatternSet patterns(module.getContext());
  linalg::populateEraseUnusedOperandsAndResultsPatterns(patterns);
  return applyPatternsGreedily(module, std::move(patterns));
}
