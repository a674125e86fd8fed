//===- ShardExpert.cpp - --dist-shard-expert ------------------------------===//
// Expert parallelism is two seeds: the experts' weights are split over ep, and every dispatch is
// told so. Whether rows then move or are selected follows from how the tokens are split.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Analysis/Mesh.h"
#include "moira/Analysis/WeightUses.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTSHARDEXPERT
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;

namespace {
struct ShardExpert : moira::impl::DistShardExpertBase<ShardExpert> {
  using DistShardExpertBase::DistShardExpertBase;

  void runOnOperation() override {
    ModuleOp module = getOperation();
    SmallVector<StringAttr> axes = axisIfPresent(dist::getMesh(module), kExpertAxis);
    Builder b(module);
    module.walk([&](moe::DispatchOp op) {
      SmallVector<Attribute> names(axes.begin(), axes.end());
      if (!axes.empty())
        op.setExpertAxesAttr(b.getArrayAttr(names));
      if (!axes.empty() && raggedBound > 0)
        op.setBoundAttr(b.getI64IntegerAttr(raggedBound));
    });
    if (axes.empty())
      return;
    StateTable states(module);
    for (const WeightUse &use : collectWeightUses(module)) {
      if (use.meaning != DimMeaning::experts)
        continue;
      if (failed(states.cutDim(use.state, use.dim, DimShardingAttr::split(&getContext(), axes))))
        return signalPassFailure();
      ++seeds;
    }
  }
};
} // namespace
