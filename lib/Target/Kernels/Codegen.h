//===- Codegen.h - LLVM IR to machine code ----------------------*- C++ -*-===//
//
// The LLVM half of kernel generation: optimisation, object code or assembly, linking. No MLIR here.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_TARGET_KERNELS_CODEGEN_H
#define MOIRA_LIB_TARGET_KERNELS_CODEGEN_H

#include "llvm/IR/Module.h"
#include "llvm/Support/Error.h"
#include "llvm/Target/TargetMachine.h"
#include <memory>
#include <string>

namespace moira::kernels {

/// A machine to generate code for. `features` as LLVM writes them ("+ptx80").
llvm::Expected<std::unique_ptr<llvm::TargetMachine>>
createTargetMachine(llvm::StringRef triple, llvm::StringRef cpu, llvm::StringRef features);

/// Runs LLVM's O3 pipeline without knowledge of any library function, so that no loop becomes a
/// call of memcpy.
void optimise(llvm::Module &module, llvm::TargetMachine &machine);

/// Object code or assembly of the module.
llvm::Expected<std::string> emit(llvm::Module &module, llvm::TargetMachine &machine,
                                 llvm::CodeGenFileType type);

/// Links one relocatable x86-64 ELF object into a shared object. Fails if any symbol is left
/// undefined.
llvm::Expected<std::string> linkSharedObject(llvm::StringRef object);

} // namespace moira::kernels
#endif
