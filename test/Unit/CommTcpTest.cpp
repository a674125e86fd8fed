//===- CommTcpTest.cpp - the TCP communicator, and ranks as processes -------===//
// Shows that ranks over TCP pass the suite that threads and MPI pass, that ranks which do not come,
// come twice or expect another world are named, and that processes started together end together
// and quickly, whichever way one of them ends, with its cause said once.
//===----------------------------------------------------------------------===//
#include "CommConformance.h"

#include "moira/rt/Spawn.h"

#include "gtest/gtest.h"

#include <arpa/inet.h>
#include <chrono>
#include <cstdio>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

/// A listening socket on a free port of this machine.
std::pair<int, uint16_t> listener() {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
  EXPECT_EQ(listen(fd, 64), 0);
  socklen_t length = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr *>(&address), &length);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return {fd, ntohs(address.sin_port)};
}

struct Outcome {
  std::string problems;
  Status status;
  bool told = false;
};

/// Runs `each` on ranks that are threads here but talk over TCP. `worlds` may be changed before.
std::vector<Outcome> overTcp(std::vector<TcpWorld> worlds, double timeout,
                             const std::function<std::string(Communicator &)> &each) {
  std::vector<Outcome> outcomes(worlds.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < worlds.size(); ++r)
    threads.emplace_back([&, r] {
      auto made = makeTcpCommunicator(worlds[r], timeout, &outcomes[r].told);
      if (made)
        outcomes[r].problems = each(**made);
      else
        outcomes[r].status = made.takeStatus();
    });
  for (std::thread &thread : threads)
    thread.join();
  return outcomes;
}

std::vector<TcpWorld> worldOf(int size) {
  auto [fd, port] = listener();
  std::vector<TcpWorld> worlds;
  for (int r = 0; r < size; ++r)
    worlds.push_back({r, size, "127.0.0.1", {port}, r == 0 ? fd : -1, "test", false, -1, {}});
  return worlds;
}

TEST(CommTcp, Conformance) {
  for (int size : {1, 2, 3, 4, 8})
    for (const Outcome &o :
         overTcp(worldOf(size), 60, [](Communicator &c) { return CommConformance(c, 44).run(); })) {
      EXPECT_TRUE(o.status) << o.status.str();
      EXPECT_EQ(o.problems, "") << size << " ranks";
    }
}

TEST(CommTcp, LargeMessagesFlowBothWays) {
  // More than socket buffers hold, so that everybody must send and receive at the same time.
  for (const Outcome &o : overTcp(worldOf(3), 60, [](Communicator &c) -> std::string {
         Group world{{0, 1, 2}, c.rank()};
         size_t block = 5 << 20;
         std::vector<char> in(3 * block), out(3 * block);
         for (int r = 0; r < 3; ++r)
           std::fill_n(in.begin() + r * block, block, char(10 * c.rank() + r));
         if (Status s = c.allToAll(world, in.data(), out.data(), block, "large"); !s)
           return s.str();
         for (int r = 0; r < 3; ++r)
           for (size_t i = 0; i < block; i += 4093)
             if (out[r * block + i] != char(10 * r + c.rank()))
               return "wrong data";
         return "";
       })) {
    EXPECT_TRUE(o.status) << o.status.str();
    EXPECT_EQ(o.problems, "");
  }
}

TEST(CommTcp, AnotherWorldSizeIsToldByRankZero) {
  std::vector<TcpWorld> worlds = worldOf(3);
  worlds[2].size = 4;
  std::vector<Outcome> outcomes = overTcp(worlds, 5, [](Communicator &) { return "joined"; });
  for (const Outcome &o : outcomes) {
    ASSERT_FALSE(o.status);
    EXPECT_EQ(o.status.diagnostics().front().id, ErrorId::WrongWorldSize) << o.status.str();
    EXPECT_NE(o.status.str().find("rank 2 was told of 4 ranks, rank 0 of 3"), std::string::npos);
  }
  EXPECT_FALSE(outcomes[0].told);
  EXPECT_TRUE(outcomes[2].told);
}

TEST(CommTcp, AbsentRanksAreNamed) {
  std::vector<TcpWorld> worlds = worldOf(4);
  worlds.resize(2); // 2 and 3 never come
  std::vector<Outcome> outcomes = overTcp(worlds, 1, [](Communicator &) { return "joined"; });
  for (const Outcome &o : outcomes) {
    ASSERT_FALSE(o.status);
    EXPECT_NE(o.status.str().find("MOE-0505: rank 2, 3 of 4 did not arrive within 1 s"),
              std::string::npos)
        << o.status.str();
  }
  EXPECT_TRUE(outcomes[1].told);
}

TEST(CommTcp, AnAbsentRankZeroIsNamedByTheOthers) {
  std::vector<TcpWorld> worlds = worldOf(2);
  close(worlds[0].listener);
  worlds.erase(worlds.begin());
  std::vector<Outcome> outcomes = overTcp(worlds, 1, [](Communicator &) { return "joined"; });
  EXPECT_NE(outcomes[0].status.str().find("rank 1 did not find rank 0 at 127.0.0.1"),
            std::string::npos)
      << outcomes[0].status.str();
  EXPECT_FALSE(outcomes[0].told);
}

TEST(CommTcp, StrangersAndOtherJobsDoNotDisturb) {
  auto [busy, busyPort] = listener(); // accepts in its backlog and never answers, as a store might
  std::vector<TcpWorld> worlds = worldOf(2);
  worlds[1].ports.insert(worlds[1].ports.begin(), busyPort);
  int stranger = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(worlds[0].ports[0]);
  ASSERT_EQ(connect(stranger, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
  std::string noise(64, 'x');
  ASSERT_EQ(send(stranger, noise.data(), noise.size(), 0), 64);
  for (const Outcome &o : overTcp(worlds, 20, [](Communicator &c) {
         Status s = c.barrier("hello");
         return s ? std::string() : s.str();
       })) {
    EXPECT_TRUE(o.status) << o.status.str();
    EXPECT_EQ(o.problems, "");
  }
  close(stranger);
  close(busy);
}

struct Ended {
  SpawnResult result;
  std::string text;
  double seconds;
};

/// CommTcpProgram on `ranks` processes; their stderr is caught.
Ended processes(int ranks, const std::string &mode, const std::string &timeout = "30",
                int victim = 1) {
  char path[] = "/tmp/moira-spawn-XXXXXX";
  int file = mkstemp(path), kept = dup(2);
  dup2(file, 2);
  SpawnOptions options;
  options.program = MOIRA_TCP_PROGRAM;
  options.arguments = {mode, timeout, std::to_string(victim)};
  options.ranks = ranks;
  auto start = std::chrono::steady_clock::now();
  Expected<SpawnResult> result = runRanksAsProcesses(options);
  Ended run;
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  dup2(kept, 2);
  close(kept);
  EXPECT_TRUE(bool(result));
  if (result)
    run.result = *result;
  lseek(file, 0, SEEK_SET);
  char buffer[4096];
  for (ssize_t n; (n = read(file, buffer, sizeof buffer)) > 0;)
    run.text.append(buffer, size_t(n));
  close(file);
  unlink(path);
  return run;
}

size_t errorsIn(const std::string &text) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find("error MOE-", at)) != std::string::npos; ++at)
    ++n;
  return n;
}

TEST(Spawn, RanksMeetAndSucceed) {
  Ended run = processes(4, "conformance");
  EXPECT_EQ(run.result.exitCode, 0) << run.text;
  EXPECT_TRUE(run.result.status);
  EXPECT_EQ(run.text, "");
}

TEST(Spawn, AKilledRankEndsAllAndIsNamedByTheParentAlone) {
  for (int victim : {0, 1, 3})
    for (auto [mode, signal] : {std::pair("kill", "signal 9"), std::pair("crash", "signal 11")}) {
      Ended run = processes(4, mode, "30", victim);
      EXPECT_EQ(run.result.exitCode, 5) << run.text;
      std::string text = run.result.status.str();
      EXPECT_NE(text.find(format("rank %d was ended by %s", victim, signal)), std::string::npos)
          << text;
      EXPECT_NE(text.find(format("; rank %d was in step 2;", victim ? 0 : 1)), std::string::npos)
          << text;
      EXPECT_EQ(errorsIn(run.text), 0u) << run.text;
      EXPECT_LT(run.seconds, 5);
    }
}

TEST(Spawn, AFailureIsSaidByTheRankThatHasIt) {
  Ended run = processes(4, "abort");
  EXPECT_EQ(run.result.exitCode, 2) << run.text;
  EXPECT_TRUE(run.result.status);
  EXPECT_EQ(errorsIn(run.text), 1u) << run.text;
  EXPECT_NE(run.text.find("token out of range"), std::string::npos);
  EXPECT_LT(run.seconds, 5);
}

TEST(Spawn, AStoppedRankIsNamedOnceAndKilled) {
  for (int victim : {0, 2}) {
    Ended run = processes(4, "stop", "2", victim);
    EXPECT_EQ(run.result.exitCode, 5) << run.text;
    EXPECT_TRUE(run.result.status) << run.result.status.str();
    EXPECT_EQ(errorsIn(run.text), 1u) << run.text;
    EXPECT_NE(run.text.find(format("rank %d", victim)), std::string::npos) << run.text;
    EXPECT_LT(run.seconds, 2 + 5);
  }
}

TEST(Spawn, ADyingRankIsNamedRatherThanWhoNoticesItFirst) {
  for (int victim : {0, 1}) {
    Ended run = processes(4, "dying", "30", victim);
    EXPECT_EQ(run.result.exitCode, 5) << run.text;
    EXPECT_EQ(errorsIn(run.text), 1u) << run.text;
    EXPECT_NE(run.text.find(format("MOE-0505: rank %d gives no sign of life", victim)),
              std::string::npos)
        << run.text;
    EXPECT_NE(run.text.find("noticed by rank 2: a connection is broken"), std::string::npos)
        << run.text;
    EXPECT_LT(run.seconds, 8); // a stopped process, unlike a dying one, waits to be killed
  }
}

TEST(Spawn, ARankThatLeavesWithoutAWordIsNamedByTheParent) {
  Ended run = processes(3, "quit");
  EXPECT_EQ(run.result.exitCode, 5) << run.text;
  EXPECT_NE(run.result.status.str().find(
                "rank 1 has ended with exit code 7 without a word; rank 0 was in step 2"),
            std::string::npos)
      << run.result.status.str();
  EXPECT_EQ(errorsIn(run.text), 0u) << run.text;
  EXPECT_LT(run.seconds, 5);
}

TEST(Spawn, ARankThatNeverArrivesIsNamedOnce) {
  Ended run = processes(3, "never", "1");
  EXPECT_EQ(run.result.exitCode, 5) << run.text;
  EXPECT_EQ(errorsIn(run.text), 1u) << run.text;
  EXPECT_NE(run.text.find("rank 1 of 3 did not arrive within 1 s"), std::string::npos) << run.text;
  EXPECT_LT(run.seconds, 1 + 5);
}

} // namespace
