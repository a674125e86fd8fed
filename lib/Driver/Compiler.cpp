//===- Compiler.cpp - the phases of a compile, in order -------------------===//
// Reads a model or IR, runs each phase's pipeline, dumps and stops where asked, writes the plan and
// reports. What a phase does is in its own library.
//===----------------------------------------------------------------------===//
#include "moira/Driver/Compiler.h"
#include "DiagnosticCollector.h"
#include "Explain.h"
#include "Files.h"
#include "ReachedPhase.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/AsmState.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Support/FileUtilities.h"
#include "moira/Analysis/MeshCheck.h"
#include "moira/Conversion/PlanPipeline.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/Import/Importer.h"
#include "moira/Target/Plan/PlanFileIO.h"
#include "moira/Transforms/Passes.h"
#include "moira/rt/OutputFile.h"
#include "moira/rt/PlanSummary.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/raw_ostream.h"

#include <chrono>

using namespace mlir;
using namespace moira;
using rt::ErrorId;
using rt::Status;

namespace {

/// One compile: the module on its way, and what the report will say.
class Compilation {
public:
  explicit Compilation(const CompilerOptions &options)
      : options(options), context(makeRegistry(), MLIRContext::Threading::DISABLED),
        diagnostics(context) {
    context.loadAllAvailableDialects();
  }

  Status run();

private:
  static DialectRegistry makeRegistry() {
    DialectRegistry registry;
    registerMoiraDialects(registry);
    return registry;
  }

  Status compile();
  Status runPhases();
  /// What a plan of these options would be; nothing is written.
  Status measureAs(CompilerOptions options, rt::PlanSummary &summary) const;
  /// A line of a table: what a plan costs, or why there is none. `over` becomes true if that is
  /// more than the memory limit.
  std::string costOf(const std::string &what, const Status &status, const rt::PlanSummary &summary,
                     bool *over = nullptr) const;
  /// A line of a table: what the whole plan costs as it is, but for `change`.
  std::string costOf(const std::string &what, llvm::function_ref<void(CompilerOptions &)> change,
                     bool *over = nullptr) const;
  Status answerWhyNot();
  void explain(const Status &compiled) const;
  Status load();
  Status loadText();
  Status loadPlan();
  Status adjust();
  Status runPhase(Phase phase);
  /// step(), its time noted as that of `name` for --timing.
  Status timed(StringRef name, llvm::function_ref<Status()> step);
  Status differentiate();
  Status partition(PartitionOptions sharding);
  /// What a rank needs of each arena for the module as it is, which has been partitioned.
  Status measure(std::vector<ArenaBytes> &arenas);
  PlanOptions planOptions() const;
  Status runPasses(llvm::function_ref<void(OpPassManager &)> build);
  Status buildPlanModule();
  Status writeAndReport();
  Status checkMemory(const rt::PlanSummary &summary);
  /// An error if the module's text does not parse, or not to a module that prints the same.
  Status checkRoundTrip(Phase phase);
  /// The module as text with locations, so that --compile-from loses nothing.
  static std::string print(ModuleOp module);

  const CompilerOptions &options;
  /// The IR that was read, which may have come through a pipe and cannot be read twice. The context
  /// may refer to it.
  std::shared_ptr<llvm::MemoryBuffer> text;
  MLIRContext context;
  DiagnosticCollector diagnostics;
  OwningOpRef<ModuleOp> module;
  OwningOpRef<ModuleOp>
      global; // the program before partitioning: the source of the reference program
  Phase reached = Phase::import;
  std::vector<std::pair<std::string, double>> seconds; // of each step, in order
  std::vector<std::string> standIns;      // operations that are only planned (--memory-only)
  std::optional<ShardingHistory> history; // of what --explain names
  std::optional<MeshInfo> explained;      // the mesh, once the history is whole
  bool hasZero = false;                   // whether the explained program has stages of ZeRO
  std::optional<rt::PlanSummary> planned; // what became of it
  rt::PlanSummary *measured = nullptr;    // for whom this compile is made, if not for a file
};

/// The functions that only the reference program comes from are not for the mesh.
void keepMeshPrograms(ModuleOp module) {
  for (auto function : llvm::make_early_inc_range(module.getOps<func::FuncOp>()))
    if (function->hasAttr("moe.reference"))
      function.erase();
}

/// Whether updates of weights may be cut: adafactor's are not.
bool hasStagesOfZero(ModuleOp module) {
  auto info = module->getAttrOfType<plan::InfoAttr>("plan.info");
  return info && info.getTask() == "train" &&
         !module.walk([](moe::AdafactorOp) { return WalkResult::interrupt(); }).wasInterrupted();
}

/// What is wrong, or an internal error if a step failed without saying why.
Status problemsOf(DiagnosticCollector &diagnostics, const char *step) {
  Status status = diagnostics.take();
  if (status.ok())
    status.add(ErrorId::Internal,
               std::string(step) +
                   " failed without a message; please report it with the model's config.json");
  return status;
}

} // namespace

//===----------------------------------------------------------------------===//
// Reading
//===----------------------------------------------------------------------===//

Status Compilation::load() {
  StringRef model = options.model;
  if (model.ends_with(".moeplan"))
    return loadPlan();
  if (isProgram(model))
    return loadText();
  if (model.ends_with(".safetensors"))
    return {ErrorId::BadUsage, options.model + " holds weights: name the directory that it is in, "
                                               "with its config.json"};
  if (std::string program = options.model + "/model.mlir";
      llvm::sys::fs::exists(program) && !llvm::sys::fs::exists(options.model + "/config.json"))
    return {ErrorId::BadUsage,
            options.model + " has no config.json; its program is compiled by the name " + program};
  if (options.compileFrom && *options.compileFrom != Phase::import)
    return {ErrorId::BadUsage, std::string("--compile-from=") + phaseName(*options.compileFrom) +
                                   " needs IR (.mlir), " + options.model + " is a model"};
  ImportOptions import;
  import.batch = options.batch;
  import.seq = options.seq;
  import.microBatches = options.microBatches;
  import.schedule = options.schedule;
  import.decSeq = options.decSeq;
  import.maxSeq = options.maxSeq;
  import.padding = options.padding;
  import.task = options.task;
  import.dtype = options.dtype;
  import.memoryOnly = options.memoryOnly;
  Status status;
  ImportSummary summary;
  module = importModel(context, options.model, import, status, summary);
  if (status.ok() && !module)
    status = problemsOf(diagnostics, "import");
  standIns = std::move(summary.standIns);
  return status;
}

Status Compilation::loadText() {
  diagnostics.setFallback(ErrorId::InvalidIR);
  if (!llvm::sys::fs::exists(options.model) && options.model != "-")
    return {ErrorId::FileNotFound, options.model + ": no such file"};
  if (!text) {
    std::string problem;
    text = openInputFile(options.model, &problem);
    if (!text)
      return {ErrorId::FileNotFound, problem};
  }
  auto source = std::make_shared<llvm::SourceMgr>();
  source->AddNewSourceBuffer(llvm::MemoryBuffer::getMemBuffer(text->getMemBufferRef()), SMLoc());
  module = parseSourceFile<ModuleOp>(source, &context);
  if (!module)
    return problemsOf(diagnostics, "parsing");
  reached = options.compileFrom ? *options.compileFrom : phaseOf(*module);
  if (Status status = checkDecided(options, reached); !status)
    return status;
  if (options.compileTo && *options.compileTo < reached)
    return {ErrorId::BadUsage, std::string("--compile-to=") + phaseName(*options.compileTo) +
                                   " lies before the phase that " + options.model +
                                   " has reached, " + phaseName(reached)};
  if (reached == Phase::import)
    if (Status status = takeTask(*module, options); !status)
      return status;
  auto info = (*module)->getAttrOfType<plan::InfoAttr>("plan.info");
  return checkTask(options, info ? info.getTask() : "forward");
}

Status Compilation::loadPlan() {
  rt::Expected<rt::PlanFile> file = rt::PlanFile::open(options.model);
  if (!file)
    return file.takeStatus();
  reached = Phase::plan;
  if (Status status = checkDecided(options, reached); !status)
    return status;
  module = readPlan(*file, &context);
  return module ? Status() : problemsOf(diagnostics, "decompilation");
}

//===----------------------------------------------------------------------===//
// Phases
//===----------------------------------------------------------------------===//

Status Compilation::runPasses(llvm::function_ref<void(OpPassManager &)> build) {
  PassManager passes(&context);
  if (failed(applyPassManagerCLOptions(passes)))
    return {ErrorId::UnknownFlag, "MLIR does not accept these debugging options"};
  build(passes);
  if (history)
    passes.addInstrumentation(history->watch());
  return succeeded(passes.run(*module)) ? Status() : problemsOf(diagnostics, "a pass");
}

Status Compilation::runPhase(Phase phase) {
  PartitionOptions sharding;
  sharding.mesh = options.mesh;
  sharding.raggedBound = options.raggedBound.value_or(0);
  sharding.zeroStage = options.zeroStage;
  switch (phase) {
  case Phase::import:
    return {};
  case Phase::autodiff:
    return differentiate();
  case Phase::shard:
    global = module->clone();
    keepMeshPrograms(*module);
    if (!options.explain.empty()) {
      rt::Expected<ShardingHistory> begun = ShardingHistory::of(*module, options.explain);
      if (!begun)
        return begun.takeStatus();
      history = std::move(*begun);
    }
    if (Status status =
            runPasses([&](OpPassManager &passes) { buildShardPipeline(passes, sharding); });
        !status || !history)
      return status;
    explained = dist::getMesh(*module);
    hasZero = hasStagesOfZero(*module);
    llvm::outs() << history->text(*explained);
    return {};
  case Phase::partition:
    return partition(sharding);
  case Phase::localize:
    return runPasses([&](OpPassManager &passes) { buildLocalizePipeline(passes, sharding); });
  case Phase::plan:
    return buildPlanModule();
  }
  return {};
}

/// Into how many parts the batch is cut: programs have rows for one.
static int64_t microBatchesOf(ModuleOp module, int64_t batch) {
  for (auto function : module.getOps<func::FuncOp>())
    for (unsigned i = 0; i < function.getNumArguments(); ++i)
      if (auto name = function.getArgAttrOfType<StringAttr>(i, "moe.name");
          name && name == "input_ids" && !function->hasAttr("moe.reference"))
        if (auto type = dyn_cast<RankedTensorType>(function.getArgumentTypes()[i]))
          return std::max<int64_t>(1, batch / std::max<int64_t>(1, type.getDimSize(0)));
  return 1;
}

/// What the program's task needs of autodiff; --task=forward has nothing to differentiate.
Status Compilation::differentiate() {
  auto info = (*module)->getAttrOfType<plan::InfoAttr>("plan.info");
  if (!info || (info.getTask() != "grad" && info.getTask() != "train"))
    return {};
  LossOptions loss;
  loss.smoothing = options.labelSmoothing;
  loss.balance = options.auxLoss.value_or(0);
  loss.perSequence = options.auxLossDomain == "sequence";
  loss.z = options.zLoss.value_or(0);
  loss.narrowGradients = options.gradDtype == "bf16";
  return runPasses([&](OpPassManager &passes) {
    if (info.getTask() == "train")
      buildTrainPipeline(passes, loss, options.noise, options.optimizer,
                         microBatchesOf(*module, info.getBatch()));
    else
      buildAutodiffPipeline(passes, loss);
  });
}

/// "12.0 GiB: state 8.0 GiB, activations 4.0 GiB"
static std::string arenasText(ArrayRef<ArenaBytes> arenas) {
  std::string text;
  uint64_t sum = 0;
  for (const ArenaBytes &arena : arenas) {
    if (arena.bytes == 0)
      continue;
    text += (text.empty() ? ": " : ", ") + arena.name + " " + rt::bytesText(arena.bytes);
    sum += arena.bytes;
  }
  return rt::bytesText(sum) + text;
}

Status Compilation::partition(PartitionOptions sharding) {
  auto run = [&](StringRef recompute) {
    sharding.recompute = recompute.str();
    return runPasses([&](OpPassManager &passes) { buildPartitionPipeline(passes, sharding); });
  };
  std::string policy = options.recompute;
  if (policy.empty())
    policy = options.memoryLimit && hasGradients(*module) ? "auto" : "none";
  if (policy != "auto")
    return run(policy);
  // The least work that fits. What fits is known of a whole plan only, so each policy is planned.
  OwningOpRef<ModuleOp> sharded = module->clone();
  std::string table;
  for (StringRef tried : {"none", "selective", "full"}) {
    module = sharded->clone();
    std::vector<ArenaBytes> arenas;
    if (Status status = run(tried); !status)
      return status;
    if (Status status = measure(arenas); !status)
      return status;
    uint64_t sum = 0;
    for (const ArenaBytes &arena : arenas)
      sum += arena.bytes;
    if (sum <= *options.memoryLimit)
      return {};
    table += "\n  --recompute=" + tried.str() + ": " + arenasText(arenas);
  }
  return {ErrorId::OverMemoryLimit,
          "whatever is made again instead of kept, a rank needs more than "
          "the limit of " +
              rt::bytesText(*options.memoryLimit) +
              "; split further (--mesh) or take a smaller --batch or "
              "--seq" +
              table};
}

Status Compilation::measure(std::vector<ArenaBytes> &arenas) {
  OwningOpRef<ModuleOp> localized = module->clone();
  std::swap(module, localized);
  Status status =
      runPasses([](OpPassManager &passes) { buildLocalizePipeline(passes, PartitionOptions()); });
  std::swap(module, localized);
  if (!status)
    return status;
  FailureOr<std::vector<ArenaBytes>> measured = measurePlan(*localized, planOptions());
  if (failed(measured))
    return problemsOf(diagnostics, "planning");
  arenas = std::move(*measured);
  return {};
}

PlanOptions Compilation::planOptions() const {
  PlanOptions plan;
  plan.target = options.target;
  plan.hostCpu = options.hostCpu;
  plan.offload = options.offload;
  plan.attentionGrad = options.attentionGrad;
  return plan;
}

Status Compilation::buildPlanModule() {
  OwningOpRef<ModuleOp> built;
  if (failed(buildPlan(*module, global ? *global : ModuleOp(), planOptions(), built)))
    return problemsOf(diagnostics, "planning");
  module = std::move(built);
  return {};
}

std::string Compilation::print(ModuleOp module) {
  std::string text;
  llvm::raw_string_ostream out(text);
  OpPrintingFlags flags;
  flags.enableDebugInfo(true, /*prettyForm=*/false);
  module.print(out, flags);
  out << "\n";
  return text;
}

Status Compilation::checkRoundTrip(Phase phase) {
  std::string text = print(*module);
  // In a context of its own, so that names of resources are free again.
  MLIRContext fresh(makeRegistry(), MLIRContext::Threading::DISABLED);
  DiagnosticCollector problems(fresh);
  problems.setFallback(ErrorId::Internal);
  OwningOpRef<ModuleOp> parsed = parseSourceString<ModuleOp>(text, &fresh, phaseName(phase));
  if (!parsed)
    return problemsOf(problems, "parsing the printed IR");
  if (print(*parsed) != text)
    return {ErrorId::Internal, std::string("the IR of phase ") + phaseName(phase) +
                                   " prints differently after it was printed and parsed"};
  return {};
}

//===----------------------------------------------------------------------===//
// Results
//===----------------------------------------------------------------------===//

Status Compilation::checkMemory(const rt::PlanSummary &summary) {
  const rt::ProgramSummary *program = summary.main();
  if (!options.memoryLimit || !program || program->totalBytes <= *options.memoryLimit)
    return {};
  std::string table;
  for (const rt::ArenaSummary &arena : program->arenas)
    if (!arena.onHost)
      table += "\n  " + arena.name + ": " + rt::bytesText(arena.bytes);
  return {ErrorId::OverMemoryLimit,
          "a rank needs " + rt::bytesText(program->totalBytes) + ", the limit is " +
              rt::bytesText(*options.memoryLimit) +
              "; split further (--mesh) or take a smaller --batch or --seq" +
              (options.recompute == "none" || options.recompute == "selective"
                   ? " or --recompute=full"
                   : "") +
              table};
}

Status Compilation::writeAndReport() {
  diagnostics.setFallback(ErrorId::Internal);
  FailureOr<std::vector<uint8_t>> bytes = writePlan(*module);
  if (failed(bytes))
    return problemsOf(diagnostics, "writing the plan");
  rt::Expected<rt::PlanFile> file = rt::PlanFile::fromBytes(*bytes);
  if (!file)
    return file.takeStatus();
  rt::PlanSummary summary = rt::summarize(*file);
  if (measured) {
    *measured = std::move(summary);
    return {};
  }
  if (explained)
    planned = summary;
  if (options.report == "json")
    llvm::outs() << rt::summaryJson(summary);
  else if (options.report == "text")
    llvm::errs() << rt::reportText(summary);
  for (const std::string &problem : standIns)
    llvm::errs() << "stood in for   " << problem << "\n";
  if (options.offload != "none" && options.target == "host")
    llvm::errs() << "offload        nothing to do: on --target=host all states are in the host's "
                    "memory\n";
  if (Status status = checkMemory(summary);
      !status || options.memoryOnly || (options.output.empty() && !options.explain.empty()))
    return status;
  return writeFile(options.output,
                   StringRef(reinterpret_cast<const char *>(bytes->data()), bytes->size()));
}

/// What the user asks of the global program beside the model.
Status Compilation::adjust() {
  if (reached != Phase::import)
    return {};
  MoeLimitCapacityOptions capacity;
  capacity.factor = options.capacityFactor.value_or(-1);
  capacity.policy = options.dropPolicy;
  capacity.minimum = options.minCapacity;
  capacity.seed = options.dropSeed;
  diagnostics.setFallback(ErrorId::Internal);
  if (options.deterministic)
    (*module)->setAttr(moe::MoeDialect::kDeterministic, UnitAttr::get(&context));
  return runPasses(
      [&](OpPassManager &passes) { passes.addPass(createMoeLimitCapacity(capacity)); });
}

Status Compilation::timed(StringRef name, llvm::function_ref<Status()> step) {
  auto start = std::chrono::steady_clock::now();
  Status status = step();
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  seconds.emplace_back(name, took.count());
  return status;
}

//===----------------------------------------------------------------------===//
// Questions
//===----------------------------------------------------------------------===//

Status Compilation::measureAs(CompilerOptions options, rt::PlanSummary &summary) const {
  options.explain.clear();
  options.whyNot.clear();
  options.output.clear();
  options.dumpPhasesTo.clear();
  options.compileTo.reset();
  options.verifyRoundtrip = false;
  Compilation other(options);
  other.text = text;
  other.measured = &summary;
  return other.compile();
}

std::string Compilation::costOf(const std::string &what,
                                llvm::function_ref<void(CompilerOptions &)> change,
                                bool *over) const {
  CompilerOptions changed = options;
  change(changed);
  rt::PlanSummary summary;
  Status status = measureAs(changed, summary);
  return costOf(what, status, summary, over);
}

std::string Compilation::costOf(const std::string &what, const Status &status,
                                const rt::PlanSummary &summary, bool *over) const {
  if (!status) {
    ErrorId id = status.diagnostics().front().id;
    if (over)
      *over = id == ErrorId::OverMemoryLimit;
    return costLine(what, {id == ErrorId::OverMemoryLimit     ? "over the limit"
                           : id == ErrorId::MeshDoesNotDivide ? "does not divide"
                                                              : "refused"});
  }
  const rt::ProgramSummary *program = summary.main();
  uint64_t sent = 0;
  for (const rt::CollectiveSummary &c : program->collectives)
    sent += c.payload + c.padding;
  bool tooMuch = options.memoryLimit && program->totalBytes > *options.memoryLimit;
  if (over)
    *over = tooMuch;
  return costLine(what, {rt::bytesText(program->totalBytes), rt::bytesText(sent),
                         tooMuch ? "over the limit" : ""});
}

/// What the whole plan costs, and what it would if passes had decided otherwise on the tensor.
void Compilation::explain(const Status &compiled) const {
  const MeshInfo &mesh = *explained;
  std::string name = "as it is" + (mesh.ranks() > 1 ? ", --mesh=" + formatMesh(mesh) : "");
  std::string table;
  if (planned)
    table = costOf(name, Status(), *planned);
  else if (!compiled)
    table = costOf(name, compiled, rt::PlanSummary());
  else // compiled to a phase before
    table = costOf(name, [](CompilerOptions &) {});
  SmallVector<StringAttr> cutting = history->axes();
  for (auto [axis, size] : llvm::zip(mesh.names, mesh.sizes)) {
    if (axis == kDataAxis || !llvm::is_contained(cutting, axis))
      continue;
    // As many ranks, which then have rows of the batch of their own.
    MeshInfo other;
    other.names.push_back(StringAttr::get(axis.getContext(), kDataAxis));
    other.sizes.push_back(mesh.sizeOf(kDataAxis) * size);
    for (auto [name, parts] : llvm::zip(mesh.names, mesh.sizes))
      if (name != kDataAxis && name != axis) {
        other.names.push_back(name);
        other.sizes.push_back(parts);
      }
    std::string text = formatMesh(other);
    table += costOf(axis.str() + " as dp, --mesh=" + text,
                    [&](CompilerOptions &changed) { changed.mesh = text; });
  }
  for (int64_t stage : {0, 3})
    if (hasZero && options.zeroStage != stage)
      table += costOf("--zero=" + std::to_string(stage),
                      [&](CompilerOptions &changed) { changed.zeroStage = stage; });
  llvm::outs() << costHead("the whole plan") << table;
}

/// All that keeps the program from a mesh, and the nearest ones that fit.
Status Compilation::answerWhyNot() {
  Status read = load();
  if (read)
    read = adjust();
  if (!read)
    return read;
  if (reached != Phase::import)
    return {ErrorId::BadUsage, "--why-not needs a model, or IR of the phase import; " +
                                   options.model + " has reached " + phaseName(reached)};
  SmallVector<std::string> malformed;
  std::optional<MeshInfo> mesh = parseMesh(&context, options.whyNot, malformed);
  if (!mesh) {
    Status status;
    for (StringRef problem : malformed)
      status.add(ErrorId::BadMesh, problem.split(": ").second.str());
    return status;
  }
  std::vector<MeshConstraint> constraints = collectMeshConstraints(*module);
  std::vector<MeshViolation> violations = checkMesh(*module, *mesh);
  auto lineOf = [&](const MeshInfo &tried, bool *over = nullptr) {
    std::string text = formatMesh(tried);
    return costOf(
        text.empty() ? "one rank" : "--mesh=" + text,
        [&](CompilerOptions &changed) { changed.mesh = text; }, over);
  };
  for (const MeshViolation &violation : violations)
    llvm::outs() << violation.text << "\n";
  if (violations.empty()) {
    bool over = false;
    std::string line = lineOf(*mesh, &over);
    llvm::outs() << (over ? "a rank needs more than the limit of " +
                                rt::bytesText(*options.memoryLimit)
                          : "nothing keeps the model from this mesh")
                 << "\n"
                 << costHead("the mesh") << line;
    if (!over)
      return {};
  }
  llvm::outs() << costHead("the nearest that divide the model");
  for (const MeshInfo &near :
       nearestMeshes(&context, constraints, *mesh, /*limit=*/5, options.deterministic))
    if (near.names != mesh->names || near.sizes != mesh->sizes)
      llvm::outs() << lineOf(near);
  return {};
}

Status Compilation::run() {
  Status status = timed("all", [&] { return options.whyNot.empty() ? compile() : answerWhyNot(); });
  if (options.timing)
    for (const auto &[name, took] : seconds)
      llvm::errs() << llvm::formatv("{0,-10} {1,9:F3} s\n", name, took);
  return status;
}

Status Compilation::compile() {
  Status status = runPhases();
  if (explained)
    explain(status);
  return status;
}

Status Compilation::runPhases() {
  Status read = timed("import", [&] {
    Status status = load();
    return status ? adjust() : status;
  });
  if (!read)
    return read;
  if (!options.dumpPhasesTo.empty())
    if (std::error_code error = llvm::sys::fs::create_directories(options.dumpPhasesTo))
      return {ErrorId::CannotWrite, options.dumpPhasesTo + ": " + error.message()};
  if (!options.explain.empty() &&
      (reached >= Phase::shard || options.compileTo.value_or(Phase::plan) < Phase::shard))
    return {ErrorId::BadUsage, "--explain watches the phase shard, which " +
                                   (reached >= Phase::shard ? options.model + " has behind it"
                                                            : "--compile-to does not reach")};
  // A plan that is only looked at is decompiled.
  bool decompile = reached == Phase::plan && !StringRef(options.output).ends_with(".moeplan");
  Phase last = decompile ? Phase::plan : options.compileTo.value_or(Phase::plan);
  for (int phase = static_cast<int>(reached); phase <= static_cast<int>(last); ++phase) {
    bool given = phase == static_cast<int>(reached); // what was read has been through this phase
    if (!given) {
      diagnostics.setFallback(ErrorId::Internal);
      if (Status status =
              timed(kPhaseNames[phase], [&] { return runPhase(static_cast<Phase>(phase)); });
          !status)
        return status;
    }
    if (options.verifyRoundtrip)
      if (Status status = checkRoundTrip(static_cast<Phase>(phase)); !status)
        return status;
    if (!options.dumpPhasesTo.empty()) {
      std::string name = options.dumpPhasesTo + "/" + std::to_string(phase + 1) + "-" +
                         kPhaseNames[phase] + ".mlir";
      if (Status status = writeFile(name, print(*module)); !status)
        return status;
    }
  }
  if (decompile || options.compileTo)
    return writeFile(options.output, print(*module));
  return timed("write", [&] { return writeAndReport(); });
}

int moira::runCompiler(const CompilerOptions &options) {
  // MLIR's debugging options are LLVM command-line options: give them to LLVM's parser.
  registerMLIRContextCLOptions();
  registerPassManagerCLOptions();
  registerAsmPrinterCLOptions();
  std::vector<const char *> flags{"moe-opt"};
  for (const std::string &flag : options.mlirFlags)
    flags.push_back(flag.c_str());
  std::string problems;
  llvm::raw_string_ostream problemStream(problems);
  if (!llvm::cl::ParseCommandLineOptions(flags.size(), flags.data(), "", &problemStream)) {
    llvm::errs() << Status(ErrorId::UnknownFlag, "MLIR says: " + problems).str();
    return rt::exitCodeOf(ErrorId::UnknownFlag);
  }
  Compilation compilation(options);
  // IR may be written over what it was made from, a model may not.
  bool isModel =
      llvm::sys::fs::is_directory(options.model) || StringRef(options.model).ends_with(".json");
  Status status = isModel ? rt::checkReplaced({{"-o " + options.output, options.output}},
                                              {{"the model " + options.model, options.model}})
                          : Status();
  if (status)
    status = compilation.run();
  llvm::errs() << status.str();
  return status.exitCode();
}
