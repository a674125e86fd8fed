//===- VerifyPartition.cpp - --dist-verify-partition ----------------------===//
// What the phase partition promises: every communication is explicit (no reshard, dispatch or
// combine is left), and tokens are never gathered on their way from the router through the experts.
// Gathers that remain can be listed, because a large one is what makes a mesh slow without anybody
// noticing.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"
#include "llvm/ADT/SetVector.h"

namespace moira {
#define GEN_PASS_DEF_DISTVERIFYPARTITION
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::ShardingAttr;

namespace {
struct VerifyPartition : moira::impl::DistVerifyPartitionBase<VerifyPartition> {
  using DistVerifyPartitionBase::DistVerifyPartitionBase;

  void runOnOperation() override {
    MeshInfo mesh = dist::getMesh(getOperation());
    bad = false;
    getOperation().walk([&](Operation *op) {
      if (isa<dist::ReshardOp, moe::DispatchOp, moe::CombineOp, moe::ChoiceDotsOp>(op))
        error(op) << op->getName().getStringRef() << " is left";
      if (isGrouped(op) && isa<moe::RoutingType>(op->getOperand(1).getType()))
        error(op) << "groups are still a routing";
      if (isa<dist::PackOp, dist::SelectOp>(op))
        checkEntry(op);
      if (isa<dist::UnpackOp, dist::MergeOp>(op))
        checkExperts(op);
      if (auto gather = dyn_cast<dist::AllGatherOp>(op))
        remark(gather, mesh);
    });
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal())
        checkTypes(func);
    if (bad)
      signalPassFailure();
  }

private:
  bool bad;

  /// Ops on rows by expert, whose second operand are the groups.
  static bool isGrouped(Operation *op) {
    return isa<moe::GroupedMatmulOp, moe::GroupedBiasOp, moe::GroupedInputGradOp,
               moe::GroupedWeightGradOp, moe::GroupedBiasGradOp>(op);
  }

  /// At the location only: the operation may be a whole function.
  InFlightDiagnostic error(Operation *op) {
    bad = true;
    return emitError(op->getLoc(), "MOE-0601: ");
  }

  void checkTypes(func::FuncOp func) {
    for (auto [index, sharding] :
         llvm::enumerate(shardingsOf(func.front().getTerminator()->getOperands())))
      if (sharding && sharding.isPartial())
        error(func) << "result " << index << " of the program is partial";
    func.walk([&](Operation *op) {
      for (Value result : op->getResults())
        if (isShardable(result.getType()) && !shardingOf(result))
          error(op) << op->getName().getStringRef() << " has a result without a sharding";
    });
  }

  /// Tokens enter the experts as they are: neither they nor their routing were gathered for it.
  void checkEntry(Operation *op) {
    for (Value operand : {op->getOperand(0), op->getOperand(1)}) {
      if (auto route = operand.getDefiningOp<moe::RouteOp>())
        operand = route.getLogits();
      if (auto gather = operand.getDefiningOp<dist::AllGatherOp>())
        error(gather) << "tokens are gathered between router and experts";
    }
  }

  /// Walks back from the end of an expert block to its beginning.
  void checkExperts(Operation *end) {
    llvm::SetVector<Operation *> path;
    auto push = [&](Value value) {
      Operation *op = value.getDefiningOp();
      if (op && !isa<moe::ParamOp, moe::RouteOp>(op))
        path.insert(op);
    };
    push(end->getOperand(0));
    push(end->getOperand(1));
    for (size_t i = 0; i < path.size(); ++i) {
      if (isa<dist::PackOp, dist::SelectOp>(path[i]))
        continue;
      if (auto gather = dyn_cast<dist::AllGatherOp>(path[i]);
          gather && !isPartOfWeight(gather.getX()))
        error(path[i]) << "rows are gathered between router and combine";
      for (Value operand : path[i]->getOperands())
        push(operand);
    }
  }

  void remark(dist::AllGatherOp gather, const MeshInfo &mesh) {
    auto type = dyn_cast<RankedTensorType>(gather.getType());
    if (!type) // a routing: 8 bytes a choice, no rows
      return;
    ShardingAttr sharding = shardingOf(gather.getResult());
    if (gatherRemarkBytes <= 0 || !sharding)
      return;
    int64_t bytes = type.getElementTypeBitWidth() / 8;
    for (int64_t size : dist::localShape(type.getShape(), sharding, mesh))
      bytes *= size;
    if (bytes < gatherRemarkBytes)
      return;
    ++largeGathers;
    gather.emitRemark("all_gather over ")
        << gather.getAxes() << " makes " << bytes << " bytes on every rank";
  }
};
} // namespace
