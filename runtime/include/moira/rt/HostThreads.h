//===- HostThreads.h - one call's work on several threads -------*- C++ -*-===//
// What the host's fast calls and launches share their work out with. Each rank thread has workers
// of its own, which wait between calls: a decode step has hundreds of calls that take less than a
// thread's start.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOSTTHREADS_H
#define MOIRA_RT_HOSTTHREADS_H

#include "moira/rt/Status.h"

#include <cstdint>
#include <mutex>
#include <new>

namespace moira::rt {

/// Threads that each call and launch of the calling rank thread may use, this one among them. No
/// bit of a result depends on it.
void setHostThreads(int threads);

namespace host {

/// task(context, i) for every i in [0, tasks), begun in this order, on the calling thread and its
/// workers (setHostThreads). Returns when all are done, with all that they wrote visible. Tasks do
/// not throw and do not share out work themselves.
void runTasks(int32_t tasks, void (*task)(void *context, int32_t i), void *context);

/// fn(i) for every i in [0, tasks), as runTasks. What is computed must not depend on which thread
/// computes it.
template <typename Fn> void parallelFor(int64_t tasks, Fn fn) {
  runTasks(
      int32_t(tasks), [](void *context, int32_t i) { (*static_cast<Fn *>(context))(int64_t(i)); },
      &fn);
}

/// The same where tasks may fail, or throw std::bad_alloc: what the first failing one returned.
template <typename Fn> Status parallelTry(int64_t tasks, Fn fn) {
  std::mutex mutex;
  int64_t failed = tasks;
  Status first;
  parallelFor(tasks, [&](int64_t i) {
    Status status;
    try {
      status = fn(i);
    } catch (const std::bad_alloc &) {
      status = Status(ErrorId::OutOfMemory, "memory for a call's intermediate values");
    }
    if (status)
      return;
    std::lock_guard lock(mutex);
    if (i < failed) {
      failed = i;
      first = std::move(status);
    }
  });
  return first;
}

} // namespace host
} // namespace moira::rt

#endif // MOIRA_RT_HOSTTHREADS_H
