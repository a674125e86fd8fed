//===- HostRouteTest.cpp - the gate -----------------------------------------===//
// Scores, top-k, ties, renormalisation, gaps and forced choices of the call `route`.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

#include <limits>

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

struct Routed {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

Routed route(std::vector<double> logits, int64_t k, const char *score, const char *order,
             const char *renorm, double scale = 1, const RouteHooks *hooks = nullptr) {
  int64_t experts = int64_t(logits.size());
  Tensor<double> x({1, experts}, std::move(logits)), weights({1, k});
  Tensor<int32_t> ids({1, k});
  Status s =
      call("route", CallFlavor::reference, {x}, {ids, weights},
           params({}, {{"scale", scale}}, {{"score", score}, {"order", order}, {"renorm", renorm}}),
           hooks);
  EXPECT_TRUE(s.ok()) << s.str();
  return {ids.values, weights.values};
}

double ln(double x) { return std::log(x); }

TEST(HostRoute, SoftmaxOverAllThenTopK) {
  // Probabilities 1/8, 4/8, 1/8, 2/8.
  std::vector<double> logits{ln(1), ln(4), ln(1), ln(2)};
  Routed plain = route(logits, 2, "softmax", "score_topk", "none");
  EXPECT_EQ(plain.ids, (std::vector<int32_t>{1, 3}));
  EXPECT_NEAR(plain.weights[0], 0.5, 1e-15);
  EXPECT_NEAR(plain.weights[1], 0.25, 1e-15);
  Routed renormalised = route(logits, 2, "softmax", "score_topk", "sum", 3);
  EXPECT_NEAR(renormalised.weights[0], 2, 1e-15);
  EXPECT_NEAR(renormalised.weights[1], 1, 1e-15);
}

TEST(HostRoute, TopKThenSoftmax) {
  Routed r = route({ln(1), ln(4), ln(1), ln(2)}, 2, "softmax", "topk_score", "none");
  EXPECT_EQ(r.ids, (std::vector<int32_t>{1, 3}));
  EXPECT_NEAR(r.weights[0], 2.0 / 3, 1e-15);
  EXPECT_NEAR(r.weights[1], 1.0 / 3, 1e-15);
}

TEST(HostRoute, SigmoidScores) {
  Routed r = route({-1, 0, ln(3)}, 2, "sigmoid", "score_topk", "none", 2);
  EXPECT_EQ(r.ids, (std::vector<int32_t>{2, 1}));
  EXPECT_NEAR(r.weights[0], 1.5, 1e-15);
  EXPECT_NEAR(r.weights[1], 1, 1e-15);
}

TEST(HostRoute, TiesGoToTheLowerExpert) {
  EXPECT_EQ(route({1, 2, 2, 1, 2}, 4, "softmax", "score_topk", "sum").ids,
            (std::vector<int32_t>{1, 2, 4, 0}));
  EXPECT_EQ(route({0, 0, 0}, 3, "softmax", "topk_score", "none").ids,
            (std::vector<int32_t>{0, 1, 2}));
}

TEST(HostRoute, NotANumberStillChoosesDifferentExperts) {
  double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(route({nan, 1, nan, 2}, 3, "softmax", "topk_score", "none").ids,
            (std::vector<int32_t>{3, 1, 0}));
  EXPECT_EQ(route({nan, nan, nan}, 2, "softmax", "score_topk", "sum").ids,
            (std::vector<int32_t>{0, 1}));
}

TEST(HostRoute, GapIsTheLastChosenOverTheFirstLeftOut) {
  std::vector<float> gaps;
  RouteHooks hooks;
  hooks.gaps = &gaps;
  route({ln(1), ln(4), ln(1), ln(2)}, 2, "softmax", "score_topk", "none", 1, &hooks);
  ASSERT_EQ(gaps.size(), 1u);
  EXPECT_NEAR(gaps[0], 0.125, 1e-7);
  route({3, 5}, 2, "softmax", "score_topk", "none", 1, &hooks);
  EXPECT_EQ(gaps, std::vector<float>{INFINITY}) << "nobody is left out";
}

TEST(HostRoute, ForcedChoicesKeepTheGatesWeights) {
  int32_t forced[] = {2, 0};
  RouteHooks hooks;
  hooks.forcedIds = forced;
  Routed r = route({ln(1), ln(4), ln(3)}, 2, "softmax", "score_topk", "sum", 1, &hooks);
  EXPECT_EQ(r.ids, (std::vector<int32_t>{2, 0}));
  EXPECT_NEAR(r.weights[0], 0.75, 1e-15);
  Tensor<float> x({1, 3}, {1, 2, 3}), weights({1, 2});
  Tensor<int32_t> ids({1, 2});
  CallParams p = params({}, {}, {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}});
  for (int32_t bad : {-1, 3}) {
    forced[1] = bad;
    EXPECT_NE(
        call("route", CallFlavor::fast, {x}, {ids, weights}, p, &hooks).str().find("MOE-0502"),
        std::string::npos);
  }
  hooks.forcedIds = std::span<const int32_t>(forced, 1);
  EXPECT_NE(call("route", CallFlavor::fast, {x}, {ids, weights}, p, &hooks)
                .str()
                .find("forced routing has 1 expert ids"),
            std::string::npos);
}

TEST(HostRoute, ABiasChoosesButDoesNotWeigh) {
  std::vector<float> gaps;
  RouteHooks hooks;
  hooks.gaps = &gaps;
  Tensor<double> x({1, 3}, {ln(1), ln(2), ln(5)}), bias({3}, {0.4, 0, 0}), weights({1, 1});
  Tensor<int32_t> ids({1, 1});
  ASSERT_TRUE(
      call("route", CallFlavor::reference, {x, bias}, {ids, weights},
           params({}, {}, {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "none"}}),
           &hooks)
          .ok());
  EXPECT_EQ(ids.values, std::vector<int32_t>{2});
  EXPECT_NEAR(gaps[0], 0.1, 1e-6) << "0.625 against 0.125 + 0.4";
  bias.values[0] = 0.6;
  ASSERT_TRUE(
      call("route", CallFlavor::reference, {x, bias}, {ids, weights},
           params({}, {}, {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "none"}}))
          .ok());
  EXPECT_EQ(ids.values, std::vector<int32_t>{0});
  EXPECT_NEAR(weights.values[0], 0.125, 1e-15);
}

TEST(HostRoute, TheGapCountsTheGroupsToo) {
  std::vector<float> gaps;
  RouteHooks hooks;
  hooks.gaps = &gaps;
  // Groups {0, 1} and {2, 3}: 0.9 against 0.8 decides, though within the group 0.9 beats 0.1.
  Tensor<double> x({1, 4}, {0.9, 0.1, 0.8, 0.7}), weights({1, 1});
  Tensor<int32_t> ids({1, 1});
  ASSERT_TRUE(call("route", CallFlavor::reference, {x}, {ids, weights},
                   params({{"groups", 2}, {"group_keep", 1}}, {},
                          {{"score", "sigmoid"},
                           {"order", "topk_score"},
                           {"renorm", "none"},
                           {"group_score", "max"}}),
                   &hooks)
                  .ok());
  EXPECT_EQ(ids.values, std::vector<int32_t>{0});
  EXPECT_NEAR(gaps[0], 0.1, 1e-6);
}

TEST(HostRoute, ForcedChoicesOfASparsemixerAreWeighedOneAfterTheOther) {
  int32_t forced[] = {1, 0};
  RouteHooks hooks;
  hooks.forcedIds = forced;
  Tensor<double> x({1, 3}, {1.0, 1.1, -3.0}), weights({1, 2});
  Tensor<int32_t> ids({1, 2});
  ASSERT_TRUE(call("route", CallFlavor::reference, {x}, {ids, weights},
                   params({}, {{"jitter_eps", 0.1}},
                          {{"score", "sparsemixer"}, {"order", "score_topk"}, {"renorm", "none"}}),
                   &hooks)
                  .ok());
  EXPECT_EQ(ids.values, (std::vector<int32_t>{1, 0}));
  EXPECT_NEAR(weights.values[0], 1 / (1 + std::exp(-0.1)), 1e-12);
  EXPECT_NEAR(weights.values[1], 1, 1e-12) << "-3 is not near 1";
}

TEST(HostRoute, AgreesWithASortInFloat) {
  // The f32 gate chooses what sorting its float probabilities chooses, and its weights are right to
  // float precision.
  Random random(testSeed() + 20);
  for (int i = 0; i < 50; ++i) {
    int64_t tokens = random.between(1, 20), experts = random.between(1, 40),
            k = random.between(1, experts);
    Tensor<float> logits = random.normal<float>({tokens, experts}), weights({tokens, k});
    Tensor<int32_t> ids({tokens, k});
    ASSERT_TRUE(
        call("route", CallFlavor::fast, {logits}, {ids, weights},
             params({}, {}, {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}))
            .ok());
    for (int64_t t = 0; t < tokens; ++t) {
      std::span<const float> row(logits.values.data() + t * experts, size_t(experts));
      std::vector<int32_t> order(row.size());
      for (size_t e = 0; e < row.size(); ++e)
        order[e] = int32_t(e);
      std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return std::pair(-row[size_t(a)], a) < std::pair(-row[size_t(b)], b);
      });
      double total = 0;
      for (int64_t j = 0; j < k; ++j)
        total += std::exp(double(row[size_t(order[size_t(j)])]));
      for (int64_t j = 0; j < k; ++j) {
        EXPECT_EQ(ids.values[size_t(t * k + j)], order[size_t(j)]);
        EXPECT_NEAR(weights.values[size_t(t * k + j)],
                    std::exp(double(row[size_t(order[size_t(j)])])) / total, 1e-6);
      }
    }
  }
}

TEST(HostRoute, UnknownGatesAreRefused) {
  Tensor<float> x({1, 3}, {1, 2, 3}), weights({1, 2}), four({1, 4});
  Tensor<int32_t> ids({1, 2}), fourIds({1, 4});
  auto run = [&](const char *score, const char *order, const char *renorm) {
    return call("route", CallFlavor::fast, {x}, {ids, weights},
                params({}, {}, {{"score", score}, {"order", order}, {"renorm", renorm}}))
        .ok();
  };
  EXPECT_TRUE(run("softmax", "score_topk", "sum"));
  EXPECT_FALSE(run("sparsemixer", "score_topk", "sum"));
  EXPECT_FALSE(run("tanh", "score_topk", "sum"));
  EXPECT_FALSE(run("softmax", "", "sum"));
  EXPECT_FALSE(run("softmax", "score_topk", "clamp"));
  EXPECT_FALSE(
      call("route", CallFlavor::fast, {x}, {fourIds, four},
           params({}, {}, {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}))
          .ok());
}

} // namespace
