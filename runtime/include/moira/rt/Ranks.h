//===- Ranks.h - the ranks that live in this process ------------*- C++ -*-===//
// All ranks of a plan as threads, or one rank of a launcher's world. Runs a function on each and
// makes one verdict of their results.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_RANKS_H
#define MOIRA_RT_RANKS_H

#include "moira/rt/Communicator.h"

#include <functional>

namespace moira::rt {

class Ranks {
public:
  /// All `count` ranks as threads of this process; WrongWorldSize if they are too many for that.
  static Expected<Ranks> threads(int count, double timeoutSeconds);
  /// One rank, this process, of a world made by `launch`.
  static Ranks process(std::unique_ptr<Communicator> communicator, const LaunchInfo &launch);

  int worldSize() const { return communicators.front()->size(); }
  int localSize() const { return static_cast<int>(communicators.size()); }
  /// Of local rank `local`; 0 <= local < localSize().
  Communicator &communicator(int local) { return *communicators[local]; }
  bool hasRankZero() const { return communicators.front()->rank() == 0; }
  const char *kind() const { return communicators.front()->kind(); }
  /// Threads that each rank's library calls may use on this machine.
  int threadsPerRank() const { return libraryThreads; }
  void setThreadsPerRank(int threads) { libraryThreads = threads; }

  /// Called with the failure when a local rank does not come back; then this process ends. Not set:
  /// failures are only returned.
  std::function<void(const Status &)> lastWords;

  /// Whether the failure that each() returned is reported by the communicator's hooks, in this
  /// process or another one.
  bool reported() const { return told; }

  /// A rank's result: a failure that every rank shares (from agree()) needs no abort.
  struct Verdict {
    Status status;
    bool shared = false;
    Verdict(Status status, bool shared = false) : status(std::move(status)), shared(shared) {}
  };
  /// `agreed` is what agree() returned: shared, unless the agreement itself was lost.
  static Verdict shared(Status agreed);

  /// Runs fn(local) once for each local rank, in parallel, and waits for all. Returns the failure
  /// that came first in time. A failure that is not shared aborts all other ranks.
  Status each(const std::function<Verdict(int)> &fn);

private:
  Ranks() = default;
  std::vector<std::unique_ptr<Communicator>> communicators;
  int libraryThreads = 1;
  bool told = false;
};

/// Cores that this process may run on.
int usableCores();

} // namespace moira::rt

#endif // MOIRA_RT_RANKS_H
