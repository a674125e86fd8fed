//===- Options.cpp - moe-ckpt's command line ------------------------------===//
// See Options.h.
//===----------------------------------------------------------------------===//
#include "Options.h"
#include "../CheckNumbers.h"

#include "moira/rt/Suggest.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>

namespace moira::tool {
namespace {

using rt::ErrorId;
using rt::Status;

bool parseNumber(std::string_view text, uint64_t &value) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

/// "5GB", "300MB" or a number of bytes; units of 1000, as transformers has them.
bool parseSize(std::string text, uint64_t &bytes) {
  uint64_t unit = 1;
  for (auto [name, size] : {std::pair("KB", uint64_t(1'000)), std::pair("MB", uint64_t(1'000'000)),
                            std::pair("GB", uint64_t(1'000'000'000))})
    if (text.ends_with(name)) {
      unit = size;
      text.resize(text.size() - 2);
      break;
    }
  if (!parseNumber(text, bytes) || bytes == 0 || bytes > UINT64_MAX / unit)
    return false;
  bytes *= unit;
  return true;
}

/// "0,2,5-7": increasing.
bool parseExperts(const std::string &text, std::vector<int64_t> &experts) {
  for (size_t at = 0; at <= text.size();) {
    size_t comma = std::min(text.find(',', at), text.size());
    std::string_view part = std::string_view(text).substr(at, comma - at);
    size_t dash = part.find('-');
    uint64_t first = 0, last = 0;
    if (!parseNumber(part.substr(0, dash), first))
      return false;
    last = first;
    if ((dash != part.npos && !parseNumber(part.substr(dash + 1), last)) || last < first ||
        last > 1'000'000 || (!experts.empty() && int64_t(first) <= experts.back()))
      return false;
    for (uint64_t e = first; e <= last; ++e)
      experts.push_back(static_cast<int64_t>(e));
    at = comma + 1;
  }
  return true;
}

/// The words as they come from the command line, before they are understood.
struct Words {
  std::string dtype, layout, shardSize = "5GB", mostUsed, experts, random;
  int64_t keep = 0;
};

void understand(const Words &words, CommandLine &line, Status &problems) {
  if (words.dtype == "f32")
    line.convert.type = rt::TensorType::f32;
  else if (words.dtype == "bf16")
    line.convert.type = rt::TensorType::bf16;
  else if (words.dtype == "f16")
    line.convert.type = rt::TensorType::f16;
  else if (!words.dtype.empty())
    problems.add(ErrorId::UnknownFlag,
                 "--dtype=" + words.dtype + " is unknown; it is f32, bf16 or f16");
  line.convert.layout = words.layout;
  if (line.command == Command::convert && words.dtype.empty() && words.layout.empty())
    problems.add(ErrorId::BadUsage, "moe-ckpt convert needs --dtype or --layout");
  if (!parseSize(words.shardSize, line.shardBytes))
    problems.add(ErrorId::UnknownFlag,
                 "--max-shard-size=" + words.shardSize + " is no size like 5GB or 300MB");
  if (line.plan.empty() != line.model.empty())
    problems.add(ErrorId::BadUsage, "--plan and --model go together: they say what a training "
                                    "checkpoint holds");
  if (line.command == Command::reshard) {
    if (line.reshard.plan.empty() == (line.reshard.ranks == 0))
      problems.add(ErrorId::BadUsage, "moe-ckpt reshard needs one of --plan and --ranks");
    if (line.reshard.ranks < 0 || line.reshard.ranks > 1 << 16)
      problems.add(ErrorId::UnknownFlag, "--ranks must be 1 to 65536");
  }
  if (line.command != Command::prune)
    return;
  if (int(!words.random.empty()) + !words.mostUsed.empty() + !words.experts.empty() != 1)
    problems.add(ErrorId::BadUsage,
                 "moe-ckpt prune needs one of --random, --most-used and --experts");
  if (words.experts.empty() == (words.keep == 0))
    problems.add(ErrorId::BadUsage, "--keep=N goes with --random and --most-used, and they need "
                                    "it; --experts says itself how many are kept");
  if (words.keep < 0)
    problems.add(ErrorId::UnknownFlag, "--keep must be a number of experts");
  line.prune.keep = words.keep;
  line.prune.mostUsed = words.mostUsed;
  uint64_t seed = 0;
  if (!words.random.empty() && !parseNumber(words.random, seed))
    problems.add(ErrorId::UnknownFlag, "--random=" + words.random + " is no seed; it is a number");
  else if (!words.random.empty())
    line.prune.random = seed;
  if (!words.experts.empty() && !parseExperts(words.experts, line.prune.experts))
    problems.add(ErrorId::UnknownFlag,
                 "--experts=" + words.experts + " is no list of increasing numbers like 0,2,5-7");
}

} // namespace

rt::Expected<CommandLine> parseCommandLine(int argc, char **argv) {
  CommandLine line;
  Words words;
  bool version = false;
  CLI::App app("Checks, converts and changes model directories (config.json, safetensors) and "
               "training checkpoints. A directory is written whole or not at all.",
               "moe-ckpt");
  app.footer(
      "Exit codes: 0 success, 1 usage, 2 invalid input, 4 internal error, 5 an I/O failure.");
  app.add_flag("--version", version, "print the version");
  std::string second;
  auto add = [&](Command command, const char *name, const char *what, size_t sources) {
    CLI::App *sub = app.add_subcommand(name, what);
    sub->allow_extras();
    sub->callback([&line, command] { line.command = command; });
    line.sources.resize(2);
    sub->add_option("SOURCE", line.sources[0],
                    command == Command::reshard     ? "directory of a training run, or of a step"
                    : command == Command::aggregate ? "model directory to read"
                                                    : "model directory, or training checkpoint");
    if (sources == 2)
      sub->add_option("OTHER", line.sources[1], "model directory whose experts are added");
    if (command == Command::verify)
      return sub;
    sub->add_option("TARGET", line.target, "directory to write; must not exist");
    if (command == Command::reshard)
      return sub;
    if (command != Command::aggregate) {
      sub->add_option("--plan", line.plan,
                      "of a training checkpoint: the plan that has trained it");
      sub->add_option("--model", line.model,
                      "of a training checkpoint: the model directory, or config.json, that it is");
    }
    sub->add_option("--max-shard-size", words.shardSize,
                    "split the weights into files of this size")
        ->capture_default_str();
    sub->add_flag("--checksums", line.checksums, "write model.checksums.jsonl beside the weights");
    return sub;
  };
  add(Command::exportHf, "export-hf",
      "write a directory that transformers loads, tensors as they are", 1);
  CLI::App *convert = add(Command::convert, "convert",
                          "store experts in another layout, tensors in another type", 1);
  convert->add_option("--dtype", words.dtype, "type of all floating-point tensors")
      ->type_name("[f32|bf16|f16]");
  convert->add_option("--layout", words.layout,
                      "separate (tensors for each expert), stacked, or the name of a layout of the "
                      "class");
  CLI::App *verify = add(Command::verify, "verify",
                         "check headers, index, experts and, where they are, checksums", 1);
  verify->add_flag("--write-checksums", line.checksums,
                   "write model.checksums.jsonl, replacing an old one");
  add(Command::aggregate, "aggregate",
      "Aggregation of Experts: average shared weights, concatenate gates, unite experts", 2);
  CLI::App *prune = add(Command::prune, "prune", "keep some experts of every layer", 1);
  prune->add_option("--keep", words.keep, "how many experts of each layer stay");
  prune->add_option("--random", words.random, "choose them at random, with this seed");
  prune->add_option("--most-used", words.mostUsed,
                    "keep those that this file of moe-run --dump-routing chose most often");
  prune->add_option("--experts", words.experts, "keep these in every layer, e.g. 0,2,5-7");
  CLI::App *reshard = add(Command::reshard, "reshard",
                          "write a training checkpoint as another mesh would have saved it", 1);
  reshard->add_option("--plan", line.reshard.plan, "a plan for that mesh");
  reshard->add_option("--ranks", line.reshard.ranks, "or so many files of even size");
  app.allow_extras();
  for (CLI::App *sub : app.get_subcommands({}))
    checkNumbers(*sub);

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp &) {
    line.command = Command::help;
    line.helpText = app.help(); // of the command that is named, if one is
    return line;
  } catch (const CLI::ParseError &error) {
    return Status(ErrorId::UnknownFlag, std::string(error.what()) + "; see moe-ckpt --help");
  }
  if (version) {
    line.command = Command::version;
    return line;
  }
  const char *commands = "commands are export-hf, convert, verify, aggregate, prune and reshard";
  std::vector<CLI::App *> chosen = app.get_subcommands();
  if (chosen.size() != 1) {
    std::vector<std::string> extras = app.remaining();
    std::string near =
        extras.empty()
            ? ""
            : rt::nearestWord(extras.front(), {"export-hf", "convert", "verify", "aggregate",
                                               "prune", "reshard", "--help", "--version"});
    return Status(extras.empty() ? ErrorId::BadUsage : ErrorId::UnknownFlag,
                  (extras.empty() ? "no command given; "
                                  : "unknown command " + extras.front() +
                                        (near.empty() ? "; " : "; did you mean " + near + "? ")) +
                      commands);
  }
  Status problems;
  std::vector<std::string> known = {"--help"};
  for (const CLI::Option *option : chosen.front()->get_options())
    if (!option->get_lnames().empty())
      known.push_back("--" + option->get_lnames().front());
  for (const std::string &word : chosen.front()->remaining()) {
    std::string near = rt::nearestWord(word.substr(0, word.find('=')), known);
    problems.add(ErrorId::UnknownFlag,
                 "unknown option " + word +
                     (near.empty() ? "; see moe-ckpt " + chosen.front()->get_name() + " --help"
                                   : "; did you mean " + near + "?"));
  }
  if (line.command != Command::aggregate)
    line.sources.resize(1);
  std::string missing;
  for (const std::string &source : line.sources)
    if (source.empty())
      missing = "a directory to read";
  if (line.command != Command::verify && line.target.empty())
    missing += std::string(missing.empty() ? "" : ", ") + "a directory to write";
  if (!missing.empty() && problems)
    problems.add(ErrorId::BadUsage, "missing: " + missing + "; see moe-ckpt " +
                                        chosen.front()->get_name() + " --help");
  understand(words, line, problems);
  if (!problems)
    return problems;
  return line;
}

} // namespace moira::tool
