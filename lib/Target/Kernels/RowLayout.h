//===- RowLayout.h - How a kernel's row is cut into dimensions --*- C++ -*-===//
//
// Decides the iteration space of a kernel: which leading dims of a row are looped over like rows
// ("lead"; a row at one lead index is a "point", the unit that one thread block or one pass over
// memory handles) and which neighbouring dims are merged or split.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TARGET_KERNELS_ROWLAYOUT_H
#define MOIRA_LIB_TARGET_KERNELS_ROWLAYOUT_H

#include "moira/Target/Kernels/KernelSpec.h"

namespace moira::kernels {

/// A full value has all dims of a row; its leading dims are the same for all full values. Partial
/// operands (norm weights, biases, rope tables) have the last dims of a full value, or are a table
/// [S,r].
///
///   rms_norm x[4,2,64], w[2,64]        x [4,128]        w [128]    leadSizes [4]
///   rope x[8,4,16], cos[8,8]           x [8,4,2,8]      cos [8,1,8]  leadSizes [] or [8] or [8,4]
struct RowLayout {
  llvm::SmallVector<int64_t, 4> leadSizes;           // in the iteration space
  std::vector<llvm::SmallVector<int64_t, 4>> shapes; // of every value in the iteration space
  int64_t split = 0; // > 0: the last dim d has become [d/split, split] (rope's halves)

  /// Fails if the steps cannot share one iteration space, e.g. reductions over different dims.
  /// `values`: as from infer().
  static llvm::Expected<RowLayout> get(const KernelSpec &spec, llvm::ArrayRef<RowValue> values);
};

} // namespace moira::kernels
#endif
