//===- FuseGluGrad.cpp - --plan-fuse-glu-grad -----------------------------===//
// On localized functions for a GPU, makes plan.grouped_glu_grad of what the backward half of an
// experts' layer does between the cotangents of tokens and those of its first product: rows that
// are selected and weighted, their product, glu_grad, and the choices' dots. The gradient of the
// second weights then takes rows as they are and the weighted glu. A layer that does it otherwise
// (biases, an exchange, a gate that weighs inputs) keeps its operations.
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

/// What becomes one operation; weights and dots may be missing.
struct Backward {
  moe::GluGradOp gradient;
  moe::GroupedInputGradOp product;
  dist::SelectOp select;
  Operation *last; ///< what gives the last of the operands
  moe::GroupedWeightGradOp weights;
  dist::ChoiceDotsOp dots;
};

/// Whether the gate's weights multiply what experts give.
bool weighsOutputs(Value routing) {
  moe::RouterAttr router = moe::firstRouterOf(routing);
  return router && router.getApply() == moe::RouteApply::output;
}

/// Whether `value` is the glu whose gradient `gradient` is.
bool isGluOf(Value value, moe::GluGradOp gradient) {
  auto glu = value.getDefiningOp<moe::GluOp>();
  return glu && glu.getX() == gradient.getX() && glu.getActivation() == gradient.getActivation() &&
         glu.getLimitAttr() == gradient.getLimitAttr() &&
         glu.getAlphaAttr() == gradient.getAlphaAttr() &&
         glu.getUpShiftAttr() == gradient.getUpShiftAttr();
}

/// The selection's choices times their tokens' cotangents, before these were rounded or after.
dist::ChoiceDotsOp dotsOf(Backward &parts) {
  dist::SelectOp select = parts.select;
  SmallVector<Value, 2> cotangents{select.getX()};
  if (auto scale = select.getX().getDefiningOp<moe::ScaleOp>();
      scale && scale.getFactor().isExactlyValue(1.0))
    cotangents.push_back(scale.getX());
  for (Value cotangent : cotangents)
    for (Operation *user : cotangent.getUsers()) {
      auto dots = dyn_cast<dist::ChoiceDotsOp>(user);
      if (!dots || dots.getX() != cotangent)
        continue;
      auto down = dots.getRows().getDefiningOp<moe::GroupedMatmulOp>();
      auto forward = dots.getPos().getDefiningOp<dist::SelectOp>();
      const bool same = down && forward && down.getGroups() == forward.getGroups() &&
                        forward.getRouting() == select.getRouting() &&
                        forward.getExpertOffsetAttr() == select.getExpertOffsetAttr() &&
                        down.getW() == parts.product.getW() &&
                        isGluOf(down.getRows(), parts.gradient);
      auto comesLater = [&](Operation *op) {
        return op->getBlock() == parts.last->getBlock() && parts.last->isBeforeInBlock(op);
      };
      if (same && llvm::all_of(dots->getUsers(), comesLater))
        return dots;
    }
  return {};
}

/// The operations around a gradient, if they are what can be one.
std::optional<Backward> match(moe::GluGradOp gradient) {
  Backward parts{gradient, gradient.getDy().getDefiningOp<moe::GroupedInputGradOp>(), {}, {}, {},
                 {}};
  if (!parts.product || !parts.product->hasOneUse() ||
      parts.product->getBlock() != gradient->getBlock())
    return std::nullopt;
  auto select = parts.select = parts.product.getDy().getDefiningOp<dist::SelectOp>();
  if (!select || !select.getWeighted() || parts.product.getGroups() != select.getGroups() ||
      !weighsOutputs(select.getRouting()))
    return std::nullopt;
  Block *block = gradient->getBlock();
  if (select->getBlock() != block)
    return std::nullopt;
  parts.last = select;
  for (Value operand : {parts.product.getW(), gradient.getX()})
    if (Operation *op = operand.getDefiningOp();
        op && op->getBlock() == block && parts.last->isBeforeInBlock(op))
      parts.last = op;
  auto w = cast<RankedTensorType>(parts.product.getW().getType()),
       z = cast<RankedTensorType>(gradient.getX().getType());
  if (w.getRank() != 3 || z.getRank() != 3 || parts.product.getContract() != 1 ||
      !fitsGroupedGlu({select.getX(), parts.product.getW(), gradient.getX(), gradient.getDy(),
                       gradient.getResult()},
                      w.getDimSize(0), w.getDimSize(2), w.getDimSize(1)) ||
      !hasManyRows(w.getDimSize(0), z.getDimSize(0)))
    return std::nullopt;
  for (OpOperand &use : select.getRows().getUses()) {
    if (use.getOwner() == parts.product)
      continue;
    auto weights = dyn_cast<moe::GroupedWeightGradOp>(use.getOwner());
    if (!weights || parts.weights || use.get() != weights.getDy() || weights.getSamples() ||
        weights.getGroups() != select.getGroups() || !isGluOf(weights.getRows(), gradient) ||
        weights->getBlock() != block || weights->isBeforeInBlock(parts.last))
      return std::nullopt;
    parts.weights = weights;
  }
  parts.dots = dotsOf(parts);
  return parts;
}

struct FuseGluGradPass : PassWrapper<FuseGluGradPass, OperationPass<func::FuncOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(FuseGluGradPass)
  StringRef getArgument() const final { return "plan-fuse-glu-grad"; }
  StringRef getDescription() const final {
    return "Make one operation of the gradient of experts' gated rows";
  }
  void getDependentDialects(DialectRegistry &registry) const final {
    registry.insert<plan::PlanDialect>();
  }
  void runOnOperation() final {
    SmallVector<Backward> found;
    getOperation().walk([&](moe::GluGradOp gradient) {
      if (std::optional<Backward> parts = match(gradient))
        found.push_back(*parts);
    });
    for (Backward &parts : found)
      fuse(parts);
    numFused += unsigned(found.size());
  }

  void fuse(Backward &parts) {
    moe::GluGradOp gradient = parts.gradient;
    dist::SelectOp select = parts.select;
    select.removeWeightedAttr();
    OpBuilder b(&getContext());
    b.setInsertionPointAfter(parts.last);
    auto pos = cast<RankedTensorType>(select.getPos().getType());
    auto fused = plan::GroupedGluGradOp::create(
        b, gradient.getLoc(), gradient.getType(), gradient.getDy().getType(),
        RankedTensorType::get(pos.getShape(), b.getF32Type(), pos.getEncoding()), select.getRows(),
        select.getGroups(), select.getPos(), select.getRouting(), parts.product.getW(),
        gradient.getX(), gradient.getActivationAttr(), gradient.getLimitAttr(),
        gradient.getAlphaAttr(), gradient.getUpShiftAttr());
    if (parts.weights)
      parts.weights.getRowsMutable().assign(fused.getAct());
    if (parts.dots) {
      parts.dots.getResult().replaceAllUsesWith(fused.getDots());
      parts.dots->erase();
    }
    gradient.getResult().replaceAllUsesWith(fused.getDz());
    gradient->erase();
    parts.product->erase();
  }

  Statistic numFused{this, "fused", "gradients of gated rows in one operation"};
};

} // namespace

std::unique_ptr<Pass> moira::createPlanFuseGluGradPass() {
  return std::make_unique<FuseGluGradPass>();
}
