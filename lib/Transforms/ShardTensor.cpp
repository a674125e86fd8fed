//===- ShardTensor.cpp - --dist-shard-tensor ------------------------------===//
// Tensor parallelism as seeds on weights: first products of a block are cut over their outputs
// (heads, widths), second ones over what they sum up, so that a block needs one reduction. The
// vocabulary is padded to a multiple of the axis: a few rows of zeros cost less than forbidding
// tp=4 for 32,001 words. Key/value heads that tp does not divide stay replicated: each rank reads
// the ones its queries need.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Analysis/Mesh.h"
#include "moira/Analysis/WeightUses.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTSHARDTENSOR
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;

namespace {
struct ShardTensor : moira::impl::DistShardTensorBase<ShardTensor> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    MeshInfo mesh = dist::getMesh(module);
    SmallVector<StringAttr> axes = axisIfPresent(mesh, kTensorAxis);
    if (axes.empty())
      return;
    int64_t parts = mesh.sizeOf(kTensorAxis);
    StateTable states(module);
    for (WeightUse use : collectWeightUses(module)) {
      int64_t size = use.state.getTensorType().getDimSize(use.dim), pad = 0;
      if (use.meaning == DimMeaning::experts)
        continue;
      if (use.meaning == DimMeaning::kvHeads && size % parts) {
        ++replicated;
        continue;
      }
      if (use.meaning == DimMeaning::vocabulary)
        pad = (parts - size % parts) % parts;
      if (failed(
              states.cutDim(use.state, use.dim, DimShardingAttr::split(&getContext(), axes, pad))))
        return signalPassFailure();
      ++seeds;
    }
  }
};
} // namespace
