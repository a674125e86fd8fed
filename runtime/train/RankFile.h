//===- RankFile.h - one rank's file of a checkpoint -------------*- C++ -*-===//
// A copy of what a rank owns, and its way into a safetensors file. Private to the saver.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_TRAIN_RANKFILE_H
#define MOIRA_RT_TRAIN_RANKFILE_H

#include "moira/rt/TrainingCheckpoint.h"

#include <memory>

namespace moira::rt {

class RankFile {
public:
  /// Copies what the rank owns of `parts`, without pads. What a part's read() says; std::bad_alloc
  /// passes.
  static Expected<std::unique_ptr<RankFile>> copy(std::span<const StatePart> parts);

  /// Whether the rank owns anything; else it has no file.
  bool empty() const { return boxes.empty(); }

  /// Creates and fills the file, and makes its contents durable. CannotWrite.
  Status write(const std::string &directory, const std::string &name, FileSystem &files);

  /// What has been written, as a manifest with one file (none if empty()). After write().
  const TrainingManifest &listing() const { return list; }

private:
  struct Box {
    size_t tensor, index; // in `list`
    std::vector<uint8_t> bytes;
  };
  std::string header();
  /// Copies what the rank owns of a part whose elements are in `data`.
  void add(const StatePart &part, const void *data);

  TrainingManifest list;
  std::vector<Box> boxes; // in the order of the file
};

} // namespace moira::rt

#endif // MOIRA_RT_TRAIN_RANKFILE_H
