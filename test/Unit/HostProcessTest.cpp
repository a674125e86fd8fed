//===- HostProcessTest.cpp - calls in somebody else's process --------------===//
// What a program that embeds the runtime has set for itself stays as it was.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "OneDnn.h"
#include "Sgemm.h"
#include "moira/rt/HostThreads.h"

#include <atomic>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace moira::rt::host {
namespace {

TEST(HostProcess, GetsItsThreadsOfOpenMpBack) {
  const OneDnn *library = OneDnn::get();
  if (!library || !library->threads)
    GTEST_SKIP() << "oneDNN is not installed, or uses no OpenMP";
  int before = library->threads();
  float a[4] = {1, 2, 3, 4}, c[4] = {};
  CallParams none;
  Call call{"product", {}, {}, none, nullptr};
  for (int threads : {5, 1, 3}) {
    library->setThreads(threads);
    ASSERT_TRUE(sgemm(call, {false, false, 2, 2, 2, a, 2, a, 2, c, 2}));
    EXPECT_EQ(library->threads(), threads);
  }
  EXPECT_EQ(c[3], 22);
  library->setThreads(before);
}

TEST(HostProcess, MayForkBetweenCalls) {
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
  GTEST_SKIP() << "ThreadSanitizer ends a forked child that makes threads";
#endif
#endif
  setHostThreads(3);
  auto sum = [] {
    std::atomic<int> total = 0;
    parallelFor(64, [&](int64_t i) { total += int(i); });
    return total.load();
  };
  EXPECT_EQ(sum(), 2016); // makes workers, which a child has none of
  pid_t child = fork();
  if (child == 0) {
    alarm(20);
    bool right = sum() == 2016;
    for (int i = 0; i < 4; ++i)
      std::thread([] {}).join(); // takes the stack of a thread that is not here
    setHostThreads(2);           // ends those of before
    right = right && sum() == 2016;
    setHostThreads(1);
    _exit(right ? 0 : 1); // checkers of leaks find what was on the stacks of threads that are gone
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(sum(), 2016);
  setHostThreads(1);
}

} // namespace
} // namespace moira::rt::host
