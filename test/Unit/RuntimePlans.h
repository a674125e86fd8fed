//===- RuntimePlans.h - plans that several runtime tests run ----*- C++ -*-===//
// Hand-made plans with their weights and inputs. What must come out is the tests' business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_RUNTIMEPLANS_H
#define MOIRA_TEST_UNIT_RUNTIMEPLANS_H

#include "RuntimeFiles.h"
#include "RuntimePlanBuilder.h"

#include <random>

namespace moira::test {

inline void savePlan(const std::string &path, const std::vector<uint8_t> &bytes) {
  writeFile(path, std::string(bytes.begin(), bytes.end()));
}

/// Four experts' rows, selected on the rank that has the expert, multiplied by its weights and put
/// together again. Mesh ep x tp; the reference does the same on one rank.
constexpr int64_t kTokens = 12, kHidden = 4, kExperts = 4, kK = 2;

inline std::vector<uint8_t> expertsPlan(uint32_t ep, uint64_t boundInitial, uint64_t boundMax) {
  PlanBuilder builder({{{"ep", ep}, {"tp", 2}}});
  for (bool reference : {false, true}) {
    auto &p = builder.program(reference, reference ? 0 : boundInitial, reference ? 0 : boundMax);
    Axes epAxes = reference ? Axes{} : Axes{0}, all = reference ? Axes{} : Axes{0, 1};
    int64_t parts = reference ? 1 : ep;
    auto f32 = fb::DType::f32, i32 = fb::DType::i32;
    uint32_t x = p.input("x", f32, {kTokens, kHidden}, {{}, {}});
    uint32_t gate = p.state("gate", f32, {kExperts, kHidden}, {{}, {}},
                            {{"gate.weight"}, false, {kExperts, kHidden}});
    uint32_t w = p.state("experts", f32, {kExperts, kHidden, kHidden}, {{epAxes}, {}, {}},
                         {{"experts.{e}.w"}, true, {kHidden, kHidden}});
    uint32_t logits = p.tensor(f32, {kTokens, kExperts});
    p.call("linear", {x, gate}, {logits}, {integer("contract", 1)});
    uint32_t ids = p.tensor(i32, {kTokens, kK}), weights = p.tensor(f32, {kTokens, kK});
    p.call("route", {logits}, {ids, weights},
           {text("score", "softmax"), text("order", "score_topk"), text("renorm", "sum"),
            real("scale", 1)},
           3);
    p.trace("layers.3.ids", i32, {kTokens, kK}, {{}, {}}, ids);
    p.trace("layers.3.weights", f32, {kTokens, kK}, {{}, {}}, weights);
    uint32_t need0 = p.tensor(i32, {1}), need1 = p.tensor(i32, {1});
    p.instr(fb::InstrKind::fill, 0, {}, {need0}, {real("value", 0)});
    uint32_t rows, out;
    if (reference) {
      rows = p.tensor(f32, {kTokens * kK, kHidden});
      out = p.tensor(f32, {kTokens * kK, kHidden});
    } else {
      rows = p.ragged(f32, {1, kHidden}, 0);
      out = p.ragged(f32, {1, kHidden}, 0);
    }
    uint32_t groups = p.tensor(i32, {1, kExperts / parts}), pos = p.tensor(i32, {kTokens, kK});
    p.call("select", {x, ids, need0}, {rows, groups, pos, need1},
           {integer("experts", kExperts), offset("expert_offset", kExperts / parts, epAxes)});
    p.call("grouped_matmul", {rows, groups, w}, {out}, {integer("contract", 1)});
    uint32_t y = p.tensor(f32, {kTokens, kHidden});
    p.call("combine", {out, pos, weights}, {y}, {});
    if (!reference) {
      uint32_t sum = p.tensor(f32, {kTokens, kHidden}), need = p.tensor(i32, {1});
      p.collective(fb::CollectiveKind::all_reduce, y, sum, epAxes, {integer("op", 0)});
      p.collective(fb::CollectiveKind::all_reduce, need1, need, all, {integer("op", 1)});
      p.instr(fb::InstrKind::require_bound, 0, {need}, {}, {});
      y = sum;
    }
    p.output("y", f32, {kTokens, kHidden}, {{}, {}}, y);
  }
  return builder.finish();
}

/// Weights and inputs of expertsPlan, from a seed.
inline void writeExpertsFiles(const TempDir &dir, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  auto make = [&](const std::string &name, std::vector<int64_t> shape) {
    int64_t n = 1;
    for (int64_t d : shape)
      n *= d;
    std::vector<float> values(n);
    for (float &v : values)
      v = normal(random);
    return testTensor(name, "F32", shape, values);
  };
  std::vector<TestTensor> weights = {make("gate.weight", {kExperts, kHidden})};
  for (int64_t e = 0; e < kExperts; ++e)
    weights.push_back(make("experts." + std::to_string(e) + ".w", {kHidden, kHidden}));
  std::filesystem::create_directory(dir / "model");
  writeFile(dir / "model/model.safetensors", safetensorsBytes(weights));
  writeFile(dir / "in.safetensors", safetensorsBytes({make("x", {kTokens, kHidden})}));
}

} // namespace moira::test

#endif // MOIRA_TEST_UNIT_RUNTIMEPLANS_H
