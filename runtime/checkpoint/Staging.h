//===- Staging.h - directories that appear whole ----------------*- C++ -*-===//
// What moe-ckpt writes: a directory under a temporary name, renamed when everything is on the disk.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_STAGING_H
#define MOIRA_CHECKPOINT_STAGING_H

#include "moira/rt/Status.h"

#include <string>

namespace moira::ckpt {

/// Makes the entries of a directory durable.
rt::Status syncDirectory(const std::string &path);

/// Makes a signal that ends the process remove what it has not published first. To be called before
/// the process has other threads.
void removeStagingOnSignals();

/// <directory>.<process>.tmp, removed unless it is published; a crash leaves it.
class Staging {
public:
  explicit Staging(std::string directory);
  Staging(const Staging &) = delete;
  ~Staging();

  const std::string &path() const { return temporary; }

  /// CannotWrite, also if `directory` is there and not empty.
  rt::Status make();
  /// Gives it its name. What is in it has been synced.
  rt::Status publish();

private:
  std::string directory, temporary;
  bool made = false;
};

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_STAGING_H
