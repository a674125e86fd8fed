//===- Allocate.cpp - --plan-allocate -------------------------------------===//
// Addresses for all views and sizes for all arenas. A view is alive from its first access to the
// first position from which on whoever makes a view of its arena knows that all its accesses are
// done; two views share memory only if they are not alive together. So no reuse needs an event of
// its own: who reads a view is ordered behind who makes it. Ragged views
// lie in an arena of which every offset and size is a multiple of B: what does not overlap for one
// B overlaps for none.
//===----------------------------------------------------------------------===//
#include "ProgramBuilder.h"
#include "QueueClocks.h"
#include "moira/Conversion/IntervalAllocator.h"
#include "moira/Conversion/PlanPasses.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

namespace {

/// When the views of a program are alive, in positions of its total order.
class Liveness {
public:
  explicit Liveness(ProgramOp program);
  LiveInterval intervalOf(ViewOp view) const;
  InstructionInterface at(int64_t position) const { return instrs[position]; }

private:
  /// The first position from which on all instructions that make a view of the arena know that
  /// `accesses` are done.
  int64_t freeAfter(StringRef arena, const Clock &accesses) const;

  SmallVector<InstructionInterface> instrs;
  std::vector<Clock> before; // what instruction i knows when it starts
  /// By arena: positions of each queue's instructions that are the first to access a view.
  llvm::StringMap<std::vector<std::vector<int64_t>>> makers;
  struct Access {
    int64_t first = 0;
    Clock last; // position of the last access on each queue
  };
  llvm::DenseMap<Value, Access> accesses;
  llvm::DenseSet<Value> wholeProgram; // inputs and outputs
};

Liveness::Liveness(ProgramOp program) : instrs(instructionsOf(program)) {
  QueueClocks clocks(program);
  llvm::DenseMap<Value, Clock> events;
  for (auto [i, instr] : llvm::enumerate(instrs)) {
    unsigned queue = clocks.queueOf(instr);
    if (auto wait = dyn_cast<WaitOp>(instr.getOperation()))
      clocks.wait(queue, events.lookup(wait.getEvent()));
    before.push_back(clocks.before(queue));
    const Clock &after = clocks.run(queue, i);
    if (auto record = dyn_cast<RecordOp>(instr.getOperation()))
      events[record.getEvent()] = after;
    auto touch = [&, position = static_cast<int64_t>(i)](Value view) {
      auto [access, fresh] =
          accesses.try_emplace(view, Access{position, Clock(clocks.numQueues(), -1)});
      access->second.last[queue] = position;
      if (!fresh)
        return;
      auto &queues = makers[cast<ViewOp>(view.getDefiningOp()).getArena()];
      queues.resize(clocks.numQueues());
      queues[queue].push_back(position);
    };
    llvm::for_each(instr.getReads(), touch);
    llvm::for_each(instr.getWrites(), touch);
  }
  for (auto input : program.getOps<InputOp>())
    wholeProgram.insert(input.getView());
  for (auto output : program.getOps<OutputOp>())
    wholeProgram.insert(output.getView());
}

int64_t Liveness::freeAfter(StringRef arena, const Clock &last) const {
  int64_t free = 0;
  for (const std::vector<int64_t> &queue : makers.find(arena)->second) {
    // What a queue knows only grows, so those that do not know yet are a prefix.
    auto knows = llvm::partition_point(queue, [&](int64_t position) {
      for (auto [known, access] : llvm::zip(before[position], last))
        if (known < access)
          return true;
      return false;
    });
    if (knows != queue.begin())
      free = std::max(free, *std::prev(knows) + 1);
  }
  return free;
}

LiveInterval Liveness::intervalOf(ViewOp view) const {
  uint64_t bytes = view.getType().numBytes();
  auto access = accesses.find(view);
  if (wholeProgram.contains(view) || access == accesses.end())
    return {-1, static_cast<int64_t>(instrs.size()) + 1, bytes};
  return {access->second.first, freeAfter(view.getArena(), access->second.last), bytes};
}

struct AllocatePass : PassWrapper<AllocatePass, OperationPass<PlanOp>> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(AllocatePass)
  AllocatePass() = default;
  AllocatePass(const AllocatePass &other) : PassWrapper(other) {}
  StringRef getArgument() const final { return "plan-allocate"; }
  StringRef getDescription() const final { return "Give every view an address"; }
  void runOnOperation() final {
    for (auto program : getOperation().getOps<ProgramOp>()) {
      Liveness liveness(program);
      for (auto arena : program.getOps<ArenaOp>())
        if (arena.getRole() != ArenaRole::state)
          allocate(arena, liveness);
    }
  }
  void allocate(ArenaOp arena, const Liveness &liveness);

  Option<bool> remarkPeak{*this, "remark-peak",
                          llvm::cl::desc("a remark at the instruction where most memory is alive"),
                          llvm::cl::init(false)};
  Statistic numViews{this, "views", "views placed"};
  Statistic wasted{this, "wasted-bytes", "bytes of peaks above what is alive at once"};
};

void AllocatePass::allocate(ArenaOp arena, const Liveness &liveness) {
  bool ragged = arena.getRole() == ArenaRole::ragged;
  SmallVector<ViewOp> views;
  std::vector<LiveInterval> intervals;
  for (auto view : cast<ProgramOp>(arena->getParentOp()).getOps<ViewOp>())
    if (view.getArena() == arena.getName() && !view.getOffset()) {
      views.push_back(view);
      intervals.push_back(liveness.intervalOf(view));
    }
  Placement placement = placeIntervals(intervals, kAlignment);
  Builder builder(arena.getContext());
  for (auto [view, offset] : llvm::zip(views, placement.offsets)) {
    view.setOffsetAttr(builder.getI64IntegerAttr(ragged ? 0 : offset));
    if (ragged)
      view.setPerBoundAttr(builder.getI64IntegerAttr(offset));
  }
  LiveMaximum most = maxLive(intervals, kAlignment);
  numViews += views.size();
  wasted += placement.peak - most.bytes;
  if (ragged)
    arena.setPerBound(placement.peak);
  else
    arena.setBytes(placement.peak);
  if (remarkPeak && !views.empty())
    liveness.at(std::max<int64_t>(most.time, 0))->emitRemark()
        << "most of arena '" << arena.getName() << "' is alive here: " << most.bytes << " of "
        << placement.peak << " bytes" << (ragged ? " a row of B" : "");
}

} // namespace

std::unique_ptr<Pass> moira::createPlanAllocatePass() { return std::make_unique<AllocatePass>(); }
