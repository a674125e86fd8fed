//===- CudaSpeedDecode.cpp - how fast one token a sequence is ---------------===//
// Every call of a decode step of Qwen3-30B-A3B's shape, alone and as a layer, in graphs, beside the
// time that a copy takes for the bytes that the call must read. Weights, experts and caches change
// from call to call, so that none of them is in the L2 cache.
//===----------------------------------------------------------------------===//
#include "CudaSpeed.h"

#include <functional>
#include <set>

namespace moira::rt::testing {
namespace {

constexpr int64_t kD = 2048, kHeads = 32, kKvHeads = 4, kHeadDim = 128, kExperts = 128, kK = 8,
                  kF = 768, kVocabulary = 151936, kLayers = 48;
constexpr auto kBf16 = fb::DType::bf16;
const CallParams kContract = params({{"contract", 1}});
/// All inputs of a product but its rows.
constexpr uint32_t kWeights = ~1u;

/// Choices of experts for one call, and how many experts they touch.
struct Choices {
  Choices(Random &random, int64_t tokens)
      : values(random.choices(tokens, kK, kExperts).values), ids({tokens, kK}, values) {
    touched = int64_t(std::set<int32_t>(values.begin(), values.end()).size());
    std::vector<int32_t> counts(static_cast<size_t>(kExperts));
    for (int32_t id : values)
      ++counts[size_t(id)];
    groups = std::make_unique<Big>(Shape{1, kExperts}, counts);
  }
  std::vector<int32_t> values;
  Big ids;
  int64_t touched = 0;
  std::unique_ptr<Big> groups;
};

class Decode {
public:
  Decode(Gpu &gpu, int64_t tokens, int64_t cache, const Big &weights, const Big &keys,
         const Big &values, double copy)
      : gpu(gpu), tokens(tokens), cache(cache), weights(weights), keys(keys), values(values),
        copy(copy) {
    for (int i = 0; i < kSets; ++i)
      choices.push_back(std::make_unique<Choices>(random, tokens));
    std::vector<int32_t> order(static_cast<size_t>(cache));
    for (size_t i = 0; i < order.size(); ++i)
      order[i] = int32_t(i);
    kpos = std::make_unique<Big>(Shape{cache}, order);
    qpos = std::make_unique<Big>(Shape{1}, std::vector<int32_t>{int32_t(cache - 1)});
    mask = std::make_unique<Big>(Shape{tokens, cache},
                                 std::vector<int32_t>(size_t(tokens * cache), 1));
  }

  /// One call `name` in a graph of many, the i-th made by run(i); `bytes` are those of one.
  void alone(const char *name, double bytes, const std::function<void(int)> &run) {
    const int calls = int(std::clamp(4e8 / bytes, double(kSets), 96.0));
    const double us = graphMilliseconds(gpu, 5,
                                        [&] {
                                          for (int i = 0; i < calls; ++i)
                                            run(i);
                                        }) *
                      1e3 / calls;
    std::printf("  %-22s %8.2f us  %8.2f MB  %5.2f of copy\n", name, us, bytes / 1e6,
                bytes / copy / 1e6 / us);
  }

  void all() {
    std::printf("--- decode, %lld tokens, %lld cached ---\n", (long long)tokens, (long long)cache);
    double touched = 0;
    for (const auto &c : choices)
      touched += double(c->touched) / kSets;
    const double t = double(tokens);
    alone("rms_norm", 4 * t * kD, [&](int i) { norm(i); });
    alone("linear q", 2.0 * kD * 4096, [&](int i) { linear(i, x, q, 4096, kD); });
    alone("linear k", 2.0 * kD * 512, [&](int i) { linear(i, x, k, 512, kD); });
    alone("linears q, k, v", 2.0 * kD * 5120, [&](int i) { projections(i); });
    alone("linear o", 2.0 * kD * 4096, [&](int i) { linear(i, q, x, kD, 4096); });
    alone("attention", t * 4 * double(cache * kKvHeads * kHeadDim), [&](int i) { attention(i); });
    alone("linear router", 2.0 * kD * kExperts, [&](int i) { router(i); });
    alone("route", 4 * t * kExperts, [&](int) { route(); });
    alone("select", 4 * t * kD, [&](int i) { select(i); });
    alone("grouped up", touched * 4 * double(kD * kF), [&](int i) { up(i); });
    alone("glu", 6 * t * double(kK * kF), [&](int) { glu(); });
    alone("grouped down", touched * 2 * double(kD * kF), [&](int i) { down(i); });
    alone("combine", 2 * t * double(kK + 1) * kD, [&](int) { combine(); });
    alone("linear head", 2.0 * kD * double(kVocabulary), [&](int i) { head(i); });

    // Neighbours, of which the second may fetch its weights while the first runs.
    const double projected = 2.0 * kD * 5120,
                 attended = t * 4 * double(cache * kKvHeads * kHeadDim);
    alone("norm; q, k, v", projected, [&](int i) { norm(i), projections(i); });
    alone("attention; o", attended + 2.0 * kD * 4096,
          [&](int i) { attention(i), linear(i + 50, q2, y, kD, 4096); });
    alone("select; up", touched * 4 * double(kD * kF), [&](int i) { select(i), up(i); });
    alone("up; glu; down", touched * 6 * double(kD * kF), [&](int i) { up(i), glu(), down(i); });
    alone("down; combine; add", touched * 2 * double(kD * kF),
          [&](int i) { down(i), combine(), add(); });

    const double layerBytes = 2.0 * kD * (2 * 4096 + 2 * 512 + kExperts) +
                              touched * 6 * double(kD * kF) +
                              t * 4 * double(cache * kKvHeads * kHeadDim);
    const int count = 8;
    const double us = graphMilliseconds(gpu, 5,
                                        [&] {
                                          for (int i = 0; i < count; ++i)
                                            layer(i);
                                        }) *
                      1e3 / count;
    const double headUs = graphMilliseconds(gpu, 5, [&] { head(0); }) * 1e3;
    const double step = us * kLayers + headUs,
                 bound = (layerBytes * kLayers + 2.0 * kD * kVocabulary) / copy / 1e6;
    std::printf("  layer %.1f us (%.2f of copy); step of %lld layers and head %.2f ms, %.0f "
                "tokens/s, %.2f of the bound\n",
                us, layerBytes / copy / 1e6 / us, (long long)kLayers, step / 1e3, t / step * 1e6,
                bound / step);
  }

private:
  static constexpr int kSets = 8;

  /// A call of which kernels may read these inputs (CallContext::settled) early: what a plan's step
  /// has before the call does not write them.
  void runSettled(uint32_t inputs, std::string_view name, const std::vector<TensorRef> &in,
                  const std::vector<TensorRef> &out) {
    gpu.context.settled = inputs;
    mustRun(gpu, name, in, out, kContract);
    gpu.context.settled = 0;
  }
  void norm(int i) {
    mustRun(gpu, "rms_norm", {x.ref(), weights.slice({kD}, i)}, {y.ref()},
            params({{"norm_dims", 1}}, {{"eps", 1e-6}}));
  }
  void linear(int i, const Big &from, const Big &to, int64_t n, int64_t depth) {
    runSettled(kWeights, "linear", {from.slice({tokens, depth}, 0), weights.slice({n, depth}, i)},
               {to.slice({tokens, n}, 0)});
  }
  void projections(int i) {
    runSettled(kWeights, "linears",
               {y.slice({tokens, kD}, 0), weights.slice({4096, kD}, i),
                weights.slice({512, kD}, i + 100), weights.slice({512, kD}, i + 200)},
               {q.slice({tokens, 4096}, 0), k.slice({tokens, 512}, 0), v.slice({tokens, 512}, 0)});
  }
  void headNormAndRope(int i, const Big &t, int64_t heads) {
    TensorRef v = t.slice({tokens, 1, heads, kHeadDim}, 0);
    mustRun(gpu, "rms_norm", {v, weights.slice({kHeadDim}, i)}, {v},
            params({{"norm_dims", 1}}, {{"eps", 1e-6}}));
    mustRun(gpu, "rope", {v, cosines.ref(), sines.ref()}, {v}, {});
  }
  void attention(int i) {
    const Shape part{tokens, cache, kKvHeads, kHeadDim};
    mustRun(gpu, "attention",
            {q.slice({tokens, 1, kHeads, kHeadDim}, 0), keys.slice(part, i), values.slice(part, i),
             qpos->ref(), kpos->ref(), mask->ref()},
            {q2.slice({tokens, 1, kHeads, kHeadDim}, 0)},
            params({{"window", 0}, {"q_heads", kHeads}, {"kv_heads", kKvHeads}}, {{"scale", 0.088}},
                   {{"with", "qpos kpos kmask"}}));
  }
  void router(int i) {
    runSettled(kWeights, "linear", {x.slice({tokens, kD}, 0), weights.slice({kExperts, kD}, i)},
               {logits.slice({tokens, kExperts}, 0)});
  }
  void route() {
    mustRun(gpu, "route", {logits.slice({tokens, kExperts}, 0)},
            {ids.slice({tokens, kK}, 0), gateWeights.slice({tokens, kK}, 0)},
            params({}, {{"scale", 1}},
                   {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}));
  }
  void select(int i) {
    mustRun(
        gpu, "select",
        {x.slice({tokens, kD}, 0), choices[size_t(i % kSets)]->ids.ref(), need.ref()},
        {rows.slice({tokens * kK, kD}, 0), groups.ref(), pos.slice({tokens, kK}, 0), needOut.ref()},
        params({{"experts", kExperts}, {"expert_offset", 0}}));
  }
  void up(int i) {
    mustRun(gpu, "grouped_matmul",
            {rows.slice({tokens * kK, kD}, 0), choices[size_t(i % kSets)]->groups->ref(),
             weights.slice({kExperts, 2 * kF, kD}, i)},
            {mid.slice({tokens * kK, 2 * kF}, 0)}, kContract);
  }
  void glu() {
    mustRun(gpu, "glu", {mid.slice({tokens * kK, 2, kF}, 0)}, {act.slice({tokens * kK, kF}, 0)},
            params({}, {}, {{"activation", "silu"}}));
  }
  void down(int i) {
    runSettled(kWeights, "grouped_matmul",
               {act.slice({tokens * kK, kF}, 0), choices[size_t(i % kSets)]->groups->ref(),
                weights.slice({kExperts, kD, kF}, i)},
               {rows.slice({tokens * kK, kD}, 0)});
  }
  void combine() {
    mustRun(gpu, "combine",
            {rows.slice({tokens * kK, kD}, 0), pos.slice({tokens, kK}, 0),
             gateWeights.slice({tokens, kK}, 0)},
            {y.ref()}, {});
  }
  void head(int i) {
    runSettled(kWeights, "linear", {x.slice({tokens, kD}, 0), weights.slice({kVocabulary, kD}, i)},
               {out.slice({tokens, kVocabulary}, 0)});
  }
  void add() { mustRun(gpu, "add", {x.ref(), y.ref()}, {y.ref()}, {}); }
  void layer(int i) {
    norm(i);
    projections(i);
    headNormAndRope(i, q, kHeads);
    headNormAndRope(i, k, kKvHeads);
    attention(i);
    linear(i + 50, q2, y, kD, 4096);
    add();
    norm(i);
    router(i);
    route();
    select(i);
    up(i);
    glu();
    down(i);
    combine();
    add();
  }

  Gpu &gpu;
  int64_t tokens, cache;
  const Big &weights, &keys, &values;
  double copy;
  Random random{11};
  std::vector<std::unique_ptr<Choices>> choices;
  std::unique_ptr<Big> kpos, qpos, mask;
  Big x{{tokens, kD}, kBf16}, y{{tokens, kD}, kBf16}, q{{tokens, 4096}, kBf16},
      q2{{tokens, 4096}, kBf16}, k{{tokens, 512}, kBf16}, v{{tokens, 512}, kBf16},
      rows{{tokens * kK, kD}, kBf16}, mid{{tokens * kK, 2 * kF}, kBf16},
      act{{tokens * kK, kF}, kBf16}, out{{tokens, kVocabulary}, kBf16};
  Big logits{{tokens, kExperts}, fb::DType::f32}, gateWeights{{tokens, kK}, fb::DType::f32},
      cosines{{1, kHeadDim / 2}, fb::DType::f32}, sines{{1, kHeadDim / 2}, fb::DType::f32};
  Big ids{{tokens, kK}, std::vector<int32_t>(size_t(tokens * kK))},
      pos{{tokens, kK}, std::vector<int32_t>(size_t(tokens * kK))},
      groups{{1, kExperts}, std::vector<int32_t>(size_t(kExperts))}, need{{1}, {0}},
      needOut{{1}, {0}};
};

} // namespace

void measureDecode(Gpu &gpu, std::initializer_list<int64_t> tokens,
                   std::initializer_list<int64_t> tokensOfLongCaches) {
  const double copy = copyRate(gpu);
  std::printf("copy %.2f TB/s\n", copy);
  // Two layers' experts, and more than the L2 cache of anything smaller.
  Big weights({2, kExperts, 2 * kF, kD}, kBf16), keys({int64_t(3) << 29}, kBf16),
      values({int64_t(3) << 29}, kBf16);
  for (int64_t t : tokens)
    Decode(gpu, t, 1024, weights, keys, values, copy).all();
  for (int64_t t : tokensOfLongCaches)
    Decode(gpu, t, 8192, weights, keys, values, copy).all();
}

} // namespace moira::rt::testing
