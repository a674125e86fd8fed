//===- Launch.cpp - what a launcher says about this process -----------------===//
// Reads the environment of moe-run's own processes, Open MPI's mpirun, an srun step, and torchrun.
// Starts nothing.
//===----------------------------------------------------------------------===//
#include "moira/rt/Communicator.h"

#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace moira::rt {

namespace {

std::optional<int> number(const char *variable) {
  const char *text = std::getenv(variable);
  if (!text)
    return std::nullopt;
  int value = 0;
  const char *end = text + std::strlen(text);
  auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || value < 0)
    return std::nullopt;
  return value;
}

/// Tasks on node `node` in Slurm's list, e.g. "4(x2),3" has 4, 4, 3.
std::optional<int> tasksOnNode(const char *list, int node) {
  if (!list)
    return std::nullopt;
  for (const char *at = list, *end = list + std::strlen(list); at < end;) {
    int tasks = 0, repeat = 1;
    auto [after, error] = std::from_chars(at, end, tasks);
    if (error != std::errc())
      return std::nullopt;
    at = after;
    if (end - at > 3 && at[0] == '(' && at[1] == 'x') {
      auto [close, bad] = std::from_chars(at + 2, end, repeat);
      if (bad != std::errc() || close == end || *close != ')')
        return std::nullopt;
      at = close + 1;
    }
    if (node < repeat)
      return tasks;
    node -= repeat;
    if (at < end && *at++ != ',')
      return std::nullopt;
  }
  return std::nullopt;
}

/// A launcher's four numbers, if they make sense together; local ones default to one process a
/// node.
std::optional<LaunchInfo> make(const char *launcher, std::optional<int> rank,
                               std::optional<int> size, std::optional<int> localRank,
                               std::optional<int> localSize) {
  if (!rank || !size || *size < 1 || *rank >= *size)
    return std::nullopt;
  LaunchInfo info;
  info.launcher = launcher;
  info.rank = *rank;
  info.size = *size;
  info.localRank = localRank.value_or(0);
  info.localSize = localSize.value_or(info.localRank + 1);
  if (info.localRank >= info.localSize || info.localSize > info.size)
    return std::nullopt;
  return info;
}

/// Batch scripts and interactive allocations have Slurm variables too, but are not a step of tasks:
/// their step ids are absent or reserved ones near 2^32.
bool insideSlurmStep() { return number("SLURM_STEP_ID").has_value(); }

} // namespace

LaunchInfo discoverLaunch() {
  // First: a plain moe-run inside a batch job has the job's variables too.
  auto ownRank = number("MOIRA_RANK"), ownSize = number("MOIRA_WORLD_SIZE");
  if (auto info = make("moe-run", ownRank, ownSize, ownRank, ownSize))
    return *info;
  if (auto info = make("mpirun", number("OMPI_COMM_WORLD_RANK"), number("OMPI_COMM_WORLD_SIZE"),
                       number("OMPI_COMM_WORLD_LOCAL_RANK"), number("OMPI_COMM_WORLD_LOCAL_SIZE")))
    return *info;
  if (insideSlurmStep()) {
    auto size = number("SLURM_STEP_NUM_TASKS");
    const char *perNode = std::getenv("SLURM_STEP_TASKS_PER_NODE");
    auto rank = number("SLURM_PROCID");
    if (auto info = make("srun", rank ? rank : number("PMIX_RANK"),
                         size ? size : number("SLURM_NTASKS"), number("SLURM_LOCALID"),
                         tasksOnNode(perNode ? perNode : std::getenv("SLURM_TASKS_PER_NODE"),
                                     number("SLURM_NODEID").value_or(0))))
      return *info;
  }
  // RANK and WORLD_SIZE alone are names that anybody may use; torchrun always sets the local ones
  // too.
  if (number("LOCAL_RANK") && number("LOCAL_WORLD_SIZE"))
    if (auto info = make("torchrun", number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK"),
                         number("LOCAL_WORLD_SIZE")))
      return *info;
  return {};
}

namespace {

/// The first host of Slurm's list: "node[07-09,12],login" has node07.
std::string firstHost(const std::string &list) {
  size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || (comma != std::string::npos && comma < bracket))
    return list.substr(0, comma);
  size_t end = list.find_first_of("-,]", bracket);
  return list.substr(0, bracket) +
         (end == std::string::npos ? "" : list.substr(bracket + 1, end - bracket - 1));
}

std::string variable(const char *name) {
  const char *text = std::getenv(name);
  return text ? text : "";
}

/// `count` ports from `first` on, as far as there are.
std::vector<uint16_t> portsFrom(int first, int count) {
  std::vector<uint16_t> ports;
  for (int p = first; p < first + count && p <= 65535; ++p)
    if (p > 0)
      ports.push_back(static_cast<uint16_t>(p));
  return ports;
}

} // namespace

Expected<TcpWorld> tcpWorldOf(const LaunchInfo &launch) {
  TcpWorld world;
  world.rank = launch.rank;
  world.size = launch.size;
  if (launch.launcher == "moe-run") {
    world.address = "127.0.0.1";
    world.ports = portsFrom(number("MOIRA_PORT").value_or(0), 1);
    world.listener = launch.rank == 0 ? number("MOIRA_LISTENER").value_or(-1) : -1;
    world.job = variable("MOIRA_PARENT");
    world.supervised = true;
    world.report = number("MOIRA_REPORT").value_or(-1);
    return world;
  }
  // torchrun's own store may hold MASTER_PORT itself.
  constexpr int kPorts = 16;
  world.address = variable("MASTER_ADDR");
  if (auto port = number("MASTER_PORT"))
    world.ports = portsFrom(*port + (launch.launcher == "torchrun"), kPorts);
  world.job = variable("TORCHELASTIC_RUN_ID");
  if (launch.launcher == "srun") {
    world.job = variable("SLURM_JOB_ID") + "." + variable("SLURM_STEP_ID");
    std::string hosts = variable("SLURM_STEP_NODELIST");
    if (world.address.empty())
      world.address = firstHost(hosts.empty() ? variable("SLURM_JOB_NODELIST") : hosts);
    if (world.ports.empty()) {
      int job = number("SLURM_JOB_ID").value_or(0), step = number("SLURM_STEP_ID").value_or(0);
      world.ports = portsFrom(20000 + (job % 1000 * 20 + step % 20) % 20000, kPorts);
    }
  }
  if (world.address.empty() || world.ports.empty())
    return Status(ErrorId::BadUsage,
                  format("%s has started rank %d of %d but does not say where rank 0 is; set "
                         "MASTER_ADDR and MASTER_PORT",
                         launch.launcher.c_str(), launch.rank, launch.size));
  return world;
}

Expected<std::unique_ptr<Communicator>>
makeLaunchedCommunicator(const LaunchInfo &launch, double timeoutSeconds, bool *told) {
  bool mpi = launch.launcher == "mpirun" ||
             (launch.launcher == "srun" && (std::getenv("PMIX_RANK") || std::getenv("PMI_RANK")));
  if (mpi)
    return makeMpiCommunicator(timeoutSeconds);
  Expected<TcpWorld> world = tcpWorldOf(launch);
  if (!world)
    return world.takeStatus();
  return makeTcpCommunicator(*world, timeoutSeconds, told);
}

} // namespace moira::rt
