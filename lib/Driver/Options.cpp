//===- Options.cpp - parsing moe-opt's command line -----------------------===//
#include "moira/Driver/Options.h"
#include "mlir/Pass/PassRegistry.h"
#include "moira/rt/Schedule.h"
#include "moira/rt/Suggest.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringRef.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/raw_ostream.h"

#include <cmath>
#include <functional>

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::Status;

const char *moira::phaseName(Phase phase) { return kPhaseNames[static_cast<int>(phase)]; }

namespace {

/// One option: how it is written, what it does, and how its value is taken (an error message, or
/// empty).
struct OptionSpec {
  StringRef name;
  StringRef value; // placeholder in the help
  StringRef help;
  std::function<std::string(StringRef)> set;
};

/// An option without a value.
struct SwitchSpec {
  StringRef name;
  StringRef help;
  bool &on;
};

std::optional<Phase> parsePhase(StringRef name) {
  for (auto [i, phase] : enumerate(kPhaseNames))
    if (name == phase)
      return static_cast<Phase>(i);
  return std::nullopt;
}

/// Accepts a whole number of at least `minimum`.
std::function<std::string(StringRef)> takeInteger(std::function<void(int64_t)> store,
                                                  int64_t minimum) {
  return [=](StringRef text) -> std::string {
    int64_t number;
    if (text.getAsInteger(10, number) || number < minimum)
      return "expects a whole number of at least " + std::to_string(minimum) + ", got '" +
             text.str() + "'";
    store(number);
    return "";
  };
}

std::function<std::string(StringRef)> takeOneOf(std::string &store,
                                                std::vector<std::string> choices) {
  return [&store, choices](StringRef text) -> std::string {
    if (!is_contained(choices, text.str()))
      return "expects one of " + join(choices, ", ") + ", got '" + text.str() + "'";
    store = text.str();
    return "";
  };
}

std::function<std::string(StringRef)> takePhase(std::optional<Phase> &store) {
  return [&store](StringRef text) -> std::string {
    store = parsePhase(text);
    return store ? ""
                 : "expects one of import, autodiff, shard, partition, localize, plan, got '" +
                       text.str() + "'";
  };
}

/// Bytes, or with a suffix K, M, G, T (powers of 1024).
std::function<std::string(StringRef)> takeBytes(std::optional<uint64_t> &store) {
  return [&store](StringRef text) -> std::string {
    StringRef digits = text.take_while(isDigit), suffix = text.drop_front(digits.size());
    suffix.consume_back("iB") || suffix.consume_back("B");
    size_t unit = StringRef(" KMGT").find_insensitive(suffix.empty() ? " " : suffix);
    uint64_t number, shift = unit == StringRef::npos ? 64 : 10 * unit;
    if (digits.getAsInteger(10, number) || number == 0 || suffix.size() > 1 || shift > 40 ||
        number > (uint64_t(1) << 50 >> shift))
      return "expects bytes, e.g. 40000000000 or 40G, got '" + text.str() + "'";
    store = number << shift;
    return "";
  };
}

/// A number of at least 0.
std::function<std::string(StringRef)> takeFactor(std::optional<double> &store) {
  return [&store](StringRef text) -> std::string {
    double number;
    if (text.getAsDouble(number) || !(number >= 0) || std::isinf(number))
      return "expects a number of at least 0, got '" + text.str() + "'";
    store = number;
    return "";
  };
}

/// The same for an option that has a value already.
std::function<std::string(StringRef)> takeNumber(double &store) {
  return [&store](StringRef text) {
    std::optional<double> number;
    std::string problem = takeFactor(number)(text);
    store = number.value_or(store);
    return problem;
  };
}

/// A number from 0 to under 1.
std::function<std::string(StringRef)> takeShare(double &store) {
  return [&store](StringRef text) -> std::string {
    double number;
    if (text.getAsDouble(number) || !(number >= 0 && number < 1))
      return "expects a number of at least 0 and under 1, got '" + text.str() + "'";
    store = number;
    return "";
  };
}

/// Two numbers from 0 to under 1.
std::function<std::string(StringRef)> takeBetas(double &first, double &second) {
  return [&first, &second](StringRef text) -> std::string {
    auto [one, other] = text.split(',');
    double beta1, beta2;
    if (one.getAsDouble(beta1) || other.getAsDouble(beta2) || !(beta1 >= 0 && beta1 < 1) ||
        !(beta2 >= 0 && beta2 < 1))
      return "expects two numbers of at least 0 and under 1, e.g. 0.9,0.999, got '" + text.str() +
             "'";
    first = beta1, second = beta2;
    return "";
  };
}

/// A stage of ZeRO.
std::function<std::string(StringRef)> takeStage(int64_t &store) {
  return [&store](StringRef text) -> std::string {
    int64_t stage;
    if (text.getAsInteger(10, stage) || stage < 0 || stage > 3)
      return "expects one of 0, 1, 2, 3, got '" + text.str() + "'";
    store = stage;
    return "";
  };
}

/// One number of at least 0, or two.
std::function<std::string(StringRef)> takeEps(double &first, double &second) {
  return [&first, &second](StringRef text) -> std::string {
    auto [one, other] = text.split(',');
    std::string problem = takeNumber(first)(one);
    return problem.empty() && text.contains(',') ? takeNumber(second)(other) : problem;
  };
}

std::function<std::string(StringRef)> takeSwitch(bool &store) {
  return [&store](StringRef text) -> std::string {
    if (text != "on" && text != "off")
      return "expects on or off, got '" + text.str() + "'";
    store = text == "on";
    return "";
  };
}

std::vector<OptionSpec> optionTable(CompilerOptions &o) {
  auto takeText = [](std::string &store) {
    return [&store](StringRef text) { return store = text.str(), std::string(); };
  };
  return {
      {"task", "NAME", "forward (default), grad, train or generate",
       takeOneOf(o.task, {"forward", "grad", "train", "generate"})},
      {"batch", "N", "global batch size (default 1)",
       takeInteger([&o](int64_t n) { o.batch = n; }, 1)},
      {"micro-batches", "N",
       "train: the batch is taken in N parts, one after another, with one update for all (default "
       "1)",
       takeInteger([&o](int64_t n) { o.microBatches = n; }, 1)},
      {"seq", "N", "sequence length (default 128)", takeInteger([&o](int64_t n) { o.seq = n; }, 1)},
      {"dec-seq", "N",
       "sequence length of an encoder-decoder's decoder (default: --seq; generate: its prompt, 1)",
       takeInteger([&o](int64_t n) { o.decSeq = n; }, 1)},
      {"max-seq", "N", "generate: tokens of a row at most, prompt and new (default: prompt + 128)",
       takeInteger([&o](int64_t n) { o.maxSeq = n; }, 1)},
      {"padding", "on|off",
       "forward, grad and train: whether rows may be padded (default on); off: masks must be 1, "
       "and attention knows it",
       takeSwitch(o.padding)},
      {"mesh", "AXES", "e.g. dp=2,ep=4,tp=2 (default: one rank)", takeText(o.mesh)},
      {"dtype", "TYPE", "compute type: f32 (default) or bf16", takeOneOf(o.dtype, {"f32", "bf16"})},
      {"grad-dtype", "TYPE",
       "grad and train: type of the weights' gradients that products of bf16 make, f32 "
       "(default) or bf16",
       takeOneOf(o.gradDtype, {"f32", "bf16"})},
      {"target", "TARGET", "host (default) or sm_90", takeOneOf(o.target, {"host", "sm_90"})},
      {"host-cpu", "CPU",
       "instruction set of generated host kernels: x86-64-v3 (default), x86-64-v4",
       takeOneOf(o.hostCpu, {"x86-64-v3", "x86-64-v4"})},
      {"ragged-bound", "N", "initial rows a slot of dropless exchanges",
       takeInteger([&o](int64_t n) { o.raggedBound = n; }, 1)},
      {"capacity-factor", "F",
       "room of each expert: F times its even share of the choices (default: the model's, else no "
       "limit)",
       takeFactor(o.capacityFactor)},
      {"drop-policy", "POLICY",
       "whose choices are dropped over the capacity: position (default), probs, random, priority; "
       "none: no limit",
       takeOneOf(o.dropPolicy, {"none", "position", "probs", "random", "priority"})},
      {"min-capacity", "N", "least room that --capacity-factor gives (default 4)",
       takeInteger([&o](int64_t n) { o.minCapacity = n; }, 0)},
      {"drop-seed", "N", "seed of --drop-policy=random (default 0)",
       takeInteger([&o](int64_t n) { o.dropSeed = n; }, 0)},
      {"aux-loss", "F", "grad and train: share of the routers' load-balancing losses (default 0)",
       takeFactor(o.auxLoss)},
      {"aux-loss-domain", "DOMAIN",
       "what --aux-loss balances: batch (default), all its tokens together; sequence, each by "
       "itself",
       takeOneOf(o.auxLossDomain, {"batch", "sequence"})},
      {"z-loss", "F", "grad and train: share of the routers' z-losses (default 0)",
       takeFactor(o.zLoss)},
      {"router-noise", "on|off",
       "train: the noise of routers that the model's config.json gives (router_jitter_noise; "
       "default off)",
       takeSwitch(o.noise.on)},
      {"noise-seed", "N", "seed of --router-noise (default 0)",
       takeInteger([&o](int64_t n) { o.noise.seed = n; }, 0)},
      {"label-smoothing", "F", "grad and train: share of all classes in every label (default 0)",
       takeShare(o.labelSmoothing)},
      {"optimizer", "NAME", "train: adamw (default), adafactor or sgd",
       takeOneOf(o.optimizer.optimizer, {"adamw", "adafactor", "sgd"})},
      {"lr", "RATE", "train: learning rate (default 1e-3; moe-run can change it, also by step)",
       takeNumber(o.optimizer.lr)},
      {"schedule", "HOW",
       "train: how the rate changes, if moe-run does not say: constant, linear, cosine or "
       "inverse-sqrt, then ,warmup=STEPS,steps=STEPS,least=RATE",
       takeText(o.schedule)},
      {"betas", "B1,B2", "adamw (default 0.9,0.999)",
       takeBetas(o.optimizer.beta1, o.optimizer.beta2)},
      {"eps", "X", "adamw (default 1e-8); adafactor: two (default 1e-30,1e-3)",
       takeEps(o.optimizer.eps, o.optimizer.eps2)},
      {"decay-rate", "X", "adafactor: averages have 1 - step^-X (default 0.8)",
       takeNumber(o.optimizer.decayRate)},
      {"clip-threshold", "X", "adafactor: largest root mean square of an update (default 1)",
       takeNumber(o.optimizer.clipThreshold)},
      {"scale-parameter", "on|off",
       "adafactor: the rate is relative to a parameter's root mean square (default on)",
       takeSwitch(o.optimizer.scaleParameter)},
      {"weight-decay", "X", "of every weight (default 0.01; adafactor: 0)",
       takeNumber(o.optimizer.weightDecay)},
      {"momentum", "X", "sgd (default 0)", takeNumber(o.optimizer.momentum)},
      {"clip-norm", "X", "largest norm of all gradients together (default 0: any)",
       takeNumber(o.optimizer.clipNorm)},
      {"bias-update-rate", "F",
       "train: selection biases move by F a step towards an even load (default: they stay)",
       takeNumber(o.optimizer.biasRate)},
      {"zero", "STAGE",
       "train: ranks that replicate a weight split its update (1, 2) and the weight too (3); "
       "default 0",
       takeStage(o.zeroStage)},
      {"offload", "WHAT",
       "train: what lies in the host's memory: none (default), optimizer or optimizer+params; on "
       "--target=host everything does",
       takeOneOf(o.offload, {"none", "optimizer", "optimizer+params"})},
      {"attention-grad", "HOW",
       "gradients of attention on a GPU: reproducible (default), the same bits in every run, or "
       "fastest, whose sums are added in any order",
       takeOneOf(o.attentionGrad, {"reproducible", "fastest"})},
      {"memory-limit", "BYTES",
       "refuse a plan that needs more of a rank's device (K, M, G, T allowed)",
       takeBytes(o.memoryLimit)},
      {"recompute", "POLICY",
       "grad and train: values that are made again instead of kept: none, selective (cheap ones), "
       "full (all but the layers' inputs), auto: the first of these that --memory-limit allows "
       "(default: auto with a limit, else none)",
       takeOneOf(o.recompute, {"none", "selective", "full", "auto"})},
      {"compile-to", "PHASE",
       "stop after a phase and print its IR: import autodiff shard partition localize plan",
       takePhase(o.compileTo)},
      {"compile-from", "PHASE",
       "the input is IR that has reached this phase (default: what the IR shows)",
       takePhase(o.compileFrom)},
      {"dump-phases-to", "DIR", "write the IR of every phase there", takeText(o.dumpPhasesTo)},
      {"report", "FORM", "text on stderr (default), json on stdout, or none",
       takeOneOf(o.report, {"text", "json", "none"})},
      {"explain", "TENSOR",
       "print on stdout which pass cut this weight and why, and what a rank would need and send "
       "otherwise (-o may be left out)",
       takeText(o.explain)},
      {"why-not", "MESH",
       "print on stdout all that keeps the model from this mesh, and what a rank needs and sends "
       "on the nearest ones that fit; writes nothing",
       takeText(o.whyNot)},
  };
}

std::vector<SwitchSpec> switchTable(CompilerOptions &o) {
  return {
      {"memory-only",
       "report what a rank needs and write nothing; operations that Moira lacks are stood in for "
       "by others of the same sizes",
       o.memoryOnly},
      {"deterministic",
       "add up sums over tokens sample by sample, so that every mesh of dp and ep, with every "
       "stage of ZeRO, gives the same bits (--target=host)",
       o.deterministic},
      {"timing", "print on stderr how long each phase took", o.timing},
      {"verify-roundtrip", "print, parse and compare the IR after every phase", o.verifyRoundtrip},
  };
}

bool isMlirFlag(StringRef name) {
  return name.starts_with("mlir-") || name == "debug" || name == "debug-only";
}

/// "name" and "value" of --name=value; nullopt for anything else.
std::optional<std::pair<StringRef, std::optional<StringRef>>> splitFlag(StringRef arg) {
  if (!arg.consume_front("--"))
    return std::nullopt;
  size_t equals = arg.find('=');
  if (equals == StringRef::npos)
    return std::make_pair(arg, std::optional<StringRef>());
  return std::make_pair(arg.take_front(equals),
                        std::optional<StringRef>(arg.drop_front(equals + 1)));
}

/// "; did you mean --mesh?", or where to look.
std::string hintFor(StringRef name, ArrayRef<OptionSpec> table, ArrayRef<SwitchSpec> switches) {
  std::vector<std::string> known;
  for (const OptionSpec &option : table)
    known.push_back(option.name.str());
  for (const SwitchSpec &option : switches)
    known.push_back(option.name.str());
  std::string near = rt::nearestWord(name, known);
  return near.empty() ? "; moe-opt --help lists them" : "; did you mean --" + near + "?";
}

void printHelp(ArrayRef<OptionSpec> table, ArrayRef<SwitchSpec> switches) {
  outs()
      << "moe-opt MODEL [options] -o FILE      compile a model for a mesh\n"
         "moe-opt FILE.mlir --some-pass …      run passes (moe-opt --list-passes names them); - is "
         "stdin\n\n"
         "MODEL is a model directory (config.json and safetensors), a config.json alone, .mlir "
         "or .mlirbc text of any phase, or a .moeplan.\n\n";
  for (const OptionSpec &option : table)
    outs() << "  --" << left_justify((option.name + "=" + option.value).str(), 26) << option.help
           << "\n";
  outs() << "  -o FILE                     the plan, or IR with --compile-to (default: stdout for "
            "IR)\n";
  for (const SwitchSpec &option : switches)
    outs() << "  --" << left_justify(option.name, 26) << option.help << "\n";
  outs() << "  --mlir-…                    MLIR's debugging options, e.g. "
            "--mlir-print-ir-after-all\n"
            "  --version                   print the version\n\n"
            "Exit codes: 0 success, 1 usage, 2 invalid input, 3 infeasible, 4 internal error, 5 an "
            "I/O failure.\n";
}

} // namespace

bool moira::wantsCompiler(int argc, char **argv) {
  CompilerOptions scratch;
  std::vector<OptionSpec> table = optionTable(scratch);
  bool hasModel = false, writesPlan = false;
  for (int i = 1; i < argc; ++i) {
    StringRef arg = argv[i];
    if (auto flag = splitFlag(arg)) {
      if (flag->first == "help" ||
          any_of(table, [&](const OptionSpec &o) { return o.name == flag->first; }))
        return true;
      continue;
    }
    if (arg == "-h" || arg == "-help")
      return true;
    if (arg == "-o") {
      writesPlan |= i + 1 < argc && StringRef(argv[i + 1]).ends_with(".moeplan");
      ++i;
    } else if (!arg.starts_with("-") || arg == "-") {
      hasModel |= !arg.ends_with(".mlir") && !arg.ends_with(".mlirbc") && arg != "-";
    }
  }
  return hasModel || writesPlan || argc == 1;
}

bool moira::isProgram(StringRef model) {
  return model.ends_with(".mlir") || model.ends_with(".mlirbc") || model.ends_with(".moeplan") ||
         model == "-";
}

Status moira::checkTask(const CompilerOptions &options, StringRef task) {
  Status status;
  for (StringRef name : {"optimizer", "lr", "schedule", "betas", "eps", "weight-decay", "momentum",
                         "clip-norm", "bias-update-rate", "zero", "router-noise", "noise-seed"})
    if (task != "train" && is_contained(options.given, name))
      status.add(ErrorId::BadUsage, "--" + name.str() + " is for --task=train");
  if (options.offload != "none" && task != "train")
    status.add(ErrorId::BadUsage, "--offload is for --task=train");
  bool differentiated = task == "grad" || task == "train";
  for (StringRef name : {"aux-loss", "aux-loss-domain", "z-loss", "label-smoothing", "grad-dtype"})
    if (!differentiated && is_contained(options.given, name))
      status.add(ErrorId::BadUsage, "--" + name.str() + " is for --task=grad and train");
  if (!options.recompute.empty() && !differentiated)
    status.add(ErrorId::BadUsage, "--recompute is for --task=grad and train");
  return status;
}

/// Options that would change nothing, because another one is missing. One that is given and says
/// "none of it" is not missing.
static Status checkUnused(const CompilerOptions &options) {
  const std::string &optimizer = options.optimizer.optimizer;
  bool adafactor = optimizer == "adafactor";
  // A program may have random drops of its own, whose seed a new capacity takes from here.
  bool mayDraw = options.dropPolicy.empty() && options.capacityFactor && isProgram(options.model);
  const struct {
    StringRef option, needs;
    bool met;
  } rules[] = {
      {"decay-rate", "is for --optimizer=adafactor", adafactor},
      {"clip-threshold", "is for --optimizer=adafactor", adafactor},
      {"scale-parameter", "is for --optimizer=adafactor", adafactor},
      {"betas", "is for --optimizer=adamw", optimizer == "adamw"},
      {"eps", "is for --optimizer=adamw and adafactor", optimizer != "sgd"},
      {"momentum", "is for --optimizer=sgd", optimizer == "sgd"},
      {"min-capacity", "needs --capacity-factor=F", options.capacityFactor.has_value()},
      {"drop-seed", "is for --drop-policy=random", options.dropPolicy == "random" || mayDraw},
      {"aux-loss-domain", "needs --aux-loss=F", options.auxLoss.has_value()},
      {"noise-seed", "needs --router-noise=on", is_contained(options.given, "router-noise")}};
  Status status;
  for (const auto &rule : rules)
    if (!rule.met && is_contained(options.given, rule.option))
      status.add(ErrorId::BadUsage, "--" + rule.option.str() + " " + rule.needs.str());
  if (optimizer == "adamw" && options.optimizer.eps2 != CompilerOptions().optimizer.eps2)
    status.add(ErrorId::BadUsage, "--eps is one number for --optimizer=adamw; adafactor has two");
  return status;
}

Status moira::parseCompilerOptions(int argc, char **argv, CompilerOptions &options, bool &help) {
  Status status;
  std::vector<OptionSpec> table = optionTable(options);
  std::vector<SwitchSpec> switches = switchTable(options);
  help = false;
  if (argc == 1)
    return Status(ErrorId::BadUsage, "no model given; moe-opt MODEL [options] -o FILE compiles "
                                     "one, moe-opt - reads a module from stdin, and moe-opt "
                                     "--help lists the options");
  std::vector<std::string> models;
  for (int i = 1; i < argc; ++i) {
    StringRef arg = argv[i];
    if (arg == "--help" || arg == "-h" || arg == "-help") {
      help = true;
      continue;
    }
    if (arg == "-o") {
      if (++i == argc)
        status.add(ErrorId::UnknownFlag, "-o expects a file name");
      else
        options.output = argv[i];
      continue;
    }
    auto flag = splitFlag(arg);
    if (!flag) {
      if (arg.starts_with("-") && arg != "-")
        status.add(ErrorId::UnknownFlag,
                   "unknown option '" + arg.str() + "'; moe-opt --help lists them");
      else
        models.push_back(arg.str());
      continue;
    }
    auto [name, value] = *flag;
    auto known = find_if(table, [&, n = name](const OptionSpec &o) { return o.name == n; });
    if (known != table.end()) {
      if (!value && i + 1 < argc && !StringRef(argv[i + 1]).starts_with("-"))
        value = argv[++i];
      std::string problem = value && !value->empty() ? known->set(*value)
                                                     : "expects a value: --" + known->name.str() +
                                                           "=" + known->value.str();
      if (!problem.empty())
        status.add(ErrorId::UnknownFlag, "--" + known->name.str() + " " + problem);
      options.given.push_back(known->name.str());
    } else if (auto plain =
                   find_if(switches, [&, n = name](const SwitchSpec &o) { return o.name == n; });
               plain != switches.end()) {
      if (value)
        status.add(ErrorId::UnknownFlag, "--" + plain->name.str() + " takes no value, got '" +
                                             value->str() + "': write it alone, or leave it out");
      plain->on = true;
      options.given.push_back(plain->name.str());
    } else if (isMlirFlag(name)) {
      options.mlirFlags.push_back(arg.str());
    } else if (mlir::PassInfo::lookup(name)) {
      status.add(ErrorId::BadUsage,
                 "--" + name.str() +
                     " runs a pass, other options compile a model; use one or the other "
                     "(--dump-phases-to=DIR writes the IR to run passes on)");
    } else {
      status.add(ErrorId::UnknownFlag,
                 "unknown option '--" + name.str() + "'" + hintFor(name, table, switches));
    }
  }
  if (help) {
    printHelp(table, switches);
    return {};
  }
  if (models.size() != 1)
    status.add(ErrorId::BadUsage,
               models.empty() ? "no model given; moe-opt MODEL [options] -o FILE"
                              : "more than one model given: '" + join(models, "', '") + "'");
  else
    options.model = models.front();
  if (!isProgram(options.model))
    status.append(checkTask(options, options.task));
  if (options.noise.on && options.target != "host")
    status.add(ErrorId::BadUsage, "--router-noise=on is for --target=host in this version: GPUs "
                                  "have no kernel for it yet");
  status.append(checkUnused(options));
  bool adafactor = options.optimizer.optimizer == "adafactor";
  if (adafactor && options.zeroStage > 0)
    status.add(ErrorId::BadUsage,
               "--zero is for adamw and sgd: adafactor keeps rows and columns of "
               "a weight, which have no parts");
  if (adafactor && options.offload != "none")
    status.add(ErrorId::BadUsage,
               "--offload is for adamw and sgd: what adafactor keeps of a weight is small");
  if (options.offload == "optimizer+params" && (options.zeroStage == 1 || options.zeroStage == 2))
    status.add(ErrorId::BadUsage,
               "--offload=optimizer+params goes with --zero=3 (or 0): at stages 1 and 2 a device "
               "holds every weight whole, to gather its parts in; take --zero=3, or "
               "--offload=optimizer");
  if (options.deterministic && options.target != "host")
    status.add(ErrorId::BadUsage, "--deterministic is for --target=host: the libraries of GPUs add "
                                  "up in orders of their own");
  if (options.attentionGrad == "fastest" && options.target == "host")
    status.add(ErrorId::BadUsage, "--attention-grad=fastest is for GPUs, such as --target=sm_90; "
                                  "the host has one way, which is reproducible");
  if (options.deterministic && options.task == "generate")
    status.add(ErrorId::BadUsage, "--deterministic is for --task=forward, grad and train");
  if (!options.padding && options.task == "generate")
    status.add(ErrorId::BadUsage,
               "--padding=off is for --task=forward, grad and train: prompts may "
               "be of unequal lengths");
  bool narrowGradients = options.gradDtype == "bf16";
  if (narrowGradients && options.dtype != "bf16" && !options.compileFrom)
    status.add(ErrorId::BadUsage, "--grad-dtype=bf16 is for --dtype=bf16: products of f32 give "
                                  "gradients in f32");
  if (narrowGradients && options.deterministic)
    status.add(ErrorId::BadUsage, "--grad-dtype=bf16 does not go with --deterministic: ranks would "
                                  "add up parts that were rounded");
  if (options.deterministic && adafactor)
    status.add(ErrorId::BadUsage, "--deterministic is for adamw and sgd: adafactor adds up squares "
                                  "over cut dimensions");
  if (adafactor && !(options.optimizer.clipThreshold > 0))
    status.add(ErrorId::BadUsage, "--clip-threshold must be positive");
  if (adafactor && !is_contained(options.given, "eps"))
    options.optimizer.eps = 1e-30;
  if (adafactor && !is_contained(options.given, "weight-decay"))
    options.optimizer.weightDecay = 0;
  if (!options.schedule.empty())
    if (rt::Expected<rt::Schedule> schedule =
            rt::Schedule::parse(options.schedule, options.optimizer.lr);
        !schedule)
      status.append(schedule.takeStatus());
  if (options.recompute == "auto" && !options.memoryLimit)
    status.add(ErrorId::BadUsage, "--recompute=auto needs a --memory-limit to choose by");
  if (options.compileTo && options.compileFrom && *options.compileTo < *options.compileFrom)
    status.add(ErrorId::BadUsage,
               std::string("--compile-to=") + phaseName(*options.compileTo) +
                   " lies before --compile-from=" + phaseName(*options.compileFrom));
  if (options.memoryOnly && (!options.output.empty() || options.compileTo))
    status.add(ErrorId::BadUsage,
               "--memory-only writes nothing; leave out -o and --compile-to, or --memory-only");
  if (!options.whyNot.empty() &&
      (!options.output.empty() || options.compileTo || !options.mesh.empty()))
    status.add(ErrorId::BadUsage, "--why-not compiles nothing: leave out -o, --compile-to and "
                                  "--mesh, or --why-not");
  if (!options.explain.empty() &&
      (options.report == "json" || (options.compileTo && options.output.empty())))
    status.add(ErrorId::BadUsage, "--explain writes on stdout, where --report=json and IR without "
                                  "-o would be, too");
  if (!options.explain.empty() && !options.whyNot.empty())
    status.add(ErrorId::BadUsage, "--explain and --why-not are two questions; ask one at a time");
  if (options.output.empty() && !options.compileTo && !options.memoryOnly &&
      options.explain.empty() && options.whyNot.empty() &&
      !StringRef(options.model).ends_with(".moeplan"))
    status.add(ErrorId::BadUsage,
               "no output given: -o FILE.moeplan for a plan, or --compile-to=PHASE to print IR");
  return status;
}
