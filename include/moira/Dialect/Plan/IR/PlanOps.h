//===- PlanOps.h - the plan dialect -----------------------------*- C++ -*-===//
#ifndef MOIRA_DIALECT_PLAN_PLANOPS_H
#define MOIRA_DIALECT_PLAN_PLANOPS_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/Interfaces/ControlFlowInterfaces.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"

#include "Plan/PlanDialect.h.inc"
#include "Plan/PlanEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "Plan/PlanAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "Plan/PlanTypes.h.inc"
namespace moira::plan {
/// True for a dictionary of what plan.fbs calls parameters: i64, f64, text, array<i64>,
/// #dist.offset.
bool isParams(mlir::Attribute attribute);
} // namespace moira::plan
#include "Plan/PlanInterfaces.h.inc"
#define GET_OP_CLASSES
#include "Plan/PlanOps.h.inc"

namespace moira::plan {
/// Offsets and sizes in arenas are multiples of this.
inline constexpr uint64_t kAlignment = 64;
inline uint64_t alignUp(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
/// On a moe.state: it lies in the memory of a device's host. On another operation: it runs there.
inline constexpr llvm::StringLiteral kOnHostAttr = "plan.on_host";
/// On a moe.glu: the product before it makes it (grouped_glu).
inline constexpr llvm::StringLiteral kInProductAttr = "plan.in_product";
/// On a moe.dispatch or dist.select: it gives the numbers of its rows' tokens, not the rows.
inline constexpr llvm::StringLiteral kNumbersOnlyAttr = "plan.numbers_only";
/// Bytes of an element of a view; 0 for a type that views do not have.
unsigned elementBytes(mlir::Type type);
/// The mesh of a plan.
MeshInfo getMesh(PlanOp plan);
/// Shape of one rank's shard of a global tensor type; −1 for a dimension that its sharding does not
/// divide.
llvm::SmallVector<int64_t> shardShape(mlir::RankedTensorType global, const MeshInfo &mesh);
/// The plan of a module, or null.
PlanOp getPlan(mlir::ModuleOp module);
} // namespace moira::plan

#endif // MOIRA_DIALECT_PLAN_PLANOPS_H
