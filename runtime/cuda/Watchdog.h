//===- Watchdog.h - notices what a device cannot say ------------*- C++ -*-===//
// A thread that looks, while a step runs on the device, for lost ranks, errors of NCCL and
// collectives that do not end. It unblocks the rank's own thread, or ends the process if that
// thread does not come back.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_WATCHDOG_H
#define MOIRA_RT_CUDA_WATCHDOG_H

#include "DeviceGroups.h"
#include "Progress.h"

#include <condition_variable>
#include <mutex>
#include <thread>

namespace moira::rt::cuda {

class Watchdog {
public:
  struct Subject {
    Communicator *host;
    DeviceGroups *groups;
    const Progress *progress;
    double timeoutSeconds; // that a collective may take; 0: for ever
    /// Of an instruction: a text for people, and whether it waits for other ranks.
    std::function<std::string(uint32_t)> describe;
    std::function<bool(uint32_t)> waitsForRanks;
  };
  explicit Watchdog(Subject subject);
  ~Watchdog();

  /// A step runs on the device between these.
  void begin();
  void end();
  /// Not ok: the step is lost, do not wait for the device. Thread-safe.
  Status verdict() const;

private:
  void watch();
  Status look();

  Subject subject;
  mutable std::mutex mutex;
  std::condition_variable changed;
  bool running = false, stop = false;
  uint64_t stamp = 0;
  std::chrono::steady_clock::time_point moved; // when the stamp was new
  Status failure;
  std::thread thread;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_WATCHDOG_H
