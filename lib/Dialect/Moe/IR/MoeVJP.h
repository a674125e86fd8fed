//===- MoeVJP.h - what buildVJP implementations share -----------*- C++ -*-===//
#ifndef MOIRA_LIB_DIALECT_MOE_MOEVJP_H
#define MOIRA_LIB_DIALECT_MOE_MOEVJP_H

#include "moira/Dialect/Moe/IR/MoeOps.h"

namespace moira::moe {

inline mlir::RankedTensorType tensorOf(mlir::Value v) {
  return mlir::cast<mlir::RankedTensorType>(v.getType());
}

/// The type of a cotangent of `value`: its shape, f32.
inline mlir::RankedTensorType cotangentType(mlir::Value value) {
  return mlir::RankedTensorType::get(tensorOf(value).getShape(),
                                     mlir::Float32Type::get(value.getContext()));
}

/// `value`'s shape with the element type of `element`, for cotangents of rows of experts as well as
/// of tokens.
inline mlir::RankedTensorType cotangentType(mlir::Value value, mlir::Value element) {
  return mlir::RankedTensorType::get(tensorOf(value).getShape(),
                                     tensorOf(element).getElementType());
}

} // namespace moira::moe

#endif // MOIRA_LIB_DIALECT_MOE_MOEVJP_H
