//===- ReachedPhase.cpp - where IR goes on --------------------------------===//
// See ReachedPhase.h.
//===----------------------------------------------------------------------===//
#include "ReachedPhase.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Conversion/PlanPipeline.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/Transforms/Passes.h"

using namespace mlir;
using namespace moira;
using rt::ErrorId;
using rt::Status;

bool moira::hasGradients(ModuleOp module) {
  return module
      .walk([](Operation *op) {
        return op->hasAttr(kBackwardAttr) ? WalkResult::interrupt() : WalkResult::advance();
      })
      .wasInterrupted();
}

Phase moira::phaseOf(ModuleOp module) {
  bool exchanges = false, reshards = false, sharded = false, local = false;
  WalkResult plans = module.walk([&](Operation *op) {
    if (isa<plan::PlanDialect>(op->getDialect()))
      return WalkResult::interrupt();
    if (isa<dist::ReshardOp>(op))
      reshards = true;
    else if (isa<dist::DistDialect>(op->getDialect()) && !isa<dist::MeshOp>(op))
      exchanges = true;
    if (auto function = dyn_cast<func::FuncOp>(op))
      for (unsigned i = 0; i < function.getNumArguments(); ++i) {
        auto type = dyn_cast<RankedTensorType>(function.getArgumentTypes()[i]);
        sharded |= type && isa_and_present<dist::ShardingAttr>(type.getEncoding());
        local |= function.getArgAttr(i, "dist.global") != nullptr;
      }
    return WalkResult::advance();
  });
  if (plans.wasInterrupted())
    return Phase::plan;
  if (local)
    return Phase::localize;
  if (sharded)
    return exchanges && !reshards ? Phase::partition : Phase::shard;
  return hasGradients(module) ? Phase::autodiff : Phase::import;
}

Status moira::checkDecided(const CompilerOptions &options, Phase reached) {
  constexpr std::pair<const char *, Phase> kDecidedBy[] = {{"task", Phase::autodiff},
                                                           {"batch", Phase::import},
                                                           {"micro-batches", Phase::import},
                                                           {"schedule", Phase::import},
                                                           {"label-smoothing", Phase::autodiff},
                                                           {"optimizer", Phase::autodiff},
                                                           {"lr", Phase::autodiff},
                                                           {"betas", Phase::autodiff},
                                                           {"eps", Phase::autodiff},
                                                           {"weight-decay", Phase::autodiff},
                                                           {"momentum", Phase::autodiff},
                                                           {"clip-norm", Phase::autodiff},
                                                           {"bias-update-rate", Phase::autodiff},
                                                           {"decay-rate", Phase::autodiff},
                                                           {"clip-threshold", Phase::autodiff},
                                                           {"scale-parameter", Phase::autodiff},
                                                           {"seq", Phase::import},
                                                           {"dec-seq", Phase::import},
                                                           {"max-seq", Phase::import},
                                                           {"padding", Phase::import},
                                                           {"dtype", Phase::import},
                                                           {"mesh", Phase::shard},
                                                           {"ragged-bound", Phase::shard},
                                                           {"zero", Phase::shard},
                                                           {"deterministic", Phase::autodiff},
                                                           {"grad-dtype", Phase::autodiff},
                                                           {"capacity-factor", Phase::autodiff},
                                                           {"drop-policy", Phase::autodiff},
                                                           {"min-capacity", Phase::autodiff},
                                                           {"drop-seed", Phase::autodiff},
                                                           {"aux-loss", Phase::autodiff},
                                                           {"aux-loss-domain", Phase::autodiff},
                                                           {"z-loss", Phase::autodiff},
                                                           {"router-noise", Phase::autodiff},
                                                           {"noise-seed", Phase::autodiff},
                                                           {"recompute", Phase::partition},
                                                           {"offload", Phase::plan},
                                                           {"attention-grad", Phase::plan},
                                                           {"target", Phase::plan},
                                                           {"host-cpu", Phase::plan}};
  Status status;
  for (auto [option, phase] : kDecidedBy)
    if (phase <= reached && llvm::is_contained(options.given, option))
      status.add(ErrorId::BadUsage, std::string("--") + option + " is decided by " + options.model +
                                        ", which has reached the phase " + phaseName(reached) +
                                        "; leave it out");
  return status;
}

Status moira::takeTask(ModuleOp module, const CompilerOptions &options) {
  auto info = module->getAttrOfType<plan::InfoAttr>("plan.info");
  StringRef task = info ? info.getTask() : "forward";
  if (!llvm::is_contained(options.given, "task") || options.task == task)
    return {};
  if (task == "generate" || options.task == "generate")
    return {ErrorId::BadUsage,
            options.model + " holds a program of --task=" + task.str() +
                ", --task=" + options.task +
                " needs another one; generation is for models of the known classes (config.json)"};
  info = infoOf(module);
  module->setAttr("plan.info",
                  plan::InfoAttr::get(module.getContext(), info.getModelClass(), options.task,
                                      info.getDtype(), info.getBatch(), info.getSeq(),
                                      info.getParameters(), info.getActiveParameters(),
                                      info.getTensorsExpected(), info.getTensorsFound(),
                                      info.getUnusedTensors(), info.getSchedule()));
  return {};
}
