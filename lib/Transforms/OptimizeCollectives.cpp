//===- OptimizeCollectives.cpp - --dist-optimize-collectives --------------===//
// What is cheaper said otherwise. Propagation and planReshard mostly make the good form at once;
// this catches what two of their decisions, or an edit by hand, make together:
//   all_reduce, then slice                → reduce_scatter  (half the bytes)
//   all_reduce(a) + all_reduce(b)         → all_reduce(a + b)
//   the same collective of the same value → once
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTOPTIMIZECOLLECTIVES
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::ShardingAttr;

namespace {
struct OptimizeCollectives : moira::impl::DistOptimizeCollectivesBase<OptimizeCollectives> {
  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>()) {
      if (func.isExternal())
        continue;
      removeDuplicates(func); // first: a value reduced twice would look like one with two uses
      for (auto slice : llvm::make_early_inc_range(func.getOps<dist::SliceOp>()))
        scatter(slice);
      for (auto add : llvm::make_early_inc_range(func.getOps<moe::AddOp>()))
        reduceSum(add);
    }
  }

  static bool isCollective(Operation &op) {
    return isa<dist::AllReduceOp, dist::AllGatherOp, dist::ReduceScatterOp, dist::AllToAllOp,
               dist::SliceOp>(op);
  }

  void removeDuplicates(func::FuncOp func) {
    llvm::DenseMap<Value, SmallVector<Operation *>> byOperand;
    for (Operation &op : llvm::make_early_inc_range(func.front())) {
      if (!isCollective(op))
        continue;
      SmallVector<Operation *> &seen = byOperand[op.getOperand(0)];
      auto *same = llvm::find_if(seen, [&](Operation *other) {
        return other->getName() == op.getName() && other->getResultTypes() == op.getResultTypes() &&
               other->getPropertiesAsAttribute() == op.getPropertiesAsAttribute();
      });
      if (same == seen.end()) {
        seen.push_back(&op);
        continue;
      }
      op.replaceAllUsesWith(*same);
      op.erase();
      ++duplicates;
    }
  }

  /// slice(all_reduce(x)): the ranks that sum up need only a part each.
  void scatter(dist::SliceOp slice) {
    auto reduce = slice.getX().getDefiningOp<dist::AllReduceOp>();
    if (!reduce || !reduce->hasOneUse() || reduce.getAxes() != slice.getAxes())
      return;
    OpBuilder b(slice);
    Value scattered =
        dist::ReduceScatterOp::create(b, reduce.getLoc(), slice.getType(), reduce.getX(),
                                      slice.getDim(), slice.getAxes(), reduce.getKind());
    slice.replaceAllUsesWith(scattered);
    slice.erase();
    reduce.erase();
    ++this->scattered;
  }

  /// all_reduce(a) + all_reduce(b)
  void reduceSum(moe::AddOp add) {
    auto a = add.getA().getDefiningOp<dist::AllReduceOp>(),
         b = add.getB().getDefiningOp<dist::AllReduceOp>();
    if (!a || !b || a == b || !a->hasOneUse() || !b->hasOneUse() ||
        a.getX().getType() != b.getX().getType() || a.getAxes() != b.getAxes() ||
        a.getKind() != dist::ReduceKind::sum || b.getKind() != dist::ReduceKind::sum)
      return;
    OpBuilder builder(add);
    Value sum = moe::AddOp::create(builder, add.getLoc(), a.getX().getType(), a.getX(), b.getX());
    Value reduced = dist::AllReduceOp::create(builder, add.getLoc(), add.getType(), sum,
                                              a.getAxes(), dist::ReduceKind::sum);
    add.replaceAllUsesWith(reduced);
    add.erase();
    a.erase();
    b.erase();
    ++summed;
  }
};
} // namespace
