//===- ShardingRuleTools.h - what files of sharding rules share -*- C++ -*-===//
// Short names in which the rules of moe's operations are written. For the files beside this one.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_DIALECT_MOE_IR_SHARDINGRULETOOLS_H
#define MOIRA_LIB_DIALECT_MOE_IR_SHARDINGRULETOOLS_H

#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"

namespace moira::moe {

/// Factors, by their numbers in a rule.
using Ids = mlir::SmallVector<int>;

inline mlir::ArrayRef<int64_t> shapeOf(mlir::Value v) {
  return mlir::cast<mlir::RankedTensorType>(v.getType()).getShape();
}

inline Ids join(Ids a, const Ids &b) {
  llvm::append_range(a, b);
  return a;
}

inline constexpr FactorKind pass = FactorKind::passThrough, reduce = FactorKind::reduction,
                            whole = FactorKind::needReplication,
                            unconstrained = FactorKind::unconstrained;

/// Where a rank's part of a dimension of `size` begins; null if the dimension is not cut.
inline mlir::Attribute offsetOf(int64_t size, dist::DimShardingAttr dim, const MeshInfo &mesh) {
  if (dim.getAxes().empty())
    return {};
  return dist::OffsetAttr::get(dim.getContext(), dim.getAxes(), dist::localSize(size, dim, mesh));
}

} // namespace moira::moe

#endif // MOIRA_LIB_DIALECT_MOE_IR_SHARDINGRULETOOLS_H
