//===- Pipelines.cpp - the phases autodiff to localize --------------------===//
//
//   import ──▶ autodiff ──▶ shard ──▶ partition ──▶ localize
//              gradients    who holds    how it        what one
//                           what         moves         rank does
//
// Global shapes until the last phase: every pass before it could be checked against the one-rank
// program by someone with pencil and paper. Every phase ends with its verifier.
//===----------------------------------------------------------------------===//
#include "mlir/Pass/PassRegistry.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Transforms/Passes.h"

using namespace mlir;
using namespace moira;

/// A loss, and the gradient of every state; the program's name says for which task.
static void addGradients(OpPassManager &pm, const LossOptions &options, std::string program,
                         int64_t microBatches = 1) {
  MoeAddLossOptions loss;
  loss.program = std::move(program);
  loss.microBatches = microBatches;
  loss.smoothing = options.smoothing;
  loss.balance = options.balance;
  loss.perSequence = options.perSequence;
  loss.z = options.z;
  pm.addPass(createMoeAddLoss(loss));
  // On the global program, which has no collective: it need not know how one is differentiated.
  pm.addPass(createMoeAutodiff());
  // While nothing but the results takes gradients.
  if (options.narrowGradients)
    pm.addPass(createMoeNarrowGradients());
}

void moira::buildAutodiffPipeline(OpPassManager &pm, const LossOptions &options) {
  addGradients(pm, options, "grad");
}

void moira::buildTrainPipeline(OpPassManager &pm, const LossOptions &losses,
                               const NoiseOptions &noise, const OptimizerOptions &options,
                               int64_t microBatches) {
  // Part of the function that is differentiated.
  if (noise.on)
    pm.addPass(createMoeRouterNoise({microBatches, noise.seed}));
  addGradients(pm, losses, "train", microBatches);
  // Before there are updates, which take f32 only; behind autodiff, as gradients are f32 anyway.
  pm.addPass(createMoeMasterWeights());
  pm.addPass(createMoeAddLoads({options.biasRate > 0, options.optimizer == "adamw"}));
  // Around the gradients of one micro-batch; the optimizer then finds sums in their place.
  pm.addPass(createMoeMicroBatches({microBatches}));
  // Still on the global program: where a rank's part of an update is follows from shardings later.
  MoeAddOptimizerOptions optimizer;
  optimizer.optimizer = options.optimizer;
  optimizer.lr = options.lr;
  optimizer.beta1 = options.beta1;
  optimizer.beta2 = options.beta2;
  optimizer.eps = options.eps;
  optimizer.weightDecay = options.weightDecay;
  optimizer.momentum = options.momentum;
  optimizer.eps2 = options.eps2;
  optimizer.decayRate = options.decayRate;
  optimizer.clipThreshold = options.clipThreshold;
  optimizer.scaleParameter = options.scaleParameter;
  optimizer.clipNorm = options.clipNorm;
  optimizer.biasRate = options.biasRate;
  pm.addPass(createMoeAddOptimizer(optimizer));
}

void moira::buildShardPipeline(OpPassManager &pm, const PartitionOptions &options) {
  // The mesh is part of the program from here on.
  pm.addPass(createDistAttachMesh({options.mesh}));
  // Refuse before anything is cut: later messages would speak of shardings that the user never
  // wrote.
  pm.addPass(createDistCheckDivisibility());
  // Seeds. Tokens first, as the experts' exchange depends on how they are split; the weights' axes
  // do not interfere with one another.
  pm.addPass(createDistShardData());
  pm.addPass(createDistShardExpert({options.raggedBound}));
  pm.addPass(createDistShardTensor());
  // Everything else follows from seeds and rules; conflicts become reshards.
  pm.addPass(createDistPropagate());
  // After propagation, because only now is it known which norms run over cut dimensions.
  pm.addPass(createDistExpandNorms());
  // Behind all that decides what is replicated and what is a sum: it splits what is both.
  pm.addPass(createDistShardZero({options.zeroStage}));
  pm.addPass(createDistVerifyShard());
}

void moira::buildPartitionPipeline(OpPassManager &pm, const PartitionOptions &options) {
  // Before the reshards: it makes collectives of its own, and a reshard between combine and its use
  // then sees the final producer.
  pm.addPass(createDistLowerDispatch());
  pm.addPass(createDistLowerReshards());
  // Needs both sides of a collective to be explicit.
  pm.addPass(createDistOptimizeCollectives());
  // Now every exchange stands there, so its price is known; before localisation, which gives
  // copies their offsets too.
  pm.addPass(createDistRecompute({options.recompute, /*remark=*/false}));
  // Last, or equal gathers would be made one again.
  pm.addPass(createDistRegatherWeights());
  pm.addPass(createDistVerifyPartition({options.gatherRemarkBytes}));
}

void moira::buildLocalizePipeline(OpPassManager &pm, const PartitionOptions &) {
  // One step on purpose: a half-localised program would have no consistent types.
  pm.addPass(createDistLocalize());
  pm.addPass(createDistVerifyLocalize());
}

namespace {
struct PhaseOptions : PassPipelineOptions<PhaseOptions> {
  Option<std::string> mesh{*this, "mesh", llvm::cl::desc("axes and sizes: dp=2,ep=4")};
  Option<int64_t> raggedBound{*this, "ragged-bound", llvm::cl::init(0),
                              llvm::cl::desc("initial bound of ragged rows")};
  Option<int64_t> gatherRemarkBytes{*this, "gather-remark-bytes", llvm::cl::init(0),
                                    llvm::cl::desc("remark on all_gathers of this size")};
  Option<std::string> recompute{*this, "recompute", llvm::cl::init("none"),
                                llvm::cl::desc("none, selective or full")};
  Option<int64_t> zero{*this, "zero", llvm::cl::init(0), llvm::cl::desc("stage of ZeRO")};
  PartitionOptions get() const { return {mesh, raggedBound, gatherRemarkBytes, recompute, zero}; }
};
} // namespace

void moira::registerPartitionPasses() {
  registerDistPasses();
  auto phase = [](StringRef flag, StringRef what, auto build) {
    PassPipelineRegistration<PhaseOptions>(
        flag, what,
        [build](OpPassManager &pm, const PhaseOptions &options) { build(pm, options.get()); });
  };
  phase("dist-shard-pipeline", "Phase import → shard", buildShardPipeline);
  phase("dist-partition-pipeline", "Phase shard → partition", buildPartitionPipeline);
  phase("dist-localize-pipeline", "Phase partition → localize", buildLocalizePipeline);
}
