//===- Schedule.cpp - --plan-schedule -------------------------------------===//
// Orders the instructions of each program: collectives as early as they can, what needs their
// results as late as there is something else to do. So the dense work that does not depend on an
// exchange (a shared expert, the next projection) lies between its start and its first use, and
// gathers of weights that are cut at rest, or moves of weights that rest on the host, are some work
// ahead of it, but not all at once. What runs on the host and what moves between it and the device
// are exchanges too. Updates, which a program has behind everything else, come as soon as what they
// take is there, so that not all gradients are alive at once.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "QueueClocks.h"
#include "moira/Conversion/PlanPasses.h"
#include <set>

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

/// How far ahead of the first waiting instruction work may be taken from: bounds how much more
/// memory is alive.
constexpr unsigned kLookahead = 64;

/// Where updates begin: with the norm of all gradients, or else with the first that changes a state
/// but write_rows. The number of instructions if there are none.
unsigned firstOfUpdates(ArrayRef<InstructionInterface> instrs) {
  auto calls = [](InstructionInterface instr, StringRef callee) {
    auto call = dyn_cast<CallOp>(instr.getOperation());
    return call && call.getCallee() == callee;
  };
  unsigned first =
      llvm::find_if(instrs, [&](auto i) { return calls(i, "squares"); }) - instrs.begin();
  if (first < instrs.size())
    return first;
  auto changesState = [&](InstructionInterface instr) {
    return !calls(instr, "write_rows") && llvm::any_of(instr.getWrites(), isState);
  };
  return llvm::find_if(instrs, changesState) - instrs.begin();
}

/// The instructions with each of the updates' behind the last one before them that it depends on,
/// directly or not; what depends on none, such as a slice of a weight, where it is first used.
/// Where the host updates (--plan-offload), what it takes already moves to it early.
SmallVector<InstructionInterface> withUpdatesEarly(ArrayRef<InstructionInterface> instrs) {
  if (llvm::any_of(instrs, [](InstructionInterface i) { return i.getQueue() == kHostQueue; }))
    return SmallVector<InstructionInterface>(instrs);
  unsigned begin = firstOfUpdates(instrs), end = instrs.size();
  std::vector<SmallVector<unsigned, 4>> needs(end);
  forEachDependence(instrs, [&](unsigned i, unsigned earlier) {
    if (i >= begin)
      needs[i].push_back(earlier);
  });
  std::vector<std::optional<unsigned>> behind(end); // none is less than any
  for (unsigned i = 0; i < end; ++i) {
    if (i < begin)
      behind[i] = i;
    for (unsigned earlier : needs[i])
      behind[i] = std::max(behind[i], behind[earlier]);
  }
  std::vector<unsigned> place(end, begin);
  for (unsigned i = end; i-- > 0;) {
    if (behind[i])
      place[i] = *behind[i];
    for (unsigned earlier : needs[i])
      place[earlier] = std::min(place[earlier], place[i]);
  }
  SmallVector<unsigned> order = llvm::to_vector(llvm::seq(0u, end));
  llvm::stable_sort(order, [&](unsigned a, unsigned b) { return place[a] < place[b]; });
  SmallVector<InstructionInterface> early;
  for (unsigned i : order)
    early.push_back(instrs[i]);
  return early;
}

/// A list scheduler with two classes of instructions. Deterministic: ties go to the earlier one.
class Scheduler {
public:
  explicit Scheduler(ArrayRef<InstructionInterface> instrs);
  std::vector<unsigned> run();

private:
  /// Whatever does not run on the compute queue.
  bool isExchange(unsigned i) {
    InstructionInterface instr = instrs[i];
    return instr.getQueue() != kComputeQueue;
  }
  /// How far ahead of the first waiting instruction it may start.
  unsigned ahead(unsigned i);
  /// Would wait for an exchange that nothing has waited for yet.
  bool wouldWait(unsigned i);
  unsigned choose();
  void issue(unsigned i);

  ArrayRef<InstructionInterface> instrs;
  std::vector<SmallVector<unsigned, 4>> needs, feeds;
  std::vector<unsigned> missing; // operands not yet issued
  std::set<unsigned> readyExchanges, readyWork;
  /// Exchanges are numbered as they are issued; those up to `waitedFor` are known to be done.
  std::vector<unsigned> exchangeNumber;
  unsigned exchanges = 0, waitedFor = 0;
  std::vector<unsigned> order;
};

Scheduler::Scheduler(ArrayRef<InstructionInterface> instrs)
    : instrs(instrs), needs(instrs.size()), feeds(instrs.size()), missing(instrs.size()),
      exchangeNumber(instrs.size()) {
  forEachDependence(instrs, [&](unsigned i, unsigned earlier) {
    if (llvm::is_contained(needs[i], earlier))
      return;
    needs[i].push_back(earlier);
    feeds[earlier].push_back(i);
    ++missing[i];
  });
}

bool Scheduler::wouldWait(unsigned i) {
  return llvm::any_of(needs[i], [&](unsigned j) { return exchangeNumber[j] > waitedFor; });
}

unsigned Scheduler::ahead(unsigned i) {
  InstructionInterface instr = instrs[i];
  if (instr.getQueue() == kCommQueue)
    return kPrefetch;
  // An update on the host takes nothing of the device.
  bool updates = llvm::any_of(instr.getWrites(), [](Value view) {
    return view.getDefiningOp<ViewOp>().getArena() == kHostStateArena;
  });
  return updates ? instrs.size() : kMoveDistance;
}

unsigned Scheduler::choose() {
  unsigned first = readyWork.empty() ? instrs.size() : *readyWork.begin();
  for (unsigned i : readyExchanges)
    if (i <= first || i - first <= ahead(i))
      return i;
  for (unsigned i : readyWork) {
    if (i > first + kLookahead)
      break;
    if (!wouldWait(i))
      return i;
  }
  return first;
}

void Scheduler::issue(unsigned i) {
  order.push_back(i);
  readyExchanges.erase(i);
  readyWork.erase(i);
  if (isExchange(i))
    exchangeNumber[i] = ++exchanges;
  else
    for (unsigned j : needs[i])
      waitedFor = std::max(waitedFor, exchangeNumber[j]);
  for (unsigned j : feeds[i])
    if (--missing[j] == 0)
      (isExchange(j) ? readyExchanges : readyWork).insert(j);
}

std::vector<unsigned> Scheduler::run() {
  for (unsigned i = 0; i < instrs.size(); ++i)
    if (missing[i] == 0)
      (isExchange(i) ? readyExchanges : readyWork).insert(i);
  while (order.size() < instrs.size())
    issue(choose());
  return std::move(order);
}

struct SchedulePass : PassWrapper<SchedulePass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(SchedulePass)
  StringRef getArgument() const final { return "plan-schedule"; }
  StringRef getDescription() const final {
    return "Order instructions so that exchanges hide behind independent work";
  }
  void runOnOperation() final {
    for (auto program : getOperation().getOps<ProgramOp>())
      if (failed(schedule(program)))
        return signalPassFailure();
  }
  LogicalResult schedule(ProgramOp program);
  Statistic numMoved{this, "moved", "instructions that stand elsewhere than in the function"};
};

LogicalResult SchedulePass::schedule(ProgramOp program) {
  Block &block = program.getBody().front();
  SmallVector<InstructionInterface> written = instructionsOf(program);
  for (InstructionInterface instr : written)
    if (isa<RecordOp, WaitOp>(instr))
      return instr->emitOpError("MOE-0601: plan-schedule runs before events are inserted");
  SmallVector<InstructionInterface> instrs = withUpdatesEarly(written);
  std::vector<unsigned> order = Scheduler(instrs).run();
  // The block becomes: arenas, states, inputs, instructions, outputs, traces; each view right
  // before its first user.
  SmallVector<Operation *> ops, outputs;
  for (Operation &op : block)
    if (isa<ArenaOp, StateOp>(op))
      ops.push_back(&op);
  for (auto input : block.getOps<InputOp>())
    ops.push_back(input);
  for (auto [i, at] : llvm::enumerate(order)) {
    ops.push_back(instrs[at]);
    numMoved += written[i] != instrs[at];
  }
  llvm::append_range(ops, block.getOps<OutputOp>());
  llvm::append_range(ops, block.getOps<TraceOp>());
  llvm::DenseSet<Operation *> placed;
  for (Operation *op : ops) {
    for (Value operand : op->getOperands())
      if (auto view = operand.getDefiningOp<ViewOp>(); view && placed.insert(view).second)
        view->moveBefore(&block, block.end());
    op->moveBefore(&block, block.end());
  }
  for (auto view : llvm::make_early_inc_range(block.getOps<ViewOp>()))
    if (view.use_empty())
      view.erase();
  return success();
}

} // namespace

std::unique_ptr<Pass> moira::createPlanSchedulePass() { return std::make_unique<SchedulePass>(); }
