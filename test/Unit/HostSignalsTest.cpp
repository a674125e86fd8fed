//===- HostSignalsTest.cpp - signals that come during products ------------===//
// A signal's frame is written below the stack pointer of the thread that it interrupts. Handlers
// must therefore never see one that is not on the thread's stack.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "OneDnn.h"
#include "Sgemm.h"

#include <atomic>
#include <csignal>
#include <ctime>
#include <pthread.h>

namespace moira::rt::host {
namespace {

uintptr_t stackLow, stackHigh;
std::atomic<int> onStack, elsewhere;

void look(int) {
  auto here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  ++(here >= stackLow && here < stackHigh ? onStack : elsewhere);
}

TEST(HostSignals, AreHandledOnTheThreadsStack) {
  if (!OneDnn::get())
    GTEST_SKIP() << "oneDNN is not installed";
  pthread_attr_t attributes;
  void *low = nullptr;
  size_t size = 0;
  ASSERT_EQ(pthread_getattr_np(pthread_self(), &attributes), 0);
  pthread_attr_getstack(&attributes, &low, &size);
  pthread_attr_destroy(&attributes);
  stackLow = reinterpret_cast<uintptr_t>(low), stackHigh = stackLow + size;
  onStack = elsewhere = 0;

  struct sigaction action = {}, before = {};
  action.sa_handler = look;
  ASSERT_EQ(sigaction(SIGUSR2, &action, &before), 0);
  sigset_t maskBefore;
  pthread_sigmask(SIG_SETMASK, nullptr, &maskBefore);
  sigevent event = {};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR2;
  timer_t timer;
  ASSERT_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
  itimerspec often = {{0, 200'000}, {0, 200'000}};
  timer_settime(timer, 0, &often, nullptr);

  // Deep enough that oneDNN's kernel keeps its panels in memory of its own.
  int64_t m = 96, n = 96, k = 2048;
  std::vector<float> a(size_t(m * k), 1), b(size_t(k * n), 1), c(size_t(m * n));
  CallParams none;
  Call call{"product", {}, {}, none, nullptr};
  for (int i = 0; i < 20'000 && onStack + elsewhere < 1000; ++i)
    ASSERT_TRUE(sgemm(call, {false, false, m, n, k, a.data(), k, b.data(), n, c.data(), n}));
  timer_delete(timer);
  sigaction(SIGUSR2, &before, nullptr);

  EXPECT_GE(onStack, 1000);
  EXPECT_EQ(elsewhere, 0);
  EXPECT_EQ(c[0], float(k));
  sigset_t maskAfter;
  pthread_sigmask(SIG_SETMASK, nullptr, &maskAfter);
  for (int signal = 1; signal < NSIG; ++signal)
    EXPECT_EQ(sigismember(&maskBefore, signal), sigismember(&maskAfter, signal)) << signal;
}

} // namespace
} // namespace moira::rt::host
