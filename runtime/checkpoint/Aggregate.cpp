//===- Aggregate.cpp - Aggregation of Experts -----------------------------===//
// Two trained models become one with the experts of both (Kim et al., Scalable and efficient MoE
// training for multitask multilingual models, 2021).
//===----------------------------------------------------------------------===//
#include "SparseLayers.h"
#include "Transforms.h"

#include <algorithm>
#include <set>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::quoteName;
using rt::shapeText;
using rt::Status;

/// Members of a config that name or describe a model without changing its weights' meaning.
const std::set<std::string> kDescriptions = {"_name_or_path", "transformers_version", "torch_dtype",
                                             "dtype"};

class Aggregator {
public:
  Aggregator(const ModelSource &a, const ModelSource &b) : a(a), b(b) {}
  Status problems;
  ModelToWrite model;

  void run() {
    rt::Expected<ClassNames> namesA = ClassNames::of(a.config()),
                             namesB = ClassNames::of(b.config());
    for (rt::Expected<ClassNames> *names : {&namesA, &namesB})
      if (!*names)
        problems.append(names->takeStatus());
    if (!problems)
      return;
    compareConfigs(*namesA);
    rt::Expected<std::vector<SparseLayer>> layersA = findSparseLayers(*namesA, a),
                                           layersB = findSparseLayers(*namesB, b);
    for (auto *layers : {&layersA, &layersB})
      if (!*layers)
        problems.append(layers->takeStatus());
    if (!problems)
      return;
    if (layersA->empty())
      problems.add(ErrorId::BadUsage, a.path() + " has no experts to unite");
    else if (!sameLayers(*layersA, *layersB))
      problems.add(ErrorId::BadUsage,
                   a.path() + " and " + b.path() +
                       " store their experts in different layouts or layers; bring both into one "
                       "with moe-ckpt convert --layout=…");
    if (!problems)
      return;
    for (size_t i = 0; i < layersA->size(); ++i)
      unite((*layersA)[i], (*layersB)[i]);
    average();
    Config config = a.config();
    countExperts(config, *namesA, *namesB, layersA->front());
    model.config = config.text;
    model.companions = a.companions();
  }

private:
  const ModelSource &a, &b;
  std::set<std::string> united; // of both models

  void compareConfigs(const ClassNames &names) {
    std::vector<std::string> counts = names.fieldNames("experts");
    for (const auto &[name, value] : a.config().members.items()) {
      auto other = b.config().members.find(name);
      if (kDescriptions.count(name) || std::ranges::find(counts, name) != counts.end())
        continue;
      if (other == b.config().members.end() || *other != value)
        problems.add(
            ErrorId::BadConfigValue,
            name + " is " + value.dump().substr(0, 100) + " in " + a.config().path + " and " +
                (other == b.config().members.end() ? "absent" : other->dump().substr(0, 100)) +
                " in " + b.config().path + "; only models of one form can be united");
    }
  }

  bool sameLayers(const std::vector<SparseLayer> &first, const std::vector<SparseLayer> &second) {
    if (first.size() != second.size())
      return false;
    for (size_t i = 0; i < first.size(); ++i)
      if (first[i].number != second[i].number || first[i].layout->name != second[i].layout->name ||
          first[i].roles.size() != second[i].roles.size() ||
          first[i].gates.size() != second[i].gates.size())
        return false;
    return true;
  }

  const rt::TensorSpec &ofA(size_t tensor) const { return a.tensors()[tensor]; }
  const rt::TensorSpec &ofB(size_t tensor) const { return b.tensors()[tensor]; }

  /// Same shape but for `expertDim` (−1: no such dimension), and values that can be converted.
  bool fits(const rt::TensorSpec &x, const rt::TensorSpec &y, int expertDim) {
    std::vector<int64_t> shape = y.shape;
    if (expertDim >= 0 && shape.size() == x.shape.size())
      shape[static_cast<size_t>(expertDim)] = x.shape[static_cast<size_t>(expertDim)];
    if (shape != x.shape)
      problems.add(ErrorId::TensorShape, quoteName(x.name) + " is " + shapeText(x.shape) + " in " +
                                             a.path() + " and " + shapeText(y.shape) + " in " +
                                             b.path());
    else if (x.type != y.type && !(isFloat(x.type) && isFloat(y.type)))
      problems.add(ErrorId::TensorDType, quoteName(x.name) + " is " + rt::nameOf(x.type) + " in " +
                                             a.path() + " and " + rt::nameOf(y.type) + " in " +
                                             b.path());
    else
      return true;
    return false;
  }

  void take(const rt::TensorSpec &x, const rt::TensorSpec &y) {
    united.insert(x.name);
    united.insert(y.name);
  }

  /// x, then y, along the experts' dimension.
  void concatenate(size_t x, size_t y, int dim) {
    take(ofA(x), ofB(y));
    if (!fits(ofA(x), ofB(y), dim))
      return;
    Recipe recipe = copyOf(a, x);
    recipe.spec.shape[static_cast<size_t>(dim)] += ofB(y).shape[static_cast<size_t>(dim)];
    recipe.pieces.push_back(whole(b, y));
    model.tensors.push_back(std::move(recipe));
  }

  void unite(const SparseLayer &first, const SparseLayer &second) {
    for (size_t i = 0; i < first.gates.size(); ++i)
      concatenate(first.gates[i], second.gates[i],
                  ofA(first.gates[i]).shape.size() == 2 && ofA(first.gates[i]).shape[0] == 1);
    for (size_t i = 0; i < first.roles.size(); ++i) {
      const SparseLayer::Role &x = first.roles[i], &y = second.roles[i];
      if (!x.names->perExpert()) {
        concatenate(x.tensors.front(), y.tensors.front(), 0);
        continue;
      }
      size_t names = x.names->names.size();
      for (size_t tensor : x.tensors) {
        united.insert(ofA(tensor).name);
        model.tensors.push_back(copyOf(a, tensor));
      }
      for (size_t j = 0; j < y.tensors.size(); ++j) {
        united.insert(ofB(y.tensors[j]).name);
        const rt::TensorSpec &like = ofA(x.tensors[j % names]);
        if (!fits(like, ofB(y.tensors[j]), -1))
          continue;
        Recipe recipe = copyOf(b, y.tensors[j]);
        recipe.spec.type = like.type;
        recipe.spec.name = expandName(x.names->names[j % names], first.layer,
                                      first.experts + static_cast<int64_t>(j / names));
        model.tensors.push_back(std::move(recipe));
      }
    }
  }

  void average() {
    for (size_t x = 0; x < a.tensors().size(); ++x) {
      const rt::TensorSpec &tensor = ofA(x);
      if (united.count(tensor.name))
        continue;
      std::optional<size_t> y = b.find(tensor.name);
      if (!y) {
        problems.add(ErrorId::MissingTensor,
                     b.path() + ": missing tensor " + tensor.name + ", which " + a.path() + " has");
        continue;
      }
      if (!fits(tensor, ofB(*y), -1))
        continue;
      Recipe recipe = copyOf(a, x);
      // Whole numbers (tables of experts by token) have no mean; the first model's stay.
      if (isFloat(tensor.type))
        recipe.others = {whole(b, *y)};
      model.tensors.push_back(std::move(recipe));
    }
    for (const rt::TensorSpec &tensor : b.tensors())
      if (!united.count(tensor.name) && !a.find(tensor.name))
        problems.add(ErrorId::ExtraTensor, b.path() + " has " + quoteName(tensor.name) +
                                               ", which " + a.path() + " lacks");
  }

  void countExperts(Config &config, const ClassNames &namesA, const ClassNames &namesB,
                    const SparseLayer &layer) {
    const StackNames &stack = *layer.stack;
    const StackNames &other = namesB.stacks()[static_cast<size_t>(&stack - namesA.stacks().data())];
    int64_t experts = layer.experts, more = namesB.number(b.config(), other, "experts").value_or(0);
    namesA.setNumber(config, "experts", experts + more);
    int64_t groups = namesA.number(config, stack, "router_groups").value_or(1);
    if (groups <= 1 || namesA.word(config, stack, "router_grouped") == "none")
      return;
    // Each model's groups stay what they are.
    if (more != experts)
      problems.add(ErrorId::BadConfigValue,
                   rt::format("%s has %lld experts in groups, %s has %lld; groups of different "
                              "sizes cannot be united",
                              a.path().c_str(), static_cast<long long>(experts), b.path().c_str(),
                              static_cast<long long>(more)));
    namesA.setNumber(config, "router_groups", 2 * groups);
  }
};

} // namespace

rt::Expected<ModelToWrite> aggregateModels(const ModelSource &a, const ModelSource &b) {
  Aggregator aggregator(a, b);
  aggregator.run();
  if (!aggregator.problems)
    return aggregator.problems;
  return std::move(aggregator.model);
}

} // namespace moira::ckpt
