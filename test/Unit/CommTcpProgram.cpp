//===- CommTcpProgram.cpp - one rank of a test of processes -----------------===//
// CommTcpTest.cpp starts it once for each rank. Arguments: conformance | kill | crash | stop |
// dying | quit | abort | never, a timeout, and the rank that does so. Behaves as moe-run does: who
// knows the cause of a failure says it, others are silent.
//===----------------------------------------------------------------------===//
#include "CommConformance.h"

#include "moira/rt/Spawn.h"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <thread>
#include <unistd.h>

using namespace moira::rt;
using namespace moira::rt::testing;

/// What the ranks have settled on, said by one of them; the exit code.
static int say(Communicator &comm) {
  if (!comm.toldElsewhere())
    std::fprintf(stderr, "%s", comm.news().str().c_str());
  return comm.news().exitCode();
}

int main(int argc, char **argv) {
  followParent();
  std::string mode = argc > 1 ? argv[1] : "conformance";
  double timeout = argc > 2 ? std::atof(argv[2]) : 30;
  int victim = argc > 3 ? std::atoi(argv[3]) : 1;
  LaunchInfo launch = discoverLaunch();
  if (mode == "never" && launch.rank == 1) {
    std::this_thread::sleep_for(std::chrono::seconds(60));
    return 0;
  }
  bool told = false;
  auto made = makeLaunchedCommunicator(launch, timeout, &told);
  if (!made) {
    if (!told)
      std::fprintf(stderr, "%s", made.status().str().c_str());
    return made.status().exitCode();
  }
  Communicator &comm = **made;
  if (mode == "conformance") {
    std::string problems = CommConformance(comm, 43).run();
    std::fprintf(stderr, "%s", problems.c_str());
    return problems.empty() ? 0 : 1;
  }
  // The others wait for one rank, which ends in some way, some of them outside a collective.
  comm.supervise({[] { return "step 2"; }, nullptr});
  Status status = comm.barrier("step 1");
  if (comm.rank() == victim) {
    if (mode == "kill")
      std::raise(SIGKILL);
    if (mode == "crash")
      std::raise(SIGSEGV);
    if (mode == "stop" || mode == "dying")
      std::raise(SIGSTOP);
    if (mode == "quit")
      std::_Exit(7);
    comm.abort(Status(ErrorId::BadInput, "token out of range"));
    return say(comm);
  }
  if (comm.rank() == 2 && mode == "dying") {
    // The victim's data connections break before its process is gone, or else it would be known.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    comm.abort(Status(ErrorId::RankFailed, "rank 2: a connection is broken"));
    return say(comm);
  }
  if (comm.rank() == 2)
    while (comm.news().ok())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  status.append(comm.barrier("step 2"));
  comm.abort(status);
  return say(comm);
}
