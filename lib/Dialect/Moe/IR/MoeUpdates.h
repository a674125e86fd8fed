//===- MoeUpdates.h - what verifiers of updates share -----------*- C++ -*-===//
// For the files beside this one.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_DIALECT_MOE_IR_MOEUPDATES_H
#define MOIRA_LIB_DIALECT_MOE_IR_MOEUPDATES_H

#include "moira/Dialect/Moe/IR/MoeOps.h"

namespace moira::moe {

/// Whether the value is not there, or has the shape [1].
bool isOneNumber(mlir::Value v);

bool isFiniteAndNotNegative(const llvm::APFloat &value);

/// C3 of all updates: different states, which nothing behind the operation reads or changes.
llvm::LogicalResult verifyStates(mlir::Operation *op, mlir::OperandRange updated);

} // namespace moira::moe

#endif // MOIRA_LIB_DIALECT_MOE_IR_MOEUPDATES_H
