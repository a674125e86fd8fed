//===- ModelSpec.cpp - one stack of layers, resolved ----------------------===//
// The meaning of fields, alone and together. Semantics are those of the classes' published
// implementation (transformers 5.17).
//===----------------------------------------------------------------------===//
#include "Meanings.h"
#include "moira/Import/ConfigJson.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/MathExtras.h"

#include <cmath>

using namespace llvm;
using namespace moira;
using rt::ErrorId;
using rt::Status;

namespace {

class Resolver : Meanings {
public:
  explicit Resolver(const Meanings &meanings) : Meanings(meanings) {}

  void resolve() {
    spec.modelClass = &modelClass;
    spec.defaults = config.defaults;
    spec.unreadable = config.unreadable;
    spec.lacking = config.lacking;
    dense();
    attention();
    positions();
    experts();
    resolveLayers(*this);
    sort(spec.defaults,
         [](const DefaultTaken &a, const DefaultTaken &b) { return a.field < b.field; });
  }

private:
  void dense() {
    spec.vocab = size("vocab");
    spec.hidden = size("hidden");
    spec.norm = word("norm") == "layer" ? Norm::layer : Norm::rms;
    spec.normEps = number("norm_eps");
    spec.normBias = flag("norm_bias");
    spec.tiedHead = flag("tied_head");
    spec.headIfStored = flag("head_if_stored");
    double root = std::sqrt(double(spec.hidden));
    spec.embeddingScale = number("embedding_scale") * (flag("embedding_root") ? root : 1);
    // As torch's padding_idx: a negative one counts from the last row on.
    if (std::optional<int64_t> id = get("untrained_id").getAsInteger())
      spec.untrainedId = *id < 0 ? std::max<int64_t>(*id + spec.vocab, -1) : *id;
    spec.headScale = number("head_scale") / (flag("head_root") && spec.tiedHead ? root : 1);
    spec.denseWidth = size("dense_width");
    spec.gated = flag("gated");
    spec.mlpBias = flag("mlp_bias");
    spec.expertBias = flag("expert_bias");
    spec.separateExperts = flag("separate_experts");
    spec.headBias = flag("head_bias");
    spec.residualScale = number("residual_scale");
    spec.logitsScale = 1 / number("logits_divisor");
    spec.gluLimit = real("glu_limit");
    spec.gluAlpha = real("glu_alpha");
    spec.gluUpShift = real("glu_up_shift");
    StringRef activation = word("activation");
    spec.gated |= activation.consume_front("gated-");
    spec.activation = moe::symbolizeActivation(activation).value_or(moe::Activation::silu);
  }

  void attention() {
    spec.heads = size("heads");
    spec.kvHeads = isNull("kv_heads") ? spec.heads : size("kv_heads");
    spec.headDim = isNull("head_dim") ? spec.hidden / spec.heads : size("head_dim");
    spec.qkvBias = flag("qkv_bias");
    spec.oBias = flag("o_bias");
    spec.qkNorm = StringSwitch<QkNorm>(word("qk_norm"))
                      .Case("head", QkNorm::head)
                      .Case("full", QkNorm::full)
                      .Case("unit", QkNorm::unit)
                      .Default(QkNorm::none);
    if (!flag("qk_norm_enabled"))
      spec.qkNorm = QkNorm::none;
    spec.clipQkv = real("clip_qkv");
    spec.sinks = flag("sinks");
    spec.ropeInterleaved = flag("rope_interleaved");
    if (spec.heads % spec.kvHeads != 0)
      fail(ErrorId::BadConfigValue,
           shown("kv_heads", spec.kvHeads) + " does not divide " + shown("heads", spec.heads));
    spec.attentionScale = isNull("attention_scale") ? 1.0 / std::sqrt(double(spec.headDim))
                                                    : number("attention_scale");
    if (!isNull("latent_rank"))
      latentAttention();
    spec.causal = flag("causal");
    spec.crossAttention = flag("cross_attention");
    if (spec.headDim < 1 || (word("position_kind") == "rotary" && spec.headDim % 2 != 0))
      fail(ErrorId::BadConfigValue,
           fieldOf("head_dim") + "=" + Twine(spec.headDim) +
               (isNull("head_dim") ? " (" + shown("hidden", spec.hidden) + " over " +
                                         shown("heads", spec.heads) + ")"
                                   : std::string()) +
               " is not " +
               (word("position_kind") == "rotary" ? "an even number, which rotary embedding needs"
                                                  : "a positive number"));
    if (flag("split_heads") && spec.hidden % spec.heads != 0)
      fail(ErrorId::BadConfigValue,
           shown("heads", spec.heads) + " does not divide " + shown("hidden", spec.hidden));
    if (spec.qkNorm == QkNorm::full && spec.heads * spec.headDim != spec.hidden)
      fail(ErrorId::BadConfigValue, fieldOf("head_dim") + "=" + Twine(spec.headDim) + " times " +
                                        shown("heads", spec.heads) + " is not " +
                                        shown("hidden", spec.hidden) +
                                        ", which the norm over whole projections needs");
  }

  void latentAttention() {
    LatentSpec latent;
    latent.queryRank = isNull("latent_query_rank") ? 0 : size("latent_query_rank");
    latent.rank = size("latent_rank");
    latent.plainDim = size("latent_plain_dim");
    latent.turnedDim = spec.headDim;
    latent.valueDim = size("latent_value_dim");
    spec.latent = latent;
    spec.attentionScale = 1 / std::sqrt(double(latent.plainDim + latent.turnedDim));
    if (spec.kvHeads != spec.heads)
      fail(ErrorId::UnsupportedConfig, shown("kv_heads", spec.kvHeads) + " is not " +
                                           shown("heads", spec.heads) +
                                           ", which attention over latents needs");
  }

  void positions() {
    spec.positions = StringSwitch<PositionKind>(word("position_kind"))
                         .Case("sinusoid", PositionKind::sinusoid)
                         .Case("token_sinusoid", PositionKind::token_sinusoid)
                         .Case("relative", PositionKind::relative)
                         .Default(PositionKind::rotary);
    switch (spec.positions) {
    case PositionKind::rotary:
      return rope();
    case PositionKind::sinusoid:
    case PositionKind::token_sinusoid:
      spec.positionOffset = number("position_offset");
      spec.padId = isNull("pad") ? -1 : get("pad").getAsInteger().value_or(-1);
      if (spec.positions == PositionKind::token_sinusoid && spec.padId < 0)
        fail(ErrorId::BadConfigValue,
             fieldOf("pad") + "=null, but positions are counted without the padding token");
      if (spec.hidden < 4)
        fail(ErrorId::BadConfigValue,
             shown("hidden", spec.hidden) + " is under 4, which sinusoids need");
      return;
    case PositionKind::relative:
      spec.buckets = number("buckets");
      spec.maxDistance = number("max_distance");
      int64_t parts = spec.causal ? 2 : 4;
      if (spec.buckets % parts != 0 || spec.buckets < parts)
        fail(ErrorId::BadConfigValue, shown("buckets", spec.buckets) + " is not a multiple of " +
                                          Twine(parts) + ", which the buckets of " +
                                          (spec.causal ? "a decoder" : "an encoder") + " need");
      else if (spec.maxDistance <= spec.buckets / parts)
        fail(ErrorId::BadConfigValue, shown("max_distance", spec.maxDistance) +
                                          " does not exceed the " + Twine(spec.buckets / parts) +
                                          " distances with a bucket of their own");
      return;
    }
  }

  /// One of two spellings: rope_parameters (v5), or rope_scaling beside rope_theta (v4).
  void rope() {
    auto given = [&](StringRef meaning) {
      return !isNull(meaning) && !get(meaning).getAsObject()->empty();
    };
    auto said = [&](StringRef meaning) { return given(meaning) && isSaid(meaning); };
    if (said("rope_scaling") && said("rope_parameters") &&
        get("rope_parameters") != get("rope_scaling"))
      fail(ErrorId::BadConfigValue, fieldOf("rope_parameters") + " and " + fieldOf("rope_scaling") +
                                        " are both given and differ; keep one");
    StringRef meaning = given("rope_scaling") ? "rope_scaling" : "rope_parameters";
    RopeFields fields;
    fields.fileName = fileName.str();
    fields.field = fieldOf(meaning);
    fields.parameters = given(meaning) ? get(meaning).getAsObject() : nullptr;
    fields.theta = number(isNull("rope_theta") ? "default_theta" : "rope_theta");
    fields.positions = real("positions");
    fields.originalPositions = real("original_positions");
    fields.partial = real("rotary_part");
    fields.headDim = spec.headDim;
    fields.ownFactors = flag("rope_own_factors");
    spec.rope = readRope(fields, status);
    if (spec.latent)
      spec.attentionScale *= spec.rope.scoreFactor();
    const json::Value *theta = fields.parameters ? fields.parameters->get("rope_theta") : nullptr;
    if (isNull("rope_theta") && (!theta || theta->kind() == json::Value::Null))
      spec.defaults.push_back({fieldOf("rope_theta"), jsonText(get("default_theta"))});
  }

  void experts() {
    spec.experts = size("experts");
    spec.expertWidth = size("expert_width");
    sharedExperts();
    router();
  }

  /// Several shared experts are one of their common width: their products' sums are the same.
  void sharedExperts() {
    int64_t width = size("shared_width"), count = size("shared_count");
    spec.sharedWidth = width * count;
    spec.sharedGated = flag("shared_gated");
    if (count != 1)
      spec.fieldOf["shared_width"] = fieldOf("shared_width") + "*" + fieldOf("shared_count");
  }

  void router() {
    moe::RouterFields &gate = spec.router;
    gate.k = size("router_k");
    gate.score = moe::symbolizeScore(word("router_score")).value_or(moe::Score::softmax);
    gate.order =
        moe::symbolizeRouteOrder(word("router_order")).value_or(moe::RouteOrder::score_topk);
    gate.apply = moe::symbolizeRouteApply(word("router_apply")).value_or(moe::RouteApply::output);
    gate.renorm = flag("router_renorm") ? moe::Renorm::sum : moe::Renorm::none;
    if (flag("router_renorm")) {
      gate.renormEpsilon = number("router_renorm_epsilon");
      gate.renormClampMin = number("router_renorm_clamp_min");
    }
    if (gate.score == moe::Score::sparsemixer)
      gate.jitterEps = number("router_jitter_eps");
    gate.scale = number("router_scale") * (1 - number("expert_dropout"));
    spec.routerBias = flag("router_bias");
    spec.choiceBias = StringSwitch<ChoiceBias>(word("router_choice_bias"))
                          .Case("flat", ChoiceBias::flat)
                          .Case("row", ChoiceBias::row)
                          .Default(ChoiceBias::none);
    spec.routerNoise = StringSwitch<RouterNoise>(word("router_noise"))
                           .Case("gate", RouterNoise::gate)
                           .Case("gate_and_experts", RouterNoise::gateAndExperts)
                           .Case("sampled", RouterNoise::sampled)
                           .Default(RouterNoise::none);
    if (!isNull("router_noise_eps"))
      spec.routerNoiseEps = number("router_noise_eps");
    if (const json::Array *fixed = get("router_redirect").getAsArray())
      spec.redirect =
          std::pair((*fixed)[0].getAsInteger().value_or(0), (*fixed)[1].getAsInteger().value_or(0));
    if (word("capacity_domain") != "none")
      capacity();
    if (gate.k > spec.experts)
      fail(ErrorId::BadConfigValue,
           shown("router_k", gate.k) + " is larger than " + shown("experts", spec.experts));
    if (word("router_grouped") != "none")
      routerGroups();
  }

  /// How many choices an expert takes, and which. The sum over a token's weights is made here then,
  /// so that choices compete by the gate's own scores.
  void capacity() {
    moe::CapacityFields limit;
    limit.domain =
        moe::symbolizeCapacityDomain(word("capacity_domain")).value_or(moe::CapacityDomain::batch);
    limit.order = moe::symbolizeCapacityOrder(word("capacity_order"))
                      .value_or(moe::CapacityOrder::token_major);
    limit.policy =
        flag("capacity_priority") ? moe::DropPolicy::priority : moe::DropPolicy::position;
    if (double fraction = number("capacity_fraction"); fraction > 0) {
      limit.rule = moe::CapacityRule::fraction;
      limit.value = fraction;
    } else if (isNull("capacity")) {
      limit.rule = moe::CapacityRule::rounded;
      limit.value = 1;
    } else {
      limit.rule = moe::CapacityRule::fixed;
      limit.value = number("capacity");
    }
    moe::RouterFields &gate = spec.router;
    if (gate.renorm == moe::Renorm::sum) {
      limit.renorm =
          flag("capacity_renorm_first") ? moe::LimitRenorm::before : moe::LimitRenorm::after;
      limit.renormEpsilon = gate.renormEpsilon;
      limit.renormClampMin = gate.renormClampMin;
      limit.scale = gate.scale;
    }
    spec.capacity = limit;
  }

  /// Experts in groups of which only the best are open to a token.
  void routerGroups() {
    moe::RouterFields &gate = spec.router;
    int64_t groups = size("router_groups"), keep = size("router_group_keep");
    moe::GroupScore score =
        moe::symbolizeGroupScore(word("router_grouped")).value_or(moe::GroupScore::max);
    std::string these = shown("router_groups", groups);
    if (spec.experts % groups != 0)
      return fail(ErrorId::BadConfigValue,
                  these + " does not divide " + shown("experts", spec.experts));
    if (keep > groups)
      return fail(ErrorId::BadConfigValue,
                  shown("router_group_keep", keep) + " is larger than " + these);
    if (spec.experts / groups * keep < gate.k)
      return fail(ErrorId::BadConfigValue, shown("router_group_keep", keep) + " of " + these +
                                               " groups hold " +
                                               Twine(spec.experts / groups * keep) +
                                               " experts, fewer than " + shown("router_k", gate.k));
    if (score == moe::GroupScore::top2_sum && groups == spec.experts)
      return fail(ErrorId::BadConfigValue,
                  these + " makes groups of one expert, which have no top-2 sum");
    if (keep == groups) // every group is open
      return;
    gate.groups = groups;
    gate.groupKeep = keep;
    gate.groupScore = score;
  }
};

/// Weights of one layer's attention.
double attentionElements(const ModelSpec &spec) {
  double D = spec.hidden, H = spec.heads;
  if (!spec.latent)
    return D * spec.headDim * (2 * H + 2.0 * spec.kvHeads);
  const LatentSpec &l = *spec.latent;
  double key = double(l.plainDim) + l.turnedDim;
  return (l.queryRank ? l.queryRank * (D + H * key) : D * H * key) + D * (l.rank + l.turnedDim) +
         H * l.rank * (double(l.plainDim) + l.valueDim) + D * H * l.valueDim;
}

/// Elements of all weights and of the largest products stay far below 2^63.
void checkTotal(const ModelSpec &spec, StringRef fileName, Status &status) {
  double layers = spec.layers.size(), D = spec.hidden;
  double perLayer =
      attentionElements(spec) +
      3 * D * (double(spec.experts) * spec.expertWidth + spec.sharedWidth + spec.denseWidth);
  if (double total = 2 * D * spec.vocab + layers * perLayer; total > 0x1p52)
    status.add(ErrorId::BadConfigValue,
               rt::format("%s: the sizes give a model of about %.2g parameters, the limit is %.2g",
                          fileName.str().c_str(), total, 0x1p52));
}

} // namespace

std::optional<ModelSpec> moira::resolveModel(const json::Object &config, StringRef fileName,
                                             Status &status) {
  size_t before = status.diagnostics().size();
  const ModelClass *modelClass = classOf(config, fileName, status);
  if (!modelClass)
    return std::nullopt;
  ConfigValues values = readFields(*modelClass, config, fileName, status);
  // With other problems, what is lacking is one more.
  auto refused = [&] {
    for (const std::string &problem : values.lacking)
      status.add(ErrorId::UnsupportedConfig, problem);
    return std::nullopt;
  };
  if (status.diagnostics().size() != before)
    return refused();
  ModelSpec spec;
  Resolver({*modelClass, values, fileName, status, spec}).resolve();
  checkTotal(spec, fileName, status);
  if (modelClass->encoder) {
    auto encoder = std::make_shared<ModelSpec>();
    Resolver({*modelClass->encoder, values, fileName, status, *encoder}).resolve();
    checkTotal(*encoder, fileName, status);
    for (const auto &[size, field] : encoder->fieldOf)
      if (std::string &known = spec.fieldOf[size]; known.empty())
        known = field;
      else if (known != field)
        known = field + ", " + known;
    spec.encoder = std::move(encoder);
  }
  if (status.diagnostics().size() != before)
    return refused();
  return spec;
}
