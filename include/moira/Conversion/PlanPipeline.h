//===- PlanPipeline.h - from localized IR to a plan -------------*- C++ -*-===//
// The phase `plan`: what the driver calls. The passes it is made of are in PlanPasses.h, the file's
// bytes in Target/Plan/PlanFileIO.h.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CONVERSION_PLANPIPELINE_H
#define MOIRA_CONVERSION_PLANPIPELINE_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include <string>
#include <vector>

namespace moira {

struct PlanOptions {
  std::string target = "host";                // "host" or a GPU as ptxas names it, "sm_90"
  std::string hostCpu = "x86-64-v3";          // instruction set of host kernels: KernelImage.h
  std::string offload = "none";               // what lies in a GPU's host's memory: --offload
  std::string attentionGrad = "reproducible"; // or "fastest": --attention-grad
  std::string producer = "moira 0.1.0";       // stands in the file
};

/// Builds the plan module: one plan.plan with the program `forward` and, if `global` is given, the
/// program `reference`.
///
/// `localized` is a module at the phase `localize`, `global` the module at the phase `import` (or
/// null: the plan then has no reference program). Neither is changed. Both hold one func.func for
/// each entry program, with the argument and result attributes of docs/architecture.md, and the
/// module attribute `plan.info` (a default one is made if it is missing). Errors are emitted as
/// diagnostics, all that are found at once; MOE-0699 marks what should not happen.
mlir::LogicalResult buildPlan(mlir::ModuleOp localized, mlir::ModuleOp global,
                              const PlanOptions &options,
                              mlir::OwningOpRef<mlir::ModuleOp> &planModule);

/// `plan.info` of the module, or one that says what the functions do.
plan::InfoAttr infoOf(mlir::ModuleOp module);

/// An arena of a device and what a rank allocates for it, at the initial bound.
struct ArenaBytes {
  std::string name;
  uint64_t bytes = 0;
};

/// What a plan of `localized` would need, without making its kernels and its reference program.
mlir::FailureOr<std::vector<ArenaBytes>> measurePlan(mlir::ModuleOp localized,
                                                     const PlanOptions &options);

} // namespace moira

#endif // MOIRA_CONVERSION_PLANPIPELINE_H
