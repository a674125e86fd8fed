//===- VerifyLocalize.cpp - --dist-verify-localize ------------------------===//
// What the phase localize promises: no type of a program carries a sharding, arguments and results
// of programs and of moe.route have `dist.global` and the local shape that it gives, slices know
// their start, and B is one number.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTVERIFYLOCALIZE
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::ShardingAttr;

namespace {
struct VerifyLocalize : moira::impl::DistVerifyLocalizeBase<VerifyLocalize> {
  void runOnOperation() override {
    MeshInfo mesh = dist::getMesh(getOperation());
    bad = false;
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>()) {
      if (func.isExternal())
        continue;
      bound = 0;
      for (BlockArgument argument : func.getArguments())
        checkGlobal(func, argument.getType(), mesh,
                    func.getArgAttr(argument.getArgNumber(), "dist.global"),
                    "argument " + Twine(argument.getArgNumber()));
      for (auto [index, type] : llvm::enumerate(func.getResultTypes()))
        checkGlobal(func, type, mesh, func.getResultAttr(index, "dist.global"),
                    "result " + Twine(index));
      func.walk([&](Operation *op) { checkOp(op, mesh); });
    }
    if (bad)
      signalPassFailure();
  }

private:
  bool bad;
  int64_t bound;

  /// At the location only: the operation may be a whole function.
  InFlightDiagnostic error(Operation *op) {
    bad = true;
    return emitError(op->getLoc(), "MOE-0601: ");
  }

  void checkGlobal(Operation *op, Type local, const MeshInfo &mesh, Attribute attribute,
                   const Twine &what) {
    if (!isShardable(local))
      return;
    auto global = dyn_cast_if_present<TypeAttr>(attribute);
    Type type = global ? global.getValue() : Type();
    ShardingAttr sharding = type && isShardable(type) ? dist::getSharding(type) : ShardingAttr();
    if (!sharding) {
      error(op) << what << " has no `dist.global` with a sharding";
      return;
    }
    SmallVector<int64_t> shape = dist::localShape(shardableShape(type), sharding, mesh);
    if (ArrayRef<int64_t>(shape) != shardableShape(local))
      error(op) << what << " is " << local << ", its global type " << type
                << " gives another shape";
  }

  void checkOp(Operation *op, const MeshInfo &mesh) {
    if (isa<dist::ReshardOp, moe::DispatchOp, moe::CombineOp>(op))
      error(op) << op->getName().getStringRef() << " is left";
    if (auto slice = dyn_cast<dist::SliceOp>(op); slice && !slice.getStartAttr())
      error(op) << "a slice without a start";
    if (auto route = dyn_cast<moe::RouteOp>(op))
      checkGlobal(op, route.getType(), mesh, op->getAttr("dist.global"), "the routing");
    for (Type type : op->getResultTypes()) {
      if (isShardable(type) && dist::getSharding(type))
        error(op) << op->getName().getStringRef() << " still has a sharding in " << type;
      if (auto tensor = dyn_cast<RankedTensorType>(type))
        checkRows(op, tensor);
    }
  }

  void checkRows(Operation *op, RankedTensorType type) {
    auto rows = dyn_cast_if_present<dist::RowsAttr>(type.getEncoding());
    if (!rows)
      return;
    int64_t dim = rows.getDim(), scale = rows.getScale();
    if (dim < 0 || dim >= type.getRank() || scale < 1 || type.getDimSize(dim) % scale) {
      error(op) << "malformed rows in " << type;
      return;
    }
    int64_t here = type.getDimSize(dim) / scale;
    if (bound && bound != here)
      error(op) << "a program has one bound, here are " << bound << " and " << here;
    bound = here;
  }
};
} // namespace
