//===- Weights.cpp - from checkpoint tensors to state tensors -------------===//
// Source rules: docs/architecture.md section 1 and plan.fbs.
//===----------------------------------------------------------------------===//
#include "moira/rt/Weights.h"

#include <algorithm>

namespace moira::rt {
namespace {

/// The leading dimensions of a state tensor, that choose a checkpoint tensor.
struct Leading {
  int64_t experts = 1, names = 1;
  size_t dims = 0;
  bool perExpert = false, list = false;
  explicit Leading(const fb::State &state) {
    const fb::Source &source = *state.source();
    perExpert = source.per_expert();
    list = source.names()->size() > 1;
    if (perExpert)
      experts = state.shape()->Get(dims++);
    names = source.names()->size();
    dims += list;
  }
};

std::vector<int64_t> toVector(const flatbuffers::Vector<int64_t> &v) {
  return {v.begin(), v.end()};
}

} // namespace

std::optional<fb::DType> planType(TensorType type) {
  switch (type) {
  case TensorType::f32:
    return fb::DType::f32;
  case TensorType::f16:
    return fb::DType::f16;
  case TensorType::bf16:
    return fb::DType::bf16;
  case TensorType::f64:
    return fb::DType::f64;
  case TensorType::i32:
    return fb::DType::i32;
  case TensorType::i64:
    return fb::DType::i64;
  case TensorType::u8:
  case TensorType::boolean:
    return fb::DType::u8;
  default:
    return std::nullopt;
  }
}

std::string sourceName(std::string_view pattern, int64_t expert) {
  size_t at = pattern.find("{e}");
  if (at == std::string_view::npos)
    return std::string(pattern);
  std::string name(pattern.substr(0, at));
  return name.append(std::to_string(expert)).append(pattern.substr(at + 3));
}

Status checkWeights(const fb::Program &program, const Checkpoint &checkpoint) {
  Status problems;
  size_t count = 0;
  constexpr size_t kEnough = 1000;
  auto add = [&](ErrorId id, const std::string &what) {
    if (count++ < kEnough)
      problems.add(id, what);
  };
  std::vector<bool> used(checkpoint.tensors().size(), false);
  for (const fb::State *state : *program.states()) {
    if (!state->source())
      continue;
    const fb::Source &source = *state->source();
    Leading leading(*state);
    std::vector<int64_t> disk = toVector(*source.disk_shape());
    for (int64_t e = 0; e < leading.experts && count < kEnough; ++e) {
      for (const flatbuffers::String *pattern : *source.names()) {
        std::string name = sourceName(pattern->string_view(), e);
        const Checkpoint::Entry *entry = checkpoint.find(name);
        if (!entry) {
          add(ErrorId::MissingTensor,
              format("%s: tensor %s %s is missing, state %s needs it", checkpoint.path().c_str(),
                     quoteName(name).c_str(), shapeText(disk).c_str(), state->name()->c_str()));
          continue;
        }
        used[entry - checkpoint.tensors().data()] = true;
        const TensorInfo &info = *entry->info;
        if (info.shape != disk)
          add(ErrorId::TensorShape, format("%s: tensor %s has shape %s, the plan expects %s",
                                           entry->file->path().c_str(), quoteName(name).c_str(),
                                           shapeText(info.shape).c_str(), shapeText(disk).c_str()));
        if (info.type != TensorType::f32 && info.type != TensorType::bf16 &&
            info.type != TensorType::f16)
          add(ErrorId::TensorDType,
              format("%s: tensor %s is %s; F32, BF16 and F16 can be loaded",
                     entry->file->path().c_str(), quoteName(name).c_str(), nameOf(info.type)));
      }
    }
  }
  for (size_t i = 0; i < used.size(); ++i)
    if (!used[i])
      add(ErrorId::ExtraTensor,
          format("%s: tensor %s %s is not used by the plan; was it compiled from this model?",
                 checkpoint.tensors()[i].file->path().c_str(),
                 quoteName(checkpoint.tensors()[i].info->name).c_str(),
                 shapeText(checkpoint.tensors()[i].info->shape).c_str()));
  if (count > kEnough)
    problems.add(
        problems.diagnostics().front().id,
        format("%s: and %zu more problems at least", checkpoint.path().c_str(), count - kEnough));
  return problems;
}

void loadState(const fb::State &state, const Shard &shard, const Checkpoint &checkpoint,
               fb::DType type, void *data) {
  if (!state.source())
    return;
  const fb::Source &source = *state.source();
  Leading leading(state);
  auto tail = [&](const std::vector<int64_t> &v) {
    return std::vector<int64_t>(v.begin() + leading.dims, v.end());
  };
  Box onDisk{tail(shard.global), tail(shard.start), tail(shard.valid)};
  Box inBlock{tail(shard.local), std::vector<int64_t>(onDisk.shape.size(), 0), onDisk.extent};
  int64_t blockElements = 1;
  for (int64_t d : inBlock.shape)
    blockElements *= d;

  size_t listDim = leading.perExpert ? 1 : 0;
  int64_t firstExpert = leading.perExpert ? shard.start[0] : 0;
  int64_t experts = leading.perExpert ? shard.valid[0] : 1;
  int64_t firstName = leading.list ? shard.start[listDim] : 0;
  int64_t names = leading.list ? shard.valid[listDim] : 1;
  int64_t localNames = leading.list ? shard.local[listDim] : 1;
  for (int64_t e = 0; e < experts; ++e)
    for (int64_t j = 0; j < names; ++j) {
      std::string name =
          sourceName(source.names()->Get(firstName + j)->string_view(), firstExpert + e);
      const Checkpoint::Entry &entry = *checkpoint.find(name);
      char *block = static_cast<char *>(data) +
                    (e * localNames + j) * blockElements * static_cast<int64_t>(bytesOf(type));
      convertBox(inBlock, block, type, onDisk, checkpoint.data(entry).data(),
                 *planType(entry.info->type));
    }
}

} // namespace moira::rt
