//===- Train.h - steps of training, one after another -----------*- C++ -*-===//
// The loop over a plan's program `train` (or its reference program), or over `accumulate` for every
// micro-batch and `update` once a step: learning rates in, losses out, metrics, checkpoints, an end
// on request. docs/training.md is the contract.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_TRAIN_H
#define MOIRA_RT_CORE_TRAIN_H

#include "moira/rt/CheckpointSaver.h"
#include "moira/rt/Profile.h"
#include "moira/rt/ProgramRunner.h"
#include "moira/rt/Run.h"
#include "moira/rt/RunLock.h"
#include "moira/rt/Schedule.h"
#include "moira/rt/TokenData.h"

#include <atomic>
#include <functional>
#include <optional>

namespace moira::rt {

class RankRoutes;

/// Seconds of a rank's loop: all of it, and in it what is no step.
struct LoopTimes {
  double whole = 0, saving = 0, reading = 0;
};

/// Seconds of a run's steps, averaged over ranks.
struct TimeShares {
  double compute = 0, exchange = 0, waiting = 0;
};

/// Choices of experts that a capacity dropped, of all that there were.
struct DropCount {
  double dropped = 0, offered = 0;
};

/// From the output `dropped_choices`; nothing if the program has none. `outputs` are in host
/// memory.
std::optional<DropCount> countDrops(const fb::Program &program, std::span<const TensorRef> outputs);

/// The programs of a step. Mesh programs of one plan: both, or one that does all.
struct TrainPrograms {
  const fb::Program *first = nullptr;  // once for every micro-batch
  const fb::Program *update = nullptr; // then once; null: the first does it
  int64_t microBatches = 1;
  /// The one that gives losses, and takes the learning rate.
  const fb::Program &last() const { return update ? *update : *first; }
};

/// What a step runs if `program`, the plan's first or its reference program, does; BadRun if that
/// does not train, or if the plan's batch is no whole number of what the program takes.
Expected<TrainPrograms> trainPrograms(const PlanFile &plan, const fb::Program &program);

/// Whether the plan is one that trains with this program.
bool isTraining(const fb::Plan &plan, const fb::Program &program);

/// What all ranks of a process share. Outlived by what it is made of.
class TrainTask {
public:
  /// BadUsage where options do not fit, FileNotFound, BadCheckpoint, BadInput. `inputs` are the
  /// batch that every step takes, but for what comes from data.
  static Expected<TrainTask> open(const PlanFile &plan, const TrainPrograms &programs,
                                  const InputSet &inputs, const TrainOptions &options);

  const TrainOptions &options() const { return asked; }
  /// What the run goes on from; weights are not read from anywhere else then.
  const TrainingCheckpoint *resumed() const { return from ? &*from : nullptr; }

private:
  friend class RankTraining;
  TrainOptions asked;
  const fb::Plan *plan = nullptr;
  TrainPrograms programs;
  const InputSet *inputs = nullptr; // of the first program
  std::optional<InputSet> settings; // of the update, if that is a program of its own
  std::vector<std::string> there;   // the checkpoints in the run's directory
  std::optional<TrainingCheckpoint> from;
  Schedule schedule;
  std::optional<TokenReader> reader; // of `input_ids`
  DataPosition start;                // of the first step's batch, with a reader
  std::string planHash;
  int64_t tokens = 0;   // of a step
  float labelCount = 1; // of a step: labels that losses count
};

/// One rank's loop. All ranks make the same decisions.
class RankTraining {
public:
  /// `profile` is this rank's, or null.
  RankTraining(const TrainTask &task, RankProfile *profile)
      : task(task), inputs(*task.inputs), settings(task.settings), profile(profile) {}

  /// Loads the checkpoint, if the run is resumed, and trains. `note` hears what people should know,
  /// on rank 0. `routes`: this rank's, for the load of experts; may be null. Collective.
  Status run(ProgramRunner &runner, RankRoutes *routes, Communicator &communicator,
             const std::function<void(const std::string &)> &note);

  /// Whether run() has failed with something that all ranks know.
  bool failedTogether() const { return together; }
  /// The step that is being made, for people. Any thread may ask.
  std::string where() const { return "step " + std::to_string(at.load()); }
  /// The signal that ended the run early, 0 if none did.
  int stoppedBy() const { return stopped; }
  /// Steps that this run has made, and seconds that they took.
  uint64_t steps() const { return made; }
  double seconds() const { return spent; }
  double tokensPerSecond() const {
    return spent > 0 ? double(task.tokens) * double(made) / spent : 0;
  }
  LoopTimes times() const { return loop; }
  double firstLoss() const { return first; }
  double lastLoss() const { return last; }
  /// Of the last step; nothing where experts have no capacity.
  const std::optional<DropCount> &drops() const { return dropped; }

private:
  struct Reports;
  /// The states that are in checkpoints, and which of the runner's each is.
  struct Parts {
    std::vector<StatePart> parts;
    std::vector<size_t> states;
  };
  Parts partsOf(ProgramRunner &runner) const;
  /// Waits a little for another run there, whose processes may be ending.
  Status holdDirectory(RunLock &lock, Communicator &communicator);
  /// Loads or draws what the run begins with; the number of steps that are done.
  Expected<uint64_t> begin(const Parts &parts, ProgramRunner &runner);
  /// Reads this rank's rows of the next batch.
  Status readBatch(const MeshPosition &position);
  /// The step's programs, one after another; the outputs of the last one are the step's.
  Status runPrograms(ProgramRunner &runner, RankRoutes *routes);
  Status step(ProgramRunner &runner, uint64_t number, Communicator &communicator,
              RankRoutes *routes, Reports *reports);
  TrainingProgress progress(uint64_t number) const;
  /// What is to be done about a save that has ended: one that has failed is noted, and only the
  /// run's last is a failure of the run, or that other ranks are lost.
  Status judge(const Status &saved, uint64_t number, bool last);

  const TrainTask &task;
  InputSet inputs;                  // of the first program, with what stands below
  std::optional<InputSet> settings; // of the update
  std::vector<int32_t> batch;       // [B,S], of which this rank's rows are filled; with a reader
  DataPosition data;                // of the next batch
  float lr = 0;
  int32_t stepNumber = 0, microBatch = 0;
  std::optional<DropCount> dropped;
  std::function<void(const std::string &)> note;
  std::atomic<uint64_t> at = 0; // the step that is being made, or was made last
  bool together = false;
  int stopped = 0;
  uint64_t made = 0;
  double spent = 0, first = 0, last = 0;
  LoopTimes loop;
  RankProfile *profile;
};

} // namespace moira::rt

#endif // MOIRA_RT_CORE_TRAIN_H
