//===- Launch.cpp - what a launcher says about this process -----------------===//
// Reads the environment of Open MPI's mpirun, of an srun step, and of torchrun. Starts nothing.
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

} // namespace moira::rt
