//===- Options.h - moe-opt's compiler options -------------------*- C++ -*-===//
// The command line of the compiler mode (moe-opt --help), parsed and checked. The pass-driver mode
// is MLIR's own.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_DRIVER_OPTIONS_H
#define MOIRA_DRIVER_OPTIONS_H

#include "moira/Transforms/Passes.h"
#include "moira/rt/Status.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace moira {

/// Named stops on a model's road, in order.
enum class Phase { import, autodiff, shard, partition, localize, plan };
inline constexpr const char *kPhaseNames[] = {"import",    "autodiff", "shard",
                                              "partition", "localize", "plan"};
const char *phaseName(Phase phase);

struct CompilerOptions {
  std::string model;  // directory, config.json, .mlir, .mlirbc or .moeplan
  std::string output; // empty: stdout for IR; a plan file needs a name
  std::string task = "forward";
  int64_t batch = 1, seq = 128;
  int64_t microBatches = 1;      // train: parts that the batch is taken in
  std::optional<int64_t> decSeq; // encoder-decoders; default: seq, of generate 1
  std::optional<int64_t> maxSeq; // generate; default: 128 more than the prompt
  bool padding = true;           // whether rows may be padded
  std::string mesh;              // "dp=2,ep=4"; empty: one rank
  std::string dtype = "f32";
  std::string gradDtype = "f32"; // grad, train: of the gradients that products of bf16 give
  std::string target = "host";
  std::string hostCpu = "x86-64-v3"; // instruction set of generated host kernels
  std::optional<int64_t> raggedBound;
  std::optional<double> capacityFactor; // of experts; without: as the model has it
  std::string dropPolicy; // none, position, probs, random, priority; empty: the model's
  int64_t minCapacity = 4, dropSeed = 0;
  std::optional<double> auxLoss, zLoss; // shares of the routers' losses; without: none
  std::string auxLossDomain = "batch";  // or sequence: what a load-balancing loss is balanced over
  double labelSmoothing = 0;
  NoiseOptions noise;                         // of routers; train
  std::string schedule;                       // train: of the learning rate; empty: none
  OptimizerOptions optimizer;                 // train
  int64_t zeroStage = 0;                      // of ZeRO; train
  std::string offload = "none";               // none, optimizer or optimizer+params; train
  std::string attentionGrad = "reproducible"; // or fastest; a GPU's
  std::optional<uint64_t> memoryLimit;        // bytes a rank
  std::string recompute; // none, selective, full or auto; empty: auto with a limit, else none
  std::optional<Phase> compileTo, compileFrom;
  std::string dumpPhasesTo;
  std::string report = "text"; // text (stderr), json (stdout) or none
  std::string explain;         // a state or tensor of the checkpoint: why it lies as it does
  std::string whyNot;          // a mesh: what it violates, and the nearest ones that fit
  bool memoryOnly = false; // report what a rank needs, write nothing; operations that Moira lacks
                           // are stood in for
  bool timing = false;     // print how long each phase took
  bool deterministic = false;         // the same bits on every mesh
  bool verifyRoundtrip = false;       // print, parse and compare the IR after every phase
  std::vector<std::string> given;     // names of the options on the command line, without dashes
  std::vector<std::string> mlirFlags; // passed on to MLIR: --mlir-…, --debug…
};

/// True if the command line means the compiler: it has a compiler option, or its model is not MLIR
/// text for the pass driver, or it is empty.
bool wantsCompiler(int argc, char **argv);

/// True if the model is IR or a plan, which says itself what its task is.
bool isProgram(llvm::StringRef model);

/// An error for each option that programs of this task do not have.
rt::Status checkTask(const CompilerOptions &options, llvm::StringRef task);

/// Parses argv. All problems at once; an unknown flag names the nearest known one. Sets `help` (and
/// prints it to stdout) for --help.
rt::Status parseCompilerOptions(int argc, char **argv, CompilerOptions &options, bool &help);

} // namespace moira

#endif // MOIRA_DRIVER_OPTIONS_H
