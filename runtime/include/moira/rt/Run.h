//===- Run.h - a whole run of a plan ----------------------------*- C++ -*-===//
// From options to an output file and a summary: what moe-run does once its command line is read.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_RUN_H
#define MOIRA_RT_RUN_H

#include "moira/rt/Status.h"

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moira::rt {

/// How tokens are generated.
struct GenerateOptions {
  int64_t maxNewTokens = 0; // of each row
  bool ignoreEos = false;   // go on past stop tokens
  double temperature = 0;   // 0: the largest logit
  double topP = 1;
  int32_t topK = 0; // 0: all
  uint64_t seed = 0;
  /// One line of JSON for every step, on stdout: {"step":0,"ids":[…]}, one id a row.
  bool stream = false;
};

/// How a plan that trains is run.
struct TrainOptions {
  uint64_t steps = 0;           // until so many updates are done, those before a resume included
  std::string checkpoint;       // a directory; empty: nothing is saved
  uint64_t saveEvery = 0;       // steps; 0: only at the end
  size_t keep = 2;              // checkpoints
  bool resume = false;          // go on from the newest checkpoint, if there is one
  std::string metrics;          // a file of JSON lines, or empty
  std::string tensorboard;      // a directory of event files, or empty
  std::optional<double> lr;     // instead of the plan's
  std::optional<uint64_t> init; // begin with random weights of this seed instead of a file's
  double initDeviation = 0.02;
  std::vector<std::string> data; // prefixes of Megatron datasets, instead of one batch in a file
  uint64_t dataSeed = 0;
  double dataTemperature = 1; // TokenData.h
  std::string schedule;       // Schedule.h; empty: the plan's
  /// First and last step that a profile has; nothing: the first 20 that are made.
  std::optional<std::pair<uint64_t, uint64_t>> profileSteps;
  /// Becomes the number of a signal when the run is to end after its step; null: it never is.
  const std::atomic<int> *stop = nullptr;
  /// Called in every process of the run before its first step, after which `stop` is looked at.
  std::function<void()> begins;
};

enum class ReferenceMode { none, f32, f64 };

struct RunOptions {
  std::string plan, weights, inputs;
  std::string outputs; // may be empty with check
  ReferenceMode reference = ReferenceMode::none;
  bool check = false; // also run the reference and compare; `reference` then says its precision
  std::optional<double> checkTolerance;        // of the largest reference value of each output
  double timeoutSeconds = 300;                 // that a rank waits for another one; 0: for ever
  std::string dumpRouting, routeFrom, profile; // files, or empty
  std::string device;                          // "host", "cuda", or empty: what the plan is for
  std::vector<int> devices;                    // by rank on this machine; empty: one each
  int repeat = 0;                              // more steps after the first one, timed
  std::optional<TrainOptions> train;           // of plans that train
  std::optional<GenerateOptions> generate;     // of plans that generate
  bool processes = false;                      // a process a rank also on the host
  int threads = 0;            // of each rank's library calls on the host; 0: its share of the cores
  std::optional<bool> graphs; // devices may record and replay what is static; empty: they may
  /// Whether ranks that need a process each may be made by starting this program again with its own
  /// arguments. Otherwise that is BadRun.
  bool mayStartAgain = false;
};

struct RunOutcome {
  Status status;
  /// Whether this process is the one to report it (several processes may share a failure).
  bool speaks = true;
  /// Whether the ranks of a launcher have met: what follows is reported where they agree.
  bool joined = false;
  /// At most 15 lines for a reader; empty where this process does not speak.
  std::string summary;
  /// Where ranks were processes started from here: their exit code, if they failed and have said
  /// why themselves.
  int exitCode = 0;
};

/// Runs the plan's forward program. Under a launcher this process is one rank, otherwise it holds
/// all of them. `lastWords` is called with a failure if the process has to end at once because of
/// other ranks. Messages that are no failures go to `note`.
RunOutcome runPlan(const RunOptions &options, const std::function<void(const Status &)> &lastWords,
                   const std::function<void(const std::string &)> &note);

} // namespace moira::rt

#endif // MOIRA_RT_RUN_H
