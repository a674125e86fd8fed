//===- HostBf16Test.cpp - host calls on bf16 operands -----------------------===//
// Every call that takes bf16 gives what f64 gives for the same rounded operands, up to the rounding
// of its result; and the tiles of bf16 products agree on every machine. Meanings of the calls are
// in HostCallsTest.cpp.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "RowTile.h"
#include "moira/rt/HostThreads.h"

#include <variant>

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

constexpr CallFlavor flavors[] = {CallFlavor::fast, CallFlavor::reference};
/// Half a unit in the last place of bf16 is up to 2^-8 of a value; f32 sums of few thousand terms.
constexpr double bf16Rounding = 0.00391, f32Rounding = 3e-6;

/// An operand of type A: f32 beside bf16 ones.
struct Sums {
  Tensor<float> values;
};
using Input = std::variant<Tensor<float>, Sums, Tensor<int32_t>>;

/// Runs `name` in f64 on operands rounded to bf16, and in bf16 with a result of type O in both
/// flavors; the largest difference of the first output. All outputs have the type of the first.
template <typename O>
double worstError(std::string_view name, const std::vector<Input> &inputs, const Shape &outShape,
                  const CallParams &p) {
  auto run = [&]<typename S, typename A, typename R>(S, A, R, CallFlavor flavor) {
    std::vector<Tensor<S>> scalars;
    std::vector<Tensor<A>> sums;
    scalars.reserve(inputs.size());
    sums.reserve(inputs.size());
    std::vector<TensorRef> refs;
    for (const Input &input : inputs) {
      if (const auto *ints = std::get_if<Tensor<int32_t>>(&input)) {
        refs.push_back(*ints);
      } else if (const auto *wide = std::get_if<Sums>(&input)) {
        sums.push_back(wide->values.as<A>());
        refs.push_back(sums.back());
      } else {
        scalars.push_back(std::get<Tensor<float>>(input).as<Bf16>().as<S>());
        refs.push_back(scalars.back());
      }
    }
    Tensor<R> out(outShape);
    Status s = call(name, flavor, refs, {out}, p);
    EXPECT_TRUE(s.ok()) << s.str();
    return out;
  };
  Tensor<double> exact = run(double(), double(), double(), CallFlavor::reference);
  double worst = 0;
  for (CallFlavor flavor : flavors)
    worst = std::max(worst, relativeError(run(Bf16(), float(), O(), flavor), exact));
  return worst;
}

TEST(HostBf16, RoundsToNearestEven) {
  auto bits = [](float v) { return Bf16(v).bits; };
  EXPECT_EQ(bits(1.0f), 0x3f80);
  EXPECT_EQ(bits(std::bit_cast<float>(0x3f808000u)), 0x3f80); // a tie: to even
  EXPECT_EQ(bits(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(bits(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(bits(3.4e38f), 0x7f80); // beyond the largest
  EXPECT_EQ(bits(-INFINITY), 0xff80);
  EXPECT_TRUE(std::isnan(float(Bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(float(Bf16(-0.0f)), 0.0f);
  EXPECT_TRUE(std::signbit(float(Bf16(-0.0f))));
}

TEST(HostBf16, ProductsAgree) {
  Random random(testSeed());
  for (int i = 0; i < 40; ++i) {
    int64_t m = random.between(1, 40), n1 = random.between(1, 5), n2 = random.between(1, 33),
            k1 = random.between(1, 3), k2 = random.between(1, 200);
    std::vector<Input> in{random.normal<float>({m, k1, k2}),
                          random.normal<float>({n1, n2, k1, k2})};
    CallParams p = params({{"contract", 2}});
    EXPECT_LT(worstError<Bf16>("linear", in, {m, n1, n2}, p), bf16Rounding);
    EXPECT_LT(worstError<float>("linear", in, {m, n1, n2}, p), f32Rounding);
  }
}

TEST(HostBf16, LinearsAreLinearsToTheBit) {
  // For every number of weights, results of both types in one call, few and many rows.
  Random random(testSeed() + 3);
  CallParams p = params({{"contract", 1}});
  for (CallFlavor flavor : {CallFlavor::reference, CallFlavor::fast})
    for (int64_t rows : {1, 5, 40})
      for (size_t weights = 2; weights <= 4; ++weights) {
        int64_t inner = random.between(1, 90);
        std::vector<Tensor<Bf16>> w, narrow, narrowAlone;
        std::vector<Tensor<float>> wide, wideAlone;
        Tensor<Bf16> x = random.normal<float>({rows, inner}).as<Bf16>();
        for (size_t i = 0; i < weights; ++i) {
          int64_t n = random.between(1, 70);
          w.push_back(random.normal<float>({n, inner}).as<Bf16>());
          wide.emplace_back(Shape{rows, n});
          narrow.emplace_back(Shape{rows, n});
        }
        wideAlone = wide;
        narrowAlone = narrow;
        std::vector<TensorRef> in{x}, out;
        for (size_t i = 0; i < weights; ++i) {
          in.push_back(w[i]);
          out.push_back(i % 2 ? wide[i].ref() : narrow[i].ref());
          TensorRef alone = i % 2 ? wideAlone[i].ref() : narrowAlone[i].ref();
          ASSERT_TRUE(call("linear", flavor, {x, w[i]}, {alone}, p).ok());
        }
        ASSERT_TRUE(call("linears", flavor, in, out, p).ok());
        for (size_t i = 0; i < weights; ++i) {
          EXPECT_EQ(wide[i].values, wideAlone[i].values);
          EXPECT_EQ(narrow[i].as<float>().values, narrowAlone[i].as<float>().values);
        }
        in.pop_back();
        EXPECT_FALSE(call("linears", flavor, in, out, p).ok());
      }
}

TEST(HostBf16, GroupedProductsAgree) {
  Random random(testSeed() + 1);
  for (int i = 0; i < 40; ++i) {
    int64_t experts = random.between(1, 6), k = random.between(1, 150), n = random.between(1, 40);
    Tensor<int32_t> groups({1, experts}, std::vector<int32_t>(size_t(experts), 0));
    int64_t rows = 0;
    for (int32_t &g : groups.values)
      rows += g = int32_t(random.between(0, 9));
    rows += random.between(1, 4); // rows of nobody become zeros
    std::vector<Input> in{random.normal<float>({rows, k}), groups,
                          random.normal<float>({experts, n, k})};
    EXPECT_LT(worstError<Bf16>("grouped_matmul", in, {rows, n}, params({{"contract", 1}})),
              bf16Rounding);
  }
}

TEST(HostBf16, ProductsOfManyBlocksDoNotDependOnThreads) {
  Random random(testSeed() + 2);
  Tensor<Bf16> x = random.normal<float>({33, 1500}).as<Bf16>(),
               w = random.normal<float>({700, 1500}).as<Bf16>();
  std::vector<std::vector<float>> results;
  for (int threads : {1, 2, 5}) {
    setHostThreads(threads);
    Tensor<float> out({33, 700});
    ASSERT_TRUE(call("linear", CallFlavor::fast, {x, w}, {out}, params({{"contract", 1}})).ok());
    results.push_back(out.values);
  }
  setHostThreads(1);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
  Tensor<float> plain({33, 700});
  ASSERT_TRUE(
      call("linear", CallFlavor::reference, {x, w}, {plain}, params({{"contract", 1}})).ok());
  EXPECT_LT(relativeError(Tensor<float>({33, 700}, results[0]), plain), 1e-5);
}

template <typename S> void expectTilesAgree(Random &random) {
  for (const host::RowTileKind<S> &kind : host::rowTiles<S>())
    for (int i = 0; i < 200; ++i) {
      int rows = int(random.between(1, host::kTileRows)),
          columns = int(random.between(1, kind.columns));
      int64_t k = random.between(1, 130), stride = k + random.between(0, 20);
      Tensor<S> x = random.normal<float>({rows, stride}).as<S>(),
                w = random.normal<float>({columns, stride}).as<S>();
      std::vector<S> packed(size_t(host::packedSize(rows, k)));
      host::packRows(x.values.data(), stride, rows, k, packed.data());
      float block[host::kTileSums], stream[host::kTileSums];
      kind.block(packed.data(), rows, w.values.data(), stride, columns, k, {w.values.data(), 2},
                 block);
      kind.stream(packed.data(), rows, w.values.data(), stride, columns, k, {w.values.data(), 0},
                  stream);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
          double want = 0, size = 0;
          for (int64_t e = 0; e < k; ++e) {
            double term =
                double(x.values[size_t(r * stride + e)]) * double(w.values[size_t(c * stride + e)]);
            want += term;
            size += std::abs(term);
          }
          EXPECT_NEAR(block[r * columns + c], want, size * 1e-6)
              << kind.name << " " << rows << "x" << columns << " k " << k;
          EXPECT_EQ(stream[r * columns + c], block[r * columns + c]);
        }
    }
}

TEST(HostBf16, EveryTileOfThisMachineAgrees) {
  Random random(testSeed() + 3);
  expectTilesAgree<Bf16>(random);
  expectTilesAgree<float>(random);
}

TEST(HostBf16, AttentionAgrees) {
  Random random(testSeed() + 4);
  for (int i = 0; i < 12; ++i) {
    int64_t b = random.between(1, 2), s = random.between(1, 90), kv = random.between(1, 2),
            heads = kv * random.between(1, 3), d = random.between(1, 20);
    Tensor<int32_t> pos({s}, std::vector<int32_t>(size_t(s), 0)), mask = random.ids({b, s}, 0, 1);
    for (int64_t j = 0; j < s; ++j)
      pos.values[size_t(j)] = int32_t(j);
    std::vector<Input> in{random.normal<float>({b, s, heads, d}),
                          random.normal<float>({b, s, kv, d}),
                          random.normal<float>({b, s, kv, d}),
                          pos,
                          pos,
                          mask};
    EXPECT_LT(worstError<Bf16>("attention", in, {b, s, heads, d},
                               params({{"q_heads", heads}, {"kv_heads", kv}}, {{"scale", 0.5}},
                                      {{"with", "qpos kpos kmask"}})),
              bf16Rounding);
  }
}

TEST(HostBf16, RowWiseCallsAgree) {
  Random random(testSeed() + 5);
  Tensor<float> x = random.normal<float>({3, 4, 6}), w = random.normal<float>({6}),
                sums({3, 4}, std::vector<float>(12, 5.5f));
  auto agree = [&](std::string_view name, std::vector<Input> in, Shape out, const CallParams &p) {
    EXPECT_LT(worstError<Bf16>(name, in, out, p), bf16Rounding) << name;
  };
  CallParams norm = params({{"norm_dims", 1}, {"count", 6}}, {{"eps", 1e-5}});
  agree("rms_norm", {x, w}, {3, 4, 6}, norm);
  agree("rms_apply", {x, Sums{sums}, w}, {3, 4, 6}, norm);
  EXPECT_LT(worstError<float>("sum_squares", {x}, {3, 4}, norm), f32Rounding);
  agree("add", {x, w}, {3, 4, 6}, {});
  agree("clamp", {x}, {3, 4, 6}, params({}, {{"min", -0.5}, {"max", 0.25}}));
  for (const char *activation : {"silu", "gelu", "gelu_tanh", "relu"})
    agree("glu", {random.normal<float>({5, 2, 9})}, {5, 9},
          params({}, {}, {{"activation", activation}}));
  agree("sigmoid_gate", {x, random.normal<float>({3, 4, 1})}, {3, 4, 6}, {});
  agree("rope",
        {random.normal<float>({2, 3, 4, 6}), Sums{random.normal<float>({3, 2})},
         Sums{random.normal<float>({3, 2})}},
        {2, 3, 4, 6}, {});
  agree("split_blocks", {x}, {6, 2, 6}, params({{"blocks", 2}, {"dim", 1}}));
  agree("join_blocks", {random.normal<float>({6, 2, 6})}, {3, 4, 6},
        params({{"blocks", 2}, {"dim", 1}}));
}

TEST(HostBf16, EmbeddingAndCombineGiveEitherType) {
  Random random(testSeed() + 6);
  std::vector<Input> embedding{random.ids({7}, 0, 9), random.normal<float>({5, 8})};
  CallParams offset = params({{"row_offset", 3}});
  EXPECT_EQ(worstError<Bf16>("embedding", embedding, {7, 8}, offset), 0);
  EXPECT_EQ(worstError<float>("embedding", embedding, {7, 8}, offset), 0);
  std::vector<Input> combine{random.normal<float>({9, 21}), random.ids({6, 3}, -1, 8),
                             Sums{random.normal<float>({6, 3})}};
  EXPECT_LT(worstError<Bf16>("combine", combine, {6, 21}, {}), bf16Rounding);
  EXPECT_LT(worstError<float>("combine", combine, {6, 21}, {}), f32Rounding);
}

TEST(HostBf16, RoutesByTheirScores) {
  // Logits of bf16 give the ids and, in f32, the weights that the same numbers in f32 give.
  Random random(testSeed() + 7);
  Tensor<Bf16> logits = random.normal<float>({20, 8}).as<Bf16>();
  CallParams p = params({}, {{"scale", 1}},
                        {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}});
  Tensor<int32_t> ids({20, 3}), wantIds({20, 3});
  Tensor<float> weights({20, 3}), want({20, 3});
  ASSERT_TRUE(call("route", CallFlavor::fast, {logits}, {ids, weights}, p).ok());
  ASSERT_TRUE(call("route", CallFlavor::fast, {logits.as<float>()}, {wantIds, want}, p).ok());
  EXPECT_EQ(ids.values, wantIds.values);
  EXPECT_EQ(weights.values, want.values);
}

TEST(HostBf16, RowsMoveUnchanged) {
  // select, pack, regroup and ungroup place rows of bf16 as they place rows of f32.
  Random random(testSeed() + 8);
  Tensor<float> x = random.normal<float>({10, 5}).as<Bf16>().as<float>();
  Tensor<int32_t> ids = random.choices(10, 2, 4), zero({1}, {0});
  auto moved = [&]<typename S>(S) {
    Tensor<S> in = x.as<S>(), selected({12, 5}), slots({1, 2, 16, 5}), rows({32, 5}),
              back({2, 1, 16, 5});
    Tensor<int32_t> groups({1, 2}), pos({10, 2}), need({1}), counts({1, 2, 2}), sizes({1, 2});
    EXPECT_TRUE(call("select", CallFlavor::fast, {in, ids, zero}, {selected, groups, pos, need},
                     params({{"experts", 4}, {"expert_offset", 1}}))
                    .ok());
    EXPECT_TRUE(call("pack", CallFlavor::fast, {in, ids, zero}, {slots, counts, pos, need},
                     params({{"experts", 4}, {"segments", 1}}))
                    .ok());
    TensorRef exchanged = slots, exchangedCounts = counts;
    exchanged.shape = {2, 1, 16, 5};
    exchangedCounts.shape = {2, 1, 2};
    EXPECT_TRUE(call("regroup", CallFlavor::fast, {exchanged, exchangedCounts}, {rows, sizes},
                     params({{"segments", 1}}))
                    .ok());
    EXPECT_TRUE(call("ungroup", CallFlavor::fast, {rows, exchangedCounts}, {back},
                     params({{"segments", 1}}))
                    .ok());
    EXPECT_EQ(back.template as<float>().values, slots.template as<float>().values);
    std::vector<float> all = selected.template as<float>().values;
    for (const Tensor<S> &t : {slots, rows})
      for (S v : t.values)
        all.push_back(float(v));
    return all;
  };
  EXPECT_EQ(moved(Bf16()), moved(float()));
}

TEST(HostBf16, RotationTakesF32AndRoundsOnce) {
  Random random(testSeed());
  Tensor<float> x = random.normal<float>({2, 3, 4, 6}), cosines({3, 3}), sines({3, 3}),
                exact(x.shape);
  Tensor<int32_t> pos({3}, {0, 3, 7});
  ASSERT_TRUE(
      call("rope_table", CallFlavor::reference, {pos}, {cosines, sines}, ropeParams(100, 6)).ok());
  for (int64_t interleaved : {0, 1}) {
    CallParams p = params({{"interleaved", interleaved}});
    Tensor<Bf16> rounded(x.shape);
    ASSERT_TRUE(call("rope", CallFlavor::fast, {x, cosines, sines}, {exact}, p).ok());
    ASSERT_TRUE(call("rope", CallFlavor::fast, {x, cosines, sines}, {rounded}, p).ok());
    EXPECT_EQ(rounded.as<float>().values, exact.as<Bf16>().as<float>().values);
  }
}

TEST(HostBf16, RefusesMixedOperands) {
  Tensor<Bf16> x({2, 4}), narrow({2, 3});
  Tensor<float> w({3, 4}), out({2, 3});
  CallParams p = params({{"contract", 1}});
  auto refused = [&](Status s) { EXPECT_NE(s.str().find("MOE-05"), std::string::npos) << s.str(); };
  refused(call("linear", CallFlavor::fast, {x, w}, {out}, p));
  refused(call("linear", CallFlavor::fast, {w, w}, {narrow}, p));
  refused(call("add", CallFlavor::fast, {x, x.as<float>()}, {x}, {}));
}

} // namespace
