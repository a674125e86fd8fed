//===- Passes.h - the partitioning passes and their phases ------*- C++ -*-===//
// What the driver calls. What each pass does is in Passes.td, why they stand in this order in
// lib/Transforms/Pipelines.cpp.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TRANSFORMS_PASSES_H
#define MOIRA_TRANSFORMS_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"
#include <string>

namespace moira {

#define GEN_PASS_DECL
#include "moira/Transforms/Passes.h.inc"
#define GEN_PASS_REGISTRATION
#include "moira/Transforms/Passes.h.inc"

/// A unit attribute of the operation that a program's backward part begins with, set by
/// --moe-autodiff.
inline constexpr llvm::StringLiteral kBackwardAttr = "moe.backward";

struct PartitionOptions {
  std::string mesh;               ///< "dp=2,ep=4"; empty: the module's own mesh, or one rank
  int64_t raggedBound = 0;        ///< initial bound of ragged rows; 0: the default
  int64_t gatherRemarkBytes = 0;  ///< remark on all_gathers from this size on; 0: none
  std::string recompute = "none"; ///< none, selective or full: see --dist-recompute
  int64_t zeroStage = 0;          ///< of ZeRO; 0: replicas of weights update them alike
};

/// Noise in what gates read, for --task=train.
struct NoiseOptions {
  bool on = false;
  int64_t seed = 0;
};

/// What is minimised: the cross-entropy, and what is added to it.
struct LossOptions {
  double smoothing = 0;         ///< of labels
  double balance = 0;           ///< of the routers' load-balancing losses
  bool perSequence = false;     ///< whether they are means of each sequence's own
  double z = 0;                 ///< of the routers' z-losses
  bool narrowGradients = false; ///< whether products of bf16 give weights' gradients in bf16
};

/// How weights are updated, for --task=train; the options of --moe-add-optimizer.
struct OptimizerOptions {
  std::string optimizer = "adamw"; ///< or adafactor, sgd
  double lr = 1e-3;                ///< of a run that does not say otherwise
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0.01, momentum = 0;
  double eps2 = 1e-3, decayRate = 0.8, clipThreshold = 1; ///< of adafactor, whose eps is 1e-30
  bool scaleParameter = true;
  double clipNorm = 0; ///< 0: none
  double biasRate = 0; ///< of selection biases towards an even load; 0: they stay
};

/// import → autodiff, for --task=train: as for grad, and every state is updated by its gradient,
/// once for each `microBatches` runs of the program.
void buildTrainPipeline(mlir::OpPassManager &pm, const LossOptions &losses,
                        const NoiseOptions &noise, const OptimizerOptions &options,
                        int64_t microBatches = 1);
/// import → autodiff, for --task=grad: a loss, and the gradient of every state.
void buildAutodiffPipeline(mlir::OpPassManager &pm, const LossOptions &options);
/// import → shard. Fails with MOE-0103 or MOE-0104 diagnostics if the mesh is malformed or does not
/// divide the model.
void buildShardPipeline(mlir::OpPassManager &pm, const PartitionOptions &options);
/// shard → partition.
void buildPartitionPipeline(mlir::OpPassManager &pm, const PartitionOptions &options);
/// partition → localize.
void buildLocalizePipeline(mlir::OpPassManager &pm, const PartitionOptions &options);

/// The passes by their own flags, and the three phases as --dist-shard-pipeline,
/// --dist-partition-pipeline and --dist-localize-pipeline.
void registerPartitionPasses();

} // namespace moira

#endif // MOIRA_TRANSFORMS_PASSES_H
