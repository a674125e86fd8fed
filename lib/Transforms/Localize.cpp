//===- Localize.cpp - --dist-localize -------------------------------------===//
// From global types to one program for all ranks: shapes become those of one shard, shardings leave
// the types, and what depends on the rank becomes a #dist.offset attribute. Two things still need
// the global view and keep it: moe.state (weights are read by their global boxes) and the attribute
// `dist.global` on arguments and results of programs, and on moe.route, whose choices can be
// looked at whole.
//
// The rows of a slot stay visible in types as #dist.rows<dim, scale>: that dimension has scale·B
// elements, B known only at run time.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTLOCALIZE
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

namespace {
struct Localize : moira::impl::DistLocalizeBase<Localize> {
  void runOnOperation() override {
    mesh = dist::getMesh(getOperation());
    bad = false;
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>())
      if (!func.isExternal())
        localize(func);
    if (bad)
      signalPassFailure();
  }

private:
  MeshInfo mesh;
  bool bad;

  void localize(func::FuncOp func) {
    SmallVector<Value> values(func.getArguments());
    for (Operation &op : func.front())
      llvm::append_range(values, op.getResults());
    for (Value value : values)
      if (isShardable(value.getType()) && !shardingOf(value)) {
        emitError(value.getLoc(), "MOE-0601: a value without a sharding cannot be localised: ")
            << value.getType();
        bad = true;
      }
    if (bad)
      return;
    // Offsets first, while the types still say how values are cut.
    for (Operation &op : func.front())
      setOffsets(&op);
    keepGlobalTypes(func);
    // Which slots grow is found by walking forward, so types are computed before any of them
    // changes.
    llvm::DenseSet<Value> slots;
    SmallVector<Type> types;
    for (Value value : values)
      types.push_back(localType(value, isSlots(value, slots)));
    for (auto [value, type] : llvm::zip(values, types)) {
      this->values += isShardable(type) && shardableShape(type) != shardableShape(value.getType());
      value.setType(type);
    }
    updateFunctionType(func);
  }

  void setOffsets(Operation *op) {
    if (auto rule = dyn_cast<ShardingRuleInterface>(op)) {
      rule.localize(mesh, shardingsOf(op->getOperands()), shardingsOf(op->getResults()));
    } else if (auto slice = dyn_cast<dist::SliceOp>(op)) {
      ArrayRef<int64_t> shape = shardableShape(slice.getType());
      DimShardingAttr dim = shardingOf(slice.getResult()).getDims()[slice.getDim()];
      slice.setStartAttr(offset(slice.getAxes().getAsRange<StringAttr>(),
                                dist::localSize(shape[slice.getDim()], dim, mesh)));
    } else if (auto select = dyn_cast<dist::SelectOp>(op)) {
      auto groups = cast<RankedTensorType>(select.getGroups().getType());
      DimShardingAttr experts = shardingOf(select.getGroups()).getDims()[1];
      if (!experts.getAxes().empty())
        select.setExpertOffsetAttr(
            offset(experts.getAxes(), dist::localSize(groups.getDimSize(1), experts, mesh)));
    }
  }

  template <typename Range> dist::OffsetAttr offset(Range &&axes, int64_t stride) {
    return dist::OffsetAttr::get(&getContext(), llvm::to_vector(axes), stride);
  }

  void keepGlobalTypes(func::FuncOp func) {
    for (BlockArgument argument : func.getArguments())
      func.setArgAttr(argument.getArgNumber(), "dist.global", TypeAttr::get(argument.getType()));
    for (auto [index, type] : llvm::enumerate(func.getResultTypes()))
      func.setResultAttr(index, "dist.global", TypeAttr::get(type));
    for (auto route : func.getOps<moe::RouteOp>())
      route->setAttr("dist.global", TypeAttr::get(route.getType()));
  }

  /// Slots of an exchange: [G,P,B,D], made by pack and ungroup and moved by all_to_all.
  static bool isSlots(Value value, llvm::DenseSet<Value> &slots) {
    Operation *op = value.getDefiningOp();
    bool result = false;
    if (auto pack = dyn_cast_or_null<dist::PackOp>(op))
      result = value == pack.getSlots();
    else if (auto move = dyn_cast_or_null<dist::AllToAllOp>(op))
      result = slots.contains(move.getX());
    else
      result = isa_and_present<dist::UngroupOp>(op);
    if (result)
      slots.insert(value);
    return result;
  }

  Type localType(Value value, bool isSlots) {
    if (!isShardable(value.getType()))
      return value.getType();
    ShardingAttr sharding = shardingOf(value);
    SmallVector<int64_t> shape = dist::localShape(shardableShape(value.getType()), sharding, mesh);
    if (llvm::is_contained(shape, -1)) {
      emitError(value.getLoc(), "MOE-0601: the mesh does not divide ") << value.getType();
      bad = true;
      return value.getType();
    }
    if (auto routing = dyn_cast<moe::RoutingType>(value.getType()))
      return moe::RoutingType::get(&getContext(), shape, routing.getExperts(), routing.getK(), {});
    Attribute encoding;
    if (isSlots)
      encoding = dist::RowsAttr::get(&getContext(), 2, 1);
    for (auto [index, dim] : llvm::enumerate(sharding.getDims()))
      if (dim.isGrowable())
        encoding = dist::RowsAttr::get(&getContext(), index, dim.getSlots());
    return RankedTensorType::get(shape, cast<RankedTensorType>(value.getType()).getElementType(),
                                 encoding);
  }
};
} // namespace
