//===- OutputFile.cpp - files and streams that results go to --------------===//
// See OutputFile.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/OutputFile.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace moira::rt {
namespace {

Status cannotWrite(const std::string &path, int error) {
  return {ErrorId::CannotWrite, path + ": " + std::strerror(error ? error : EIO)};
}

} // namespace

Expected<OutputFile> OutputFile::create(const std::string &path) {
  struct stat there;
  bool exists = stat(path.c_str(), &there) == 0;
  if (exists && S_ISDIR(there.st_mode))
    return cannotWrite(path, EISDIR);
  bool inPlace = exists && !S_ISREG(there.st_mode);
  OutputFile output(path, inPlace ? "" : path + "." + std::to_string(getpid()) + ".tmp");
  const std::string &opened = inPlace ? output.path : output.temporary;
  output.file = std::fopen(opened.c_str(), "we");
  if (!output.file) {
    int error = errno;
    output.temporary.clear();
    return cannotWrite(path, error);
  }
  return output;
}

OutputFile::OutputFile(OutputFile &&other) noexcept
    : path(std::move(other.path)), temporary(std::exchange(other.temporary, "")),
      file(std::exchange(other.file, nullptr)) {}

OutputFile::~OutputFile() {
  if (file)
    std::fclose(file);
  if (!temporary.empty())
    unlink(temporary.c_str());
}

Status OutputFile::commit() {
  int error = std::fflush(file) != 0 ? errno : std::ferror(file) ? ENOSPC : 0;
  if (!error && !temporary.empty() && fsync(fileno(file)) != 0)
    error = errno;
  if (std::fclose(std::exchange(file, nullptr)) != 0 && !error)
    error = errno;
  if (!error && !temporary.empty() && rename(temporary.c_str(), path.c_str()) != 0)
    error = errno;
  if (error)
    return cannotWrite(path, error);
  temporary.clear();
  return {};
}

Status writeOutputFile(const std::string &path, std::string_view contents) {
  Expected<OutputFile> file = OutputFile::create(path);
  if (!file)
    return file.takeStatus();
  if (std::fwrite(contents.data(), 1, contents.size(), file->stream()) != contents.size())
    return cannotWrite(path, errno);
  return file->commit();
}

void openStandardStreams() {
  for (int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(stream, F_GETFD) < 0 && errno == EBADF)
      (void)::open("/dev/null", O_RDWR); // the lowest number that is free, which is this one
}

Status finishStdout() {
  bool failed = std::ferror(stdout) != 0;
  if (std::fflush(stdout) != 0)
    return cannotWrite("stdout", errno);
  return failed ? Status(ErrorId::CannotWrite, "stdout: not everything could be written")
                : Status();
}

} // namespace moira::rt
