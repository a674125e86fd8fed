//===- CudaGatesTest.cpp - the gates' options on the GPU --------------------===//
// Every option of `route` beyond scores and orders (CudaExpertsTest.cpp) against the host: biases,
// groups, sparsemixer, renormalisation; and `route_to`, `lookup`, `limit`, `redirect`.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaGates : public CudaTest {};

CallParams gate(const char *score, const char *order, const char *renorm,
                std::map<std::string, int64_t, std::less<>> integers = {},
                std::map<std::string, double, std::less<>> reals = {},
                const char *groupScore = "max") {
  reals["scale"] = 1.5;
  return params(
      std::move(integers), std::move(reals),
      {{"score", score}, {"order", order}, {"renorm", renorm}, {"group_score", groupScore}});
}

TEST_F(CudaGates, GatesChooseWhatTheHostChooses) {
  struct Case {
    int64_t experts, k;
    bool bias;
    CallParams params;
  };
  std::vector<Case> cases;
  for (const char *order : {"score_topk", "topk_score"})
    for (const char *renorm : {"none", "sum"})
      cases.push_back({48, 6, true, gate("sqrt_softplus", order, renorm)});
  for (bool bias : {false, true}) {
    cases.push_back(
        {64, 6, bias, gate("softmax", "score_topk", "none", {{"groups", 8}, {"group_keep", 3}})});
    cases.push_back({256, 8, bias,
                     gate("sigmoid", "score_topk", "sum", {{"groups", 8}, {"group_keep", 4}},
                          {{"renorm_epsilon", 1e-20}}, "top2_sum")});
    cases.push_back({40, 3, bias,
                     gate("sigmoid", "topk_score", "sum", {{"groups", 20}, {"group_keep", 19}},
                          {{"renorm_clamp_min", 1.7}}, "top2_sum")});
    cases.push_back(
        {60, 4, bias, gate("softmax", "score_topk", "sum", {}, {{"renorm_clamp_min", 0.5}})});
  }
  for (const char *order : {"score_topk", "topk_score"}) // more choices than lanes
    for (const char *score : {"softmax", "sigmoid", "sqrt_softplus"})
      cases.push_back({130, 130, true, gate(score, order, "sum")});
  cases.push_back(
      {64, 40, false, gate("softmax", "score_topk", "none", {{"groups", 8}, {"group_keep", 5}})});
  for (int64_t k : {1, 2, 3})
    for (double jitter : {0.0, 0.01, 0.4})
      cases.push_back({k == 3 ? 70 : 16, k, false,
                       gate("sparsemixer", "score_topk", "none", {}, {{"jitter_eps", jitter}})});
  for (Mode mode : allModes()) {
    mode.hostFloat = true;
    for (const Case &c : cases) {
      int64_t tokens = random.between(1, 60);
      std::vector<Operand> inputs{T(random.normal<float>({tokens, c.experts}))};
      if (c.bias)
        inputs.push_back(A(random.normal<float>({c.experts})));
      expectAgrees(*gpu, "route", inputs, {I(Shape{tokens, c.k}), A(Shape{tokens, c.k})}, c.params,
                   mode);
    }
  }
}

TEST_F(CudaGates, GroupsGoToTheLowerGroupOnTies) {
  Tensor<float> logits({1, 6}, {1, 0, 1, 0, 1, 0});
  std::vector<Operand> got =
      runOnGpu(*gpu, "route", {T(logits)}, {I(Shape{1, 2}), A(Shape{1, 2})},
               gate("sigmoid", "score_topk", "none", {{"groups", 3}, {"group_keep", 1}}), {});
  EXPECT_EQ(got[0].ints().values, (std::vector<int32_t>{0, 1}));
}

TEST_F(CudaGates, GivenChoicesAreWeighedAndChecked) {
  for (Mode mode : allModes()) {
    mode.hostFloat = true;
    for (const char *score : {"softmax", "sigmoid", "sqrt_softplus"})
      expectAgrees(*gpu, "route_to",
                   {T(random.normal<float>({50, 64})), I(random.choices(50, 6, 64))},
                   {I(Shape{50, 6}), A(Shape{50, 6})}, gate(score, "score_topk", "sum"), mode);
  }
  Tensor<int32_t> bad({1, 1}, {-1});
  runOnGpu(*gpu, "route_to", {T(random.normal<float>({1, 4})), I(bad)},
           {I(Shape{1, 1}), A(Shape{1, 1})}, gate("softmax", "score_topk", "none"), {.fault = 1});
}

TEST_F(CudaGates, LookupReadsTheTable) {
  for (Mode mode : allModes()) {
    mode.exact = true;
    expectAgrees(*gpu, "lookup", {I(random.ids({300}, -2, 42)), I(random.ids({40, 6}, 0, 63))},
                 {I(Shape{300, 6})}, params({}), mode);
  }
}

TEST_F(CudaGates, LimitsKeepWhatTheHostKeeps) {
  for (Mode mode : allModes()) {
    mode.hostFloat = true;
    int number = 0;
    for (const char *policy : {"position", "probs", "random", "priority"})
      for (const char *order : {"token_major", "choice_major"})
        for (const char *renorm : {"none", "before", "after"}) {
          int64_t domains = random.between(1, 3), tokens = domains * random.between(1, 700),
                  experts = random.between(4, 70), k = random.between(1, 4);
          int64_t fair = tokens / domains * k / experts;
          Tensor<float> weights = random.normal<float>({tokens, k});
          for (float &w : weights.values) // many ties
            w = ++number % 3 ? std::abs(w) + 0.01f : std::round(std::abs(w) * 2) + 1;
          std::vector<Operand> inputs{I(random.choices(tokens, k, experts)), A(weights)};
          if (std::string_view(policy) == "random")
            inputs.push_back(I(random.ids({1}, 0, 1000)));
          expectAgrees(*gpu, "limit", inputs,
                       {I(Shape{tokens, k}), A(Shape{tokens, k}), A(Shape{2})},
                       params({{"experts", experts},
                               {"capacity", random.between(0, fair + 2)},
                               {"domains", domains},
                               {"seed", random.between(0, int64_t(1) << 40)},
                               {"layer", random.between(0, 60)},
                               {"token_offset", random.between(0, 5000)}},
                              {{"renorm_epsilon", 0}, {"renorm_clamp_min", 1e-7}, {"scale", 2}},
                              {{"policy", policy}, {"order", order}, {"renorm", renorm}}),
                       mode);
        }
  }
}

TEST_F(CudaGates, DroppedChoicesHaveNoRowsAndRowsMayBeWeighed) {
  for (Mode mode : allModes()) {
    mode.hostFloat = true;
    for (bool weighed : {false, true})
      for (const char *name : {"select", "pack"}) {
        std::vector<Operand> inputs{T(random.normal<float>({120, 33})),
                                    I(random.ids({120, 3}, -1, 15)), I(random.ids({1}, 0, 9))};
        if (weighed)
          inputs.push_back(A(random.normal<float>({120, 3})));
        if (std::string_view(name) == "select")
          expectAgrees(*gpu, name, inputs,
                       {T(Shape{200, 33}), I(Shape{1, 4}), I(Shape{120, 3}), I(Shape{1})},
                       params({{"experts", 16}, {"expert_offset", 8}}), mode);
        else
          expectAgrees(*gpu, name, inputs,
                       {T(Shape{1, 4, 90, 33}), I(Shape{1, 4, 8}), I(Shape{120, 3}), I(Shape{1})},
                       params({{"experts", 16}, {"segments", 2}}), mode);
      }
  }
}

TEST_F(CudaGates, RedirectMovesChoicesAndLeavesDroppedOnes) {
  for (Mode mode : allModes()) {
    mode.exact = true;
    expectAgrees(*gpu, "redirect", {I(random.ids({700, 3}, -1, 7))}, {I(Shape{700, 3})},
                 params({{"first", 5}, {"rest", 2}}), mode);
  }
}

} // namespace
