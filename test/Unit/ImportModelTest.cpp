//===- ImportModelTest.cpp - model directories become modules -------------===//
// Shows that the golden models are imported completely, with the sizes that transformers gives
// their parameters; what a config alone gives; and that wrong paths and options are errors.
//===----------------------------------------------------------------------===//
#include "ImportTestUtil.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/MLIRContext.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Import/ConfigJson.h"
#include "moira/Import/Importer.h"
#include "moira/Import/WeightTable.h"
#include "llvm/Support/raw_ostream.h"

#include <filesystem>
#include <fstream>
#include <set>

using namespace moira;
using moira::test::expectProblems;
using rt::ErrorId;
using rt::Status;
namespace fs = std::filesystem;

namespace {

const std::string kGolden = std::string(MOIRA_SOURCE_DIR) + "/test/golden/";

/// A config.json of its own in a fresh directory.
class ImportModel : public testing::Test {
protected:
  mlir::MLIRContext context;
  Status status;
  ImportSummary summary;
  fs::path directory;

  void SetUp() override {
    std::string pattern = testing::TempDir() + "/moira-import-XXXXXX";
    directory = mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(directory); }

  std::string config(std::string fields) {
    std::replace(fields.begin(), fields.end(), '\'', '"');
    std::ofstream(directory / "config.json") << "{" << fields << "}";
    return (directory / "config.json").string();
  }
  mlir::OwningOpRef<mlir::ModuleOp> import(const std::string &path,
                                           ImportOptions options = {2, 24}) {
    return importModel(context, path, options, status, summary);
  }
  static std::string text(mlir::ModuleOp module) {
    std::string out;
    llvm::raw_string_ostream stream(out);
    module.print(stream);
    return out;
  }
};

class Golden : public ImportModel, public testing::WithParamInterface<const char *> {};

TEST_P(Golden, HasTheParametersOfTheTorchModule) {
  std::string path = kGolden + GetParam();
  mlir::OwningOpRef<mlir::ModuleOp> module = import(path);
  ASSERT_TRUE(module) << status.str();
  EXPECT_EQ(summary.tensorsFound, summary.tensorsExpected);
  EXPECT_EQ(summary.modelClass, GetParam() == std::string("nllb_moe") ? "nllb-moe" : GetParam());

  std::map<std::string, int64_t> states;
  for (auto state : module->getOps<moe::StateOp>())
    states[state.getSymName().str()] = state.getTensorType().getNumElements();
  // grad_norms.json: every parameter of the torch module, in memory, as name: [norm, shape].
  std::optional<llvm::json::Object> parameters = readConfig(path + "/grad_norms.json", status);
  ASSERT_TRUE(parameters) << status.str();
  std::set<std::string> seen;
  int64_t total = 0;
  for (const auto &member : *parameters) {
    std::string name = llvm::StringRef(member.first).str();
    int64_t elements = 1;
    for (const llvm::json::Value &size : *(*member.second.getAsArray())[1].getAsArray())
      elements *= *size.getAsInteger();
    // Experts that are modules of their own are stacked; those that no token met are not listed.
    if (size_t at = name.find(".experts.expert_"); at != std::string::npos) {
      size_t number = at + strlen(".experts.");
      name.erase(number, name.find('.', number) + 1 - number);
      elements *= 8;
    }
    for (const char *half : {".wi_0.weight", ".wi_1.weight"})
      if (llvm::StringRef(name).ends_with(half)) {
        name = llvm::StringRef(name).drop_back(strlen(half)).str() + ".wi.weight";
        elements *= 2;
      }
    for (const char *half : {".gate_proj.weight", ".up_proj.weight"})
      if (llvm::StringRef(name).ends_with(half)) {
        name = llvm::StringRef(name).drop_back(strlen(half)).str() + ".gate_up_proj.weight";
        elements *= 2;
      }
    ASSERT_TRUE(states.count(name)) << name;
    EXPECT_EQ(states[name], elements) << name;
    if (seen.insert(name).second)
      total += elements;
  }
  EXPECT_EQ(seen.size(), states.size());
  EXPECT_EQ(summary.parameters, uint64_t(total));
}

INSTANTIATE_TEST_SUITE_P(Classes, Golden,
                         testing::Values("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "xglm",
                                         "m2m_100", "mt5", "switch_transformers", "nllb_moe"),
                         [](const auto &info) { return std::string(info.param); });

TEST_F(ImportModel, ConfigAloneGivesAProgramWithoutTensors) {
  auto module = import(kGolden + "mixtral/config.json", {4, 7, 1, "bf16"});
  ASSERT_TRUE(module) << status.str();
  EXPECT_EQ(summary.tensorsFound, 0u);
  EXPECT_EQ(summary.tensorsExpected, 65u);
  auto forward = module->lookupSymbol<mlir::func::FuncOp>("forward");
  auto logits = mlir::cast<mlir::RankedTensorType>(forward.getResultTypes()[0]);
  EXPECT_EQ(logits.getShape(), llvm::ArrayRef<int64_t>({4, 7, 256}));
  EXPECT_TRUE(logits.getElementType().isF32());
  // What products take is bf16, what gates take f32.
  forward.walk([&](moe::RmsNormOp op) {
    bool forGate = llvm::any_of(op->getUsers(), [](mlir::Operation *user) {
      return llvm::any_of(user->getUsers(),
                          [](mlir::Operation *next) { return mlir::isa<moe::RouteOp>(next); });
    });
    auto element = mlir::cast<mlir::RankedTensorType>(op.getType()).getElementType();
    EXPECT_EQ(element.isF32(), forGate);
    EXPECT_EQ(element.isBF16(), !forGate);
  });
  forward.walk([&](moe::RouteOp op) {
    EXPECT_TRUE(
        mlir::cast<mlir::RankedTensorType>(op.getLogits().getType()).getElementType().isF32());
  });
}

TEST_F(ImportModel, EveryOperationSaysWhichModuleItIsOf) {
  auto module = import(kGolden + "qwen2_moe");
  ASSERT_TRUE(module);
  std::set<std::string> places;
  module->walk([&](mlir::Operation *op) {
    auto name = mlir::dyn_cast<mlir::NameLoc>(op->getLoc());
    ASSERT_TRUE(name) << op->getName().getStringRef().str();
    if (!mlir::isa<moe::StateOp>(op))
      places.insert(name.getName().str());
  });
  for (const char *place :
       {"model.embed_tokens", "model.rotary_emb", "model.layers.0",
        "model.layers.1.input_layernorm", "model.layers.1.self_attn",
        "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate", "model.layers.1.mlp.experts",
        "model.layers.1.mlp.shared_expert", "model.layers.1.mlp.shared_expert_gate",
        "model.layers.1.mlp", "model.norm", "lm_head"})
    EXPECT_TRUE(places.count(place)) << place;
}

TEST_F(ImportModel, TiedHeadsReadTheEmbedding) {
  auto module =
      import(config("'model_type': 'mixtral', 'hidden_size': 16, 'num_attention_heads': 2, "
                    "'num_key_value_heads': 1, 'num_hidden_layers': 1, 'vocab_size': 9, "
                    "'tie_word_embeddings': true"));
  ASSERT_TRUE(module) << status.str();
  EXPECT_EQ(text(*module).find("lm_head.weight"), std::string::npos);
  auto forward = module->lookupSymbol<mlir::func::FuncOp>("forward");
  auto head =
      forward.getBody().front().getTerminator()->getOperand(0).getDefiningOp<moe::LinearOp>();
  EXPECT_EQ(head.getW().getDefiningOp<moe::ParamOp>().getState(), "model.embed_tokens.weight");
}

TEST_F(ImportModel, ClipStandsBetweenNormAndRotation) {
  auto module = import(config("'model_type': 'olmoe', 'hidden_size': 16, 'num_attention_heads': 2, "
                              "'num_hidden_layers': 1, 'clip_qkv': 0.5, 'attention_bias': true"));
  ASSERT_TRUE(module) << status.str();
  auto forward = module->lookupSymbol<mlir::func::FuncOp>("forward");
  int rotated = 0, clamps = 0;
  forward.walk([&](moe::RopeOp rope) {
    ++rotated;
    auto clamp = rope.getX().getDefiningOp<moe::ClampOp>();
    ASSERT_TRUE(clamp);
    EXPECT_EQ(clamp.getLo().convertToDouble(), -0.5);
    EXPECT_EQ(clamp.getHi().convertToDouble(), 0.5);
    auto norm = clamp.getX().getDefiningOp<moe::RmsNormOp>();
    ASSERT_TRUE(norm);
    ASSERT_TRUE(norm.getX().getDefiningOp<moe::AddOp>()); // the bias
  });
  forward.walk([&](moe::ClampOp) { ++clamps; });
  EXPECT_EQ(rotated, 2);
  EXPECT_EQ(clamps, 3);
}

TEST_F(ImportModel, DenseLayersStandWhereTheConfigSaysSo) {
  auto module =
      import(config("'model_type': 'qwen3_moe', 'hidden_size': 16, 'num_attention_heads': 4, "
                    "'num_hidden_layers': 4, 'decoder_sparse_step': 2, 'mlp_only_layers': [3], "
                    "'intermediate_size': 10, 'moe_intermediate_size': 6"));
  ASSERT_TRUE(module) << status.str();
  std::string ir = text(*module);
  for (int l : {0, 2, 3})
    EXPECT_NE(ir.find("@model.layers." + std::to_string(l) +
                      ".mlp.gate_up_proj.weight : tensor<2x10x16xf32>"),
              std::string::npos);
  EXPECT_NE(ir.find("@model.layers.1.mlp.experts.down_proj : tensor<128x16x6xf32>"),
            std::string::npos);
  int routes = 0;
  module->walk([&](moe::RouteOp) { ++routes; });
  EXPECT_EQ(routes, 1);
}

/// A safetensors file with these tensors, all zero.
void writeSafetensors(const fs::path &path, const std::vector<StoredTensor> &tensors) {
  std::string header = "{", data;
  for (const StoredTensor &tensor : tensors) {
    int64_t bytes = 4;
    std::string shape;
    for (int64_t size : tensor.shape) {
      bytes *= size;
      shape += (shape.empty() ? "" : ",") + std::to_string(size);
    }
    header += (header.size() > 1 ? ",\"" : "\"") + tensor.name + "\":{\"dtype\":\"" + tensor.type +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(data.size()) +
              "," + std::to_string(data.size() + bytes) + "]}";
    data.append(bytes, '\0');
  }
  header += "}";
  uint64_t size = header.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char *>(&size), 8);
  out << header << data;
}

TEST_F(ImportModel, StackedExpertsAreReadFromOneTensor) {
  config(
      "'model_type': 'mixtral', 'hidden_size': 8, 'intermediate_size': 6, 'num_hidden_layers': 1, "
      "'num_attention_heads': 2, 'num_key_value_heads': 1, 'vocab_size': 11, 'num_local_experts': "
      "3");
  std::string layer = "model.layers.0.";
  std::vector<StoredTensor> tensors = {{"model.embed_tokens.weight", "F32", {11, 8}, ""},
                                       {"model.norm.weight", "F32", {8}, ""},
                                       {"lm_head.weight", "F32", {11, 8}, ""},
                                       {layer + "input_layernorm.weight", "F32", {8}, ""},
                                       {layer + "post_attention_layernorm.weight", "F32", {8}, ""},
                                       {layer + "self_attn.q_proj.weight", "F32", {8, 8}, ""},
                                       {layer + "self_attn.k_proj.weight", "F32", {4, 8}, ""},
                                       {layer + "self_attn.v_proj.weight", "F32", {4, 8}, ""},
                                       {layer + "self_attn.o_proj.weight", "F32", {8, 8}, ""},
                                       {layer + "mlp.gate.weight", "F32", {3, 8}, ""},
                                       {layer + "mlp.experts.gate_up_proj", "F32", {3, 12, 8}, ""},
                                       {layer + "mlp.experts.down_proj", "F32", {3, 8, 6}, ""}};
  writeSafetensors(directory / "model.safetensors", tensors);
  auto module = import(directory.string());
  ASSERT_TRUE(module) << status.str();
  EXPECT_EQ(summary.tensorsFound, 12u);
  auto gateUp = module->lookupSymbol<moe::StateOp>("model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(gateUp.getTensorType().getShape(), llvm::ArrayRef<int64_t>({3, 2, 6, 8}));
  EXPECT_FALSE(gateUp.getSource()->getPerExpert());
  EXPECT_EQ(gateUp.getSource()->getDiskShape().asArrayRef(), llvm::ArrayRef<int64_t>({3, 12, 8}));

  // The same file without its last tensor.
  tensors.pop_back();
  writeSafetensors(directory / "model.safetensors", tensors);
  EXPECT_FALSE(import(directory.string()));
  expectProblems(status, {ErrorId::MissingTensor},
                 {"model.layers.0.mlp.experts.down_proj [3, 8, 6]"});
}

TEST_F(ImportModel, TheSameModelGivesTheSameText) {
  std::string first = text(*import(kGolden + "qwen3_moe"));
  mlir::MLIRContext other;
  auto again = importModel(other, kGolden + "qwen3_moe", {2, 24}, status, summary);
  EXPECT_EQ(first, text(*again));
}

TEST_F(ImportModel, WrongPathsAreNamed) {
  EXPECT_FALSE(import((directory / "nowhere").string()));
  expectProblems(status, {ErrorId::FileNotFound}, {"nowhere"});
  status = {};
  EXPECT_FALSE(import(directory.string())); // no config.json
  expectProblems(status, {ErrorId::FileNotFound}, {"config.json"});
  status = {};
  config("'model_type': 'mixtral'");
  EXPECT_FALSE(import(directory.string())); // no weights
  expectProblems(status, {ErrorId::FileNotFound}, {"safetensors"});
}

TEST_F(ImportModel, ImpossibleSizesAreRefused) {
  std::string path = kGolden + "mixtral/config.json";
  EXPECT_FALSE(import(path, {0, 24}));
  EXPECT_FALSE(import(path, {int64_t(1) << 40, int64_t(1) << 40}));
  EXPECT_FALSE(import(path, {1, 1, 1, "f17"}));
  EXPECT_FALSE(import(path, {1, 1, 1, "f32", "dance"}));
  expectProblems(status, {ErrorId::BadUsage}, {"--batch=0", "--seq=1099511627776", "f17", "dance"});
}

TEST(LooksLikeModel, DirectoriesAndJsonFiles) {
  EXPECT_TRUE(looksLikeModel(kGolden + "mixtral"));
  EXPECT_TRUE(looksLikeModel("nowhere/config.json"));
  EXPECT_FALSE(looksLikeModel("x.mlir"));
  EXPECT_FALSE(looksLikeModel("nowhere"));
}

} // namespace
