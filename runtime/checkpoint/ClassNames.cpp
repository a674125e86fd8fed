//===- ClassNames.cpp - what a class calls experts and gates --------------===//
// The files are ours and the importer's tests check them, so reading trusts their form.
//===----------------------------------------------------------------------===//
#include "ClassNames.h"

#include "EmbeddedClasses.h"
#include "moira/rt/SafeTensors.h"
#include "moira/rt/Suggest.h"

#include <charconv>

namespace moira::ckpt {
namespace {

using nlohmann::json;
using rt::ErrorId;
using rt::Status;

constexpr const char *kExpertRoles[] = {"expert_gate_up", "expert_gate_up_bias",
                                        "expert_up",      "expert_up_bias",
                                        "expert_down",    "expert_down_bias"};
constexpr const char *kGateBiases[] = {"router_bias", "router_choice_bias"};

/// The files that define a class, the innermost included one first.
std::vector<json> filesOf(const std::string &modelType) {
  std::map<std::string, json> all;
  for (const EmbeddedClass &file : embeddedClasses())
    all[std::string(file.name)] = json::parse(file.text);
  std::vector<json> chain;
  for (const auto &[name, file] : all)
    if (file.value("model_type", "") == modelType && !file.contains("lacks"))
      chain = {file};
  while (!chain.empty() && chain.front().contains("include"))
    chain.insert(chain.begin(), json(all.at(chain.front().at("include"))));
  return chain;
}

std::vector<std::string> knownClasses() {
  std::vector<std::string> out;
  for (const EmbeddedClass &file : embeddedClasses())
    if (json parsed = json::parse(file.text);
        parsed.contains("model_type") && !parsed.contains("lacks"))
      out.push_back(parsed.at("model_type"));
  return out;
}

/// The names of a member of `tensors`: one, or a list under "from".
std::vector<std::string> namesOf(const json &value) {
  if (value.is_string())
    return {value.get<std::string>()};
  return value.at("from").get<std::vector<std::string>>();
}

void nameStack(std::string &name, const char *stack) {
  for (size_t at; (at = name.find("{s}")) != std::string::npos;)
    name.replace(at, 3, stack);
}

} // namespace

rt::Expected<ClassNames> ClassNames::of(const Config &config) {
  auto type = config.members.find("model_type");
  if (type == config.members.end())
    return Status(ErrorId::MissingConfigField,
                  config.path + " lacks model_type, which says what class the model is");
  if (!type->is_string())
    return Status(ErrorId::BadConfigValue, config.path + ": model_type is not a word");
  std::vector<json> files = filesOf(type->get<std::string>());
  if (files.empty()) {
    std::vector<std::string> known = knownClasses();
    std::string list, near = rt::nearestWord(type->get<std::string>(), known);
    for (const std::string &name : known)
      list += (list.empty() ? "" : ", ") + name;
    return Status(ErrorId::UnknownModelClass,
                  "unknown model class " + rt::quoteName(type->get<std::string>()) + " in " +
                      config.path + (near.empty() ? "" : ", did you mean " + near + "?") +
                      "; known: " + list);
  }
  ClassNames names;
  names.className = type->get<std::string>();
  StackNames stack;
  for (const json &file : files)
    names.read(file, stack);
  // The biases' and the layouts' names follow from the tensors' once all files are read.
  std::vector<const json *> differences;
  for (const json &file : files)
    if (file.contains("encoder"))
      differences.push_back(&file.at("encoder"));
  auto finish = [&](StackNames done, const char *name) {
    for (const char *role : kGateBiases)
      if (auto it = names.tensors.find(role); it != names.tensors.end())
        for (const std::string &pattern : namesOf(it->second))
          done.gateBiases.push_back(pattern);
    for (std::string &pattern : done.gateBiases)
      nameStack(pattern, name);
    for (ExpertLayout &layout : done.layouts) {
      nameStack(layout.router, name);
      for (RoleNames &role : layout.experts)
        for (std::string &pattern : role.names)
          nameStack(pattern, name);
    }
    names.allStacks.push_back(std::move(done));
  };
  if (!differences.empty()) {
    StackNames encoder = stack;
    std::map<std::string, json> decoderTensors = names.tensors;
    for (const json *part : differences)
      names.read(*part, encoder);
    finish(std::move(encoder), "encoder");
    names.tensors = std::move(decoderTensors);
  }
  finish(std::move(stack), "decoder");
  return names;
}

void ClassNames::read(const json &file, StackNames &stack) {
  if (file.contains("fields"))
    for (const auto &[name, field] : file.at("fields").items())
      fields[name] = field;
  if (file.contains("model"))
    for (const auto &[meaning, value] : file.at("model").items())
      stack.model[meaning] = value;
  if (file.contains("tensors"))
    for (const auto &[role, value] : file.at("tensors").items())
      tensors[role] = value;
  if (!file.contains("layouts"))
    return;
  stack.layouts.clear();
  for (const json &value : file.at("layouts")) {
    ExpertLayout layout;
    layout.name = value.at("name");
    layout.plain = !value.value("transposed", false) && !value.value("interleaved", false);
    layout.router = value.at("router").at(0);
    for (const char *role : kExpertRoles)
      if (value.contains(role))
        layout.experts.push_back({role, value.at(role).get<std::vector<std::string>>()});
    stack.layouts.push_back(std::move(layout));
  }
}

json ClassNames::value(const Config &config, const StackNames &stack,
                       const std::string &meaning) const {
  auto found = stack.model.find(meaning);
  if (found == stack.model.end())
    return nullptr;
  if (!found->second.is_string() || !found->second.get<std::string>().starts_with("$"))
    return found->second;
  std::string name = found->second.get<std::string>().substr(1);
  const json &field = fields.at(name);
  std::vector<std::string> spellings = {name};
  for (const json &alias : field.value("aliases", json::array()))
    spellings.push_back(alias);
  json result = field.value("default", json());
  for (const std::string &spelling : spellings)
    if (auto it = config.members.find(spelling); it != config.members.end())
      result = json(*it);
  if (result.is_string() && field.contains("map"))
    return field.at("map").value(result.get<std::string>(), json());
  return result;
}

std::optional<int64_t> ClassNames::number(const Config &config, const StackNames &stack,
                                          const std::string &meaning) const {
  json found = value(config, stack, meaning);
  if (!found.is_number_integer())
    return std::nullopt;
  return found.get<int64_t>();
}

std::string ClassNames::word(const Config &config, const StackNames &stack,
                             const std::string &meaning) const {
  json found = value(config, stack, meaning);
  return found.is_string() ? found.get<std::string>() : "";
}

std::vector<std::string> ClassNames::fieldNames(const std::string &meaning) const {
  std::vector<std::string> out;
  for (const StackNames &stack : allStacks) {
    auto found = stack.model.find(meaning);
    if (found == stack.model.end() || !found->second.is_string())
      continue;
    out.push_back(found->second.get<std::string>().substr(1));
    for (const json &alias : fields.at(out.back()).value("aliases", json::array()))
      out.push_back(alias);
  }
  return out;
}

void ClassNames::setNumber(Config &config, const std::string &meaning, int64_t value) const {
  std::vector<std::string> names = fieldNames(meaning);
  bool written = false;
  for (const std::string &name : names)
    if (config.members.contains(name)) {
      config.set(name, value);
      written = true;
    }
  if (!written && !names.empty())
    config.set(names.front(), value);
}

std::string expandName(const std::string &pattern, int64_t layer, int64_t expert) {
  std::string out = pattern;
  for (auto [mark, number] : {std::pair("{l}", layer), std::pair("{e}", expert)})
    if (size_t at = out.find(mark); at != std::string::npos)
      out.replace(at, 3, std::to_string(number));
  return out;
}

bool matchName(std::string_view pattern, std::string_view name, int64_t &layer, int64_t &expert) {
  while (!pattern.empty()) {
    size_t next = std::min(pattern.find('{'), pattern.size());
    if (!name.starts_with(pattern.substr(0, next)))
      return false;
    name.remove_prefix(next);
    pattern.remove_prefix(next);
    if (pattern.empty())
      break;
    int64_t &number = pattern.starts_with("{l}") ? layer : expert;
    auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
    size_t digits = static_cast<size_t>(end - name.data());
    if (error != std::errc() || name[0] == '-' || (name[0] == '0' && digits > 1))
      return false;
    name.remove_prefix(digits);
    pattern.remove_prefix(3);
  }
  return name.empty();
}

} // namespace moira::ckpt
