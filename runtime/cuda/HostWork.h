//===- HostWork.h - what a device's host does in a step ---------*- C++ -*-===//
// Calls and copies of a plan that work on the host's memory, run on the host when a stream comes to
// them: everything before them on the stream is done then, and nothing behind them begins before
// they are. Streams of the device go on meanwhile.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_HOSTWORK_H
#define MOIRA_RT_CUDA_HOSTWORK_H

#include "moira/rt/Binding.h"

#include <cuda_runtime_api.h>
#include <map>
#include <mutex>

namespace moira::rt::cuda {

/// Lives until no stream has work of it left.
class HostWork {
public:
  /// `threads`: that a call may use.
  explicit HostWork(int threads) : threads(threads) {}
  HostWork(const HostWork &) = delete;

  /// Enqueues an instruction, whose addresses stay as they are until it has run; `place` describes
  /// it in errors.
  cudaError_t enqueue(size_t index, const BoundInstr &instr, const std::string &place,
                      cudaStream_t stream);
  /// Before a step: nothing has failed.
  void reset();
  /// What the first call since then that failed says. Later ones have run too, on what it left.
  Status failure() const;

private:
  struct Job {
    HostWork *owner;
    const BoundInstr *instr;
    std::string place;
  };
  static void CUDART_CB run(void *job);
  Status run(const BoundInstr &instr) const;

  int threads;
  std::map<size_t, Job> jobs; // by instruction
  mutable std::mutex mutex;   // the host's work runs on a thread of the driver
  Status failed;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_HOSTWORK_H
