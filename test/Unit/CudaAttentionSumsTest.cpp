//===- CudaAttentionSumsTest.cpp - gradients of what attention leaves --------===//
// Attention leaves the logarithms of its sums of weights, and gradients that are made of these and
// of its result are those that the host's reference makes without them: by our own kernels, and by
// cuDNN, whole or some heads at a time.
//===----------------------------------------------------------------------===//
#include "CudaAttentionTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

using Case = WholeCase;

CallParams paramsOf(const Case &c, const char *with, bool fastest = false) {
  CallParams p = paramsOf(c);
  p.texts["with"] = with;
  if (fastest)
    p.integers["fastest"] = 1;
  return p;
}

class CudaAttentionSums : public CudaTest {
protected:
  /// False, with the test skipped, where cuDNN is missing.
  bool useCudnn() {
    Expected<cudnnHandle_t> made = cuda::createCudnn();
    if (made)
      gpu->context.cudnn = *made;
    return bool(made);
  }
  void TearDown() override {
    if (gpu)
      cuda::destroyCudnn(gpu->context.cudnn);
  }

  /// dq, dk and dv from what attention leaves; `narrow`: those of these whose bit is set are bf16.
  std::vector<Operand> gradients(const Case &c, const std::vector<Operand> &operands,
                                 const Operand &dy, bool fastest, unsigned narrow) {
    std::vector<Operand> in = runOnGpu(
        *gpu, "attention", operands,
        {T(Shape{kBatch, c.queries, c.heads, c.valueDim}), A(Shape{kBatch, c.heads, c.queries})},
        paramsOf(c, "log_sums"), kBf16);
    in.insert(in.begin(), operands.begin(), operands.end());
    in.insert(in.begin(), dy);
    auto result = [&](unsigned i, Shape shape) {
      return narrow >> i & 1 ? T(std::move(shape)) : A(std::move(shape));
    };
    std::vector<Operand> out{result(0, {kBatch, c.queries, c.heads, c.keyDim}),
                             result(1, {kBatch, c.keys, c.kvHeads, c.keyDim}),
                             result(2, {kBatch, c.keys, c.kvHeads, c.valueDim}),
                             A(Shape{c.roomKibibytes << 8})};
    std::vector<std::unique_ptr<OnDevice>> inputs, outputs;
    std::vector<TensorRef> inRefs, outRefs;
    for (const Operand &o : in) {
      inputs.push_back(std::make_unique<OnDevice>(o, fb::DType::bf16, false));
      inRefs.push_back(inputs.back()->ref());
    }
    for (const Operand &o : out) {
      outputs.push_back(std::make_unique<OnDevice>(o, fb::DType::bf16, false));
      outRefs.push_back(outputs.back()->ref());
    }
    std::vector<Operand> first, made;
    for (uint8_t poison : {0xff, 0x7b}) {
      for (auto &o : outputs)
        o->bytes().poison(poison);
      mustWork(cudaDeviceSynchronize());
      Status s = cuda::runCudaCall("attention_grad", inRefs, outRefs,
                                   paramsOf(c, "out log_sums room", fastest), gpu->context);
      EXPECT_TRUE(s.ok()) << s.str();
      EXPECT_EQ(gpu->finish(), 0);
      first = std::exchange(made, {});
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_TRUE(outputs[i]->bytes().guardsIntact()) << "writes outside output " << i;
        if (i < 3)
          made.push_back(outputs[i]->read(out[i]));
      }
    }
    for (size_t i = 0; i < 3 && !fastest; ++i)
      EXPECT_EQ(first[i].floats().values, made[i].floats().values) << "output " << i;
    return made;
  }

  void expectGradients(const Case &c, bool fastest, bool roundedDy = false, unsigned narrow = 0) {
    if (isLeftOut())
      return;
    SCOPED_TRACE(format("%lld queries, %lld of %lld heads of %lld, %lld KiB, narrow %u%s",
                        (long long)c.queries, (long long)c.kvHeads, (long long)c.heads,
                        (long long)c.keyDim, (long long)c.roomKibibytes, narrow,
                        fastest ? ", fastest" : ""));
    const std::vector<Operand> operands = operandsOf(random, c);
    Tensor<float> values = random.normal<float>({kBatch, c.queries, c.heads, c.valueDim});
    const Operand dy = roundedDy ? rounded(T(std::move(values)), fb::DType::bf16) : A(values);
    std::vector<Operand> in = operands;
    in.insert(in.begin(), dy);
    std::vector<std::vector<double>> expected;
    CallParams p = paramsOf(c, "");
    p.texts.clear();
    Status s = runOnHost<double>("attention_grad", in,
                                 {A(Shape{kBatch, c.queries, c.heads, c.keyDim}),
                                  A(Shape{kBatch, c.keys, c.kvHeads, c.keyDim}),
                                  A(Shape{kBatch, c.keys, c.kvHeads, c.valueDim})},
                                 p, expected);
    ASSERT_TRUE(s.ok()) << s.str();
    const std::vector<Operand> made = gradients(c, operands, dy, fastest, narrow);
    for (size_t i = 0; i < made.size(); ++i)
      EXPECT_LE(normError(made[i].floats(), expected[i]), 1e-2) << "output " << i;
  }
};

const Case kCases[] = {{128, 128},
                       {256, 256, 8, 1},
                       {200, 200, 4, 4, 64, 64},
                       {77, 77},
                       {130, 130, 3, 3, 80, 80},
                       {300, 300, 4, 2, 128, 128, 64},
                       {100, 333, 4, 2, 64, 64, 0, false},
                       {20, 20, 4, 2, 64, 64},
                       {90, 90, 4, 2, 256, 256}};

TEST_F(CudaAttentionSums, Forward) {
  for (bool cudnn : {false, true}) {
    if (cudnn && !useCudnn())
      return;
    for (const Case &c : kCases)
      expectAgrees(
          *gpu, "attention", operandsOf(random, c),
          {T(Shape{kBatch, c.queries, c.heads, c.valueDim}), A(Shape{kBatch, c.heads, c.queries})},
          paramsOf(c, "log_sums"), {.dtype = fb::DType::bf16, .f32Error = 1e-4});
  }
  const Case &c = kCases[3];
  expectAgrees(
      *gpu, "attention", operandsOf(random, c),
      {T(Shape{kBatch, c.queries, c.heads, c.valueDim}), A(Shape{kBatch, c.heads, c.queries})},
      paramsOf(c, "log_sums"), {.dtype = fb::DType::f32});
}

TEST_F(CudaAttentionSums, OwnGradients) {
  for (const Case &c : kCases) {
    expectGradients(c, false);
    expectGradients(c, false, true, 7);
  }
}

TEST_F(CudaAttentionSums, GradientsByCudnn) {
  if (!useCudnn())
    GTEST_SKIP() << "no cuDNN here";
  unsigned narrow = 0; // another set for each case, and dy for every other
  for (const Case &c : kCases) {
    expectGradients(c, false, narrow & 1, narrow % 8);
    expectGradients(c, true, narrow & 1, 7 - narrow % 8);
    ++narrow;
  }
}

TEST_F(CudaAttentionSums, SomeHeadsAtATime) {
  if (!useCudnn())
    GTEST_SKIP() << "no cuDNN here";
  // Room for all, one batch, two key/value heads, one, and none, which our own kernels take.
  for (int64_t kibibytes : {64 << 10, 9000, 5000, 2500, 300})
    for (bool fastest : {false, true})
      for (unsigned narrow : {0, 7})
        expectGradients({200, 200, 16, 4, 64, 64, 0, true, kibibytes}, fastest, kibibytes == 5000,
                        narrow);
}

} // namespace
