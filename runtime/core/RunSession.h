//===- RunSession.h - what the ranks of a process share ---------*- C++ -*-===//
// A program with its files, opened and checked once a process, and the executors of its ranks.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_RUNSESSION_H
#define MOIRA_RT_CORE_RUNSESSION_H

#include "Generate.h"
#include "Train.h"
#include "moira/rt/Checkpoint.h"
#include "moira/rt/DevicePlugin.h"
#include "moira/rt/Executor.h"
#include "moira/rt/Ranks.h"
#include "moira/rt/RouteTrace.h"

#include <atomic>
#include <optional>

namespace moira::rt {

struct RunSession {
  const PlanFile *plan = nullptr;
  const fb::Program *program = nullptr; // the first, or only, program that runs
  const fb::Program *second = nullptr;  // decode, after prefill; update, after accumulate
  std::optional<GenerateTask> task;     // of such a plan, instead of `inputs`
  std::optional<TrainTask> training;    // of a plan that trains, besides `inputs`
  std::optional<Checkpoint> weights;    // absent: the program needs none
  std::optional<InputSet> inputs;
  std::vector<int32_t> zeros; // that emptyBatch() points to
  std::shared_ptr<const HostImages> images;
  bool cuda = false;              // runs on CUDA devices
  DevicePlugin *plugin = nullptr; // null on the host, and in the process that only starts the ranks
  DeviceSetup device;             // of the one local rank, with a plugin
  const RouteTrace *routes = nullptr; // null: routers are left alone
  bool f64 = false;
  bool profiled = false;
  std::chrono::steady_clock::time_point epoch;
  enum class Phase { opening, loading, stepping, ending };
  std::atomic<Phase> phase = Phase::opening;

  std::vector<std::unique_ptr<ProgramRunner>> executors; // one for each local rank
  std::vector<RankProfile> profiles;                     // likewise, if profiled
  std::vector<std::unique_ptr<RankRoutes>> rankRoutes;   // likewise, with routes
  std::vector<std::unique_ptr<RankGeneration>> loops;    // likewise, with a task
  std::vector<std::unique_ptr<RankTraining>> trainings;  // likewise, with a training
  double loadSeconds = 0, stepSeconds = 0;               // the first step
  std::vector<double> repeats;                           // seconds of later steps
  std::optional<TimeShares> shares;                      // of a training run's time
  std::optional<DropCount> drops;   // of a program whose experts have a capacity
  std::vector<uint64_t> arenaSizes; // after the last step, the same on all ranks

  /// On the host: opens kernels, and fails early if this machine cannot hold `localRanks` ranks.
  Status prepare(int localRanks);
  /// Opens `path` and checks it against the program. Skipped if no state comes from a file.
  Status openWeights(const std::string &path);
  /// Inputs whose `input_ids` are zeros, for those who read them from elsewhere at every step.
  Expected<InputSet> emptyBatch(int64_t parts);
  /// Memory, binding and weights on every rank.
  Status load(Ranks &ranks);
  /// The programs that run.
  std::vector<const fb::Program *> programs() const {
    return second ? std::vector{program, second} : std::vector{program};
  }
  /// Generates on every rank; once more for each `again`. Rank 0 streams the last time's tokens.
  Status generate(Ranks &ranks, int again);
  /// Trains on every rank; rank 0 tells `note` how it goes.
  Status train(Ranks &ranks, const std::function<void(const std::string &)> &note);
  /// One step on every rank, then `count` more that are timed.
  Status step(Ranks &ranks);
  /// A step for each of `seconds`, which become those that each has taken (ProgramRunner::steps),
  /// on the rank where it took longest.
  Status steps(Ranks &ranks, std::span<double> seconds);
  Status repeat(Ranks &ranks, int count);
  /// What this process's one rank is at, for people. Any thread may ask.
  std::string where() const;
};

/// The plan's program `forward`, `prefill`, `grad`, `train` or `accumulate`, or its reference
/// program; BadRun if it has none.
Expected<const fb::Program *> findProgram(const PlanFile &plan, const std::string &path,
                                          bool reference);

/// "dp=2, ep=2", or "" without axes.
std::string meshText(const fb::Plan &plan);

} // namespace moira::rt

#endif // MOIRA_RT_CORE_RUNSESSION_H
