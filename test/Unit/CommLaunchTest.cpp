//===- CommLaunchTest.cpp - reading launchers' environments -----------------===//
// What discoverLaunch and tcpWorldOf make of the variables of moe-run, mpirun, srun and torchrun,
// and of half-set or broken ones.
//===----------------------------------------------------------------------===//
#include "moira/rt/Communicator.h"

#include "gtest/gtest.h"

#include <cstdlib>

using namespace moira::rt;

extern char **environ;

namespace {

/// Replaces every variable of a launcher by these for the life of the object.
class Environment {
public:
  explicit Environment(std::vector<std::pair<std::string, std::string>> variables) {
    std::vector<std::string> names;
    for (char **v = environ; *v; ++v) {
      std::string text = *v, name = text.substr(0, text.find('='));
      if (name.rfind("OMPI_", 0) == 0 || name.rfind("PMIX_", 0) == 0 ||
          name.rfind("SLURM_", 0) == 0 || name.rfind("LOCAL_", 0) == 0 || name == "RANK" ||
          name == "WORLD_SIZE" || name.rfind("MASTER_", 0) == 0 || name.rfind("MOIRA_", 0) == 0 ||
          name.rfind("TORCHELASTIC_", 0) == 0)
        saved.emplace_back(name, text.substr(name.size() + 1));
    }
    for (auto &[name, value] : saved)
      unsetenv(name.c_str());
    for (auto &[name, value] : variables) {
      setenv(name.c_str(), value.c_str(), 1);
      set.push_back(name);
    }
  }
  ~Environment() {
    for (const std::string &name : set)
      unsetenv(name.c_str());
    for (auto &[name, value] : saved)
      setenv(name.c_str(), value.c_str(), 1);
  }

private:
  std::vector<std::pair<std::string, std::string>> saved;
  std::vector<std::string> set;
};

std::string seen(std::vector<std::pair<std::string, std::string>> variables) {
  Environment e(std::move(variables));
  LaunchInfo l = discoverLaunch();
  return l.launcher + " " + std::to_string(l.rank) + "/" + std::to_string(l.size) + " local " +
         std::to_string(l.localRank) + "/" + std::to_string(l.localSize);
}

const std::string none = "none 0/1 local 0/1";

TEST(CommLaunch, Mpirun) {
  EXPECT_EQ(seen({{"OMPI_COMM_WORLD_RANK", "5"},
                  {"OMPI_COMM_WORLD_SIZE", "8"},
                  {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                  {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}}),
            "mpirun 5/8 local 1/4");
}

TEST(CommLaunch, MpirunInsideASlurmJobIsMpirun) {
  EXPECT_EQ(seen({{"OMPI_COMM_WORLD_RANK", "1"},
                  {"OMPI_COMM_WORLD_SIZE", "2"},
                  {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                  {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                  {"SLURM_STEP_ID", "0"},
                  {"SLURM_PROCID", "0"},
                  {"SLURM_NTASKS", "1"}}),
            "mpirun 1/2 local 1/2");
}

TEST(CommLaunch, SrunStep) {
  std::vector<std::pair<std::string, std::string>> step{
      {"SLURM_STEP_ID", "3"}, {"SLURM_PROCID", "9"}, {"SLURM_STEP_NUM_TASKS", "11"},
      {"SLURM_LOCALID", "1"}, {"SLURM_NODEID", "2"}, {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"}};
  EXPECT_EQ(seen(step), "srun 9/11 local 1/3");
  step[5].second = "4(x";
  EXPECT_EQ(seen(step), "srun 9/11 local 1/2")
      << "an unreadable list leaves what the local rank proves";
  step[1] = {"PMIX_RANK", "9"};
  EXPECT_EQ(seen(step), "srun 9/11 local 1/2");
}

TEST(CommLaunch, BatchScriptIsNoStep) {
  // sbatch sets these for its script as well; only a step has a step id of its own.
  EXPECT_EQ(seen({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}, {"SLURM_LOCALID", "0"}}), none);
  EXPECT_EQ(seen({{"SLURM_STEP_ID", "4294967290"},
                  {"SLURM_PROCID", "0"},
                  {"SLURM_NTASKS", "16"},
                  {"SLURM_LOCALID", "0"}}),
            none);
}

TEST(CommLaunch, Torchrun) {
  EXPECT_EQ(
      seen({{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}}),
      "torchrun 3/4 local 1/2");
}

TEST(CommLaunch, HalfSetOrBrokenIsNoLauncher) {
  EXPECT_EQ(seen({}), none);
  EXPECT_EQ(seen({{"RANK", "3"}, {"WORLD_SIZE", "4"}}), none);
  EXPECT_EQ(seen({{"OMPI_COMM_WORLD_RANK", "4"}, {"OMPI_COMM_WORLD_SIZE", "4"}}), none);
  for (const char *bad : {"", "x", "-1", "1x", " 1", "99999999999999999999"})
    EXPECT_EQ(
        seen({{"RANK", bad}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "2"}}),
        none)
        << bad;
}

TEST(CommLaunch, OwnProcessesComeFirst) {
  EXPECT_EQ(seen({{"MOIRA_RANK", "1"},
                  {"MOIRA_WORLD_SIZE", "2"},
                  {"OMPI_COMM_WORLD_RANK", "0"},
                  {"OMPI_COMM_WORLD_SIZE", "1"}}),
            "moe-run 1/2 local 1/2");
}

TEST(CommLaunch, WhereRankZeroIs) {
  auto world = [](std::vector<std::pair<std::string, std::string>> variables) {
    Environment e(std::move(variables));
    Expected<TcpWorld> found = tcpWorldOf(discoverLaunch());
    if (!found)
      return found.status().str();
    return format("%d/%d at %s port %u of %zu, job %s", found->rank, found->size,
                  found->address.c_str(), found->ports.front(), found->ports.size(),
                  found->job.c_str());
  };
  std::vector<std::pair<std::string, std::string>> torchrun = {
      {"RANK", "3"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}};
  EXPECT_NE(world(torchrun).find("MOE-0102: torchrun has started rank 3 of 4"), std::string::npos);
  torchrun.insert(
      torchrun.end(),
      {{"MASTER_ADDR", "gpu1"}, {"MASTER_PORT", "29500"}, {"TORCHELASTIC_RUN_ID", "none"}});
  // The port itself may be torchrun's own.
  EXPECT_EQ(world(torchrun), "3/4 at gpu1 port 29501 of 16, job none");
  std::vector<std::pair<std::string, std::string>> srun = {
      {"SLURM_STEP_ID", "2"},   {"SLURM_STEP_NUM_TASKS", "8"},
      {"SLURM_PROCID", "5"},    {"SLURM_LOCALID", "1"},
      {"SLURM_JOB_ID", "1234"}, {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"}};
  srun.emplace_back("SLURM_STEP_NODELIST", "gpu[07-08]");
  EXPECT_EQ(world(srun), "5/8 at gpu07 port 24682 of 16, job 1234.2");
  srun.back().second = "login,gpu[07-08]";
  EXPECT_EQ(world(srun), "5/8 at login port 24682 of 16, job 1234.2");
}

TEST(CommLaunch, MissingPluginSaysWhatWasTried) {
  // The test program lies where no plugin is, and the loader's path does not have one.
  Environment e({});
  if (std::getenv("LD_LIBRARY_PATH"))
    GTEST_SKIP() << "LD_LIBRARY_PATH is set";
  auto comm = makeMpiCommunicator(1);
  ASSERT_FALSE(bool(comm));
  EXPECT_NE(comm.status().str().find("MOE-0506: the MPI plugin cannot be loaded"),
            std::string::npos)
      << comm.status().str();
  EXPECT_NE(comm.status().str().find("/lib/libmoira_comm_mpi.so"), std::string::npos)
      << comm.status().str();
}

} // namespace
