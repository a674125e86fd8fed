//===- ShardingIR.h - reading and writing shardings in IR -------*- C++ -*-===//
// Shared by the passes of this folder. The algebra itself is in moira/Analysis/ShardingUtils.h.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TRANSFORMS_SHARDINGIR_H
#define MOIRA_LIB_TRANSFORMS_SHARDINGIR_H

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Analysis/ShardingUtils.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"

namespace moira {

/// The sharding of a value's type, or null.
dist::ShardingAttr shardingOf(mlir::Value value);
llvm::SmallVector<dist::ShardingAttr> shardingsOf(mlir::ValueRange values);
void setSharding(mlir::Value value, dist::ShardingAttr sharding);

/// Whether this is what a rank holds of a state, perhaps rounded for its uses (a scale by 1 to
/// another type).
bool isPartOfWeight(mlir::Value value);

/// True for what can carry a sharding: ranked tensors and routings.
bool isShardable(mlir::Type type);
/// Number of dimensions that a sharding of this type has.
int64_t shardableRank(mlir::Type type);
/// The sizes that its dimensions cut.
llvm::ArrayRef<int64_t> shardableShape(mlir::Type type);

/// Makes a function's type agree with its block arguments and its return.
void updateFunctionType(mlir::func::FuncOp func);

/// The state tensors of a module with the params that read them. A state and its params have one
/// type, and what rounds a param is cut as they are.
class StateTable {
public:
  explicit StateTable(mlir::ModuleOp module);

  /// The state that this value is, as it lies there or rounded; or null.
  moe::StateOp stateOf(mlir::Value value) const;
  /// Everything that reads it, in program order.
  llvm::ArrayRef<moe::ParamOp> paramsOf(moe::StateOp state) const;
  dist::ShardingAttr getSharding(moe::StateOp state) const;
  void setSharding(moe::StateOp state, dist::ShardingAttr sharding) const;
  /// Cuts one more dimension. False, with a diagnostic, if it is cut otherwise already or an axis
  /// would stand twice.
  mlir::LogicalResult cutDim(moe::StateOp state, int64_t dim, dist::DimShardingAttr cut) const;

private:
  llvm::DenseMap<mlir::StringAttr, moe::StateOp> states;
  llvm::DenseMap<mlir::Operation *, llvm::SmallVector<moe::ParamOp>> params;
};

} // namespace moira

#endif // MOIRA_LIB_TRANSFORMS_SHARDINGIR_H
