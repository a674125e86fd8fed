//===- VerifyShard.cpp - --dist-verify-shard ------------------------------===//
// What the phase shard promises: every value has a sharding, its axes are the mesh's and divide it,
// every operation's shardings are what its rule says (so that only linear operations take partial
// sums), and no result of a program is left partial. That no axis stands twice is the attribute's
// own verifier. Edited IR comes through here too, so all problems are listed.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTVERIFYSHARD
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

namespace {
struct VerifyShard : moira::impl::DistVerifyShardBase<VerifyShard> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    mesh = dist::getMesh(module);
    bad = false;
    for (moe::StateOp state : module.getOps<moe::StateOp>())
      checkType(state.getTensorType(), state.getLoc(), "state @" + state.getSymName());
    for (func::FuncOp func : module.getOps<func::FuncOp>()) {
      if (func.isExternal())
        continue;
      bound = 0;
      bool whole = true;
      for (BlockArgument argument : func.getArguments())
        whole &= checkType(argument.getType(), func.getLoc(),
                           "argument " + Twine(argument.getArgNumber()));
      func.walk([&](Operation *op) {
        for (OpResult result : op->getResults())
          whole &= checkType(result.getType(), op->getLoc(),
                             "result " + Twine(result.getResultNumber()) + " of " +
                                 op->getName().getStringRef());
      });
      // Rules only make sense where all types do.
      if (whole)
        func.walk([&](Operation *op) { checkOp(op); });
    }
    if (bad)
      signalPassFailure();
  }

private:
  MeshInfo mesh;
  bool bad;
  int64_t bound = 0; // of the function at hand

  InFlightDiagnostic error(Location loc) {
    bad = true;
    return emitError(loc) << "MOE-0601: ";
  }

  bool checkType(Type type, Location loc, const Twine &what) {
    if (!isShardable(type))
      return true;
    ShardingAttr sharding = dist::getSharding(type);
    if (!sharding) {
      error(loc) << what << " has no sharding: " << type;
      return false;
    }
    for (StringAttr axis : sharding.usedAxes())
      if (mesh.sizeOf(axis.getValue()) == 1) {
        error(loc) << what << ": the mesh has no axis " << axis << ": " << type;
        return false;
      }
    for (auto [size, dim] : llvm::zip(shardableShape(type), sharding.getDims())) {
      if (!checkDim(size, dim, loc, what))
        return false;
    }
    return true;
  }

  bool checkDim(int64_t size, DimShardingAttr dim, Location loc, const Twine &what) {
    if (dim.isGrowable()) {
      if (bound && bound != dim.getBound()) {
        error(loc) << what << ": a program has one bound, here are " << bound << " and "
                   << dim.getBound();
        return false;
      }
      bound = dim.getBound();
    }
    int64_t parts = mesh.sizeOf(dim.getAxes());
    if (dim.isRagged() || ((size + dim.getPad()) % parts == 0 && dim.getPad() < parts))
      return true;
    error(loc) << what << ": " << parts << " shards do not divide a dimension of " << size
               << " with a pad of " << dim.getPad();
    return false;
  }

  void checkOp(Operation *op) {
    if (auto ret = dyn_cast<func::ReturnOp>(op)) {
      for (auto [index, sharding] : llvm::enumerate(shardingsOf(ret.getOperands())))
        if (sharding && sharding.isPartial())
          error(op->getLoc()) << "result " << index << " of the program is partial";
    } else if (auto norm = dyn_cast<moe::RmsNormOp>(op)) {
      checkWhole(op, norm.getW());
    } else if (auto grad = dyn_cast<moe::RmsNormGradOp>(op); grad && !grad.getSs()) {
      checkWhole(op, grad.getW());
    }
    if (auto rule = dyn_cast<ShardingRuleInterface>(op))
      checkRule(rule);
  }

  void checkWhole(Operation *norm, Value weight) {
    for (DimShardingAttr dim : shardingOf(weight).getDims())
      if (!dim.isReplicated())
        error(norm->getLoc()) << "a norm over a cut dimension; run --dist-expand-norms";
  }

  void checkRule(ShardingRuleInterface op) {
    SmallVector<ShardingAttr> operands = shardingsOf(op->getOperands());
    SmallVector<ShardingAttr> results = shardingsOf(op->getResults());
    RuleSolution solution = solveRule(&getContext(), op.getFactorRule(), operands, results);
    for (auto [index, have, want] : llvm::enumerate(operands, solution.operands))
      if (have != canonicalPartial(want, mesh)) {
        error(op->getLoc()) << op->getName().getStringRef() << " operand " << index << " has "
                            << have << ", its rule needs " << want;
        return;
      }
    if (failed(op.refineResultShardings(mesh, operands, solution.results))) {
      bad = true;
      return;
    }
    for (auto [index, have, want] : llvm::enumerate(results, solution.results))
      if (withBound(have, 1) != withBound(canonicalPartial(want, mesh), 1)) {
        error(op->getLoc()) << op->getName().getStringRef() << " result " << index << " has "
                            << have << ", its rule gives " << want;
        return;
      }
    if (isa<moe::GroupedMatmulOp, moe::GroupedBiasOp, moe::GroupedInputGradOp>(op.getOperation())) {
      DimShardingAttr rows = operands[0].getDims()[0], experts = operands[2].getDims()[0];
      if (rows.getExpertAxes() != experts.getAxes())
        error(op->getLoc()) << "rows of experts split as " << rows
                            << " meet weights whose experts are split as " << experts;
    }
  }
};
} // namespace
