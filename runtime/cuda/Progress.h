//===- Progress.h - where on the device a step is ---------------*- C++ -*-===//
// Marks that streams leave in host memory as they reach an instruction. They stay readable when the
// device has failed or hangs, so that errors can name the instruction.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_PROGRESS_H
#define MOIRA_RT_CUDA_PROGRESS_H

#include "CudaSupport.h"

#include <optional>
#include <vector>

namespace moira::rt::cuda {

class Progress {
public:
  static Expected<Progress> make(size_t queues);
  /// Forgets everything; nothing is running.
  void reset();
  /// Enqueues the mark that `queue` has come to instruction `instr`, or to its end.
  cudaError_t reach(size_t queue, uint32_t instr, cudaStream_t stream);
  cudaError_t finish(size_t queue, cudaStream_t stream);
  /// The same mark as reach makes, at once.
  void assume(size_t queue, uint32_t instr);

  /// The instruction that a queue has come to: nothing before its first and after its last one.
  /// Thread-safe.
  std::optional<uint32_t> at(size_t queue) const;
  size_t queues() const { return count; }
  /// Changes whenever any queue moves on. Thread-safe.
  uint64_t stamp() const;

private:
  PinnedBlock block;
  size_t count = 0;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_PROGRESS_H
