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

/// What is added to the cross-entropy, and how much of it.
struct LossOptions {
  double balance = 0; ///< of the routers' load-balancing losses
  double z = 0;       ///< of the routers' z-losses
};

/// How weights are updated, for --task=train; the options of --moe-add-optimizer.
struct OptimizerOptions {
  std::string optimizer = "adamw"; ///< or sgd
  double lr = 1e-3;                ///< of a run that does not say otherwise
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0.01, momentum = 0;
  double clipNorm = 0; ///< 0: none
};

/// import → autodiff, for --task=train: as for grad, and every state is updated by its gradient.
void buildTrainPipeline(mlir::OpPassManager &pm, const LossOptions &losses,
                        const OptimizerOptions &options);
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
