//===- RunLock.h - one run in a directory of checkpoints --------*- C++ -*-===//
// Two runs that save in one directory would remove and replace parts of each other's checkpoints.
// The lock is the kernel's: it ends with its process, however that ends, and leaves no file.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_RUNLOCK_H
#define MOIRA_RT_RUNLOCK_H

#include <string>

namespace moira::rt {

/// Held until it is destroyed. Not thread-safe.
class RunLock {
public:
  RunLock() = default;
  RunLock(const RunLock &) = delete;
  RunLock &operator=(const RunLock &) = delete;
  ~RunLock();

  /// Makes the directory if it is not there. False while another process, or another RunLock of
  /// this one, holds it. True without a lock where there is none to have: on file systems that lack
  /// them, and where the directory cannot be made.
  bool take(const std::string &directory);

private:
  int fd = -1;
};

} // namespace moira::rt

#endif // MOIRA_RT_RUNLOCK_H
