//===- PassBody.h - Evaluating a linalg body on vectors ---------*- C++ -*-===//
//
// What host and GPU loops share: where the tensors of a kernel live, and the code for some
// consecutive elements of one linalg.generic (loads, body on scalars or vectors, stores). How the
// iterations are run is up to HostLoops.cpp and GpuLoops.cpp.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TARGET_KERNELS_PASSBODY_H
#define MOIRA_LIB_TARGET_KERNELS_PASSBODY_H

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/Linalg/IR/Linalg.h"
#include "mlir/IR/Builders.h"
#include "llvm/ADT/DenseMap.h"

namespace moira::kernels {

/// Where the values of one kernel are while its loops are built.
struct KernelMemory {
  llvm::DenseMap<mlir::Value, mlir::Value> pointers; // tensors that are operands → !llvm.ptr
  llvm::DenseMap<mlir::Value, mlir::Value>
      scalars; // tensors with one element per point → that element
};

/// A kernel of the module: the funcs of its parts.
struct KernelFuncs {
  mlir::StringAttr name;
  llvm::SmallVector<mlir::func::FuncOp> parts;
  mlir::Location loc() const { return mlir::func::FuncOp(parts.front()).getLoc(); }
};
std::vector<KernelFuncs> getKernels(mlir::ModuleOp module);

/// Types of the kernel's pointer arguments and of the row count, and the arguments' attributes (no
/// operand overlaps an output).
struct KernelSignature {
  llvm::SmallVector<mlir::Type> types;
  llvm::SmallVector<mlir::DictionaryAttr> attributes;
};
KernelSignature getSignature(const KernelFuncs &kernel);

/// Those of a kernel's arguments that are a part's operands.
llvm::SmallVector<mlir::Value> getOperands(mlir::func::FuncOp part, mlir::ValueRange arguments);

/// Maps the tensors that `func` takes and returns to the pointers that are its operands.
KernelMemory placeOperands(mlir::func::FuncOp func, mlir::ValueRange operands);

/// Number of leading dims of every op in `func` that count points.
unsigned getPointDims(mlir::func::FuncOp func);

/// Sizes of the leading dims behind the row: those of any op.
llvm::SmallVector<int64_t> getLeadSizes(mlir::func::FuncOp func);

/// One linalg.generic as a pass over a point.
class PassBody {
public:
  PassBody(mlir::linalg::GenericOp op, unsigned pointDims, KernelMemory &memory);

  /// Fails (with an error at the op) if the op is not of the kinds that the loops can run:
  /// contiguous or constant along the last dim, results stored or one per point, reductions that
  /// are sums from zero.
  mlir::LogicalResult check();

  /// Sizes of the dims behind the point's; empty if the op computes one element per point.
  llvm::ArrayRef<int64_t> tail() const { return tailSizes; }
  /// Results that are sums over the tail.
  unsigned numSums() const { return sums.size(); }
  /// Largest n <= most, a power of two, such that n consecutive elements start at a multiple of n
  /// in every operand.
  unsigned alignedLanes(unsigned most) const;
  /// Bytes of the smallest element that is loaded or stored.
  unsigned smallestElement() const;
  /// Bytes of the kernel's inputs that `lanes` consecutive elements need.
  unsigned inputBytes(unsigned lanes) const;
  /// True if an operand was stored by an earlier pass and is read at another index than the one
  /// that stored it.
  bool readsAcrossElements(const llvm::DenseSet<mlir::Value> &stored) const;

  /// Elements of tensors that are already in registers: by tensor and the map that it is read with.
  using Held = llvm::DenseMap<std::pair<mlir::Value, mlir::AffineMap>, mlir::Value>;

  /// Loads into `held` what emit would load of the kernel's inputs, which nothing writes, so that
  /// these loads can stand before all stores and wait for each other's memory, not one by one.
  void loadInputs(mlir::OpBuilder &b, llvm::ArrayRef<mlir::Value> ivs, unsigned lanes,
                  unsigned alignment, Held &held) const;

  /// Code for `lanes` consecutive elements from `ivs` (one index per dim of the op) on. Stores what
  /// has memory. Returns the term of each sum (a vector if lanes > 1); results that are one per
  /// point are kept in memory.scalars. With `held`, takes from there what is there, and puts there
  /// what it stores.
  mlir::SmallVector<mlir::Value> emit(mlir::OpBuilder &b, llvm::ArrayRef<mlir::Value> ivs,
                                      unsigned lanes, unsigned alignment, Held *held = nullptr);

  /// Records and stores the total of sum `i`.
  void finishSum(mlir::OpBuilder &b, unsigned i, mlir::Value total,
                 llvm::ArrayRef<mlir::Value> pointIvs);

private:
  struct Access {
    mlir::Value tensor;
    mlir::AffineMap map;
  };
  Access access(mlir::OpOperand &operand) const;
  bool isContiguous(const Access &a) const;
  mlir::Value address(mlir::OpBuilder &b, const Access &a, llvm::ArrayRef<mlir::Value> ivs) const;
  mlir::Value load(mlir::OpBuilder &b, const Access &a, llvm::ArrayRef<mlir::Value> ivs,
                   unsigned lanes, unsigned alignment) const;
  void store(mlir::OpBuilder &b, unsigned result, mlir::Value value,
             llvm::ArrayRef<mlir::Value> ivs, unsigned lanes, unsigned alignment) const;

  mutable mlir::linalg::GenericOp op; // a handle; its accessors are not const
  unsigned pointDims;
  KernelMemory &memory;
  llvm::SmallVector<int64_t> tailSizes;
  llvm::SmallVector<unsigned> sums; // result numbers
};

} // namespace moira::kernels
#endif
