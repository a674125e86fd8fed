//===- Watchdog.cpp - notices what a device cannot say ----------------------===//
// See Watchdog.h.
//===----------------------------------------------------------------------===//
#include "Watchdog.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace moira::rt::cuda {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPeriod(20);
constexpr std::chrono::seconds kGrace(2); // for the rank's own thread to come back

} // namespace

Watchdog::Watchdog(Subject given) : subject(std::move(given)), thread([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex);
    stop = true;
  }
  changed.notify_all();
  thread.join();
}

void Watchdog::begin() {
  std::lock_guard lock(mutex);
  running = true;
  stamp = subject.progress->stamp();
  moved = Clock::now();
  changed.notify_all();
}

void Watchdog::end() {
  std::lock_guard lock(mutex);
  running = false;
  changed.notify_all();
}

Status Watchdog::verdict() const {
  std::lock_guard lock(mutex);
  return failure;
}

/// With the mutex held.
Status Watchdog::look() {
  int rank = subject.host->rank();
  std::string where;
  for (size_t q = 0; q < subject.progress->queues(); ++q)
    if (std::optional<uint32_t> at = subject.progress->at(q); at && subject.waitsForRanks(*at))
      where = subject.describe(*at);
  if (Status news = subject.host->news(); !news)
    return news;
  if (Status error = subject.groups->asyncError(); !error) {
    const Diagnostic &first = error.diagnostics().front();
    return Status(first.id, format("rank %d: %s%s%s", rank, first.message.c_str(),
                                   where.empty() ? "" : " in ", where.c_str()));
  }
  uint64_t now = subject.progress->stamp();
  if (now != stamp) {
    stamp = now;
    moved = Clock::now();
  }
  std::chrono::duration<double> still = Clock::now() - moved;
  if (subject.timeoutSeconds <= 0 || where.empty() || still.count() <= subject.timeoutSeconds)
    return {};
  std::string silent;
  for (int r : subject.host->silentRanks())
    silent += (silent.empty() ? "" : ", ") + std::to_string(r);
  return Status(
      ErrorId::RankFailed,
      format("no answer within %g s in %s%s%s (seen by rank %d); look at the other ranks' "
             "own messages, or allow more time with --timeout=SECONDS if one is only slow",
             subject.timeoutSeconds, where.c_str(), silent.empty() ? "" : " from rank ",
             silent.c_str(), rank));
}

void Watchdog::watch() {
  std::unique_lock lock(mutex);
  while (!stop) {
    changed.wait(lock, [&] { return running || stop; });
    if (stop)
      return;
    failure = look();
    if (failure.ok()) {
      changed.wait_for(lock, kPeriod, [&] { return !running || stop; });
      continue;
    }
    // NCCL's kernels end when their communicators do, which frees a thread that waits to enqueue
    // more. It can take long itself, so it has its own thread, which nobody waits for.
    std::thread([groups = subject.groups] { groups->abort(); }).detach();
    if (changed.wait_for(lock, kGrace, [&] { return !running || stop; }))
      return;
    Status words = failure;
    lock.unlock();
    subject.host->abort(words); // somebody reports it, if it is news
    if (Status news = subject.host->news(); !news)
      words = news;
    std::fflush(nullptr);
    std::_Exit(words.exitCode());
  }
}

} // namespace moira::rt::cuda
