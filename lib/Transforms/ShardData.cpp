//===- ShardData.cpp - --dist-shard-data ----------------------------------===//
// Decides how tokens are split (decideTokenSplit), once for each stack, and seeds it where a stack
// begins: at its embedding. Inputs are cut over dp only, because ids and masks are small and every
// rank of an ep group needs other parts of them: tokens where it works, keys where it attends.
//
// Where the sequence is cut, attention's queries see their own positions and all keys'. Positions
// are computed, not data, so each gets an op of its own rather than a gather. Positions that count
// tokens are made of whole rows of ids, and cut as the tokens are.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Analysis/Mesh.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTSHARDDATA
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

namespace {
struct ShardData : moira::impl::DistShardDataBase<ShardData> {
  void runOnOperation() override {
    MeshInfo mesh = dist::getMesh(getOperation());
    for (func::FuncOp func : getOperation().getOps<func::FuncOp>()) {
      if (func.isExternal())
        continue;
      func.walk([&](moe::EmbeddingOp op) { seedStack(op, mesh); });
      updateFunctionType(func);
    }
  }

  void seed(Value value, ShardingAttr sharding) {
    setSharding(value, sharding);
    ++seeds;
  }

  void seedStack(moe::EmbeddingOp op, const MeshInfo &mesh) {
    ArrayRef<int64_t> ids = shardableShape(op.getIds().getType());
    if (ids.empty())
      return;
    int64_t batch = ids[0], sequence = ids.size() > 1 ? ids[1] : 1;
    TokenSplit split = decideTokenSplit(mesh, batch, sequence);
    auto cut = [&](ArrayRef<StringAttr> axes) {
      return DimShardingAttr::split(&getContext(), axes);
    };
    ShardingAttr tokens =
        ShardingAttr::replicated(&getContext(), ids.size() + 1).withDim(0, cut(split.batch));
    if (ids.size() > 1)
      tokens = tokens.withDim(1, cut(split.sequence));
    seed(op.getResult(), tokens);
    for (Operation *user : op.getIds().getUsers())
      if (auto positions = dyn_cast<moe::TokenPositionsOp>(user))
        if (!shardingOf(positions.getResult()))
          seed(positions.getResult(),
               ShardingAttr::get(&getContext(), tokens.getDims().drop_back()));

    auto func = op->getParentOfType<func::FuncOp>();
    for (BlockArgument argument : func.getArguments())
      if (isShardable(argument.getType()) && !shardingOf(argument)) {
        ArrayRef<int64_t> shape = shardableShape(argument.getType());
        ShardingAttr sharding = ShardingAttr::replicated(&getContext(), shape.size());
        // What has one dimension is a setting, not a value a row.
        if (shape.size() > 1 && shape[0] == batch)
          sharding = sharding.withDim(0, cut(axisIfPresent(mesh, kDataAxis)));
        seed(argument, sharding);
      }
    if (!split.sequence.empty())
      seedPositions(func, sequence, cut(split.sequence));
  }

  /// True where an op takes positions of keys.
  static bool isOfKeys(OpOperand &use) {
    if (auto attention = dyn_cast<moe::AttentionOp>(use.getOwner()))
      return &use == &attention.getKposMutable();
    if (auto bias = dyn_cast<moe::RelativeBiasOp>(use.getOwner()))
      return &use == &bias.getKposMutable();
    if (auto attention = dyn_cast<moe::AttentionGradOp>(use.getOwner()))
      return &use == &attention.getKposMutable();
    if (auto bias = dyn_cast<moe::RelativeBiasGradOp>(use.getOwner()))
      return &use == &bias.getKposMutable();
    return false;
  }

  void seedPositions(func::FuncOp func, int64_t sequence, DimShardingAttr cut) {
    SmallVector<moe::PositionsOp> all;
    func.walk([&](moe::PositionsOp op) {
      if (op.getType().getDimSize(0) == sequence && !shardingOf(op))
        all.push_back(op);
    });
    for (moe::PositionsOp queries : all) {
      moe::PositionsOp keys;
      for (OpOperand &use : llvm::make_early_inc_range(queries->getUses())) {
        if (!isOfKeys(use))
          continue;
        if (!keys) {
          OpBuilder b(queries);
          keys = cast<moe::PositionsOp>(b.clone(*queries));
          seed(keys.getResult(), ShardingAttr::replicated(&getContext(), 1));
        }
        use.set(keys);
      }
      seed(queries.getResult(), ShardingAttr::get(&getContext(), {cut}));
    }
  }
};
} // namespace
