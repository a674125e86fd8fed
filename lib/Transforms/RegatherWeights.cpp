//===- RegatherWeights.cpp - --dist-regather-weights ----------------------===//
// A weight that is cut at rest (ZeRO 3) is gathered where it is used, and again for the backward
// pass: keeping the whole from one to the other would hold all weights at once. Uses that stand
// within `distance` operations of each other share a gather. Each gather stands right before the
// first of its uses; how far ahead of it it starts is the scheduler's business.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTREGATHERWEIGHTS
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;

namespace {
struct RegatherWeights : moira::impl::DistRegatherWeightsBase<RegatherWeights> {
  using DistRegatherWeightsBase::DistRegatherWeightsBase;

  void runOnOperation() override {
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal())
        regather(func);
  }

private:
  void regather(func::FuncOp func) {
    llvm::DenseMap<Operation *, int64_t> places;
    for (auto [place, op] : llvm::enumerate(func.front()))
      places[&op] = place;
    for (auto gather : llvm::make_early_inc_range(func.getOps<dist::AllGatherOp>()))
      if (isPartOfWeight(gather.getX()))
        regather(gather, places);
  }

  void regather(dist::AllGatherOp gather, const llvm::DenseMap<Operation *, int64_t> &places) {
    SmallVector<OpOperand *> uses(llvm::make_pointer_range(gather->getUses()));
    llvm::sort(uses, [&](OpOperand *a, OpOperand *b) {
      return places.lookup(a->getOwner()) < places.lookup(b->getOwner());
    });
    Operation *current = nullptr;
    int64_t last = 0;
    for (OpOperand *use : uses) {
      int64_t place = places.lookup(use->getOwner());
      // Which rows a shard has is known without its values.
      bool reads = !isa<moe::EmbeddingGradOp>(use->getOwner());
      if (!current || (reads && place > last + distance)) {
        OpBuilder b(use->getOwner());
        current = b.clone(*gather);
        roundHere(current);
        ++gathers;
      }
      use->set(current->getResult(0));
      last = place;
    }
    Operation *part = gather.getX().getDefiningOp();
    gather.erase();
    if (isOpTriviallyDead(part))
      part->erase();
  }

  /// The rounding of a weight is made again too.
  static void roundHere(Operation *gather) {
    Operation *part = gather->getOperand(0).getDefiningOp();
    if (!isa<moe::ParamOp>(part))
      gather->setOperand(0, OpBuilder(gather).clone(*part)->getResult(0));
  }
};
} // namespace
