//===- FuseGlu.cpp - --plan-fuse-glu --------------------------------------===//
// Marks, on localized functions for a GPU, what the call grouped_glu will do: a moe.glu of the rows
// that experts' gate and up weights give, so that these are not stored, or only beside it where a
// backward half reads them, and the selection of tokens' rows that only such a product reads, so
// that it gathers them itself. plan-lower makes the calls.
//===----------------------------------------------------------------------===//
#include "FuseGlu.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"

using namespace mlir;
using namespace moira;

namespace {

/// The product that the glu may be part of, or null. Others may read it later.
moe::GroupedMatmulOp productOf(moe::GluOp glu) {
  auto product = glu.getX().getDefiningOp<moe::GroupedMatmulOp>();
  if (!product || product->getBlock() != glu->getBlock())
    return {};
  auto readsLater = [&](Operation *user) {
    return user == glu || (!isa<moe::GluOp>(user) && user->getBlock() == glu->getBlock() &&
                           glu->isBeforeInBlock(user));
  };
  if (!llvm::all_of(product->getUsers(), readsLater))
    return {};
  auto weights = cast<RankedTensorType>(product.getW().getType());
  // [groups, 2, F, K..]
  const int64_t contract = int64_t(product.getContract());
  if (weights.getRank() != 3 + contract || weights.getDimSize(1) != 2)
    return {};
  int64_t depth = 1;
  for (int64_t size : weights.getShape().take_back(contract))
    depth *= size;
  const int64_t groups = weights.getDimSize(0),
                rows = cast<RankedTensorType>(product.getRows().getType()).getDimSize(0);
  const bool fits = fitsGroupedGlu({product.getRows(), product.getW(), glu.getResult()}, groups,
                                   weights.getDimSize(2), depth) &&
                    (product->hasOneUse() || hasManyRows(groups, rows));
  return fits ? product : moe::GroupedMatmulOp();
}

struct FuseGluPass : PassWrapper<FuseGluPass, OperationPass<func::FuncOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(FuseGluPass)
  StringRef getArgument() const final { return "plan-fuse-glu"; }
  StringRef getDescription() const final {
    return "Mark gated units that the product before them makes, and the rows that it gathers";
  }
  void getDependentDialects(DialectRegistry &registry) const final {
    registry.insert<plan::PlanDialect>();
  }
  void runOnOperation() final {
    auto unit = UnitAttr::get(&getContext());
    getOperation().walk([&](moe::GluOp glu) {
      moe::GroupedMatmulOp product = productOf(glu);
      if (!product)
        return;
      glu->setAttr(plan::kInProductAttr, unit);
      ++numFused;
      Operation *source = product.getRows().getDefiningOp();
      auto dispatch = dyn_cast_or_null<moe::DispatchOp>(source);
      auto select = dyn_cast_or_null<dist::SelectOp>(source);
      const bool plain = (dispatch && !dispatch.getWeighted()) || (select && !select.getWeighted());
      if (plain && product.getRows().hasOneUse()) {
        source->setAttr(plan::kNumbersOnlyAttr, unit);
        ++numGathered;
      }
    });
  }
  Statistic numFused{this, "fused", "gated units that are part of a product"};
  Statistic numGathered{this, "gathered", "selections without rows"};
};

} // namespace

std::unique_ptr<Pass> moira::createPlanFuseGluPass() { return std::make_unique<FuseGluPass>(); }
