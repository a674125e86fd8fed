//===- Ranks.cpp - the ranks that live in this process --------------------===//
// See Ranks.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Ranks.h"

#include "moira/rt/Device.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <sched.h>
#include <system_error>
#include <thread>

namespace moira::rt {
namespace {

constexpr int kMaxThreads = 256;

// How long a rank may take to come back once another one has failed.
constexpr std::chrono::seconds kGrace(5);

} // namespace

int usableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

Expected<Ranks> Ranks::threads(int count, double timeoutSeconds) {
  if (count > kMaxThreads)
    return Status(ErrorId::WrongWorldSize,
                  format("the plan has %d ranks, at most %d can be threads of one process; use "
                         "`mpirun -np %d moe-run …`",
                         count, kMaxThreads, count));
  Ranks ranks;
  ranks.communicators = makeThreadCommunicators(count, timeoutSeconds);
  ranks.libraryThreads = std::max(1, usableCores() / count);
  return ranks;
}

Ranks Ranks::process(std::unique_ptr<Communicator> communicator, const LaunchInfo &launch) {
  Ranks ranks;
  ranks.communicators.push_back(std::move(communicator));
  // A launcher that binds its processes has already divided the cores.
  int cores = usableCores();
  bool bound = cores < static_cast<int>(std::thread::hardware_concurrency());
  ranks.libraryThreads = std::max(1, bound ? cores : cores / std::max(1, launch.localSize));
  return ranks;
}

Ranks::Verdict Ranks::shared(Status agreed) {
  bool lost = !agreed.ok() && agreed.diagnostics().front().id == ErrorId::RankFailed;
  return Verdict(std::move(agreed), !lost);
}

Status Ranks::each(const std::function<Verdict(int)> &fn) {
  std::mutex mutex;
  std::condition_variable changed;
  int finished = 0;
  Status first;

  auto one = [&](int local) {
    setHostThreads(libraryThreads);
    Verdict verdict{Status()};
    try {
      verdict = fn(local);
    } catch (const std::bad_alloc &) {
      verdict = Status(ErrorId::OutOfMemory, format("rank %d: memory for the runtime's own tables",
                                                    communicators[local]->rank()));
    } catch (const std::exception &error) {
      verdict = Status(ErrorId::Internal,
                       format("rank %d: %s", communicators[local]->rank(), error.what()));
    }
    bool aborts = !verdict.status.ok() && !verdict.shared;
    {
      // Recorded before the others are told, so that what they then fail with cannot be first.
      std::lock_guard lock(mutex);
      if (first.ok())
        first = verdict.status;
    }
    if (aborts)
      communicators[local]->abort(verdict.status);
    if (aborts && communicators.size() == 1 && worldSize() > 1) {
      told = true;
      if (Status cause = communicators[local]->news(); !cause)
        first = cause;
    }
    std::lock_guard lock(mutex);
    ++finished;
    changed.notify_all();
  };

  if (communicators.size() == 1) {
    one(0);
    return first;
  }
  std::vector<std::thread> threads;
  try {
    for (int i = 0; i < localSize(); ++i)
      threads.emplace_back(one, i);
  } catch (const std::system_error &error) {
    Status status(ErrorId::OutOfMemory, format("thread %zu of %d cannot be started: %s",
                                               threads.size(), localSize(), error.what()));
    communicators[0]->abort(status);
    for (std::thread &thread : threads)
      thread.join();
    return status;
  }
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return finished == localSize() || !first.ok(); });
    bool all = changed.wait_for(lock, first.ok() ? std::chrono::seconds(0) : kGrace,
                                [&] { return finished == localSize(); });
    if (!all && lastWords) {
      // A thread that hangs cannot be ended; the process can.
      lastWords(first);
      std::_Exit(first.exitCode());
    }
  }
  for (std::thread &thread : threads)
    thread.join();
  return first;
}

} // namespace moira::rt
