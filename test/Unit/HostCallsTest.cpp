//===- HostCallsTest.cpp - every host call against numbers ------------------===//
// Small cases with values worked out by hand show what each call means; random shapes show that the
// fast and the f32 reference flavors agree with the f64 reference. Row order is in
// HostOrderTest.cpp, the gate in HostRouteTest.cpp.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "moira/rt/HostThreads.h"

#include <variant>

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

constexpr CallFlavor flavors[] = {CallFlavor::fast, CallFlavor::reference};

/// Runs `name` in f64 and in both f32 flavors on the same float inputs and compares the first
/// output.
double worstError(std::string_view name,
                  const std::vector<std::variant<Tensor<float>, Tensor<int32_t>>> &inputs,
                  const Shape &outShape, const CallParams &p) {
  auto run = [&]<typename S>(S, CallFlavor flavor) {
    std::vector<Tensor<S>> scalars;
    scalars.reserve(inputs.size());
    std::vector<TensorRef> refs;
    for (const auto &input : inputs) {
      if (const auto *ints = std::get_if<Tensor<int32_t>>(&input)) {
        refs.push_back(*ints);
      } else {
        scalars.push_back(std::get<Tensor<float>>(input).template as<S>());
        refs.push_back(scalars.back());
      }
    }
    Tensor<S> out(outShape);
    Status s = call(name, flavor, refs, {out}, p);
    EXPECT_TRUE(s.ok()) << s.str();
    return out;
  };
  Tensor<double> exact = run(double(), CallFlavor::reference);
  double worst = 0;
  for (CallFlavor flavor : flavors) {
    Tensor<float> got = run(float(), flavor);
    worst = std::max(worst, relativeError(got, exact));
    EXPECT_EQ(got.values, run(float(), flavor).values) << name << " differs from run to run";
  }
  return worst;
}

TEST(HostCalls, EmbeddingTakesOnlyRowsOfItsShard) {
  // Rows 4..6 of a larger table; ids outside, negative and huge ones give zeros.
  Tensor<float> table({3, 2}, {40, 41, 50, 51, 60, 61});
  for (CallFlavor flavor : flavors) {
    Tensor<float> out({2, 3, 2});
    Tensor<int64_t> ids({2, 3}, {6, 4, 3, 7, -1, INT64_MAX});
    ASSERT_TRUE(call("embedding", flavor, {ids, table}, {out}, params({{"row_offset", 4}})).ok());
    EXPECT_EQ(out.values, (std::vector<float>{60, 61, 40, 41, 0, 0, 0, 0, 0, 0, 0, 0}));
    Tensor<int32_t> narrow({1, 2}, {5, INT32_MIN});
    Tensor<float> two({1, 2, 2});
    ASSERT_TRUE(
        call("embedding", flavor, {narrow, table}, {two}, params({{"row_offset", 4}})).ok());
    EXPECT_EQ(two.values, (std::vector<float>{50, 51, 0, 0}));
  }
}

TEST(HostCalls, LinearContractsTrailingDims) {
  // One row of 2x2 against two such blocks: 1*1+2*0+3*1+4*0 and 1*0+2*1+3*0+4*2.
  Tensor<float> x({1, 2, 2}, {1, 2, 3, 4}), w({2, 2, 2}, {1, 0, 1, 0, 0, 1, 0, 2});
  for (CallFlavor flavor : flavors) {
    Tensor<float> out({1, 2});
    ASSERT_TRUE(call("linear", flavor, {x, w}, {out}, params({{"contract", 2}})).ok());
    EXPECT_EQ(out.values, (std::vector<float>{4, 10}));
  }
}

TEST(HostCalls, LinearAgreesOnRandomShapes) {
  Random random(testSeed());
  for (int i = 0; i < 60; ++i) {
    int64_t b = random.between(1, 3), s = random.between(1, 40), n1 = random.between(1, 5),
            n2 = random.between(1, 33), k1 = random.between(1, 3), k2 = random.between(1, 70);
    EXPECT_LT(
        worstError("linear",
                   {random.normal<float>({b, s, k1, k2}), random.normal<float>({n1, n2, k1, k2})},
                   {b, s, n1, n2}, params({{"contract", 2}})),
        2e-6);
  }
}

TEST(HostCalls, LinearOfNothing) {
  // K = 0 is a sum of no terms; M = 0 writes nothing.
  for (CallFlavor flavor : flavors) {
    Tensor<float> out({2, 3});
    ASSERT_TRUE(call("linear", flavor, {Tensor<float>({2, 0}), Tensor<float>({3, 0})}, {out},
                     params({{"contract", 1}}))
                    .ok());
    EXPECT_EQ(out.values, std::vector<float>(6, 0.0f));
    EXPECT_TRUE(call("linear", flavor, {Tensor<float>({0, 4}), Tensor<float>({3, 4})},
                     {Tensor<float>({0, 3})}, params({{"contract", 1}}))
                    .ok());
  }
}

TEST(HostCalls, PositionsStartAtTheShard) {
  Tensor<int32_t> out({3});
  ASSERT_TRUE(call("positions", CallFlavor::fast, {}, {out}, params({{"start", 12}})).ok());
  EXPECT_EQ(out.values, (std::vector<int32_t>{12, 13, 14}));
  EXPECT_FALSE(
      call("positions", CallFlavor::fast, {}, {out}, params({{"start", INT32_MAX - 2}})).ok());
}

TEST(HostCalls, RopeRotatesHalvesAndPassesTheRest) {
  // Position 1 of a head of 5 with 2 pairs; frequencies 1 and theta^-1/2 = 0.01.
  Tensor<int32_t> pos({2}, {0, 1});
  for (CallFlavor flavor : flavors) {
    Tensor<float> cosines({2, 2}), sines({2, 2});
    ASSERT_TRUE(call("rope_table", flavor, {pos}, {cosines, sines}, ropeParams(10000, 4)).ok());
    EXPECT_FLOAT_EQ(cosines.values[2], std::cos(1.0f));
    EXPECT_FLOAT_EQ(sines.values[3], std::sin(0.01f));
    Tensor<float> x({1, 2, 1, 5}, {1, 2, 3, 4, 5, 1, 2, 3, 4, 5}), out({1, 2, 1, 5});
    ASSERT_TRUE(call("rope", flavor, {x, cosines, sines}, {out}, {}).ok());
    EXPECT_EQ(std::vector<float>(out.values.begin(), out.values.begin() + 5),
              (std::vector<float>{1, 2, 3, 4, 5}));
    EXPECT_FLOAT_EQ(out.values[5], 1 * std::cos(1.0f) - 3 * std::sin(1.0f));
    EXPECT_FLOAT_EQ(out.values[6], 2 * std::cos(0.01f) - 4 * std::sin(0.01f));
    EXPECT_FLOAT_EQ(out.values[7], 3 * std::cos(1.0f) + 1 * std::sin(1.0f));
    EXPECT_FLOAT_EQ(out.values[8], 4 * std::cos(0.01f) + 2 * std::sin(0.01f));
    EXPECT_EQ(out.values[9], 5);
  }
}

TEST(HostCalls, RopeTableMultipliesByItsFactor) {
  Tensor<int32_t> pos({2}, {0, 8});
  Tensor<double> cosines({2, 1}), sines({2, 1});
  CallParams p = params({}, {{"factor", 1.5}});
  p.realLists["frequencies"] = {0.25};
  ASSERT_TRUE(call("rope_table", CallFlavor::reference, {pos}, {cosines, sines}, p).ok());
  EXPECT_EQ(cosines.values, (std::vector<double>{1.5, 1.5 * std::cos(2.0)}));
  EXPECT_EQ(sines.values, (std::vector<double>{0, 1.5 * std::sin(2.0)}));
  p.realLists["frequencies"] = {0.25, 0.5};
  Status s = call("rope_table", CallFlavor::reference, {pos}, {cosines, sines}, p);
  EXPECT_NE(s.str().find("2 frequencies for 1 columns"), std::string::npos) << s.str();
}

TEST(HostCalls, InterleavedRopeRotatesNeighbours) {
  // The same numbers as rotate-half's after taking even elements before odd ones, also for keys
  // without heads.
  Random random(testSeed());
  Tensor<int32_t> pos({3}, {0, 5, 9});
  Tensor<double> cosines({3, 2}), sines({3, 2});
  ASSERT_TRUE(
      call("rope_table", CallFlavor::reference, {pos}, {cosines, sines}, ropeParams(100, 4)).ok());
  Tensor<double> x = random.normal<double>({2, 3, 5}), apart = x, out(x.shape), want(x.shape);
  auto order = [](int64_t i) { return i < 2 ? 2 * i : i < 4 ? 2 * (i - 2) + 1 : i; };
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t i = 0; i < 5; ++i)
      apart.values[size_t(t * 5 + i)] = x.values[size_t(t * 5 + order(i))];
  ASSERT_TRUE(
      call("rope", CallFlavor::reference, {x, cosines, sines}, {out}, params({{"interleaved", 1}}))
          .ok());
  ASSERT_TRUE(call("rope", CallFlavor::reference, {apart, cosines, sines}, {want}, {}).ok());
  for (int64_t t = 0; t < 6; ++t)
    for (int64_t i = 0; i < 5; ++i)
      EXPECT_EQ(out.values[size_t(t * 5 + order(i))], want.values[size_t(t * 5 + i)]);
}

/// All keys weigh the same (queries are zero), so that the result is the mean of the visible
/// values.
std::vector<float> meanOfVisible(CallFlavor flavor, std::vector<int32_t> qpos,
                                 std::vector<int32_t> kpos, std::vector<int32_t> mask,
                                 int64_t window) {
  int64_t nq = int64_t(qpos.size()), nk = int64_t(kpos.size());
  Tensor<float> q({1, nq, 1, 1}, std::vector<float>(qpos.size(), 0)),
      k({1, nk, 1, 1}, std::vector<float>(kpos.size(), 1)), v({1, nk, 1, 1});
  for (int64_t j = 0; j < nk; ++j)
    v.values[size_t(j)] = float(1 << j);
  Tensor<float> out({1, nq, 1, 1});
  Status s = call("attention", flavor,
                  {q, k, v, Tensor<int32_t>({nq}, qpos), Tensor<int32_t>({nk}, kpos),
                   Tensor<int32_t>({1, nk}, mask)},
                  {out},
                  params({{"window", window}, {"q_heads", 1}, {"kv_heads", 1}}, {{"scale", 1}},
                         {{"with", "qpos kpos kmask"}}));
  EXPECT_TRUE(s.ok()) << s.str();
  return out.values;
}

TEST(HostCalls, AttentionSeesWhatPositionsMaskAndWindowAllow) {
  for (CallFlavor flavor : flavors) {
    EXPECT_EQ(meanOfVisible(flavor, {0, 1, 3}, {0, 1, 2, 3}, {1, 1, 1, 1}, 0),
              (std::vector<float>{1, 1.5, 3.75}));
    EXPECT_EQ(meanOfVisible(flavor, {0, 1, 3}, {0, 1, 2, 3}, {0, 1, 1, 0}, 0),
              (std::vector<float>{0, 2, 3}))
        << "query 0 sees no key";
    EXPECT_EQ(meanOfVisible(flavor, {0, 1, 3}, {0, 1, 2, 3}, {1, 1, 1, 1}, 2),
              (std::vector<float>{1, 1.5, 6}));
    EXPECT_EQ(meanOfVisible(flavor, {0, 5, INT32_MAX}, {3, 4, 5, INT32_MIN}, {1, 1, 1, 1}, 2),
              (std::vector<float>{0, 3, 0}));
  }
}

TEST(HostCalls, AttentionMapsQueryHeadsToTheirKeyHeads) {
  // 8 query heads share 4 key/value heads; this rank has query heads 4..7 and key/value heads 1..3,
  // so it reads its rows 1 1 2 2.
  Tensor<float> q({1, 1, 4, 1}, {0, 0, 0, 0}), k({1, 1, 3, 1}, {1, 1, 1}),
      v({1, 1, 3, 1}, {10, 20, 30}), out({1, 1, 4, 1});
  for (CallFlavor flavor : flavors) {
    CallParams p = params({{"q_heads", 8}, {"kv_heads", 4}, {"head_offset", 4}, {"kv_offset", 1}},
                          {{"scale", 1}});
    ASSERT_TRUE(call("attention", flavor, {q, k, v}, {out}, p).ok());
    EXPECT_EQ(out.values, (std::vector<float>{20, 20, 30, 30}));
    p.integers["kv_offset"] = 3; // head 4 would read before the first row
    EXPECT_FALSE(call("attention", flavor, {q, k, v}, {out}, p).ok());
    p.integers["kv_offset"] = 0;
    p.integers["head_offset"] = 6;
    EXPECT_FALSE(call("attention", flavor, {q, k, v}, {out}, p).ok());
    p.integers["q_heads"] = 0;
    EXPECT_FALSE(call("attention", flavor, {q, k, v}, {out}, p).ok());
  }
}

TEST(HostCalls, AttentionAgreesOnRandomShapes) {
  Random random(testSeed() + 1);
  for (int i = 0; i < 40; ++i) {
    int64_t b = random.between(1, 2), group = random.between(1, 3), kv = random.between(1, 3),
            d = random.between(1, 40);
    int64_t keys =
        i % 8 == 7 ? random.between(250, 700) : random.between(1, 40); // over several key blocks
    int64_t queries = i % 8 == 7 ? random.between(60, 140) : random.between(1, keys);
    Tensor<int32_t> qpos({queries}), kpos({keys}), mask = random.ids({b, keys}, 0, 6);
    int64_t first = random.between(0, std::max<int64_t>(keys - queries, 0));
    for (int64_t j = 0; j < queries; ++j)
      qpos.values[size_t(j)] = int32_t(first + j);
    for (int64_t j = 0; j < keys; ++j)
      kpos.values[size_t(j)] = int32_t(j);
    CallParams p = params({{"window", i % 3 ? 0 : random.between(1, keys)},
                           {"q_heads", group * kv},
                           {"kv_heads", kv}},
                          {{"scale", 1 / std::sqrt(double(d))}}, {{"with", "qpos kpos kmask"}});
    EXPECT_LT(worstError("attention",
                         {random.normal<float>({b, queries, group * kv, d}),
                          random.normal<float>({b, keys, kv, d}),
                          random.normal<float>({b, keys, kv, d}), qpos, kpos, mask},
                         {b, queries, group * kv, d}, p),
              3e-6)
        << "case " << i << ": " << queries << " queries, " << keys << " keys, d " << d;
  }
}

TEST(HostCalls, AttentionKeepsLargeScores) {
  // Scores of thousands neither overflow nor lose the largest.
  Tensor<float> q({1, 1, 1, 1}, {100}), k({1, 3, 1, 1}, {-100, 100, 99}),
      v({1, 3, 1, 1}, {1, 2, 3}), out({1, 1, 1, 1});
  Tensor<int32_t> qpos({1}, {2}), kpos({3}, {0, 1, 2}), mask({1, 3}, {1, 1, 1});
  for (CallFlavor flavor : flavors) {
    ASSERT_TRUE(call("attention", flavor, {q, k, v, qpos, kpos, mask}, {out},
                     params({{"q_heads", 1}, {"kv_heads", 1}}, {{"scale", 1}},
                            {{"with", "qpos kpos kmask"}}))
                    .ok());
    EXPECT_EQ(out.values[0], 2);
  }
}

TEST(HostCalls, RmsNormAndItsHalves) {
  // Mean square of (3, 4) is 12.5.
  Tensor<double> x({1, 2}, {3, 4}), w({2}, {1, 10}), out({1, 2}), sum({1}), again({1, 2});
  ASSERT_TRUE(call("rms_norm", CallFlavor::reference, {x, w}, {out},
                   params({{"norm_dims", 1}}, {{"eps", 0.5}}))
                  .ok());
  EXPECT_DOUBLE_EQ(out.values[0], 3 / std::sqrt(13.0));
  EXPECT_DOUBLE_EQ(out.values[1], 40 / std::sqrt(13.0));
  ASSERT_TRUE(
      call("sum_squares", CallFlavor::reference, {x}, {sum}, params({{"norm_dims", 1}})).ok());
  EXPECT_EQ(sum.values[0], 25);
  ASSERT_TRUE(call("rms_apply", CallFlavor::reference, {x, sum, w}, {again},
                   params({{"norm_dims", 1}, {"count", 2}}, {{"eps", 0.5}}))
                  .ok());
  EXPECT_EQ(again.values, out.values);
  EXPECT_FALSE(
      call("rms_norm", CallFlavor::reference, {x, w}, {out}, params({{"norm_dims", 3}})).ok());
}

TEST(HostCalls, GluKnowsItsActivations) {
  Tensor<double> x({1, 2, 1}, {0.7, 3}), out({1, 1});
  std::pair<const char *, double> expected[] = {
      {"silu", 0.7 / (1 + std::exp(-0.7))},
      {"relu", 0.7},
      {"gelu", 0.35 * (1 + std::erf(0.7 / std::sqrt(2)))},
      {"gelu_tanh", 0.35 * (1 + std::tanh(std::sqrt(2 / M_PI) * (0.7 + 0.044715 * 0.343)))}};
  for (auto [name, value] : expected) {
    ASSERT_TRUE(
        call("glu", CallFlavor::reference, {x}, {out}, params({}, {}, {{"activation", name}}))
            .ok());
    EXPECT_NEAR(out.values[0], 3 * value, 1e-14) << name;
  }
  EXPECT_FALSE(
      call("glu", CallFlavor::reference, {x}, {out}, params({}, {}, {{"activation", "swish"}}))
          .ok());
}

TEST(HostCalls, ClampedGluBoundsBothHalves) {
  // Gate 9 becomes 7, up -9 becomes -7 and then -6; a gate of -9 stays.
  Tensor<double> x({2, 2, 1}, {9, -9, -9, 0.5}), out({2, 1});
  CallParams p =
      params({}, {{"limit", 7}, {"alpha", 1.702}, {"up_shift", 1}}, {{"activation", "silu"}});
  ASSERT_TRUE(call("glu", CallFlavor::reference, {x}, {out}, p).ok());
  EXPECT_NEAR(out.values[0], 7 / (1 + std::exp(-1.702 * 7)) * -6, 1e-13);
  EXPECT_NEAR(out.values[1], -9 / (1 + std::exp(1.702 * 9)) * 1.5, 1e-13);
  p.texts["activation"] = "relu";
  EXPECT_FALSE(call("glu", CallFlavor::reference, {x}, {out}, p).ok()) << "alpha is silu's";
}

TEST(HostCalls, LayerNormCentresAndScales) {
  // Mean 5, variance 4 (divided by 2, not 1).
  Tensor<double> x({1, 2}, {3, 7}), w({2}, {1, 10}), b({2}, {100, 200}), out({1, 2});
  CallParams p = params({{"norm_dims", 1}}, {{"eps", 5}});
  ASSERT_TRUE(call("layer_norm", CallFlavor::reference, {x, w, b}, {out}, p).ok());
  EXPECT_DOUBLE_EQ(out.values[0], 100 - 2 / 3.0);
  EXPECT_DOUBLE_EQ(out.values[1], 200 + 20 / 3.0);
  ASSERT_TRUE(call("layer_norm", CallFlavor::reference, {x, w}, {out}, p).ok());
  EXPECT_DOUBLE_EQ(out.values[1], 20 / 3.0);
}

TEST(HostCalls, ActAndScale) {
  Tensor<float> x({3}, {-2, 0, 4}), out({3});
  for (CallFlavor flavor : flavors) {
    ASSERT_TRUE(call("act", flavor, {x}, {out}, params({}, {}, {{"activation", "relu"}})).ok());
    EXPECT_EQ(out.values, (std::vector<float>{0, 0, 4}));
    ASSERT_TRUE(call("scale", flavor, {x}, {out}, params({}, {{"factor", -0.25}})).ok());
    EXPECT_EQ(out.values, (std::vector<float>{0.5, -0.0f, -1}));
    EXPECT_FALSE(call("act", flavor, {x}, {out}, params({}, {}, {{"activation", "x"}})).ok());
  }
}

TEST(HostCalls, GroupedBiasIsAddedOnceToEachGroup) {
  // Groups of 1, 0 and 2 rows; the last row belongs to nobody.
  Tensor<float> rows({4, 2}, {1, 2, 3, 4, 5, 6, 0, 0}), b({3, 2}, {10, 20, 30, 40, 50, 60}),
      out({4, 2});
  Tensor<int32_t> groups({1, 3}, {1, 0, 2});
  for (CallFlavor flavor : flavors) {
    ASSERT_TRUE(call("grouped_bias", flavor, {rows, groups, b}, {out}, params({{"part", 0}})).ok());
    EXPECT_EQ(out.values, (std::vector<float>{11, 22, 53, 64, 55, 66, 0, 0}));
    ASSERT_TRUE(call("grouped_bias", flavor, {rows, groups, b}, {out}, params({{"part", 1}})).ok());
    EXPECT_EQ(out.values, rows.values) << "another rank adds it";
    EXPECT_FALSE(call("grouped_bias", flavor, {rows, Tensor<int32_t>({1, 3}, {3, 3, -1}), b}, {out},
                      params({{"part", 0}}))
                     .ok());
  }
}

TEST(HostCalls, AddClampAndGate) {
  Tensor<float> a({2, 1, 2}, {1, 2, 3, 4}), b({2}, {10, 20}), out({2, 1, 2});
  ASSERT_TRUE(call("add", CallFlavor::fast, {a, b}, {out}, {}).ok());
  EXPECT_EQ(out.values, (std::vector<float>{11, 22, 13, 24}));
  ASSERT_TRUE(
      call("clamp", CallFlavor::fast, {a}, {out}, params({}, {{"min", 1.5}, {"max", 3}})).ok());
  EXPECT_EQ(out.values, (std::vector<float>{1.5, 2, 3, 3}));
  Tensor<float> gate({2, 1, 1}, {0, 100});
  ASSERT_TRUE(call("sigmoid_gate", CallFlavor::fast, {a, gate}, {out}, {}).ok());
  EXPECT_EQ(out.values, (std::vector<float>{0.5, 1, 3, 4}));
}

TEST(HostCalls, RowwiseCallsAgreeOnRandomShapes) {
  Random random(testSeed() + 2);
  for (int i = 0; i < 30; ++i) {
    int64_t t = random.between(1, 9), h = random.between(1, 4), d = 2 * random.between(1, 33);
    Tensor<float> x = random.normal<float>({2, t, h, d});
    EXPECT_LT(worstError("rms_norm", {x, random.normal<float>({h, d})}, x.shape,
                         params({{"norm_dims", 2}}, {{"eps", 1e-6}})),
              1e-6);
    EXPECT_LT(worstError("layer_norm",
                         {x, random.normal<float>({h, d}), random.normal<float>({h, d})}, x.shape,
                         params({{"norm_dims", 2}}, {{"eps", 1e-5}})),
              1e-6);
    EXPECT_LT(worstError("scale", {x}, x.shape, params({}, {{"factor", 0.3}})), 1e-6);
    EXPECT_LT(worstError("act", {x}, x.shape, params({}, {}, {{"activation", "gelu"}})), 1e-6);
    EXPECT_LT(worstError("sum_squares", {x}, {2, t}, params({{"norm_dims", 2}})), 1e-6);
    EXPECT_LT(worstError("glu", {random.normal<float>({t, 2, d})}, {t, d},
                         params({}, {}, {{"activation", "silu"}})),
              1e-6);
    EXPECT_LT(worstError("sigmoid_gate", {x, random.normal<float>({2, t, h, 1})}, x.shape, {}),
              1e-6);
    EXPECT_LT(worstError("add", {x, random.normal<float>({h, d})}, x.shape, {}), 1e-6);
    EXPECT_LT(worstError("rope",
                         {x, random.normal<float>({t, d / 2}), random.normal<float>({t, d / 2})},
                         x.shape, {}),
              1e-6);
    EXPECT_LT(worstError("embedding", {random.ids({t}, -2, 12), random.normal<float>({10, d})},
                         {t, d}, params({{"row_offset", 1}})),
              1e-9);
  }
}

TEST(HostCalls, GroupedMatmulAgreesAndZeroesTheRest) {
  Random random(testSeed() + 3);
  for (int i = 0; i < 60; ++i) {
    int64_t n = random.between(1, 6), f = random.between(1, 37), d = random.between(1, 65),
            spare = random.between(0, 5);
    Tensor<int32_t> groups({1, n});
    int64_t rows = 0;
    for (int32_t &g : groups.values)
      rows += g = int32_t(random.between(0, 2) ? random.between(0, 12)
                                               : 0); // a third of the experts gets nothing
    if (i % 4 == 0) {                                // all rows to one expert
      std::fill(groups.values.begin(), groups.values.end(), 0);
      groups.values[size_t(random.between(0, n - 1))] = int32_t(rows);
    }
    if (rows + spare == 0)
      spare = 1;
    Tensor<float> x = random.normal<float>({rows + spare, d}),
                  w = random.normal<float>({n, 2, f, d});
    EXPECT_LT(worstError("grouped_matmul", {x, groups, w}, {rows + spare, 2, f},
                         params({{"contract", 1}})),
              2e-6);
    for (CallFlavor flavor : flavors) {
      Tensor<float> out({rows + spare, 2, f});
      ASSERT_TRUE(
          call("grouped_matmul", flavor, {x, groups, w}, {out}, params({{"contract", 1}})).ok());
      int64_t row = 0;
      for (int64_t e = 0; e < n; ++e)
        for (int64_t r = 0; r < groups.values[size_t(e)]; ++r, ++row) {
          double sum = 0;
          for (int64_t c = 0; c < d; ++c)
            sum +=
                double(x.values[size_t(row * d + c)]) * double(w.values[size_t(e * 2 * f * d + c)]);
          EXPECT_NEAR(out.values[size_t(row * 2 * f)], sum, 1e-4)
              << "row " << row << " of expert " << e;
        }
      for (size_t j = size_t(rows * 2 * f); j < out.values.size(); ++j)
        ASSERT_EQ(out.values[j], 0) << "past the last group";
    }
  }
}

TEST(HostCalls, GluOfGatheredRowsIsThatOfItsParts) {
  Random random(testSeed());
  for (int i = 0; i < 20; ++i) {
    const int64_t tokens = random.between(1, 30), k = random.between(1, 3),
                  n = random.between(3, 6), f = random.between(1, 20), d = random.between(1, 30),
                  room = i % 3 ? tokens * k + random.between(0, 4)
                               : random.between(1, tokens * k), // for all of them, or not
        first = random.between(0, 2), local = random.between(1, n - first);
    Tensor<float> x = random.normal<float>({tokens, d}), rows({room, d}),
                  w = random.normal<float>({local, 2, f, d}), pairs({room, 2, f}),
                  expected({room, f}), out({room, f});
    Tensor<int32_t> ids = random.choices(tokens, k, n), need({1}, {2}), numbers({room}),
                    groups({1, local}), pos({tokens, k}), needOut({1}), groups2 = groups,
                    pos2 = pos, needOut2 = needOut;
    const CallParams select = params({{"experts", n}, {"expert_offset", first}});
    const CallFlavor flavor = i % 2 ? CallFlavor::fast : CallFlavor::reference;
    ASSERT_TRUE(call("select", flavor, {x, ids, need}, {rows, groups, pos, needOut}, select).ok());
    ASSERT_TRUE(
        call("select_tokens", flavor, {ids, need}, {numbers, groups2, pos2, needOut2}, select)
            .ok());
    EXPECT_EQ(groups.values, groups2.values);
    EXPECT_EQ(pos.values, pos2.values);
    EXPECT_EQ(needOut.values, needOut2.values);
    std::vector<int32_t> tokenOf(size_t(room), 0);
    for (size_t choice = 0; choice < pos.values.size(); ++choice)
      if (pos.values[choice] >= 0)
        tokenOf[size_t(pos.values[choice])] = int32_t(choice) / int32_t(k);
    EXPECT_EQ(numbers.values, tokenOf);

    CallParams glu = params({}, {}, {{"activation", i % 4 ? "silu" : "gelu"}});
    if (i % 4 == 1)
      glu =
          params({}, {{"limit", 0.5}, {"alpha", 1.702}, {"up_shift", 1}}, {{"activation", "silu"}});
    ASSERT_TRUE(call("grouped_matmul", CallFlavor::reference, {rows, groups, w}, {pairs},
                     params({{"contract", 1}}))
                    .ok());
    ASSERT_TRUE(call("glu", CallFlavor::reference, {pairs}, {expected}, glu).ok());
    glu.integers["contract"] = 1;
    for (bool gathered : {true, false}) {
      std::fill(out.values.begin(), out.values.end(), NAN);
      Tensor<float> kept({room, 2, f});
      std::vector<TensorRef> made{out};
      if (i % 3)
        made.push_back(kept);
      ASSERT_TRUE((gathered ? call("grouped_glu", flavor, {x, groups, w, numbers}, made, glu)
                            : call("grouped_glu", flavor, {rows, groups, w}, made, glu))
                      .ok());
      if (i % 3)
        for (size_t at = 0; at < kept.values.size(); ++at)
          ASSERT_NEAR(kept.values[at], pairs.values[at], 1e-5 * (1 + std::abs(pairs.values[at])));
      for (size_t at = 0; at < out.values.size(); ++at)
        ASSERT_NEAR(out.values[at], expected.values[at], 1e-5 * (1 + std::abs(expected.values[at])))
            << at;
    }
    numbers.values[0] = int32_t(tokens);
    if (groups.values[0] > 0)
      EXPECT_FALSE(call("grouped_glu", flavor, {x, groups, w, numbers}, {out}, glu).ok());
  }
}

TEST(HostCalls, GluGradOfRowsIsThatOfItsParts) {
  Random random(testSeed() + 2);
  for (int i = 0; i < 20; ++i) {
    const int64_t tokens = random.between(1, 30), k = random.between(1, 3),
                  n = random.between(3, 6), f = random.between(1, 20), d = random.between(1, 30),
                  room = i % 3 ? tokens * k + random.between(0, 4)
                               : random.between(1, tokens * k); // for all of them, or not
    const CallFlavor flavor = i % 2 ? CallFlavor::fast : CallFlavor::reference;
    const Tensor<float> cotangent = random.normal<float>({tokens, d}),
                        weights = random.normal<float>({tokens, k}),
                        w = random.normal<float>({n, d, f}), z = random.normal<float>({room, 2, f});
    const Tensor<int32_t> ids = random.choices(tokens, k, n), need({1}, {0});
    Tensor<float> rows({room, d}), weighted({room, d}), dh({room, f}), h({room, f}), out({room, d}),
        dz({room, 2, f}), act({room, f}), dots({tokens, k}), expectedDz({room, 2, f}),
        expectedDots({tokens, k});
    Tensor<int32_t> groups({1, n}), pos({tokens, k}), needOut({1});
    auto run = [&](const char *name, std::vector<TensorRef> in, std::vector<TensorRef> made,
                   const CallParams &p) {
      const Status s = call(name, CallFlavor::reference, in, made, p);
      EXPECT_TRUE(s.ok()) << s.str();
    };
    CallParams glu = params({}, {}, {{"activation", i % 4 ? "silu" : "gelu"}});
    if (i % 4 == 1)
      glu =
          params({}, {{"limit", 0.5}, {"alpha", 1.702}, {"up_shift", 1}}, {{"activation", "silu"}});
    const CallParams select = params({{"experts", n}, {"expert_offset", 0}}),
                     contract = params({{"contract", 1}});
    run("select", {cotangent, ids, need, weights}, {weighted, groups, pos, needOut}, select);
    run("select", {cotangent, ids, need}, {rows, groups, pos, needOut}, select);
    run("grouped_input_grad", {weighted, groups, w}, {dh}, contract);
    run("glu_grad", {dh, z}, {expectedDz}, glu);
    run("glu", {z}, {h}, glu);
    run("grouped_matmul", {h, groups, w}, {out}, contract);
    run("choice_dots", {out, cotangent, pos}, {expectedDots}, {});
    const Status s =
        call("grouped_glu_grad", flavor, {rows, groups, w, z, pos, weights}, {dz, act, dots}, glu);
    ASSERT_TRUE(s.ok()) << s.str();
    auto near = [](const Tensor<float> &got, const Tensor<float> &want) {
      for (size_t at = 0; at < want.values.size(); ++at)
        ASSERT_NEAR(got.values[at], want.values[at], 1e-4 * (1 + std::abs(want.values[at]))) << at;
    };
    near(dz, expectedDz);
    near(dots, expectedDots);
    Tensor<float> weightOf({room});
    std::fill(weightOf.values.begin(), weightOf.values.end(), 0.0f);
    for (size_t choice = 0; choice < pos.values.size(); ++choice)
      if (pos.values[choice] >= 0)
        weightOf.values[size_t(pos.values[choice])] = weights.values[choice];
    for (int64_t row = 0; row < room; ++row)
      for (int64_t c = 0; c < f; ++c)
        h.values[size_t(row * f + c)] *= weightOf.values[size_t(row)];
    near(act, h);
    Tensor<int32_t> bad = pos;
    bad.values[0] = int32_t(room);
    EXPECT_FALSE(
        call("grouped_glu_grad", flavor, {rows, groups, w, z, bad, weights}, {dz, act, dots}, glu)
            .ok());
  }
}

/// Also of columns that are pads, and of none that is a class.
TEST(HostCalls, MaximumAndStatisticsInOneAreThoseOfTwoCalls) {
  Random random(testSeed() + 11);
  for (int i = 0; i < 40; ++i) {
    const int64_t rows = random.between(1, 6), width = random.between(1, 50);
    const CallFlavor flavor = flavors[i % 2];
    const CallParams columns = params(
        {{"classes", random.between(1, 60)}, {"column_offset", i % 3 ? 0 : random.between(0, 30)}});
    const Tensor<float> x = random.normal<float>({rows, width});
    Tensor<int32_t> labels = random.ids({rows}, 0, 59);
    labels.values[0] = -100;
    Tensor<float> max({rows}), stats({rows, 3}), bothMax({rows}), bothStats({rows, 3});
    ASSERT_TRUE(call("row_max", flavor, {x}, {max}, columns).ok());
    ASSERT_TRUE(call("cross_entropy_stats", flavor, {x, max, labels}, {stats}, columns).ok());
    const Status s = call("row_max_stats", flavor, {x, labels}, {bothMax, bothStats}, columns);
    ASSERT_TRUE(s.ok()) << s.str();
    EXPECT_EQ(bothMax.values, max.values);
    EXPECT_EQ(bothStats.values, stats.values);
  }
}

TEST(HostCalls, CombineAgreesAndSkipsMissingRows) {
  Random random(testSeed() + 4);
  for (int i = 0; i < 40; ++i) {
    int64_t t = random.between(1, 20), k = random.between(1, 4), rows = random.between(1, 30),
            d = random.between(1, 40);
    EXPECT_LT(worstError("combine",
                         {random.normal<float>({2, rows, d}), random.ids({t, k}, -1, 2 * rows - 1),
                          random.normal<float>({t, k})},
                         {t, d}, {}),
              1e-6);
  }
  for (CallFlavor flavor : flavors) {
    Tensor<float> rows({2, 1}, {5, 7}), weights({2, 2}, {2, 3, 4, 100}), out({2, 1});
    ASSERT_TRUE(
        call("combine", flavor, {rows, Tensor<int32_t>({2, 2}, {0, 1, 1, -1}), weights}, {out}, {})
            .ok());
    EXPECT_EQ(out.values, (std::vector<float>{31, 28}));
  }
}

TEST(HostCalls, GarbageIsRefusedWithTheCallsName) {
  for (CallFlavor flavor : flavors) {
    Tensor<float> rows({4, 3}), w({2, 5, 3}), out({4, 5}), weights({1, 2}, {1, 1}), y({1, 3});
    auto refused = [&](Status s, const char *name) {
      ASSERT_FALSE(s.ok()) << name;
      EXPECT_EQ(s.exitCode(), 2);
      EXPECT_NE(s.str().find(std::string("MOE-0508: call '") + name), std::string::npos) << s.str();
    };
    refused(call("grouped_matmul", flavor, {rows, Tensor<int32_t>({1, 2}, {3, 2}), w}, {out},
                 params({{"contract", 1}})),
            "grouped_matmul");
    refused(call("grouped_matmul", flavor, {rows, Tensor<int32_t>({1, 2}, {-1, 2}), w}, {out},
                 params({{"contract", 1}})),
            "grouped_matmul");
    refused(call("grouped_matmul", flavor,
                 {rows, Tensor<int32_t>({1, 2}, {INT32_MAX, INT32_MAX}), w}, {out},
                 params({{"contract", 1}})),
            "grouped_matmul");
    refused(call("combine", flavor, {rows, Tensor<int32_t>({1, 2}, {0, 4}), weights}, {y}, {}),
            "combine");
    refused(call("combine", flavor, {rows, Tensor<int32_t>({1, 2}, {0, -2}), weights}, {y}, {}),
            "combine");
    refused(call("linear", flavor, {rows, w}, {out}, params({{"contract", 4}})), "linear");
    refused(call("linear", flavor, {rows}, {out}, params({{"contract", 1}})), "linear");
    refused(call("linear", flavor, {rows, w, w}, {out}, params({{"contract", 1}})), "linear");
    refused(call("linear", flavor, {rows, w.as<double>()}, {out}, params({{"contract", 1}})),
            "linear");
    refused(call("combine", flavor, {rows, Tensor<int64_t>({1, 2}, {0, 0}), weights}, {y}, {}),
            "combine");
  }
  EXPECT_NE(call("no_such", CallFlavor::fast, {}, {}, {}).str().find("MOE-0410"),
            std::string::npos);
  Tensor<float> x({1, 1}, {0});
  TensorRef narrow = x;
  narrow.dtype = moira::fb::DType::f16;
  Status s = call("clamp", CallFlavor::fast, {narrow}, {narrow}, {});
  EXPECT_NE(s.str().find("MOE-0411: the host device has no f16 version of call 'clamp'"),
            std::string::npos)
      << s.str();
}

TEST(HostCalls, ThreadsDoNotChangeTheResult) {
  // Each rank thread may set its own number; the bits stay.
  Random random(testSeed() + 5);
  Tensor<float> x = random.normal<float>({130, 192}), w = random.normal<float>({260, 192});
  std::vector<std::vector<float>> results;
  for (int threads : {1, 2, 8}) {
    setHostThreads(threads);
    Tensor<float> out({130, 260});
    ASSERT_TRUE(call("linear", CallFlavor::fast, {x, w}, {out}, params({{"contract", 1}})).ok());
    results.push_back(out.values);
  }
  setHostThreads(1);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

} // namespace
