//===- DistDialect.h - the dist dialect: dialect and attributes -*- C++ -*-===//
// Attributes first, because the moe dialect uses them; operations are in DistOps.h.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_DIALECT_DIST_DISTDIALECT_H
#define MOIRA_DIALECT_DIST_DISTDIALECT_H

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/TensorEncoding.h"

#include "moira/Analysis/FactorRule.h"

#include "Dist/DistDialect.h.inc"
#include "Dist/DistEnums.h.inc"
#define GET_ATTRDEF_CLASSES
#include "Dist/DistAttrs.h.inc"

namespace moira::dist {
/// The sharding in a type's encoding (tensor or !moe.routing), or null.
ShardingAttr getSharding(mlir::Type type);
/// `type` with this sharding (null: none).
mlir::Type withSharding(mlir::Type type, ShardingAttr sharding);
/// Elements of a dimension of `size` on one shard: (size + pad) / axes, or slots·bound for a ragged
/// one. −1 if the axes do not divide it.
int64_t localSize(int64_t size, DimShardingAttr dim, const MeshInfo &mesh);
/// localSize of every dimension.
llvm::SmallVector<int64_t> localShape(llvm::ArrayRef<int64_t> shape, ShardingAttr sharding,
                                      const MeshInfo &mesh);
} // namespace moira::dist

#endif // MOIRA_DIALECT_DIST_DISTDIALECT_H
