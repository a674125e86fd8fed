//===- CudaCudnnTest.cpp - attention by cuDNN -------------------------------===//
// Calls without positions and masks give by cuDNN what the host's reference gives, the same bits
// every time, and our own kernels take the rest. Skipped where cuDNN is missing.
//===----------------------------------------------------------------------===//
#include "CudaAttentionTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

using Case = WholeCase;

class CudaCudnn : public CudaTest {
protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped())
      return;
    Expected<cudnnHandle_t> handle = cuda::createCudnn();
    if (!handle)
      GTEST_SKIP() << handle.status().str();
    gpu->context.cudnn = *handle;
  }
  void TearDown() override {
    if (gpu)
      cuda::destroyCudnn(gpu->context.cudnn);
  }
};

std::vector<Operand> resultsOf(const Case &c) {
  return {T(Shape{kBatch, c.queries, c.heads, c.valueDim})};
}

TEST_F(CudaCudnn, WholeSequences) {
  for (const Case &c : {Case{128, 128},
                        {256, 256, 8, 1},
                        {200, 200, 4, 4, 64, 64},
                        {77, 77},
                        {1000, 1000, 2, 1},
                        {130, 130, 3, 3, 80, 80},
                        {33, 33, 4, 2, 32, 32},
                        {300, 300, 4, 2, 128, 128, 64},
                        {300, 300, 4, 2, 64, 64, 1},
                        {300, 300, 4, 2, 128, 128, 1000},
                        {128, 128, 4, 2, 128, 128, 0, false},
                        {100, 333, 4, 2, 64, 64, 0, false},
                        {300, 300, 4, 4, 192, 128},
                        {90, 90, 4, 2, 256, 256}})
    expectAgrees(*gpu, "attention", operandsOf(random, c), resultsOf(c), paramsOf(c), kBf16);
}

TEST_F(CudaCudnn, TakesWhatIsInOrder) {
  // Some bits are other than those of our own kernels, which take the same call with positions and
  // a mask.
  const Case c{1000, 1000};
  std::vector<Operand> in = operandsOf(random, c), all = in;
  for (Operand &o : orderOf(kBatch, c.queries, c.keys))
    all.push_back(std::move(o));
  CallParams p = paramsOf(c);
  p.texts["with"] = kOrderRoles;
  auto result = [&](const std::vector<Operand> &given, const CallParams &params) {
    return runOnGpu(*gpu, "attention", given, resultsOf(c), params, kBf16)[0].floats().values;
  };
  const std::vector<float> byCudnn = result(in, paramsOf(c)), given = result(all, p);
  cudnnHandle_t handle = std::exchange(gpu->context.cudnn, nullptr);
  const std::vector<float> own = result(in, paramsOf(c));
  gpu->context.cudnn = handle;
  EXPECT_EQ(given, own);
  EXPECT_NE(byCudnn, own);
}

TEST_F(CudaCudnn, OwnKernelsTakeTheRest) {
  // No handle, a mask, operands off their alignment, few queries.
  const Case whole{160, 160}, few{5, 5};
  cudnnHandle_t handle = std::exchange(gpu->context.cudnn, nullptr);
  expectAgrees(*gpu, "attention", operandsOf(random, whole), resultsOf(whole), paramsOf(whole),
               kBf16);
  gpu->context.cudnn = handle;
  Tensor<int32_t> mask = random.ids({kBatch, whole.keys}, 0, 5);
  std::vector<Operand> padded = operandsOf(random, whole);
  padded.push_back(I(mask));
  CallParams p = paramsOf(whole);
  p.texts["with"] = "kmask";
  expectAgrees(*gpu, "attention", padded, resultsOf(whole), p, kBf16);
  Mode shifted = kBf16;
  shifted.shifted = true;
  expectAgrees(*gpu, "attention", operandsOf(random, whole), resultsOf(whole), paramsOf(whole),
               shifted);
  expectAgrees(*gpu, "attention", operandsOf(random, few), resultsOf(few), paramsOf(few), kBf16);
  expectAgrees(*gpu, "attention", operandsOf(random, whole), resultsOf(whole), paramsOf(whole),
               {.dtype = fb::DType::f32});
}

TEST_F(CudaCudnn, IsRecordedInGraphs) {
  const Case c{160, 160};
  std::vector<Operand> in = operandsOf(random, c), out = resultsOf(c);
  std::vector<Operand> expected =
      runOnGpu(*gpu, "attention", in, out, paramsOf(c), kBf16); // and its graph is planned
  std::vector<std::unique_ptr<OnDevice>> inputs;
  std::vector<TensorRef> inRefs;
  for (const Operand &o : in) {
    inputs.push_back(std::make_unique<OnDevice>(o, fb::DType::bf16, false));
    inRefs.push_back(inputs.back()->ref());
  }
  OnDevice result(out[0], fb::DType::bf16, false);
  std::vector<TensorRef> outRefs{result.ref()};
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t recorded = nullptr;
  mustWork(cudaStreamBeginCapture(gpu->context.stream, cudaStreamCaptureModeThreadLocal));
  Status s = cuda::runCudaCall("attention", inRefs, outRefs, paramsOf(c), gpu->context);
  mustWork(cudaStreamEndCapture(gpu->context.stream, &graph));
  ASSERT_TRUE(s.ok()) << s.str();
  mustWork(cudaGraphInstantiate(&recorded, graph, 0));
  for (int i = 0; i < 2; ++i) {
    result.bytes().poison(0xff);
    mustWork(cudaGraphLaunch(recorded, gpu->context.stream));
    EXPECT_EQ(gpu->finish(), 0);
    EXPECT_EQ(result.read(out[0]).floats().values, expected[0].floats().values);
  }
  cudaGraphExecDestroy(recorded);
  cudaGraphDestroy(graph);
}

} // namespace
