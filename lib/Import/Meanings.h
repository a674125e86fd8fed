//===- Meanings.h - what one config says about a meaning --------*- C++ -*-===//
// Looks up the keys of a class's `model` section (docs/model-classes.md): constants, or values of
// the config's fields. What resolves the parts of a ModelSpec is derived from this.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_IMPORT_MEANINGS_H
#define MOIRA_LIB_IMPORT_MEANINGS_H

#include "moira/Import/ModelSpec.h"

namespace moira {

struct Meanings {
  const ModelClass &modelClass;
  const ConfigValues &config;
  llvm::StringRef fileName;
  rt::Status &status;
  ModelSpec &spec; // what is being resolved

  void fail(rt::ErrorId id, const llvm::Twine &message) {
    status.add(id, (fileName + ": " + message).str());
  }

  /// The field that a meaning refers to, as this config spells it; empty for a constant.
  std::string fieldOf(llvm::StringRef meaning) const {
    std::optional<llvm::StringRef> text = modelClass.model.at(meaning.str()).getAsString();
    return text && text->starts_with("$") ? config.shown(text->drop_front()).str() : "";
  }
  const llvm::json::Value &get(llvm::StringRef meaning) const {
    const llvm::json::Value &value = modelClass.model.at(meaning.str());
    std::optional<llvm::StringRef> text = value.getAsString();
    return text && text->starts_with("$") ? config.values.at(text->drop_front().str()) : value;
  }
  /// Whether the config itself has the field, rather than a default.
  bool isSaid(llvm::StringRef meaning) const {
    std::optional<llvm::StringRef> text = modelClass.model.at(meaning.str()).getAsString();
    return text && text->starts_with("$") && config.spelling.count(text->drop_front().str());
  }
  bool isNull(llvm::StringRef meaning) const {
    return get(meaning).kind() == llvm::json::Value::Null;
  }
  bool flag(llvm::StringRef meaning) const { return get(meaning).getAsBoolean().value_or(false); }
  double number(llvm::StringRef meaning) const { return get(meaning).getAsNumber().value_or(0); }
  std::optional<double> real(llvm::StringRef meaning) const {
    return isNull(meaning) ? std::nullopt : std::optional(number(meaning));
  }
  llvm::StringRef word(llvm::StringRef meaning) const {
    return get(meaning).getAsString().value_or("");
  }
  /// A size, and where it comes from.
  int64_t size(llvm::StringRef meaning) {
    if (std::string field = fieldOf(meaning); !field.empty())
      spec.fieldOf[meaning.str()] = field;
    return get(meaning).getAsInteger().value_or(0);
  }
  /// "field=value", for messages.
  std::string shown(llvm::StringRef meaning, int64_t value) const {
    return fieldOf(meaning) + "=" + std::to_string(value);
  }
};

/// Which layers are sparse, slide and are rotated: ModelSpec::layers, and what they need. Sizes and
/// experts have been resolved.
void resolveLayers(const Meanings &meanings);

} // namespace moira

#endif // MOIRA_LIB_IMPORT_MEANINGS_H
