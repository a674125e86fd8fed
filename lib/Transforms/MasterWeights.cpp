//===- MasterWeights.cpp - --moe-master-weights ---------------------------===//
// Weights that are updated keep more digits than products take: every state with a gradient becomes
// f32, and what multiplies by it gets it rounded to the type that it had (mixed precision,
// Micikevicius et al. 2018, arXiv:1710.03740). The rounding stands right behind the parameter, so
// that what a mesh gathers of a weight is the narrow copy. Tables whose rows are taken as they are
// need none.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_MOEMASTERWEIGHTS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct MasterWeights : moira::impl::MoeMasterWeightsBase<MasterWeights> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    for (func::FuncOp func : module.getOps<func::FuncOp>())
      for (unsigned i = 0; i < func.getNumResults(); ++i)
        if (auto of = func.getResultAttrOfType<FlatSymbolRefAttr>(i, "moe.gradient_of"))
          if (auto state = module.lookupSymbol<moe::StateOp>(of.getAttr()))
            widen(state);
  }

  void widen(moe::StateOp state) {
    RankedTensorType narrow = state.getTensorType();
    if (narrow.getElementType().isF32())
      return;
    auto wide = RankedTensorType::get(narrow.getShape(), Float32Type::get(&getContext()));
    state.setType(wide);
    ++states;
    getOperation().walk([&](moe::ParamOp param) {
      if (param.getState() != state.getSymName())
        return;
      param.getResult().setType(wide);
      OpBuilder b(&getContext());
      b.setInsertionPointAfter(param);
      Value rounded;
      for (OpOperand &use : llvm::make_early_inc_range(param->getUses())) {
        if (isa<moe::EmbeddingOp, moe::EmbeddingGradOp>(use.getOwner()))
          continue;
        if (!rounded)
          rounded = moe::toElement(b, param, narrow.getElementType());
        use.set(rounded);
      }
    });
  }
};
} // namespace
