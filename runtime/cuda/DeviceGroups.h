//===- DeviceGroups.h - a plan's collectives on CUDA devices ----*- C++ -*-===//
// One NCCL communicator for each group of ranks that the program's collectives name, and the
// collectives themselves. Who notices failures is Watchdog.h's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_DEVICEGROUPS_H
#define MOIRA_RT_CUDA_DEVICEGROUPS_H

#include "moira/rt/Binding.h"

#include "NcclLibrary.h"

#include <atomic>
#include <mutex>

namespace moira::rt::cuda {

class DeviceGroups {
public:
  /// Makes the communicators of all groups that these programs' instructions use, in their order,
  /// which is the same on all ranks. Collective over `host`. RankFailed, DeviceUnavailable,
  /// DeviceFailed.
  static Expected<std::unique_ptr<DeviceGroups>>
  make(std::span<const std::vector<BoundInstr> *const> programs, Communicator &host,
       double timeoutSeconds);
  /// Waits for no other rank. After abort() nothing is given back.
  ~DeviceGroups();

  /// Enqueues the collective on the stream. It must pass checkContiguous.
  Status run(const BoundInstr &instr, cudaStream_t stream);

  /// The first asynchronous error of any communicator. Thread-safe; knows nothing while a
  /// collective is being enqueued, which then returns the error itself.
  Status asyncError() const;
  /// Makes everything pending on the device end with an error. Thread-safe, may take a while.
  void abort();
  bool empty() const { return comms.empty(); }

private:
  DeviceGroups() = default;
  Status init(const Group &group, const std::string &id, Communicator &host, double timeoutSeconds);
  /// Waits until a call on a non-blocking communicator has been enqueued.
  Status settle(ncclComm_t comm, ncclResult_t result);
  Status failed(ncclResult_t result, ncclComm_t comm) const;

  const NcclLibrary *nccl = nullptr;
  std::map<std::vector<int>, ncclComm_t> comms; // by members
  mutable std::mutex inUse; // asking for errors completes what a call has left to do
  std::atomic<bool> aborted = false;
};

/// PlanTarget if the slices that a collective exchanges do not lie one after another in its
/// tensors: plans split and join them by calls of their own.
Status checkContiguous(const BoundInstr &collective);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_DEVICEGROUPS_H
