//===- Offload.cpp - --plan-offload ---------------------------------------===//
// Places in the memory of a device's host what optimizers keep, the weights that they update in
// place, and sums of gradients that go into updates as they are. What changes such a state runs on
// the host: its other operands move there as soon as they are made, so that gradients do not fill
// the device.
//
//   optimizer          a weight moves to the device once a step, before its first use
//   optimizer+params   before each use that is not near the one before it
//
// The device so has what products read, and where that is rounded (bf16), the rounded weight: the
// host rounds and half the bytes move. A weight that is whole while its update works on a part of
// it (ZeRO 1 and 2) stays on the device, and the part moves. How far ahead of a use a move starts
// is the scheduler's business.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "llvm/ADT/MapVector.h"

using namespace mlir;
using namespace moira;
using plan::Space;

namespace {

struct OffloadPass : PassWrapper<OffloadPass, OperationPass<ModuleOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(OffloadPass)
  OffloadPass() = default;
  OffloadPass(const OffloadPass &other) : PassWrapper(other) {}
  explicit OffloadPass(StringRef what) { states = what.str(); }
  StringRef getArgument() const final { return "plan-offload"; }
  StringRef getDescription() const final { return "Place states in the host's memory"; }
  void getDependentDialects(DialectRegistry &registry) const final {
    registry.insert<plan::PlanDialect>();
  }
  void runOnOperation() final;

  Option<std::string> states{*this, "states", llvm::cl::init("optimizer"),
                             llvm::cl::desc("optimizer or optimizer+params")};
  Option<int64_t> distance{
      *this, "distance", llvm::cl::init(32),
      llvm::cl::desc("operations between two uses that share a move, at most (optimizer+params)")};
  Statistic numStates{this, "states-on-host", "states placed in the host's memory"};
  Statistic numMoves{this, "moves", "moves between device and host"};

private:
  bool isOnHost(Value value) const;
  void choose();
  void place(func::FuncOp func);
  void updateOnHost(UpdateOpInterface update);
  void squaresOnHost(moe::SquaresOp squares);
  void bringToDevice(moe::ParamOp param);
  Value roundedOnHost(moe::ParamOp param);
  void moveToUses(Value value);
  Value toHost(Value value, Operation *before);
  Value move(OpBuilder &b, Value value, Space to) {
    ++numMoves;
    return plan::MoveOp::create(b, value.getLoc(), value.getType(), value, to);
  }
  void markOnHost(Operation *op) { op->setAttr(plan::kOnHostAttr, UnitAttr::get(&getContext())); }

  llvm::MapVector<StringAttr, SmallVector<moe::ParamOp>> params; // of a state, in all programs
  llvm::DenseSet<StringAttr> onHost;
  llvm::DenseMap<Value, Value> movedToHost;    // of one program
  llvm::DenseMap<Operation *, int64_t> places; // in its block, before anything was moved
};

/// Updates that know nothing of other elements.
bool isOptimizer(Operation *op) { return isa<moe::AdamWOp, moe::ExpertAdamWOp, moe::SgdOp>(op); }

/// A parameter as products take it.
bool isRounding(Operation *op) {
  auto scale = dyn_cast<moe::ScaleOp>(op);
  return scale && scale.getX().getDefiningOp<moe::ParamOp>() &&
         scale.getType().getElementTypeBitWidth() <
             cast<RankedTensorType>(scale.getX().getType()).getElementTypeBitWidth();
}

/// Whether it takes a weight for the sake of its shape.
bool takesShapeOnly(Operation *op) { return isa<moe::EmbeddingGradOp>(op); }

StringAttr stateOf(Value value) {
  auto param = value.getDefiningOp<moe::ParamOp>();
  return param ? param.getStateAttr().getAttr() : StringAttr();
}

/// Puts `op` right behind what it needs.
void hoist(Operation *op) {
  Operation *last = nullptr;
  for (Value operand : op->getOperands())
    if (Operation *def = operand.getDefiningOp(); def && (!last || last->isBeforeInBlock(def)))
      last = def;
  if (last)
    op->moveAfter(last);
  else
    op->moveBefore(op->getBlock(), op->getBlock()->begin());
}

bool OffloadPass::isOnHost(Value value) const {
  StringAttr state = stateOf(value);
  return state && onHost.contains(state);
}

void OffloadPass::choose() {
  params.clear();
  onHost.clear();
  getOperation().walk([&](moe::ParamOp param) { params[stateOf(param)].push_back(param); });
  getOperation().walk([&](UpdateOpInterface update) {
    if (isOptimizer(update))
      for (Value updated : update.getUpdated())
        if (StringAttr state = stateOf(updated))
          onHost.insert(state);
  });
  for (auto &[state, values] : params) {
    bool updated = false, accumulated = false, elsewhere = false, written = false;
    for (moe::ParamOp param : values)
      for (Operation *user : param->getUsers()) {
        bool first = user->getOperand(0) == param;
        updated |= isOptimizer(user);
        accumulated |= isa<moe::AccumulateOp>(user) && first;
        written |= isa<UpdateOpInterface>(user) && first && !isOptimizer(user);
        elsewhere |= !isOptimizer(user) && !isa<moe::AccumulateOp, moe::SquaresOp>(user);
      }
    auto op = getOperation().lookupSymbol<moe::StateOp>(state);
    bool rests = states == "optimizer+params" && op.getSource() && !written;
    if ((accumulated && updated && !elsewhere) || rests)
      onHost.insert(state);
  }
  for (auto state : getOperation().getOps<moe::StateOp>())
    if (onHost.contains(state.getSymNameAttr())) {
      markOnHost(state);
      ++numStates;
    }
}

void OffloadPass::runOnOperation() {
  choose();
  for (auto func : getOperation().getOps<func::FuncOp>())
    if (!func.isExternal())
      place(func);
}

void OffloadPass::place(func::FuncOp func) {
  movedToHost.clear();
  places.clear();
  for (auto [place, op] : llvm::enumerate(func.front()))
    places[&op] = place;
  for (auto update : llvm::make_early_inc_range(func.getOps<UpdateOpInterface>()))
    if (llvm::any_of(update.getUpdated(), [&](Value updated) { return isOnHost(updated); }))
      updateOnHost(update);
  for (auto squares : llvm::make_early_inc_range(func.getOps<moe::SquaresOp>()))
    if (isOnHost(squares.getX()))
      squaresOnHost(squares);
  for (auto param : llvm::make_early_inc_range(func.getOps<moe::ParamOp>()))
    if (isOnHost(param))
      bringToDevice(param);
}

/// What is made on the device, on the host: moved as soon as it is there, or right before `before`.
Value OffloadPass::toHost(Value value, Operation *before) {
  Value &moved = movedToHost[value];
  if (moved)
    return moved;
  OpBuilder b(&getContext());
  if (before) {
    b.setInsertionPoint(before);
    return moved = move(b, value, Space::host);
  }
  // What is still to be done to a gradient, and what else is made of it, comes before the next one.
  SmallVector<Operation *> chain;
  for (Operation *def = value.getDefiningOp();
       def && isa<dist::DistDialect>(def->getDialect()) && def->getNumOperands() == 1;
       def = def->getOperand(0).getDefiningOp())
    chain.push_back(def);
  for (Operation *op : llvm::reverse(chain))
    hoist(op);
  for (Operation *user : llvm::make_early_inc_range(value.getUsers()))
    if (isa<moe::SquaresOp>(user))
      hoist(user);
  b.setInsertionPointAfterValue(value);
  return moved = move(b, value, Space::host);
}

void OffloadPass::updateOnHost(UpdateOpInterface update) {
  markOnHost(update);
  for (OpOperand &operand : update->getOpOperands())
    if (!isOnHost(operand.get())) {
      // A part of a weight is updated where it has been moved to, so nobody else may have it.
      bool isPart = operand.getOperandNumber() == 0;
      operand.set(toHost(operand.get(), isPart ? update.getOperation() : nullptr));
    }
  for (Value result : update->getResults()) {
    OpBuilder b(&getContext());
    b.setInsertionPointAfter(update);
    Value back = move(b, result, Space::device);
    result.replaceAllUsesExcept(back, back.getDefiningOp());
  }
}

void OffloadPass::squaresOnHost(moe::SquaresOp squares) {
  markOnHost(squares);
  OpBuilder b(&getContext());
  b.setInsertionPointAfter(squares);
  Value sum = move(b, squares.getResult(), Space::device);
  squares.getResult().replaceAllUsesExcept(sum, sum.getDefiningOp());
}

void OffloadPass::bringToDevice(moe::ParamOp param) {
  if (Value rounded = roundedOnHost(param))
    moveToUses(rounded);
  moveToUses(param);
}

/// The weight as products take it, made once in a program and on the host; null if none takes it
/// so.
Value OffloadPass::roundedOnHost(moe::ParamOp param) {
  Operation *first = nullptr, *place = nullptr;
  for (Operation *user : llvm::make_early_inc_range(param->getUsers())) {
    if (!isRounding(user))
      continue;
    for (Operation *next : user->getUsers())
      if (!takesShapeOnly(next) && (!place || next->isBeforeInBlock(place)))
        place = next;
    if (!first) {
      first = user;
      continue;
    }
    user->getResult(0).replaceAllUsesWith(first->getResult(0));
    user->erase();
  }
  if (!first)
    return {};
  markOnHost(first);
  if (place)
    first->moveBefore(place);
  return first->getResult(0);
}

/// Moves what lies on the host to the device, for all that use it there.
void OffloadPass::moveToUses(Value value) {
  SmallVector<OpOperand *> uses;
  for (OpOperand &use : value.getUses())
    if (!use.getOwner()->hasAttr(plan::kOnHostAttr))
      uses.push_back(&use);
  llvm::sort(uses, [](OpOperand *a, OpOperand *b) {
    return a->getOwner() == b->getOwner() ? a->getOperandNumber() < b->getOperandNumber()
                                          : a->getOwner()->isBeforeInBlock(b->getOwner());
  });
  Value moved;
  int64_t last = 0;
  for (OpOperand *use : uses) {
    int64_t place = places.lookup(use->getOwner());
    bool far = states == "optimizer+params" && place > last + distance;
    if (!moved || (far && !takesShapeOnly(use->getOwner()))) {
      OpBuilder b(use->getOwner());
      moved = move(b, value, Space::device);
    }
    use->set(moved);
    last = place;
  }
}

} // namespace

std::unique_ptr<Pass> moira::createPlanOffloadPass(StringRef states) {
  return std::make_unique<OffloadPass>(states);
}
