//===- HostProcessTest.cpp - calls in somebody else's process --------------===//
// What a program that embeds the runtime has set for itself stays as it was.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "OneDnn.h"
#include "Sgemm.h"

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

} // namespace
} // namespace moira::rt::host
