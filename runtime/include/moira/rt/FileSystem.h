//===- FileSystem.h - the file operations that saves are made of *- C++ -*-===//
// A small interface below checkpoints, so that tests can end the world at every one of its calls.
// Reading is here too: a test's disk must be readable. What is written in which order is the
// callers' business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_FILESYSTEM_H
#define MOIRA_RT_FILESYSTEM_H

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moira::rt {

/// Every function returns 0 or an errno value. Thread-safe; a File is used by one thread at a time.
class FileSystem {
public:
  using File = int;
  virtual ~FileSystem() = default;

  /// A new empty file; EEXIST if the name is taken, by a link too.
  virtual int create(const std::string &path, File &file) = 0;
  /// Appends all bytes.
  virtual int append(File file, std::span<const uint8_t> bytes) = 0;
  /// Makes the contents durable.
  virtual int sync(File file) = 0;
  virtual int close(File file) = 0;

  virtual int makeDirectory(const std::string &path) = 0;
  /// Makes the names in a directory durable; success where file systems do not offer it.
  virtual int syncDirectory(const std::string &path) = 0;
  /// Atomic. Replaces a file, never a directory that is not empty.
  virtual int rename(const std::string &from, const std::string &to) = 0;
  virtual int removeFile(const std::string &path) = 0;
  virtual int removeDirectory(const std::string &path) = 0;

  /// A regular file for reading, with its size. ELOOP for a link, EINVAL for what is no file.
  virtual int open(const std::string &path, File &file, uint64_t &bytes) = 0;
  /// Exactly these bytes; ENODATA if the file ends before them.
  virtual int read(File file, uint64_t offset, std::span<uint8_t> bytes) = 0;
  /// The names in a directory, sorted; ELOOP if the path itself is a link (which a slash
  /// behind it follows).
  virtual int list(const std::string &path, std::vector<std::string> &names) = 0;

  /// The machine's.
  static FileSystem &real();
};

} // namespace moira::rt

#endif // MOIRA_RT_FILESYSTEM_H
