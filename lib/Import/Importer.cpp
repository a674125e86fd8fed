//===- Importer.cpp - model directories → the moe dialect -----------------===//
// The road: files → ModelSpec → WeightTable, accounted against the files → module.
//===----------------------------------------------------------------------===//
#include "moira/Import/Importer.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Verifier.h"
#include "moira/Dialect/Plan/IR/PlanOps.h"
#include "moira/Import/ConfigJson.h"
#include "moira/Import/EncoderDecoderBuilder.h"
#include "moira/Import/GenerateBuilder.h"
#include "moira/rt/Checkpoint.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"

using namespace mlir;
using namespace moira;
using llvm::sys::path::filename;
using rt::ErrorId;
using rt::Status;

bool moira::looksLikeModel(StringRef path) {
  return llvm::sys::fs::is_directory(path) || path.ends_with(".json");
}

/// The headers' tensors.
static std::vector<StoredTensor> listTensors(const rt::Checkpoint &checkpoint) {
  std::vector<StoredTensor> out;
  out.reserve(checkpoint.tensors().size());
  for (const rt::Checkpoint::Entry &entry : checkpoint.tensors())
    out.push_back({entry.info->name, rt::nameOf(entry.info->type), entry.info->shape,
                   filename(entry.file->path()).str()});
  return out;
}

/// What the tensors say and the config does not: published weights of some classes have a head of
/// their own whatever the config says, and where nothing is tied stacks may have embeddings of
/// their own.
static void decideByTensors(ModelSpec &spec, ArrayRef<StoredTensor> stored) {
  auto has = [&](const ModelClass &modelClass, WeightRole role) {
    auto names = modelClass.tensors.find(role);
    return names != modelClass.tensors.end() &&
           llvm::any_of(stored, [&](const StoredTensor &tensor) {
             return tensor.name == names->second.from.front();
           });
  };
  bool tied = spec.tiedHead;
  if (spec.headIfStored && has(*spec.modelClass, WeightRole::head))
    spec.tiedHead = false;
  if (!spec.encoder)
    return;
  auto encoder = std::make_shared<ModelSpec>(*spec.encoder);
  encoder->tiedHead = spec.tiedHead;
  encoder->ownEmbedding = !tied && has(*encoder->modelClass, WeightRole::stack_embedding);
  spec.ownEmbedding = !tied && has(*spec.modelClass, WeightRole::stack_embedding);
  spec.encoder = std::move(encoder);
}

/// Tokens of the decoder's prompt, and of a row at most, of --task=generate.
static int64_t promptOf(const ModelSpec &spec, const ImportOptions &options) {
  return spec.encoder ? options.decSeq.value_or(1) : options.seq;
}
static int64_t maxSeqOf(const ModelSpec &spec, const ImportOptions &options) {
  return options.maxSeq.value_or(promptOf(spec, options) + 128);
}

/// "1, 2, 4 or 8"
static std::string divisorsText(int64_t n) {
  std::string text;
  for (int64_t d = 1, last = n; d <= last; ++d)
    if (n % d == 0)
      text += (d == 1 ? "" : d == n ? " or " : ", ") + std::to_string(d);
  return text;
}

/// Values of the program are counted in int64 bytes.
static void checkShape(const ModelSpec &spec, const ImportOptions &options, Status &status) {
  auto check = [&](const char *option, int64_t seq) {
    double tokens = double(options.batch) * double(seq);
    if (options.batch < 1 || seq < 1 || tokens * spec.router.k > 0x1p31 ||
        tokens * (double(spec.vocab) + 2.0 * spec.expertWidth * spec.router.k) > 0x1p52)
      status.add(ErrorId::BadUsage,
                 rt::format("--batch=%lld --%s=%lld: both must be at least 1, and the tokens' "
                            "values must fit into memory",
                            (long long)options.batch, option, (long long)seq));
  };
  check("seq", options.seq);
  if (options.microBatches != 1 && options.task != "train")
    status.add(ErrorId::BadUsage, rt::format("--micro-batches=%lld is for --task=train",
                                             (long long)options.microBatches));
  else if (options.microBatches < 1 || options.batch % options.microBatches)
    status.add(ErrorId::BadUsage,
               rt::format("--micro-batches=%lld does not divide --batch=%lld into equal parts; it "
                          "can be %s",
                          (long long)options.microBatches, (long long)options.batch,
                          divisorsText(options.batch).c_str()));
  if (options.decSeq && spec.encoder)
    check("dec-seq", *options.decSeq);
  else if (options.decSeq)
    status.add(
        ErrorId::BadUsage,
        rt::format("--dec-seq=%lld is for encoder-decoders; %s has no encoder, its length is "
                   "--seq",
                   (long long)*options.decSeq, spec.modelClass->name.c_str()));
  if (options.dtype != "f32" && options.dtype != "bf16")
    status.add(ErrorId::BadUsage, "--dtype=" + options.dtype + " must be f32 or bf16");
  bool generates = options.task == "generate";
  if (options.task != "forward" && options.task != "grad" && options.task != "train" && !generates)
    status.add(ErrorId::BadUsage,
               "--task=" + options.task + " must be forward, grad, train or generate");
  if (options.maxSeq && !generates)
    status.add(ErrorId::BadUsage,
               rt::format("--max-seq=%lld is for --task=generate", (long long)*options.maxSeq));
  if (!generates)
    return;
  int64_t most = maxSeqOf(spec, options);
  check("max-seq", most);
  if (most <= promptOf(spec, options))
    status.add(ErrorId::BadUsage,
               rt::format("--max-seq=%lld leaves no room for new tokens: the prompt has %lld%s",
                          (long long)most, (long long)promptOf(spec, options),
                          spec.encoder ? " (--dec-seq)" : " (--seq)"));
}

/// Operations that this model needs for sequences of this length and Moira lacks.
static std::vector<std::string> lackingFor(const ModelSpec &spec, const ImportOptions &options) {
  std::vector<std::string> lacking = spec.lacking;
  int64_t length = options.task == "generate" ? maxSeqOf(spec, options) : options.seq;
  for (const ModelSpec::LongNeed &need : spec.longNeeds)
    if (length > need.tokens)
      lacking.push_back(need.problem);
  return lacking;
}

static void setConfigFields(ModuleOp module, const ModelSpec &spec, const ImportOptions &options) {
  Builder b(module.getContext());
  SmallVector<NamedAttribute> fields;
  if (options.microBatches > 1)
    fields.push_back(b.getNamedAttr("micro_batch", b.getStringAttr("--batch / --micro-batches")));
  for (const auto &[size, field] : spec.fieldOf)
    fields.push_back(b.getNamedAttr(size, b.getStringAttr(field)));
  module->setAttr("moe.config_fields", b.getDictionaryAttr(fields));
}

/// What --moe-router-noise will ask for.
static void setRouterNoise(ModuleOp module, const ModelSpec &spec) {
  Builder b(module.getContext());
  SmallVector<NamedAttribute> noise;
  if (spec.routerNoise == RouterNoise::sampled)
    noise.push_back(b.getNamedAttr("sampled", b.getUnitAttr()));
  bool jitters = spec.routerNoise != RouterNoise::none && spec.routerNoiseEps > 0;
  if (jitters)
    noise.push_back(b.getNamedAttr("eps", b.getF64FloatAttr(spec.routerNoiseEps)));
  if (jitters && spec.routerNoise != RouterNoise::gate)
    noise.push_back(b.getNamedAttr("experts", b.getUnitAttr()));
  if (!noise.empty())
    module->setAttr("moe.router_noise", b.getDictionaryAttr(noise));
}

static void setInfo(ModuleOp module, const ImportOptions &options, const ImportSummary &summary) {
  Builder b(module.getContext());
  Type dtype = options.dtype == "bf16" ? Type(b.getBF16Type()) : Type(b.getF32Type());
  SmallVector<StringRef> unused(summary.unusedTensors.begin(), summary.unusedTensors.end());
  module->setAttr("plan.info",
                  plan::InfoAttr::get(
                      b.getContext(), summary.modelClass, options.task, dtype, options.batch,
                      options.seq, summary.parameters, summary.activeParameters,
                      summary.tensorsExpected, summary.tensorsFound,
                      unused.empty() ? ArrayAttr() : b.getStrArrayAttr(unused),
                      options.schedule.empty() ? StringAttr() : b.getStringAttr(options.schedule)));
}

/// Adds the program of another module over the same states, for the reference program only.
static void addReference(ModuleOp module, ModuleOp whole) {
  auto program = *whole.getOps<func::FuncOp>().begin();
  program->moveBefore(module.getBody(), module.getBody()->end());
  program.setName("reference");
  program->setAttr("moe.reference", UnitAttr::get(module.getContext()));
}

OwningOpRef<ModuleOp> moira::importModel(MLIRContext &context, StringRef path,
                                         const ImportOptions &options, Status &status,
                                         ImportSummary &summary) {
  context.loadDialect<func::FuncDialect, moe::MoeDialect, plan::PlanDialect>();
  size_t before = status.diagnostics().size();
  bool configAlone = !llvm::sys::fs::is_directory(path);
  SmallString<256> configPath(path);
  if (!configAlone)
    llvm::sys::path::append(configPath, "config.json");
  std::optional<llvm::json::Object> config = readConfig(configPath, status);
  if (!config)
    return {};
  std::optional<ModelSpec> spec = resolveModel(*config, filename(configPath), status);
  if (!spec)
    return {};
  checkShape(*spec, options, status);
  for (const std::string &problem : lackingFor(*spec, options))
    if (options.memoryOnly)
      summary.standIns.push_back(problem);
    else
      status.add(ErrorId::UnsupportedConfig,
                 problem + "; what a rank needs can be planned with --memory-only");

  std::vector<StoredTensor> stored;
  if (!configAlone) {
    for (const std::string &problem : spec->unreadable)
      status.add(ErrorId::UnsupportedConfig, problem);
    rt::Expected<rt::Checkpoint> checkpoint =
        rt::Checkpoint::open(path.str(), {.headersOnly = true, .allowTruncated = false});
    if (!checkpoint) {
      status.append(checkpoint.takeStatus());
      return {};
    }
    stored = listTensors(*checkpoint);
  }
  decideByTensors(*spec, stored);
  std::vector<unsigned> layouts = detectLayouts(*spec, stored, status);
  WeightTable table(*spec, layouts);
  if (!configAlone && status.diagnostics().size() == before)
    account(*spec, table, stored, status, &summary.unusedTensors);
  if (status.diagnostics().size() != before)
    return {};

  summary.modelClass = spec->modelClass->name;
  summary.parameters = table.parameters();
  summary.activeParameters = table.activeParameters();
  summary.tensorsExpected = table.tensors();
  summary.tensorsFound = configAlone ? 0 : table.tensors();
  summary.defaults = spec->defaults;

  ProgramShape shape;
  shape.batch = options.batch / options.microBatches;
  shape.seq = options.seq;
  shape.decSeq = options.decSeq.value_or(options.seq);
  shape.bf16 = options.dtype == "bf16";
  shape.padding = options.padding;
  OwningOpRef<ModuleOp> module;
  if (options.task == "generate") {
    shape.decSeq = promptOf(*spec, options);
    shape.maxSeq = maxSeqOf(*spec, options);
    module = buildGenerate(context, *spec, table, shape);
  } else {
    auto build = [&] {
      return spec->encoder ? buildEncoderDecoder(context, *spec, table, shape)
                           : buildDecoder(context, *spec, table, shape);
    };
    module = build();
    if (options.microBatches > 1) {
      shape.batch = options.batch;
      addReference(*module, *build());
    }
  }
  setConfigFields(*module, *spec, options);
  setRouterNoise(*module, *spec);
  setInfo(*module, options, summary);
  if (failed(verify(*module))) {
    status.add(ErrorId::Internal, "the importer made invalid IR for " + path.str());
    return {};
  }
  return module;
}
