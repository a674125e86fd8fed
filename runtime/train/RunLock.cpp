//===- RunLock.cpp - one run in a directory of checkpoints ----------------===//
// See RunLock.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/RunLock.h"

#include "moira/rt/FileSystem.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

namespace moira::rt {

RunLock::~RunLock() {
  if (fd >= 0)
    ::close(fd);
}

bool RunLock::take(const std::string &directory) {
  FileSystem &files = FileSystem::real();
  if (files.makeDirectory(directory) == 0)
    (void)files.syncDirectory(directory + "/.."); // if it cannot be, a save tells
  int opened = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0)
    return true;
  int error = ::flock(opened, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
  if (error == 0)
    fd = opened;
  else
    ::close(opened);
  return error != EWOULDBLOCK;
}

} // namespace moira::rt
