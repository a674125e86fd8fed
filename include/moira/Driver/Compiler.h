//===- Compiler.h - from a model to a plan file -----------------*- C++ -*-===//
#ifndef MOIRA_DRIVER_COMPILER_H
#define MOIRA_DRIVER_COMPILER_H

#include "mlir/IR/DialectRegistry.h"
#include "moira/Driver/Options.h"

namespace moira {

/// Every dialect that a phase may hold.
void registerMoiraDialects(mlir::DialectRegistry &registry);

/// Registers Moira's passes by their flags, for the pass-driver mode.
void registerMoiraPasses();

/// Runs the compiler; prints errors and the report to stderr. Returns the process's exit code.
int runCompiler(const CompilerOptions &options);

} // namespace moira

#endif // MOIRA_DRIVER_COMPILER_H
