//===- HostPositionsTest.cpp - token_positions, sinusoid, relative_bias -----===//
// Values worked out by hand or with formulas written down again here in double precision.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

constexpr CallFlavor flavors[] = {CallFlavor::fast, CallFlavor::reference};

TEST(HostPositions, PaddingStandsStillAndIsNotCounted) {
  Tensor<int32_t> ids({2, 5}, {1, 7, 1, 8, 9, 4, 5, 6, 1, 1}), out({2, 5});
  Tensor<int64_t> wide = ids.as<int64_t>();
  std::vector<int32_t> want{1, 2, 1, 3, 4, 2, 3, 4, 1, 1};
  CallParams p = params({{"pad", 1}, {"start", 0}});
  for (CallFlavor flavor : flavors) {
    ASSERT_TRUE(call("token_positions", flavor, {ids}, {out}, p).ok());
    EXPECT_EQ(out.values, want);
    ASSERT_TRUE(call("token_positions", flavor, {wide}, {out}, p).ok());
    EXPECT_EQ(out.values, want);
  }
  // A shard has its columns of the same numbers; where a count is given it stands for the own one,
  // except of a pad.
  Tensor<int32_t> part({2, 2}), counts({2, 2}, {10, 10, 0, 10});
  ASSERT_TRUE(
      call("token_positions", CallFlavor::fast, {ids}, {part}, params({{"pad", 1}, {"start", 3}}))
          .ok());
  EXPECT_EQ(part.values, (std::vector<int32_t>{3, 4, 1, 1}));
  ASSERT_TRUE(call("token_positions", CallFlavor::fast, {ids, counts}, {part},
                   params({{"pad", 1}, {"start", 2}}))
                  .ok());
  EXPECT_EQ(part.values, (std::vector<int32_t>{1, 11, 4, 1}));
}

TEST(HostPositions, DamagedCountsAreRefused) {
  Tensor<int32_t> ids({1, 2}, {3, 4}), out({1, 2});
  for (int32_t count : {-1, INT32_MAX})
    EXPECT_FALSE(call("token_positions", CallFlavor::fast,
                      {ids, Tensor<int32_t>({1, 2}, {0, count})}, {out},
                      params({{"pad", 1}, {"start", 0}}))
                     .ok());
  EXPECT_FALSE(
      call("token_positions", CallFlavor::fast, {ids}, {out}, params({{"pad", 0}, {"start", 1}}))
          .ok());
}

TEST(HostPositions, SinusoidsOfEveryWidth) {
  Tensor<int32_t> pos({2, 3}, {0, 1, 2, 100, 7, 1000});
  for (int64_t width : {4, 5, 64, 65}) {
    Tensor<double> exact({2, 3, width});
    Tensor<float> single({2, 3, width});
    CallParams p = params({{"offset", 2}, {"zero", 4}});
    ASSERT_TRUE(call("sinusoid", CallFlavor::reference, {pos}, {exact}, p).ok());
    ASSERT_TRUE(call("sinusoid", CallFlavor::fast, {pos}, {single}, p).ok());
    int64_t half = width / 2;
    for (int64_t t = 0; t < 6; ++t)
      for (int64_t i = 0; i < width; ++i) {
        double angle = double(pos.values[size_t(t)] + 2) *
                       std::pow(10000.0, -double(i % half) / double(half - 1));
        double want = i < half ? std::sin(angle) : std::cos(angle);
        if (pos.values[size_t(t)] == 2 || i == 2 * half)
          want = 0;
        EXPECT_NEAR(exact.values[size_t(t * width + i)], want, 1e-9) << t << " " << i;
        EXPECT_NEAR(single.values[size_t(t * width + i)], want, 2e-4) << t << " " << i;
      }
  }
}

TEST(HostPositions, BucketsAreThoseOfTheT5Paper) {
  // The table's rows are their own numbers, so the result is the bucket.
  Tensor<float> table({32, 1});
  for (size_t i = 0; i < 32; ++i)
    table.values[i] = float(i);
  auto buckets = [&](std::vector<int32_t> distances, bool bidirectional) {
    Tensor<int32_t> q({1}, {500}), k({int64_t(distances.size())});
    for (size_t i = 0; i < distances.size(); ++i)
      k.values[i] = 500 + distances[i];
    Tensor<float> out({1, 1, int64_t(distances.size())});
    EXPECT_TRUE(call("relative_bias", CallFlavor::fast, {table, q, k}, {out},
                     params({{"max_distance", 128}, {"bidirectional", bidirectional}}))
                    .ok());
    return out.values;
  };
  // Eight exact distances to each side, then a bucket for every factor of √2 (16 = 8·√2², …).
  EXPECT_EQ(buckets({0, -1, -7, -8, -11, -12, -15, -16, -23, -32, -64, -127, -128, -500}, true),
            (std::vector<float>{0, 1, 7, 8, 8, 9, 9, 10, 11, 12, 14, 15, 15, 15}));
  EXPECT_EQ(buckets({1, 7, 8, 16, 127, 400}, true), (std::vector<float>{17, 23, 24, 26, 31, 31}));
  // One side: sixteen exact, then 16·8^(n/16); what comes after the query has distance 0.
  EXPECT_EQ(buckets({3, 0, -1, -15, -16, -18, -19, -32, -113, -500}, false),
            (std::vector<float>{0, 0, 1, 15, 16, 16, 17, 21, 31, 31}));
}

TEST(HostPositions, BiasOfEveryHead) {
  Random random(testSeed());
  Tensor<float> table = random.normal<float>({8, 3});
  Tensor<int32_t> q({2}, {0, 1}), k({2}, {0, 1});
  Tensor<float> out({3, 2, 2});
  ASSERT_TRUE(call("relative_bias", CallFlavor::reference, {table, q, k}, {out},
                   params({{"max_distance", 20}, {"bidirectional", 1}}))
                  .ok());
  for (int64_t h = 0; h < 3; ++h) {
    EXPECT_EQ(out.values[size_t(h * 4)], table.values[size_t(h)]);
    EXPECT_EQ(out.values[size_t(h * 4 + 1)],
              table.values[size_t(5 * 3 + h)]); // key after the query
    EXPECT_EQ(out.values[size_t(h * 4 + 2)], table.values[size_t(1 * 3 + h)]);
    EXPECT_EQ(out.values[size_t(h * 4 + 3)], table.values[size_t(h)]);
  }
}

} // namespace
