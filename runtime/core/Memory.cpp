//===- Memory.cpp - counted memory ----------------------------------------===//
// See Memory.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Memory.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sys/mman.h>
#include <utility>

namespace moira::rt {
namespace {

/// Blocks from this size on lie in large pages where the system has them: the processor's tables of
/// addresses otherwise miss on every other page, which costs a third of the bandwidth of weights.
constexpr uint64_t kLargePage = 2 << 20, kLargeBlock = 8 * kLargePage;

} // namespace

Block::Block(Block &&other) noexcept { *this = std::move(other); }

Block &Block::operator=(Block &&other) noexcept {
  if (this == &other)
    return *this;
  release();
  raw = std::exchange(other.raw, nullptr);
  base = std::exchange(other.base, nullptr);
  size = std::exchange(other.size, 0);
  counter = std::exchange(other.counter, nullptr);
  return *this;
}

Expected<Block> Block::allocate(uint64_t bytes, const std::string &what, MemoryCounter &counter) {
  // Linux grants memory that it does not have and kills the process later, so ask first.
  uint64_t available = availableMemory();
  auto fail = [&] {
    return Status(ErrorId::OutOfMemory,
                  format("%s needs %llu bytes (%s), %s are available", what.c_str(),
                         static_cast<unsigned long long>(bytes), byteText(bytes).c_str(),
                         byteText(available).c_str()));
  };
  uint64_t alignment = bytes >= kLargeBlock ? kLargePage : kAlignment;
  if (bytes > available || bytes > UINT64_MAX - alignment)
    return fail();
  Block block;
  // calloc: large blocks come from the system as zero pages and are not written twice.
  block.raw = std::calloc(bytes + alignment - 1, 1);
  if (!block.raw)
    return fail();
  uintptr_t address = reinterpret_cast<uintptr_t>(block.raw);
  block.base = reinterpret_cast<char *>((address + alignment - 1) / alignment * alignment);
  if (alignment == kLargePage) // a wish: without it pages are small
    madvise(block.base, bytes, MADV_HUGEPAGE);
  block.size = bytes;
  block.counter = &counter;
  counter.bytesNow += bytes;
  counter.bytesPeak = std::max(counter.bytesPeak, counter.bytesNow);
  return block;
}

void Block::release() {
  if (!raw)
    return;
  std::free(raw);
  counter->bytesNow -= size;
  raw = nullptr;
  base = nullptr;
  size = 0;
}

uint64_t availableMemory() {
  uint64_t available = UINT64_MAX;
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  for (uint64_t kib; meminfo >> key >> kib >> unit;)
    if (key == "MemAvailable:") {
      available = kib * 1024;
      break;
    }
  // Control group v2 as a container sees it; "max" fails to read as a number.
  std::ifstream limitFile("/sys/fs/cgroup/memory.max"), usedFile("/sys/fs/cgroup/memory.current");
  uint64_t limit, used;
  if (limitFile >> limit && usedFile >> used)
    available = std::min(available, limit > used ? limit - used : 0);
  return available;
}

std::string byteText(uint64_t bytes) {
  if (bytes == UINT64_MAX)
    return "an unknown amount";
  const char *units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024)
    return format("%llu B", static_cast<unsigned long long>(bytes));
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  return format("%.1f %s", value, units[unit]);
}

} // namespace moira::rt
