//===- Supervision.h - a rank's process among others ------------*- C++ -*-===//
// Ends this process when the ranks have settled on a failure, or when they do not find each other.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_SUPERVISION_H
#define MOIRA_RT_CORE_SUPERVISION_H

#include "RunSession.h"

#include <condition_variable>
#include <mutex>
#include <thread>

namespace moira::rt {

/// Between begin() and its end a failure of any rank is reported (by one process) and ends this
/// process within two seconds, whatever its own thread does, with the failure's exit code.
class Supervision {
public:
  using Report = std::function<void(const Status &)>;
  Supervision() = default;
  ~Supervision();
  /// `communicator` and `session` outlive this.
  void begin(Communicator &communicator, const RunSession &session, const Report &report);

private:
  Communicator *communicator = nullptr;
};

/// Between its making and end(): a launcher's ranks find each other. Some launchers' own means
/// (MPI) wait for an absent rank for ever; here it ends this process with a report a little after
/// the timeout, lower ranks first.
class MeetingWatch {
public:
  MeetingWatch(const LaunchInfo &launch, double timeoutSeconds, Supervision::Report report);
  ~MeetingWatch() { end(); }
  void end();

private:
  std::mutex mutex;
  std::condition_variable changed;
  bool over = false;
  std::thread thread;
};

} // namespace moira::rt

#endif // MOIRA_RT_CORE_SUPERVISION_H
