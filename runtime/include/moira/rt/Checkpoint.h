//===- Checkpoint.h - a directory of safetensors files ----------*- C++ -*-===//
// model.safetensors, or model.safetensors.index.json with its shards, as one table of tensors.
// Every tensor lies where the index says and nowhere else.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CHECKPOINT_H
#define MOIRA_RT_CHECKPOINT_H

#include "moira/rt/SafeTensors.h"

namespace moira::rt {

/// An opened checkpoint. Copies share the maps. Thread-safe once open.
class Checkpoint {
public:
  struct Entry {
    const TensorInfo *info;
    const SafeTensorsFile *file;
  };

  /// `path` is a directory, or one .safetensors file. FileNotFound, BadIndex, BadSafetensors,
  /// MissingTensor (the index names it, its shard lacks it), ExtraTensor (a shard has it, the index
  /// does not name it); all problems at once.
  static Expected<Checkpoint> open(const std::string &path, SafeTensorsOptions options = {});

  const std::string &path() const { return directory; }
  /// Sorted by name. The pointers live as long as any copy of this Checkpoint.
  const std::vector<Entry> &tensors() const { return entries; }
  /// The tensor, or null.
  const Entry *find(std::string_view name) const;
  std::span<const uint8_t> data(const Entry &entry) const { return entry.file->data(*entry.info); }
  /// Lets go of the memory that reading an entry's data took.
  void release(const Entry &entry) const { entry.file->release(*entry.info); }
  /// Some file's data ends early (only with allowTruncated).
  bool truncated() const;

private:
  std::string directory;
  std::shared_ptr<const std::vector<SafeTensorsFile>> files;
  std::vector<Entry> entries;
};

} // namespace moira::rt

#endif // MOIRA_RT_CHECKPOINT_H
