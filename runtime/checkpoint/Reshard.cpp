//===- Reshard.cpp - training checkpoints cut anew ------------------------===//
#include "Reshard.h"

#include "Staging.h"
#include "moira/rt/CheckpointSaver.h"
#include "moira/rt/PlanFile.h"

#include <algorithm>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::Shard;
using rt::StatePart;
using rt::Status;
using rt::StoredTensor;

/// Whether a tensor looks as if it was saved expert by expert; only a plan knows.
bool hasExperts(const StoredTensor &tensor) {
  return std::ranges::all_of(tensor.boxes, [](const rt::StoredBox &box) {
    return !box.extent.empty() && box.extent[0] == 1;
  });
}

/// Rank `rank`'s part of a tensor that `ranks` share evenly.
Shard evenShard(const StoredTensor &tensor, int ranks, int rank) {
  Shard shard;
  shard.global = shard.local = shard.valid = tensor.shape;
  shard.start.assign(tensor.shape.size(), 0);
  if (tensor.shape.empty()) {
    shard.owner = rank == 0;
    return shard;
  }
  size_t dim =
      hasExperts(tensor)
          ? 0
          : static_cast<size_t>(std::ranges::max_element(tensor.shape) - tensor.shape.begin());
  int64_t size = tensor.shape[dim], each = (size + ranks - 1) / ranks;
  shard.start[dim] = std::min(size, rank * each);
  shard.local[dim] = shard.valid[dim] = std::min(each, size - shard.start[dim]);
  shard.owner = shard.valid[dim] > 0;
  return shard;
}

/// The memory of one rank at a time.
class RankMemory {
public:
  explicit RankMemory(const rt::TrainingCheckpoint &checkpoint) : checkpoint(checkpoint) {}

  /// Reads what the rank owns of `tensors`, in their order; `shardOf` says what that is, `byExpert`
  /// whether it is to be saved expert by expert.
  template <typename ShardOf, typename ByExpert>
  rt::Expected<std::vector<StatePart>> read(std::span<const StoredTensor *const> tensors,
                                            ShardOf shardOf, ByExpert byExpert) {
    blocks.clear();
    std::vector<StatePart> parts;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const StoredTensor &tensor = *tensors[i];
      StatePart part;
      part.name = tensor.name;
      part.type = tensor.type;
      part.experts = byExpert(i);
      part.shard = shardOf(i);
      if (!part.shard.owner)
        continue;
      size_t bytes = rt::bytesOf(part.type);
      for (int64_t d : part.shard.local)
        bytes *= static_cast<size_t>(d);
      part.data = blocks.emplace_back(bytes).data();
      if (Status status = checkpoint.load(part); !status)
        return status;
      parts.push_back(std::move(part));
    }
    return parts;
  }

private:
  const rt::TrainingCheckpoint &checkpoint;
  std::vector<std::vector<uint8_t>> blocks;
};

} // namespace

rt::Expected<const fb::Program *> trainingProgram(const rt::PlanFile &plan,
                                                  const std::string &path) {
  for (const char *name : {"train", "accumulate"})
    if (const fb::Program *program = plan.program(name))
      return program;
  return Status(ErrorId::BadRun, path + " does not train; compile the model with --task=train");
}

std::vector<const fb::State *> savedStates(const rt::PlanFile &plan, const fb::Program &program) {
  std::vector<const fb::State *> saved;
  for (const fb::State *state : rt::statesOf(plan.plan(), program))
    if (!state->transient())
      saved.push_back(state);
  return saved;
}

Status reshard(const rt::TrainingCheckpoint &checkpoint, const std::string &target,
               const ReshardOptions &options) {
  RankMemory memory(checkpoint);
  rt::TrainingProgress progress = checkpoint.manifest().progress;
  std::vector<const StoredTensor *> tensors;
  Staging staging(target);
  rt::CheckpointSaver saver(staging.path());
  if (options.plan.empty()) {
    for (const StoredTensor &tensor : checkpoint.manifest().tensors)
      tensors.push_back(&tensor);
    if (Status status = staging.make(); !status)
      return status;
    auto parts = [&](int rank) {
      return memory.read(
          tensors, [&](size_t i) { return evenShard(*tensors[i], options.ranks, rank); },
          [&](size_t i) { return hasExperts(*tensors[i]); });
    };
    Status status = saver.saveAlone(options.ranks, parts, progress);
    return status ? staging.publish() : status;
  }

  rt::Expected<rt::PlanFile> plan = rt::PlanFile::open(options.plan);
  if (!plan)
    return plan.takeStatus();
  rt::Expected<const fb::Program *> program = trainingProgram(*plan, options.plan);
  if (!program)
    return program.takeStatus();
  std::vector<const fb::State *> states = savedStates(*plan, **program);
  auto shardOf = [&](size_t i, int rank) {
    return rt::MeshPosition(plan->plan(), **program, rank)
        .shard(*states[i]->shape(), *states[i]->dims());
  };
  std::vector<StatePart> wanted;
  for (const fb::State *state : states)
    wanted.push_back(
        {state->name()->str(), state->dtype(), shardOf(wanted.size(), 0), nullptr, false});
  if (Status status = checkpoint.check(wanted); !status)
    return status;
  // In the plan's order, as its own ranks write them.
  for (const StatePart &part : wanted)
    tensors.push_back(checkpoint.manifest().find(part.name));
  if (Status status = staging.make(); !status)
    return status;
  progress.planHash = rt::format("%08x", plan->checksum());
  auto parts = [&](int rank) {
    return memory.read(
        tensors, [&](size_t i) { return shardOf(i, rank); },
        [&](size_t i) {
          return rt::isSavedByExpert(rt::statesOf(plan->plan(), **program), *states[i]);
        });
  };
  Status status = saver.saveAlone(static_cast<int>((*program)->ranks()), parts, progress);
  return status ? staging.publish() : status;
}

} // namespace moira::ckpt
