//===- Propagate.cpp - --dist-propagate -----------------------------------===//
// One forward sweep. An operation's factor rule, the shardings of its operands and the seeds on its
// results give one cut for every factor (solveRule); operands that are laid out otherwise get an
// explicit dist.reshard, weights that nobody seeded take what their first use says. Forward is
// enough, because seeds stand where layouts are decided: at embeddings and at weights.
//
// A partial sum travels on through linear operations, so that a block needs one reduction (a
// token's rows come back from the experts as partial sums). It is completed as soon as one of its
// uses is not linear; then for all of them, once. In a module that is moe.deterministic every
// partial sum is completed where it is made: a sum of partial sums would be made in an order that
// depends on the mesh.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTPROPAGATE
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::ShardingAttr;

namespace {
struct Propagate : moira::impl::DistPropagateBase<Propagate> {
  void runOnOperation() override {
    ModuleOp module = getOperation();
    mesh = dist::getMesh(module);
    deterministic = module->hasAttr(moe::MoeDialect::kDeterministic);
    states.emplace(module);
    made.clear();
    for (func::FuncOp func : module.getOps<func::FuncOp>())
      if (!func.isExternal() && failed(sweep(func)))
        return signalPassFailure();
    for (moe::StateOp state : module.getOps<moe::StateOp>())
      completeSharding(state);
    for (func::FuncOp func : module.getOps<func::FuncOp>())
      unifyBounds(func);
    reshards = made.size();
  }

private:
  /// That of a state which no program cuts.
  ShardingAttr completeSharding(moe::StateOp state) {
    if (!states->getSharding(state))
      states->setSharding(state,
                          ShardingAttr::replicated(&getContext(), state.getTensorType().getRank()));
    return states->getSharding(state);
  }

  MeshInfo mesh;
  bool deterministic = false;
  std::optional<StateTable> states;
  /// One reshard for each value and sharding: uses share it.
  llvm::MapVector<std::pair<Value, Attribute>, Value> made;

  LogicalResult sweep(func::FuncOp func) {
    if (!func.getBody().hasOneBlock())
      return emitError(func.getLoc(),
                       "MOE-0601: a program with control flow cannot be partitioned");
    for (BlockArgument argument : func.getArguments())
      if (isShardable(argument.getType()) && !shardingOf(argument))
        setSharding(argument,
                    ShardingAttr::replicated(&getContext(), shardableRank(argument.getType())));
    for (Operation &op : llvm::make_early_inc_range(func.front())) {
      if (auto rule = dyn_cast<ShardingRuleInterface>(op)) {
        if (failed(visit(rule)))
          return failure();
      } else if (isa<func::ReturnOp>(op)) {
        for (OpOperand &operand : op.getOpOperands())
          if (ShardingAttr sharding = shardingOf(operand.get()))
            reshard(operand, resultSharding(func, operand, sharding));
      } else if (!isa<moe::ParamOp, dist::ReshardOp>(op)) {
        return op.emitOpError("MOE-0601: has no sharding rule");
      }
    }
    updateFunctionType(func);
    return success();
  }

  /// How a program leaves a result: complete, and a gradient as its state lies.
  ShardingAttr resultSharding(func::FuncOp func, OpOperand &operand, ShardingAttr sharding) {
    auto state =
        func.getResultAttrOfType<FlatSymbolRefAttr>(operand.getOperandNumber(), "moe.gradient_of");
    if (!state)
      return sharding.withPartial({});
    return completeSharding(SymbolTable::lookupNearestSymbolFrom<moe::StateOp>(func, state));
  }

  LogicalResult visit(ShardingRuleInterface op) {
    // What rounds a weight is cut as the weight is, which may wait for the first use that says how.
    if (op->getNumResults() == 1 && states->stateOf(op->getResult(0)) &&
        !shardingOf(op->getOperand(0)))
      return success();
    // What is added up over micro-batches lies as it comes, partial sums and all, so that it is
    // reduced once a step, unless somebody has said otherwise.
    if (auto sum = dyn_cast<moe::AccumulateOp>(op.getOperation()))
      if (moe::StateOp state = states->stateOf(sum.getAcc()); state && !states->getSharding(state))
        states->setSharding(state, shardingOf(sum.getX()));
    FactorRule rule = op.getFactorRule();
    SmallVector<ShardingAttr> operands = shardingsOf(op->getOperands());
    SmallVector<ShardingAttr> seeds = shardingsOf(op->getResults());
    RuleSolution solution = solveRule(&getContext(), rule, operands, seeds);
    for (auto [operand, wanted] : llvm::zip(op->getOpOperands(), solution.operands)) {
      if (moe::StateOp state = states->stateOf(operand.get()); state && !shardingOf(operand.get()))
        states->setSharding(state, wanted);
      reshard(operand, canonicalPartial(wanted, mesh));
    }
    if (failed(op.refineResultShardings(mesh, solution.operands, solution.results)))
      return failure();
    for (auto [result, sharding, seed] : llvm::zip(op->getResults(), solution.results, seeds)) {
      sharding = canonicalPartial(sharding, mesh);
      if (seed && !isRagged(sharding) && seed.getDims() != sharding.getDims())
        return op.emitOpError("MOE-0601: cannot give a result the sharding ")
               << seed << "; its rule says " << sharding;
      setSharding(result, sharding);
      if (isa<moe::LimitOp>(op.getOperation()) && result.getResultNumber() == 0)
        restore(result, operands[0]);
      OpOperand *use = nullptr;
      if (sharding.isPartial() && !result.use_empty())
        use = deterministic ? &*result.use_begin() : nonLinearUse(result);
      if (use) {
        Value complete = makeReshard(result, sharding.withPartial({}), *use);
        result.replaceAllUsesExcept(complete, complete.getDefiningOp());
      }
    }
    return success();
  }

  /// All uses see `value` in this sharding: a limit gathers its routing, and its users, some of
  /// which know their tokens by the routing alone, want the tokens split as before.
  void restore(Value value, ShardingAttr wanted) {
    if (value.use_empty() || shardingOf(value) == wanted)
      return;
    Value back = makeReshard(value, wanted, *value.use_begin());
    value.replaceAllUsesExcept(back, back.getDefiningOp());
  }

  static bool isRagged(ShardingAttr sharding) {
    return llvm::any_of(sharding.getDims(), [](dist::DimShardingAttr d) { return d.isRagged(); });
  }

  /// A use that cannot take a partial sum, if there is any.
  static OpOperand *nonLinearUse(Value value) {
    for (OpOperand &use : value.getUses()) {
      auto user = dyn_cast<ShardingRuleInterface>(use.getOwner());
      if (!user || !mayBePartial(user.getFactorRule().linearity, use.getOperandNumber()))
        return &use;
    }
    return nullptr;
  }

  void reshard(OpOperand &operand, ShardingAttr wanted) {
    if (shardingOf(operand.get()) != wanted)
      operand.set(makeReshard(operand.get(), wanted, operand));
  }

  /// Stands right behind the value, so that all uses can share it, and belongs to the value's
  /// layer.
  Value makeReshard(Value value, ShardingAttr wanted, OpOperand &reason) {
    Value &result = made[{value, wanted}];
    if (result)
      return result;
    OpBuilder b(&getContext());
    b.setInsertionPointAfterValue(value);
    std::string text = (reason.getOwner()->getName().getStringRef() + " operand " +
                        Twine(reason.getOperandNumber()))
                           .str();
    return result = dist::ReshardOp::create(b, value.getLoc(),
                                            dist::withSharding(value.getType(), wanted), value,
                                            b.getStringAttr(text));
  }

  /// A program has one B: the largest that any of its dispatches asks for.
  static void unifyBounds(func::FuncOp func) {
    int64_t bound = 0;
    auto values = [&](llvm::function_ref<void(Value)> visit) {
      func.walk([&](Operation *op) {
        for (Value result : op->getResults())
          visit(result);
      });
    };
    values([&](Value value) {
      if (ShardingAttr sharding = shardingOf(value))
        for (dist::DimShardingAttr dim : sharding.getDims())
          if (dim.isGrowable())
            bound = std::max(bound, dim.getBound());
    });
    values([&](Value value) {
      if (ShardingAttr sharding = shardingOf(value))
        setSharding(value, withBound(sharding, bound));
    });
  }
};
} // namespace
