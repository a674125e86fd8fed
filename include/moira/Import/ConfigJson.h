//===- ConfigJson.h - reading hostile JSON files ----------------*- C++ -*-===//
// Text → JSON object, with bounds on size and depth and without duplicate keys. What the fields
// mean is not said here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_CONFIGJSON_H
#define MOIRA_IMPORT_CONFIGJSON_H

#include "moira/rt/Status.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/JSON.h"
#include <optional>

namespace moira {

/// Largest config that is read, and its deepest nesting.
inline constexpr size_t kConfigBytes = size_t(4) << 20;
inline constexpr unsigned kConfigDepth = 32;

/// The object that `text` holds, or BadJson in `status` with line and column. `name` stands in
/// messages.
std::optional<llvm::json::Object> parseConfig(llvm::StringRef text, llvm::StringRef name,
                                              rt::Status &status);

/// parseConfig of a file; FileNotFound if it cannot be read.
std::optional<llvm::json::Object> readConfig(llvm::StringRef path, rt::Status &status);

/// A value as messages show it: JSON, at most 80 bytes.
std::string jsonText(const llvm::json::Value &value);

} // namespace moira

#endif // MOIRA_IMPORT_CONFIGJSON_H
