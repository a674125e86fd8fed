//===- RuntimeMpiTest.cpp ---------------------------------------*- C++ -*-===//
// Shows that moe-run under mpirun writes the bytes that it writes with threads, retries included,
// and that failures are said once, with the right exit code, and leave no process and no file
// behind.
//===----------------------------------------------------------------------===//
#include "RuntimePlans.h"

#include <array>
#include <cstdio>
#include <gmock/gmock.h>
#include <sys/wait.h>

using namespace moira::test;
using testing::HasSubstr;

namespace {

struct Result {
  int code;
  std::string text;
};

/// Runs moe-run, under mpirun if ranks > 0; stdout and stderr together.
Result moeRun(int ranks, const std::string &arguments) {
  std::string command = "timeout 100 ";
  if (ranks)
    command += "mpirun --oversubscribe --allow-run-as-root -np " + std::to_string(ranks) + " ";
  command += MOIRA_MOE_RUN " " + arguments + " 2>&1";
  std::string text;
  FILE *pipe = popen(command.c_str(), "r");
  std::array<char, 4096> buffer;
  while (size_t n = fread(buffer.data(), 1, buffer.size(), pipe))
    text.append(buffer.data(), n);
  int status = pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 1000, text};
}

std::string contents(const std::string &path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

size_t count(const std::string &text, const std::string &what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size())
    ++n;
  return n;
}

struct RuntimeMpi : testing::Test {
  RuntimeMpi() {
    writeExpertsFiles(dir, 11);
    savePlan(dir / "p.moeplan", expertsPlan(2, 1, 24));
  }
  std::string files(const std::string &out) {
    return dir / "p.moeplan" + " --weights=" + (dir / "model") +
           " --inputs=" + (dir / "in.safetensors") + " --timeout=20 --outputs=" + (dir / out);
  }
  TempDir dir;
};

TEST_F(RuntimeMpi, ProcessesGiveTheBytesOfThreads) {
  Result threads = moeRun(0, files("threads.safetensors"));
  ASSERT_EQ(threads.code, 0) << threads.text;
  Result processes = moeRun(4, files("mpi.safetensors") + " --check");
  ASSERT_EQ(processes.code, 0) << processes.text;
  EXPECT_FALSE(contents(dir / "mpi.safetensors").empty());
  EXPECT_EQ(contents(dir / "mpi.safetensors"), contents(dir / "threads.safetensors"));
  EXPECT_THAT(processes.text, HasSubstr("retries 1"));
  EXPECT_THAT(processes.text, HasSubstr("processes of mpirun"));
  EXPECT_EQ(count(processes.text, "check: y"), 1u) << processes.text;
}

TEST_F(RuntimeMpi, WrongWorldSizeNamesBothNumbersOnce) {
  Result r = moeRun(3, files("o.safetensors"));
  EXPECT_EQ(r.code, 2) << r.text;
  EXPECT_EQ(count(r.text, "error MOE-0501"), 1u) << r.text;
  EXPECT_THAT(r.text, HasSubstr("has 4 ranks (ep=2, tp=2), mpirun started 3"));
  EXPECT_THAT(r.text, HasSubstr("mpirun -np 4"));
  EXPECT_FALSE(std::filesystem::exists(dir / "o.safetensors"));
}

TEST_F(RuntimeMpi, BadInputIsSaidOnce) {
  writeFile(dir / "in.safetensors", safetensorsBytes({testTensor<float>("y", "F32", {1}, {0})}));
  Result r = moeRun(4, files("o.safetensors"));
  EXPECT_EQ(r.code, 2) << r.text;
  EXPECT_EQ(count(r.text, "error MOE-0502"), 1u) << r.text;
}

TEST_F(RuntimeMpi, AStepThatFailsOnAllRanksIsSaidOnce) {
  savePlan(dir / "p.moeplan", expertsPlan(2, 1, 2));
  Result r = moeRun(4, files("o.safetensors"));
  EXPECT_EQ(r.code, 3) << r.text;
  EXPECT_EQ(count(r.text, "error MOE-0504"), 1u) << r.text;
  EXPECT_FALSE(std::filesystem::exists(dir / "o.safetensors"));
}

TEST_F(RuntimeMpi, UsageErrorsAreSaidOnce) {
  Result r = moeRun(2, files("o.safetensors") + " --wieghts=x");
  EXPECT_EQ(r.code, 1) << r.text;
  EXPECT_EQ(count(r.text, "error MOE-0101"), 1u) << r.text;
  EXPECT_THAT(r.text, HasSubstr("--weights"));
}

} // namespace
