//===- Staging.cpp - directories that appear whole ------------------------===//
#include "Staging.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <mutex>
#include <sys/stat.h>
#include <thread>
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

/// What is to be removed; one at a time is being made.
static std::mutex stagedMutex;
static std::string &staged = *new std::string; // signals may come after main()

static void setStaged(const std::string &path) {
  std::lock_guard guard(stagedMutex);
  staged = path;
}

void removeStagingOnSignals() {
  static sigset_t signals;
  sigemptyset(&signals);
  for (int number : {SIGHUP, SIGINT, SIGTERM}) {
    struct sigaction now;
    if (sigaction(number, nullptr, &now) == 0 && now.sa_handler != SIG_IGN)
      sigaddset(&signals, number);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([] {
    int number = 0;
    sigwait(&signals, &number);
    stagedMutex.lock(); // for good: nothing is published any more
    std::error_code error;
    // Whoever is writing may make a file while the directory is emptied.
    for (int tries = 0; tries < 100 && !staged.empty(); ++tries)
      if (std::filesystem::remove_all(staged, error); !std::filesystem::exists(staged, error))
        break;
    std::signal(number, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    std::raise(number);
  }).detach();
}

Staging::Staging(std::string given) : directory(std::move(given)) {
  while (directory.size() > 1 && directory.back() == '/')
    directory.pop_back();
  temporary = rt::format("%s.%d.tmp", directory.c_str(), getpid());
}

Staging::~Staging() {
  std::error_code error;
  if (!made)
    return;
  std::filesystem::remove_all(temporary, error);
  setStaged("");
}

Status Staging::make() {
  std::error_code error;
  std::filesystem::file_status there = std::filesystem::symlink_status(directory, error);
  if (std::filesystem::exists(there) &&
      !(std::filesystem::is_directory(there) && std::filesystem::is_empty(directory, error)))
    return cannotWrite(directory, "exists already; name a directory that does not");
  if (mkdir(temporary.c_str(), 0777) != 0)
    return cannotWrite(directory, "creating " + temporary + ": " + std::strerror(errno));
  made = true;
  setStaged(temporary);
  return {};
}

Status Staging::publish() {
  if (Status status = syncDirectory(temporary); !status)
    return status;
  {
    std::lock_guard guard(stagedMutex);
    if (rename(temporary.c_str(), directory.c_str()) != 0)
      return cannotWrite(directory,
                         std::string("renaming the finished directory: ") + std::strerror(errno));
    staged.clear();
  }
  made = false;
  std::filesystem::path parent = std::filesystem::path(directory).parent_path();
  return syncDirectory(parent.empty() ? "." : parent.string());
}

} // namespace moira::ckpt
