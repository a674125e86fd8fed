//===- CudaGenerationTest.cpp - write_rows, slot, sample --------------------===//
// The GPU writes rows where the host does and complains of places that are not there; it takes the
// host's columns and draws the host's tokens.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaGeneration : public CudaTest {};

TEST_F(CudaGeneration, RowsAreWrittenAtTheirPlaceAlone) {
  for (const Mode &mode : allModes())
    for (int64_t width : {1, 3, 64, 130}) {
      Operand rows = rounded(T(random.normal<float>({3, 2, width})), mode.dtype),
              state = rounded(T(random.normal<float>({3, 7, width})), mode.dtype);
      for (int32_t at : {0, 4, 5}) {
        OnDevice in(rows, mode.dtype, mode.shifted), out(state, mode.dtype, mode.shifted),
            place(I(Tensor<int32_t>({1}, {at})), mode.dtype, false);
        std::vector<TensorRef> inputs{in.ref(), place.ref()}, outputs{out.ref()};
        Status s = cuda::runCudaCall("write_rows", inputs, outputs, {}, gpu->context);
        ASSERT_TRUE(s.ok()) << s.str();
        EXPECT_EQ(gpu->finish(), 0);
        EXPECT_TRUE(out.bytes().guardsIntact());
        Tensor<float> want = state.floats(), from = rows.floats();
        for (int64_t b = 0; b < 3; ++b)
          std::copy_n(from.values.begin() + b * 2 * width, 2 * width,
                      want.values.begin() + (b * 7 + at) * width);
        EXPECT_EQ(out.read(state).floats().values, want.values);
      }
    }
}

TEST_F(CudaGeneration, RowsOfTwoStatesAreWrittenAtOnePlace) {
  for (const Mode &mode : allModes())
    for (int64_t width : {1, 64, 130}) {
      Operand rows = rounded(T(random.normal<float>({3, 2, 72})), mode.dtype),
              state = rounded(T(random.normal<float>({3, 7, 72})), mode.dtype),
              rows2 = rounded(T(random.normal<float>({3, 2, width})), mode.dtype),
              state2 = rounded(T(random.normal<float>({3, 7, width})), mode.dtype);
      Operand place = I(Tensor<int32_t>({1}, {4}));
      OnDevice in(rows, mode.dtype, mode.shifted), in2(rows2, mode.dtype, false),
          out(state, mode.dtype, false), out2(state2, mode.dtype, mode.shifted),
          at(place, mode.dtype, false);
      std::vector<TensorRef> inputs{in.ref(), at.ref(), in2.ref()}, outputs{out.ref(), out2.ref()};
      Status s = cuda::runCudaCall("write_rows", inputs, outputs, {}, gpu->context);
      ASSERT_TRUE(s.ok()) << s.str();
      EXPECT_EQ(gpu->finish(), 0);
      EXPECT_TRUE(out.bytes().guardsIntact() && out2.bytes().guardsIntact());
      auto expectWritten = [](Operand &before, const Operand &from, OnDevice &after, int64_t n) {
        Tensor<float> want = before.floats(), written = from.floats();
        for (int64_t b = 0; b < 3; ++b)
          std::copy_n(written.values.begin() + b * 2 * n, 2 * n,
                      want.values.begin() + (b * 7 + 4) * n);
        EXPECT_EQ(after.read(before).floats().values, want.values);
      };
      expectWritten(state, rows, out, 72);
      expectWritten(state2, rows2, out2, width);
    }
}

TEST_F(CudaGeneration, APlaceOutsideOfTheStateIsAFaultAndWritesNothing) {
  for (int32_t at : {-1, 6, INT32_MAX}) {
    Operand state = I(random.ids({2, 7}, 0, 9));
    OnDevice in(I(random.ids({2, 2}, 0, 9)), fb::DType::f32, false),
        out(state, fb::DType::f32, false),
        place(I(Tensor<int32_t>({1}, {at})), fb::DType::f32, false);
    std::vector<TensorRef> inputs{in.ref(), place.ref()}, outputs{out.ref()};
    ASSERT_TRUE(cuda::runCudaCall("write_rows", inputs, outputs, {}, gpu->context).ok());
    EXPECT_EQ(gpu->finish(), 6) << at;
    EXPECT_EQ(std::get<Tensor<int32_t>>(out.read(state).tensor).values,
              std::get<Tensor<int32_t>>(state.tensor).values);
  }
}

TEST_F(CudaGeneration, SlotsAreTheHosts) {
  for (Mode mode : allModes()) {
    mode.exact = true;
    for (int32_t at : {0, 3, 8, 20})
      expectAgrees(*gpu, "slot",
                   {T(random.normal<float>({3, 5, 33})), I(Tensor<int32_t>({1}, {at}))},
                   {T(Shape{3, 1, 33})}, params({{"index", 1}, {"start", 4}}), mode);
  }
}

TEST_F(CudaGeneration, DrawsAreTheHosts) {
  struct Asked {
    float temperature, topP;
    int32_t topK;
  };
  Mode mode{.hostFloat = true};
  for (Asked asked : {Asked{0, 1, 0},
                      {1, 1, 0},
                      {0.7f, 0.9f, 0},
                      {1.5f, 1, 40},
                      {1, 0.8f, 300},
                      {1, 1e-6f, 0},
                      {2, 0.5f, 1}})
    for (int64_t vocab : {1, 31, 1000, 70001}) {
      Tensor<float> logits = random.normal<float>({5, 1, vocab});
      for (float &v : logits.values)
        v = std::round(v * 64) / 16; // many are equal
      Tensor<float> sampling({2}, {asked.temperature, asked.topP});
      Tensor<int32_t> draw({4}, {asked.topK, 11, 5, 3});
      expectAgrees(*gpu, "sample", {A(logits), A(sampling), I(draw)}, {I(Shape{5, 1})},
                   params({{"row_offset", 8}}), mode);
    }
}

} // namespace
