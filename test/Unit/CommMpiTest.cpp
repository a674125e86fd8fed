//===- CommMpiTest.cpp - the MPI plugin under mpirun ------------------------===//
// Starts CommMpiProgram on 1, 2 and 4 processes: the conformance suite, and how a silent, an
// aborting and a killed rank end the job.
//===----------------------------------------------------------------------===//
#include "gtest/gtest.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <string>
#include <sys/wait.h>

namespace {

struct Result {
  int exitCode;
  std::string output;
  double seconds;
};

Result mpirun(int ranks, const std::string &mode) {
  std::string command = "timeout 100 env LD_LIBRARY_PATH=" MOIRA_PLUGIN_DIR
                        " mpirun --oversubscribe --allow-run-as-root -x LD_LIBRARY_PATH -np " +
                        std::to_string(ranks) + " " MOIRA_MPI_PROGRAM " " + mode + " 2>&1";
  auto start = std::chrono::steady_clock::now();
  std::string output;
  FILE *pipe = popen(command.c_str(), "r");
  std::array<char, 4096> buffer;
  while (size_t n = fread(buffer.data(), 1, buffer.size(), pipe))
    output.append(buffer.data(), n);
  int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 1000, output,
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
}

size_t errorsIn(const std::string &text) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find("error MOE-", at)) != std::string::npos; ++at)
    ++n;
  return n;
}

TEST(CommMpi, Conformance) {
  for (int ranks : {1, 2, 4}) {
    Result r = mpirun(ranks, "conformance");
    EXPECT_EQ(r.exitCode, 0) << r.output;
  }
}

TEST(CommMpi, TimeoutNamesTheSilentRankAndEndsTheJob) {
  Result r = mpirun(3, "timeout");
  EXPECT_EQ(r.exitCode, 5) << r.output;
  EXPECT_NE(r.output.find("MOE-0505: no answer within 1 s at 'step 2' from rank 1 (seen by rank"),
            std::string::npos)
      << r.output;
  EXPECT_EQ(errorsIn(r.output), 1u) << r.output;
  EXPECT_LT(r.seconds, 10);
}

TEST(CommMpi, AbortEndsTheJobWithTheCausesExitCode) {
  Result r = mpirun(3, "abort");
  EXPECT_EQ(r.exitCode, 2) << r.output;
  EXPECT_EQ(errorsIn(r.output), 1u) << r.output;
  EXPECT_NE(r.output.find("token out of range"), std::string::npos) << r.output;
  EXPECT_LT(r.seconds, 10);
}

TEST(CommMpi, KilledRankEndsTheJobAndIsNamedOnce) {
  Result r = mpirun(3, "kill");
  EXPECT_NE(r.exitCode, 0) << r.output;
  EXPECT_EQ(errorsIn(r.output), 1u) << r.output;
  EXPECT_NE(r.output.find("rank 1 has ended without a word; it was killed or has crashed; rank 0 "
                          "was in step 2"),
            std::string::npos)
      << r.output;
  EXPECT_LT(r.seconds, 10);
}

} // namespace
