//===- Config.h - config.json as it is rewritten ----------------*- C++ -*-===//
// The text of a config.json and its members in their order. Hostile: size, nesting and double keys
// are checked. What the members mean for a class is ClassNames.h's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_CONFIG_H
#define MOIRA_CHECKPOINT_CONFIG_H

#include "moira/rt/SafeTensors.h"

#include <nlohmann/json.hpp>

namespace moira::ckpt {

struct Config {
  std::string path; // for messages
  std::string text; // of the file; what an unchanged config is written as
  nlohmann::ordered_json members;

  /// FileNotFound, BadJson.
  static rt::Expected<Config> open(const std::string &path);

  /// Sets a member and brings the text up to date.
  void set(const std::string &name, const nlohmann::ordered_json &value);
  /// Says that floating-point tensors are F32, BF16 or F16.
  void setType(rt::TensorType type);
};

/// The whole of a regular file. FileNotFound; BadJson if it is larger than `limit`.
rt::Expected<std::string> readSmallFile(const std::string &path, uint64_t limit);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_CONFIG_H
