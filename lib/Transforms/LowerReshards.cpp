//===- LowerReshards.cpp - --dist-lower-reshards --------------------------===//
// A reshard says what is wanted; planReshard says how. Steps that lead from one value through the
// same shardings are shared (see also --dist-optimize-collectives).
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTLOWERRESHARDS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct LowerReshards : moira::impl::DistLowerReshardsBase<LowerReshards> {
  void runOnOperation() override {
    bool bad = false;
    getOperation().walk([&](dist::ReshardOp op) { bad |= failed(lower(op)); });
    if (bad)
      signalPassFailure();
  }

  LogicalResult lower(dist::ReshardOp op) {
    auto steps = planReshard(shardingOf(op.getX()), shardingOf(op.getResult()));
    if (!steps)
      return op.emitOpError("MOE-0601: no collective leads from ")
             << shardingOf(op.getX()) << " to " << shardingOf(op.getResult())
             << "; ragged and padded dimensions keep their sharding";
    OpBuilder b(op);
    Value value = op.getX();
    // A routing is never partial, and only its gathers and slices have a form.
    if (isa<moe::RoutingType>(op.getType()) && llvm::any_of(*steps, [](const ReshardStep &step) {
          return step.kind != ReshardKind::slice && step.kind != ReshardKind::allGather;
        }))
      return op.emitOpError("MOE-0601: a routing cannot go from ")
             << shardingOf(op.getX()) << " to " << shardingOf(op.getResult());
    for (const ReshardStep &step : *steps)
      value = make(b, op.getLoc(), value, step);
    op.replaceAllUsesWith(value);
    op.erase();
    return success();
  }

  Value make(OpBuilder &b, Location loc, Value x, const ReshardStep &step) {
    Type type = dist::withSharding(x.getType(), step.result);
    dist::ReduceKind kind = shardingOf(x).getPartialKind();
    ArrayAttr axes = b.getArrayAttr(SmallVector<Attribute>(step.axes.begin(), step.axes.end()));
    if (step.kind == ReshardKind::slice)
      ++slices;
    else
      ++collectives;
    switch (step.kind) {
    case ReshardKind::slice:
      return dist::SliceOp::create(b, loc, type, x, step.dim, axes, dist::OffsetAttr());
    case ReshardKind::reduceScatter:
      return dist::ReduceScatterOp::create(b, loc, type, x, step.dim, axes, kind);
    case ReshardKind::allToAll:
      return dist::AllToAllOp::create(b, loc, type, x, step.dim, step.toDim, axes);
    case ReshardKind::allReduce:
      return dist::AllReduceOp::create(b, loc, type, x, axes, kind);
    case ReshardKind::allGather:
      return dist::AllGatherOp::create(b, loc, type, x, step.dim, axes);
    }
    llvm_unreachable("all kinds are handled");
  }
};
} // namespace
