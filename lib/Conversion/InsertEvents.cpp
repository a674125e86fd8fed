//===- InsertEvents.cpp - --plan-insert-events ----------------------------===//
// plan.record and plan.wait where an instruction needs what another queue made (or must not
// overwrite what another queue still reads). A wait that an earlier wait on the same queue implies
// is left out. Reused memory needs no events of its own: plan-allocate reuses only what these
// events order. So two kinds of instructions that take only states, and could start at any time,
// are held back: what they write too early takes memory, and where nothing says how far the compute
// queue has come, no memory is known to be free for it. A move to the device waits for what stands
// before it on the compute queue, an exchange of a state for what stands some way before it. And
// the compute queue waits for moves to the host that stand some way behind it: what they move is
// free only once that is known.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "QueueClocks.h"
#include "moira/Conversion/PlanPasses.h"
#include "moira/rt/CallRegistry.h"
#include <deque>

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

struct InsertEventsPass : PassWrapper<InsertEventsPass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(InsertEventsPass)
  StringRef getArgument() const final { return "plan-insert-events"; }
  StringRef getDescription() const final { return "Order the queues by events"; }
  void runOnOperation() final {
    for (auto program : getOperation().getOps<ProgramOp>())
      insertEvents(program);
  }
  void insertEvents(ProgramOp program);
  void holdBack(ArrayRef<InstructionInterface> instrs,
                std::vector<SmallVector<unsigned, 4>> &needs);
  Statistic numEvents{this, "events", "events recorded"};
  Statistic numWaits{this, "waits", "waits inserted"};
};

/// Whether --plan-fuse-squares made it of two calls.
bool addsUp(InstructionInterface instr) {
  auto call = dyn_cast<CallOp>(instr.getOperation());
  if (!call)
    return false;
  const rt::CallDesc &desc = *rt::findCall(std::string_view(call.getCallee()));
  std::optional<size_t> squares = rt::squaresOutput(desc);
  return squares && call.getOutputs().size() > *squares;
}

void InsertEventsPass::holdBack(ArrayRef<InstructionInterface> instrs,
                                std::vector<SmallVector<unsigned, 4>> &needs) {
  SmallVector<unsigned> computed; // what stands on the compute queue
  std::deque<unsigned> toHost;    // moves that nothing waits for yet
  for (unsigned i = 0; i < instrs.size(); ++i) {
    InstructionInterface instr = instrs[i];
    if (instr.getQueue() == kToHostQueue)
      toHost.push_back(i);
    if (instr.getQueue() == kToDeviceQueue && !computed.empty())
      needs[i].push_back(computed.back());
    if (instr.getQueue() == kCommQueue && computed.size() >= kPrefetch &&
        llvm::any_of(instr.getReads(), isState))
      needs[i].push_back(computed[computed.size() - kPrefetch]);
    if (instr.getQueue() != kComputeQueue)
      continue;
    computed.push_back(i);
    if (addsUp(instr)) // and was two when it was scheduled
      computed.push_back(i);
    std::optional<unsigned> old;
    for (; !toHost.empty() && toHost.front() + kMoveDistance <= i; toHost.pop_front())
      old = toHost.front();
    if (old)
      needs[i].push_back(*old);
  }
}

void InsertEventsPass::insertEvents(ProgramOp program) {
  SmallVector<InstructionInterface> instrs = instructionsOf(program);
  std::vector<SmallVector<unsigned, 4>> needs(instrs.size());
  forEachDependence(instrs, [&](unsigned i, unsigned earlier) { needs[i].push_back(earlier); });
  holdBack(instrs, needs);

  QueueClocks clocks(program);
  std::vector<Clock> after(instrs.size()); // what is known once instruction i is done
  std::vector<RecordOp> records(instrs.size());
  for (auto [i, instr] : llvm::enumerate(instrs)) {
    unsigned queue = clocks.queueOf(instr);
    // The last instruction of each queue that this one must wait for; 0-based positions, −1 none.
    Clock last(clocks.numQueues(), -1);
    for (unsigned j : needs[i]) {
      int64_t &position = last[clocks.queueOf(instrs[j])];
      position = std::max<int64_t>(position, j);
    }
    for (unsigned other = 0; other < clocks.numQueues(); ++other) {
      int64_t j = last[other];
      if (other == queue || j <= clocks.before(queue)[other])
        continue;
      if (!records[j]) {
        InstructionInterface producer = instrs[j];
        OpBuilder builder(producer->getContext());
        builder.setInsertionPointAfter(producer);
        records[j] =
            RecordOp::create(builder, producer->getLoc(), EventType::get(builder.getContext()),
                             builder.getStringAttr(producer.getQueue()),
                             producer->getAttrOfType<StringAttr>("place"),
                             producer->getAttrOfType<IntegerAttr>("layer"));
        ++numEvents;
      }
      // Views stay right before the instruction that they are for.
      Operation *before = instr;
      while (before->getPrevNode() && isa<ViewOp>(before->getPrevNode()))
        before = before->getPrevNode();
      OpBuilder builder(before);
      WaitOp::create(builder, instr->getLoc(), records[j], builder.getStringAttr(instr.getQueue()),
                     instr->getAttrOfType<StringAttr>("place"),
                     instr->getAttrOfType<IntegerAttr>("layer"));
      ++numWaits;
      clocks.wait(queue, after[j]);
    }
    after[i] = clocks.run(queue, i);
  }
}

} // namespace

std::unique_ptr<Pass> moira::createPlanInsertEventsPass() {
  return std::make_unique<InsertEventsPass>();
}
