//===- Spawn.h - ranks as processes of this machine -------------*- C++ -*-===//
// What a plain moe-run does for devices that need one process a rank: it starts itself once for
// each and waits. The processes find each other over TCP.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SPAWN_H
#define MOIRA_RT_SPAWN_H

#include "moira/rt/Status.h"

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace moira::rt {

struct SpawnOptions {
  std::string program;                // a path
  std::vector<std::string> arguments; // without the program's name
  int ranks = 1;
  /// How long the others may take to end once one has failed; then they are killed.
  double graceSeconds = 3;
  /// Becomes the number of a signal that this process has got and the ranks shall end in order for:
  /// they are sent a SIGTERM. May be null.
  const std::atomic<int> *stop = nullptr;
};

struct SpawnResult {
  /// 0 if all ranks succeeded, else the first failing one's; 5 if that one was killed; 128+n if
  /// they have ended because of the signal n that this process has got.
  int exitCode = 0;
  /// What no rank could say itself: which one was killed first, by which signal, and where another
  /// one was then. Otherwise success, the ranks have spoken.
  Status status;
};

/// Starts the ranks (see discoverLaunch for what they find in their environment) and waits for all.
/// They end when this process does. OutOfMemory if they cannot be started.
Expected<SpawnResult> runRanksAsProcesses(const SpawnOptions &options);

/// For a rank started so: asks the system to end it together with its parent.
void followParent();

/// The program of this process and its arguments, to start it again.
std::string ownProgram();
std::vector<std::string> ownArguments();

} // namespace moira::rt

#endif // MOIRA_RT_SPAWN_H
