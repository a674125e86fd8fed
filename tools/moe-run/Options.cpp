//===- Options.cpp - moe-run's command line -------------------------------===//
// See Options.h.
//===----------------------------------------------------------------------===//
#include "Options.h"
#include "../CheckNumbers.h"
#include "moira/rt/OutputFile.h"
#include "moira/rt/PlanFile.h"
#include "moira/rt/Simulate.h"
#include "moira/rt/Suggest.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <unistd.h>

namespace moira::tool {
namespace {

using rt::ErrorId;
using rt::format;
using rt::Status;

/// An option that may stand alone must not take the next word as its value, so give it one.
std::vector<std::string> normalise(int argc, char **argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  for (std::string &word : words)
    if (word == "--reference")
      word = "--reference=f32";
  return words;
}

/// An option that ends with "=", as with a variable of the shell that is empty, and one with
/// another option behind it: neither is to swallow the next word.
void checkValues(const CLI::App &app, const std::vector<std::string> &words, Status &problems) {
  for (size_t i = 0; i < words.size(); ++i) {
    std::string name = words[i].substr(0, words[i].find('='));
    const CLI::Option *option = name.starts_with("--") ? app.get_option_no_throw(name) : nullptr;
    if (!option || option->get_items_expected_max() == 0)
      continue;
    bool bare = name.size() == words[i].size();
    if (bare ? i + 1 < words.size() && words[i + 1].starts_with("--")
             : name.size() + 1 == words[i].size())
      problems.add(ErrorId::UnknownFlag, name + " has no value; see moe-run --help");
  }
}

void checkGenerate(const rt::GenerateOptions &generate, Status &problems) {
  if (generate.maxNewTokens < 0)
    problems.add(ErrorId::UnknownFlag, format("--max-new-tokens=%lld must be at least 1",
                                              static_cast<long long>(generate.maxNewTokens)));
  if (!(generate.temperature >= 0) || std::isinf(generate.temperature))
    problems.add(ErrorId::UnknownFlag,
                 format("--temperature=%g must be 0 or more", generate.temperature));
  if (!(generate.topP > 0 && generate.topP <= 1))
    problems.add(ErrorId::UnknownFlag,
                 format("--top-p=%g must be over 0, and 1 at most", generate.topP));
  if (generate.topK < 0)
    problems.add(ErrorId::UnknownFlag, format("--top-k=%d must be 0 (all) or more", generate.topK));
}

void checkTrain(const rt::TrainOptions &train, const rt::RunOptions &options, Status &problems) {
  if (train.init && !options.weights.empty())
    problems.add(ErrorId::BadUsage, "--weights reads weights and --init draws them; give one");
  if (!train.data.empty() && !options.inputs.empty())
    problems.add(ErrorId::BadUsage, "--data and --inputs both give tokens to train on; give one");
  if (!(train.initDeviation >= 0) || std::isinf(train.initDeviation))
    problems.add(ErrorId::UnknownFlag, "--init-deviation must be 0 or more");
  if (!(train.dataTemperature > 0) || std::isinf(train.dataTemperature))
    problems.add(ErrorId::UnknownFlag, "--data-temperature must be over 0");
  if (train.keep < 2)
    problems.add(ErrorId::UnknownFlag, "--keep must be at least 2");
  if (train.lr && !(*train.lr >= 0 && !std::isinf(*train.lr)))
    problems.add(ErrorId::UnknownFlag, format("--lr=%g must be 0 or more", *train.lr));
}

/// What the plan was compiled for, by the compiler's word; "" where it cannot be opened.
std::string taskOf(const std::string &path) {
  rt::Expected<rt::PlanFile> plan = rt::PlanFile::open(path);
  const flatbuffers::String *task = plan ? plan->plan().info()->task() : nullptr;
  return task ? task->str() : "";
}

/// BadUsage with all that a run lacks. Only then is the plan asked what it is for, as one that
/// trains needs other things than one that computes outputs.
Status checkMissing(const rt::RunOptions &options) {
  bool begins = options.train && (options.train->resume || options.train->init);
  bool noWeights = options.weights.empty() && !begins;
  bool noInputs = options.inputs.empty() && (!options.train || options.train->data.empty());
  bool streams = options.generate && options.generate->stream;
  bool noOutputs = options.outputs.empty() && !options.check && !streams && !options.train;
  if (!options.plan.empty() && !noWeights && !noInputs && !noOutputs)
    return {};

  if (access(options.plan.c_str(), F_OK) != 0 && !rt::nearestWord(options.plan, {"doctor"}).empty())
    return Status(ErrorId::FileNotFound, "cannot open " + options.plan +
                                             ": No such file or directory; did you mean moe-run "
                                             "doctor?");
  std::string task = options.plan.empty() ? "" : taskOf(options.plan);
  bool trains = options.train || task == "train";
  bool generates = !trains && (options.generate || task == "generate");
  std::string missing;
  auto need = [&](bool lacks, const char *what) {
    if (lacks)
      missing += (missing.empty() ? "" : ", ") + std::string(what);
  };
  need(options.plan.empty(), "the plan file");
  need(trains && !options.train, "--steps=N");
  need(generates && !options.generate, "--max-new-tokens=N");
  need(noWeights, trains ? "--weights=DIR or --init=SEED" : "--weights=DIR");
  need(noInputs, trains ? "--inputs=FILE or --data=PREFIXES" : "--inputs=FILE");
  need(noOutputs && !trains, generates ? "--outputs=FILE or --stream" : "--outputs=FILE");
  std::string usage = "moe-run PLAN ";
  usage += trains ? "--steps=N " : generates ? "--max-new-tokens=N " : "";
  usage += "--weights=DIR --inputs=FILE";
  usage += trains ? "" : " --outputs=FILE";
  if (task.empty() && !trains && !generates)
    usage += ", to train --steps=N instead of --outputs";
  return Status(ErrorId::BadUsage, "missing: " + missing + "; " + usage);
}

} // namespace

rt::Expected<CommandLine> parseCommandLine(int argc, char **argv) {
  CommandLine line;
  rt::RunOptions &options = line.options;
  std::string reference, devices;
  bool version = false, graphs = true;
  int ranks = 1;
  CLI::App app("Runs a plan: all ranks on this machine (threads on the host, processes on CUDA "
               "devices), or, "
               "started by mpirun, srun or torchrun, one rank.",
               "moe-run");
  app.allow_extras();
  app.footer("moe-run doctor: versions, devices and a self test.\n"
             "Exit codes: 0 success, 1 usage, 2 invalid input, 3 infeasible, 4 internal error, 5 a "
             "rank lost, a timeout or an I/O failure.");
  app.add_option("plan", options.plan, "the .moeplan file, or the word doctor");
  app.add_option("--weights", options.weights, "checkpoint directory (safetensors)");
  app.add_option("--inputs", options.inputs, "safetensors file with the input tensors, by name");
  app.add_option("--outputs", options.outputs, "safetensors file to write");
  app.add_option("--reference", reference,
                 "run the plan's unfused one-rank program instead, without any code of the plan: "
                 "f32 (default) or f64")
      ->type_name("[f32|f64]");
  app.add_flag("--check", options.check,
               "run the reference program too and compare (with --reference=f64: in f64)");
  app.add_option("--check-tolerance", options.checkTolerance,
                 "largest difference allowed, as a part of the largest reference value (default: "
                 "1e-5, with bf16 2e-2)");
  app.add_option("--device", options.device,
                 "host or cuda (default: what the plan is for), or sim: nothing is run, the plan's "
                 "times on a described cluster are printed");
  app.add_option("--devices", devices,
                 "CUDA devices by rank on this machine, e.g. 0,1; ranks may share: 0,0");
  app.add_option("--repeat", options.repeat,
                 "run the step so often again and print the median time and tokens/s");
  app.add_flag("--processes", options.processes,
               "start a process for each rank on the host too, as on CUDA devices");
  app.add_option("--threads", options.threads,
                 "threads of each rank's library calls on the host (default: its share of the "
                 "cores); results do not depend on it");
  CLI::Option *graphsOption =
      app.add_flag("--graphs,!--no-graphs", graphs,
                   "record what is static of the first step and replay it (CUDA; default on)");
  CLI::Option *ranksOption = app.add_option(
      "--ranks", ranks, "doctor: ranks of the collectives' self test on CUDA devices");
  app.add_option("--timeout", options.timeoutSeconds,
                 "seconds that a rank waits for another one, 0 for ever")
      ->capture_default_str();
  app.add_option("--dump-routing", options.dumpRouting,
                 "write the experts chosen by every router to this file");
  app.add_option("--route-from", options.routeFrom,
                 "take the experts from this file instead of choosing them");
  rt::GenerateOptions generate;
  app.add_option("--max-new-tokens", generate.maxNewTokens,
                 "generate so many tokens after each prompt (plans of --task=generate)");
  CLI::Option *generateOptions[] = {
      app.add_flag("--ignore-eos", generate.ignoreEos, "go on past the model's stop tokens"),
      app.add_option("--temperature", generate.temperature,
                     "draw tokens from softmax(logits / temperature); 0, the default: take the "
                     "likeliest"),
      app.add_option("--top-p", generate.topP,
                     "with --temperature: draw among the likeliest tokens that have this "
                     "probability together"),
      app.add_option("--top-k", generate.topK,
                     "with --temperature: draw among so many of the likeliest tokens"),
      app.add_option("--seed", generate.seed, "of the draws (default 0)"),
      app.add_flag("--stream", generate.stream,
                   "print each step's tokens as a line of JSON on stdout")};
  std::string report;
  CLI::Option *simOptions[] = {
      app.add_option("--cluster", line.cluster,
                     "sim: " + rt::SimCluster::knownNames() + ", or a JSON file (default: h100)"),
      app.add_option("--expert-load", line.expertLoad,
                     "sim: rows of a rank's experts, as a multiple of the mean (default 1)"),
      app.add_option("--report", report, "sim: text (default) or json")};
  app.add_option("--profile", options.profile,
                 "write the time of every instruction to this file, for Perfetto");

  rt::TrainOptions train;
  std::string profileSteps;
  CLI::Option *steps =
      app.add_option("--steps", train.steps, "train until so many steps are done (--task=train)");
  CLI::Option *trainOptions[] = {
      app.add_option("--checkpoint", train.checkpoint, "directory to save the training state in"),
      app.add_option("--save-every", train.saveEvery, "steps (default: only after the last one)"),
      app.add_option("--keep", train.keep, "checkpoints that stay (default 2)"),
      app.add_flag("--resume", train.resume, "go on from the newest checkpoint, if there is one"),
      app.add_option("--metrics", train.metrics, "file of JSON lines, one a step"),
      app.add_option("--profile-steps", profileSteps,
                     "FIRST-LAST, the steps that --profile has (default: the first 20 of the run)"),
      app.add_option("--tensorboard", train.tensorboard, "directory for an event file"),
      app.add_option("--lr", train.lr, "learning rate (default: the plan's)"),
      app.add_option("--init", train.init, "begin with random weights of this seed"),
      app.add_option("--init-deviation", train.initDeviation, "of these weights (default 0.02)"),
      app.add_option("--data", train.data,
                     "prefixes of Megatron datasets (PREFIX.bin, PREFIX.idx) to read batches from")
          ->delimiter(','),
      app.add_option("--data-seed", train.dataSeed, "of the order of their rows (default 0)"),
      app.add_option("--data-temperature", train.dataTemperature,
                     "sources of n rows are mixed as n^(1/T) (default 1)"),
      app.add_option("--schedule", train.schedule,
                     "how the learning rate changes (default: as the plan says, else constant): "
                     "constant, linear, cosine or inverse-sqrt, then "
                     ",warmup=STEPS,steps=STEPS,least=RATE")};
  app.add_flag("--version", version, "print the version");
  checkNumbers(app);

  std::vector<std::string> known = {"--help"};
  for (const CLI::Option *option : app.get_options())
    if (!option->get_lnames().empty())
      known.push_back("--" + option->get_lnames().front());

  std::vector<std::string> words = normalise(argc, argv);
  Status valueless;
  checkValues(app, words, valueless);
  if (!valueless)
    return valueless;
  std::reverse(words.begin(), words.end()); // as CLI11 takes vectors
  try {
    app.parse(words);
  } catch (const CLI::CallForHelp &) {
    line.command = Command::help;
    line.helpText = app.help();
    return line;
  } catch (const CLI::ParseError &error) {
    return Status(ErrorId::UnknownFlag, std::string(error.what()) + "; see moe-run --help");
  }
  if (version) {
    line.command = Command::version;
    return line;
  }

  Status problems;
  if (generate.maxNewTokens != 0) {
    options.generate = generate;
    checkGenerate(generate, problems);
    for (const char *name : {"--top-p", "--top-k"})
      if (!app.get_option("--temperature")->count() && app.get_option(name)->count())
        problems.add(ErrorId::BadUsage, std::string(name) +
                                            " is of draws, and without --temperature=T the "
                                            "likeliest token is taken; give both, or neither");
  } else {
    for (const CLI::Option *option : generateOptions)
      if (option->count())
        problems.add(ErrorId::BadUsage, option->get_name() +
                                            " is for generating tokens; say how many with "
                                            "--max-new-tokens=N");
  }
  if (!profileSteps.empty()) {
    unsigned long long first = 0, last = 0;
    int end = 0;
    if (std::sscanf(profileSteps.c_str(), "%llu-%llu%n", &first, &last, &end) == 2 &&
        static_cast<size_t>(end) == profileSteps.size() && first <= last)
      train.profileSteps = {first, last};
    else
      problems.add(ErrorId::UnknownFlag,
                   "--profile-steps=" + profileSteps + " is no pair of steps like 100-120");
    if (options.profile.empty())
      problems.add(ErrorId::BadUsage, "--profile-steps needs --profile=FILE");
  }
  if (train.steps != 0) {
    options.train = train;
    checkTrain(train, options, problems);
    const struct {
      const char *option, *needs;
    } rules[] = {{"--save-every", "--checkpoint"}, {"--resume", "--checkpoint"},
                 {"--keep", "--checkpoint"},       {"--init-deviation", "--init"},
                 {"--data-seed", "--data"},        {"--data-temperature", "--data"}};
    for (const auto &rule : rules)
      if (app.get_option(rule.option)->count() && !app.get_option(rule.needs)->count())
        problems.add(ErrorId::BadUsage, std::string(rule.option) + " needs " + rule.needs);
  } else if (steps->count()) {
    problems.add(ErrorId::UnknownFlag, "--steps must be at least 1");
  } else {
    for (const CLI::Option *option : trainOptions)
      if (option->count())
        problems.add(ErrorId::BadUsage,
                     option->get_name() + " is for training; say how long with --steps=N");
  }
  std::vector<std::string> extraWords;
  for (const std::string &word : app.remaining()) {
    if (word.size() < 2 || word[0] != '-') {
      extraWords.push_back(word);
      continue;
    }
    std::string flag = word.substr(0, word.find('='));
    std::string near = rt::nearestWord(flag, known);
    problems.add(ErrorId::UnknownFlag,
                 "unknown option " + flag +
                     (near.empty() ? "; see moe-run --help" : "; did you mean " + near + "?"));
  }
  // A word without a flag may be the value of a mistyped one, which has been reported.
  if (problems.ok())
    for (const std::string &word : extraWords)
      problems.add(ErrorId::UnknownFlag, "unexpected argument " + word + "; one plan is run");

  if (reference == "f32")
    options.reference = rt::ReferenceMode::f32;
  else if (reference == "f64")
    options.reference = rt::ReferenceMode::f64;
  else if (!reference.empty())
    problems.add(ErrorId::UnknownFlag,
                 "--reference=" + reference + " is unknown; it is f32 or f64");
  if (!options.device.empty() && options.device != "host" && options.device != "cuda" &&
      options.device != "sim")
    problems.add(ErrorId::UnknownFlag,
                 "--device=" + options.device + " is unknown; it is host, cuda or sim");
  if (options.device != "sim")
    for (const CLI::Option *option : simOptions)
      if (option->count())
        problems.add(ErrorId::BadUsage, option->get_name() + " is for --device=sim");
  if (!report.empty() && report != "text" && report != "json")
    problems.add(ErrorId::UnknownFlag, "--report=" + report + " is unknown; it is text or json");
  line.json = report == "json";
  if (!(line.expertLoad > 0) || std::isinf(line.expertLoad))
    problems.add(ErrorId::UnknownFlag, "--expert-load must be over 0");
  for (size_t at = 0; at < devices.size();) {
    size_t comma = std::min(devices.find(',', at), devices.size());
    int number = -1;
    auto [end, error] = std::from_chars(devices.data() + at, devices.data() + comma, number);
    if (error != std::errc() || end != devices.data() + comma || number < 0 ||
        comma + 1 == devices.size()) {
      problems.add(ErrorId::UnknownFlag,
                   "--devices=" + devices + " is no list of device numbers like 0,1");
      break;
    }
    options.devices.push_back(number);
    at = comma + 1;
  }
  if (!options.devices.empty() && (options.device == "host" || options.device == "sim"))
    problems.add(ErrorId::BadUsage, "--devices is for --device=cuda");
  if (graphsOption->count())
    options.graphs = graphs;
  if (options.graphs && (options.device == "host" || options.device == "sim"))
    problems.add(ErrorId::BadUsage,
                 std::string(graphs ? "--graphs" : "--no-graphs") + " is for --device=cuda");
  if (options.repeat < 0)
    problems.add(ErrorId::UnknownFlag, "--repeat must be a number of steps, 0 or more");
  if (options.threads < 0 || options.threads > 1024)
    problems.add(ErrorId::UnknownFlag,
                 "--threads must be 1 to 1024, or 0 for a rank's share of the cores");
  if (ranksOption->count())
    line.ranks = ranks;
  if (line.ranks && options.plan != "doctor")
    problems.add(ErrorId::BadUsage, "--ranks is for moe-run doctor; a plan has the ranks that "
                                    "moe-opt --mesh=… has given it");
  if (ranks < 1 || ranks > 64)
    problems.add(ErrorId::UnknownFlag, "--ranks must be 1 to 64");
  if (!(options.timeoutSeconds >= 0) || std::isinf(options.timeoutSeconds))
    problems.add(ErrorId::UnknownFlag, "--timeout must be a number of seconds, 0 or more");
  if (options.checkTolerance && !options.check)
    problems.add(ErrorId::BadUsage, "--check-tolerance needs --check");
  if (options.checkTolerance && !(*options.checkTolerance >= 0))
    problems.add(ErrorId::UnknownFlag, "--check-tolerance must be a number, 0 or more");
  if (!problems)
    return problems;

  auto given = [](const char *option, const std::string &path) {
    return rt::NamedPath{std::string(option) + "=" + path, path};
  };
  std::vector<rt::NamedPath> inputs = {{"the plan " + options.plan, options.plan},
                                       given("--weights", options.weights),
                                       given("--inputs", options.inputs),
                                       given("--route-from", options.routeFrom),
                                       given("--cluster", line.cluster)};
  for (const std::string &prefix : train.data)
    for (const char *file : {".bin", ".idx"})
      inputs.push_back({"--data=" + prefix, prefix + file});
  problems.append(rt::checkReplaced(
      {given("--outputs", options.outputs), given("--dump-routing", options.dumpRouting),
       given("--profile", options.profile), given("--metrics", train.metrics)},
      inputs));
  if (!problems)
    return problems;

  if (options.plan == "doctor") {
    line.command = Command::doctor;
    return line;
  }
  if (options.device == "sim") {
    line.command = Command::simulate;
    if (options.plan.empty())
      return Status(ErrorId::BadUsage, "missing: the plan file; moe-run PLAN --device=sim");
    return line;
  }
  options.mayStartAgain = true;
  if (options.train)
    for (const char *name : {"--check", "--repeat", "--outputs", "--dump-routing", "--route-from"})
      if (app.get_option(name)->count())
        problems.add(ErrorId::BadUsage, std::string("training takes no ") + name);
  if (!problems)
    return problems;
  if (Status missing = checkMissing(options); !missing)
    return missing;
  return line;
}

} // namespace moira::tool
