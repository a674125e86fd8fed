//===- ClassNames.h - what a class calls experts and gates ------*- C++ -*-===//
// The part of a model class's data (docs/model-classes.md) that changing a checkpoint needs: the
// names of experts' and gates' tensors in every layout, and which config fields count experts. The
// same files are what the compiler's importer reads.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_CLASSNAMES_H
#define MOIRA_CHECKPOINT_CLASSNAMES_H

#include "Config.h"

#include <map>
#include <optional>
#include <vector>

namespace moira::ckpt {

/// The names of one role's tensors, with {l} for the layer and, where each expert has tensors of
/// its own, {e} for the expert. Several names (gate and up) are one after the other in a stack.
struct RoleNames {
  std::string role; // "expert_gate_up", …
  std::vector<std::string> names;
  bool perExpert() const { return names.front().find("{e}") != std::string::npos; }
  bool isBias() const { return role.ends_with("_bias"); }
};

/// One way to store the experts.
struct ExpertLayout {
  std::string name;
  bool plain = true; // matrices are [outputs, inputs], gate before up
  std::string router;
  std::vector<RoleNames> experts;
  bool perExpert() const { return experts.front().perExpert(); }
};

/// A model's encoder, decoder, or only stack of layers.
struct StackNames {
  std::vector<ExpertLayout> layouts;
  std::vector<std::string> gateBiases;         // patterns
  std::map<std::string, nlohmann::json> model; // meaning → constant or "$field"
};

class ClassNames {
public:
  /// The class of this config. MissingConfigField, UnknownModelClass, BadConfigValue.
  static rt::Expected<ClassNames> of(const Config &config);

  const std::string &name() const { return className; }
  /// An encoder's before its decoder's.
  const std::vector<StackNames> &stacks() const { return allStacks; }

  /// What the config says of `meaning` in this stack as a whole number; none where it is null or
  /// not one.
  std::optional<int64_t> number(const Config &config, const StackNames &stack,
                                const std::string &meaning) const;
  /// The same as a word of ours.
  std::string word(const Config &config, const StackNames &stack, const std::string &meaning) const;
  /// The config fields, under all their names, that `meaning` refers to.
  std::vector<std::string> fieldNames(const std::string &meaning) const;
  /// Sets the field that `meaning` refers to, under the name that the config has.
  void setNumber(Config &config, const std::string &meaning, int64_t value) const;

private:
  void read(const nlohmann::json &file, StackNames &stack);
  nlohmann::json value(const Config &config, const StackNames &stack,
                       const std::string &meaning) const;

  std::string className;
  std::vector<StackNames> allStacks;
  std::map<std::string, nlohmann::json> fields;
  std::map<std::string, nlohmann::json> tensors; // while reading
};

/// `pattern` with {l} and {e} replaced.
std::string expandName(const std::string &pattern, int64_t layer, int64_t expert = -1);

/// Whether `name` is `pattern` for some layer and expert, which it sets where the pattern has them.
bool matchName(std::string_view pattern, std::string_view name, int64_t &layer, int64_t &expert);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_CLASSNAMES_H
