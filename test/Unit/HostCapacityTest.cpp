//===- HostCapacityTest.cpp - which choices an expert keeps -----------------===//
// The call `limit` by small cases that can be done by hand; random ones against NumPy are in
// python/tests/test_capacity.py. And what dropped choices mean to the calls behind it.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

#include "moira/rt/Philox.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

struct Limited {
  std::vector<int32_t> ids;
  std::vector<double> weights, dropped;
};

struct Asked {
  int64_t experts, capacity, domains = 1;
  const char *policy = "position", *order = "token_major", *renorm = "none";
  double clampMin = 0, scale = 1;
};

Limited limit(Tensor<int32_t> ids, Tensor<double> weights, Asked asked, int32_t step = 0) {
  Tensor<int32_t> outIds(ids.shape), steps({1}, {step});
  Tensor<double> outWeights(ids.shape), dropped({2});
  std::vector<TensorRef> in{ids, weights};
  if (std::string_view(asked.policy) == "random")
    in.push_back(steps);
  Status s = call(
      "limit", CallFlavor::reference, in, {outIds, outWeights, dropped},
      params({{"experts", asked.experts},
              {"capacity", asked.capacity},
              {"domains", asked.domains},
              {"seed", 7},
              {"layer", 2},
              {"token_offset", 0}},
             {{"renorm_epsilon", 0}, {"renorm_clamp_min", asked.clampMin}, {"scale", asked.scale}},
             {{"policy", asked.policy}, {"order", asked.order}, {"renorm", asked.renorm}}));
  EXPECT_TRUE(s.ok()) << s.str();
  return {outIds.values, outWeights.values, dropped.values};
}

TEST(HostCapacity, PositionKeepsTheFirstTokens) {
  Limited got = limit({{4, 1}, {0, 0, 1, 0}}, {{4, 1}, {0.1, 0.2, 0.3, 0.4}}, {2, 2});
  EXPECT_EQ(got.ids, (std::vector<int32_t>{0, 0, 1, -1}));
  EXPECT_EQ(got.weights, (std::vector<double>{0.1, 0.2, 0.3, 0}));
  EXPECT_EQ(got.dropped, (std::vector<double>{1, 4}));
}

TEST(HostCapacity, SecondChoicesMayWaitForAllFirstOnes) {
  Tensor<int32_t> ids({2, 2}, {1, 0, 0, 1});
  Tensor<double> weights({2, 2}, {0.6, 0.4, 0.7, 0.3});
  EXPECT_EQ(limit(ids, weights, {2, 1}).ids, (std::vector<int32_t>{1, 0, -1, -1}));
  EXPECT_EQ(limit(ids, weights, {2, 1, 1, "position", "choice_major"}).ids,
            (std::vector<int32_t>{1, -1, 0, -1}));
}

TEST(HostCapacity, ProbsAndPriorityGoByWeightAndTiesToTheLowerToken) {
  Tensor<int32_t> ids({3, 2}, {0, 1, 2, 0, 0, 1});
  Tensor<double> weights({3, 2}, {0.5, 0.5, 0.9, 0.5, 0.6, 0.1});
  EXPECT_EQ(limit(ids, weights, {3, 1, 1, "probs"}).ids,
            (std::vector<int32_t>{-1, 1, 2, -1, 0, -1}));
  EXPECT_EQ(limit(ids, weights, {3, 2, 1, "probs"}).ids, (std::vector<int32_t>{0, 1, 2, -1, 0, 1}));
  // Tokens in the order 1, 2, 0.
  EXPECT_EQ(limit(ids, weights, {3, 1, 1, "priority"}).ids,
            (std::vector<int32_t>{-1, -1, 2, 0, -1, 1}));
}

TEST(HostCapacity, RandomKeepsTheLargestDraws) {
  Tensor<int32_t> ids({6, 1}, {1, 1, 1, 1, 1, 1});
  Tensor<double> weights({6, 1}, {1, 1, 1, 1, 1, 1});
  for (int32_t step : {0, 1, 2}) {
    std::vector<std::pair<uint32_t, int>> draws;
    for (int t = 0; t < 6; ++t)
      draws.push_back({tokenDraw(7, uint32_t(step), 2, uint32_t(t), 1), t});
    std::sort(draws.rbegin(), draws.rend());
    std::vector<int32_t> want(6, -1);
    for (int i = 0; i < 2; ++i)
      want[size_t(draws[size_t(i)].second)] = 1;
    EXPECT_EQ(limit(ids, weights, {3, 2, 1, "random"}, step).ids, want) << step;
  }
}

TEST(HostCapacity, WeightsAreDividedBeforeOrAfterDropping) {
  Tensor<int32_t> ids({2, 2}, {0, 1, 0, 2});
  Tensor<double> weights({2, 2}, {0.4, 0.1, 0.3, 0.2});
  Limited before = limit(ids, weights, {3, 1, 1, "position", "token_major", "before", 0, 2});
  EXPECT_NEAR(before.weights[0], 1.6, 1e-15);
  EXPECT_NEAR(before.weights[3], 0.8, 1e-15);
  Limited after = limit(ids, weights, {3, 1, 1, "position", "token_major", "after", 0, 2});
  EXPECT_NEAR(after.weights[0], 1.6, 1e-15);
  EXPECT_EQ(after.weights[2], 0);
  EXPECT_NEAR(after.weights[3], 2, 1e-15);
  Limited none = limit(ids, weights, {3, 0, 1, "position", "token_major", "after", 1e-9});
  EXPECT_EQ(none.weights, (std::vector<double>{0, 0, 0, 0})) << "nothing is kept";
}

TEST(HostCapacity, EveryDomainHasItsOwnCapacity) {
  Limited got = limit({{4, 1}, {0, 0, 0, 0}}, {{4, 1}, {1, 1, 1, 1}}, {1, 1, 2});
  EXPECT_EQ(got.ids, (std::vector<int32_t>{0, -1, 0, -1}));
}

TEST(HostCapacity, DroppedChoicesStayDroppedAndAreNotCounted) {
  Limited got = limit({{3, 1}, {-1, 0, 0}}, {{3, 1}, {1, 1, 1}}, {1, 1});
  EXPECT_EQ(got.ids, (std::vector<int32_t>{-1, 0, -1}));
  EXPECT_EQ(got.dropped, (std::vector<double>{1, 2}));
  Tensor<int32_t> ids({1, 1}, {2}), out({1, 1});
  Tensor<double> w({1, 1}, {1}), outW({1, 1}), dropped({2});
  EXPECT_NE(call("limit", CallFlavor::reference, {ids, w}, {out, outW, dropped},
                 params({{"experts", 2}, {"capacity", 1}, {"domains", 1}}, {},
                        {{"policy", "position"}, {"order", "token_major"}, {"renorm", "none"}}))
                .str()
                .find("token 0 chooses expert 2 of 0..1"),
            std::string::npos);
}

TEST(HostCapacity, DroppedChoicesHaveNoRowsAndAddNothing) {
  Tensor<double> x({3, 2}, {1, 2, 3, 4, 5, 6}), weights({3, 2}, {10, 0, 0, 20, 0, 0}), rows({6, 2}),
      out({3, 2});
  Tensor<int32_t> ids({3, 2}, {1, -1, -1, 0, -1, -1}), need({1}, {0}), groups({1, 2}), pos({3, 2}),
      needed({1});
  ASSERT_TRUE(call("select", CallFlavor::reference, {x, ids, need}, {rows, groups, pos, needed},
                   params({{"experts", 2}, {"expert_offset", 0}}))
                  .ok());
  EXPECT_EQ(groups.values, (std::vector<int32_t>{1, 1}));
  EXPECT_EQ(pos.values, (std::vector<int32_t>{1, -1, -1, 0, -1, -1}));
  EXPECT_EQ(rows.values, (std::vector<double>{3, 4, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(needed.values[0], 2);
  ASSERT_TRUE(call("combine", CallFlavor::reference, {rows, pos, weights}, {out}, params({})).ok());
  EXPECT_EQ(out.values, (std::vector<double>{10, 20, 60, 80, 0, 0}));
}

TEST(HostCapacity, RowsAreMultipliedOnTheWayInWhereTheGateSaysSo) {
  Tensor<double> x({2, 2}, {1, 2, 3, 4}), weights({2, 1}, {10, 0.5}), slots({1, 2, 2, 2}),
      rows({2, 2});
  Tensor<int32_t> ids({2, 1}, {1, 0}), need({1}, {0}), counts({1, 2, 1}), pos({2, 1}), needed({1}),
      groups({1, 2});
  ASSERT_TRUE(call("pack", CallFlavor::reference, {x, ids, need, weights},
                   {slots, counts, pos, needed}, params({{"experts", 2}, {"segments", 1}}))
                  .ok());
  EXPECT_EQ(slots.values, (std::vector<double>{1.5, 2, 0, 0, 10, 20, 0, 0}));
  ASSERT_TRUE(call("select", CallFlavor::reference, {x, ids, need, weights},
                   {rows, groups, pos, needed}, params({{"experts", 2}, {"expert_offset", 0}}))
                  .ok());
  EXPECT_EQ(rows.values, (std::vector<double>{1.5, 2, 10, 20}));
}

TEST(HostCapacity, GivenChoicesAreWeighedAndChecked) {
  Tensor<double> logits({1, 3}, {std::log(1), std::log(2), std::log(5)}), weights({1, 2});
  Tensor<int32_t> table({2, 2}, {0, 1, 2, 0}), tokens({1}, {1}), choices({1, 2}), ids({1, 2});
  CallParams gate = params({}, {{"scale", 1}, {"renorm_epsilon", 0}, {"renorm_clamp_min", 0}},
                           {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}});
  ASSERT_TRUE(call("lookup", CallFlavor::reference, {tokens, table}, {choices}, params({})).ok());
  EXPECT_EQ(choices.values, (std::vector<int32_t>{2, 0}));
  ASSERT_TRUE(
      call("route_to", CallFlavor::reference, {logits, choices}, {ids, weights}, gate).ok());
  EXPECT_EQ(ids.values, choices.values);
  EXPECT_NEAR(weights.values[0], 5.0 / 6, 1e-15);
  tokens.values[0] = 2;
  ASSERT_TRUE(call("lookup", CallFlavor::reference, {tokens, table}, {choices}, params({})).ok());
  EXPECT_EQ(choices.values, (std::vector<int32_t>{-1, -1})) << "the table has no row 2";
  EXPECT_NE(call("route_to", CallFlavor::reference, {logits, choices}, {ids, weights}, gate)
                .str()
                .find("sends token 0 to expert -1"),
            std::string::npos);
}

TEST(HostCapacity, BlocksOfChoicesAreJoined) {
  // What an all_gather along the sequence leaves: each rank's block, then joined in sequence order.
  Tensor<int32_t> blocks({4, 1, 2}, {1, 2, 5, 6, 3, 4, 7, 8}), whole({2, 2, 2});
  ASSERT_TRUE(
      call("join_blocks", CallFlavor::fast, {blocks}, {whole}, params({{"blocks", 2}, {"dim", 1}}))
          .ok());
  EXPECT_EQ(whole.values, (std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  Tensor<float> other({2, 2, 2});
  EXPECT_NE(
      call("join_blocks", CallFlavor::fast, {blocks}, {other}, params({{"blocks", 2}, {"dim", 1}}))
          .str()
          .find("operand 'out' is f32 where others are i32"),
      std::string::npos);
}

} // namespace
