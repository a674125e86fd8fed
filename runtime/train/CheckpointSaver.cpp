//===- CheckpointSaver.cpp - writing training checkpoints -----------------===//
// See CheckpointSaver.h. The order of the steps is what makes a save atomic:
//   every rank   writes its file in step-N.tmp and syncs it
//   all          exchange what they have written
//   rank 0       writes manifest.json and syncs it, syncs step-N.tmp,
//                renames it to step-N, syncs the directory: from here on the checkpoint exists
//                writes LATEST.tmp, syncs it, renames it to LATEST, syncs the directory
//                removes what is older than the checkpoints that are kept, newest name last
//===----------------------------------------------------------------------===//
#include "moira/rt/CheckpointSaver.h"

#include "RankFile.h"
#include "StepNames.h"
#include "moira/rt/Agree.h"
#include "moira/rt/SafeTensors.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <new>
#include <system_error>
#include <thread>

namespace moira::rt {
namespace {

Status cannotWrite(const std::string &path, const char *doing, int error) {
  return Status(ErrorId::CannotWrite,
                path + ": " + doing + " failed (" + std::strerror(error) + ")");
}

std::string rankFileName(int rank) { return format("rank-%05d.safetensors", rank); }

/// Creates a small file and makes it durable; its name is not yet.
Status writeText(FileSystem &files, const std::string &path, const std::string &text) {
  FileSystem::File file;
  if (int error = files.create(path, file))
    return cannotWrite(path, "creating it", error);
  int error = files.append(file, {reinterpret_cast<const uint8_t *>(text.data()), text.size()});
  if (!error)
    error = files.sync(file);
  int closed = files.close(file);
  if (error || closed)
    return cannotWrite(path, "writing", error ? error : closed);
  return {};
}

} // namespace

/// A save that has begun: what this rank writes, and the thread that does.
struct CheckpointSaver::Job {
  TrainingProgress progress;
  std::string temporary; // its directory
  std::unique_ptr<RankFile> file;
  Status result; // of the thread, once joined
  std::atomic<bool> written = false;
  std::thread writer;

  void join() {
    if (writer.joinable())
      writer.join();
  }
  ~Job() { join(); }
};

CheckpointSaver::CheckpointSaver(std::string directory, size_t keep, FileSystem &files)
    : directory(std::move(directory)), keep(std::max(keep, kLeastKept)), files(files) {}

CheckpointSaver::~CheckpointSaver() = default;

void CheckpointSaver::removeTree(const std::string &path) {
  std::vector<std::string> names;
  if (files.list(path, names) != 0) {
    (void)files.removeFile(path);
    return;
  }
  for (const std::string &name : names)
    (void)files.removeFile(path + "/" + name);
  (void)files.removeDirectory(path);
}

void CheckpointSaver::removeUnfinished() {
  std::vector<std::string> names;
  if (files.list(namedByUser(directory), names) != 0)
    return;
  for (const std::string &name : names) {
    std::string_view stem = std::string_view(name).substr(0, name.find('.'));
    if (name.ends_with(kUnfinished) && (stem == kLatestName || stepOf(stem)))
      removeTree(directory + "/" + name);
  }
}

std::string CheckpointSaver::temporaryOf(const TrainingProgress &progress) const {
  return directory + "/" + stepName(progress.step) + std::string(kUnfinished);
}

Status CheckpointSaver::prepare(const std::string &temporary) {
  int made = files.makeDirectory(directory);
  if (made && made != EEXIST)
    return cannotWrite(directory, "making the directory", made);
  if (!made) {
    size_t slash = directory.rfind('/');
    std::string parent = slash == std::string::npos ? "." : directory.substr(0, slash + 1);
    if (int error = files.syncDirectory(parent))
      return cannotWrite(parent, "syncing", error);
  }
  removeUnfinished();
  if (int error = files.makeDirectory(temporary))
    return cannotWrite(temporary, "making the directory", error);
  return {};
}

Status CheckpointSaver::begin(std::span<const StatePart> parts, const TrainingProgress &progress,
                              Communicator &communicator) {
  if (job)
    (void)poll(communicator, true);
  auto next = std::make_unique<Job>();
  next->progress = progress;
  next->temporary = temporaryOf(progress);
  Status mine;
  try {
    Expected<std::unique_ptr<RankFile>> file = RankFile::copy(parts);
    if (file)
      next->file = std::move(*file);
    else
      mine = file.takeStatus();
  } catch (const std::bad_alloc &) {
    mine.add(ErrorId::OutOfMemory,
             format("rank %d has no memory for a copy of its state, which a checkpoint needs",
                    communicator.rank()));
  }
  if (communicator.rank() == 0)
    mine.append(prepare(next->temporary));
  if (Status all = agree(mine, communicator, "beginning a checkpoint"); !all)
    return all;
  std::string name = rankFileName(communicator.rank());
  auto write = [job = next.get(), name, &files = files] {
    if (!job->file->empty())
      job->result = job->file->write(job->temporary, name, files);
    job->written = true;
  };
  try {
    next->writer = std::thread(write);
  } catch (const std::system_error &) {
    write(); // a machine without a thread to spare saves all the same
  }
  job = std::move(next);
  return {};
}

std::optional<Status> CheckpointSaver::poll(Communicator &communicator, bool wait) {
  if (wait)
    job->join();
  int32_t writing = !job->written, any = 0;
  if (Status s = communicator.allReduce(worldGroup(communicator), &writing, &any, 1, fb::DType::i32,
                                        fb::Reduce::max, "asking for a checkpoint");
      !s)
    return s;
  if (any)
    return std::nullopt;
  job->join();
  std::unique_ptr<Job> done = std::move(job);
  Status status = agree(done->result, communicator, "writing a checkpoint");
  if (status) {
    Expected<std::vector<std::string>> lists = gatherStrings(
        done->file->listing().write(), communicator, "exchanging a checkpoint's checksums");
    if (!lists)
      return lists.takeStatus();
    status = agree(communicator.rank() == 0 ? publish(done->progress, *lists) : Status(),
                   communicator, "finishing a checkpoint");
  }
  if (!status && communicator.rank() == 0)
    removeTree(done->temporary);
  return status;
}

Status
CheckpointSaver::saveAlone(int ranks,
                           const std::function<Expected<std::vector<StatePart>>(int rank)> &partsOf,
                           const TrainingProgress &progress) {
  std::string temporary = temporaryOf(progress);
  Status status = prepare(temporary);
  std::vector<std::string> lists;
  for (int rank = 0; rank < ranks && status; ++rank) {
    Expected<std::vector<StatePart>> parts = partsOf(rank);
    if (!parts) {
      status = parts.takeStatus();
      break;
    }
    Expected<std::unique_ptr<RankFile>> file = RankFile::copy(*parts);
    if (!file) {
      status = file.takeStatus();
      break;
    }
    if (!(*file)->empty())
      status = (*file)->write(temporary, rankFileName(rank), files);
    lists.push_back((*file)->listing().write());
  }
  if (status)
    status = publish(progress, lists);
  if (!status)
    removeTree(temporary);
  return status;
}

Status CheckpointSaver::publish(const TrainingProgress &progress,
                                std::span<const std::string> lists) {
  TrainingManifest all;
  all.progress = progress;
  std::map<std::string, size_t> places;
  for (const std::string &text : lists) {
    Expected<TrainingManifest> one = TrainingManifest::read(text, "a rank's list", true);
    if (!one)
      return one.takeStatus();
    for (StoredTensor &tensor : one->tensors) {
      auto [it, added] = places.try_emplace(tensor.name, all.tensors.size());
      if (added)
        all.tensors.push_back({tensor.name, tensor.type, tensor.shape, {}});
      for (StoredBox &box : tensor.boxes) {
        box.file = static_cast<uint32_t>(all.files.size());
        all.tensors[it->second].boxes.push_back(std::move(box));
      }
    }
    for (StoredFile &file : one->files)
      all.files.push_back(std::move(file));
  }
  std::string text = all.write();
  // What cannot be read must not be written: the state's shards would not fit together.
  if (Expected<TrainingManifest> again = TrainingManifest::read(text, "the manifest"); !again)
    return again.takeStatus();

  std::string name = stepName(progress.step), path = directory + "/" + name;
  std::string temporary = temporaryOf(progress);
  if (Status s = writeText(files, temporary + "/" + kManifestName, text); !s)
    return s;
  if (int error = files.syncDirectory(temporary))
    return cannotWrite(temporary, "syncing", error);
  // A run that was resumed before this step has saved it already: the old one makes way.
  std::string old = path + ".old" + std::string(kUnfinished);
  bool replaced = files.rename(path, old) == 0;
  if (int error = files.rename(temporary, path)) {
    if (replaced)
      (void)files.rename(old, path);
    return cannotWrite(path, "renaming the finished checkpoint", error);
  }
  if (int error = files.syncDirectory(directory))
    return cannotWrite(directory, "syncing", error);
  if (replaced)
    removeTree(old);

  std::string latest = directory + "/" + kLatestName, next = latest + std::string(kUnfinished);
  if (Status s = writeText(files, next, latestText(name)); !s)
    return s;
  if (int error = files.rename(next, latest))
    return cannotWrite(latest, "renaming", error);
  if (int error = files.syncDirectory(directory))
    return cannotWrite(directory, "syncing", error);

  // The new one stays whatever its number: a run may have gone back to an older step.
  std::vector<std::string> steps = listCheckpoints(directory, files);
  std::erase(steps, name);
  for (size_t i = 0; i + keep - 1 < steps.size(); ++i) {
    // Renamed first: half of a checkpoint must not look like one.
    std::string from = directory + "/" + steps[i], to = from + std::string(kUnfinished);
    if (files.rename(from, to) != 0 || files.syncDirectory(directory) != 0)
      break; // older ones than needed do no harm
    removeTree(to);
  }
  return {};
}

} // namespace moira::rt
