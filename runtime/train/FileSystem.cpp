//===- FileSystem.cpp - the machine's file system -------------------------===//
// See FileSystem.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/FileSystem.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::rt {
namespace {

int result(int returned) { return returned < 0 ? errno : 0; }

class RealFileSystem final : public FileSystem {
public:
  int create(const std::string &path, File &file) override {
    return result(
        file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666));
  }

  int append(File file, std::span<const uint8_t> bytes) override {
    while (!bytes.empty()) {
      ssize_t n = ::write(file, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR)
        continue;
      if (n <= 0)
        return n == 0 ? ENOSPC : errno;
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return 0;
  }

  int sync(File file) override { return result(::fsync(file)); }
  int close(File file) override { return result(::close(file)); }
  int makeDirectory(const std::string &path) override {
    return result(::mkdir(path.c_str(), 0777));
  }

  int syncDirectory(const std::string &path) override {
    int directory = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
      return errno;
    int error = result(::fsync(directory));
    ::close(directory);
    return error == EINVAL || error == ENOTSUP ? 0 : error;
  }

  int rename(const std::string &from, const std::string &to) override {
    return result(::rename(from.c_str(), to.c_str()));
  }
  int removeFile(const std::string &path) override { return result(::unlink(path.c_str())); }
  int removeDirectory(const std::string &path) override { return result(::rmdir(path.c_str())); }

  int open(const std::string &path, File &file, uint64_t &bytes) override {
    // O_NONBLOCK: opening a pipe that nobody writes to must not wait.
    file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0)
      return errno;
    struct stat info;
    int error = result(::fstat(file, &info));
    if (error == 0 && !S_ISREG(info.st_mode))
      error = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
    if (error != 0)
      ::close(file);
    bytes = error == 0 ? static_cast<uint64_t>(info.st_size) : 0;
    return error;
  }

  int read(File file, uint64_t offset, std::span<uint8_t> bytes) override {
    while (!bytes.empty()) {
      ssize_t n = ::pread(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR)
        continue;
      if (n <= 0)
        return n == 0 ? ENODATA : errno;
      offset += static_cast<uint64_t>(n);
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return 0;
  }

  int list(const std::string &path, std::vector<std::string> &names) override {
    int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
      return errno;
    DIR *directory = ::fdopendir(fd);
    if (!directory) {
      int error = errno;
      ::close(fd);
      return error;
    }
    names.clear();
    errno = 0;
    while (const dirent *entry = ::readdir(directory)) {
      std::string name = entry->d_name;
      if (name != "." && name != "..")
        names.push_back(std::move(name));
    }
    int error = errno;
    ::closedir(directory);
    std::sort(names.begin(), names.end());
    return error;
  }
};

} // namespace

FileSystem &FileSystem::real() {
  static RealFileSystem fileSystem;
  return fileSystem;
}

} // namespace moira::rt
