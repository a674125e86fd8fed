//===- CudaSpeedAttention.cpp - attention and its gradient ------------------===//
// Causal attention over whole sequences in bf16, forward and backward. Rates count the products of
// what is seen: two of them forward, five backward.
//===----------------------------------------------------------------------===//
#include "CudaSpeed.h"

namespace moira::rt::testing {

void measureAttention(Gpu &gpu) {
  struct Case {
    const char *name;
    int64_t batch, sequence, heads, kvHeads, dim;
  };
  constexpr auto kBf16 = fb::DType::bf16, kF32 = fb::DType::f32;
  for (const Case &c : {Case{"d128 64/8 2k", 1, 2048, 64, 8, 128},
                        {"d128 64/8 4k", 1, 4096, 64, 8, 128},
                        {"d128 64/8 8k", 1, 8192, 64, 8, 128},
                        {"d128 32/4 4x4k", 4, 4096, 32, 4, 128},
                        {"d64 16/16 8x1k", 8, 1024, 16, 16, 64}}) {
    const Shape ofQueries{c.batch, c.sequence, c.heads, c.dim},
        ofKeys{c.batch, c.sequence, c.kvHeads, c.dim};
    Big q(ofQueries, kBf16), k(ofKeys, kBf16), v(ofKeys, kBf16), out(ofQueries, kBf16),
        dy(ofQueries, kF32), dq(ofQueries, kF32), dk(ofKeys, kF32), dv(ofKeys, kF32),
        rounded(ofQueries, kBf16), logSums({c.batch, c.heads, c.sequence}, kF32),
        room({(int64_t(9) << 28) / 4}, kF32);
    const CallParams p =
        params({{"window", 0}, {"causal", 1}, {"q_heads", c.heads}, {"kv_heads", c.kvHeads}},
               {{"scale", 0.088}});
    const double product = double(c.batch * c.heads * c.sequence * c.sequence * c.dim);
    auto report = [&](const char *what, double products, double ms) {
      std::printf("attention %s causal %s: %.3f ms, %.0f TFLOP/s\n", what, c.name, ms,
                  products * product / ms / 1e9);
    };
    const std::vector<TensorRef> in{q.ref(), k.ref(), v.ref()};
    CallParams sums = p, kept = p;
    sums.texts["with"] = "log_sums";
    kept.texts["with"] = "out log_sums room";
    auto gradient = [&](const char *what, const Big &cotangent, const CallParams &params) {
      std::vector<TensorRef> operands{cotangent.ref()}, made{dq.ref(), dk.ref(), dv.ref()};
      operands.insert(operands.end(), in.begin(), in.end());
      if (!params.texts.empty()) {
        operands.insert(operands.end(), {out.ref(), logSums.ref()});
        made.push_back(room.ref());
      }
      report(what, 5, millisecondsOf(gpu, 9, 2, [&] {
               mustRun(gpu, "attention_grad", operands, made, params);
             }));
    };
    auto both = [&](const std::string &how) {
      report(("forward" + how).c_str(), 2,
             millisecondsOf(gpu, 9, 2, [&] { mustRun(gpu, "attention", in, {out.ref()}, p); }));
      report(("forward with sums" + how).c_str(), 2, millisecondsOf(gpu, 9, 2, [&] {
               mustRun(gpu, "attention", in, {out.ref(), logSums.ref()}, sums);
             }));
      gradient(("backward from sums" + how).c_str(), dy, kept);
    };
    both("");
    gradient("backward", dy, p);
    if (Expected<cudnnHandle_t> handle = cuda::createCudnn()) {
      gpu.context.cudnn = *handle;
      both(" by cuDNN");
      gradient("backward of bf16 by cuDNN", rounded, kept);
      kept.integers["fastest"] = 1;
      gradient("fastest backward by cuDNN", dy, kept);
      gradient("fastest backward of bf16 by cuDNN", rounded, kept);
      gpu.context.cudnn = nullptr;
      cuda::destroyCudnn(*handle);
    }
  }
}

} // namespace moira::rt::testing
