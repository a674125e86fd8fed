//===- MoeOps.h - operations of the moe dialect -----------------*- C++ -*-===//
#ifndef MOIRA_DIALECT_MOE_MOEOPS_H
#define MOIRA_DIALECT_MOE_MOEOPS_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "moira/Analysis/FactorRule.h"
#include "moira/Dialect/Moe/IR/CostInterface.h"
#include "moira/Dialect/Moe/IR/MoeDialect.h"

#include "Moe/DifferentiableOpInterface.h.inc"
#include "Moe/ShardingRuleInterface.h.inc"
#include "Moe/UpdateOpInterface.h.inc"
#define GET_OP_CLASSES
#include "Moe/MoeOps.h.inc"

namespace moira::moe {

/// Digits of an exact moe.squares.
inline constexpr int64_t kSquareDigits = 160;

/// C2 of moe.state for anything with a source: its blocks are the tensor.
llvm::LogicalResult verifySource(mlir::Operation *op, SourceAttr source,
                                 mlir::RankedTensorType type);

/// The parameter that a weight is, as it lies in its state or rounded to a narrower type; null for
/// other values.
ParamOp paramOf(mlir::Value weight);

/// The gate that makes a routing; null if it is not a gate's own result.
RouterAttr routerOf(mlir::Value routing);

/// The same behind what changes a routing, such as limits; null if no gate is known.
RouterAttr firstRouterOf(mlir::Value routing);

/// Whether a value is zeros everywhere, by how it is made: the gradient of what no loss depends on.
bool isZero(mlir::Value value);

/// The same values rounded or widened to `element`.
mlir::Value toElement(mlir::OpBuilder &b, mlir::Value x, mlir::Type element);

} // namespace moira::moe

#endif // MOIRA_DIALECT_MOE_MOEOPS_H
