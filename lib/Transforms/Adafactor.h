//===- Adafactor.h - the operations of one state's step ---------*- C++ -*-===//
// For AddOptimizer.cpp.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TRANSFORMS_ADAFACTOR_H
#define MOIRA_LIB_TRANSFORMS_ADAFACTOR_H

#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "llvm/ADT/STLFunctionalExtras.h"

namespace moira {

/// How a state's dimensions are parameters and matrices (MoeOptimizerOps.td).
struct FactoredLayout {
  int64_t parameters = 0, kept = 0, rows = 0; ///< rows 0: no matrices
};

/// A tensor of the checkpoint is a parameter, and its last two dimensions are a matrix's, as they
/// are for an optimizer that sees these tensors; of what the state has in pieces (`slice`), each
/// piece. Without rows where the two dimensions are not runs of the state's own.
FactoredLayout factoredLayout(moe::StateOp state);

struct AdafactorOptions {
  double decay, eps1, eps2, clip, weightDecay;
  bool scaleParameter;
};

struct AdafactorStep {
  mlir::Value w, grad, rate, step, factor; ///< factor may be null
  /// The parameter of a state that is kept for w, of this type.
  llvm::function_ref<mlir::Value(llvm::StringRef, mlir::RankedTensorType)> kept;
};

void addAdafactor(mlir::OpBuilder &b, moe::StateOp state, const AdafactorStep &step,
                  const AdafactorOptions &options);

} // namespace moira

#endif // MOIRA_LIB_TRANSFORMS_ADAFACTOR_H
