//===- OutputFile.cpp - files and streams that results go to --------------===//
// See OutputFile.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/OutputFile.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace moira::rt {
namespace {

Status cannotWrite(const std::string &path, int error) {
  return {ErrorId::CannotWrite, path + ": " + std::strerror(error ? error : EIO)};
}

bool isSameFile(const std::string &a, const std::string &b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error);
}

/// A file that loading a model may read.
bool isModelFile(std::string_view name) {
  return name == "config.json" || name == "generation_config.json" ||
         name == "model.safetensors.index.json" || name == "model.checksums.jsonl" ||
         (name.starts_with("model") && name.ends_with(".safetensors"));
}

/// Whether writing `output`, a regular file that exists, changes what `input` holds.
bool replaces(const std::filesystem::path &output, const std::string &input) {
  std::error_code error;
  if (!std::filesystem::is_directory(input, error))
    return isSameFile(output, input);
  // A name may be a link to a file of the model, and a file of the model a link to one elsewhere.
  for (const std::filesystem::path &path : {output, std::filesystem::canonical(output, error)}) {
    std::filesystem::path name = path.filename();
    if (isModelFile(name.native()) && isSameFile(output, std::filesystem::path(input) / name))
      return true;
  }
  return false;
}

} // namespace

Status checkReplaced(const std::vector<NamedPath> &outputs, const std::vector<NamedPath> &inputs) {
  Status problems;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const NamedPath &output = outputs[i];
    std::error_code error;
    std::filesystem::file_status there = std::filesystem::status(output.path, error);
    bool file = std::filesystem::is_regular_file(there);
    if (output.path.empty() || (std::filesystem::exists(there) && !file))
      continue; // devices take several
    std::filesystem::path whole = std::filesystem::weakly_canonical(output.path, error);
    for (size_t j = 0; j < i; ++j)
      if (std::filesystem::weakly_canonical(outputs[j].path, error) == whole)
        problems.add(ErrorId::BadUsage,
                     output.words + " and " + outputs[j].words + " would be one file; name two");
    for (const NamedPath &input : inputs)
      if (file && !input.path.empty() && replaces(output.path, input.path))
        problems.add(ErrorId::BadUsage, output.words + " would replace what " + input.words +
                                            " reads; name another file");
  }
  return problems;
}

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
