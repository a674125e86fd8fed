//===- FactorRule.h - einsum-like sharding rules ----------------*- C++ -*-===//
// The rule that an operation gives to partitioning, and the mesh's sizes. No passes here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_ANALYSIS_FACTORRULE_H
#define MOIRA_ANALYSIS_FACTORRULE_H

#include "mlir/IR/BuiltinAttributes.h"
#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringRef.h"
#include <cstdint>

namespace moira {

enum class FactorKind {
  passThrough,     ///< stands in a result: cutting it cuts the result
  reduction,       ///< summed away: cutting it leaves the result partial(sum)
  needReplication, ///< every shard needs all of it
  unconstrained,   ///< cut in any way; how it relates to the rest is the operation's own business
                   ///< (ragged rows, experts, a routing's tokens)
};

struct Factor {
  FactorKind kind = FactorKind::passThrough;
  int64_t size = 0;
  /// This factor may only be cut over exactly the axes of that other factor, or not at all (kv
  /// heads follow query heads).
  int follows = -1;
};

/// Which operands may be partial sums.
enum class Linearity {
  none,
  first, ///< linear in operand 0 alone: it may be partial, the result is then partial over the same
         ///< axes
  jointly,  ///< a sum: all operands partial over the same axes, or none
  firstTwo, ///< the same of the first two operands alone
};

/// Dimensions → factors. `linear x[b,s,K], w[N,K] → [b,s,N]`: operands {{0,1,2},{3,2}}, results
/// {{0,1,3}}, factor 2 is a reduction.
struct FactorRule {
  llvm::SmallVector<Factor> factors;
  llvm::SmallVector<llvm::SmallVector<int>> operands;
  llvm::SmallVector<llvm::SmallVector<int>> results;
  Linearity linearity = Linearity::none;
  /// Every result is a sum over the factors that do not stand in it, as the gradients of one
  /// operation are: `rms_norm_grad … → dx[t..,N..], dw[N..]`, where dw is partial over what cuts
  /// t.. .
  bool sumsAbsent = false;

  int addFactor(FactorKind kind, int64_t size, int follows = -1) {
    factors.push_back({kind, size, follows});
    return factors.size() - 1;
  }
  /// One new factor for each size; returns their numbers.
  llvm::SmallVector<int> addFactors(FactorKind kind, llvm::ArrayRef<int64_t> sizes) {
    llvm::SmallVector<int> ids;
    for (int64_t size : sizes)
      ids.push_back(addFactor(kind, size));
    return ids;
  }
};

/// Axis names and sizes, major to minor; axes of size 1 are not listed.
struct MeshInfo {
  llvm::SmallVector<mlir::StringAttr> names;
  llvm::SmallVector<int64_t> sizes;

  int64_t ranks() const {
    int64_t n = 1;
    for (int64_t s : sizes)
      n *= s;
    return n;
  }
  /// 1 for an axis that is not there.
  int64_t sizeOf(llvm::StringRef axis) const {
    for (auto [name, size] : llvm::zip(names, sizes))
      if (name.getValue() == axis)
        return size;
    return 1;
  }
  int64_t sizeOf(llvm::ArrayRef<mlir::StringAttr> axes) const {
    int64_t n = 1;
    for (mlir::StringAttr a : axes)
      n *= sizeOf(a.getValue());
    return n;
  }
};

} // namespace moira

#endif // MOIRA_ANALYSIS_FACTORRULE_H
