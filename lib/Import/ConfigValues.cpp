//===- ConfigValues.cpp - the fields of one config ------------------------===//
#include "moira/Import/ConfigValues.h"
#include "moira/Import/ConfigJson.h"
#include "moira/Support/LayersText.h"
#include "moira/rt/Suggest.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

#include <cmath>

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::Status;

namespace {

/// A number without needless digits.
std::string numberText(double number) {
  return std::nearbyint(number) == number && std::fabs(number) < 1e15
             ? std::to_string(static_cast<int64_t>(number))
             : rt::format("%g", number);
}

/// A name of a hostile file.
std::string nameText(StringRef name) {
  std::string out;
  for (char c : name.take_front(80))
    out += isPrint(c) ? c : '?';
  return out;
}

class FieldReader {
public:
  FieldReader(const ModelClass &modelClass, StringRef fileName, Status &status)
      : modelClass(modelClass), fileName(fileName), status(status) {}
  ConfigValues result;

  void read(const json::Object &config) {
    // In order of names: the object's own order is none.
    std::map<std::string, const json::Value *> members;
    for (const auto &member : config)
      members[StringRef(member.first).str()] = &member.second;
    for (const auto &[name, value] : members)
      readMember(name, *value);
    for (const auto &[name, spec] : modelClass.fields) {
      if (spec.role != FieldSpec::Role::used || result.values.count(name))
        continue;
      json::Value value = spec.defaultValue;
      if (!spec.implied)
        result.defaults.push_back({name, jsonText(value)});
      if (std::optional<StringRef> text = value.getAsString(); text && !spec.map.empty())
        value = spec.map.at(text->str());
      result.values.insert_or_assign(name, std::move(value));
    }
  }

private:
  const ModelClass &modelClass;
  StringRef fileName;
  Status &status;

  void fail(ErrorId id, const Twine &message) { status.add(id, (fileName + ": " + message).str()); }

  void readMember(const std::string &name, const json::Value &value) {
    auto alias = modelClass.aliases.find(name);
    const std::string &field = alias == modelClass.aliases.end() ? name : alias->second;
    auto it = modelClass.fields.find(field);
    if (it == modelClass.fields.end())
      return unknown(name);
    const FieldSpec &spec = it->second;
    switch (spec.role) {
    case FieldSpec::Role::irrelevant:
      return;
    case FieldSpec::Role::fixed:
      if (is_contained(spec.only, value))
        return;
      if (spec.stored)
        result.unreadable.push_back((fileName + ": " + name + "=" + jsonText(value) +
                                     " says that the weights are stored in a form that Moira does "
                                     "not read; convert them to bf16, or plan from " +
                                     fileName + " alone")
                                        .str());
      else
        unsupported(
            name, spec, value,
            join(map_range(spec.only, [](const json::Value &v) { return jsonText(v); }), ", "));
      return;
    case FieldSpec::Role::used:
      break;
    }
    if (auto other = result.spelling.find(field); other != result.spelling.end()) {
      if (result.values.at(field) != value)
        fail(ErrorId::BadConfigValue, name + "=" + jsonText(value) + ", but " + other->second +
                                          "=" + jsonText(result.values.at(field)) +
                                          "; they are two names of one field, keep one");
      return;
    }
    result.spelling[field] = name;
    result.values.insert_or_assign(field, checked(name, spec, value));
  }

  void unsupported(const std::string &name, const FieldSpec &spec, const json::Value &value,
                   const std::string &supported) {
    std::string problem = name + "=" + jsonText(value);
    if (spec.operation.empty())
      return fail(ErrorId::UnsupportedConfig,
                  problem + " is not supported; supported: " + supported);
    result.lacking.push_back((fileName + ": " + problem + " needs an operation that Moira lacks: " +
                              spec.operation + "; supported: " + supported)
                                 .str());
  }

  void unknown(const std::string &name) {
    std::vector<std::string> known;
    for (const auto &[field, spec] : modelClass.fields)
      known.push_back(field);
    for (const auto &[alias, field] : modelClass.aliases)
      known.push_back(alias);
    std::string nearest = rt::nearestWord(name, known);
    fail(ErrorId::UnknownConfigField,
         "unknown field " + nameText(name) +
             (nearest.empty() ? "; " + modelClass.name +
                                    " has none like it, remove it if it does not change the model"
                              : "; did you mean " + nearest + "?"));
  }

  json::Value checked(const std::string &name, const FieldSpec &spec, const json::Value &value) {
    if (value.kind() == json::Value::Null && spec.nullable)
      return nullptr;
    auto expect = [&](const Twine &what) -> json::Value {
      fail(ErrorId::BadConfigValue, name + "=" + jsonText(value) + " is not " + what);
      return spec.defaultValue;
    };
    StringRef type = spec.type;
    if (type == "int" || type == "float") {
      std::optional<double> number = value.getAsNumber();
      if (!number || !std::isfinite(*number) || (type == "int" && !value.getAsInteger()))
        return expect(type == "int" ? "a whole number" : "a number");
      if ((spec.min && *number < *spec.min) || (spec.max && *number > *spec.max) ||
          (spec.above && *number <= *spec.above)) {
        std::string range;
        if (spec.min)
          range = "at least " + numberText(*spec.min);
        if (spec.above)
          range = "above " + numberText(*spec.above);
        if (spec.max)
          range += (range.empty() ? "at most " : " and at most ") + numberText(*spec.max);
        fail(ErrorId::BadConfigValue,
             name + "=" + jsonText(value) + " is out of range; it must be " + range);
        return spec.defaultValue;
      }
      return value;
    }
    if (type == "bool")
      return value.getAsBoolean() ? value : expect("true or false");
    if (type == "object")
      return value.getAsObject() ? value : expect("an object");
    if (type == "string") {
      std::optional<StringRef> text = value.getAsString();
      if (!text)
        return expect("a string");
      if (spec.map.empty())
        return value;
      auto word = spec.map.find(text->str());
      if (word != spec.map.end())
        return word->second;
      unsupported(name, spec, value, join(make_first_range(spec.map), ", "));
      return spec.map.begin()->second;
    }
    const json::Array *array = value.getAsArray();
    bool wantsInt = type == "int_list";
    if (!array || any_of(*array, [&](const json::Value &v) {
          return wantsInt ? !v.getAsInteger().has_value() : !v.getAsString().has_value();
        }))
      return expect(wantsInt ? "a list of whole numbers" : "a list of strings");
    return value;
  }
};

/// Where this config's model needs an operation that its class lacks.
std::string layersOf(const LackedOperation &lacked, const json::Object &config) {
  std::set<int64_t> layers;
  if (const json::Array *words = lacked.field.empty() ? nullptr : config.getArray(lacked.field))
    for (auto [l, word] : enumerate(*words))
      if (is_contained(lacked.words, word.getAsString().value_or("")))
        layers.insert(l);
  return layers.empty() ? lacked.layers : layersText(layers);
}

/// A name with its digits left out: deepseek_v4 is no slip of the pen for deepseek_v3.
std::string withoutDigits(StringRef name) {
  std::string out;
  copy_if(name, std::back_inserter(out), [](char c) { return !isDigit(c); });
  return out;
}

} // namespace

StringRef ConfigValues::shown(StringRef field) const {
  auto it = spelling.find(field.str());
  return it == spelling.end() ? field : StringRef(it->second);
}

const ModelClass *moira::classOf(const json::Object &config, StringRef fileName, Status &status) {
  std::string known = join(
      map_range(allModelClasses(), [](const ModelClass *c) { return StringRef(c->name); }), ", ");
  const json::Value *type = config.get("model_type");
  if (!type) {
    status.add(ErrorId::MissingConfigField,
               fileName.str() +
                   " lacks model_type, which says what class the model is; known: " + known);
    return nullptr;
  }
  std::optional<StringRef> name = type->getAsString();
  if (!name) {
    status.add(ErrorId::BadConfigValue, fileName.str() + ": model_type=" + jsonText(*type) +
                                            " is not a string; known classes: " + known);
    return nullptr;
  }
  const ModelClass *found = findModelClass(*name);
  if (!found) {
    std::vector<std::string> names;
    for (const ModelClass *c : allModelClasses())
      names.push_back(c->name);
    std::string nearest = rt::nearestWord(name->str(), names);
    if (withoutDigits(nearest) == withoutDigits(*name))
      nearest.clear();
    status.add(ErrorId::UnknownModelClass,
               "unknown model class " + nameText(*name) + " in " + fileName.str() + "; " +
                   (nearest.empty() ? "" : "did you mean " + nearest + "? ") + "known: " + known);
    return nullptr;
  }
  for (const LackedOperation &lacked : found->lacks)
    status.add(ErrorId::UnsupportedConfig,
               fileName.str() + ": model_type=" + jsonText(*type) +
                   " needs an operation that Moira lacks: " + lacked.operation + ", in " +
                   layersOf(lacked, config));
  if (!found->lacks.empty())
    return nullptr;
  return found;
}

ConfigValues moira::readFields(const ModelClass &modelClass, const json::Object &config,
                               StringRef fileName, Status &status) {
  FieldReader reader(modelClass, fileName, status);
  reader.read(config);
  return std::move(reader.result);
}
