//===- HostGenerationTest.cpp - write_rows, slot, sample --------------------===//
// Rows go where they belong and nowhere else; a shard without the column gives zeros; draws keep to
// what top_k and top_p leave, have the probabilities that softmax says, and depend on nothing but
// seed, step, row and token.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

TEST(HostGeneration, RowsAreWrittenAtTheirPlace) {
  Random random(testSeed());
  for (int64_t at : {0, 2, 5}) {
    Tensor<float> rows = random.normal<float>({2, 3, 2, 4}), state({2, 8, 2, 4});
    Tensor<float> before = state;
    Tensor<int32_t> place({1}, {int32_t(at)});
    std::vector<TensorRef> in{rows};
    if (at)
      in.push_back(place);
    ASSERT_TRUE(call("write_rows", CallFlavor::fast, in, {state}, {}));
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t n = 0; n < 8; ++n)
        for (int64_t x = 0; x < 8; ++x) {
          bool written = n >= at && n < at + 3;
          EXPECT_EQ(state.values[(b * 8 + n) * 8 + x],
                    written ? rows.values[(b * 3 + n - at) * 8 + x] : before.values[0]);
        }
  }
  Tensor<int32_t> mask({2, 1}, {1, 1}), masks({2, 4}, std::vector<int32_t>(8, 0));
  ASSERT_TRUE(
      call("write_rows", CallFlavor::reference, {mask, Tensor<int32_t>({1}, {3})}, {masks}, {}));
  EXPECT_EQ(masks.values, (std::vector<int32_t>{0, 0, 0, 1, 0, 0, 0, 1}));
}

TEST(HostGeneration, RowsOfTwoStatesAreWrittenAtOnePlace) {
  Random random(testSeed());
  Tensor<Bf16> keys = random.normal<Bf16>({2, 1, 3}), values = random.normal<Bf16>({2, 1, 2, 4}),
               keyCache({2, 5, 3}), valueCache({2, 5, 2, 4});
  const Bf16 before = keyCache.values[0];
  Tensor<int32_t> place({1}, {3});
  ASSERT_TRUE(
      call("write_rows", CallFlavor::fast, {keys, place, values}, {keyCache, valueCache}, {}));
  auto expectWritten = [&](const Tensor<Bf16> &rows, const Tensor<Bf16> &state, int64_t width) {
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t n = 0; n < 5; ++n)
        for (int64_t x = 0; x < width; ++x)
          EXPECT_EQ(float(state.values[(b * 5 + n) * width + x]),
                    float(n == 3 ? rows.values[b * width + x] : before));
  };
  expectWritten(keys, keyCache, 3);
  expectWritten(values, valueCache, 8);
}

TEST(HostGeneration, RowsOutsideOfTheStateAreRefused) {
  Tensor<float> rows({1, 2, 4}), state({1, 8, 4});
  for (int32_t at : {-1, 7, INT32_MAX, INT32_MIN}) {
    Tensor<int32_t> place({1}, {at});
    Status s = call("write_rows", CallFlavor::fast, {rows, place}, {state}, {});
    ASSERT_FALSE(s) << at;
    EXPECT_EQ(s.diagnostics().front().id, ErrorId::BadRun);
    EXPECT_EQ(state.values, std::vector<float>(32, -7777.0f));
  }
}

TEST(HostGeneration, ASlotIsTakenWhereItIs) {
  Random random(testSeed());
  Tensor<Bf16> x = random.normal<Bf16>({2, 3, 4});
  for (int64_t index = 0; index < 9; ++index) { // columns 3, 4, 5 are here
    Tensor<Bf16> out({2, 1, 4});
    Tensor<int32_t> at({1}, {int32_t(index) - 1});
    ASSERT_TRUE(
        call("slot", CallFlavor::fast, {x, at}, {out}, params({{"index", 1}, {"start", 3}})));
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t i = 0; i < 4; ++i)
        EXPECT_EQ(float(out.values[b * 4 + i]),
                  index < 3 || index > 5 ? 0 : float(x.values[(b * 3 + index - 3) * 4 + i]));
  }
}

struct Asked {
  float temperature = 0, topP = 1;
  int32_t topK = 0, seed = 0, step = 0;
  int64_t rowOffset = 0;
};

std::vector<int32_t> sample(const Tensor<float> &logits, Asked asked) {
  Tensor<int32_t> ids({logits.shape[0], 1}), draw({4}, {asked.topK, asked.seed, 0, asked.step});
  Tensor<float> sampling({2}, {asked.temperature, asked.topP});
  Status s = call("sample", CallFlavor::fast, {logits, sampling, draw}, {ids},
                  params({{"row_offset", asked.rowOffset}}));
  EXPECT_TRUE(s) << s.str();
  return ids.values;
}

TEST(HostGeneration, GreedyTakesTheFirstOfTheLargest) {
  Tensor<float> logits({4, 1, 4}, {1, 5, 5, 2, -0.0f, 0, -1, -2, -3, -2, -4, -2, 1, NAN, 7, NAN});
  EXPECT_EQ(sample(logits, {}), (std::vector<int32_t>{1, 0, 1, 1})); // as torch.argmax
}

TEST(HostGeneration, DrawsHaveTheProbabilitiesOfSoftmax) {
  constexpr int64_t kRows = 20000, kVocab = 6;
  std::vector<float> row = {0.5f, -1, 2, 1.5f, -3, 1.5f};
  Tensor<float> logits({kRows, 1, kVocab});
  for (int64_t r = 0; r < kRows; ++r)
    std::copy(row.begin(), row.end(), logits.values.begin() + r * kVocab);
  struct Case {
    Asked asked;
    std::vector<int> kept;
  } cases[] = {{{0.7f, 1, 0}, {0, 1, 2, 3, 4, 5}},
               {{1.3f, 1, 2}, {2, 3, 5}},     // the second largest twice
               {{1, 0.3f, 0}, {2}},           // e^2 of 19.0 is over 0.3
               {{1, 0.5f, 0}, {2, 3, 5}},     // equal ones stay together
               {{1, 0.99f, 4}, {0, 2, 3, 5}}, // of what top_k leaves
               {{1, 0.9f, 1}, {2}}};
  for (Case &c : cases) {
    c.asked.seed = int32_t(testSeed());
    std::vector<double> p(kVocab, 0);
    double sum = 0;
    for (int v : c.kept)
      sum += p[v] = std::exp(row[v] / c.asked.temperature);
    std::vector<double> count(kVocab, 0);
    for (int32_t id : sample(logits, c.asked))
      count.at(id) += 1.0 / kRows;
    for (int v = 0; v < kVocab; ++v)
      EXPECT_NEAR(count[v], p[v] / sum, 5 * std::sqrt(p[v] / sum / kRows)) << v;
  }
}

TEST(HostGeneration, DrawsDependOnSeedStepAndRowOnly) {
  Random random(testSeed());
  Tensor<float> logits = random.normal<float>({8, 1, 1000});
  Asked asked{.temperature = 1, .seed = 3, .step = 5};
  std::vector<int32_t> all = sample(logits, asked);
  EXPECT_EQ(sample(logits, asked), all);
  // The rows of the second half, on a rank of their own.
  Tensor<float> half({4, 1, 1000}, {logits.values.begin() + 4000, logits.values.end()});
  asked.rowOffset = 4;
  EXPECT_EQ(sample(half, asked), std::vector<int32_t>(all.begin() + 4, all.end()));
  asked.rowOffset = 0;
  EXPECT_NE(sample(half, asked), std::vector<int32_t>(all.begin() + 4, all.end()));
  asked.step = 6;
  EXPECT_NE(sample(logits, asked), all);
  asked.step = 5, asked.seed = 4;
  EXPECT_NE(sample(logits, asked), all);
}

} // namespace
