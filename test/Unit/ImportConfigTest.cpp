//===- ImportConfigTest.cpp - configs: what is read, what is refused ------===//
// Shows that every field of a config is read, known to be irrelevant or an error; that values mean
// what transformers makes of them; and that hostile JSON is refused with its place.
//===----------------------------------------------------------------------===//
#include "ImportTestUtil.h"
#include "moira/Import/ConfigJson.h"
#include "moira/Import/ModelSpec.h"

#include <gmock/gmock.h>
#include <random>

using namespace moira;
using moira::test::expectProblems;
using rt::ErrorId;
using rt::Status;
using testing::ElementsAre;

namespace {

/// The spec of a config whose text is given without braces and quotes doubled: 'a': 1.
std::optional<ModelSpec> resolve(std::string fields, Status &status) {
  std::replace(fields.begin(), fields.end(), '\'', '"');
  std::optional<llvm::json::Object> config = parseConfig("{" + fields + "}", "config.json", status);
  return config ? resolveModel(*config, "config.json", status) : std::nullopt;
}

ModelSpec good(const std::string &fields) {
  Status status;
  std::optional<ModelSpec> spec = resolve(fields, status);
  EXPECT_TRUE(spec) << status.str();
  return spec ? *spec : ModelSpec{};
}

struct BadCase {
  const char *name;
  std::string fields;
  std::vector<ErrorId> ids;
  std::vector<std::string> words;
};

class BadConfig : public testing::TestWithParam<BadCase> {};

TEST_P(BadConfig, IsRefusedWithIdAndWords) {
  Status status;
  EXPECT_FALSE(resolve(GetParam().fields, status));
  expectProblems(status, GetParam().ids, GetParam().words);
}

const char *kMixtral = "'model_type': 'mixtral'";
std::string mixtral(const std::string &more) { return std::string(kMixtral) + ", " + more; }
std::string qwen2(const std::string &more) { return "'model_type': 'qwen2_moe', " + more; }
std::string qwen3(const std::string &more) { return "'model_type': 'qwen3_moe', " + more; }
std::string olmoe(const std::string &more) { return "'model_type': 'olmoe', " + more; }

INSTANTIATE_TEST_SUITE_P(
    Fields, BadConfig,
    testing::ValuesIn(std::vector<BadCase>{
        {"no_class", "'hidden_size': 4", {ErrorId::MissingConfigField}, {"model_type", "mixtral"}},
        {"class_no_string", "'model_type': 7", {ErrorId::BadConfigValue}, {"model_type=7"}},
        {"unknown_class",
         "'model_type': 'mixtrel'",
         {ErrorId::UnknownModelClass},
         {"mixtrel", "m2m_100, mixtral, mt5,", "switch_transformers, xglm"}},
        {"unknown_fields",
         mixtral("'hiden_size': 4, 'surprise': 1"),
         {ErrorId::UnknownConfigField},
         {"unknown field hiden_size; did you mean hidden_size?", "unknown field surprise;"}},
        {"field_of_another_class",
         mixtral("'qkv_bias': true"),
         {ErrorId::UnknownConfigField},
         {"qkv_bias"}},
        {"string_for_int",
         mixtral("'hidden_size': '32'"),
         {ErrorId::BadConfigValue},
         {"hidden_size=\"32\" is not a whole number"}},
        {"fraction", mixtral("'num_attention_heads': 2.5"), {ErrorId::BadConfigValue}, {"2.5"}},
        {"huge", mixtral("'hidden_size': 1e30"), {ErrorId::BadConfigValue}, {"hidden_size"}},
        {"over_limit",
         mixtral("'vocab_size': 4611686018427387904"),
         {ErrorId::BadConfigValue},
         {"vocab_size", "at least 1 and at most 2147483647"}},
        {"negative", mixtral("'num_hidden_layers': -2"), {ErrorId::BadConfigValue}, {"-2"}},
        {"null", mixtral("'hidden_size': null"), {ErrorId::BadConfigValue}, {"hidden_size=null"}},
        {"bool", mixtral("'tie_word_embeddings': 1"), {ErrorId::BadConfigValue}, {"true or false"}},
        {"negative_eps",
         mixtral("'rms_norm_eps': -1.0"),
         {ErrorId::BadConfigValue},
         {"rms_norm_eps"}},
        {"list", qwen3("'mlp_only_layers': 3"), {ErrorId::BadConfigValue}, {"mlp_only_layers=3"}},
        {"several",
         mixtral("'hidden_size': 'x', 'num_hidden_layers': -1, 'zzz': 0, 'hidden_act': 'tanh'"),
         {ErrorId::BadConfigValue, ErrorId::UnknownConfigField, ErrorId::UnsupportedConfig},
         {"hidden_size", "num_hidden_layers", "zzz", "hidden_act"}},
        {"classifier",
         mixtral("'architectures': ['MixtralForSequenceClassification']"),
         {ErrorId::UnsupportedConfig},
         {"architectures", "MixtralForCausalLM"}},
        {"two_names_differ",
         mixtral("'num_local_experts': 8, 'num_experts': 4"),
         {ErrorId::BadConfigValue},
         {"num_local_experts=8", "num_experts=4"}},
        {"olmoe_window",
         olmoe("'sliding_window': 4"),
         {ErrorId::UnsupportedConfig},
         {"sliding_window=4"}}}),
    [](const auto &info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Meaning, BadConfig,
    testing::ValuesIn(std::vector<BadCase>{
        {"k_over_experts",
         mixtral("'num_experts': 8, 'num_experts_per_tok': 9"),
         {ErrorId::BadConfigValue},
         {"num_experts_per_tok=9 is larger than num_experts=8"}},
        {"heads_do_not_group",
         mixtral("'num_attention_heads': 4, 'num_key_value_heads': 3"),
         {ErrorId::BadConfigValue},
         {"num_key_value_heads=3 does not divide num_attention_heads=4"}},
        {"odd_head", mixtral("'head_dim': 5"), {ErrorId::BadConfigValue}, {"head_dim=5", "even"}},
        {"odd_derived_head",
         mixtral("'hidden_size': 12, 'num_attention_heads': 4"),
         {ErrorId::BadConfigValue},
         {"head_dim=3 (hidden_size=12 over num_attention_heads=4)"}},
        {"full_norm_head_dim",
         olmoe("'head_dim': 64"),
         {ErrorId::BadConfigValue},
         {"head_dim=64 times num_attention_heads=16 is not hidden_size=2048"}},
        {"rope_type",
         mixtral("'rope_parameters': {'rope_type': 'magic', 'rope_theta': 1e4}"),
         {ErrorId::UnsupportedConfig},
         {"rope_parameters.rope_type=\"magic\"",
          "default, linear, dynamic, yarn, longrope, llama3"}},
        {"yarn_without_length",
         mixtral("'max_position_embeddings': null, 'rope_scaling': {'type': 'yarn', "
                 "'factor': 4.0}"),
         {ErrorId::MissingConfigField},
         {"max_position_embeddings is null, which rope_scaling of rope_type yarn needs"}},
        {"yarn_truncate",
         mixtral("'max_position_embeddings': 64, 'rope_parameters': {'rope_type': 'yarn', "
                 "'factor': 4.0, 'truncate': 3}"),
         {ErrorId::BadConfigValue},
         {"rope_parameters.truncate=3 is not true or false"}},
        {"longrope_divisors",
         mixtral("'max_position_embeddings': 64, 'head_dim': 8, 'rope_parameters': {'rope_type': "
                 "'longrope', 'short_factor': [1, 2, 3], 'long_factor': [1, 2, 3, 0]}"),
         {ErrorId::BadConfigValue, ErrorId::BadConfigValue},
         {"short_factor is not a list of 4 positive numbers", "long_factor is not a list of 4"}},
        {"llama3_factors",
         mixtral("'max_position_embeddings': 64, 'rope_parameters': {'rope_type': 'llama3', "
                 "'factor': 8, 'low_freq_factor': 4, 'high_freq_factor': 4}"),
         {ErrorId::BadConfigValue},
         {"high_freq_factor=4 is not above low_freq_factor=4"}},
        {"dynamic_without_factor",
         mixtral("'max_position_embeddings': 64, 'rope_parameters': {'rope_type': 'dynamic'}"),
         {ErrorId::MissingConfigField},
         {"rope_parameters lacks factor, which rope_type dynamic needs"}},
        {"own_factors_of_another_class",
         mixtral("'max_position_embeddings': 64, 'rope_parameters': {'rope_type': 'linear', "
                 "'factor': 2, 'short_mscale': 1.0}"),
         {ErrorId::UnknownConfigField},
         {"rope_parameters.short_mscale"}},
        {"rope_theta",
         mixtral("'rope_parameters': {'rope_theta': 0}"),
         {ErrorId::BadConfigValue},
         {"rope_parameters.rope_theta=0 is not a positive number"}},
        {"rope_without_factor",
         mixtral("'rope_scaling': {'type': 'linear'}"),
         {ErrorId::MissingConfigField},
         {"rope_scaling lacks factor"}},
        {"rope_unknown_key",
         mixtral("'rope_parameters': {'rope_theta': 1e4, 'beta_fast': 1}"),
         {ErrorId::UnknownConfigField},
         {"rope_parameters.beta_fast"}},
        {"partial_rotary",
         mixtral("'rope_parameters': {'partial_rotary_factor': 0.5}"),
         {ErrorId::UnsupportedConfig},
         {"partial_rotary_factor=0.5"}},
        {"two_ropes",
         mixtral("'rope_parameters': {'rope_theta': 1e4}, 'rope_scaling': {'type': 'linear', "
                 "'factor': 2}"),
         {ErrorId::BadConfigValue},
         {"rope_parameters and rope_scaling"}},
        {"dense_layer_too_far",
         qwen3("'num_hidden_layers': 2, 'mlp_only_layers': [0, 2]"),
         {ErrorId::BadConfigValue},
         {"mlp_only_layers names layer 2", "0 to 1"}},
        {"layer_types_length",
         qwen2("'num_hidden_layers': 2, 'layer_types': ['full_attention']"),
         {ErrorId::BadConfigValue},
         {"layer_types has 1 entries, the model has 2 layers"}},
        {"layer_types_kind",
         qwen2("'num_hidden_layers': 1, 'layer_types': ['linear_attention']"),
         {ErrorId::UnsupportedConfig},
         {"layer_types[0]=\"linear_attention\""}},
        {"sliding_layers_without_window",
         qwen2("'num_hidden_layers': 1, 'layer_types': ['sliding_attention']"),
         {ErrorId::BadConfigValue},
         {"use_sliding_window=true and sliding_window of at least 1"}},
        {"window_of_zero",
         qwen3("'use_sliding_window': true, 'sliding_window': 0"),
         {ErrorId::BadConfigValue},
         {"sliding_window of at least 1"}},
        {"too_many_parameters",
         mixtral("'vocab_size': 2147483647, 'hidden_size': 1048576, 'intermediate_size': 4194304, "
                 "'num_local_experts': 65536, 'num_hidden_layers': 4096"),
         {ErrorId::BadConfigValue},
         {"parameters"}}}),
    [](const auto &info) { return info.param.name; });

TEST(ConfigJson, HostileTextIsRefusedWithItsPlace) {
  struct Case {
    std::string text;
    const char *word;
  } cases[] = {
      {"", "line 1, column 1"},
      {"[1, 2]", "JSON object"},
      {"{\"a\": 1,\n \"b\" 2}", "line 2, column"},
      {"{\"model_type\": \"mix", "line 1"},
      {"{\"a\": \"\xff\xfe\"}", "utf-8"},
      {"{\"a\": 1, \"b\": 2,\n\"a\": 3}", "key 'a' stands twice, again at line 2, column 1"},
      {"{\"a\": 1, \"\\u0061\": 2}", "written with escapes"},
      {"{\"a\": {\"x\": [{\"y\": 1, \"y\": 2}]}}", "key 'y' stands twice"},
      {std::string(200000, '['), "nested deeper than 32"},
      {"{\"a\":" + std::string(200000, '[') + "}", "nested deeper than 32"},
      {std::string(kConfigBytes + 1, ' '), "more than any config needs"},
      {"{\"a\": 1} x", "line 1, column 10"},
      {std::string("{\"a\0b\": tru}", 12), "line 1"},
      {"{\"a\": NaN}", "line 1"},
      {"\"", "line 1"},
      {"{\"\\", "line 1"},
  };
  for (const Case &c : cases) {
    Status status;
    EXPECT_FALSE(parseConfig(c.text, "config.json", status)) << c.text.substr(0, 50);
    expectProblems(status, {ErrorId::BadJson}, {"config.json", c.word});
  }
  Status status;
  EXPECT_TRUE(
      parseConfig("{\"a\": {\"a\": 1}, \"b\": [{\"a\": 1}, {\"a\": 2}], \"c:\\\"\": \":{\"}",
                  "config.json", status))
      << status.str();
}

TEST(ConfigJson, AByteOrderMarkIsSkippedOnce) {
  Status status;
  EXPECT_TRUE(parseConfig("\xef\xbb\xbf{\"a\": 1}", "config.json", status)) << status.str();
  for (const char *text : {"\xef\xbb\xbf\xef\xbb\xbf{}", "\xef\xbb\xbf", "\xef\xbb{}"}) {
    Status refused;
    EXPECT_FALSE(parseConfig(text, "config.json", refused)) << text;
    expectProblems(refused, {ErrorId::BadJson}, {"config.json", "line 1"});
  }
}

TEST(ConfigJson, DamagedConfigsAreReadOrRefusedNeverMore) {
  const char *start[] = {
      R"({"model_type": "mixtral", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
          "rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2}, "head_dim": null})",
      R"({"model_type": "qwen2_moe", "use_sliding_window": true, "layer_types": ["full_attention"],
          "num_hidden_layers": 1, "mlp_only_layers": [0], "sliding_window": 3})"};
  const char *words[] = {"0",   "-1", "null", "1e308", "9223372036854775807",
                         "[]",  "{}", "\"\"", "true",  ",",
                         ":",   "\"", "{",    "]",     "\\u0000",
                         "\xff"};
  unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  int refused = 0, read = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = start[random() % 2];
    for (int n = 1 + random() % 3; n > 0; --n) {
      size_t at = random() % text.size(), length = random() % 6;
      text.replace(at, random() % 2 ? length : 0,
                   random() % 4 ? words[random() % std::size(words)]
                                : std::string(1, char(random())));
    }
    Status status;
    std::optional<llvm::json::Object> config = parseConfig(text, "config.json", status);
    bool good = config && resolveModel(*config, "config.json", status);
    ASSERT_EQ(good, status.ok()) << text;
    ++(good ? read : refused);
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(read, 10);
}

TEST(ConfigJson, MissingFilesAndDirectoriesAreNamed) {
  Status status;
  EXPECT_FALSE(readConfig("/no/such/config.json", status));
  EXPECT_FALSE(readConfig("/tmp", status));
  EXPECT_FALSE(readConfig("/dev/zero", status));
  expectProblems(status, {ErrorId::FileNotFound}, {"/no/such/config.json", "/tmp", "/dev/zero"});
}

TEST(Config, LackingOperationsLeaveASpecToPlanFrom) {
  ModelSpec spec = good(mixtral("'hidden_act': 'gelu_fancy'"));
  EXPECT_THAT(spec.lacking,
              ElementsAre("config.json: hidden_act=\"gelu_fancy\" needs an operation that Moira "
                          "lacks: this activation, in the feed-forward blocks of every layer; "
                          "supported: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish"));
}

TEST(Config, LongSequencesMayNeedLackingOperations) {
  ModelSpec spec = good("'model_type': 'llama4_text', 'num_hidden_layers': 5, "
                        "'attention_chunk_size': 16, 'floor_scale': 8");
  ASSERT_EQ(spec.longNeeds.size(), 2u);
  EXPECT_EQ(spec.longNeeds[0].tokens, 16);
  EXPECT_THAT(spec.longNeeds[0].problem,
              testing::HasSubstr("attention_chunk_size=16 needs an operation that Moira lacks for "
                                 "more than 16 tokens: attention within chunks, in layers 0-2, 4"));
  EXPECT_EQ(spec.longNeeds[1].tokens, 7);
  EXPECT_THAT(spec.longNeeds[1].problem,
              testing::HasSubstr("queries scaled by their position, in layer 3"));
  EXPECT_FALSE(spec.layers[3].rotated);
  EXPECT_TRUE(spec.layers[4].rotated);
}

TEST(Config, StoredFormsThatCannotBeReadStandOnlyAgainstWeights) {
  ModelSpec spec = good(mixtral("'quantization_config': {'quant_method': 'fp8'}"));
  EXPECT_THAT(spec.unreadable, ElementsAre(testing::HasSubstr(
                                   "quantization_config={\"quant_method\":\"fp8\"} says")));
  EXPECT_THAT(good(mixtral("'quantization_config': null")).unreadable, testing::IsEmpty());
}

TEST(ModelClasses, AreSorted) {
  std::vector<std::string> names;
  for (const ModelClass *c : allModelClasses())
    names.push_back(c->name);
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  EXPECT_THAT(names, testing::IsSupersetOf(
                         {"deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_oss",
                          "granitemoe", "m2m_100", "mixtral", "mt5", "nllb-moe", "olmoe", "phimoe",
                          "qwen2_moe", "qwen3_moe", "switch_transformers", "xglm"}));
}

TEST(ModelClasses, MistakesInAClassFileAreInternalErrors) {
  Status status;
  EXPECT_FALSE(parseModelClass(R"({"model_type": "x", "fields": {"a": {"type": "integer"}},
                                   "model": {"vocab": "$b"}, "tensors": {"ear": "x"}, "foo": 1})",
                               {}, "x.json", status));
  expectProblems(
      status, {ErrorId::Internal},
      {"field a", "refers to $b", "unknown role ear", "unknown key foo", "no embedding"});
}

TEST(ModelSpec, DefaultsAreThoseOfTheClassAndAreListed) {
  ModelSpec spec = good("'model_type': 'olmoe', 'hidden_size': 64, 'num_attention_heads': 4");
  EXPECT_EQ(spec.experts, 64);
  EXPECT_EQ(spec.router.k, 8);
  EXPECT_EQ(spec.kvHeads, 4);
  EXPECT_EQ(spec.layers.size(), 16u);
  EXPECT_EQ(spec.rope.theta, 10000.0);
  EXPECT_EQ(spec.rope.positions, 4096);
  std::vector<std::string> fields;
  for (const DefaultTaken &d : spec.defaults)
    fields.push_back(d.field + "=" + d.value);
  EXPECT_THAT(fields,
              ElementsAre("attention_bias=false", "clip_qkv=null", "hidden_act=\"silu\"",
                          "intermediate_size=2048", "norm_topk_prob=false", "num_experts=64",
                          "num_experts_per_tok=8", "num_hidden_layers=16",
                          "num_key_value_heads=null", "rms_norm_eps=1e-05", "rope_theta=10000",
                          "tie_word_embeddings=false", "vocab_size=50304"));
}

TEST(ModelSpec, AliasesAreReadAndShown) {
  ModelSpec spec = good(mixtral("'num_experts': 6"));
  EXPECT_EQ(spec.experts, 6);
  EXPECT_EQ(spec.fieldOf.at("experts"), "num_experts");
  EXPECT_EQ(good(qwen3("'num_local_experts': 16")).experts, 16);
  EXPECT_EQ(good(olmoe("'num_local_experts': 16")).experts, 16);
}

TEST(ModelSpec, GatesOfTheClasses) {
  EXPECT_EQ(good(kMixtral).router.renorm, moe::Renorm::sum);
  EXPECT_EQ(good(olmoe("'norm_topk_prob': false")).router.renorm, moe::Renorm::none);
  EXPECT_EQ(good(olmoe("'norm_topk_prob': true")).router.renorm, moe::Renorm::sum);
  EXPECT_EQ(good(qwen2("'norm_topk_prob': true")).router.renorm, moe::Renorm::sum);
  EXPECT_EQ(good("'model_type': 'qwen3_moe'").router.renorm, moe::Renorm::none);
}

TEST(ModelSpec, GraniteScalesFourPlaces) {
  ModelSpec plain = good("'model_type': 'granitemoe'");
  EXPECT_EQ(plain.attentionScale, 1.0) << "not the inverse root of the head's size";
  EXPECT_EQ(plain.router.order, moe::RouteOrder::topk_score);
  ModelSpec spec = good("'model_type': 'granitemoe', 'embedding_multiplier': 12, "
                        "'attention_multiplier': 0.0625, 'residual_multiplier': 0.22, "
                        "'logits_scaling': 8.0");
  EXPECT_EQ(spec.embeddingScale, 12.0);
  EXPECT_EQ(spec.attentionScale, 0.0625);
  EXPECT_EQ(spec.residualScale, 0.22);
  EXPECT_EQ(spec.logitsScale, 0.125);
  EXPECT_EQ(good(kMixtral).attentionScale, 1 / std::sqrt(128.0));
}

TEST(ModelSpec, PhimoeHasLayerNormsAndBiases) {
  ModelSpec spec = good("'model_type': 'phimoe', 'lm_head_bias': true, 'attention_bias': true, "
                        "'router_jitter_noise': 0.25");
  EXPECT_TRUE(spec.norm == Norm::layer && spec.normBias && spec.headBias && spec.qkvBias &&
              spec.oBias);
  EXPECT_EQ(spec.router.score, moe::Score::sparsemixer);
  EXPECT_EQ(spec.router.jitterEps, 0.25);
  EXPECT_FALSE(good("'model_type': 'phimoe'").headBias);
  EXPECT_EQ(good(kMixtral).norm, Norm::rms);
}

TEST(ModelSpec, HeadSizeIsGivenOrDerived) {
  EXPECT_EQ(good(mixtral("'head_dim': null")).headDim, 128);
  EXPECT_EQ(good(mixtral("'head_dim': 32")).headDim, 32);
  EXPECT_EQ(
      good(mixtral("'hidden_size': 50, 'num_attention_heads': 4, 'num_key_value_heads': null"))
          .headDim,
      12);
}

TEST(ModelSpec, RopeInBothSpellings) {
  EXPECT_EQ(good(kMixtral).rope.theta, 1e6);
  EXPECT_EQ(good(mixtral("'rope_theta': 5e5, 'rope_scaling': null")).rope.theta, 5e5);
  EXPECT_EQ(good(mixtral("'rope_theta': 5e5, 'rope_parameters': {'rope_theta': 1e4}")).rope.theta,
            1e4);
  EXPECT_EQ(good(mixtral("'rope_parameters': {}")).rope.theta, 1e6);
  for (const char *fields : {"'rope_theta': 5e5, 'rope_scaling': {'type': 'linear', 'factor': 4}",
                             "'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'linear', "
                             "'factor': 4.0, 'partial_rotary_factor': 1.0}"}) {
    RopeSpec rope = good(mixtral(fields)).rope;
    EXPECT_EQ(rope.theta, 5e5);
    EXPECT_EQ(rope.scaling, RopeSpec::Scaling::linear);
    EXPECT_EQ(rope.factor, 4.0);
  }
}

std::vector<int64_t> windows(const std::string &fields) {
  std::vector<int64_t> out;
  for (const LayerSpec &layer : good(fields).layers)
    out.push_back(layer.window);
  return out;
}

TEST(ModelSpec, SlidingWindows) {
  EXPECT_THAT(windows(mixtral("'num_hidden_layers': 2, 'sliding_window': 7")), ElementsAre(7, 7));
  EXPECT_THAT(windows(mixtral("'num_hidden_layers': 1, 'sliding_window': null")), ElementsAre(0));
  std::string three = "'num_hidden_layers': 3, 'sliding_window': 5";
  EXPECT_THAT(windows(qwen3(three)), ElementsAre(0, 0, 0));
  EXPECT_THAT(windows(qwen3(three + ", 'use_sliding_window': true")), ElementsAre(5, 5, 5));
  EXPECT_THAT(windows(qwen2(three)), ElementsAre(0, 0, 0));
  EXPECT_THAT(windows(qwen2(three + ", 'use_sliding_window': true")), ElementsAre(5, 0, 5));
  EXPECT_THAT(windows(qwen2(three + ", 'use_sliding_window': true, 'max_window_layers': 2")),
              ElementsAre(5, 0, 0));
  EXPECT_THAT(
      windows(qwen2(three + ", 'use_sliding_window': true, 'layer_types': ['full_attention', "
                            "'sliding_attention', 'full_attention']")),
      ElementsAre(0, 5, 0));
  EXPECT_THAT(windows(qwen2("'num_hidden_layers': 1, 'sliding_window': 0")), ElementsAre(0));
}

std::vector<bool> sparse(const std::string &fields) {
  std::vector<bool> out;
  for (const LayerSpec &layer : good(fields).layers)
    out.push_back(layer.sparse);
  return out;
}

TEST(ModelSpec, SparseLayers) {
  EXPECT_THAT(sparse(mixtral("'num_hidden_layers': 2")), ElementsAre(true, true));
  EXPECT_THAT(sparse(qwen3("'num_hidden_layers': 4, 'decoder_sparse_step': 2")),
              ElementsAre(false, true, false, true));
  EXPECT_THAT(
      sparse(qwen2("'num_hidden_layers': 4, 'decoder_sparse_step': 2, 'mlp_only_layers': [3]")),
      ElementsAre(false, true, false, false));
  EXPECT_THAT(sparse(qwen3("'num_hidden_layers': 2, 'mlp_only_layers': null")),
              ElementsAre(true, true));
}

} // namespace
