//===- ConfigValues.h - the fields of one config ----------------*- C++ -*-===//
// config.json held against its class's table of fields: every field is read, known to be irrelevant
// or an error. What the values mean together is ModelSpec's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_CONFIGVALUES_H
#define MOIRA_IMPORT_CONFIGVALUES_H

#include "moira/Import/ModelClass.h"

namespace moira {

/// A field that the config leaves out.
struct DefaultTaken {
  std::string field, value;
};

/// Values of all used fields, from the config or from the class's defaults.
struct ConfigValues {
  std::map<std::string, llvm::json::Value> values; // by the class's name of the field
  std::map<std::string, std::string> spelling;     // field → its name in this config
  std::vector<DefaultTaken> defaults;              // sorted by field
  /// UnsupportedConfig problems that stand only against weights: forms that cannot be read.
  std::vector<std::string> unreadable;
  /// UnsupportedConfig problems that do not stand against planning memory: operations that Moira
  /// lacks, of the same sizes as what is built instead.
  std::vector<std::string> lacking;

  /// The name to show for a field.
  llvm::StringRef shown(llvm::StringRef field) const;
};

/// The class that `config` names. MissingConfigField, BadConfigValue or UnknownModelClass.
const ModelClass *classOf(const llvm::json::Object &config, llvm::StringRef fileName,
                          rt::Status &status);

/// Reads every field. UnknownConfigField (with the nearest known name), BadConfigValue and
/// UnsupportedConfig, all at once; the result is meaningful only without problems.
ConfigValues readFields(const ModelClass &modelClass, const llvm::json::Object &config,
                        llvm::StringRef fileName, rt::Status &status);

} // namespace moira

#endif // MOIRA_IMPORT_CONFIGVALUES_H
