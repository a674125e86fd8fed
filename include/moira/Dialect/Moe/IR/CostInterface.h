//===- CostInterface.h - what an operation's execution costs ----*- C++ -*-===//
#ifndef MOIRA_DIALECT_MOE_COSTINTERFACE_H
#define MOIRA_DIALECT_MOE_COSTINTERFACE_H

#include "mlir/IR/OpDefinition.h"

namespace moira {
/// Elements of all tensors that an operation reads or makes: the arithmetic of one that does little
/// with each.
double elementsMoved(mlir::Operation *op);
} // namespace moira

#include "Moe/CostInterface.h.inc"

#endif // MOIRA_DIALECT_MOE_COSTINTERFACE_H
