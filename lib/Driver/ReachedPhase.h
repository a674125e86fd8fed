//===- ReachedPhase.h - where IR goes on ------------------------*- C++ -*-===//
// IR may come from any phase: which one it has reached, and which options that leaves open.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_DRIVER_REACHEDPHASE_H
#define MOIRA_LIB_DRIVER_REACHEDPHASE_H

#include "mlir/IR/BuiltinOps.h"
#include "moira/Driver/Compiler.h"

namespace moira {

/// Whether some program has a backward part.
bool hasGradients(mlir::ModuleOp module);

/// The last phase that has left its mark on a module: plans, local types, exchanges, shardings,
/// backward parts.
Phase phaseOf(mlir::ModuleOp module);

/// Options that were decided before `reached` would be ignored: an error for each.
rt::Status checkDecided(const CompilerOptions &options, Phase reached);

/// A global program of logits is one for --task=forward, grad and train alike: the option decides.
/// BadUsage for generation, which needs another program.
rt::Status takeTask(mlir::ModuleOp module, const CompilerOptions &options);

} // namespace moira

#endif // MOIRA_LIB_DRIVER_REACHEDPHASE_H
