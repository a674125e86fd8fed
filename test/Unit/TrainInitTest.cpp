//===- TrainInitTest.cpp ----------------------------------------*- C++ -*-===//
// Shows that random weights are the same on every mesh, distributed as asked, and that norms and
// biases begin as they should.
//===----------------------------------------------------------------------===//
#include "TrainState.h"

#include "moira/rt/InitWeights.h"
#include "moira/rt/Philox.h"

#include <cmath>
#include <gtest/gtest.h>

using namespace moira::rt;
using namespace moira::test;

namespace {

const std::vector<TestState> kStates = {
    {"embed.weight", fb::DType::f32, {90, 40}, {0, 1}},
    {"experts.w1", fb::DType::f32, {8, 6, 50}, {1, 0, -1}, true},
    {"norm.weight", fb::DType::f32, {40}, {0}},
    {"q_proj.bias", fb::DType::f32, {40}, {1}}};

TEST(TrainInit, EveryMeshBeginsWithTheSameWeights) {
  RankState whole(kStates, {1, 1}, 0);
  for (const StatePart &part : whole.parts)
    initWeight(part, {.seed = 3});
  for (const Shape &mesh : {Shape{2, 1}, {1, 4}, {3, 2}})
    for (int rank = 0; rank < countOf(mesh); ++rank) {
      RankState cut(kStates, mesh, rank);
      for (size_t t = 0; t < kStates.size(); ++t) {
        const StatePart &part = cut.parts[t];
        initWeight(part, {.seed = 3});
        forEachRun(part.shard.inLocal(), part.shard.inGlobal(),
                   [&](int64_t local, int64_t global, int64_t n) {
                     for (int64_t i = 0; i < n; ++i)
                       EXPECT_EQ(static_cast<float *>(part.data)[local + i],
                                 static_cast<float *>(whole.parts[t].data)[global + i]);
                   });
      }
    }
}

TEST(TrainInit, DrawsAreTheirDefinition) {
  // A shard of a tensor so large that its elements' numbers need a second word within the shard.
  std::vector<double> values(3 * 700);
  StatePart part;
  part.name = "w";
  part.type = fb::DType::f64;
  part.shard = {{1 << 23, 1000}, {3, 700}, {4294966, 200}, {3, 700}};
  part.data = values.data();
  initWeight(part, {.seed = 5, .deviation = 0.25});
  uint64_t key = 5 ^ ((0xcbf29ce484222325u ^ 'w') * 0x100000001b3u); // FNV-1a of the name
  for (int64_t i = 0; i < 3 * 700; ++i) {
    uint64_t element = uint64_t(4294966 + i / 700) * 1000 + uint64_t(200 + i % 700);
    double u[2];
    for (uint32_t which : {0, 1})
      u[which] =
          (philox(key, uint32_t(element), uint32_t(element >> 32), which, 0x1417) + 0.5) * 0x1p-32;
    double want = 0.25 * (std::sqrt(-2 * std::log(u[0])) * std::cos(2 * std::acos(-1.0) * u[1]));
    EXPECT_EQ(values[size_t(i)], want) << i;
  }
}

TEST(TrainInit, DrawsAreNormalAndOfTheirTensorAndSeed) {
  RankState one(kStates, {1, 1}, 0), two(kStates, {1, 1}, 0);
  for (size_t t = 0; t < kStates.size(); ++t) {
    initWeight(one.parts[t], {.seed = 1, .deviation = 0.5});
    initWeight(two.parts[t], {.seed = 2, .deviation = 0.5});
  }
  auto *a = static_cast<float *>(one.parts[0].data), *b = static_cast<float *>(two.parts[0].data),
       *c = static_cast<float *>(one.parts[1].data);
  double sum = 0, squares = 0, withSeed = 0, withTensor = 0, tails = 0;
  const int64_t n = 90 * 40, shared = 8 * 6 * 50;
  for (int64_t i = 0; i < n; ++i) {
    sum += a[i];
    squares += double(a[i]) * a[i];
    withSeed += double(a[i]) * b[i];
    tails += std::fabs(a[i]) > 1.0; // two deviations
  }
  for (int64_t i = 0; i < shared; ++i)
    withTensor += double(a[i]) * c[i];
  EXPECT_NEAR(sum / n, 0, 0.5 * 4 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.5, 0.5 * 4 / std::sqrt(2.0 * n));
  EXPECT_NEAR(tails / n, 0.0455, 0.014);
  EXPECT_NEAR(withSeed / n, 0, 0.25 * 4 / std::sqrt(n));
  EXPECT_NEAR(withTensor / shared, 0, 0.25 * 4 / std::sqrt(shared));
  for (int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(static_cast<float *>(one.parts[2].data)[i], 1.0f);
    EXPECT_EQ(static_cast<float *>(one.parts[3].data)[i], 0.0f);
  }
}

} // namespace
