//===- HostGradTest.cpp - gradients of experts' weights ---------------------===//
// grouped_weight_grad of rows that lie in order or are named by tokens, against loops over the
// rows; what it refuses.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

/// One operand: [rows, width] in order, or tokens [2, n, width] and the numbers of the rows.
struct Rows {
  Tensor<float> values;
  Tensor<int32_t> numbers;
  int64_t width;

  Rows(Random &random, bool gathered, int64_t rows, int64_t room, int64_t width)
      : values({0}), numbers({0}), width(width) {
    const int64_t half = random.between(1, 12);
    values = random.normal<float>(gathered ? Shape{2, half, width} : Shape{room, width});
    if (!gathered)
      return;
    numbers = random.ids({room}, 0, int32_t(2 * half - 1));
    for (int64_t row = rows; row < room; ++row) // nobody reads these
      numbers.values[size_t(row)] = row % 2 ? -1 : INT32_MAX;
  }
  double at(int64_t row, int64_t column) const {
    const int64_t from = numbers.values.empty() ? row : numbers.values[size_t(row)];
    return values.values[size_t(from * width + column)];
  }
};

TEST(HostGrad, ExpertsWeightsOfRowsInOrderOrNamedByTokens) {
  Random random(testSeed() + 9);
  for (int i = 0; i < 60; ++i) {
    const bool dyGathered = i % 2, xGathered = i / 2 % 2, bySample = i / 4 % 2;
    const int64_t n = random.between(1, 20), k = random.between(1, 20), samples = 3;
    Tensor<int32_t> groups({1, 4}), counts({samples, 4});
    for (int64_t g = 0; g < 4; ++g) {
      groups.values[size_t(g)] = 0;
      for (int64_t s = 0; s < samples; ++s) {
        const int32_t own = random.between(0, 3);
        counts.values[size_t(s * 4 + g)] = own;
        groups.values[size_t(g)] += own;
      }
    }
    int64_t rows = 0;
    for (int32_t size : groups.values)
      rows += size;
    const int64_t room = rows + random.between(1, 5);
    const Rows dy(random, dyGathered, rows, room, n), x(random, xGathered, rows, room, k);
    std::vector<TensorRef> inputs{dy.values, groups, x.values};
    std::string with;
    auto give = [&](const char *role, const Tensor<int32_t> &tensor) {
      inputs.push_back(tensor);
      with += (with.empty() ? "" : " ") + std::string(role);
    };
    if (bySample)
      give("counts", counts);
    if (dyGathered)
      give("dy_tokens", dy.numbers);
    if (xGathered)
      give("row_tokens", x.numbers);
    CallParams p = params({{"contract", 1}});
    if (!with.empty())
      p.texts["with"] = with;
    for (CallFlavor flavor : {CallFlavor::reference, CallFlavor::fast}) {
      Tensor<float> out({4, n, k});
      Status s = call("grouped_weight_grad", flavor, inputs, {out}, p);
      ASSERT_TRUE(s.ok()) << with << ": " << s.str();
      int64_t first = 0;
      for (int64_t g = 0; g < 4; first += groups.values[size_t(g++)])
        for (int64_t r = 0; r < n; ++r)
          for (int64_t c = 0; c < k; ++c) {
            double sum = 0, size = 0;
            for (int64_t row = first; row < first + groups.values[size_t(g)]; ++row) {
              sum += dy.at(row, r) * x.at(row, c);
              size += std::abs(dy.at(row, r) * x.at(row, c));
            }
            ASSERT_NEAR(out.values[size_t((g * n + r) * k + c)], sum, 1e-5 * size)
                << with << ", expert " << g << " at " << r << ", " << c;
          }
    }
  }
}

TEST(HostGrad, TokensThatDoNotExistAreRefused) {
  const Tensor<float> values({2, 5, 3}, std::vector<float>(30, 1)),
      rows({4, 3}, std::vector<float>(12, 1));
  const Tensor<int32_t> groups({1, 2}, {1, 2});
  for (CallFlavor flavor : {CallFlavor::reference, CallFlavor::fast})
    for (auto [bad, text] : {std::pair(10, "row 2 is token 10 of 10"), {-1, "row 2 is token -1"}})
      for (bool left : {true, false}) {
        Tensor<float> out({2, 3, 3});
        const Tensor<int32_t> numbers({4}, {9, 0, bad, 77});
        Status s =
            call("grouped_weight_grad", flavor,
                 {left ? values : rows, groups, left ? rows : values, numbers}, {out},
                 params({{"contract", 1}}, {}, {{"with", left ? "dy_tokens" : "row_tokens"}}));
        EXPECT_NE(s.str().find(text), std::string::npos) << s.str();
      }
}

} // namespace
