//===- QueueClocks.cpp - which instructions are known to be done ----------===//
#include "QueueClocks.h"
#include "ProgramBuilder.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

QueueClocks::QueueClocks(ProgramOp program) {
  for (auto queue : program.getQueues().getAsRange<StringAttr>())
    indices[queue.getValue()] = indices.size();
  clocks.assign(indices.size(), Clock(indices.size(), -1));
}

const Clock &QueueClocks::run(unsigned queue, int64_t at) {
  clocks[queue][queue] = at;
  return clocks[queue];
}

void QueueClocks::wait(unsigned queue, const Clock &other) {
  for (auto [mine, theirs] : llvm::zip(clocks[queue], other))
    mine = std::max(mine, theirs);
}

SmallVector<InstructionInterface> moira::instructionsOf(ProgramOp program) {
  SmallVector<InstructionInterface> instrs;
  for (Operation &op : program.getBody().front())
    if (auto instr = dyn_cast<InstructionInterface>(op))
      instrs.push_back(instr);
  return instrs;
}

bool moira::isState(Value view) {
  auto op = view.getDefiningOp<ViewOp>();
  return op && (op.getArena() == kStateArena || op.getArena() == kHostStateArena);
}

void moira::forEachDependence(ArrayRef<InstructionInterface> instrs,
                              llvm::function_ref<void(unsigned, unsigned)> visit) {
  struct Uses {
    std::optional<unsigned> writer;
    SmallVector<unsigned> readers; // since the writer
  };
  llvm::DenseMap<Value, Uses> uses;
  // A step may be repeated from here, so what changes states stays behind it.
  std::optional<unsigned> mayRepeat;
  for (unsigned i = 0; i < instrs.size(); ++i) {
    InstructionInterface instr = instrs[i];
    for (Value view : instr.getReads()) {
      Uses &use = uses[view];
      if (use.writer)
        visit(i, *use.writer);
      use.readers.push_back(i);
    }
    if (isa<RequireBoundOp>(instr.getOperation()))
      mayRepeat = i;
    for (Value view : instr.getWrites()) {
      if (mayRepeat && isState(view))
        visit(i, *mayRepeat);
      Uses &use = uses[view];
      if (use.writer && *use.writer != i)
        visit(i, *use.writer);
      for (unsigned reader : use.readers)
        if (reader != i)
          visit(i, reader);
      use.writer = i;
      use.readers.clear();
    }
  }
}
