//===- OptimizeCollectives.cpp - --dist-optimize-collectives --------------===//
// What is cheaper said otherwise. Propagation and planReshard mostly make the good form at once;
// this catches what two of their decisions, or an edit by hand, make together:
//   all_reduce, then slice                → reduce_scatter  (half the bytes)
//   all_reduce(a) + b + all_reduce(c)     → all_reduce(a + c) + b
//   the same collective of the same value → once
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"
#include "llvm/ADT/MapVector.h"

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
        if (!getOperation()->hasAttr(moe::MoeDialect::kDeterministic) || isExact(add))
          reduceSum(add);
    }
  }

  /// Whether sums are what they are in any order: of exact squares.
  static bool isExact(Value sum) {
    while (Operation *op = sum.getDefiningOp())
      if (isa<moe::AddOp, dist::AllReduceOp>(op))
        sum = op->getOperand(0);
      else
        return isa<moe::SquaresOp>(op) && cast<moe::SquaresOp>(op).getExact();
    return false;
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

  /// The reduction that nobody but a sum reads; null for other terms.
  static dist::AllReduceOp reductionOf(Value term) {
    auto reduce = term.getDefiningOp<dist::AllReduceOp>();
    bool mayMove = reduce && reduce->hasOneUse() && reduce.getKind() == dist::ReduceKind::sum;
    return mayMove ? reduce : dist::AllReduceOp();
  }

  /// Adds values of one type: no bias, nothing that is rounded.
  static bool isPlain(moe::AddOp add) {
    return add && add.getA().getType() == add.getType() && add.getB().getType() == add.getType();
  }

  /// The terms of a sum whose partial sums nobody else reads, in their order.
  static void collectTerms(moe::AddOp add, SmallVectorImpl<Value> &terms,
                           SmallVectorImpl<moe::AddOp> &inner) {
    for (Value operand : {add.getA(), add.getB()})
      if (auto part = operand.getDefiningOp<moe::AddOp>(); isPlain(part) && part->hasOneUse()) {
        collectTerms(part, terms, inner);
        inner.push_back(part);
      } else {
        terms.push_back(operand);
      }
  }

  /// Whether it is a term of another sum only.
  static bool isInner(moe::AddOp add) {
    return add->hasOneUse() && isPlain(dyn_cast<moe::AddOp>(*add->user_begin()));
  }

  static Value sumOf(OpBuilder &b, Location loc, ArrayRef<Value> terms) {
    Value sum;
    for (Value term : terms)
      sum = sum ? moe::AddOp::create(b, loc, sum.getType(), sum, term).getResult() : term;
    return sum;
  }

  /// Terms that are reduced over the same axes are added first.
  void reduceSum(moe::AddOp sum) {
    if (!isPlain(sum) || isInner(sum))
      return;
    SmallVector<Value> terms;
    SmallVector<moe::AddOp> inner;
    collectTerms(sum, terms, inner);
    llvm::MapVector<std::pair<Attribute, Type>, SmallVector<Value>> groups; // by axes
    SmallVector<Value> rest;
    for (Value term : terms) {
      if (dist::AllReduceOp reduce = reductionOf(term))
        groups[{reduce.getAxes(), reduce.getX().getType()}].push_back(term);
      else
        rest.push_back(term);
    }
    if (llvm::all_of(groups, [](auto &group) { return group.second.size() < 2; }))
      return;
    OpBuilder b(sum);
    SmallVector<Value> reduced;
    for (auto &[key, group] : groups) {
      SmallVector<Value> parts;
      for (Value term : group)
        parts.push_back(reductionOf(term).getX());
      reduced.push_back(dist::AllReduceOp::create(
          b, sum.getLoc(), group.front().getType(), sumOf(b, sum.getLoc(), parts),
          cast<ArrayAttr>(key.first), dist::ReduceKind::sum));
      summed += group.size() - 1;
    }
    llvm::append_range(reduced, rest);
    sum.replaceAllUsesWith(sumOf(b, sum.getLoc(), reduced));
    sum.erase();
    for (moe::AddOp add : llvm::reverse(inner))
      add.erase();
    for (auto &[key, group] : groups)
      for (Value term : group)
        term.getDefiningOp()->erase();
  }
};
} // namespace
