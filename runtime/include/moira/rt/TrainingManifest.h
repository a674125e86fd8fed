//===- TrainingManifest.h - what a training checkpoint holds ----*- C++ -*-===//
// manifest.json of a checkpoint as data: which tensors, as which boxes, where in which file, with
// which checksums; and how far training was. Writing is CheckpointSaver.h's, reading tensors
// TrainingCheckpoint.h's. docs/checkpoints.md describes the format.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_TRAININGMANIFEST_H
#define MOIRA_RT_TRAININGMANIFEST_H

#include "moira/rt/Status.h"
#include "plan_generated.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// How far training was when a checkpoint was begun. Draws are a function of (seed, step, …), so
/// these two are all the state that randomness has.
struct TrainingProgress {
  uint64_t step = 0;    ///< updates that are done
  uint64_t seed = 0;    ///< of every draw
  std::string planHash; ///< of the plan that trained, for notes: another plan may load it
  std::string data;     ///< the data reader's position as it wrote it; empty without one
};

/// A box of a tensor: its bytes in C order at `offset` of a file, checked in chunks.
struct StoredBox {
  std::vector<int64_t> start, extent;
  uint32_t file = 0;
  uint64_t offset = 0;
  std::vector<uint32_t> chunks; ///< crc32c of every kChunkBytes, the last one may be shorter
};

/// A tensor in global terms, without pads. Its boxes are the cells of a grid: each dimension is cut
/// at some positions, and every cell is there once. They are sorted by `start`.
struct StoredTensor {
  std::string name;
  fb::DType type = fb::DType::f32;
  std::vector<int64_t> shape;
  std::vector<StoredBox> boxes;
};

/// A safetensors file beside the manifest. Its boxes fill it from headerBytes to its end.
struct StoredFile {
  std::string name;
  uint64_t bytes = 0;
  uint64_t headerBytes = 0; ///< of the safetensors header with its length
  uint32_t headerCrc = 0;
};

struct TrainingManifest {
  /// Bytes that one checksum covers.
  static constexpr uint64_t kChunkBytes = uint64_t(4) << 20;
  /// A larger manifest is neither written nor read.
  static constexpr uint64_t kLimit = uint64_t(24) << 20;

  TrainingProgress progress;
  std::vector<StoredFile> files;
  std::vector<StoredTensor> tensors; ///< sorted by name

  const StoredTensor *find(std::string_view name) const;

  /// JSON, with the checksum of its own text.
  std::string write() const;
  /// Checks everything that the comments here promise; `origin` names the file in messages.
  /// `part`: of one rank, whose boxes need not cover their tensors. BadCheckpoint with the problems
  /// found.
  static Expected<TrainingManifest> read(std::string_view text, const std::string &origin,
                                         bool part = false);
};

/// "layers.0.w[4:5, 0:64]", or the name alone for a box that is the whole tensor.
std::string boxText(const StoredTensor &tensor, const StoredBox &box);

} // namespace moira::rt

#endif // MOIRA_RT_TRAININGMANIFEST_H
