//===- Simulate.h - a plan's steps on a described cluster -------*- C++ -*-===//
// --device=sim: every instruction takes the time that its operations, its bytes or its messages
// take on the cluster, queues and events run as on a device, nothing is computed.
// docs/simulation.md has the formulas and how near they come to measurements.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SIMULATE_H
#define MOIRA_RT_SIMULATE_H

#include "moira/rt/PlanFile.h"

#include <cstdint>
#include <string>
#include <vector>

namespace moira::rt {

/// Ranks that are alike, and what joins them. Rates are per second and per device; 1 GB = 1e9
/// bytes.
struct SimCluster {
  std::string name;
  double flopsBf16 = 0, flopsF32 = 0; ///< of the data sheet
  double memoryRate = 0;              ///< bytes of the device's memory, of the data sheet
  double memoryBytes = 0;             ///< that plans may use
  double productEfficiency = 0;       ///< parts of these rates that are reached
  double attentionEfficiency = 0, memoryEfficiency = 0;
  double launchSeconds = 0;  ///< that an instruction takes besides
  double hostLinkRate = 0;   ///< bytes between a device and its host, in one direction
  double hostMemoryRate = 0; ///< bytes of the host's memory, a device's share
  int devicesPerNode = 1;
  double nodeRate = 0; ///< bytes that a device sends to others of its node (a ring's bus bandwidth)
  double networkRate = 0; ///< bytes that a device sends to other nodes

  /// One of the clusters that are known by name, or a JSON file that changes fields of one.
  static Expected<SimCluster> open(const std::string &nameOrFile);
  /// "h100, h200, …"
  static std::string knownNames();
};

struct SimOptions {
  SimCluster cluster;
  double expertLoad = 1; ///< rows of this rank's experts, as a multiple of the mean over ranks
};

/// Seconds of all instructions of one kind.
struct SimShare {
  std::string what; ///< products, attention, other kernels, host, or "ep all_to_all"
  uint64_t count = 0;
  double seconds = 0;
  double exposed = 0; ///< of exchanges and copies: while no kernel runs
  double bytes = 0;   ///< of exchanges: what this rank sends
};

struct SimEvent {
  uint32_t instr;
  double start, duration; ///< seconds
};

struct SimProgram {
  std::string name;
  uint64_t repeats = 1; ///< in a step
  double seconds = 0;   ///< one run
  double busy = 0;      ///< of these, while a kernel runs
  double exposed = 0;   ///< while only exchanges or copies run
  double flops = 0;     ///< of products and attention, on this rank
  std::vector<SimShare> shares;
  std::vector<SimEvent> events;
};

/// One rank; all are alike but for the load of their experts.
struct SimResult {
  std::vector<SimProgram> programs;
  double stepSeconds = 0;   ///< of training, gradients or a forward pass; decoding: of one token
  double tokensPerStep = 0; ///< of all ranks
  uint64_t deviceBytes = 0; ///< planned for a rank
};

/// Total over a verified plan.
SimResult simulate(const PlanFile &file, const SimOptions &options);

/// For people, or JSON.
std::string simulationText(const PlanFile &file, const SimOptions &options,
                           const SimResult &result);
std::string simulationJson(const PlanFile &file, const SimOptions &options,
                           const SimResult &result);
/// The programs of a step one after the other, as a trace for Perfetto.
Status writeSimulation(const std::string &path, const PlanFile &file, const SimResult &result);

} // namespace moira::rt

#endif // MOIRA_RT_SIMULATE_H
