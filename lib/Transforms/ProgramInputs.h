//===- ProgramInputs.h - inputs that passes give to programs ----*- C++ -*-===//
// A program's inputs are arguments with a `moe.name`.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TRANSFORMS_PROGRAMINPUTS_H
#define MOIRA_LIB_TRANSFORMS_PROGRAMINPUTS_H

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include <optional>

namespace moira {

/// Its values lie in [least, most].
struct InputRange {
  int64_t least, most;
};

/// Adds an input behind the others. `fill`: what stands for it in a run that does not give it;
/// without one every run must.
mlir::Value addInput(mlir::func::FuncOp func, llvm::StringRef name, mlir::Type type,
                     std::optional<double> fill, std::optional<InputRange> range = std::nullopt);

/// The input of that name, added if there is none. One that is there, as another pass asked for it,
/// then takes only values that lie in both ranges.
mlir::Value getInput(mlir::func::FuncOp func, llvm::StringRef name, mlir::Type type, double fill,
                     std::optional<InputRange> range = std::nullopt);

} // namespace moira

#endif // MOIRA_LIB_TRANSFORMS_PROGRAMINPUTS_H
