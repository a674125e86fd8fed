//===- CudaPositionsTest.cpp - token_positions, sinusoid, relative_bias -----===//
// The GPU gives what the host gives: integers and table rows exactly, sinusoids within float
// rounding.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

class CudaPositions : public CudaTest {};

TEST_F(CudaPositions, TokensAreCountedWithoutPadding) {
  for (int i = 0; i < 20; ++i) {
    int64_t batch = random.between(1, 20), columns = random.between(1, 200),
            start = random.between(0, columns - 1), wanted = random.between(1, columns - start);
    Tensor<int32_t> ids = random.ids({batch, columns}, 0, 4);
    CallParams p = params({{"pad", 1}, {"start", start}});
    expectAgrees(*gpu, "token_positions", {I(ids)}, {I(Shape{batch, wanted})}, p, {});
    expectAgrees(*gpu, "token_positions",
                 {I(ids.as<int64_t>()), I(random.ids({batch, wanted}, 0, 3))},
                 {I(Shape{batch, wanted})}, p, {});
  }
}

TEST_F(CudaPositions, SinusoidsRoundAsTheHostDoes) {
  for (int64_t width : {4, 5, 64, 1024, 1025}) {
    // Angles reach thousands: a frequency off by one unit in the last place shows near 1e-4.
    Mode mode{.hostFloat = true, .f32Error = 2e-5};
    expectAgrees(*gpu, "sinusoid", {I(random.ids({3, 50}, 0, 4000))}, {A(Shape{3, 50, width})},
                 params({{"offset", 2}, {"zero", 7}}), mode);
  }
}

TEST_F(CudaPositions, EveryDistanceFallsIntoTheHostsBucket) {
  Mode mode;
  mode.exact = true;
  for (bool bidirectional : {false, true})
    for (auto [buckets, most] : {std::pair<int64_t, int64_t>{32, 128}, {64, 200}, {8, 20}}) {
      Tensor<int32_t> q({3}, {0, 700, 1500}), k({1500});
      for (size_t j = 0; j < k.values.size(); ++j)
        k.values[j] = int32_t(j);
      expectAgrees(*gpu, "relative_bias", {A(random.normal<float>({buckets, 5})), I(q), I(k)},
                   {A(Shape{5, 3, 1500})},
                   params({{"max_distance", most}, {"bidirectional", bidirectional}}), mode);
    }
}

} // namespace
