//===- ExpandNorms.cpp - --dist-expand-norms ------------------------------===//
// A norm over a cut dimension (olmoe's q and k norms under tp) needs the sum of squares of all
// shards: one small reduction, a number a token, instead of gathering the projection.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTEXPANDNORMS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::ShardingAttr;

namespace {
struct ExpandNorms : moira::impl::DistExpandNormsBase<ExpandNorms> {
  void runOnOperation() override {
    getOperation().walk([&](moe::RmsNormOp op) { expand(op); });
  }

  void expand(moe::RmsNormOp op) {
    ShardingAttr x = shardingOf(op.getX());
    if (!x)
      return;
    auto type = cast<RankedTensorType>(op.getX().getType());
    int64_t normDims = cast<RankedTensorType>(op.getW().getType()).getRank();
    int64_t leading = type.getRank() - normDims, count = 1;
    SmallVector<StringAttr> axes;
    for (dist::DimShardingAttr dim : x.getDims().drop_front(leading))
      llvm::append_range(axes, dim.getAxes());
    if (axes.empty())
      return;
    for (int64_t size : type.getShape().drop_front(leading))
      count *= size;

    OpBuilder b(op);
    ShardingAttr complete = ShardingAttr::get(&getContext(), x.getDims().take_front(leading));
    auto sumType = [&](ShardingAttr sharding) {
      return RankedTensorType::get(type.getShape().take_front(leading), b.getF32Type(), sharding);
    };
    MeshInfo mesh = dist::getMesh(getOperation());
    ShardingAttr partial = canonicalPartial(complete.withPartial(axes), mesh);
    Value squares =
        moe::SumSquaresOp::create(b, op.getLoc(), sumType(partial), op.getX(), normDims);
    Value sum = dist::ReshardOp::create(b, op.getLoc(), sumType(complete), squares,
                                        b.getStringAttr("moe.rms_norm over cut dimensions"));
    auto apply = moe::RmsApplyOp::create(b, op.getLoc(), op.getType(), op.getX(), sum, op.getW(),
                                         op.getEpsAttr(), b.getI64IntegerAttr(count));
    op.replaceAllUsesWith(apply.getResult());
    op.erase();
    ++expanded;
  }
};
} // namespace
