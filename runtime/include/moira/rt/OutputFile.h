//===- OutputFile.h - files and streams that results go to ------*- C++ -*-===//
// For everything but tensors, which SafeTensorsWriter writes. Errors are CannotWrite with the path
// and the reason.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_OUTPUTFILE_H
#define MOIRA_RT_OUTPUTFILE_H

#include "moira/rt/Status.h"

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// A file that appears under its name only when it is complete: a failure leaves what was there.
/// Devices and pipes are written to as they are. Move-only; not thread-safe.
class OutputFile {
public:
  static Expected<OutputFile> create(const std::string &path);
  OutputFile(OutputFile &&other) noexcept;
  OutputFile &operator=(OutputFile &&) = delete;
  /// Removes what is not complete.
  ~OutputFile();

  /// Failures to write are remembered until commit().
  std::FILE *stream() { return file; }
  /// The last call.
  Status commit();

private:
  OutputFile(std::string path, std::string temporary)
      : path(std::move(path)), temporary(std::move(temporary)) {}

  std::string path;
  std::string temporary; ///< empty: written in place
  std::FILE *file = nullptr;
};

Status writeOutputFile(const std::string &path, std::string_view contents);

/// A path and the words that have given it, "--outputs=x" or "the plan x".
struct NamedPath {
  std::string words, path;
};

/// BadUsage for every output that would replace an input, a file of a model that is an input (a
/// directory), or another output. Empty paths are none. Asks the file system, so a file has its
/// other names too.
Status checkReplaced(const std::vector<NamedPath> &outputs, const std::vector<NamedPath> &inputs);

/// At the beginning of a program: a standard stream that is closed leads to /dev/null, so that no
/// file takes its place and gets the lines that are meant for it.
void openStandardStreams();

/// At the end of a program: whether everything that was printed on stdout has arrived.
Status finishStdout();

} // namespace moira::rt

#endif // MOIRA_RT_OUTPUTFILE_H
