//===- SafeTensorsWriter.h - writing safetensors files ----------*- C++ -*-===//
// A file that appears under its name only when it is complete: written under a temporary name
// beside it, synced, renamed. Several processes may write parts of one file.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SAFETENSORSWRITER_H
#define MOIRA_RT_SAFETENSORSWRITER_H

#include "moira/rt/SafeTensors.h"

namespace moira::rt {

/// One tensor to write.
struct TensorSpec {
  std::string name;
  TensorType type;
  std::vector<int64_t> shape;
};

/// Entries of a file's "__metadata__".
using TensorMetadata = std::map<std::string, std::string>;

/// CannotWrite unless `path` can be created or replaced: its directory is there and writable, and
/// what stands there, if anything, is a regular file. For asking before long work.
Status checkWritable(const std::string &path);

/// Errors are CannotWrite with path and reason. Move-only; not thread-safe.
class SafeTensorsWriter {
public:
  /// Creates the temporary file with its header; every byte of data is zero. `specs` have distinct
  /// names; the file holds them in the order given. `tag` makes the temporary name: path.<tag>.tmp.
  static Expected<SafeTensorsWriter> create(const std::string &path,
                                            const std::vector<TensorSpec> &specs, uint64_t tag,
                                            const TensorMetadata &metadata = {});
  /// Opens a temporary file that another process has created with the same arguments.
  static Expected<SafeTensorsWriter> join(const std::string &path,
                                          const std::vector<TensorSpec> &specs, uint64_t tag,
                                          const TensorMetadata &metadata = {});
  SafeTensorsWriter(SafeTensorsWriter &&other) noexcept;
  SafeTensorsWriter &operator=(SafeTensorsWriter &&) = delete;
  /// Removes the temporary file if this object created it and did not commit.
  ~SafeTensorsWriter();

  /// Writes part of a tensor, `offset` bytes from its beginning.
  Status write(size_t tensor, uint64_t offset, std::span<const uint8_t> bytes);
  /// Makes what this process wrote durable.
  Status sync();
  /// Renames the complete file to its name and syncs the directory. Only where it was created,
  /// after every process has synced.
  Status commit();

private:
  SafeTensorsWriter(const std::string &path, const std::vector<TensorSpec> &specs, uint64_t tag,
                    const TensorMetadata &metadata);
  Status failed(const char *doing, int error) const;

  std::string path, temporary, header;
  std::vector<uint64_t> offsets; // of each tensor, from the start of the file
  uint64_t fileBytes = 0;
  int fd = -1;
  bool created = false;
};

/// Writes a whole file at once.
Status writeSafeTensors(const std::string &path, const std::vector<TensorSpec> &specs,
                        const std::vector<std::span<const uint8_t>> &data);

} // namespace moira::rt

#endif // MOIRA_RT_SAFETENSORSWRITER_H
