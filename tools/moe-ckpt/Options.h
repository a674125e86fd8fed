//===- Options.h - moe-ckpt's command line ----------------------*- C++ -*-===//
// Reading and checking it. What the commands do is runtime/checkpoint's.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TOOLS_MOECKPT_OPTIONS_H
#define MOIRA_TOOLS_MOECKPT_OPTIONS_H

#include "Reshard.h"
#include "Transforms.h"

namespace moira::tool {

enum class Command { exportHf, convert, verify, aggregate, prune, reshard, help, version };

struct CommandLine {
  Command command = Command::help;
  std::vector<std::string> sources; // directories that are read
  std::string target;               // the one that is written
  ckpt::ConvertOptions convert;
  ckpt::PruneOptions prune;
  ckpt::ReshardOptions reshard;
  std::string plan, model; // what a training checkpoint needs to be read as a model
  uint64_t shardBytes = 0;
  bool checksums = false;
  std::string helpText; // command help
};

/// Reads argv. UnknownFlag, BadUsage; all problems at once.
rt::Expected<CommandLine> parseCommandLine(int argc, char **argv);

} // namespace moira::tool

#endif // MOIRA_TOOLS_MOECKPT_OPTIONS_H
