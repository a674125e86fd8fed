//===- Lowering.h - The stages of kernel generation -------------*- C++ -*-===//
//
// The MLIR stages between a KernelSpec and machine code, in the order in which they run:
//
//   buildLinalg     specs → one func of linalg.generic ops on tensors each; the first dims of all
//   ops are the row and the leading dims fuseLinalg      elementwise producers into their consumers
//   lowerToHostLoops / lowerToGpuLoops
//                   one loop over points, inside it one vectorised pass over memory per remaining
//                   op
//   lowerHostToLlvm / lowerGpuToNvvm
//                   to the LLVM dialect; no calls remain
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TARGET_KERNELS_LOWERING_H
#define MOIRA_LIB_TARGET_KERNELS_LOWERING_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OwningOpRef.h"
#include "mlir/Support/LLVM.h"
#include "moira/Target/Kernels/KernelImage.h"

namespace moira::kernels {

/// On every kernel func of linalg ops: how many of the first dims of all its ops (the row among
/// them) are the point's dims.
inline constexpr llvm::StringLiteral kPointDimsAttr = "moira.point_dims";

/// On the funcs of a kernel that has several parts (KernelSpec.h): the kernel's name, and where
/// each of the func's operands stands among the kernel's. They follow each other.
inline constexpr llvm::StringLiteral kKernelAttr = "moira.kernel", kOperandsAttr = "moira.operands";

/// Loads the dialects that the stages create.
void loadKernelDialects(mlir::MLIRContext &context);

/// Registers what the conversion to NVVM looks up in the dialects; before the context is made.
void registerKernelConversions(mlir::DialectRegistry &registry);

/// A module with `func.func @name(inputs as tensors, %rows: index) -> (outputs as tensors)` per
/// part of a spec. Rowwise operands are tensor<?x…>. Fails on an invalid spec.
llvm::Expected<mlir::OwningOpRef<mlir::ModuleOp>> buildLinalg(mlir::MLIRContext &context,
                                                              llvm::ArrayRef<KernelSpec> kernels);

/// Fuses each elementwise op into its users. A tensor that the kernel returns is stored once, by
/// its first user's pass, and read back by the others; any other tensor is computed again where it
/// is used, so that no temporary memory is needed.
mlir::LogicalResult fuseLinalg(mlir::ModuleOp module);

/// Turns the funcs of each kernel into `func.func @name(!llvm.ptr per operand, i64 rows)` with scf
/// loops and vectors of `width` f32 lanes.
mlir::LogicalResult lowerToHostLoops(mlir::ModuleOp module, unsigned width);

/// Moves all kernels into one gpu.module, as gpu.funcs with pointer arguments. `early`: they let
/// the next kernel start and wait for the one before, which Hopper and later can.
mlir::LogicalResult lowerToGpuLoops(mlir::ModuleOp module, bool early);

mlir::LogicalResult lowerHostToLlvm(mlir::ModuleOp module);
mlir::LogicalResult lowerGpuToNvvm(mlir::ModuleOp module);

} // namespace moira::kernels
#endif
