//===- DistOps.h - operations of the dist dialect ---------------*- C++ -*-===//
#ifndef MOIRA_DIALECT_DIST_DISTOPS_H
#define MOIRA_DIALECT_DIST_DISTOPS_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/ImplicitLocOpBuilder.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "moira/Analysis/FactorRule.h"
#include "moira/Dialect/Dist/IR/DistDialect.h"
#include "moira/Dialect/Moe/IR/CostInterface.h"
#include "moira/Dialect/Moe/IR/MoeDialect.h"

#define GET_OP_CLASSES
#include "Dist/DistOps.h.inc"

namespace moira::dist {
/// A unit attribute of operations that make a value again which the forward program has made
/// already.
inline constexpr llvm::StringLiteral kRecomputedAttr = "dist.recomputed";

/// The mesh of a module: its dist.mesh, or one rank.
MeshInfo getMesh(mlir::ModuleOp module);
} // namespace moira::dist

#endif // MOIRA_DIALECT_DIST_DISTOPS_H
