//===- ModelWriter.h - writing a model directory ----------------*- C++ -*-===//
// New tensors are described by where their values come from; writing them streams, a few MiB at a
// time, into a directory that appears under its name only when it is whole and on the disk.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_MODELWRITER_H
#define MOIRA_CHECKPOINT_MODELWRITER_H

#include "ModelSource.h"

namespace moira::ckpt {

/// A run of elements of a source's tensor, C order.
struct Piece {
  const ModelSource *source;
  size_t tensor;
  uint64_t first, elements;
};

/// One tensor to write. Pieces of another type are converted, between F32, BF16 and F16: rounded to
/// nearest, ties to even.
struct Recipe {
  rt::TensorSpec spec;
  std::vector<Piece> pieces; // one after the other
  /// The mean of the pieces and of these, which have the same lengths; empty: the pieces.
  std::vector<Piece> others;
};

/// The whole tensor, as it is.
Piece whole(const ModelSource &source, size_t tensor);
Recipe copyOf(const ModelSource &source, size_t tensor);
/// Whether values of this type are converted and averaged: F32, BF16, F16.
bool isFloat(rt::TensorType type);

struct ModelToWrite {
  std::string config;                  // text of config.json
  std::vector<std::string> companions; // paths of files to copy
  std::vector<Recipe> tensors;         // distinct names
  uint64_t shardBytes = uint64_t(5) << 30;
  bool checksums = false; // write the side file of Checksums.h
};

/// Writes model.safetensors, or shards of at most shardBytes (a larger tensor is a shard of its
/// own) with their index, config.json and companions. `directory` must not exist, or be empty.
/// CannotWrite; TensorDType if a value does not fit its new type. After a failure nothing is left;
/// after a crash a directory <directory>.<process>.tmp.
rt::Status writeModel(const std::string &directory, const ModelToWrite &model);

/// Writes a file and syncs it.
rt::Status writeFile(const std::string &path, std::string_view text);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_MODELWRITER_H
