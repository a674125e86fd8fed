//===- CheckpointSaver.h - writing training checkpoints ---------*- C++ -*-===//
// Saves of a training run, one after another, in the background: the state is copied, a thread
// writes the copy while training goes on, and the ranks meet again to finish. A save becomes
// visible by one rename of its directory, after everything in it is durable, so that a crash at any
// point leaves the older checkpoints as they were. The layout is TrainingCheckpoint.h's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CHECKPOINTSAVER_H
#define MOIRA_RT_CHECKPOINTSAVER_H

#include "moira/rt/TrainingCheckpoint.h"

#include <functional>
#include <memory>
#include <optional>

namespace moira::rt {

/// One for each rank; all ranks make the same calls in the same order. The functions are collective
/// over all ranks and return the same on each of them.
class CheckpointSaver {
public:
  /// Finished checkpoints that are kept, with the new one; at least two.
  static constexpr size_t kLeastKept = 2;

  /// `directory` is on a file system that all ranks see; it is made at the first save.
  CheckpointSaver(std::string directory, size_t keep = kLeastKept,
                  FileSystem &files = FileSystem::real());
  ~CheckpointSaver(); ///< waits for the writer; a save that has not been finished is lost
  CheckpointSaver(const CheckpointSaver &) = delete;
  CheckpointSaver &operator=(const CheckpointSaver &) = delete;

  /// Begins to save. Every part is copied before it returns; it takes as much host memory as the
  /// bytes that this rank owns, and for states on a device as its largest one. The same tensors on
  /// every rank, in the same order. A save that is still being written is finished first, and its
  /// result lost: ask poll() before. On failure (CannotWrite, OutOfMemory, DeviceFailed) nothing is
  /// begun.
  Status begin(std::span<const StatePart> parts, const TrainingProgress &progress,
               Communicator &communicator);

  /// Whether a save has begun and poll() has not told its end.
  bool busy() const { return job != nullptr; }

  /// Nothing while some rank is still writing (never with `wait`); then the save's result: success
  /// means that the checkpoint is durable and LATEST names it. CannotWrite with the reasons of all
  /// ranks leaves older checkpoints as they are; what cannot be removed of the failed one has a
  /// name ending in .tmp and is removed by the next save. Needs busy().
  std::optional<Status> poll(Communicator &communicator, bool wait);

  /// For tools: this process alone writes what `ranks` ranks would, one after the other, with as
  /// much memory as the largest one needs. `partsOf` fills each rank's parts; they are used until
  /// it is called again. Its failures, and CannotWrite: then nothing is left of it.
  Status saveAlone(int ranks,
                   const std::function<Expected<std::vector<StatePart>>(int rank)> &partsOf,
                   const TrainingProgress &progress);

private:
  struct Job;
  std::string temporaryOf(const TrainingProgress &progress) const;
  Status prepare(const std::string &temporary);
  Status publish(const TrainingProgress &progress, std::span<const std::string> lists);
  void removeUnfinished();
  void removeTree(const std::string &path);

  std::string directory;
  size_t keep;
  FileSystem &files;
  std::unique_ptr<Job> job;
};

} // namespace moira::rt

#endif // MOIRA_RT_CHECKPOINTSAVER_H
