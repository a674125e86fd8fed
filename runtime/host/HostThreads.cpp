//===- HostThreads.cpp - a rank thread's workers ----------------------------===//
// See HostThreads.h. A job is over when its tasks are, whether or not every worker has seen that
// there was one: a worker for which the system has no core keeps nobody waiting.
//===----------------------------------------------------------------------===//
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <pthread.h>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moira::rt {
namespace host {
namespace {

/// How long a thread looks for work, or for the end of others' work, before it gives its core away:
/// longer than what lies between two products of a decode step.
constexpr std::chrono::microseconds kPatience{60};

/// Whether `ready()` comes true soon.
template <typename Ready> bool soon(Ready ready) {
  auto end = std::chrono::steady_clock::now() + kPatience;
  do
    for (int i = 0; i < 32; ++i) {
      if (ready())
        return true;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  while (std::chrono::steady_clock::now() < end);
  return false;
}

class Workers {
public:
  explicit Workers(int count) {
    try {
      for (int i = 0; i < count; ++i)
        threads.emplace_back([this] { work(); });
    } catch (const std::system_error &) { // no more threads: the ones there do the work
    }
  }
  ~Workers() {
    left.store(kEnd);
    left.notify_all();
    for (std::thread &thread : threads)
      thread.join();
  }

  void run(int32_t count, void (*fn)(void *, int32_t), void *data) {
    task = fn;
    context = data;
    tasks = count;
    done.store(0, std::memory_order_relaxed);
    left.store(count, std::memory_order_release);
    left.notify_all();
    takeTasks();
    auto over = [&] { return done.load(std::memory_order_acquire) == count; };
    while (!soon(over))
      std::this_thread::yield();
  }

private:
  static constexpr int32_t kEnd = -1;

  /// Does tasks until none is left to begin.
  void takeTasks() {
    int32_t n = left.load(std::memory_order_acquire);
    while (n > 0) {
      if (!left.compare_exchange_weak(n, n - 1, std::memory_order_acq_rel))
        continue;
      // This task is not done, so its job is not over and the members are that job's.
      task(context, tasks - n);
      done.fetch_add(1, std::memory_order_release);
      n = left.load(std::memory_order_acquire);
    }
  }

  void work() {
    auto called = [&] { return left.load(std::memory_order_relaxed) != 0; };
    while (left.load(std::memory_order_relaxed) != kEnd) {
      takeTasks();
      if (!soon(called))
        left.wait(0);
    }
  }

  std::vector<std::thread> threads;
  void (*task)(void *, int32_t) = nullptr;
  void *context = nullptr;
  int32_t tasks = 0;
  std::atomic<int32_t> left{0}, done{0}; // tasks that nobody has begun, and finished ones
};

thread_local int threadsOfCalls = 1;
thread_local std::unique_ptr<Workers> workers; // of this rank thread, once it has had work for them

/// After a fork the child has a copy of the workers' memory, and none of their threads to join:
/// what it got is left alone, and it makes its own.
void forgetWorkersInChildren() {
  [[maybe_unused]] static const int once =
      pthread_atfork(nullptr, nullptr, [] { (void)workers.release(); });
}

} // namespace

void runTasks(int32_t tasks, void (*task)(void *context, int32_t i), void *context) {
  if (tasks > 1 && threadsOfCalls > 1) {
    if (!workers) {
      forgetWorkersInChildren();
      workers = std::make_unique<Workers>(threadsOfCalls - 1);
    }
    workers->run(tasks, task, context);
    return;
  }
  for (int32_t i = 0; i < tasks; ++i)
    task(context, i);
}

} // namespace host

void setHostThreads(int threads) {
  threads = std::max(threads, 1);
  if (threads != host::threadsOfCalls)
    host::workers.reset();
  host::threadsOfCalls = threads;
}

} // namespace moira::rt
