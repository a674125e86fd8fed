//===- TrainingCheckpoint.cpp - reading training checkpoints --------------===//
// See TrainingCheckpoint.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/TrainingCheckpoint.h"

#include "StepNames.h"
#include "moira/rt/CallRegistry.h"
#include "moira/rt/PlanFile.h"
#include "moira/rt/SafeTensors.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

namespace moira::rt {
namespace {

constexpr size_t kShown = 100;

Status cannotOpen(const std::string &path, int error) {
  return Status(ErrorId::FileNotFound, path + ": " + std::strerror(error));
}

Status damaged(const std::string &what) { return Status(ErrorId::BadCheckpoint, what); }

/// A small file's text.
Expected<std::string> readText(FileSystem &files, const std::string &path, uint64_t limit) {
  FileSystem::File file;
  uint64_t bytes = 0;
  if (int error = files.open(path, file, bytes))
    return error == ELOOP ? damaged(path + ": is a link, a file is needed")
                          : cannotOpen(path, error);
  std::string text;
  int error = 0;
  if (bytes <= limit) {
    text.resize(bytes);
    error = files.read(file, 0, {reinterpret_cast<uint8_t *>(text.data()), text.size()});
  }
  files.close(file);
  if (bytes > limit)
    return damaged(path + format(": %llu bytes, at most %llu are allowed",
                                 (unsigned long long)bytes, (unsigned long long)limit));
  if (error)
    return cannotOpen(path, error);
  return text;
}

/// The step's directory in a run's directory.
Expected<std::string> newestStep(const std::string &path, FileSystem &files) {
  std::vector<std::string> steps = listCheckpoints(path, files);
  if (steps.empty())
    return Status(ErrorId::FileNotFound, path + ": holds no finished training checkpoint");
  std::string latest = path + "/" + kLatestName;
  Expected<std::string> text = readText(files, latest, 64);
  if (!text && text.status().diagnostics().front().id == ErrorId::FileNotFound)
    return path + "/" + steps.back();
  if (!text)
    return text.takeStatus();
  std::string name = text->substr(0, text->find(' '));
  if (!stepOf(name) || *text != latestText(name))
    return damaged(latest + ": is damaged; remove it to use " + steps.back());
  bool there = std::find(steps.begin(), steps.end(), name) != steps.end();
  return path + "/" + (there ? name : steps.back());
}

/// Product of the extents behind each dimension, in elements.
std::vector<int64_t> stridesOf(const std::vector<int64_t> &shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t n = 1;
  for (size_t d = shape.size(); d-- > 0; n *= shape[d])
    strides[d] = n;
  return strides;
}

int64_t elementsOf(const std::vector<int64_t> &shape) {
  int64_t n = 1;
  for (int64_t d : shape)
    n *= d;
  return n;
}

/// What keeps "W.adamw.m", "W.adafactor.r" or "W.sgd.b"; "" if that is no optimizer.
std::string_view keeperOf(std::string_view name) {
  size_t what = name.rfind('.');
  if (what == std::string_view::npos || what == 0)
    return {};
  size_t dot = name.rfind('.', what - 1);
  if (dot == std::string_view::npos)
    return {};
  std::string_view keeper = name.substr(dot + 1, what - dot - 1);
  for (std::string_view known : {"adamw", "adafactor", "sgd"})
    if (keeper == known)
      return known;
  return {};
}

/// What keeps something of one of these tensors or parts.
template <typename Range> std::string_view optimizerOf(const Range &named) {
  for (const auto &one : named)
    if (std::string_view keeper = keeperOf(one.name); !keeper.empty())
      return keeper;
  return {};
}

/// How to ask for it. Only sgd without a momentum keeps nothing.
std::string optionsOf(std::string_view optimizer) {
  if (optimizer.empty())
    return "--optimizer=sgd without --momentum";
  std::string option = "--optimizer=" + std::string(optimizer);
  return optimizer == "sgd" ? option + " and a --momentum" : option;
}

/// What a part and a stored box share, as boxes of the part's and of the box's own array.
struct Shared {
  Box inPart, inBox;
  bool any = true;
  Shared(const Shard &shard, const StoredBox &box) {
    inPart.shape = shard.local;
    inBox.shape = box.extent;
    for (size_t d = 0; d < box.start.size(); ++d) {
      int64_t from = std::max(shard.start[d], box.start[d]);
      int64_t to = std::min(shard.start[d] + shard.valid[d], box.start[d] + box.extent[d]);
      any &= from < to;
      inPart.start.push_back(from - shard.start[d]);
      inBox.start.push_back(from - box.start[d]);
      inPart.extent.push_back(to - from);
      inBox.extent.push_back(to - from);
    }
  }
  /// First and last element of the box that is shared.
  std::pair<int64_t, int64_t> range() const {
    std::vector<int64_t> strides = stridesOf(inBox.shape);
    int64_t first = 0, last = 0;
    for (size_t d = 0; d < strides.size(); ++d) {
      first += inBox.start[d] * strides[d];
      last += (inBox.start[d] + inBox.extent[d] - 1) * strides[d];
    }
    return {first, last};
  }
};

} // namespace

RunDirectory lookAtRun(const std::string &directory, FileSystem &files) {
  RunDirectory found;
  std::vector<std::string> names;
  if (int error = files.list(namedByUser(directory), names)) {
    found.error = error == ENOENT || error == ENOTDIR ? 0 : error;
    return found;
  }
  for (const std::string &name : names) {
    found.hasLatest |= name == kLatestName;
    if (stepOf(name))
      found.steps.push_back(name);
  }
  std::sort(found.steps.begin(), found.steps.end(),
            [](const std::string &a, const std::string &b) { return *stepOf(a) < *stepOf(b); });
  return found;
}

std::vector<std::string> listCheckpoints(const std::string &directory, FileSystem &files) {
  return lookAtRun(directory, files).steps;
}

bool isDamage(const Status &problem) {
  bool damages = false;
  for (const Diagnostic &d : problem.diagnostics())
    damages |= d.id == ErrorId::BadCheckpoint || d.id == ErrorId::FileNotFound;
  return damages;
}

Status adviseOnDamage(const Status &problem, const std::string &directory, const std::string &step,
                      FileSystem &files) {
  if (!isDamage(problem) || !stepOf(step))
    return {};
  std::vector<std::string> steps = listCheckpoints(directory, files);
  std::string bad = directory + "/" + step;
  int64_t tried = 0;
  for (auto older = steps.rbegin(); older != steps.rend(); ++older) {
    if (*stepOf(*older) >= *stepOf(step))
      continue;
    Expected<TrainingCheckpoint> whole = TrainingCheckpoint::open(directory + "/" + *older, files);
    if (whole && whole->verify())
      return damaged(bad + " cannot be used, but " + directory + "/" + *older +
                     " is whole: all its bytes have been verified. To go on from it: mv " + bad +
                     " " + bad + ".damaged, then give the same command again");
    ++tried;
  }
  return damaged(bad + " cannot be used, and " + directory + " holds no older checkpoint that is " +
                 "whole" + format(" (%lld older, all damaged)", (long long)tried) +
                 ": begin again with another --checkpoint directory");
}

Expected<TrainingCheckpoint> TrainingCheckpoint::open(const std::string &path, FileSystem &files) {
  std::vector<std::string> names;
  if (int error = files.list(namedByUser(path), names))
    return error == ENOTDIR ? damaged(path + ": is not a directory") : cannotOpen(path, error);
  TrainingCheckpoint checkpoint;
  checkpoint.files = &files;
  checkpoint.directory = path;
  if (std::find(names.begin(), names.end(), kManifestName) == names.end()) {
    Expected<std::string> step = newestStep(path, files);
    if (!step)
      return step.takeStatus();
    checkpoint.directory = *step;
    // A step's directory that is a link is refused like any other link.
    if (int error = files.list(*step, names))
      return error == ELOOP || error == ENOTDIR ? damaged(*step + ": is a link, or no directory")
                                                : cannotOpen(*step, error);
  }
  std::string manifest = checkpoint.directory + "/" + kManifestName;
  Expected<std::string> text = readText(files, manifest, TrainingManifest::kLimit);
  if (!text)
    return text.takeStatus();
  Expected<TrainingManifest> contents = TrainingManifest::read(*text, manifest);
  if (!contents)
    return contents.takeStatus();
  checkpoint.contents = std::move(*contents);
  return checkpoint;
}

/// A file of the checkpoint, with the size that the manifest says.
struct TrainingCheckpoint::OpenFile {
  std::string path;
  FileSystem &files;
  FileSystem::File handle = -1;
  Status status;

  OpenFile(const TrainingCheckpoint &checkpoint, const StoredFile &stored)
      : path(checkpoint.directory + "/" + stored.name), files(*checkpoint.files) {
    uint64_t bytes = 0;
    if (int error = files.open(path, handle, bytes)) {
      handle = -1;
      status = error == ELOOP ? damaged(path + ": is a link, a file is needed")
                              : cannotOpen(path, error);
    } else if (bytes != stored.bytes) {
      status = damaged(path + format(": %llu bytes, its manifest says %llu",
                                     (unsigned long long)bytes, (unsigned long long)stored.bytes));
    }
  }
  ~OpenFile() {
    if (handle >= 0)
      files.close(handle);
  }
  OpenFile(const OpenFile &) = delete;
  OpenFile &operator=(const OpenFile &) = delete;
};

template <typename Wanted, typename Use>
Status TrainingCheckpoint::readChunks(const OpenFile &file, const StoredTensor &tensor,
                                      const StoredBox &box, Wanted wanted, Use use) const {
  uint64_t total = static_cast<uint64_t>(elementsOf(box.extent)) * bytesOf(tensor.type);
  std::vector<uint8_t> buffer(std::min(total, TrainingManifest::kChunkBytes));
  Status problems;
  for (size_t c = 0; c < box.chunks.size(); ++c) {
    uint64_t begin = c * TrainingManifest::kChunkBytes;
    std::span<uint8_t> chunk(buffer.data(), std::min(total - begin, TrainingManifest::kChunkBytes));
    if (!wanted(begin, begin + chunk.size()))
      continue;
    uint64_t offset = box.offset + begin;
    if (int error = file.files.read(file.handle, offset, chunk)) {
      problems.add(ErrorId::BadCheckpoint,
                   file.path + ": tensor " + boxText(tensor, box) +
                       format(" cannot be read at byte %llu: %s", (unsigned long long)offset,
                              std::strerror(error)));
      return problems;
    }
    if (uint32_t sum = crc32c(chunk); sum != box.chunks[c])
      problems.add(ErrorId::BadCheckpoint,
                   file.path + ": tensor " + boxText(tensor, box) +
                       format(" is damaged: bytes %llu to %llu of the file have the checksum %08x, "
                              "they should have %08x; use an older checkpoint",
                              (unsigned long long)offset,
                              (unsigned long long)(offset + chunk.size()), sum, box.chunks[c]));
    else
      use(begin, chunk);
  }
  return problems;
}

Status TrainingCheckpoint::check(std::span<const StatePart> parts) const {
  Status problems;
  std::string_view made = optimizerOf(contents.tensors), planned = optimizerOf(parts);
  bool other = made != planned;
  if (other)
    problems.add(made.empty() ? ErrorId::MissingTensor : ErrorId::ExtraTensor,
                 directory + ": was trained with " + optionsOf(made) + ", the plan with " +
                     optionsOf(planned) + ". To go on from it, compile the plan with " +
                     optionsOf(made) +
                     "; to train its weights with another optimizer, make a model of them with "
                     "moe-ckpt export-hf and the plan that trained them, and begin with that in "
                     "another --checkpoint directory");
  std::vector<bool> used(contents.tensors.size(), false);
  for (const StatePart &part : parts) {
    const StoredTensor *tensor = contents.find(part.name);
    if (!tensor && other && !keeperOf(part.name).empty())
      continue; // said above, for all of them
    if (!tensor) {
      problems.add(ErrorId::MissingTensor, directory + ": tensor " + quoteName(part.name) +
                                               " is missing, the plan needs " + nameOf(part.type) +
                                               " " + shapeText(part.shard.global));
      continue;
    }
    used[static_cast<size_t>(tensor - contents.tensors.data())] = true;
    if (tensor->shape != part.shard.global)
      problems.add(ErrorId::TensorShape, directory + ": tensor " + quoteName(part.name) +
                                             " is of shape " + shapeText(tensor->shape) +
                                             ", the plan has " + shapeText(part.shard.global));
    if (tensor->type != part.type)
      problems.add(ErrorId::TensorDType, directory + ": tensor " + quoteName(part.name) + " is " +
                                             nameOf(tensor->type) + ", the plan has " +
                                             nameOf(part.type));
  }
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i] && !(other && !keeperOf(contents.tensors[i].name).empty()))
      problems.add(ErrorId::ExtraTensor, directory + ": tensor " +
                                             quoteName(contents.tensors[i].name) +
                                             " is not used by the plan; was it trained with "
                                             "another model?");
  return problems;
}

Status TrainingCheckpoint::load(const StatePart &part) const {
  const StoredTensor &tensor = *contents.find(part.name);
  int64_t size = static_cast<int64_t>(bytesOf(part.type));
  std::map<uint32_t, OpenFile> open;
  for (const StoredBox &box : tensor.boxes) {
    Shared shared(part.shard, box);
    if (!shared.any)
      continue;
    const OpenFile &file =
        open.try_emplace(box.file, *this, contents.files[box.file]).first->second;
    if (!file.status)
      return file.status;
    // Runs come in the order of the box, so each chunk is read once and met by the runs it holds.
    struct Run {
      int64_t to, from, count; // elements of the part and of the box
    };
    std::vector<Run> runs;
    forEachRun(shared.inPart, shared.inBox,
               [&](int64_t to, int64_t from, int64_t count) { runs.push_back({to, from, count}); });
    auto [first, last] = shared.range();
    size_t next = 0;
    auto wanted = [&, first = first, last = last](uint64_t begin, uint64_t end) {
      return static_cast<uint64_t>(first * size) < end &&
             begin < static_cast<uint64_t>((last + 1) * size);
    };
    auto use = [&](uint64_t begin, std::span<const uint8_t> bytes) {
      int64_t from = static_cast<int64_t>(begin), to = from + static_cast<int64_t>(bytes.size());
      while (next < runs.size() && (runs[next].from + runs[next].count) * size <= from)
        ++next;
      for (size_t i = next; i < runs.size() && runs[i].from * size < to; ++i) {
        int64_t a = std::max(runs[i].from * size, from);
        int64_t b = std::min((runs[i].from + runs[i].count) * size, to);
        std::memcpy(static_cast<char *>(part.data) + runs[i].to * size + (a - runs[i].from * size),
                    bytes.data() + (a - from), static_cast<size_t>(b - a));
      }
    };
    if (Status status = readChunks(file, tensor, box, wanted, use); !status)
      return status;
  }
  return {};
}

Status TrainingCheckpoint::verify() const {
  Status problems;
  std::map<uint32_t, OpenFile> open;
  for (uint32_t f = 0; f < contents.files.size(); ++f) {
    const StoredFile &stored = contents.files[f];
    const OpenFile &file = open.try_emplace(f, *this, stored).first->second;
    if (!file.status) {
      problems.append(file.status);
      continue;
    }
    uint32_t sum = 0;
    std::vector<uint8_t> buffer(std::min(stored.headerBytes, TrainingManifest::kChunkBytes));
    int error = 0;
    for (uint64_t at = 0; at < stored.headerBytes && !error; at += buffer.size()) {
      std::span<uint8_t> part(buffer.data(),
                              std::min<uint64_t>(buffer.size(), stored.headerBytes - at));
      error = files->read(file.handle, at, part);
      sum = crc32c(part, sum);
    }
    if (error || sum != stored.headerCrc)
      problems.add(ErrorId::BadCheckpoint, file.path + ": its header (bytes 0 to " +
                                               std::to_string(stored.headerBytes) +
                                               ") is damaged; use an older checkpoint");
  }
  for (const StoredTensor &tensor : contents.tensors)
    for (const StoredBox &box : tensor.boxes) {
      const OpenFile &file = open.at(box.file);
      if (!file.status || problems.diagnostics().size() >= kShown)
        continue;
      problems.append(readChunks(
          file, tensor, box, [](uint64_t, uint64_t) { return true; },
          [](uint64_t, std::span<const uint8_t>) {}));
    }
  return problems;
}

} // namespace moira::rt
