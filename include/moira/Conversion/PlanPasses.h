//===- PlanPasses.h - the passes of the phase `plan` ------------*- C++ -*-===//
// One job each, in the order of PlanPipeline.cpp; each can be run alone by its flag.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CONVERSION_PLANPASSES_H
#define MOIRA_CONVERSION_PLANPASSES_H

#include "mlir/Pass/Pass.h"
#include "moira/Conversion/PlanPipeline.h"
#include <memory>

namespace moira {

/// `--plan-offload`: localized functions; places `states` ("optimizer" or "optimizer+params") in
/// the host's memory, and what changes them on the host.
std::unique_ptr<mlir::Pass> createPlanOffloadPass(llvm::StringRef states = "optimizer");
/// `--plan-fuse-glu-grad`: localized functions for a GPU; makes one operation of the gradient of
/// experts' gated rows. Before --plan-fuse-glu.
std::unique_ptr<mlir::Pass> createPlanFuseGluGradPass();
/// `--plan-fuse-glu`: localized functions for a GPU; marks gated units that become part of the
/// product before them, and selections of rows that it gathers.
std::unique_ptr<mlir::Pass> createPlanFuseGluPass();
/// `--plan-round-cotangents`: localized functions; rounds a cotangent once for all
/// products of bf16 that take it. Before --plan-fuse-kernels.
std::unique_ptr<mlir::Pass> createPlanRoundCotangentsPass();
/// `--plan-fuse-kernels`: localized functions; puts row ops that one kernel can run into
/// plan.fused.
std::unique_ptr<mlir::Pass> createPlanFuseKernelsPass();
/// `--plan-lower`: functions of a localized module (or of a global one with `reference`) become
/// programs of a plan.plan.
std::unique_ptr<mlir::Pass> createPlanLowerPass(const PlanOptions &options = {},
                                                bool reference = false);
/// `--plan-merge-calls`: one call of products of the same few rows by several weights, and of
/// what is written at the same place of two states.
std::unique_ptr<mlir::Pass> createPlanMergeCallsPass();
/// `--plan-schedule`: orders each program so that dense work stands between an exchange and its
/// first use.
std::unique_ptr<mlir::Pass> createPlanSchedulePass();
/// `--plan-fuse-squares`: updates add up the squares of the gradients that they read, where they do
/// not wait for the norm.
std::unique_ptr<mlir::Pass> createPlanFuseSquaresPass();
/// `--plan-insert-events`: record and wait where a value crosses queues.
std::unique_ptr<mlir::Pass> createPlanInsertEventsPass();
/// `--plan-allocate`: addresses for all views, sizes for all arenas.
std::unique_ptr<mlir::Pass> createPlanAllocatePass();
/// `--plan-build-kernels`: compiles the kernels' specs into a section.
std::unique_ptr<mlir::Pass> createPlanBuildKernelsPass(const PlanOptions &options = {});

/// Registers all of them for the pass driver.
void registerPlanPasses();

} // namespace moira

#endif // MOIRA_CONVERSION_PLANPASSES_H
