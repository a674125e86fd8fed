//===- CommThreadTest.cpp - communicators between threads -------------------===//
// The conformance suite on 1 to 8 threads, and how failures end: abort, timeout, who is blamed,
// disagreement.
//===----------------------------------------------------------------------===//
#include "CommConformance.h"

#include "gtest/gtest.h"

#include <chrono>
#include <functional>
#include <thread>

using namespace moira;
using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

/// Runs body(communicator) on one thread a rank; returns what each gave back.
std::vector<Status> onRanks(int size, double timeout,
                            const std::function<Status(Communicator &)> &body) {
  auto comms = makeThreadCommunicators(size, timeout);
  std::vector<Status> results(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r)
    threads.emplace_back([&, r] { results[size_t(r)] = body(*comms[size_t(r)]); });
  for (std::thread &t : threads)
    t.join();
  return results;
}

double secondsOf(const std::function<void()> &body) {
  auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Group everybody(Communicator &c) {
  Group g;
  for (int r = 0; r < c.size(); ++r)
    g.members.push_back(r);
  g.self = c.rank();
  return g;
}

Status gather(Communicator &c, const Group &g, const std::string &what) {
  std::vector<int> out(g.members.size());
  int in = c.rank();
  return c.allGather(g, &in, out.data(), sizeof in, what);
}

void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

TEST(CommThreads, Conformance) {
  // Every collective over every kind of group on 1 to 8 ranks gives the exact bits that each rank
  // works out alone.
  for (int size = 1; size <= 8; ++size)
    onRanks(size, 60, [](Communicator &c) {
      EXPECT_STREQ(c.kind(), "threads");
      EXPECT_EQ(CommConformance(c, 42).run(), "");
      return Status();
    });
}

TEST(CommThreads, AbortFailsPendingAndLaterCalls) {
  // Rank 1 gives up while the others wait; they all fail with its cause at once, and so does
  // everything after.
  Status cause(ErrorId::BadInput, "token 7 is out of range");
  double seconds = secondsOf([&] {
    auto results = onRanks(4, 60, [&](Communicator &c) {
      if (c.rank() == 1) {
        pause(0.1);
        c.abort(cause);
        return c.barrier("own later call");
      }
      Status first = gather(c, everybody(c), "gather");
      EXPECT_EQ(first.str(), cause.str());
      return c.barrier("later");
    });
    for (const Status &s : results)
      EXPECT_EQ(s.str(), cause.str());
  });
  EXPECT_LT(seconds, 10);
}

TEST(CommThreads, FirstCauseWinsAndAbortIsThreadSafe) {
  auto comms = makeThreadCommunicators(2, 60);
  std::thread outsider([&] {
    pause(0.05);
    comms[0]->abort(Status(ErrorId::OutOfMemory, "first"));
    comms[1]->abort(Status(ErrorId::BadInput, "second"));
  });
  Status s = comms[0]->barrier("waiting");
  outsider.join();
  EXPECT_NE(s.str().find("first"), std::string::npos) << s.str();
  EXPECT_EQ(comms[1]->barrier("later").str(), s.str());
}

TEST(CommThreads, AbortInTheMiddleOfTraffic) {
  // An abort at any moment ends all ranks; nobody reads a buffer that was given back (sanitizers
  // watch).
  for (int round = 0; round < 20; ++round) {
    auto results = onRanks(4, 60, [&](Communicator &c) {
      for (int i = 0;; ++i) {
        std::vector<float> in(2000, 1), out(8000);
        if (c.rank() == round % 4 && i == 10 + round)
          c.abort(Status(ErrorId::BadRun, "stop"));
        if (Status s = c.allGather(everybody(c), in.data(), out.data(), 8000, "traffic"); !s)
          return s;
        if (Status s = c.allReduce(everybody(c), in.data(), in.data(), 2000, fb::DType::f32,
                                   fb::Reduce::sum, "traffic");
            !s)
          return s;
      }
    });
    for (const Status &s : results)
      EXPECT_NE(s.str().find("stop"), std::string::npos);
  }
}

TEST(CommThreads, TimeoutNamesTheMissingRankAndTheCollective) {
  double seconds = secondsOf([] {
    auto results = onRanks(4, 0.3, [](Communicator &c) {
      if (Status s = c.barrier("step 1"); !s)
        return s;
      if (c.rank() == 2) {
        pause(1);
        return c.barrier("too late");
      }
      return gather(c, everybody(c), "layers.3.mlp: all_gather");
    });
    for (const Status &s : results) {
      EXPECT_EQ(s.exitCode(), 5);
      EXPECT_NE(s.str().find("MOE-0505: no answer within 0.3 s at 'layers.3.mlp: all_gather' from "
                             "rank 2 (last at 'step 1')"),
                std::string::npos)
          << s.str();
    }
  });
  EXPECT_LT(seconds, 3);
}

TEST(CommThreads, TimeoutBlamesWhoeverHoldsUpTheOthers) {
  // Rank 0 waits for 1, which waits for 2, which waits for 3, which sleeps: the culprit is 3,
  // whoever's time runs out first.
  auto results = onRanks(4, 0.4, [](Communicator &c) {
    if (c.rank() == 3) {
      pause(1.2);
      return c.barrier("late");
    }
    pause(0.05 * (2 - c.rank()));
    Group pair{{c.rank(), c.rank() + 1}, 0};
    Status s = gather(c, pair, format("pair %d", c.rank()));
    EXPECT_FALSE(s.ok());
    return s;
  });
  for (const Status &s : results)
    EXPECT_NE(s.str().find("from rank 3 (arrived nowhere yet)"), std::string::npos) << s.str();
}

TEST(CommThreads, RanksThatWaitForEachOtherAreNamed) {
  // Rank 0 waits in one group and rank 1 in another that has the same members: nobody can arrive,
  // both stand in the report.
  auto results = onRanks(2, 0.2, [](Communicator &c) {
    return c.rank() == 0 ? gather(c, Group{{0, 1}, 0}, "zero's")
                         : gather(c, Group{{1, 0}, 0}, "one's");
  });
  for (const Status &s : results) {
    EXPECT_EQ(s.exitCode(), 5);
    EXPECT_TRUE(s.str().find("at 'zero's' from rank 1 (last at 'one's')") != std::string::npos ||
                s.str().find("at 'one's' from rank 0 (last at 'zero's')") != std::string::npos)
        << s.str();
  }
}

TEST(CommThreads, DisagreementIsReportedNotDeadlocked) {
  // One rank reduces 4 elements where the other gathers 4 bytes.
  auto results = onRanks(2, 60, [](Communicator &c) {
    int32_t value = 1, out[4] = {};
    return c.rank() == 0 ? c.allReduce(everybody(c), &value, &value, 1, fb::DType::i32,
                                       fb::Reduce::sum, "here")
                         : c.allGather(everybody(c), &value, out, 4, "here");
  });
  for (const Status &s : results)
    EXPECT_NE(s.str().find(
                  "ranks disagree at 'here': rank 0 does all_reduce of 1, rank 1 all_gather of 4"),
              std::string::npos)
        << s.str();
}

TEST(CommThreads, ManyShortMeetings) {
  // No wakeup is lost over thousands of barriers with more ranks than cores.
  auto results = onRanks(8, 60, [](Communicator &c) {
    for (int i = 0; i < 2000; ++i)
      if (Status s = c.barrier("short"); !s)
        return s;
    return Status();
  });
  for (const Status &s : results)
    EXPECT_TRUE(s.ok()) << s.str();
}

} // namespace
