//===- Memory.h - counted memory --------------------------------*- C++ -*-===//
// Every byte that a run allocates for a plan's arenas comes from here, so that planned and
// handed-out memory can be compared.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_MEMORY_H
#define MOIRA_RT_MEMORY_H

#include "moira/rt/Status.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace moira::rt {

/// Alignment of every block; arena offsets are multiples of it.
inline constexpr size_t kAlignment = 64;

/// Counts the bytes of the blocks alive of one rank. Not thread-safe: one rank, one thread.
class MemoryCounter {
public:
  uint64_t current() const { return bytesNow; }
  uint64_t peak() const { return bytesPeak; }

private:
  friend class Block;
  uint64_t bytesNow = 0, bytesPeak = 0;
};

/// Zero-filled memory, aligned to kAlignment. The counter outlives it.
class Block {
public:
  Block() = default;
  Block(Block &&other) noexcept;
  Block &operator=(Block &&other) noexcept;
  ~Block() { release(); }

  /// OutOfMemory with the numbers if the system cannot give `bytes`; `what` names their use.
  static Expected<Block> allocate(uint64_t bytes, const std::string &what, MemoryCounter &counter);
  void release();
  char *data() const { return base; }
  uint64_t bytes() const { return size; }

private:
  void *raw = nullptr;
  char *base = nullptr;
  uint64_t size = 0;
  MemoryCounter *counter = nullptr;
};

/// Bytes that this process may still take: what the system calls available, or what is left of its
/// control group's limit if that is less. UINT64_MAX if the system does not say.
uint64_t availableMemory();

/// "1.5 GiB", "640 B"
std::string byteText(uint64_t bytes);

} // namespace moira::rt

#endif // MOIRA_RT_MEMORY_H
