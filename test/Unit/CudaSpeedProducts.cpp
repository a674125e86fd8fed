//===- CudaSpeedProducts.cpp - how fast large grouped products are ----------===//
// The two products of a SwiGLU layer's experts at the sizes of well-known models, with random
// choices of experts, each beside cuBLASLt's dense product of 8192 x 8192 x 8192 in the same
// rounds, their gradients, what stands around them (gate, select, combine), the whole layer
// forward, and what training makes around its products.
//===----------------------------------------------------------------------===//
#include "CudaSpeed.h"

#include <functional>

namespace moira::rt::testing {
namespace {

struct LayerShape {
  const char *name;
  int64_t tokens, d, f, experts, k;
};
constexpr LayerShape kShapes[] = {
    {"B1 Mixtral", 8192, 4096, 14336, 8, 2},      {"B2 Qwen3-30B", 16384, 2048, 768, 128, 8},
    {"B3 OLMoE", 16384, 2048, 1024, 64, 8},       {"B4 DeepSeek-V3", 8192, 7168, 2048, 32, 8},
    {"B5 SonicMoE's", 32768, 4096, 1024, 128, 8}, {"Z  Z-code M3", 16384, 1024, 4096, 64, 1},
};

constexpr auto kBf16 = fb::DType::bf16;
const CallParams kContract = params({{"contract", 1}});

/// Choices of which expert e comes with the weight 1 / (e + 1) to the power `skew`: without
/// repetition, by the largest of perturbed logarithms.
Tensor<int32_t> choicesOf(Random &random, const LayerShape &s, double skew) {
  if (skew == 0)
    return random.choices(s.tokens, s.k, s.experts);
  Tensor<int32_t> ids({s.tokens, s.k});
  std::mt19937 engine(11);
  std::uniform_real_distribution<double> uniform(1e-9, 1);
  std::vector<std::pair<double, int32_t>> keys(static_cast<size_t>(s.experts));
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int32_t e = 0; e < s.experts; ++e)
      keys[size_t(e)] = {-std::log(-std::log(uniform(engine))) - skew * std::log(e + 1.0), e};
    std::partial_sort(keys.begin(), keys.begin() + s.k, keys.end(), std::greater<>());
    for (int64_t j = 0; j < s.k; ++j)
      ids.values[size_t(t * s.k + j)] = keys[size_t(j)].second;
  }
  return ids;
}

std::vector<int32_t> groupsOf(const Tensor<int32_t> &ids, int64_t experts) {
  std::vector<int32_t> groups(static_cast<size_t>(experts));
  for (int32_t id : ids.values)
    ++groups[size_t(id)];
  return groups;
}

/// The layer as plans make it (router, gate, tokens of the experts' rows, gated products, products,
/// combine) and its parts, in rounds with the dense product; medians.
void measureWhole(Gpu &gpu, Random &random, const LayerShape &s, double skew, const Big &square,
                  Big &result) {
  const int64_t rows = s.tokens * s.k;
  const Tensor<int32_t> choices = choicesOf(random, s, skew);
  Big x({s.tokens, s.d}, kBf16), router({s.experts, s.d}, kBf16),
      logits({s.tokens, s.experts}, fb::DType::f32), weights({s.tokens, s.k}, fb::DType::f32),
      ids({s.tokens, s.k}, choices.values), chosen({s.tokens, s.k}, choices.values),
      pos({s.tokens, s.k}, std::vector<int32_t>(size_t(rows))),
      order({rows}, std::vector<int32_t>(size_t(rows))),
      groups({1, s.experts}, std::vector<int32_t>(size_t(s.experts))),
      need({1}, std::vector<int32_t>{0}), needOut({1}, std::vector<int32_t>{0}),
      w13({s.experts, 2, s.f, s.d}, kBf16), h({rows, s.f}, kBf16), w2({s.experts, s.d, s.f}, kBf16),
      y({rows, s.d}, kBf16), out({s.tokens, s.d}, kBf16);
  auto dense = [&] {
    mustRun(gpu, "linear", {square.ref(), square.ref()}, {result.ref()}, kContract);
  };
  auto gate = [&] {
    mustRun(gpu, "linear", {x.ref(), router.ref()}, {logits.ref()}, kContract);
    mustRun(gpu, "route", {logits.ref()}, {chosen.ref(), weights.ref()},
            params({}, {{"scale", 1}},
                   {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}));
  };
  auto select = [&] {
    mustRun(gpu, "select_tokens", {ids.ref(), need.ref()},
            {order.ref(), groups.ref(), pos.ref(), needOut.ref()},
            params({{"experts", s.experts}, {"expert_offset", 0}}));
  };
  auto up = [&] {
    mustRun(gpu, "grouped_glu", {x.ref(), groups.ref(), w13.ref(), order.ref()}, {h.ref()},
            params({{"contract", 1}}, {}, {{"activation", "silu"}}));
  };
  auto down = [&] {
    mustRun(gpu, "grouped_matmul", {h.ref(), groups.ref(), w2.ref()}, {y.ref()}, kContract);
  };
  auto ordered = [&] { // of rows that lie in order
    mustRun(gpu, "grouped_glu", {y.ref(), groups.ref(), w13.ref()}, {h.ref()},
            params({{"contract", 1}}, {}, {{"activation", "silu"}}));
  };
  auto combine = [&] {
    mustRun(gpu, "combine", {y.ref(), pos.ref(), weights.ref()}, {out.ref()}, {});
  };
  std::vector<double> denseTimes, gateTimes, selectTimes, upTimes, downTimes, combineTimes,
      orderedTimes, layerTimes;
  for (int round = 0; round < 5; ++round) {
    denseTimes.push_back(millisecondsOf(gpu, 3, 1, dense));
    gateTimes.push_back(millisecondsOf(gpu, 3, 1, gate));
    selectTimes.push_back(millisecondsOf(gpu, 3, 1, select));
    upTimes.push_back(millisecondsOf(gpu, 3, 1, up));
    orderedTimes.push_back(millisecondsOf(gpu, 3, 1, ordered));
    downTimes.push_back(millisecondsOf(gpu, 3, 1, down));
    combineTimes.push_back(millisecondsOf(gpu, 3, 1, combine));
    layerTimes.push_back(millisecondsOf(gpu, 3, 1, [&] {
      gate();
      select();
      up();
      down();
      combine();
    }));
  }
  const double full = 2.0 * 8192 * 8192 * 8192 / medianOf(denseTimes) / 1e9,
               work = 2.0 * double(rows * s.d * s.f) / 1e9, layerMs = medianOf(layerTimes),
               upRate = 2 * work / medianOf(upTimes), downRate = work / medianOf(downTimes);
  std::printf("%-16s%s layer %8.3f ms %5.0f TF, dense %5.0f: %.3f | gate %.0f us, select %.0f us, "
              "glu %.0f us %5.0f TF (%.2f), in order %.0f us, down %.0f us %5.0f TF (%.2f), "
              "combine %.0f us\n",
              s.name, skew ? " Zipf" : "", layerMs, 3 * work / layerMs, full,
              3 * work / layerMs / full, medianOf(gateTimes) * 1e3, medianOf(selectTimes) * 1e3,
              medianOf(upTimes) * 1e3, upRate, upRate / full, medianOf(orderedTimes) * 1e3,
              medianOf(downTimes) * 1e3, downRate, downRate / full, medianOf(combineTimes) * 1e3);
}

/// Interleaved rounds of the dense product, up and down; medians.
void measureLayer(Gpu &gpu, Random &random, const LayerShape &s, const Big &square, Big &result) {
  const int64_t rows = s.tokens * s.k;
  const Tensor<int32_t> choices = choicesOf(random, s, 0);
  Big x({rows, s.d}, kBf16), mid({rows, 2 * s.f}, kBf16), w13({s.experts, 2 * s.f, s.d}, kBf16),
      w2({s.experts, s.d, s.f}, kBf16), groups({1, s.experts}, groupsOf(choices, s.experts));
  auto dense = [&] {
    mustRun(gpu, "linear", {square.ref(), square.ref()}, {result.ref()}, kContract);
  };
  auto up = [&] {
    mustRun(gpu, "grouped_matmul", {x.ref(), groups.ref(), w13.ref()}, {mid.ref()}, kContract);
  };
  auto down = [&] {
    mustRun(gpu, "grouped_matmul", {mid.slice({rows, s.f}, 0), groups.ref(), w2.ref()}, {x.ref()},
            kContract);
  };
  Big weights({s.experts, 2 * s.f, s.d}, fb::DType::f32);
  auto inputGrad = [&] { // of up
    mustRun(gpu, "grouped_input_grad", {mid.ref(), groups.ref(), w13.ref()}, {x.ref()}, kContract);
  };
  auto weightGrad = [&] {
    mustRun(gpu, "grouped_weight_grad", {mid.ref(), groups.ref(), x.ref()}, {weights.ref()},
            kContract);
  };
  const TensorRef downWeights = weights.slice({s.experts, s.d, s.f}, 0);
  auto downWeightGrad = [&] {
    mustRun(gpu, "grouped_weight_grad", {x.ref(), groups.ref(), mid.slice({rows, s.f}, 0)},
            {downWeights}, kContract);
  };
  std::vector<double> denseTimes, upTimes, downTimes, inputTimes, weightTimes, downWeightTimes;
  for (int round = 0; round < 5; ++round) {
    denseTimes.push_back(millisecondsOf(gpu, 3, 1, dense));
    upTimes.push_back(millisecondsOf(gpu, 3, 1, up));
    downTimes.push_back(millisecondsOf(gpu, 3, 1, down));
    inputTimes.push_back(millisecondsOf(gpu, 3, 1, inputGrad));
    weightTimes.push_back(millisecondsOf(gpu, 3, 1, weightGrad));
    downWeightTimes.push_back(millisecondsOf(gpu, 3, 1, downWeightGrad));
  }
  const double full = 2.0 * 8192 * 8192 * 8192 / medianOf(denseTimes) / 1e9,
               upRate = 4.0 * double(rows * s.d * s.f) / medianOf(upTimes) / 1e9,
               downRate = 2.0 * double(rows * s.d * s.f) / medianOf(downTimes) / 1e9;
  std::printf("%-16s dense %5.0f | up %8.3f ms %5.0f TF (%.2f) | down %8.3f ms %5.0f TF (%.2f)\n",
              s.name, full, medianOf(upTimes), upRate, upRate / full, medianOf(downTimes), downRate,
              downRate / full);
  const double work = 4.0 * double(rows * s.d * s.f) / 1e9;
  auto print = [&](const char *what, double part, const std::vector<double> &times) {
    const double ms = medianOf(times), rate = work * part / ms;
    std::printf("%s %8.3f ms %5.0f TF (%.2f)", what, ms, rate, rate / full);
  };
  print("                 gradients of up: rows", 1, inputTimes);
  print(", weights", 1, weightTimes);
  print("\n                 of down: weights", 0.5, downWeightTimes);
  std::printf("\n");
}

/// What training makes around the first product and its gradient, beside the calls that it stands
/// for; medians of interleaved rounds.
void measureTraining(Gpu &gpu, Random &random, const LayerShape &s) {
  const int64_t rows = s.tokens * s.k;
  Big x({s.tokens, s.d}, kBf16), dy({s.tokens, s.d}, kBf16),
      dyWide({s.tokens, s.d}, fb::DType::f32), weights({s.tokens, s.k}, fb::DType::f32),
      dots({s.tokens, s.k}, fb::DType::f32), ids({s.tokens, s.k}, choicesOf(random, s, 0).values),
      pos({s.tokens, s.k}, std::vector<int32_t>(size_t(rows))),
      groups({1, s.experts}, std::vector<int32_t>(size_t(s.experts))), need({1}, {0}),
      needOut({1}, {0}), w13({s.experts, 2, s.f, s.d}, kBf16), w2({s.experts, s.d, s.f}, kBf16),
      z({rows, 2, s.f}, kBf16), dz({rows, 2, s.f}, kBf16), h({rows, s.f}, kBf16),
      dh({rows, s.f}, kBf16), copied({rows, s.d}, kBf16);
  const CallParams select = params({{"experts", s.experts}, {"expert_offset", 0}}),
                   silu = params({}, {}, {{"activation", "silu"}}),
                   both = params({{"contract", 1}}, {}, {{"activation", "silu"}});
  const std::vector<TensorRef> selected{copied.ref(), groups.ref(), pos.ref(), needOut.ref()};
  struct Work {
    const char *name;
    std::function<void()> run;
    std::vector<double> times;
  };
  Work works[] = {
      {"select",
       [&] { mustRun(gpu, "select", {x.ref(), ids.ref(), need.ref()}, selected, select); },
       {}},
      {"up",
       [&] {
         mustRun(gpu, "grouped_matmul", {copied.ref(), groups.ref(), w13.ref()}, {z.ref()},
                 kContract);
       },
       {}},
      {"glu", [&] { mustRun(gpu, "glu", {z.ref()}, {h.ref()}, silu); }, {}},
      {"| in one",
       [&] {
         mustRun(gpu, "grouped_glu", {copied.ref(), groups.ref(), w13.ref()}, {h.ref(), z.ref()},
                 both);
       },
       {}},
      {"| backwards: select",
       [&] {
         mustRun(gpu, "select", {dy.ref(), ids.ref(), need.ref(), weights.ref()}, selected, select);
       },
       {}},
      {"rows",
       [&] {
         mustRun(gpu, "grouped_input_grad", {copied.ref(), groups.ref(), w2.ref()}, {dh.ref()},
                 kContract);
       },
       {}},
      {"dots",
       [&] {
         mustRun(gpu, "choice_dots", {copied.ref(), dyWide.ref(), pos.ref()}, {dots.ref()}, {});
       },
       {}},
      {"glu", [&] { mustRun(gpu, "glu_grad", {dh.ref(), z.ref()}, {dz.ref()}, silu); }, {}},
      {"| in one",
       [&] {
         mustRun(gpu, "grouped_glu_grad",
                 {copied.ref(), groups.ref(), w2.ref(), z.ref(), pos.ref(), weights.ref()},
                 {dz.ref(), h.ref(), dots.ref()}, silu);
       },
       {}},
  };
  for (int round = 0; round < 5; ++round)
    for (Work &work : works)
      work.times.push_back(millisecondsOf(gpu, 3, 1, work.run));
  std::printf("%-16s us:", s.name);
  for (Work &work : works)
    std::printf(" %s %.0f", work.name, medianOf(work.times) * 1e3);
  std::printf(" (%.0f TF)\n",
              2.0 * double(rows * s.d * s.f) / medianOf(std::end(works)[-1].times) / 1e9);
}

} // namespace

double copyRate(Gpu &gpu) {
  const int64_t n = int64_t(1) << 29;
  Big from({n}, kBf16), to({n}, kBf16);
  const double ms = millisecondsOf(gpu, 10, 2, [&] {
    mustWork(cudaMemcpyAsync(to.ref().data, from.ref().data, size_t(n) * 2,
                             cudaMemcpyDeviceToDevice, gpu.context.stream));
  });
  return 4.0 * double(n) / ms / 1e9;
}

/// Routing and data movement of B2, beside copy bandwidth.
void measureAround(Gpu &gpu) {
  Random random(5);
  const LayerShape &s = kShapes[1];
  const int64_t rows = s.tokens * s.k;
  const double copy = copyRate(gpu);
  Big x({s.tokens, s.d}, kBf16), large({rows, s.d}, kBf16);
  Big logits({s.tokens, s.experts}, fb::DType::f32), weights({s.tokens, s.k}, fb::DType::f32),
      ids({s.tokens, s.k}, random.choices(s.tokens, s.k, s.experts).values),
      chosen({s.tokens, s.k}, std::vector<int32_t>(size_t(rows))),
      pos({s.tokens, s.k}, std::vector<int32_t>(size_t(rows))),
      groups({1, s.experts}, std::vector<int32_t>(size_t(s.experts))), need({1}, {0}),
      needOut({1}, {0});
  auto report = [&](const char *what, double ms, double bytes) {
    std::printf("%-34s %9.1f us %6.2f TB/s (%.2f of copy)\n", what, ms * 1e3, bytes / ms / 1e9,
                bytes / ms / 1e9 / copy);
  };
  // Several in a graph, as a step has them.
  auto inGraph = [&](auto work) {
    constexpr int calls = 4;
    return graphMilliseconds(gpu, 10,
                             [&] {
                               for (int i = 0; i < calls; ++i)
                                 work();
                             }) /
           calls;
  };
  report("route 16384 x 128, k 8", inGraph([&] {
           mustRun(gpu, "route", {logits.ref()}, {chosen.ref(), weights.ref()},
                   params({}, {{"scale", 1}},
                          {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}));
         }),
         4.0 * double(s.tokens * (s.experts + 2 * s.k)));
  report("select B2", inGraph([&] {
           mustRun(gpu, "select", {x.ref(), ids.ref(), need.ref()},
                   {large.ref(), groups.ref(), pos.ref(), needOut.ref()},
                   params({{"experts", s.experts}, {"expert_offset", 0}}));
         }),
         2.0 * double((s.tokens + rows) * s.d));
  report("combine B2", inGraph([&] {
           mustRun(gpu, "combine", {large.ref(), pos.ref(), weights.ref()}, {x.ref()}, {});
         }),
         2.0 * double((s.tokens + rows) * s.d));
}

void measureLayers(Gpu &gpu) {
  Random random(5);
  Big square({8192, 8192}, kBf16), result({8192, 8192}, kBf16);
  for (const LayerShape &s : kShapes)
    measureWhole(gpu, random, s, 0, square, result);
  for (const LayerShape &s : {kShapes[0], kShapes[1]})
    measureWhole(gpu, random, s, 1, square, result);
}

void measureTraining(Gpu &gpu) {
  Random random(5);
  for (const LayerShape &s : kShapes)
    measureTraining(gpu, random, s);
}

void measureProducts(Gpu &gpu) {
  Random random(5);
  Big square({8192, 8192}, kBf16), result({8192, 8192}, kBf16);
  for (const LayerShape &s : kShapes)
    measureLayer(gpu, random, s, square, result);
}

} // namespace moira::rt::testing
