//===- Prune.cpp - keeping some of the experts ----------------------------===//
#include "SparseLayers.h"
#include "Transforms.h"

#include "moira/rt/Philox.h"

#include <algorithm>
#include <numeric>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::format;
using rt::Status;

class Pruner {
public:
  Pruner(const ModelSource &source, const PruneOptions &options)
      : source(source), options(options) {}
  Status problems;
  ModelToWrite model;
  std::map<int64_t, std::vector<int64_t>> kept;

  void run() {
    rt::Expected<ClassNames> names = ClassNames::of(source.config());
    if (!names) {
      problems = names.takeStatus();
      return;
    }
    rt::Expected<std::vector<SparseLayer>> layers = findSparseLayers(*names, source);
    if (!layers) {
      problems = layers.takeStatus();
      return;
    }
    if (layers->empty())
      problems.add(ErrorId::BadUsage, source.path() + " has no experts to prune");
    checkNumbers(*names, *layers);
    if (!options.mostUsed.empty())
      openUse();
    if (!problems)
      return;
    std::map<size_t, Recipe> changed;
    for (const SparseLayer &layer : *layers) {
      std::vector<int64_t> &list = kept[layer.number];
      list = choose(layer);
      prune(layer, list, changed);
    }
    if (!problems)
      return;
    model = copyModel(source);
    for (auto &[tensor, recipe] : changed)
      model.tensors[tensor] = std::move(recipe);
    // Experts that were dropped have left recipes without a name.
    std::erase_if(model.tensors, [](const Recipe &recipe) { return recipe.spec.name.empty(); });
    Config config = source.config();
    names->setNumber(config, "experts", count());
    model.config = config.text;
  }

private:
  const ModelSource &source;
  const PruneOptions &options;
  int64_t groups = 1;
  std::optional<rt::SafeTensorsFile> use;

  int64_t count() const {
    return options.experts.empty() ? options.keep : static_cast<int64_t>(options.experts.size());
  }

  void checkNumbers(const ClassNames &names, const std::vector<SparseLayer> &layers) {
    if (layers.empty())
      return;
    const SparseLayer &layer = layers.front();
    int64_t experts = layer.experts;
    auto bad = [&](const std::string &what) { problems.add(ErrorId::BadUsage, what); };
    for (int64_t expert : options.experts)
      if (expert >= experts)
        bad(format("--experts: expert %lld is not one of 0..%lld", static_cast<long long>(expert),
                   static_cast<long long>(experts - 1)));
    if (count() < 1 || count() > experts)
      bad(format("%lld experts cannot be kept of %lld", static_cast<long long>(count()),
                 static_cast<long long>(experts)));
    int64_t k = names.number(source.config(), *layer.stack, "router_k").value_or(1);
    if (count() < k)
      bad(format("%lld experts are fewer than the %lld that every token goes to",
                 static_cast<long long>(count()), static_cast<long long>(k)));
    if (names.word(source.config(), *layer.stack, "router_grouped") == "none")
      return;
    groups = std::max<int64_t>(
        1, names.number(source.config(), *layer.stack, "router_groups").value_or(1));
    int64_t groupKeep =
        names.number(source.config(), *layer.stack, "router_group_keep").value_or(1);
    if (experts % groups != 0 || count() % groups != 0)
      bad(format("the gate chooses among %lld groups of experts: keep a multiple of %lld",
                 static_cast<long long>(groups), static_cast<long long>(groups)));
    else if (groups > 1 && count() / groups * groupKeep < k)
      bad(format("%lld groups of %lld experts are fewer than the %lld that every token goes to",
                 static_cast<long long>(groupKeep), static_cast<long long>(count() / groups),
                 static_cast<long long>(k)));
    else if (groups > 1 && count() / groups < 2 &&
             names.word(source.config(), *layer.stack, "router_grouped") == "top2_sum")
      bad("the gate scores groups by their two best experts: keep two in each group");
    if (problems && groups > 1 && !options.experts.empty()) {
      std::map<int64_t, int64_t> each;
      for (int64_t expert : options.experts)
        ++each[expert / (experts / groups)];
      for (int64_t group = 0; group < groups; ++group)
        if (each[group] != count() / groups)
          bad(format("--experts: group %lld of %lld keeps %lld experts, all must keep %lld",
                     static_cast<long long>(group), static_cast<long long>(groups),
                     static_cast<long long>(each[group]),
                     static_cast<long long>(count() / groups)));
    }
  }

  void openUse() {
    rt::Expected<rt::SafeTensorsFile> file = rt::SafeTensorsFile::open(options.mostUsed);
    if (file)
      use = std::move(*file);
    else
      problems.append(file.takeStatus());
  }

  /// How often each expert of a layer was chosen.
  std::vector<uint64_t> usesOf(const SparseLayer &layer) {
    std::vector<uint64_t> uses(static_cast<size_t>(layer.experts));
    std::string name = format("layers.%lld.ids", static_cast<long long>(layer.number));
    auto bad = [&](const std::string &what) {
      problems.add(ErrorId::BadInput, options.mostUsed + ": " + what);
      return uses;
    };
    const rt::TensorInfo *ids = use->find(name);
    if (!ids)
      return bad("no tensor " + name +
                 "; write the file with moe-run --dump-routing and this model");
    if (ids->type != rt::TensorType::i32)
      return bad(name + " is " + rt::nameOf(ids->type) + ", expected I32");
    std::span<const uint8_t> data = use->data(*ids);
    for (size_t at = 0; at < data.size(); at += sizeof(int32_t)) {
      int32_t expert;
      std::memcpy(&expert, data.data() + at, sizeof expert);
      if (expert >= layer.experts || expert < -1)
        return bad(format("%s: expert %d is not one of 0..%lld", name.c_str(), expert,
                          static_cast<long long>(layer.experts - 1)));
      if (expert >= 0) // −1: dropped
        ++uses[static_cast<size_t>(expert)];
    }
    return uses;
  }

  std::vector<int64_t> choose(const SparseLayer &layer) {
    if (!options.experts.empty())
      return options.experts;
    std::vector<uint64_t> score(static_cast<size_t>(layer.experts));
    if (options.random)
      for (size_t e = 0; e < score.size(); ++e)
        score[e] = rt::philox(*options.random, static_cast<uint32_t>(layer.number),
                              static_cast<uint32_t>(e), 0, 0);
    else
      score = usesOf(layer);
    std::vector<int64_t> list;
    int64_t size = layer.experts / groups;
    for (int64_t group = 0; group < groups; ++group) {
      std::vector<int64_t> members(static_cast<size_t>(size));
      std::iota(members.begin(), members.end(), group * size);
      std::stable_sort(members.begin(), members.end(), [&](int64_t x, int64_t y) {
        return score[static_cast<size_t>(x)] > score[static_cast<size_t>(y)];
      });
      list.insert(list.end(), members.begin(), members.begin() + count() / groups);
    }
    std::sort(list.begin(), list.end());
    return list;
  }

  /// The parts of a tensor that belong to the experts of the list, along `dim`.
  Recipe slices(size_t tensor, size_t dim, const std::vector<int64_t> &list) {
    Recipe recipe = copyOf(source, tensor);
    uint64_t each = elementsOf(recipe.spec) / static_cast<uint64_t>(recipe.spec.shape[dim]);
    recipe.pieces.clear();
    for (int64_t expert : list)
      recipe.pieces.push_back({&source, tensor, static_cast<uint64_t>(expert) * each, each});
    recipe.spec.shape[dim] = static_cast<int64_t>(list.size());
    return recipe;
  }

  void prune(const SparseLayer &layer, const std::vector<int64_t> &list,
             std::map<size_t, Recipe> &changed) {
    for (size_t gate : layer.gates) {
      const rt::TensorSpec &tensor = source.tensors()[gate];
      bool isRow = tensor.shape.size() == 2 && tensor.shape[0] == 1;
      changed[gate] = slices(gate, isRow ? 1 : 0, list);
    }
    for (const SparseLayer::Role &role : layer.roles) {
      if (!role.names->perExpert()) {
        changed[role.tensors.front()] = slices(role.tensors.front(), 0, list);
        continue;
      }
      size_t names = role.names->names.size();
      for (size_t tensor : role.tensors)
        changed[tensor] = {};
      for (size_t j = 0; j < list.size(); ++j)
        for (size_t n = 0; n < names; ++n) {
          size_t tensor = role.tensors[static_cast<size_t>(list[j]) * names + n];
          changed[tensor] = copyOf(source, tensor);
          changed[tensor].spec.name =
              expandName(role.names->names[n], layer.layer, static_cast<int64_t>(j));
        }
    }
  }
};

} // namespace

rt::Expected<ModelToWrite> pruneModel(const ModelSource &source, const PruneOptions &options,
                                      std::map<int64_t, std::vector<int64_t>> *kept) {
  Pruner pruner(source, options);
  pruner.run();
  if (!pruner.problems)
    return pruner.problems;
  if (kept)
    *kept = std::move(pruner.kept);
  return std::move(pruner.model);
}

} // namespace moira::ckpt
