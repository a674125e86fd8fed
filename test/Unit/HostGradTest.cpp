//===- HostGradTest.cpp - gradients of experts' weights ---------------------===//
// grouped_weight_grad against loops over the rows.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

TEST(HostGrad, ExpertsWeights) {
  Random random(testSeed() + 9);
  for (int i = 0; i < 40; ++i) {
    const bool bySample = i % 2;
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
    const Tensor<float> dy = random.normal<float>({room, n}), x = random.normal<float>({room, k});
    std::vector<TensorRef> inputs{dy, groups, x};
    if (bySample)
      inputs.push_back(counts);
    for (CallFlavor flavor : {CallFlavor::reference, CallFlavor::fast}) {
      Tensor<float> out({4, n, k});
      Status s = call("grouped_weight_grad", flavor, inputs, {out}, params({{"contract", 1}}));
      ASSERT_TRUE(s.ok()) << s.str();
      int64_t first = 0;
      for (int64_t g = 0; g < 4; first += groups.values[size_t(g++)])
        for (int64_t r = 0; r < n; ++r)
          for (int64_t c = 0; c < k; ++c) {
            double sum = 0, size = 0;
            for (int64_t row = first; row < first + groups.values[size_t(g)]; ++row) {
              const double term =
                  double(dy.values[size_t(row * n + r)]) * x.values[size_t(row * k + c)];
              sum += term;
              size += std::abs(term);
            }
            ASSERT_NEAR(out.values[size_t((g * n + r) * k + c)], sum, 1e-5 * size)
                << "expert " << g << " at " << r << ", " << c << (bySample ? ", by sample" : "");
          }
    }
  }
}

} // namespace
