//===- Options.h - moe-run's command line -----------------------*- C++ -*-===//
// Reading and checking it. Running is moira/rt/Run.h's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TOOLS_MOERUN_OPTIONS_H
#define MOIRA_TOOLS_MOERUN_OPTIONS_H

#include "moira/rt/Run.h"

#include <optional>
#include <string>

namespace moira::tool {

enum class Command { run, simulate, doctor, help, version };

struct CommandLine {
  Command command = Command::run;
  rt::RunOptions options;
  std::optional<int> ranks; // command doctor: of the self test on devices; empty: 1
  std::string cluster;      // command simulate: a known one or a file
  double expertLoad = 1;
  bool json = false;
  std::string helpText; // command help
};

/// Reads argv. UnknownFlag (the nearest known option is named), BadUsage for what is missing or
/// does not go together; all problems at once.
rt::Expected<CommandLine> parseCommandLine(int argc, char **argv);

} // namespace moira::tool

#endif // MOIRA_TOOLS_MOERUN_OPTIONS_H
