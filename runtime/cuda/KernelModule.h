//===- KernelModule.h - a plan's generated kernels on a device --*- C++ -*-===//
// Loads the plan's PTX through the driver and launches its kernels. Library calls are
// CudaCalls.h's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELMODULE_H
#define MOIRA_RT_CUDA_KERNELMODULE_H

#include "moira/rt/PlanFile.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace moira::rt::cuda {

/// One kernel: `void k(void *op0, …, int64_t rows)`, right for every one-dimensional grid of its
/// block size.
struct Kernel {
  CUfunction function = nullptr;
  unsigned threads = 0;
  int64_t pointsPerRow = 1; // at most so many blocks of work in one row
  bool waits = false;       // by itself for the kernel before it, and so may start early
};

class KernelModule {
public:
  /// For the calling thread's current device. PlanTarget if the device or driver is too old for the
  /// plan's PTX, BadRun with the compiler's log if it does not compile or lacks a kernel.
  static Expected<std::unique_ptr<KernelModule>> load(const PlanFile &file);
  ~KernelModule();

  /// Kernel `index` of the plan, null if it has no PTX.
  Kernel *kernel(size_t index) { return kernels[index].function ? &kernels[index] : nullptr; }
  /// Enqueues it; `operands` as the kernel takes them. `early`: it may start while the kernel
  /// before it ends, if it waits by itself.
  Status launch(const Kernel &kernel, const std::vector<void *> &operands, int64_t rows,
                cudaStream_t stream) const;

private:
  KernelModule() = default;
  Status loadSection(const PlanFile &file, size_t section);

  std::vector<CUmodule> modules; // by section
  std::vector<Kernel> kernels;
  int64_t mostBlocks = 1;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELMODULE_H
