//===- Generate.h - making tokens one after another -------------*- C++ -*-===//
// The loop over a plan's programs prefill and decode, or over its reference program, and what it
// needs to know: prompts, stop tokens, how tokens are chosen. docs/generation.md is the contract.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_GENERATE_H
#define MOIRA_RT_CORE_GENERATE_H

#include "moira/rt/Profile.h"
#include "moira/rt/ProgramRunner.h"
#include "moira/rt/Run.h"

#include <array>
#include <functional>
#include <optional>

namespace moira::rt {

/// The programs of a plan that generates tokens; all null for other plans.
struct GeneratePrograms {
  const fb::Program *prefill = nullptr, *decode = nullptr, *reference = nullptr;
  explicit operator bool() const { return prefill && decode; }
};
GeneratePrograms generatePrograms(const fb::Plan &plan);

/// Tokens that generation_config.json (or else config.json) of a model gives a meaning.
struct SpecialTokens {
  std::vector<int32_t> stop;
  std::optional<int32_t> pad, start;
  /// What generation_config.json asks besides and nothing here does, as "num_beams=5".
  std::vector<std::string> notDone;
  /// What follows the end of a row.
  int32_t filler() const { return pad ? *pad : stop.empty() ? 0 : stop.front(); }
};
/// Reads them from a model directory; BadInput if a file that is there cannot be read. What no file
/// says is absent.
Expected<SpecialTokens> readSpecialTokens(const std::string &directory);

/// What all ranks of a process share: prompts in their slots, and what is asked.
class GenerateTask {
public:
  /// BadRun where the plan has no room for so many tokens, FileNotFound, BadSafetensors, BadInput.
  static Expected<GenerateTask> open(const GeneratePrograms &programs, const std::string &inputs,
                                     const std::string &model, const GenerateOptions &options);
  /// Prompts [count, width] without padding, of a model without an encoder. BadRun, BadInput.
  static Expected<GenerateTask> fromMemory(const GeneratePrograms &programs, const int32_t *prompts,
                                           int64_t count, int64_t width,
                                           const GenerateOptions &options);

  const GenerateOptions &options() const { return asked; }
  const GeneratePrograms &programs() const { return all; }
  /// Tensors of the file that no program takes.
  const std::vector<std::string> &ignored() const { return unused; }
  /// Settings of the model's generation_config.json that change what transformers would choose.
  const std::vector<std::string> &notDone() const { return special.notDone; }
  int64_t batch() const { return rows; }

private:
  friend class RankGeneration;
  /// Sizes of the programs; BadRun if they have no room for what is asked.
  Status takeSizes();
  Status readPrompts(const std::string &path);
  /// Puts the tokens whose mask is set to the right ends of the rows; `from` is for errors.
  Status place(std::span<const int32_t> ids, std::span<const int32_t> mask,
               const std::string &from);

  GeneratePrograms all;
  GenerateOptions asked;
  SpecialTokens special;
  std::vector<std::string> unused;
  int64_t rows = 0, promptSlots = 0, slots = 0; // of a program: tokens of a prompt, of a row
  int64_t width = 0;                            // of the prompts in the file
  std::vector<int32_t> prompts, promptMask;     // [rows, promptSlots], at the right end
  int64_t encoderSlots = 0;                     // 0: no encoder
  std::vector<int32_t> encoderIds, encoderMask; // [rows, encoderSlots]
};

/// Seconds of the steps.
struct GenerateTimes {
  double prefill = 0;
  std::vector<double> decode;
};

/// One rank's loop. All ranks make the same decisions, as each gets all tokens from the device.
class RankGeneration {
public:
  /// `profile` is this rank's, or null.
  RankGeneration(const GenerateTask &task, RankProfile *profile);

  /// Generates with program 0 and 1 of the runner (prefill, decode), or with its program 0 if it
  /// runs the reference. `onStep` sees every step's tokens, one a row. Collective.
  Status run(ProgramRunner &runner, bool reference,
             const std::function<void(int64_t step, std::span<const int32_t> ids)> &onStep);

  /// New tokens of each row, [batch, steps made].
  const std::vector<int32_t> &tokens() const { return made; }
  int64_t steps() const { return task.rows ? int64_t(made.size()) / task.rows : 0; }
  const GenerateTimes &times() const { return seconds; }
  /// Writes `generated_ids`, prompts and new tokens. Collective.
  Status write(const std::string &path, Communicator &communicator) const;

private:
  Expected<InputSet> inputsOf(const fb::Program &program);
  /// One step of a program; the tokens are in `next` then.
  Status step(ProgramRunner &runner, size_t number, const fb::Program &program,
              const InputSet &inputs);

  const GenerateTask &task;
  RankProfile *profile;
  // What the inputs point to.
  std::vector<int32_t> ids, mask;    // [batch, slots]: everything so far, of the reference
  std::vector<int32_t> laterPlaces;  // [batch, slots]: of its tokens, 0 in prompts
  std::vector<int32_t> next, places; // [batch, 1]
  std::array<int32_t, 1> position = {};
  std::array<float, 2> sampling = {};
  std::array<int32_t, 4> draw = {};
  std::array<int32_t, 1> stepNumber = {}; // of capacities that drop at random
  std::vector<int32_t> made;
  GenerateTimes seconds;
};

} // namespace moira::rt

#endif // MOIRA_RT_CORE_GENERATE_H
