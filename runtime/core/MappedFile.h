//===- MappedFile.h - a regular file in memory, read-only -------*- C++ -*-===//
// Opening and mapping, with messages. What the bytes mean is the callers' business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_MAPPEDFILE_H
#define MOIRA_RT_CORE_MAPPEDFILE_H

#include "moira/rt/Status.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace moira::rt {

struct MappedFile {
  std::shared_ptr<const void> owner; // null for an empty prefix
  std::span<const uint8_t> bytes;    // what was mapped
  uint64_t fileBytes = 0;            // size of the file

  /// Maps the first `limit` bytes of a regular file, or all of it. FileNotFound on any failure
  /// (also for directories, pipes and devices, which it never waits for).
  static Expected<MappedFile> open(const std::string &path, uint64_t limit = UINT64_MAX);

  /// Takes the pages of a part of some map out of this process. They are read again where needed,
  /// also by other threads at this moment.
  static void release(std::span<const uint8_t> part);
};

} // namespace moira::rt

#endif // MOIRA_RT_CORE_MAPPEDFILE_H
