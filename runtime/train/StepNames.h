//===- StepNames.h - the names in a run's directory -------------*- C++ -*-===//
// What the writer and the reader of training checkpoints call things.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_TRAIN_STEPNAMES_H
#define MOIRA_RT_TRAIN_STEPNAMES_H

#include "moira/rt/PlanFile.h"

#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moira::rt {

inline constexpr const char *kLatestName = "LATEST";
inline constexpr const char *kManifestName = "manifest.json";
/// Behind the names of directories and files that are not finished, or no longer wanted.
inline constexpr std::string_view kUnfinished = ".tmp";

inline std::string stepName(uint64_t step) { return "step-" + std::to_string(step); }

/// A directory that a user has named may be a link to it, as runs often are to a larger disk. What
/// lies within may not.
inline std::string namedByUser(const std::string &directory) { return directory + "/"; }

/// The number in a name that stepName() makes.
inline std::optional<uint64_t> stepOf(std::string_view name) {
  constexpr std::string_view prefix = "step-";
  uint64_t step = 0;
  if (!name.starts_with(prefix))
    return std::nullopt;
  auto [end, error] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || stepName(step) != name)
    return std::nullopt;
  return step;
}

/// What LATEST says of a step: its name and the name's checksum, so that a damaged one does not
/// lead to another step.
inline std::string latestText(const std::string &name) {
  std::span bytes(reinterpret_cast<const uint8_t *>(name.data()), name.size());
  return name + format(" %08x\n", crc32c(bytes));
}

} // namespace moira::rt

#endif // MOIRA_RT_TRAIN_STEPNAMES_H
