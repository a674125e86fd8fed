//===- Offload.cpp - --plan-offload ---------------------------------------===//
// Places what optimizers keep, and the weights too if asked, in the host's memory. What changes a
// state that lies there runs there, on the host's queue: its other operands move to the host as
// soon as they are made, so that gradients do not fill the device. What reads such a state moves to
// the device right before its use, and again for a use that is far away. A weight that stays on the
// device is updated on a copy, which becomes the weight when it is back.
//===----------------------------------------------------------------------===//
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"

using namespace mlir;
using namespace moira;
using plan::Space;

namespace {

/// Operations between two uses that share a move to the device, at most.
constexpr int64_t kDistance = 32;

struct OffloadPass : PassWrapper<OffloadPass, OperationPass<ModuleOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(OffloadPass)
  OffloadPass() = default;
  OffloadPass(const OffloadPass &other) : PassWrapper(other) {}
  explicit OffloadPass(StringRef what) { this->what = what.str(); }
  StringRef getArgument() const final { return "plan-offload"; }
  StringRef getDescription() const final { return "Place states in the host's memory"; }
  void getDependentDialects(DialectRegistry &registry) const final {
    registry.insert<plan::PlanDialect>();
  }
  void runOnOperation() final;

  Option<std::string> what{*this, "states", llvm::cl::init("none"),
                           llvm::cl::desc("none, optimizer or optimizer+params")};
  Statistic numStates{this, "states-on-host", "states placed in the host's memory"};
  Statistic numMoves{this, "moves", "moves between device and host"};

private:
  bool isOnHost(Value value) const {
    auto param = value.getDefiningOp<moe::ParamOp>();
    return param && onHost.contains(param.getStateAttr().getAttr());
  }
  void place(func::FuncOp func);
  void updateOnHost(UpdateOpInterface update);
  void bringToDevice(moe::ParamOp param);
  Value move(OpBuilder &b, Value value, Space to) {
    ++numMoves;
    return plan::MoveOp::create(b, value.getLoc(), value.getType(), value, to);
  }

  llvm::DenseSet<StringAttr> onHost;
  llvm::DenseMap<Value, Value> movedToHost;
};

void OffloadPass::runOnOperation() {
  if (what == "none")
    return;
  onHost.clear();
  for (auto state : getOperation().getOps<moe::StateOp>())
    if (!state.getSourceAttr() || what == "optimizer+params") {
      state->setAttr(plan::kOnHostAttr, UnitAttr::get(&getContext()));
      onHost.insert(state.getSymNameAttr());
      ++numStates;
    }
  for (auto func : getOperation().getOps<func::FuncOp>())
    if (!func.isExternal())
      place(func);
}

void OffloadPass::place(func::FuncOp func) {
  movedToHost.clear();
  for (auto update : llvm::make_early_inc_range(func.getOps<UpdateOpInterface>()))
    if (!isa<moe::AssignOp>(update) &&
        llvm::any_of(update->getOperands(), [&](Value operand) { return isOnHost(operand); }))
      updateOnHost(update);
  for (auto param : llvm::make_early_inc_range(func.getOps<moe::ParamOp>()))
    if (isOnHost(param))
      bringToDevice(param);
}

void OffloadPass::updateOnHost(UpdateOpInterface update) {
  OpBuilder b(update);
  Value weight = update->getOperand(0);
  for (OpOperand &operand : update->getOpOperands()) {
    if (isOnHost(operand.get()))
      continue;
    Value &moved = movedToHost[operand.get()];
    if (!moved) {
      OpBuilder behind(&getContext());
      // A weight moves when it is updated, everything else when it is there.
      if (operand.get() == weight)
        behind.setInsertionPoint(update);
      else
        behind.setInsertionPointAfterValue(operand.get());
      moved = move(behind, operand.get(), Space::host);
    }
    operand.set(moved);
  }
  Operation *updated = update;
  if (update->getOperand(0) != weight && update->getNumResults() == 0) {
    OperationState state(update->getLoc(), update->getName(), update->getOperands(),
                         {weight.getType()});
    state.propertiesAttr = update->getPropertiesAsAttribute();
    updated = b.create(state);
    moe::AssignOp::create(b, update->getLoc(), weight,
                          move(b, updated->getResult(0), Space::device));
    update->erase();
  } else if (updated->getNumResults() == 1) {
    b.setInsertionPointAfter(updated);
    Value back = move(b, updated->getResult(0), Space::device);
    updated->getResult(0).replaceAllUsesExcept(back, back.getDefiningOp());
  }
  updated->setAttr(plan::kOnHostAttr, UnitAttr::get(&getContext()));
}

void OffloadPass::bringToDevice(moe::ParamOp param) {
  SmallVector<OpOperand *> uses;
  for (OpOperand &use : param->getUses())
    if (!isa<UpdateOpInterface>(use.getOwner()))
      uses.push_back(&use);
  llvm::sort(uses, [](OpOperand *a, OpOperand *b) {
    return a->getOwner()->isBeforeInBlock(b->getOwner());
  });
  Value moved;
  Operation *last = nullptr;
  for (OpOperand *use : uses) {
    int64_t distance = 0;
    for (Operation *op = last; op && op != use->getOwner() && distance <= kDistance;
         op = op->getNextNode())
      ++distance;
    last = use->getOwner();
    if (!moved || distance > kDistance) {
      OpBuilder b(use->getOwner());
      moved = move(b, param, Space::device);
    }
    use->set(moved);
  }
}

} // namespace

std::unique_ptr<Pass> moira::createPlanOffloadPass(StringRef what) {
  return std::make_unique<OffloadPass>(what);
}
