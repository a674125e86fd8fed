//===- Supervision.cpp - a rank's process among others --------------------===//
// See Supervision.h.
//===----------------------------------------------------------------------===//
#include "Supervision.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace moira::rt {

namespace {

constexpr std::chrono::seconds kGrace(2); // for the rank's own thread to come back

[[noreturn]] void endProcess(const Status &cause) {
  std::fflush(nullptr);
  std::_Exit(cause.exitCode());
}

} // namespace

Supervision::~Supervision() {
  if (communicator)
    communicator->supervise({});
}

void Supervision::begin(Communicator &given, const RunSession &session, const Report &report) {
  communicator = &given;
  FailureHooks hooks;
  hooks.where = [&session] { return session.where(); };
  hooks.settled = [report](const Status &cause, bool mine) {
    if (mine && report)
      report(cause);
    // A thread that hangs cannot be ended; the process can.
    std::thread([cause] {
      std::this_thread::sleep_for(kGrace);
      endProcess(cause);
    }).detach();
  };
  communicator->supervise(std::move(hooks));
}

MeetingWatch::MeetingWatch(const LaunchInfo &launch, double timeoutSeconds,
                           Supervision::Report report) {
  if (timeoutSeconds <= 0)
    return;
  // Communicators that know who is absent say so before, by their own limits of up to 5 s more.
  bool knows = launch.launcher != "mpirun" && launch.launcher != "srun";
  double patience =
      timeoutSeconds + (knows ? 6 : 0.5) + 0.25 * static_cast<double>(std::min(launch.rank, 8));
  thread = std::thread([=, this] {
    std::unique_lock lock(mutex);
    if (changed.wait_for(lock, std::chrono::duration<double>(patience), [&] { return over; }))
      return;
    Status cause(ErrorId::RankFailed,
                 format("the %d ranks of %s have not met within %g s (seen by rank %d); one of "
                        "them has not arrived or is stopped, look at their own messages, or allow "
                        "more time with --timeout=SECONDS",
                        launch.size, launch.launcher.c_str(), timeoutSeconds, launch.rank));
    if (report)
      report(cause);
    endProcess(cause);
  });
}

void MeetingWatch::end() {
  {
    std::lock_guard lock(mutex);
    over = true;
  }
  changed.notify_all();
  if (thread.joinable())
    thread.join();
}

} // namespace moira::rt
