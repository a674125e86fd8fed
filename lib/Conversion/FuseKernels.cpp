//===- FuseKernels.cpp - --plan-fuse-kernels ------------------------------===//
// Puts row ops of a localized function into plan.fused groups, one generated kernel each. Greedy,
// in program order: an op joins the group of one of its operands' producers if one kernel can run
// both and the move keeps every value defined before its uses. Small groups that are
// independent of each other are one kernel too.
//===----------------------------------------------------------------------===//
#include "KernelGroups.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/IRMapping.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "llvm/ADT/MapVector.h"

using namespace mlir;
using namespace moira;

namespace {

/// Kernels take no more pointers than this, so that arguments stay in registers and groups stay
/// readable.
constexpr size_t kMaxOperands = 8;

/// The most elements in the results of a kernel that takes less time than its launch does on a GPU.
constexpr int64_t kFewElements = 1 << 18;

/// Row ops that will be one kernel, at the place of `anchor`.
struct Group {
  SmallVector<Operation *> members; // in program order
  Operation *anchor = nullptr;
  bool isSmall = false;

  bool contains(Operation *op) const { return llvm::is_contained(members, op); }
  SmallVector<Value> inputs() const;
  SmallVector<Value> results() const;
};

SmallVector<Value> Group::inputs() const {
  llvm::SetVector<Value> values;
  for (Operation *op : members)
    for (Value operand : op->getOperands())
      if (!operand.getDefiningOp() || !contains(operand.getDefiningOp()))
        values.insert(operand);
  return values.takeVector();
}

SmallVector<Value> Group::results() const {
  SmallVector<Value> values;
  for (Operation *op : members)
    if (llvm::any_of(op->getUsers(), [&](Operation *user) { return !contains(user); }))
      values.push_back(op->getResult(0));
  return values;
}

bool isSmall(ArrayRef<Value> results) {
  int64_t elements = 0;
  for (Value result : results) {
    auto type = cast<RankedTensorType>(result.getType());
    if (isa_and_present<dist::RowsAttr>(type.getEncoding())) // grows with the bound
      return false;
    elements += type.getNumElements();
  }
  return elements <= kFewElements;
}

class Fuser {
public:
  explicit Fuser(Block &block) : block(block) {}
  void run();

private:
  /// Where a value is defined, once groups have moved to their anchors; −1 before everything.
  int64_t placeOf(Value value) const;
  int64_t placeOf(Operation *op) const;
  /// Adds `op` to the group if it may.
  bool join(unsigned group, Operation *op);
  /// Moves the members of a group to the next one, of which they are independent, if they may.
  bool unite(const Group &group, Group &next);
  void outline(Group &group);

  Block &block;
  llvm::DenseMap<Operation *, int64_t> order;
  std::vector<Group> groups;
  llvm::DenseMap<Operation *, unsigned> groupOf;
};

int64_t Fuser::placeOf(Value value) const {
  Operation *op = value.getDefiningOp();
  return !op || isa<moe::ParamOp>(op) ? -1 : placeOf(op);
}

int64_t Fuser::placeOf(Operation *op) const {
  auto group = groupOf.find(op);
  return order.lookup(group == groupOf.end() ? op : groups[group->second].anchor);
}

bool Fuser::join(unsigned index, Operation *op) {
  // What is made again stays where that happens: made early, it would be kept.
  if (op->hasAttr(dist::kRecomputedAttr) != groups[index].anchor->hasAttr(dist::kRecomputedAttr))
    return false;
  Group joined = groups[index];
  joined.members.push_back(op);
  // Staying where the group is needs all other operands before it; moving down to `op` needs that
  // nobody else waits for the group.
  bool stays = llvm::all_of(op->getOperands(), [&](Value operand) {
    return joined.contains(operand.getDefiningOp()) ||
           placeOf(operand) < order.lookup(joined.anchor);
  });
  if (!stays) {
    for (Operation *member : groups[index].members)
      for (Operation *user : member->getUsers())
        if (!joined.contains(user))
          return false;
    joined.anchor = op;
  }
  SmallVector<Value> inputs = joined.inputs(), results = joined.results();
  if (inputs.size() + results.size() > kMaxOperands ||
      !makeGroupKernel(joined.members, inputs, results))
    return false;
  groups[index] = std::move(joined);
  return true;
}

bool Fuser::unite(const Group &group, Group &next) {
  if (!group.isSmall || !next.isSmall ||
      group.anchor->hasAttr(dist::kRecomputedAttr) != next.anchor->hasAttr(dist::kRecomputedAttr))
    return false;
  // What nobody else uses before the next group's place can be made there, and is not used by it.
  int64_t place = order.lookup(next.anchor);
  for (Operation *member : group.members)
    for (Operation *user : member->getUsers())
      if (!group.contains(user) && placeOf(user) <= place)
        return false;
  Group both = next;
  both.members.insert(both.members.begin(), group.members.begin(), group.members.end());
  SmallVector<Value> inputs = both.inputs(), results = both.results();
  if (inputs.size() + results.size() > kMaxOperands ||
      !makeGroupKernel(both.members, inputs, results))
    return false;
  next = std::move(both);
  return true;
}

void Fuser::outline(Group &group) {
  OpBuilder builder(group.anchor);
  SmallVector<Value> inputs = group.inputs(), results = group.results();
  auto fused = plan::FusedOp::create(builder, group.members.back()->getLoc(),
                                     ValueRange(results).getTypes(), inputs);
  Block *body = builder.createBlock(&fused.getBody());
  IRMapping mapping;
  for (Value input : inputs)
    mapping.map(input, body->addArgument(input.getType(), input.getLoc()));
  for (Operation *op : group.members)
    builder.clone(*op, mapping);
  SmallVector<Value> yielded;
  for (Value result : results)
    yielded.push_back(mapping.lookup(result));
  plan::YieldOp::create(builder, fused.getLoc(), yielded);
  for (auto [old, fresh] : llvm::zip(results, fused.getResults()))
    old.replaceAllUsesWith(fresh);
  for (Operation *op : llvm::reverse(group.members))
    op->erase();
}

void Fuser::run() {
  // Weights have no operands: at the top they are before any group.
  SmallVector<moe::ParamOp> params(block.getOps<moe::ParamOp>());
  for (moe::ParamOp param : llvm::reverse(params))
    param->moveBefore(&block, block.begin());
  for (auto [i, op] : llvm::enumerate(block))
    order[&op] = i;

  for (Operation &op : block) {
    if (!isRowOp(&op) || op.use_empty() || op.hasAttr(plan::kOnHostAttr) ||
        op.hasAttr(plan::kInProductAttr))
      continue;
    bool joined = false;
    for (Value operand : op.getOperands())
      if (auto it = groupOf.find(operand.getDefiningOp()); !joined && it != groupOf.end()) {
        unsigned index = it->second;
        joined = join(index, &op);
        if (joined)
          groupOf[&op] = index;
      }
    if (joined)
      continue;
    Group alone{{&op}, &op};
    if (!makeGroupKernel(alone.members, alone.inputs(), alone.results()))
      continue; // a library call will run it
    groupOf[&op] = groups.size();
    groups.push_back(std::move(alone));
  }
  // In order of their places, so that a group's operands are there when it is outlined.
  llvm::stable_sort(groups, [&](const Group &a, const Group &b) {
    return order.lookup(a.anchor) < order.lookup(b.anchor);
  });
  for (auto [i, group] : llvm::enumerate(groups)) {
    group.isSmall = isSmall(group.results());
    for (Operation *member : group.members)
      groupOf[member] = i;
  }
  // Each with the one behind it, which may then go on to the next.
  for (unsigned i = 0; i + 1 < groups.size(); ++i) {
    if (!unite(groups[i], groups[i + 1]))
      continue;
    for (Operation *member : groups[i].members)
      groupOf[member] = i + 1;
    groups[i].members.clear();
  }
  llvm::erase_if(groups, [](const Group &group) { return group.members.empty(); });
  for (Group &group : groups)
    outline(group);
}

struct FuseKernelsPass : PassWrapper<FuseKernelsPass, OperationPass<func::FuncOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(FuseKernelsPass)
  StringRef getArgument() const final { return "plan-fuse-kernels"; }
  StringRef getDescription() const final { return "Group row ops, one generated kernel a group"; }
  void getDependentDialects(DialectRegistry &registry) const final {
    registry.insert<plan::PlanDialect>();
  }
  void runOnOperation() final {
    for (Block &block : getOperation().getBody()) {
      Fuser(block).run();
      for (auto fused : block.getOps<plan::FusedOp>()) {
        ++numGroups;
        numOps += llvm::range_size(fused.getBody().front().without_terminator());
      }
    }
  }
  Statistic numGroups{this, "groups", "groups formed"};
  Statistic numOps{this, "ops", "row ops in them"};
};

} // namespace

std::unique_ptr<Pass> moira::createPlanFuseKernelsPass() {
  return std::make_unique<FuseKernelsPass>();
}
