//===- WeightUses.h - what a weight's dimensions mean -----------*- C++ -*-===//
// Which dimension of which state tensor counts heads, widths, experts or the vocabulary, found from
// the operations that use it. Names of tensors play no part, so a new model class needs nothing
// here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_ANALYSIS_WEIGHTUSES_H
#define MOIRA_ANALYSIS_WEIGHTUSES_H

#include "mlir/IR/BuiltinOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include <vector>

namespace moira {

enum class DimMeaning {
  queryHeads,
  kvHeads,
  denseWidth,
  sharedWidth,
  expertWidth,
  experts,
  vocabulary
};

/// "query heads", "the experts' width": behind its number where it counts things, before it if it
/// begins with "the".
llvm::StringRef wordsFor(DimMeaning meaning);

/// Dimension `dim` of `state` has this meaning in at least one use.
struct WeightUse {
  moe::StateOp state;
  int64_t dim;
  DimMeaning meaning;
};

/// All uses in a module at the import phase, in program order, each once.
///
///     attention q ← rope ← linear(x, w[H,d,D])        w, 0: queryHeads (k and v: kvHeads)
///     attention q2 ← linear(x, w[H,r,D]); sinks w[H]  w, 0: queryHeads
///     linear(attention, w[D,H,d])                     w, 1: queryHeads
///     head_linear(x, w[H,N,K]) before q, behind it    w, 0: queryHeads
///     glu(linear(x, w[2,F,D])), linear(glu, w[D,F])   w, 1: denseWidth, or sharedWidth beside a
///                                                     dispatch of the same x
///     glu(grouped_matmul(rows, w[E,2,F,D]))           w, 0: experts; w, 2: expertWidth
///     act(grouped_bias(grouped_matmul …, b[E,F]))     the same through biases and the like; b, 0:
///                                                     experts, 1: expertWidth
///     relative_bias(w[N,H], …)                        w, 1: queryHeads
///     embedding(ids, w[V,D]); linear(x, w[V,D]) that is returned or sampled  w, 0: vocabulary
///     row_max(linear(x, w[V,D]))                      w, 0: vocabulary
std::vector<WeightUse> collectWeightUses(mlir::ModuleOp module);

} // namespace moira

#endif // MOIRA_ANALYSIS_WEIGHTUSES_H
