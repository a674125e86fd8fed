//===- MappedFile.cpp - a regular file in memory, read-only ---------------===//
// See MappedFile.h.
//===----------------------------------------------------------------------===//
#include "MappedFile.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::rt {

Expected<MappedFile> MappedFile::open(const std::string &path, uint64_t limit) {
  auto fail = [&](const char *what) {
    return Status(ErrorId::FileNotFound, format("%s: %s", path.c_str(), what));
  };
  // O_NONBLOCK: opening a pipe that nobody writes to must not wait.
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return fail(std::strerror(errno));
  struct stat info;
  if (fstat(fd, &info) != 0) {
    int error = errno;
    close(fd);
    return fail(std::strerror(error));
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return fail(S_ISDIR(info.st_mode) ? "is a directory, a file is needed"
                                      : "is not a regular file");
  }
  MappedFile file;
  file.fileBytes = static_cast<uint64_t>(info.st_size);
  uint64_t length = std::min(file.fileBytes, limit);
  if (length == 0) {
    close(fd);
    return file;
  }
  void *address = mmap(nullptr, length, PROT_READ, MAP_PRIVATE, fd, 0);
  int error = errno;
  close(fd);
  if (address == MAP_FAILED)
    return fail(std::strerror(error));
  file.owner = std::shared_ptr<const void>(
      address, [length](const void *p) { munmap(const_cast<void *>(p), length); });
  file.bytes = {static_cast<const uint8_t *>(address), length};
  return file;
}

void MappedFile::release(std::span<const uint8_t> part) {
  if (part.empty())
    return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t from = reinterpret_cast<uintptr_t>(part.data());
  uintptr_t first = from / page * page;
  // A hint: if it is refused, memory stays in use until the map is closed.
  madvise(reinterpret_cast<void *>(first), from + part.size() - first, MADV_DONTNEED);
}

} // namespace moira::rt
