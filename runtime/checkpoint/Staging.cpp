//===- Staging.cpp - directories that appear whole ------------------------===//
#include "Staging.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::ckpt {

using rt::Status;

static Status cannotWrite(const std::string &path, const std::string &why) {
  return Status(rt::ErrorId::CannotWrite, path + ": " + why);
}

Status syncDirectory(const std::string &path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return cannotWrite(path, std::strerror(errno));
  (void)fsync(fd); // some file systems refuse to sync directories
  ::close(fd);
  return {};
}

Staging::Staging(std::string given) : directory(std::move(given)) {
  while (directory.size() > 1 && directory.back() == '/')
    directory.pop_back();
  temporary = rt::format("%s.%d.tmp", directory.c_str(), getpid());
}

Staging::~Staging() {
  std::error_code error;
  if (made)
    std::filesystem::remove_all(temporary, error);
}

Status Staging::make() {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(directory, error)) &&
      !(std::filesystem::is_directory(directory, error) &&
        std::filesystem::is_empty(directory, error)))
    return cannotWrite(directory, "exists already; name a directory that does not");
  if (mkdir(temporary.c_str(), 0777) != 0)
    return cannotWrite(directory, "creating " + temporary + ": " + std::strerror(errno));
  made = true;
  return {};
}

Status Staging::publish() {
  if (Status status = syncDirectory(temporary); !status)
    return status;
  if (rename(temporary.c_str(), directory.c_str()) != 0)
    return cannotWrite(directory,
                       std::string("renaming the finished directory: ") + std::strerror(errno));
  made = false;
  std::filesystem::path parent = std::filesystem::path(directory).parent_path();
  return syncDirectory(parent.empty() ? "." : parent.string());
}

} // namespace moira::ckpt
