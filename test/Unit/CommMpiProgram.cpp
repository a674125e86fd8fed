//===- CommMpiProgram.cpp - one rank of an MPI test -------------------------===//
// CommMpiTest.cpp starts it under mpirun. Argument: conformance | timeout | abort | kill. Prints
// what it saw; exit 0 if all is well.
//===----------------------------------------------------------------------===//
#include "CommConformance.h"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <thread>

using namespace moira::rt;
using namespace moira::rt::testing;

int main(int argc, char **argv) {
  std::string mode = argc > 1 ? argv[1] : "conformance";
  double timeout = mode == "timeout" ? 1 : 60;
  auto made = makeMpiCommunicator(timeout);
  if (!made) {
    std::fprintf(stderr, "%s\n", made.status().str().c_str());
    return made.status().exitCode();
  }
  Communicator &comm = **made;
  LaunchInfo launch = discoverLaunch();
  if (std::string(comm.kind()) != "mpi" || launch.launcher != "mpirun" ||
      launch.rank != comm.rank() || launch.size != comm.size()) {
    std::fprintf(stderr, "launcher %s says %d/%d, MPI %d/%d\n", launch.launcher.c_str(),
                 launch.rank, launch.size, comm.rank(), comm.size());
    return 1;
  }
  if (mode == "conformance") {
    std::string problems = CommConformance(comm, 42).run();
    std::fprintf(stderr, "%s", problems.c_str());
    return problems.empty() ? 0 : 1;
  }

  // The others wait in a barrier for rank 1, which sleeps, gives up, or dies.
  comm.supervise({[] { return "step 2"; },
                  [](const Status &cause, bool mine) {
                    if (mine)
                      std::fprintf(stderr, "%s", cause.str().c_str());
                  }});
  Status status = comm.barrier("step 1");
  if (comm.rank() == 1) {
    if (mode == "abort") {
      comm.abort(Status(ErrorId::BadInput, "token out of range"));
      return comm.news().exitCode();
    }
    if (mode == "kill")
      std::raise(SIGKILL);
    std::this_thread::sleep_for(std::chrono::seconds(30));
    return 0;
  }
  status.append(comm.barrier("step 2"));
  comm.abort(status);
  return comm.news().exitCode();
}
