//===- Explain.h - why a weight lies as it does -----------------*- C++ -*-===//
// What --explain and --why-not say. Passes are watched from outside, so that a new one that cuts
// weights is explained without being told to.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_DRIVER_EXPLAIN_H
#define MOIRA_LIB_DRIVER_EXPLAIN_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/PassInstrumentation.h"
#include "moira/Analysis/WeightUses.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include "moira/rt/Status.h"

#include <memory>
#include <string>
#include <vector>

namespace moira {

/// How the sharding of one state came about.
class ShardingHistory {
public:
  /// Of the state that has this name or is filled by the checkpoint's tensor of this name.
  /// BadUsage, with the nearest name, if there is none.
  static rt::Expected<ShardingHistory> of(mlir::ModuleOp module, const std::string &tensor);

  /// Notes the passes that change the sharding. Lives no longer than this.
  std::unique_ptr<mlir::PassInstrumentation> watch();
  /// The axes that cut it in the end.
  llvm::SmallVector<mlir::StringAttr> axes() const;
  /// The state, what each pass decided, and what a rank holds.
  std::string text(const MeshInfo &mesh) const;

private:
  struct Decision {
    std::string pass, why;
    dist::ShardingAttr before, after;
  };
  class Watch;

  std::string state, disk; // the symbol, and what fills it
  mlir::Type type;
  dist::ShardingAttr sharding;                            // the last decision's
  std::vector<llvm::SmallVector<DimMeaning, 1>> meanings; // of each dimension
  std::vector<Decision> decisions;
};

/// A line of a table of what plans cost, and the one above it, which says what the table is of.
std::string costHead(const std::string &what);
std::string costLine(const std::string &what, const std::vector<std::string> &cells);

} // namespace moira

#endif // MOIRA_LIB_DRIVER_EXPLAIN_H
