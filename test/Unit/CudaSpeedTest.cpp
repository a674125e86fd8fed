//===- CudaSpeedTest.cpp - how fast the CUDA calls are ----------------------===//
// A program, not a test. Its arguments say what is measured, all if there are none:
//   layer     each call at the sizes of a layer of OLMoE-1B-7B with 4 × 2048 tokens: milliseconds,
//             TFLOP/s and GB/s of the bytes that must move, each input and output once
//   products  CudaSpeedProducts.cpp
//   around    of it the gate, select and combine
//   layers    of CudaSpeedProducts.cpp whole layers
//   training  of CudaSpeedProducts.cpp what training makes around products
//   decode    CudaSpeedDecode.cpp
//   decode-late  the same with no kernel launched before the one before it has ended
//===----------------------------------------------------------------------===//
#include "CudaSpeed.h"

using namespace moira::rt;
using namespace moira::rt::testing;
namespace fb = moira::fb;

namespace {

void measure(Gpu &gpu, const char *label, std::string_view name, std::vector<TensorRef> in,
             std::vector<TensorRef> out, const CallParams &p, double operations, double bytes) {
  double ms = millisecondsOf(gpu, 20, 3, [&] { mustRun(gpu, name, in, out, p); });
  std::printf("%-34s %9.3f ms %8.1f TFLOP/s %8.0f GB/s\n", label, ms, operations / ms / 1e9,
              bytes / ms / 1e6);
}

void layer(Gpu &gpu, fb::DType type) {
  const int64_t tokens = 8192, sequence = 2048, d = 2048, f = 1024, experts = 64, k = 8, heads = 16,
                headDim = 128;
  const double e = type == fb::DType::bf16 ? 2 : 4;
  std::printf("--- %s ---\n", type == fb::DType::bf16 ? "bf16" : "f32");
  Random random(7);
  Big x({tokens, d}, type), y({tokens, d}, type), w({d, d}, type), scale({d}, type);
  measure(gpu, "linear 8192x2048x2048 (cuBLASLt)", "linear", {x.ref(), w.ref()}, {y.ref()},
          params({{"contract", 1}}), 2.0 * tokens * d * d, e * (2.0 * tokens * d + d * d));
  {
    cublasLtHandle_t handle = std::exchange(gpu.context.blaslt, nullptr);
    measure(gpu, "linear 8192x2048x2048 (own)", "linear", {x.ref(), w.ref()}, {y.ref()},
            params({{"contract", 1}}), 2.0 * tokens * d * d, e * (2.0 * tokens * d + d * d));
    gpu.context.blaslt = handle;
  }
  measure(gpu, "rms_norm", "rms_norm", {x.ref(), scale.ref()}, {y.ref()},
          params({{"norm_dims", 1}}, {{"eps", 1e-5}}), 0, 2 * e * tokens * d);
  measure(gpu, "add", "add", {x.ref(), x.ref()}, {y.ref()}, {}, 0, 3 * e * tokens * d);

  Big logits({tokens, experts}, fb::DType::f32), weights({tokens, k}, fb::DType::f32);
  Big ids({tokens, k}, random.choices(tokens, k, experts).values),
      chosen({tokens, k}, std::vector<int32_t>(size_t(tokens * k)));
  measure(gpu, "route 64 experts, 8 chosen", "route", {logits.ref()}, {chosen.ref(), weights.ref()},
          params({}, {{"scale", 1}},
                 {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "none"}}),
          0, 4.0 * tokens * (experts + 2 * k));

  int64_t rows = tokens * k;
  Big need({1}, std::vector<int32_t>{0}), needOut({1}, std::vector<int32_t>{0}),
      groups({1, experts}, std::vector<int32_t>(size_t(experts))),
      pos({tokens, k}, std::vector<int32_t>(size_t(rows)));
  Big in({rows, d}, type), mid({rows, 2, f}, type), act({rows, f}, type), back({rows, d}, type);
  measure(gpu, "select 65536 rows", "select", {x.ref(), ids.ref(), need.ref()},
          {in.ref(), groups.ref(), pos.ref(), needOut.ref()},
          params({{"experts", experts}, {"expert_offset", 0}}), 0, e * (tokens + rows) * d);
  {
    Big w13({experts, 2, f, d}, type), w2({experts, d, f}, type);
    measure(gpu, "grouped 65536x2048 -> 2x1024", "grouped_matmul",
            {in.ref(), groups.ref(), w13.ref()}, {mid.ref()}, params({{"contract", 1}}),
            2.0 * rows * d * 2 * f, e * (2.0 * rows * d + 2.0 * experts * d * f));
    measure(gpu, "glu", "glu", {mid.ref()}, {act.ref()}, params({}, {}, {{"activation", "silu"}}),
            0, e * 3 * rows * f);
    measure(gpu, "grouped 65536x1024 -> 2048", "grouped_matmul",
            {act.ref(), groups.ref(), w2.ref()}, {back.ref()}, params({{"contract", 1}}),
            2.0 * rows * d * f, e * (1.0 * rows * (d + f) + 1.0 * experts * d * f));
  }
  measure(gpu, "combine", "combine", {back.ref(), pos.ref(), weights.ref()}, {y.ref()}, {}, 0,
          e * (tokens + rows) * d);

  Big slots({1, 4, rows / 2, d}, type),
      counts({1, 4, experts / 4}, std::vector<int32_t>(size_t(experts)));
  measure(gpu, "pack for 4 ranks", "pack", {x.ref(), ids.ref(), need.ref()},
          {slots.ref(), counts.ref(), pos.ref(), needOut.ref()},
          params({{"experts", experts}, {"segments", 1}}), 0, e * (tokens + 2.0 * rows) * d);
  TensorRef received = slots.ref(), receivedCounts = counts.ref();
  received.shape = {4, 1, rows / 2, d};
  receivedCounts.shape = {4, 1, experts / 4};
  Big local({1, experts / 4}, std::vector<int32_t>(size_t(experts / 4))), all({rows * 2, d}, type);
  measure(gpu, "regroup from 4 ranks", "regroup", {received, receivedCounts},
          {all.ref(), local.ref()}, params({{"segments", 1}}), 0, e * 3.0 * rows * d);
  measure(gpu, "ungroup to 4 ranks", "ungroup", {all.ref(), receivedCounts}, {received},
          params({{"segments", 1}}), 0, e * 3.0 * rows * d);

  Shape qkv{tokens / sequence, sequence, heads, headDim};
  Big q(qkv, type), key(qkv, type), value(qkv, type), out(qkv, type);
  measure(gpu, "attention 4x2048, 16 heads of 128", "attention", {q.ref(), key.ref(), value.ref()},
          {out.ref()},
          params({{"window", 0}, {"q_heads", heads}, {"kv_heads", heads}}, {{"scale", 0.088}}),
          2.0 * tokens * sequence * heads * headDim, e * 4 * tokens * d);
}

} // namespace

int main(int argc, char **argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0); // a kernel that hangs is the one after the last line
  if (!Gpu::present()) {
    std::printf("no CUDA device here\n");
    return 0;
  }
  cudaDeviceProp device{};
  mustWork(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  Gpu gpu;
  std::vector<std::string_view> parts(argv + 1, argv + argc);
  auto wanted = [&](std::string_view part) {
    return parts.empty() || std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  if (wanted("layer")) {
    layer(gpu, fb::DType::bf16);
    layer(gpu, fb::DType::f32);
  }
  if (wanted("products"))
    measureProducts(gpu);
  if (wanted("around"))
    measureAround(gpu);
  if (wanted("attention"))
    measureAttention(gpu);
  if (wanted("layers"))
    measureLayers(gpu);
  if (wanted("training"))
    measureTraining(gpu);
  if (wanted("decode"))
    measureDecode(gpu, {1, 8, 32, 128}, {1, 32});
  if (wanted("token"))
    measureDecode(gpu, {1}, {});
  if (wanted("token-late")) {
    gpu.context.early = false;
    measureDecode(gpu, {1}, {});
    gpu.context.early = true;
  }
  if (wanted("decode-late")) {
    gpu.context.early = false;
    measureDecode(gpu, {1, 8, 32, 128}, {1, 32});
  }
}
