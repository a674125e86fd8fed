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
    MeshInfo mesh = dist::getMesh(getOperation());
    getOperation().walk([&](moe::RmsNormOp op) {
      if (std::optional<RowSums> sums = sumsOf(op.getX(), op.getW(), mesh))
        expand(op, *sums);
    });
    getOperation().walk([&](moe::RmsNormGradOp op) {
      if (std::optional<RowSums> sums = sumsOf(op.getX(), op.getW(), mesh); sums && !op.getSs())
        expand(op, *sums);
    });
  }

  /// What sums over the rows of a norm are: a number for each row.
  struct RowSums {
    RankedTensorType partial, complete;
    int64_t normDims, count;
  };

  /// Of a norm whose rows are cut.
  std::optional<RowSums> sumsOf(Value rows, Value weight, const MeshInfo &mesh) {
    ShardingAttr x = shardingOf(rows);
    if (!x)
      return std::nullopt;
    auto type = cast<RankedTensorType>(rows.getType());
    int64_t normDims = cast<RankedTensorType>(weight.getType()).getRank();
    int64_t leading = type.getRank() - normDims, count = 1;
    SmallVector<StringAttr> axes;
    for (dist::DimShardingAttr dim : x.getDims().drop_front(leading))
      llvm::append_range(axes, dim.getAxes());
    if (axes.empty())
      return std::nullopt;
    for (int64_t size : type.getShape().drop_front(leading))
      count *= size;
    ShardingAttr complete = ShardingAttr::get(&getContext(), x.getDims().take_front(leading));
    auto sumType = [&](ShardingAttr sharding) {
      return RankedTensorType::get(type.getShape().take_front(leading),
                                   Float32Type::get(&getContext()), sharding);
    };
    return RowSums{sumType(canonicalPartial(complete.withPartial(axes), mesh)), sumType(complete),
                   normDims, count};
  }

  /// The reduction of a partial sum.
  static Value reduced(OpBuilder &b, Value sum, const RowSums &sums) {
    return dist::ReshardOp::create(b, sum.getLoc(), sums.complete, sum,
                                   b.getStringAttr("moe.rms_norm over cut dimensions"));
  }

  void expand(moe::RmsNormOp op, const RowSums &sums) {
    OpBuilder b(op);
    Value squares =
        moe::SumSquaresOp::create(b, op.getLoc(), sums.partial, op.getX(), sums.normDims);
    auto apply =
        moe::RmsApplyOp::create(b, op.getLoc(), op.getType(), op.getX(), reduced(b, squares, sums),
                                op.getW(), op.getEpsAttr(), b.getI64IntegerAttr(sums.count));
    op.replaceAllUsesWith(apply.getResult());
    op.erase();
    ++expanded;
  }

  void expand(moe::RmsNormGradOp op, const RowSums &sums) {
    OpBuilder b(op);
    auto both = moe::RmsSumsOp::create(b, op.getLoc(), sums.partial, sums.partial, op.getDy(),
                                       op.getX(), op.getW());
    op.getSsMutable().assign(reduced(b, both.getSs(), sums));
    op.getDotMutable().assign(reduced(b, both.getDot(), sums));
    ++expanded;
  }
};
} // namespace
