//===- SparseLayers.cpp - a model's experts and gates ---------------------===//
#include "SparseLayers.h"

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::format;
using rt::quoteName;
using rt::shapeText;

class Finder {
public:
  Finder(const ClassNames &names, const ModelSource &source) : names(names), source(source) {}
  rt::Status problems;
  std::vector<SparseLayer> result;

  void run() {
    int64_t firstLayer = 0;
    for (const StackNames &stack : names.stacks()) {
      findStack(stack, firstLayer);
      firstLayer += names.number(source.config(), stack, "layers").value_or(0);
    }
  }

private:
  /// A layout's tensors of one layer, as they are found: [role][expert · names + name].
  using Found = std::vector<std::map<int64_t, size_t>>;

  const ClassNames &names;
  const ModelSource &source;

  const std::string &nameOf(size_t tensor) const { return source.tensors()[tensor].name; }

  void findStack(const StackNames &stack, int64_t firstLayer) {
    std::map<int64_t, std::map<size_t, Found>> layers; // layer → layout
    for (size_t tensor = 0; tensor < source.tensors().size(); ++tensor)
      for (size_t l = 0; l < stack.layouts.size(); ++l)
        match(stack.layouts[l], l, tensor, layers);
    if (layers.empty())
      return;
    std::optional<int64_t> experts = names.number(source.config(), stack, "experts");
    if (!experts || *experts < 1) {
      problems.add(
          ErrorId::BadConfigValue,
          source.config().path + " does not say how many experts " +
              quoteName(nameOf(layers.begin()->second.begin()->second[0].begin()->second)) +
              " is one of");
      return;
    }
    for (auto &[layer, layouts] : layers) {
      if (layouts.size() > 1) {
        auto first = layouts.begin(), second = std::next(first);
        problems.add(
            ErrorId::ExtraTensor,
            format("%s: layer %lld stores its experts in two ways: %s (%s) and %s (%s); "
                   "keep one of them",
                   source.path().c_str(), static_cast<long long>(firstLayer + layer),
                   example(first->second).c_str(), stack.layouts[first->first].name.c_str(),
                   example(second->second).c_str(), stack.layouts[second->first].name.c_str()));
        continue;
      }
      const ExpertLayout &layout = stack.layouts[layouts.begin()->first];
      SparseLayer done{&stack, &layout, layer, firstLayer + layer, *experts, {}, {}};
      for (size_t role = 0; role < layout.experts.size(); ++role)
        addRole(done, layout.experts[role], layouts.begin()->second[role]);
      addGates(done);
      result.push_back(std::move(done));
    }
  }

  std::string example(const Found &found) const {
    for (const auto &role : found)
      if (!role.empty())
        return quoteName(nameOf(role.begin()->second));
    return "";
  }

  void match(const ExpertLayout &layout, size_t number, size_t tensor,
             std::map<int64_t, std::map<size_t, Found>> &layers) {
    for (size_t role = 0; role < layout.experts.size(); ++role) {
      const std::vector<std::string> &patterns = layout.experts[role].names;
      for (size_t n = 0; n < patterns.size(); ++n) {
        int64_t layer = 0, expert = 0;
        if (!matchName(patterns[n], nameOf(tensor), layer, expert) || expert > 1'000'000)
          continue;
        Found &found = layers[layer][number];
        found.resize(layout.experts.size());
        found[role][expert * static_cast<int64_t>(patterns.size()) + static_cast<int64_t>(n)] =
            tensor;
      }
    }
  }

  void addRole(SparseLayer &layer, const RoleNames &role, const std::map<int64_t, size_t> &found) {
    if (found.empty() && role.isBias())
      return;
    int64_t names = static_cast<int64_t>(role.names.size());
    int64_t wanted = names * (role.perExpert() ? layer.experts : 1);
    SparseLayer::Role out{&role, {}};
    for (int64_t i = 0; i < wanted; ++i) {
      auto it = found.find(i);
      if (it == found.end())
        problems.add(ErrorId::MissingTensor,
                     source.path() + ": missing tensor " +
                         expandName(role.names[i % names], layer.layer, i / names));
      else
        out.tensors.push_back(it->second);
      if (problems.diagnostics().size() > 100)
        return; // of what nobody will read
    }
    for (auto it = found.lower_bound(wanted); it != found.end(); ++it)
      problems.add(ErrorId::ExtraTensor,
                   format("%s: %s is there, but the config has %lld experts", source.path().c_str(),
                          quoteName(nameOf(it->second)).c_str(),
                          static_cast<long long>(layer.experts)));
    if (static_cast<int64_t>(out.tensors.size()) == wanted)
      checkRole(layer, out);
    layer.roles.push_back(std::move(out));
  }

  /// One shape and type for all experts.
  void checkRole(const SparseLayer &layer, const SparseLayer::Role &role) {
    size_t names = role.names->names.size();
    for (size_t i = 0; i < role.tensors.size(); ++i) {
      const rt::TensorSpec &tensor = source.tensors()[role.tensors[i]];
      const rt::TensorSpec &first = source.tensors()[role.tensors[i % names]];
      if (tensor.shape.empty() ||
          (!role.names->perExpert() && tensor.shape.front() != layer.experts))
        wrongShape(tensor, format("%lld experts", static_cast<long long>(layer.experts)));
      else if (tensor.shape != first.shape)
        wrongShape(tensor, shapeText(first.shape) + " as " + quoteName(first.name));
      else if (tensor.type != first.type)
        problems.add(ErrorId::TensorDType,
                     format("%s: %s is %s, but %s is %s; store all experts in one type",
                            source.path().c_str(), quoteName(tensor.name).c_str(),
                            rt::nameOf(tensor.type), quoteName(first.name).c_str(),
                            rt::nameOf(first.type)));
    }
  }

  void addGates(SparseLayer &layer) {
    std::string router = expandName(layer.layout->router, layer.layer);
    std::optional<size_t> found = source.find(router);
    if (!found)
      problems.add(ErrorId::MissingTensor, source.path() + ": missing tensor " + router);
    else
      addGate(layer, *found);
    for (const std::string &pattern : layer.stack->gateBiases)
      if (std::optional<size_t> bias = source.find(expandName(pattern, layer.layer)))
        addGate(layer, *bias);
  }

  void addGate(SparseLayer &layer, size_t number) {
    const rt::TensorSpec &tensor = source.tensors()[number];
    bool isRow = tensor.shape.size() == 2 && tensor.shape[0] == 1;
    if (tensor.shape.empty() || tensor.shape[isRow ? 1 : 0] != layer.experts)
      wrongShape(tensor, format("%lld experts", static_cast<long long>(layer.experts)));
    layer.gates.push_back(number);
  }

  void wrongShape(const rt::TensorSpec &tensor, const std::string &expected) {
    problems.add(ErrorId::TensorShape, source.path() + ": " + quoteName(tensor.name) + " is " +
                                           shapeText(tensor.shape) + ", expected " + expected);
  }
};

} // namespace

rt::Expected<std::vector<SparseLayer>> findSparseLayers(const ClassNames &names,
                                                        const ModelSource &source) {
  Finder finder(names, source);
  finder.run();
  if (!finder.problems)
    return finder.problems;
  return std::move(finder.result);
}

} // namespace moira::ckpt
