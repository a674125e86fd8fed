//===- Weights.h - from checkpoint tensors to state tensors -----*- C++ -*-===//
// Which checkpoint tensors a program's state needs, and this rank's part of them.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_WEIGHTS_H
#define MOIRA_RT_WEIGHTS_H

#include "moira/rt/Checkpoint.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/PlanFile.h"

namespace moira::rt {

/// The element type of a safetensors tensor in plan terms, if plans have it.
std::optional<fb::DType> planType(TensorType type);

/// The checkpoint name that holds `expert`'s block: {e} replaced.
std::string sourceName(std::string_view pattern, int64_t expert);

/// The names of all tensors behind a source of this global shape, in order.
std::vector<std::string> sourceNames(const fb::Source &source, std::span<const int64_t> shape);

/// Checks that the checkpoint has every tensor that the program needs, with its shape and a type
/// that converts, and no other but those that the plan names. Reports MissingTensor, TensorShape,
/// TensorDType and ExtraTensor, all at once. Once a process.
Status checkWeights(const fb::Plan &plan, const fb::Program &program, const Checkpoint &checkpoint);

/// Fills one state tensor's shard at `data` (C order, shape shard.local, elements of `type`).
/// Pads stay as they are, zero from allocation. Needs a successful checkWeights.
void loadState(const fb::State &state, const Shard &shard, const Checkpoint &checkpoint,
               fb::DType type, void *data);

/// A piece as it lies in its file: a box there, and its elements in that order as offsets from the
/// piece's first.
struct PieceInFile {
  Box box;
  std::vector<int64_t> elements;
};

/// A contiguous part of a state tensor's shard that one checkpoint tensor fills.
struct WeightPiece {
  std::string name;               // of the checkpoint tensor
  const Checkpoint::Entry *entry; // null only if no checkpoint was given
  Box onDisk, inPiece;            // of equal extents; inPiece.shape is the piece with its pads
  std::vector<uint8_t>
      permute;    // dimension permute[i] of onDisk is the i-th in the file; empty: as it is
  int64_t offset; // of the piece in the shard, in elements
  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : inPiece.shape)
      n *= d;
    return n;
  }
  /// For pieces with a `permute`.
  PieceInFile inFileOrder() const;
  /// Converts the piece to `type` at `to`. Pads are not written.
  void load(const Checkpoint &checkpoint, fb::DType type, void *to) const;
};

/// Calls fn for the pieces of a shard in order, each of at most `most` elements as far as rows can
/// be cut apart. What no piece covers is pad. `checkpoint` may be null to learn of the sizes only.
void forEachPiece(const fb::Source &source, const Shard &shard, const Checkpoint *checkpoint,
                  int64_t most, const std::function<void(const WeightPiece &)> &fn);
/// The same; a state without a source has no pieces.
void forEachPiece(const fb::State &state, const Shard &shard, const Checkpoint *checkpoint,
                  int64_t most, const std::function<void(const WeightPiece &)> &fn);

} // namespace moira::rt

#endif // MOIRA_RT_WEIGHTS_H
