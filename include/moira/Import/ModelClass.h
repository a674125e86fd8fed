//===- ModelClass.h - model classes as data ---------------------*- C++ -*-===//
// What lib/Import/classes/*.json say (docs/model-classes.md has the format): the fields of a
// class's config, what they mean for the stacks of layers that Moira builds, and what its tensors
// are called.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_MODELCLASS_H
#define MOIRA_IMPORT_MODELCLASS_H

#include "moira/rt/Status.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/JSON.h"
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace moira {

/// One field of config.json.
struct FieldSpec {
  enum class Role {
    used,       ///< read; `type` and ranges hold
    irrelevant, ///< known not to change the forward pass; `reason` says why
    fixed       ///< must have one of the values `only`
  };
  Role role = Role::used;
  std::string type; // int, float, bool, string, int_list, string_list, object
  bool nullable = false;
  bool implied = false; // its absence is not reported as a default taken
  bool stored = false;  // fixed only where there are weights to read: says how they are stored
  /// What other values ask for and Moira lacks: an operation that changes no size, and where.
  std::string operation;
  llvm::json::Value defaultValue = nullptr;
  std::optional<double> min, max, above;  // inclusive, inclusive, exclusive
  std::map<std::string, std::string> map; // spelling in the config → our word
  std::vector<llvm::json::Value> only;
  std::string reason;
};

/// What a weight is for.
enum class WeightRole {
  embedding,
  final_norm,
  head,
  input_norm,
  q,
  k,
  v,
  o,
  q_bias,
  k_bias,
  v_bias,
  o_bias,
  q_norm,
  k_norm,
  post_norm,
  mlp_gate_up,
  mlp_down,
  shared_gate_up,
  shared_down,
  shared_gate,
  router,
  router_bias,        ///< added to the logits
  router_choice_bias, ///< added to the scores where experts are chosen
  expert_gate_up,
  expert_down,
  // What few classes have: these need no name in the others.
  input_norm_bias,
  post_norm_bias,
  final_norm_bias,
  cross_norm,
  cross_norm_bias,
  cross_q,
  cross_k,
  cross_v,
  cross_o,
  cross_q_bias,
  cross_k_bias,
  cross_v_bias,
  cross_o_bias,
  relative_bias,
  stack_embedding, ///< a stack's own, where a model's stacks do not share one
  mlp_up,
  mlp_up_bias,
  mlp_down_bias,
  expert_up,
  expert_up_bias,
  expert_down_bias,
  head_bias,
  mlp_gate_up_bias,
  shared_gate_up_bias,
  shared_down_bias,
  expert_gate_up_bias,
  sinks,
  q_plain,  ///< latent attention: queries' part that is not rotated
  q_turned, ///< and the rotated one, of the layer's input
  q_a,      ///< or: input → compressed query
  q_a_bias,
  q_a_norm,
  q_b_plain, ///< compressed query → the two parts
  q_b_turned,
  kv_a, ///< input → latent of keys and values
  kv_a_bias,
  kv_a_norm,
  k_turned, ///< input → the rotated part of keys
  k_turned_bias,
  k_b, ///< latent → keys
  v_b  ///< latent → values
};
inline constexpr int kWeightRoles = static_cast<int>(WeightRole::v_b) + 1;
/// The first of the roles that a class may lack.
inline constexpr WeightRole kFirstRareRole = WeightRole::input_norm_bias;
llvm::StringRef nameOf(WeightRole role);

/// Names with {l} for the layer and {e} for the expert.
struct TensorNames {
  std::string state;             // the state tensor's name
  std::vector<std::string> from; // names in the checkpoint; more than one: leading dimension
};

/// One way in which checkpoints store the sparse block: names of router, expert_gate_up or
/// expert_up, expert_down, and of their biases where there are any.
struct ExpertLayout {
  std::string name;
  bool transposed = false;  // experts' matrices are [inputs, outputs]
  bool interleaved = false; // gate and up alternate along the outputs
  std::map<WeightRole, std::vector<std::string>> from;
};

/// An operation that a class needs and Moira lacks.
struct LackedOperation {
  std::string operation;
  std::string layers; // that need it, where the config does not have `field`
  /// A field with one word a layer: those with one of `words` need it. Empty: `layers` do.
  std::string field;
  std::vector<std::string> words;
};

struct ModelClass {
  std::string name; // model_type
  /// If there are any, nothing else of the class is known.
  std::vector<LackedOperation> lacks;
  std::map<std::string, FieldSpec> fields;
  std::map<std::string, std::string> aliases; // other spelling → field
  /// Meaning → constant, or "$field".
  std::map<std::string, llvm::json::Value> model;
  std::map<WeightRole, TensorNames> tensors;
  std::vector<ExpertLayout> layouts; // the first is taken where there are no tensors to look at
  std::vector<std::string> unusedTensors; // globs
  /// Of an encoder-decoder: what its encoder's stack has. This class is then the decoder's, and
  /// both have the same fields.
  std::shared_ptr<const ModelClass> encoder;
};

/// The class of this model_type, or null. Classes are read once; the embedded data is checked by
/// parseModelClass.
const ModelClass *findModelClass(llvm::StringRef modelType);

/// All classes that lack nothing, sorted by name.
std::vector<const ModelClass *> allModelClasses();

/// A class from its file's text, with the texts of the files that it includes, the innermost first.
/// Internal errors in `status`: the data is ours.
std::optional<ModelClass> parseModelClass(llvm::StringRef text,
                                          llvm::ArrayRef<llvm::StringRef> included,
                                          llvm::StringRef fileName, rt::Status &status);

} // namespace moira

#endif // MOIRA_IMPORT_MODELCLASS_H
