//===- KernelGroups.h - row ops as one generated kernel ---------*- C++ -*-===//
// Which groups of moe ops a generated kernel can run, and the KernelSpec that says so. Forming
// groups is FuseKernels.cpp's business, launching them Lower.cpp's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_CONVERSION_KERNELGROUPS_H
#define MOIRA_LIB_CONVERSION_KERNELGROUPS_H

#include "mlir/IR/Operation.h"
#include "moira/Target/Kernels/KernelSpec.h"
#include <optional>

namespace moira {

/// A kernel for a group, and the rows that it runs on: rows, or rows·B if `bounded`.
struct GroupKernel {
  kernels::KernelSpec spec;
  int64_t rows = 1;
  bool bounded = false;
};

/// True for ops that work on each row alone.
bool isRowOp(mlir::Operation *op);

/// The kernel that runs `members` (row ops, in order). `inputs` are the values that they take from
/// outside, in the order of the kernel's input operands; `results` those that leave. Nothing if no
/// kernel can.
///
/// All values share their leading dimensions, the rows; the members decide how many those are:
///     rms_norm [2,24,64] by w [64]      48 rows of 64
///     add of a bias [4,16], then rope   B rows of [S,4,16], because cos and sin [S,r] are the same
///     for every row
std::optional<GroupKernel> makeGroupKernel(llvm::ArrayRef<mlir::Operation *> members,
                                           llvm::ArrayRef<mlir::Value> inputs,
                                           llvm::ArrayRef<mlir::Value> results);

} // namespace moira

#endif // MOIRA_LIB_CONVERSION_KERNELGROUPS_H
