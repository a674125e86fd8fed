//===- CudaGatesTest.cpp - the gates' options on the GPU --------------------===//
// Every option of `route` beyond scores and orders (CudaExpertsTest.cpp) against the host: biases,
// groups, sparsemixer, renormalisation; and `redirect`.
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

TEST_F(CudaGates, RedirectMovesChoicesAndLeavesDroppedOnes) {
  for (Mode mode : allModes()) {
    mode.exact = true;
    expectAgrees(*gpu, "redirect", {I(random.ids({700, 3}, -1, 7))}, {I(Shape{700, 3})},
                 params({{"first", 5}, {"rest", 2}}), mode);
  }
}

} // namespace
