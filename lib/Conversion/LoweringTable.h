//===- LoweringTable.h - one lowering function an op ------------*- C++ -*-===//
// The table that lowerOp looks in, and what several lowerings share.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_CONVERSION_LOWERINGTABLE_H
#define MOIRA_LIB_CONVERSION_LOWERINGTABLE_H

#include "ProgramBuilder.h"
#include "moira/Dialect/Dist/IR/DistOps.h"
#include <functional>

namespace moira {

class LoweringTable {
public:
  LoweringTable();
  llvm::LogicalResult lower(mlir::Operation *op, ProgramBuilder &b) const {
    auto it = functions.find(op->getName().getStringRef());
    if (it == functions.end())
      return op->emitOpError(
          "MOE-0601: has no instruction; the phase before `plan` should have removed it");
    return it->second(op, b);
  }

private:
  template <typename Op> void add(llvm::LogicalResult (*function)(Op, ProgramBuilder &)) {
    functions[Op::getOperationName()] = [function](mlir::Operation *op, ProgramBuilder &b) {
      return function(llvm::cast<Op>(op), b);
    };
  }
  void addDense();
  void addRowWise();
  void addAttention();
  void addAttentionOverKeys();
  void addExperts();
  void addGeneration();
  void addExchange();
  void addCollectives();
  void addDenseGradients();
  void addExpertGradients();
  void addLosses();
  void addOptimizers();

  llvm::StringMap<std::function<llvm::LogicalResult(mlir::Operation *, ProgramBuilder &)>>
      functions;
};

inline int64_t rankOf(mlir::Value v) {
  return llvm::cast<mlir::RankedTensorType>(v.getType()).getRank();
}
inline double toDouble(const llvm::APFloat &value) { return value.convertToDouble(); }

/// The row counts that a grouped op's `groups` are; null, with an error, where nobody has counted.
mlir::Value countsOf(mlir::Operation *op, mlir::Value groups, ProgramBuilder &b);

/// What every gate has.
llvm::SmallVector<mlir::NamedAttribute> gateParams(ProgramBuilder &b,
                                                   const moe::RouterFields &gate);

/// Of a glu and its gradient.
template <typename Op> llvm::SmallVector<mlir::NamedAttribute> gluParams(ProgramBuilder &b, Op op) {
  llvm::SmallVector<mlir::NamedAttribute> params{
      b.text("activation", moe::stringifyActivation(op.getActivation()))};
  auto optional = [&](llvm::StringRef name, std::optional<llvm::APFloat> value) {
    if (value)
      params.push_back(b.real(name, toDouble(*value)));
  };
  optional("limit", op.getLimit());
  optional("alpha", op.getAlpha());
  optional("up_shift", op.getUpShift());
  return params;
}

} // namespace moira

#endif // MOIRA_LIB_CONVERSION_LOWERINGTABLE_H
