//===- TrainingSource.cpp - a training checkpoint as a model --------------===//
#include "TrainingSource.h"

#include "Reshard.h"
#include "moira/rt/PlanFile.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>

namespace moira::ckpt {
namespace {

using rt::Status;

rt::TensorType fileType(fb::DType type) {
  return type == fb::DType::f32    ? rt::TensorType::f32
         : type == fb::DType::bf16 ? rt::TensorType::bf16
         : type == fb::DType::f16  ? rt::TensorType::f16
         : type == fb::DType::i32  ? rt::TensorType::i32
         : type == fb::DType::i64  ? rt::TensorType::i64
                                   : rt::TensorType::f64;
}

class TrainingSource final : public ModelSource {
public:
  TrainingSource(rt::TrainingCheckpoint checkpoint, rt::PlanFile plan, const fb::Program &program,
                 Config config, std::vector<std::string> companions)
      : checkpoint(std::move(checkpoint)), plan(std::move(plan)), itsConfig(std::move(config)),
        itsCompanions(std::move(companions)) {
    std::map<std::string, std::pair<rt::TensorSpec, std::vector<Part>>> byName;
    for (const fb::State *state : savedStates(this->plan, program))
      if (state->source())
        addState(*state, byName);
    for (auto &[name, tensor] : byName) {
      specs.push_back(std::move(tensor.first));
      parts.push_back(std::move(tensor.second));
    }
  }

  const std::string &path() const override { return checkpoint.path(); }
  const Config &config() const override { return itsConfig; }
  const std::vector<rt::TensorSpec> &tensors() const override { return specs; }
  std::vector<std::string> companions() const override { return itsCompanions; }

  Status read(size_t tensor, uint64_t offset, std::span<uint8_t> to) const override {
    if (present != tensor)
      if (Status status = fetch(tensor); !status)
        return status;
    std::memcpy(to.data(), bytes.data() + offset, to.size());
    return {};
  }

private:
  /// A block of a state that lies in a tensor.
  struct Part {
    const fb::State *state;
    rt::Shard shard;
  };

  template <typename Map> static void addState(const fb::State &state, Map &byName) {
    const fb::Source &source = *state.source();
    std::vector<int64_t> shape(state.shape()->begin(), state.shape()->end());
    std::vector<int64_t> disk(source.disk_shape()->begin(), source.disk_shape()->end());
    rt::Shard block;
    block.global = block.local = shape;
    block.start.assign(shape.size(), 0);
    // The leading dimensions count the experts and the names.
    size_t names = source.names()->size(), leading = source.per_expert() ? 1 : 0;
    if (names > 1)
      ++leading;
    std::fill_n(block.local.begin(), leading, 1);
    block.valid = block.local;
    std::vector<std::string> all = rt::sourceNames(source, shape);
    for (size_t i = 0; i < all.size(); ++i) {
      if (source.per_expert())
        block.start[0] = static_cast<int64_t>(i / names);
      if (names > 1)
        block.start[leading - 1] = static_cast<int64_t>(i % names);
      auto &tensor = byName[all[i]];
      tensor.first = {all[i], fileType(state.dtype()), disk};
      tensor.second.push_back({&state, block});
    }
  }

  /// Puts a whole tensor together.
  Status fetch(size_t tensor) const {
    present.reset();
    bytes.assign(bytesOf(specs[tensor].type, elementsOf(specs[tensor])), 0);
    for (const Part &part : parts[tensor]) {
      fb::DType type = part.state->dtype();
      size_t size = rt::bytesOf(type);
      size_t elements = 1;
      for (int64_t d : part.shard.local)
        elements *= static_cast<size_t>(d);
      std::vector<uint8_t> block(elements * size);
      rt::StatePart wanted{part.state->name()->str(), type, part.shard, block.data(), false};
      if (Status status = checkpoint.load(wanted); !status)
        return status;
      rt::forEachPiece(
          *part.state, part.shard, nullptr, INT64_MAX, [&](const rt::WeightPiece &piece) {
            const uint8_t *from = block.data() + static_cast<size_t>(piece.offset) * size;
            if (piece.permute.empty())
              rt::copyBox(piece.onDisk, bytes.data(), piece.inPiece, from, size);
            else
              permuted(piece, from, size);
          });
    }
    present = tensor;
    return {};
  }

  void permuted(const rt::WeightPiece &piece, const uint8_t *from, size_t size) const {
    rt::PieceInFile inFile = piece.inFileOrder();
    rt::forEachRun(
        inFile.box, rt::Box::all(inFile.box.extent), [&](int64_t to, int64_t first, int64_t count) {
          for (int64_t i = 0; i < count; ++i)
            std::memcpy(bytes.data() + static_cast<size_t>(to + i) * size,
                        from + static_cast<size_t>(inFile.elements[first + i]) * size, size);
        });
  }

  rt::TrainingCheckpoint checkpoint;
  rt::PlanFile plan;
  Config itsConfig;
  std::vector<std::string> itsCompanions;
  std::vector<rt::TensorSpec> specs;
  std::vector<std::vector<Part>> parts; // of each
  mutable std::optional<size_t> present;
  mutable std::vector<uint8_t> bytes; // of that one
};

} // namespace

/// Whether the plan trains a model of no class: one that is described in Python or in the dialect.
static bool trainsOwnModel(const rt::PlanFile &plan) {
  const flatbuffers::String *trained = plan.plan().info()->model_class();
  return !trained || trained->size() == 0 || trained->string_view() == "custom";
}

/// BadConfigValue if the config is of another class than the model that the plan trains.
static Status checkClass(const Config &config, const rt::PlanFile &plan,
                         const std::string &planPath) {
  if (trainsOwnModel(plan))
    return {};
  const flatbuffers::String *trained = plan.plan().info()->model_class();
  auto type = config.members.find("model_type");
  if (type != config.members.end() && *type == trained->str())
    return {};
  return Status(rt::ErrorId::BadConfigValue,
                config.path + ": model_type is " +
                    (type == config.members.end() ? "missing" : type->dump()) + ", but " +
                    planPath + " trains a model of the class " + trained->str() +
                    "; --model is the one that the plan was compiled from");
}

rt::Expected<std::unique_ptr<ModelSource>> openTrainingModel(const std::string &directory,
                                                             const std::string &planPath,
                                                             const std::string &model) {
  Status problems;
  rt::Expected<rt::TrainingCheckpoint> checkpoint = rt::TrainingCheckpoint::open(directory);
  if (!checkpoint)
    problems.append(checkpoint.takeStatus());
  std::error_code error;
  bool isDirectory = std::filesystem::is_directory(model, error);
  std::string configPath = isDirectory ? model + "/config.json" : model;
  rt::Expected<rt::PlanFile> plan = rt::PlanFile::open(planPath);
  // The directory of an own model need not have a config.
  bool lacksConfig =
      isDirectory && plan && trainsOwnModel(*plan) && !std::filesystem::exists(configPath, error);
  rt::Expected<Config> config =
      lacksConfig ? rt::Expected<Config>(Config{configPath, "{}", nlohmann::ordered_json::object()})
                  : Config::open(configPath);
  if (!config)
    problems.append(config.takeStatus());
  if (!plan)
    problems.append(plan.takeStatus());
  if (!problems)
    return problems;
  if (Status status = checkClass(*config, *plan, planPath); !status)
    return status;
  rt::Expected<const fb::Program *> program = trainingProgram(*plan, planPath);
  if (!program)
    return program.takeStatus();
  std::vector<rt::StatePart> wanted;
  rt::MeshPosition first(plan->plan(), **program, 0);
  for (const fb::State *state : savedStates(*plan, **program))
    wanted.push_back({state->name()->str(), state->dtype(),
                      first.shard(*state->shape(), *state->dims()), nullptr, false});
  if (Status status = checkpoint->check(wanted); !status)
    return status;
  config->setType(rt::TensorType::f32);
  return std::unique_ptr<ModelSource>(std::make_unique<TrainingSource>(
      std::move(*checkpoint), std::move(*plan), **program, std::move(*config),
      isDirectory ? companionsOf(model) : std::vector<std::string>()));
}

} // namespace moira::ckpt
