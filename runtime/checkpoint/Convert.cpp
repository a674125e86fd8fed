//===- Convert.cpp - the same model in another layout or type -------------===//
#include "SparseLayers.h"
#include "Transforms.h"

#include <set>

namespace moira::ckpt {
namespace {

using rt::ErrorId;
using rt::Status;

/// The layout that the user means; null if the stack's class has none.
const ExpertLayout *layoutOf(const StackNames &stack, const std::string &name) {
  for (const ExpertLayout &layout : stack.layouts)
    if (layout.name == name || (name == "separate" && layout.perExpert()) ||
        (name == "stacked" && !layout.perExpert()))
      return &layout;
  return nullptr;
}

Status noLayout(const SparseLayer &layer, const std::string &className, const std::string &name) {
  std::string known;
  for (const ExpertLayout &layout : layer.stack->layouts)
    known += (known.empty() ? "\"" : ", \"") + layout.name + "\"";
  return Status(ErrorId::BadUsage, "--layout=" + name + ": " + className +
                                       " stores its experts as " + known + "; take one of these");
}

/// Adds the tensors of one role of one layer, stored as `to`. Names of one expert that follow each
/// other in a stack are its parts along dimension 0.
Status addRole(const ModelSource &source, const SparseLayer &layer, const SparseLayer::Role &role,
               const RoleNames &to, std::vector<Recipe> &out) {
  const RoleNames &from = *role.names;
  const rt::TensorSpec &first = source.tensors()[role.tensors.front()];
  int64_t parts = static_cast<int64_t>(to.names.size());
  auto name = [&](int64_t part, int64_t expert) {
    return expandName(to.names[static_cast<size_t>(part)], layer.layer, expert);
  };
  if (from.perExpert() == to.perExpert()) {
    for (size_t i = 0; i < role.tensors.size(); ++i) {
      Recipe recipe = copyOf(source, role.tensors[i]);
      recipe.spec.name = name(static_cast<int64_t>(i) % parts, static_cast<int64_t>(i) / parts);
      out.push_back(std::move(recipe));
    }
    return {};
  }
  if (from.perExpert()) {
    Recipe stack;
    stack.spec = {name(0, -1), first.type, first.shape};
    stack.spec.shape[0] *= static_cast<int64_t>(from.names.size());
    stack.spec.shape.insert(stack.spec.shape.begin(), layer.experts);
    for (size_t tensor : role.tensors)
      stack.pieces.push_back(whole(source, tensor));
    out.push_back(std::move(stack));
    return {};
  }
  std::vector<int64_t> shape(first.shape.begin() + 1, first.shape.end());
  if (shape.empty() || shape[0] % parts != 0)
    return Status(ErrorId::TensorShape,
                  rt::format("%s: %s is %s, which is not %lld parts for each expert",
                             source.path().c_str(), rt::quoteName(first.name).c_str(),
                             rt::shapeText(first.shape).c_str(), static_cast<long long>(parts)));
  shape[0] /= parts;
  uint64_t each = elementsOf({"", first.type, shape});
  for (int64_t e = 0; e < layer.experts; ++e)
    for (int64_t part = 0; part < parts; ++part)
      out.push_back(
          {{name(part, e), first.type, shape},
           {{&source, role.tensors.front(), static_cast<uint64_t>(e * parts + part) * each, each}},
           {}});
  return {};
}

Status changeLayout(const ModelSource &source, const std::string &name, ModelToWrite &model) {
  rt::Expected<ClassNames> names = ClassNames::of(source.config());
  if (!names)
    return names.takeStatus();
  rt::Expected<std::vector<SparseLayer>> layers = findSparseLayers(*names, source);
  if (!layers)
    return layers.takeStatus();
  if (layers->empty())
    return Status(ErrorId::BadUsage, "--layout=" + name + ": " + source.path() + " has no experts");
  std::set<std::string> replaced;
  std::vector<Recipe> added;
  for (const SparseLayer &layer : *layers) {
    const ExpertLayout *to = layoutOf(*layer.stack, name);
    // Data of classes that mix the two kinds do not exist: nobody publishes such checkpoints.
    if (!to || to->plain != layer.layout->plain)
      return noLayout(layer, names->name(), name);
    for (size_t gate : layer.gates)
      if (source.tensors()[gate].name == expandName(layer.layout->router, layer.layer)) {
        replaced.insert(source.tensors()[gate].name);
        Recipe router = copyOf(source, gate);
        router.spec.name = expandName(to->router, layer.layer);
        added.push_back(std::move(router));
      }
    for (const SparseLayer::Role &role : layer.roles) {
      auto target = std::find_if(to->experts.begin(), to->experts.end(),
                                 [&](const RoleNames &r) { return r.role == role.names->role; });
      if (target == to->experts.end())
        return noLayout(layer, names->name(), name);
      for (size_t tensor : role.tensors)
        replaced.insert(source.tensors()[tensor].name);
      if (Status status = addRole(source, layer, role, *target, added); !status)
        return status;
    }
  }
  std::erase_if(model.tensors,
                [&](const Recipe &recipe) { return replaced.count(recipe.spec.name); });
  std::move(added.begin(), added.end(), std::back_inserter(model.tensors));
  return {};
}

} // namespace

ModelToWrite copyModel(const ModelSource &source) {
  ModelToWrite model;
  model.config = source.config().text;
  model.companions = source.companions();
  for (size_t tensor = 0; tensor < source.tensors().size(); ++tensor)
    model.tensors.push_back(copyOf(source, tensor));
  return model;
}

rt::Expected<ModelToWrite> convertModel(const ModelSource &source, const ConvertOptions &options) {
  ModelToWrite model = copyModel(source);
  if (!options.layout.empty())
    if (Status status = changeLayout(source, options.layout, model); !status)
      return status;
  if (options.type) {
    for (Recipe &recipe : model.tensors)
      if (isFloat(recipe.spec.type))
        recipe.spec.type = *options.type;
    Config config = source.config();
    config.setType(*options.type);
    model.config = config.text;
  }
  return model;
}

} // namespace moira::ckpt
