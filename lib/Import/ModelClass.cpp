//===- ModelClass.cpp - model classes as data -----------------------------===//
// Reading the embedded class files. They are ours, so a mistake in them is an internal error.
//===----------------------------------------------------------------------===//
#include "moira/Import/ModelClass.h"
#include "EmbeddedClasses.h"
#include "moira/Import/ConfigJson.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/ErrorHandling.h"

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::Status;

static constexpr const char *kRoleNames[] = {"embedding",
                                             "final_norm",
                                             "head",
                                             "input_norm",
                                             "q",
                                             "k",
                                             "v",
                                             "o",
                                             "q_bias",
                                             "k_bias",
                                             "v_bias",
                                             "o_bias",
                                             "q_norm",
                                             "k_norm",
                                             "post_norm",
                                             "mlp_gate_up",
                                             "mlp_down",
                                             "shared_gate_up",
                                             "shared_down",
                                             "shared_gate",
                                             "router",
                                             "router_bias",
                                             "router_choice_bias",
                                             "expert_gate_up",
                                             "expert_down",
                                             "input_norm_bias",
                                             "post_norm_bias",
                                             "final_norm_bias",
                                             "cross_norm",
                                             "cross_norm_bias",
                                             "cross_q",
                                             "cross_k",
                                             "cross_v",
                                             "cross_o",
                                             "cross_q_bias",
                                             "cross_k_bias",
                                             "cross_v_bias",
                                             "cross_o_bias",
                                             "relative_bias",
                                             "stack_embedding",
                                             "mlp_up",
                                             "mlp_up_bias",
                                             "mlp_down_bias",
                                             "expert_up",
                                             "expert_up_bias",
                                             "expert_down_bias",
                                             "head_bias",
                                             "mlp_gate_up_bias",
                                             "shared_gate_up_bias",
                                             "shared_down_bias",
                                             "expert_gate_up_bias",
                                             "sinks",
                                             "q_plain",
                                             "q_turned",
                                             "q_a",
                                             "q_a_bias",
                                             "q_a_norm",
                                             "q_b_plain",
                                             "q_b_turned",
                                             "kv_a",
                                             "kv_a_bias",
                                             "kv_a_norm",
                                             "k_turned",
                                             "k_turned_bias",
                                             "k_b",
                                             "v_b"};
static_assert(std::size(kRoleNames) == kWeightRoles);

StringRef moira::nameOf(WeightRole role) { return kRoleNames[static_cast<int>(role)]; }

namespace {

std::optional<WeightRole> roleOf(StringRef name) {
  for (auto [i, known] : enumerate(kRoleNames))
    if (name == known)
      return static_cast<WeightRole>(i);
  return std::nullopt;
}

/// Reads one class; every deviation from the format is a problem.
class ClassReader {
public:
  ClassReader(StringRef file, Status &status) : file(file), status(status) {}
  ModelClass result;

  void read(const json::Object &top) {
    for (const auto &member : top) {
      StringRef key = member.first;
      const json::Value &value = member.second;
      if (key == "model_type")
        result.name = text(value, key);
      else if (key == "include")
        continue;
      else if (key == "encoder")
        encoder.push_back(value);
      else if (key == "fields")
        forEach(value, key, [&](StringRef name, const json::Value &v) { field(name, v); });
      else if (key == "model")
        forEach(value, key, [&](StringRef name, const json::Value &v) {
          result.model.insert_or_assign(name.str(), v);
        });
      else if (key == "tensors")
        forEach(value, key, [&](StringRef name, const json::Value &v) { tensor(name, v); });
      else if (key == "layouts")
        layouts(value);
      else if (key == "lacks")
        lacks(value);
      else if (key == "unused_tensors")
        result.unusedTensors = strings(value, key);
      else
        fail("unknown key " + key);
    }
  }

  /// What stands under `encoder`, in the order of the files.
  std::vector<json::Value> encoder;

  /// "{s}" in names becomes the stack's.
  void nameStack(StringRef stack) {
    auto rename = [&](std::string &name) {
      for (size_t at; (at = name.find("{s}")) != std::string::npos;)
        name.replace(at, 3, stack.str());
    };
    for (auto &[role, names] : result.tensors) {
      rename(names.state);
      for_each(names.from, rename);
    }
    for (ExpertLayout &layout : result.layouts)
      for (auto &[role, from] : layout.from)
        for_each(from, rename);
  }

  /// What only the whole (class and included files) can say.
  void check() {
    if (result.name.empty())
      fail("model_type is missing");
    if (!result.lacks.empty())
      return;
    if (result.layouts.empty())
      fail("layouts are missing");
    for (int i = 0; i < static_cast<int>(kFirstRareRole); ++i)
      if (!result.tensors.count(static_cast<WeightRole>(i)))
        fail("tensors has no " + StringRef(kRoleNames[i]));
    for (const auto &[meaning, value] : result.model)
      if (std::optional<StringRef> ref = value.getAsString(); ref && ref->starts_with("$")) {
        auto it = result.fields.find(ref->drop_front().str());
        if (it == result.fields.end() || it->second.role != FieldSpec::Role::used)
          fail("model: " + meaning + " refers to " + *ref + ", which is no used field");
      }
  }

private:
  StringRef file;
  Status &status;

  void fail(const Twine &message) {
    status.add(ErrorId::Internal, ("model class " + file + ": " + message).str());
  }
  std::string text(const json::Value &value, StringRef where) {
    if (std::optional<StringRef> string = value.getAsString())
      return string->str();
    fail(where + " must be a string");
    return "";
  }
  std::vector<std::string> strings(const json::Value &value, StringRef where) {
    std::vector<std::string> out;
    if (const json::Array *array = value.getAsArray())
      for (const json::Value &element : *array)
        out.push_back(text(element, where));
    else
      fail(where + " must be a list");
    return out;
  }
  template <typename F> void forEach(const json::Value &value, StringRef where, F &&visit) {
    if (const json::Object *object = value.getAsObject())
      for (const auto &member : *object)
        visit(StringRef(member.first), member.second);
    else
      fail(where + " must be an object");
  }

  void field(StringRef name, const json::Value &value) {
    FieldSpec spec;
    bool typed = false;
    forEach(value, name, [&](StringRef key, const json::Value &v) {
      if (key == "type") {
        spec.type = text(v, name);
        typed = is_contained(
            {"int", "float", "bool", "string", "int_list", "string_list", "object"}, spec.type);
      } else if (key == "nullable") {
        spec.nullable = v.getAsBoolean().value_or(false);
      } else if (key == "implied") {
        spec.implied = v.getAsBoolean().value_or(false);
      } else if (key == "operation") {
        spec.operation = text(v, name);
      } else if (key == "stored") {
        spec.stored = v.getAsBoolean().value_or(false);
      } else if (key == "default") {
        spec.defaultValue = v;
      } else if (key == "min") {
        spec.min = v.getAsNumber();
      } else if (key == "max") {
        spec.max = v.getAsNumber();
      } else if (key == "above") {
        spec.above = v.getAsNumber();
      } else if (key == "map") {
        forEach(v, key, [&](StringRef from, const json::Value &to) {
          spec.map[from.str()] = text(to, name);
        });
      } else if (key == "aliases") {
        for (const std::string &alias : strings(v, name))
          result.aliases[alias] = name.str();
      } else if (key == "irrelevant") {
        spec.role = FieldSpec::Role::irrelevant;
        spec.reason = text(v, name);
      } else if (key == "only") {
        spec.role = FieldSpec::Role::fixed;
        if (const json::Array *array = v.getAsArray())
          spec.only.assign(array->begin(), array->end());
      } else {
        fail("field " + name + ": unknown key " + key);
      }
    });
    if (typed != (spec.role == FieldSpec::Role::used) ||
        (spec.role == FieldSpec::Role::fixed && spec.only.empty()))
      fail("field " + name + " needs a type, or 'irrelevant', or 'only'");
    result.fields.insert_or_assign(name.str(), std::move(spec));
  }

  void tensor(StringRef name, const json::Value &value) {
    std::optional<WeightRole> role = roleOf(name);
    if (!role)
      return fail("tensors: unknown role " + name);
    TensorNames names;
    if (value.getAsString()) {
      names.state = text(value, name);
      names.from = {names.state};
    } else {
      forEach(value, name, [&](StringRef key, const json::Value &v) {
        if (key == "state")
          names.state = text(v, name);
        else if (key == "from")
          names.from = strings(v, name);
        else
          fail(name + ": unknown key " + key);
      });
    }
    if (names.state.empty() || names.from.empty())
      fail(name + " needs a state and names");
    result.tensors[*role] = std::move(names);
  }

  void lacks(const json::Value &value) {
    const json::Array *array = value.getAsArray();
    if (!array)
      return fail("lacks must be a list");
    for (const json::Value &element : *array) {
      LackedOperation lacked;
      forEach(element, "lacks", [&](StringRef key, const json::Value &v) {
        if (key == "operation")
          lacked.operation = text(v, key);
        else if (key == "layers")
          lacked.layers = text(v, key);
        else if (key == "field")
          lacked.field = text(v, key);
        else if (key == "words")
          lacked.words = strings(v, key);
        else
          fail("lacks: unknown key " + key);
      });
      if (lacked.operation.empty() || lacked.layers.empty())
        fail("lacks needs an operation and layers");
      result.lacks.push_back(std::move(lacked));
    }
  }

  void layouts(const json::Value &value) {
    const json::Array *array = value.getAsArray();
    if (!array)
      return fail("layouts must be a list");
    result.layouts.clear();
    for (const json::Value &element : *array) {
      ExpertLayout layout;
      forEach(element, "layouts", [&](StringRef key, const json::Value &v) {
        if (key == "name")
          layout.name = text(v, key);
        else if (key == "transposed")
          layout.transposed = v.getAsBoolean().value_or(false);
        else if (key == "interleaved")
          layout.interleaved = v.getAsBoolean().value_or(false);
        else if (std::optional<WeightRole> role = roleOf(key))
          layout.from[*role] = strings(v, key);
        else
          fail("layouts: unknown role " + key);
      });
      for (WeightRole role : {WeightRole::router, WeightRole::expert_down})
        if (layout.from[role].empty())
          fail("layout '" + layout.name + "' has no " + nameOf(role));
      if (layout.from.count(WeightRole::expert_gate_up) == layout.from.count(WeightRole::expert_up))
        fail("layout '" + layout.name + "' must have one of expert_gate_up and expert_up");
      result.layouts.push_back(std::move(layout));
    }
  }
};

using Registry = std::map<std::string, ModelClass, std::less<>>;

const Registry &registry() {
  static const Registry classes = [] {
    Registry out;
    StringMap<StringRef> files;
    for (const EmbeddedClass &file : embeddedClasses())
      files[file.name] = file.text;
    for (const auto &entry : files) {
      Status status;
      std::optional<json::Object> top = parseConfig(entry.second, entry.first(), status);
      if (top && !top->get("model_type"))
        continue; // a file that others include
      SmallVector<StringRef> included;
      for (std::optional<json::Object> file = top; file && included.size() < files.size();) {
        StringRef text = files.lookup(file->getString("include").value_or(""));
        if (text.empty())
          break;
        included.insert(included.begin(), text);
        file = parseConfig(text, entry.first(), status);
      }
      std::optional<ModelClass> parsed =
          top ? parseModelClass(entry.second, included, entry.first(), status) : std::nullopt;
      if (!parsed)
        report_fatal_error(Twine(status.str()), /*gen_crash_diag=*/false);
      out.emplace(parsed->name, std::move(*parsed));
    }
    return out;
  }();
  return classes;
}

} // namespace

std::optional<ModelClass> moira::parseModelClass(StringRef text, ArrayRef<StringRef> included,
                                                 StringRef fileName, Status &status) {
  size_t before = status.diagnostics().size();
  ClassReader reader(fileName, status);
  SmallVector<StringRef> parts(included);
  parts.push_back(text);
  for (StringRef part : parts) {
    if (part.empty())
      continue;
    if (std::optional<json::Object> top = parseConfig(part, fileName, status))
      reader.read(*top);
  }
  if (!reader.encoder.empty()) {
    ClassReader encoder(fileName, status);
    encoder.result = reader.result;
    for (const json::Value &differences : reader.encoder)
      if (const json::Object *object = differences.getAsObject())
        encoder.read(*object);
      else
        status.add(ErrorId::Internal,
                   "model class " + fileName.str() + ": encoder must be an object");
    encoder.nameStack("encoder");
    encoder.check();
    reader.nameStack("decoder");
    reader.result.encoder = std::make_shared<ModelClass>(std::move(encoder.result));
  }
  reader.check();
  if (status.diagnostics().size() != before)
    return std::nullopt;
  return std::move(reader.result);
}

const ModelClass *moira::findModelClass(StringRef modelType) {
  auto it = registry().find(modelType.str());
  return it == registry().end() ? nullptr : &it->second;
}

std::vector<const ModelClass *> moira::allModelClasses() {
  std::vector<const ModelClass *> out;
  for (const auto &[name, modelClass] : registry())
    if (modelClass.lacks.empty())
      out.push_back(&modelClass);
  return out;
}
