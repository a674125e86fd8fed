//===- QueueClocks.h - which instructions are known to be done --*- C++ -*-===//
// Vector clocks over the queues of a program. Events are placed by them and memory is reused by
// them.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_CONVERSION_QUEUECLOCKS_H
#define MOIRA_LIB_CONVERSION_QUEUECLOCKS_H

#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "llvm/ADT/StringMap.h"

namespace moira {

/// How many instructions moves to the device, and what the host does for them, may start ahead of
/// the work that is next; and how many after them the device goes on before it waits for moves to
/// the host.
inline constexpr unsigned kMoveDistance = 48;

/// How many instructions an exchange that nothing holds back may start ahead of the work that is
/// next: a gather of a weight, which would otherwise start with the program and keep its result
/// alive until the use.
inline constexpr unsigned kPrefetch = 16;

/// For every queue, the last position of which an observer knows that it is done; −1: none. A queue
/// runs in order, so everything before that position on that queue is done too.
using Clock = llvm::SmallVector<int64_t, 3>;

/// Clocks of all queues while walking over a program in its total order. Positions are the
/// caller's, increasing.
class QueueClocks {
public:
  explicit QueueClocks(plan::ProgramOp program);

  unsigned numQueues() const { return clocks.size(); }
  unsigned queueOf(plan::InstructionInterface instr) const {
    return indices.lookup(instr.getQueue());
  }
  /// What the next instruction on `queue` knows to be done.
  const Clock &before(unsigned queue) const { return clocks[queue]; }
  /// Position `at` on `queue` has run. Returns what whoever waits for it then knows.
  const Clock &run(unsigned queue, int64_t at);
  /// `queue` waits for something with that clock.
  void wait(unsigned queue, const Clock &other);

private:
  llvm::StringMap<unsigned> indices;
  std::vector<Clock> clocks;
};

/// Instructions of a program, in order.
llvm::SmallVector<plan::InstructionInterface> instructionsOf(plan::ProgramOp program);

/// Whether `view` is a state's, on the device or on its host.
bool isState(mlir::Value view);

/// Order that the uses of views impose before there are addresses: calls visit(i, j) for every
/// instruction i that must wait for an earlier instruction j, because it reads what j wrote or
/// writes what j read or wrote.
void forEachDependence(llvm::ArrayRef<plan::InstructionInterface> instrs,
                       llvm::function_ref<void(unsigned, unsigned)> visit);

} // namespace moira

#endif // MOIRA_LIB_CONVERSION_QUEUECLOCKS_H
