//===- KernelImage.h - Code for generated kernels ---------------*- C++ -*-===//
//
// Turns KernelSpecs into what a plan carries: one ELF shared object for the host, one PTX text for
// a GPU. How the code is generated is private to lib/Target/Kernels.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TARGET_KERNELS_KERNELIMAGE_H
#define MOIRA_TARGET_KERNELS_KERNELIMAGE_H

#include "moira/Target/Kernels/KernelSpec.h"

namespace moira::kernels {

struct HostImageOptions {
  /// "x86-64-v3", "x86-64-v4", or "native": the highest of these that this machine
  /// has. The code for one level is the same bytes on every machine.
  std::string cpu = "x86-64-v3";
};

/// A position-independent ELF shared object that exports one function per kernel, imports nothing
/// and needs no library.
struct HostImage {
  std::string bytes;
  std::string target;   // "x86_64-unknown-linux-gnu/x86-64-v3"
  std::string features; // what the machine must have, comma separated, in LLVM's names:
                        // "avx,avx2,bmi,bmi2,f16c,fma,…"
};

/// Compiles all kernels into one image. Names must be distinct C identifiers. Errors: an invalid
/// spec, an unknown cpu, or a failure of code generation (a bug); the text names the kernel.
/// Thread-safe.
llvm::Expected<HostImage> buildHostImage(llvm::ArrayRef<KernelSpec> kernels,
                                         const HostImageOptions &options = {});

/// Compiles all kernels into one PTX text for `chip` ("sm_80", "sm_90", …), bare pointers as on the
/// host. Each kernel is correct for any one-dimensional grid and must be launched with the block
/// size that its `.reqntid` says.
llvm::Expected<std::string> buildPtx(llvm::ArrayRef<KernelSpec> kernels,
                                     llvm::StringRef chip = "sm_90");

/// Stages at which dumpKernels can look: what MLIR builds from the specs, after fusion, the row
/// loops for host or GPU, and LLVM IR for the host before and after optimisation.
enum class KernelStage : uint8_t { Linalg, Fused, HostLoops, GpuLoops, HostLlvm, HostOptimized };

/// The kernels as text at a stage, for tests and for the curious.
llvm::Expected<std::string> dumpKernels(llvm::ArrayRef<KernelSpec> kernels, KernelStage stage,
                                        const HostImageOptions &options = {});

} // namespace moira::kernels
#endif
