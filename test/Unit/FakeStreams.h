//===- FakeStreams.h - work that waits on fake streams ----------*- C++ -*-===//
// What FakeCuda.cpp and FakeNccl.cpp share.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_FAKESTREAMS_H
#define MOIRA_TEST_UNIT_FAKESTREAMS_H

#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace moira::test::fake {

/// A piece of work; false: it cannot be done yet, ask again.
using Work = std::function<bool()>;

struct Stream {
  std::deque<Work> work;
  std::unique_ptr<std::vector<Work>> capture;
};

/// Adds work to a stream, or to the graph that it records.
void enqueue(void *stream, Work work);

} // namespace moira::test::fake

#endif // MOIRA_TEST_UNIT_FAKESTREAMS_H
