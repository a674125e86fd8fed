//===- ShardZero.cpp - --dist-shard-zero ----------------------------------===//
// ZeRO is where two reshards stand. The ranks over which a weight is replicated and its gradient is
// a sum (its replicas: dp, and ep where tokens are split over it; for experts only dp) share the
// work of its update: the gradient is reduced to a part for each of them, and what the optimizer
// keeps is cut alike. The new weight is gathered
//
//   stage 1, 2   behind the update: the state is whole, its update works on a slice of it
//   stage 3      where it is used: the state is cut at rest too
//
// Behind propagation, because only then it is known what is replicated and what is a sum. Stages 1
// and 2 differ where gradients of several micro-batches are added up.
//===----------------------------------------------------------------------===//
#include "ShardingIR.h"
#include "moira/Transforms/Passes.h"

namespace moira {
#define GEN_PASS_DEF_DISTSHARDZERO
#include "moira/Transforms/Passes.h.inc"
} // namespace moira

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

namespace {
using Axes = SmallVector<StringAttr>;

/// What a value was before it was resharded.
Value originOf(Value value) {
  while (auto reshard = value.getDefiningOp<dist::ReshardOp>())
    value = reshard.getX();
  return value;
}

struct ShardZero : moira::impl::DistShardZeroBase<ShardZero> {
  using DistShardZeroBase::DistShardZeroBase;

  void runOnOperation() override {
    if (stage == 0)
      return;
    ModuleOp module = getOperation();
    mesh = dist::getMesh(module);
    deterministic = module->hasAttr(moe::MoeDialect::kDeterministic);
    states.emplace(module);
    for (func::FuncOp func : module.getOps<func::FuncOp>())
      for (auto update : llvm::make_early_inc_range(func.getOps<UpdateOpInterface>()))
        if (isElementWise(update) && failed(split(update)))
          return signalPassFailure();
  }

private:
  MeshInfo mesh;
  bool deterministic = false;
  std::optional<StateTable> states;

  /// Updates of weights that know nothing of other elements, so that parts can be updated apart.
  static bool isElementWise(Operation *update) {
    return isa<moe::AdamWOp, moe::ExpertAdamWOp, moe::SgdOp>(update);
  }

  LogicalResult split(UpdateOpInterface update) {
    Value weight = update->getOperand(0);
    moe::StateOp state = states->stateOf(weight);
    if (!state)
      return success();
    ShardingAttr whole = states->getSharding(state);
    Axes replicas = replicasOf(update, whole);
    if (replicas.empty())
      return success();
    ShardingAttr part = cutOver(replicas, whole, state.getTensorType().getShape());
    if (part == whole) {
      ++uncut;
      return success();
    }
    ++cut;
    if (stage < 3)
      updateSlice(update, part);
    else
      gatherAtUses(state, part, whole);
    return layOut(update, part);
  }

  /// The axes over which the weight is replicated and its gradient is a sum, as the mesh has them.
  Axes replicasOf(UpdateOpInterface update, ShardingAttr weight) const {
    Axes used = weight.usedAxes(), summed, replicas;
    Type type = update->getOperand(0).getType();
    // There sums are complete wherever they are added up.
    if (deterministic)
      llvm::append_range(summed, mesh.names);
    for (Value operand : update->getOperands())
      if (shardableShape(operand.getType()) == shardableShape(type))
        llvm::append_range(summed, shardingOf(originOf(operand)).getPartialAxes());
    for (StringAttr axis : mesh.names)
      if (llvm::is_contained(summed, axis) && !llvm::is_contained(used, axis))
        replicas.push_back(axis);
    return replicas;
  }

  /// `whole` with one dimension cut further: over as many ranks as it divides, by the first
  /// dimension that does, since blocks of that one need not be moved together. A dimension with
  /// pads keeps its cut.
  ShardingAttr cutOver(ArrayRef<StringAttr> axes, ShardingAttr whole,
                       ArrayRef<int64_t> shape) const {
    ShardingAttr best = whole;
    int64_t most = 1;
    for (auto [index, dim] : llvm::enumerate(whole.getDims())) {
      if (dim.getPad() || dim.isRagged())
        continue;
      for (unsigned chosen = 1; chosen < 1u << axes.size(); ++chosen) {
        // What a rank gets must be added up along the tree of ranks, from the last axis on.
        if (deterministic && chosen + (chosen & -chosen) != 1u << axes.size())
          continue;
        Axes added, all(dim.getAxes());
        for (auto [i, axis] : llvm::enumerate(axes))
          if (chosen >> i & 1)
            added.push_back(axis);
        llvm::append_range(all, added);
        if (shape[index] % mesh.sizeOf(all) || mesh.sizeOf(added) <= most)
          continue;
        most = mesh.sizeOf(added);
        best = whole.withDim(index, DimShardingAttr::split(whole.getContext(), all));
      }
    }
    return best;
  }

  /// Stages 1 and 2: the update works on a slice, and its result is gathered into the state.
  void updateSlice(UpdateOpInterface &update, ShardingAttr part) {
    Value weight = update->getOperand(0);
    OpBuilder b(update);
    Value slice = reshard(b, weight, part);
    OperationState made(update->getLoc(), update->getName(), update->getOperands(),
                        {slice.getType()});
    made.propertiesAttr = update->getPropertiesAsAttribute();
    Operation *onSlice = b.create(made);
    onSlice->setOperand(0, slice);
    Value gathered = reshard(b, onSlice->getResult(0), shardingOf(weight));
    moe::AssignOp::create(b, update->getLoc(), weight, gathered);
    update->erase();
    update = cast<UpdateOpInterface>(onSlice);
  }

  /// Stage 3: whoever reads the weight reads what is gathered of it, and of a weight that is
  /// rounded for its uses the rounded one.
  void gatherAtUses(moe::StateOp state, ShardingAttr part, ShardingAttr whole) {
    states->setSharding(state, part);
    for (moe::ParamOp param : states->paramsOf(state)) {
      for (Operation *user : llvm::make_early_inc_range(param->getUsers()))
        if (isRounding(user))
          gatherBehind(user->getResult(0), whole);
      gatherBehind(param, whole);
    }
  }

  /// Whether it makes of a parameter what its uses take.
  static bool isRounding(Operation *op) {
    return !isa<moe::ParamOp>(op) && op->getNumResults() == 1 && isPartOfWeight(op->getResult(0));
  }

  static void gatherBehind(Value value, ShardingAttr whole) {
    OpBuilder b(value.getContext());
    b.setInsertionPointAfterValue(value);
    Value gathered = reshard(b, value, whole);
    value.replaceUsesWithIf(gathered, [&](OpOperand &use) {
      return use.getOwner() != gathered.getDefiningOp() && !isRounding(use.getOwner()) &&
             !isa<UpdateOpInterface>(use.getOwner());
    });
    if (gathered.use_empty())
      gathered.getDefiningOp()->erase();
  }

  /// Gives an update's other operands what its rule wants beside a weight that is cut as `part`:
  /// states are cut, gradients are resharded from the sum that they were.
  LogicalResult layOut(UpdateOpInterface update, ShardingAttr part) {
    auto rule = cast<ShardingRuleInterface>(update.getOperation());
    SmallVector<ShardingAttr> known(update->getNumOperands());
    known[0] = part;
    RuleSolution solution = solveRule(&getContext(), rule.getFactorRule(), known, {});
    for (auto [operand, wanted] :
         llvm::drop_begin(llvm::zip(update->getOpOperands(), solution.operands))) {
      wanted = canonicalPartial(wanted, mesh);
      if (moe::StateOp state = states->stateOf(operand.get()); state && !state.getTransient()) {
        states->setSharding(state, wanted);
      } else if (shardingOf(operand.get()) != wanted) {
        Value before = operand.get(), sum = originOf(before);
        moe::StateOp sums = states->stateOf(sum);
        if (sums && stage >= 2 && wanted == part) {
          // A gradient that is added up over micro-batches: each of them is scattered already.
          if (failed(splitSums(sums, wanted)))
            return failure();
          operand.set(sum);
          moveSquares(before, sum, sum);
          // Of a sum that was whole before, and read as it is.
          for (Operation *user : llvm::make_early_inc_range(sum.getUsers()))
            if (auto squares = dyn_cast<moe::SquaresOp>(user); squares && before == sum)
              addParts(squares);
          continue;
        }
        OpBuilder b(&getContext());
        b.setInsertionPointAfterValue(sum);
        Value scattered = reshard(b, sum, wanted);
        operand.set(scattered);
        moveSquares(before, sum, scattered);
      }
    }
    return success();
  }

  /// Lets a state in which gradients are added up hold parts.
  LogicalResult splitSums(moe::StateOp sums, ShardingAttr part) {
    states->setSharding(sums, part);
    for (moe::ParamOp param : states->paramsOf(sums))
      for (Operation *user : llvm::make_early_inc_range(param->getUsers()))
        if (auto update = dyn_cast<UpdateOpInterface>(user);
            update && update->getOperand(0) == param && failed(layOut(update, part)))
          return failure();
    return success();
  }

  /// The norm of all gradients is made of the parts too. What nobody reads any more goes away.
  void moveSquares(Value complete, Value sum, Value scattered) {
    while (complete != sum) {
      for (Operation *user : llvm::make_early_inc_range(complete.getUsers()))
        if (auto squares = dyn_cast<moe::SquaresOp>(user)) {
          squares.getXMutable().assign(scattered);
          addParts(squares);
        }
      auto reshard = complete.getDefiningOp<dist::ReshardOp>();
      complete = reshard.getX();
      if (reshard->use_empty())
        reshard.erase();
    }
  }

  /// Sums of squares of parts are partial; they stay complete for who reads them.
  void addParts(moe::SquaresOp squares) {
    ShardingAttr before = shardingOf(squares.getResult());
    SmallVector<ShardingAttr> operand{shardingOf(squares.getX())};
    RuleSolution solution = solveRule(&getContext(), squares.getFactorRule(), operand, {});
    ShardingAttr partial = canonicalPartial(solution.results[0], mesh);
    setSharding(squares.getResult(), partial);
    if (before.isPartial() || !partial.isPartial()) // completed already, or nothing to complete
      return;
    OpBuilder b(squares);
    b.setInsertionPointAfter(squares);
    Value complete = reshard(b, squares.getResult(), before);
    squares.getResult().replaceAllUsesExcept(complete, complete.getDefiningOp());
  }

  static Value reshard(OpBuilder &b, Value value, ShardingAttr wanted) {
    return dist::ReshardOp::create(b, value.getLoc(), dist::withSharding(value.getType(), wanted),
                                   value, b.getStringAttr("ZeRO"));
  }
};
} // namespace
