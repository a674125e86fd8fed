//===- ImportWeightsTest.cpp - exact accounting of tensors ----------------===//
// Shows that every tensor of a checkpoint is needed or refused, in each layout that checkpoints
// have, on lists of tensors in memory.
//===----------------------------------------------------------------------===//
#include "ImportTestUtil.h"
#include "moira/Import/ConfigJson.h"
#include "moira/Import/WeightTable.h"

#include <gmock/gmock.h>

using namespace moira;
using moira::test::expectProblems;
using rt::ErrorId;
using rt::Status;
using testing::ElementsAre;

namespace {

using Tensors = std::map<std::string, StoredTensor>;

ModelSpec specOf(std::string fields) {
  std::replace(fields.begin(), fields.end(), '\'', '"');
  Status status;
  std::optional<llvm::json::Object> config = parseConfig("{" + fields + "}", "config.json", status);
  std::optional<ModelSpec> spec = resolveModel(*config, "config.json", status);
  EXPECT_TRUE(spec) << status.str();
  return *spec;
}

const std::string kSmall = "'hidden_size': 8, 'intermediate_size': 6, 'num_hidden_layers': 2, "
                           "'num_attention_heads': 2, 'num_key_value_heads': 1, 'vocab_size': 11, "
                           "'num_experts': 3, 'num_experts_per_tok': 2";
ModelSpec mixtral(const std::string &more = "") {
  return specOf("'model_type': 'mixtral', " + kSmall + more);
}
ModelSpec qwen2(const std::string &more = "") {
  return specOf("'model_type': 'qwen2_moe', 'moe_intermediate_size': 4, "
                "'shared_expert_intermediate_size': 10, " +
                kSmall + more);
}

ModelSpec deepseek(const std::string &type, const std::string &more = "",
                   const std::string &queryRank = "7") {
  return specOf("'model_type': '" + type +
                "', 'hidden_size': 8, 'intermediate_size': 6, 'moe_intermediate_size': 4, "
                "'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 2, "
                "'vocab_size': 11, 'n_routed_experts': 4, 'num_experts_per_tok': 2, 'n_group': 2, "
                "'topk_group': 1, 'first_k_dense_replace': 1, 'kv_lora_rank': 5, 'q_lora_rank': " +
                queryRank +
                ", "
                "'qk_nope_head_dim': 3, 'qk_rope_head_dim': 2, 'v_head_dim': 6" +
                more);
}

/// What a checkpoint of `spec` with this layout in every layer holds.
Tensors checkpointOf(const ModelSpec &spec, unsigned layout) {
  WeightTable table(spec, std::vector<unsigned>(spec.layers.size(), layout));
  Tensors out;
  for (const WeightState &state : table.states())
    for (int64_t e = 0; e < (state.perExpert ? spec.experts : 1); ++e)
      for (const std::string &pattern : state.from) {
        std::string name = expandName(pattern, state.layer, e);
        out[name] = {
            name, "F32", {state.diskShape.begin(), state.diskShape.end()}, "m.safetensors"};
      }
  return out;
}

/// Layouts and accounting as the importer does them.
Status accountFor(const ModelSpec &spec, const Tensors &tensors) {
  std::vector<StoredTensor> stored;
  for (const auto &[name, tensor] : tensors)
    stored.push_back(tensor);
  Status status;
  std::vector<unsigned> layouts = detectLayouts(spec, stored, status);
  if (status.ok())
    account(spec, WeightTable(spec, layouts), stored, status);
  return status;
}

TEST(WeightTable, ShapesNamesAndCountsOfAMixtral) {
  ModelSpec spec = mixtral();
  WeightTable table(spec, {0, 1});
  const WeightState &q = *table.find(WeightRole::q, 0), &o = *table.find(WeightRole::o, 0),
                    &k = *table.find(WeightRole::k, 1),
                    &perExpert = *table.find(WeightRole::expert_gate_up, 0),
                    &stacked = *table.find(WeightRole::expert_gate_up, 1);
  EXPECT_THAT(q.shape, ElementsAre(2, 4, 8));
  EXPECT_THAT(q.diskShape, ElementsAre(8, 8));
  EXPECT_THAT(k.shape, ElementsAre(1, 4, 8));
  EXPECT_THAT(o.shape, ElementsAre(8, 2, 4));
  EXPECT_EQ(perExpert.name, "model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_THAT(perExpert.shape, ElementsAre(3, 2, 6, 8));
  EXPECT_THAT(perExpert.diskShape, ElementsAre(6, 8));
  EXPECT_THAT(perExpert.from, ElementsAre("model.layers.0.block_sparse_moe.experts.{e}.w1.weight",
                                          "model.layers.0.block_sparse_moe.experts.{e}.w3.weight"));
  EXPECT_THAT(stacked.from, ElementsAre("model.layers.1.mlp.experts.gate_up_proj"));
  EXPECT_THAT(stacked.shape, ElementsAre(3, 2, 6, 8));
  EXPECT_THAT(stacked.diskShape, ElementsAre(3, 12, 8));
  EXPECT_EQ(table.find(WeightRole::router, 1)->from.front(), "model.layers.1.mlp.gate.weight");
  EXPECT_EQ(table.find(WeightRole::q_bias, 0), nullptr);
  // Outside 3; a layer: 2 norms, q k v o, router, and 9 or 2 tensors of experts.
  EXPECT_EQ(table.tensors(), 3 + (7 + 9) + (7 + 2));
  int64_t layer = 2 * 8 + 8 * 8 * 2 + 4 * 8 * 2 + 3 * 8, expert = 3 * 6 * 8;
  EXPECT_EQ(table.parameters(), 2 * 11 * 8 + 8 + 2 * (layer + 3 * expert));
  EXPECT_EQ(table.activeParameters(), 2 * 11 * 8 + 8 + 2 * (layer + 2 * expert));
}

TEST(WeightTable, PartsFillTheirTensorsExactly) {
  // In the order of the table: a tensor's parts follow one another, from 0 to its size.
  for (auto [queryRank, bias] : {std::pair("7", "false"), {"null", "false"}, {"7", "true"}}) {
    ModelSpec spec = deepseek("deepseek_v3", std::string(", 'attention_bias': ") + bias, queryRank);
    WeightTable table(spec, {0, 0});
    std::map<std::string, int64_t> filled;
    int64_t shared = 0;
    for (const WeightState &state : table.states()) {
      int64_t onDisk = 1, elements = state.elements();
      for (int64_t size : state.diskShape)
        onDisk *= size;
      if (state.slice.empty())
        continue;
      int64_t dim = state.slice[0], size = state.shape[dim];
      EXPECT_EQ(state.slice[1], filled[state.from.front()]) << state.name;
      filled[state.from.front()] += size;
      EXPECT_EQ(elements / size * state.slice[2], onDisk) << state.name;
      if (state.isFirstPart())
        ++shared;
      else
        EXPECT_EQ(filled[state.from.front()], state.slice[2]) << state.name;
    }
    EXPECT_EQ(int64_t(filled.size()), shared);
    // q (or q_b), kv_a with its bias, and kv_b of two layers.
    EXPECT_EQ(shared, 2 * (3 + spec.qkvBias));
    EXPECT_EQ(table.find(WeightRole::q_plain, 0) != nullptr, spec.latent->queryRank == 0);
  }
}

TEST(WeightTable, TransposedAndInterleavedExperts) {
  ModelSpec spec = specOf("'model_type': 'gpt_oss', " + kSmall);
  WeightTable table(spec, {0, 0});
  const WeightState &gateUp = *table.find(WeightRole::expert_gate_up, 0),
                    &bias = *table.find(WeightRole::expert_gate_up_bias, 0),
                    &down = *table.find(WeightRole::expert_down, 1);
  EXPECT_THAT(gateUp.shape, ElementsAre(3, 2, 6, 8));
  EXPECT_THAT(gateUp.diskShape, ElementsAre(3, 8, 12));
  EXPECT_THAT(gateUp.permute, ElementsAre(0, 3, 2, 1));
  EXPECT_THAT(bias.shape, ElementsAre(3, 2, 6));
  EXPECT_THAT(bias.permute, ElementsAre(0, 2, 1));
  EXPECT_THAT(down.diskShape, ElementsAre(3, 6, 8));
  EXPECT_THAT(down.permute, ElementsAre(0, 2, 1));
  int64_t expert = 3 * 6 * 8 + 2 * 6 + 8;
  EXPECT_EQ(table.parameters() - table.activeParameters(), 2 * expert);
}

TEST(Accounting, EveryLayoutOfEveryClassIsComplete) {
  std::vector<ModelSpec> specs = {
      mixtral(),
      mixtral(", 'tie_word_embeddings': true"),
      qwen2(),
      qwen2(", 'qkv_bias': false, 'mlp_only_layers': [1]"),
      specOf("'model_type': 'qwen3_moe', 'moe_intermediate_size': 4, 'attention_bias': true, " +
             kSmall),
      specOf("'model_type': 'olmoe', " + kSmall),
      specOf("'model_type': 'granitemoe', 'attention_bias': true, " + kSmall),
      specOf("'model_type': 'phimoe', 'lm_head_bias': true, 'attention_bias': true, " + kSmall),
      deepseek("deepseek_v3"),
      deepseek("deepseek_v3", ", 'attention_bias': true", "null"),
      deepseek("deepseek_v2", ", 'topk_method': 'group_limited_greedy', 'mlp_bias': true"),
      specOf("'model_type': 'gpt_oss', " + kSmall)};
  for (const ModelSpec &spec : specs)
    for (unsigned layout = 0; layout < spec.modelClass->layouts.size(); ++layout) {
      Tensors tensors = checkpointOf(spec, layout);
      EXPECT_TRUE(accountFor(spec, tensors).ok())
          << spec.modelClass->name << ": " << accountFor(spec, tensors).str();
      // Each single tensor counts.
      for (const auto &[name, tensor] : tensors) {
        Tensors fewer = tensors;
        fewer.erase(name);
        expectProblems(accountFor(spec, fewer), {ErrorId::MissingTensor}, {name});
      }
    }
}

TEST(Accounting, LayersMayDifferInLayout) {
  ModelSpec spec = mixtral();
  Tensors tensors = checkpointOf(spec, 0);
  for (const auto &[name, tensor] : checkpointOf(spec, 1))
    if (name.find("layers.1.mlp.") != std::string::npos)
      tensors[name] = tensor;
  std::erase_if(tensors, [](const auto &t) {
    return t.first.find("layers.1.block_sparse_moe") != std::string::npos;
  });
  EXPECT_TRUE(accountFor(spec, tensors).ok()) << accountFor(spec, tensors).str();
}

TEST(Accounting, OneLayerInTwoLayoutsIsRefused) {
  ModelSpec spec = qwen2();
  Tensors tensors = checkpointOf(spec, 0), stacked = checkpointOf(spec, 1);
  tensors.insert(stacked.begin(), stacked.end());
  expectProblems(accountFor(spec, tensors), {ErrorId::ExtraTensor},
                 {"layer 0 stores its experts in two ways", "layer 1", "experts.0.down_proj.weight",
                  "mlp.experts.down_proj", "m.safetensors"});
}

TEST(Accounting, ShapesTypesAndExtrasAreListedTogether) {
  ModelSpec spec = mixtral();
  Tensors tensors = checkpointOf(spec, 0);
  tensors["lm_head.weight"].shape = {88};
  tensors["model.norm.weight"].type = "I32";
  tensors["model.layers.2.input_layernorm.weight"] = {
      "model.layers.2.input_layernorm.weight", "F32", {8}, "m.safetensors"};
  tensors.erase("model.layers.1.block_sparse_moe.experts.2.w2.weight");
  expectProblems(
      accountFor(spec, tensors),
      {ErrorId::TensorShape, ErrorId::TensorDType, ErrorId::ExtraTensor, ErrorId::MissingTensor},
      {"m.safetensors: lm_head.weight is [88], expected [11, 8]",
       "m.safetensors: model.norm.weight is I32, expected F32, BF16 or F16",
       "model.layers.2.input_layernorm.weight", "2 layers",
       "missing tensor model.layers.1.block_sparse_moe.experts.2.w2.weight [8, 6]"});
}

TEST(Accounting, ManyProblemsAreCounted) {
  ModelSpec spec = mixtral();
  Tensors tensors = checkpointOf(spec, 0);
  size_t needed = tensors.size();
  tensors.clear();
  for (int i = 0; i < 30; ++i)
    tensors["x" + std::to_string(i)] = {"x" + std::to_string(i), "F32", {1}, "m.safetensors"};
  Status status = accountFor(spec, tensors);
  // Nine of each kind and two counts: all of it fits into what Status::str shows.
  expectProblems(
      status, {ErrorId::MissingTensor, ErrorId::ExtraTensor},
      {std::to_string(needed - 9) + " more tensors are missing", "21 more tensors are not used"});
  EXPECT_EQ(status.diagnostics().size(), 20u);
}

TEST(Accounting, AHostileConfigDoesNotMakeUsCountForever) {
  ModelSpec spec = mixtral(", 'num_local_experts': 3");
  spec.experts = 65536;
  spec.layers.resize(4096);
  Status status = accountFor(spec, {});
  expectProblems(status, {ErrorId::MissingTensor}, {"at least"});
}

TEST(Accounting, KnownUnusedTensorsAndStoredTiedHeads) {
  ModelSpec spec = mixtral(", 'tie_word_embeddings': true");
  Tensors tensors = checkpointOf(spec, 0);
  EXPECT_EQ(tensors.count("lm_head.weight"), 0u);
  tensors["a"] = {"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {2}, "m.safetensors"};
  tensors["b"] = {"lm_head.weight", "F32", {11, 8}, "m.safetensors"};
  EXPECT_TRUE(accountFor(spec, tensors).ok()) << accountFor(spec, tensors).str();
  tensors["b"].shape = {11, 9};
  expectProblems(accountFor(spec, tensors), {ErrorId::TensorShape}, {"[11, 9]", "[11, 8]"});
}

TEST(Accounting, ExpertNumbersAreExact) {
  ModelSpec spec = mixtral();
  Tensors tensors = checkpointOf(spec, 0);
  for (const char *number : {"3", "01", "-1", "99999999999999999999"}) {
    std::string name =
        std::string("model.layers.0.block_sparse_moe.experts.") + number + ".w1.weight";
    Tensors more = tensors;
    more[name] = {name, "F32", {6, 8}, "m.safetensors"};
    expectProblems(accountFor(spec, more), {ErrorId::ExtraTensor}, {name});
  }
}

} // namespace
