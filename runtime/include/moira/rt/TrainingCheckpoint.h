//===- TrainingCheckpoint.h - reading training checkpoints ------*- C++ -*-===//
// One finished checkpoint of a training run: finding it, loading parts of tensors for any mesh, and
// verifying all of it. Every byte is checked against its checksum before anybody sees it.
//
//   DIR/LATEST                     "step-200 8d11f2c0": the newest one, with the checksum of its
//   name DIR/step-200/manifest.json     TrainingManifest.h DIR/step-200/rank-00000.safetensors …
//   DIR/step-300.tmp/              of a save that has not finished; never read
//
// A tool that rewrites checkpoints opens one, loads boxes of its choice, and saves them with
// CheckpointSaver (one thread rank for each file that it wants).
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_TRAININGCHECKPOINT_H
#define MOIRA_RT_TRAININGCHECKPOINT_H

#include "moira/rt/FileSystem.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/TrainingManifest.h"

#include <functional>

namespace moira::rt {

/// One rank's part of one tensor of the training state.
struct StatePart {
  std::string name;
  fb::DType type = fb::DType::f32;
  Shard shard;          ///< of the rank; its pads are neither saved nor loaded
  void *data = nullptr; ///< shard.local elements, C order; null: they lie on a device
  bool experts = false; ///< dimension 0 counts experts: each is saved as a box of its own
  std::function<Status(void *to)> read = {}; ///< of one without data: copies the elements
};

/// What the directory of a run holds.
struct RunDirectory {
  std::vector<std::string> steps; ///< names of the finished checkpoints ("step-200"), oldest first
  bool hasLatest = false;         ///< LATEST, which only a save writes, whatever it says
  int error = 0;                  ///< why it cannot be read; 0: it can, or there is none
};
RunDirectory lookAtRun(const std::string &directory, FileSystem &files);

/// The steps of lookAtRun(); none if it cannot be read.
std::vector<std::string> listCheckpoints(const std::string &directory, FileSystem &files);

/// Whether files of a checkpoint are missing or damaged, rather than of another run.
bool isDamage(const Status &problem);

/// What a run can go on from now that `problem` keeps it from using `step` of `directory`: the
/// newest older checkpoint of which every byte is whole, and how to take it; or that there is none.
/// Nothing where the problem is no damage.
Status adviseOnDamage(const Status &problem, const std::string &directory, const std::string &step,
                      FileSystem &files = FileSystem::real());

/// Immutable once open; thread-safe.
class TrainingCheckpoint {
public:
  /// `path` is a step's directory (it has a manifest.json), or the directory of a run: then what
  /// its LATEST says, or its newest step if LATEST or that step is not there.
  /// FileNotFound if there is none; BadCheckpoint.
  static Expected<TrainingCheckpoint> open(const std::string &path,
                                           FileSystem &files = FileSystem::real());

  /// The step's directory.
  const std::string &path() const { return directory; }
  const TrainingManifest &manifest() const { return contents; }

  /// Whether every part can be loaded: MissingTensor, TensorShape, TensorDType, ExtraTensor (a
  /// stored tensor that no part names), all at once. What another optimizer than the plan's keeps
  /// is one problem.
  Status check(std::span<const StatePart> parts) const;

  /// Fills the part, which has data, without its pads. Needs a successful check. BadCheckpoint
  /// names the tensor and the place of a wrong byte; nothing of a chunk that fails its checksum is
  /// written to `part`.
  Status load(const StatePart &part) const;

  /// Reads and checks every byte of every file. BadCheckpoint with all boxes that are damaged (the
  /// first 100), and every file that is missing or has another size.
  Status verify() const;

private:
  struct OpenFile;
  /// Calls use(byte in the box, bytes) for every chunk of the box that `wanted` says yes to.
  template <typename Wanted, typename Use>
  Status readChunks(const OpenFile &file, const StoredTensor &tensor, const StoredBox &box,
                    Wanted wanted, Use use) const;

  std::string directory;
  TrainingManifest contents;
  FileSystem *files = nullptr;
};

} // namespace moira::rt

#endif // MOIRA_RT_TRAININGCHECKPOINT_H
