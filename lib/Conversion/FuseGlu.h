//===- FuseGlu.h - which products the gated kernels take ----------*- C++ -*-===//
// What --plan-fuse-glu and --plan-fuse-glu-grad ask of operands alike.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_CONVERSION_FUSEGLU_H
#define MOIRA_LIB_CONVERSION_FUSEGLU_H

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Value.h"

namespace moira {

/// Whether kernels of grouped_glu and its gradient take such operands: all tensors in bf16, rows
/// that come in units, not too many groups.
inline bool fitsGroupedGlu(llvm::ArrayRef<mlir::Value> tensors, int64_t groups, int64_t width,
                           int64_t depth) {
  constexpr int64_t mostGroups = 256, unit = 8;
  for (mlir::Value tensor : tensors)
    if (!llvm::cast<mlir::RankedTensorType>(tensor.getType()).getElementType().isBF16())
      return false;
  return width % unit == 0 && depth % unit == 0 && groups <= mostGroups;
}

/// Whether groups have so many rows on average that reading weights is not what takes time: those
/// kernels that keep products, or make gradients, gain then.
inline bool hasManyRows(int64_t groups, int64_t rows) { return rows > 16 * groups; }

} // namespace moira

#endif // MOIRA_LIB_CONVERSION_FUSEGLU_H
