//===- CudaGradTest.cpp - losses and gradients on the GPU -------------------===//
// Every call of GradCalls.def against the host's reference in double, operands f32 and bf16.
//===----------------------------------------------------------------------===//
#include "CudaAttentionTesting.h"

#include <algorithm>
#include <cmath>

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

/// One call of attention_grad. Queries stand at the end of the keys; the first query of all that
/// has another place sees nothing.
struct AttentionCase {
  int64_t queries, keys, heads, kvHeads, keyDim, valueDim, window;
  bool causal;
  const char *with = "";
  bool ordered = false; // keys in their order, those of the first batch all there; else mixed
  bool has(std::string_view role) const {
    return std::string_view(with).find(role) != std::string_view::npos;
  }
};

class CudaGrad : public CudaTest {
protected:
  Operand t(Shape shape) { return T(random.normal<float>(std::move(shape))); }
  Operand a(Shape shape) { return A(random.normal<float>(std::move(shape))); }
  /// Cotangents in f32 that a product may round to the mode's type without a change.
  Operand known(Shape shape, const Mode &mode) {
    return A(rounded(t(std::move(shape)), mode.dtype).floats());
  }
  void expectAttention(const AttentionCase &c, const Mode &mode);
  Tensor<float> positive(Shape shape) {
    Tensor<float> values = random.normal<float>(std::move(shape));
    for (float &v : values.values)
      v = 0.1f + std::abs(v);
    return values;
  }
};

/// Sums of many rounded terms in f32.
Mode summing(Mode mode) {
  mode.f32Error = 3e-5;
  return mode;
}

TEST_F(CudaGrad, Products) {
  Gpu own(false);
  for (Gpu *device : {gpu.get(), &own})
    for (Mode mode : allModes()) {
      mode = summing(mode);
      auto exact = [&](Shape shape) { return known(std::move(shape), mode); };
      for (auto [m, n, k] :
           {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {70, 33, 65}, {5, 128, 7}}) {
        CallParams one = params({{"contract", 1}}), two = params({{"contract", 2}});
        expectAgrees(*device, "linear_input_grad", {exact({m, n}), t({n, k})}, {A(Shape{m, k})},
                     one, mode);
        expectAgrees(*device, "linear_input_grad", {exact({2, m, n}), t({n, 3, k})},
                     {A(Shape{2, m, 3, k})}, two, mode);
        expectAgrees(*device, "linear_weight_grad", {exact({2, m, n}), t({2, m, 3, k})},
                     {A(Shape{n, 3, k})}, two, mode);
        expectAgrees(*device, "head_weight_grad", {a({m, 3, n}), t({m, 3, k})}, {A(Shape{3, n, k})},
                     {}, mode);
        expectAgrees(*device, "sum_rows", {a({m, n, k})}, {A(Shape{k})}, {}, mode);
        expectAgrees(*device, "embedding_grad", {I(random.ids({m}, 0, 2 * n)), a({m, k})},
                     {A(Shape{n, k})}, params({{"row_offset", n / 2}}), mode);
      }
    }
}

TEST_F(CudaGrad, EmbeddingsOfTokensThatAreEverywhere) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    for (int64_t width : {516, 1030, 33})
      for (auto [tokens, most] : {std::pair<int64_t, int64_t>{5000, 3}, {3000, 400}, {2049, 0}})
        expectAgrees(*gpu, "embedding_grad",
                     {I(random.ids({tokens}, 0, most)), known({tokens, width}, mode)},
                     {A(Shape{300, width})}, params({{"row_offset", most / 8}, {"pad", most / 2}}),
                     mode);
  }
}

TEST_F(CudaGrad, GroupedProducts) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    Tensor<int32_t> groups({1, 5}, {3, 0, 41, 1, 60});
    CallParams one = params({{"contract", 1}});
    for (int64_t rows : {105, 130}) {
      expectAgrees(*gpu, "grouped_input_grad", {t({rows, 2, 20}), I(groups), t({5, 2, 20, 37})},
                   {T(Shape{rows, 37})}, one, mode);
      for (const Operand &result : {A(Shape{5, 2, 20, 37}), T(Shape{5, 2, 20, 37})})
        expectAgrees(*gpu, "grouped_weight_grad", {t({rows, 2, 20}), I(groups), t({rows, 37})},
                     {result}, one, mode);
      expectAgrees(*gpu, "grouped_bias_grad", {t({rows, 2, 20}), I(groups)}, {A(Shape{5, 2, 20})},
                   {}, mode);
    }
  }
}

/// Of which there are enough large tiles: rows, columns and terms that end anywhere, groups that
/// are empty, of one row, and of more than a tile.
TEST_F(CudaGrad, LargeProducts) {
  Gpu own(false);
  for (Mode mode : allModes()) {
    mode = summing(mode);
    CallParams one = params({{"contract", 1}});
    for (auto [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{1025, 37, 1030},
                           {1100, 1, 1024},
                           {900, 16, 1153}}) {
      expectAgrees(own, "linear_input_grad", {a({m, n}), t({n, k})}, {A(Shape{m, k})}, one, mode);
      expectAgrees(own, "linear_weight_grad", {a({n, m}), t({n, k})}, {A(Shape{m, k})}, one, mode);
      expectAgrees(*gpu, "linear_input_grad", {known({m, n}, mode), t({n, k})}, {A(Shape{m, k})},
                   one, mode);
      expectAgrees(*gpu, "linear_weight_grad", {known({n, m}, mode), t({n, k})}, {A(Shape{m, k})},
                   one, mode);
    }
    expectAgrees(*gpu, "head_weight_grad", {a({50, 17, 130}), t({50, 17, 140})},
                 {A(Shape{17, 130, 140})}, {}, mode);
    Tensor<int32_t> groups({1, 40});
    std::fill(groups.values.begin(), groups.values.end(), 3);
    groups.values[0] = groups.values[7] = groups.values[39] = 0;
    groups.values[5] = 1;
    groups.values[33] = 150;
    for (int64_t rows : {258, 300}) {
      expectAgrees(*gpu, "grouped_input_grad", {t({rows, 2, 20}), I(groups), t({40, 2, 20, 37})},
                   {T(Shape{rows, 37})}, one, mode);
      expectAgrees(*gpu, "grouped_weight_grad", {t({rows, 2, 20}), I(groups), t({rows, 137})},
                   {A(Shape{40, 2, 20, 137})}, one, mode);
    }
    expectAgrees(*gpu, "sum_rows", {a({1000, 70})}, {A(Shape{70})}, {}, mode);
  }
  Tensor<int32_t> groups({1, 70});
  std::fill(groups.values.begin(), groups.values.end(), 4);
  for (int32_t wrong : {-1, 200, INT32_MAX}) {
    groups.values[50] = wrong;
    runOnGpu(*gpu, "grouped_weight_grad", {t({280, 20}), I(groups), t({280, 37})},
             {A(Shape{70, 20, 37})}, params({{"contract", 1}}), {.fault = 4});
    runOnGpu(*gpu, "grouped_input_grad", {t({280, 20}), I(groups), t({70, 20, 37})},
             {T(Shape{280, 37})}, params({{"contract", 1}}), {.fault = 4});
  }
}

// What tiles of 128 x 256 results and 64 of depth take, their borders and groups of all sizes
// around them.
TEST_F(CudaGrad, GroupedProductsInTiles) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    CallParams one = params({{"contract", 1}});
    for (auto [n, k] : {std::pair<int64_t, int64_t>{8, 8}, {136, 264}, {64, 520}, {264, 72}}) {
      Tensor<int32_t> groups({1, 9}, {1, 0, 63, 64, 65, 0, 128, 190, 0});
      for (int64_t rows : {511, 600}) {
        expectAgrees(*gpu, "grouped_input_grad", {t({rows, n}), I(groups), t({9, n, k})},
                     {T(Shape{rows, k})}, one, mode);
        for (const Operand &result : {A(Shape{9, n, k}), T(Shape{9, n, k})})
          expectAgrees(*gpu, "grouped_weight_grad", {t({rows, n}), I(groups), t({rows, k})},
                       {result}, one, mode);
      }
    }
    Tensor<int32_t> bad({1, 2}, {70, 71});
    mode.fault = int32_t(4); // groups
    runOnGpu(*gpu, "grouped_weight_grad", {t({140, 8}), I(bad), t({140, 16})}, {A(Shape{2, 8, 16})},
             one, mode);
  }
}

// More tiles than a device has multiprocessors, so that both of a block's warpgroups make several,
// in turns: of few and of many tiles along n.
TEST_F(CudaGrad, WeightsOfManyTiles) {
  Mode mode = summing({.dtype = fb::DType::bf16});
  for (auto [experts, n, k] :
       {std::tuple<int64_t, int64_t, int64_t>{70, 264, 264}, {12, 2200, 264}}) {
    Tensor<int32_t> groups({1, experts});
    int64_t rows = 0;
    for (int32_t &size : groups.values)
      rows += size = random.between(0, 3) ? random.between(1, 1400 / int32_t(experts)) : 0;
    for (const Operand &either : {A(Shape{experts, n, k}), T(Shape{experts, n, k})})
      expectAgrees(*gpu, "grouped_weight_grad", {t({rows, n}), I(groups), t({rows, k})}, {either},
                   params({{"contract", 1}}), mode);
  }
}

// Cotangents in f32 that meet bf16 are rounded in parts as large as the workspace lets them be, and
// the products are those of the rounded ones. What is bf16 already stays as it is. Of the rest each
// changes by up to 2^-8 of its power of two, on average (as a root of squares) by less than 2^-8 /
// √3 of itself, and so do sums of thousands; cut off instead of rounded it would be twice that.
TEST_F(CudaGrad, ProductsInParts) {
  const size_t whole = gpu->context.workspaceBytes;
  for (Mode mode : allModes())
    for (size_t bytes : {size_t(4096), size_t(1) << 17, whole}) {
      gpu->context.workspaceBytes = bytes;
      mode = summing(mode);
      Mode rounding = mode;
      if (mode.dtype == fb::DType::bf16)
        rounding.f32Error += 1 / (256 * std::sqrt(3.0));
      CallParams one = params({{"contract", 1}});
      const Operand dy = a({300, 200});
      for (const auto &[cotangents, as] :
           {std::pair(dy, rounding), std::pair(known({300, 200}, mode), mode)}) {
        expectAgrees(*gpu, "linear_input_grad", {cotangents, t({200, 72})}, {A(Shape{300, 72})},
                     one, as);
        for (const Operand &result : {A(Shape{200, 72}), T(Shape{200, 72})})
          expectAgrees(*gpu, "linear_weight_grad", {cotangents, t({300, 72})}, {result}, one, as);
      }
      expectAgrees(*gpu, "linear_input_grad", {t({300, 200}), t({200, 72})}, {T(Shape{300, 72})},
                   one, mode);
    }
}

TEST_F(CudaGrad, RowsAndElements) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    for (int64_t width : {1, 31, 200}) {
      CallParams norm = params({{"count", width}, {"norm_dims", 1}}, {{"eps", 1e-2}});
      expectAgrees(*gpu, "rms_sums", {a({40, width}), t({40, width}), a({width})},
                   {A(Shape{40}), A(Shape{40})}, params({{"norm_dims", 1}}), mode);
      expectAgrees(*gpu, "rms_norm_grad", {a({40, width}), t({40, width}), a({width})},
                   {A(Shape{40, width}), A(Shape{width})}, norm, mode);
      if (width > 1) // of one element there is no variance
        expectAgrees(*gpu, "layer_norm_grad", {a({40, width}), t({40, width}), a({width})},
                     {A(Shape{40, width}), A(Shape{width}), A(Shape{width})}, norm, mode);
      expectAgrees(*gpu, "clamp_grad", {a({40, width}), t({40, width})}, {A(Shape{40, width})},
                   params({}, {{"min", -0.5}, {"max", 1}}), mode);
      expectAgrees(*gpu, "sigmoid_gate_grad", {t({40, width}), a({40, width}), a({40, 1})},
                   {A(Shape{40, 1})}, {}, mode);
      for (const char *act : {"silu", "gelu", "gelu_tanh", "relu"}) {
        expectAgrees(*gpu, "act_grad", {a({40, width}), t({40, width})}, {A(Shape{40, width})},
                     params({}, {}, {{"activation", act}}), mode);
        expectAgrees(*gpu, "glu_grad", {t({40, width}), t({40, 2, width})},
                     {T(Shape{40, 2, width})}, params({}, {}, {{"activation", act}}), mode);
      }
      expectAgrees(
          *gpu, "glu_grad", {t({40, width}), t({40, 2, width})}, {T(Shape{40, 2, width})},
          params({}, {{"limit", 0.7}, {"alpha", 1.702}, {"up_shift", 1}}, {{"activation", "silu"}}),
          mode);
    }
  }
}

TEST_F(CudaGrad, NormsOfWideRowsAndOfMany) {
  // Rows that a warp holds, that a block holds, and that none does; several rows a group.
  for (Mode mode : allModes()) {
    mode = summing(mode);
    for (auto [rows, width] : std::vector<std::pair<int64_t, int64_t>>{
             {9000, 128}, {70, 1024}, {1100, 1032}, {30, 4104}, {9, 8192}, {9, 8200}}) {
      if (isLeftOut())
        continue;
      CallParams norm = params({{"count", width}, {"norm_dims", 1}}, {{"eps", 1e-2}});
      expectAgrees(*gpu, "rms_norm_grad", {a({rows, width}), t({rows, width}), a({width})},
                   {A(Shape{rows, width}), A(Shape{width})}, norm, mode);
      Tensor<float> squares({rows}), dots({rows}); // as of rows that lie on two ranks
      for (int64_t i = 0; i < rows; ++i) {
        squares.values[size_t(i)] = float(width) * (1 + float(i % 7));
        dots.values[size_t(i)] = float(i % 5) - 2;
      }
      CallParams half = params({{"count", 2 * width}, {"norm_dims", 1}}, {{"eps", 1e-2}});
      expectAgrees(*gpu, "rms_norm_grad",
                   {a({rows, width}), t({rows, width}), a({width}), A(squares), A(dots)},
                   {A(Shape{rows, width}), A(Shape{width})}, half, mode);
      expectAgrees(*gpu, "layer_norm_grad", {a({rows, width}), t({rows, width}), a({width})},
                   {A(Shape{rows, width}), A(Shape{width}), A(Shape{width})}, norm, mode);
    }
  }
}

TEST_F(CudaGrad, Attention) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    for (bool causal : {false, true}) {
      CallParams p =
          params({{"window", causal ? 5 : 0}, {"causal", causal}, {"q_heads", 4}, {"kv_heads", 2}},
                 {{"scale", 0.3}}, {{"with", "q2 k2 bias sinks qpos kpos kmask"}});
      Tensor<int32_t> q({9}), k({12});
      for (int i = 0; i < 12; ++i)
        k.values[size_t(i)] = i;
      for (int i = 0; i < 9; ++i)
        q.values[size_t(i)] = i + 3;
      expectAgrees(*gpu, "attention_grad",
                   {a({2, 9, 4, 300}), t({2, 9, 4, 20}), t({2, 12, 2, 20}), t({2, 12, 2, 300}),
                    t({2, 9, 4, 6}), t({2, 12, 6}), a({4, 9, 12}), a({4}), I(q), I(k),
                    I(random.ids({2, 12}, 0, 1))},
                   {A(Shape{2, 9, 4, 20}), A(Shape{2, 12, 2, 20}), A(Shape{2, 12, 2, 300}),
                    A(Shape{2, 9, 4, 6}), A(Shape{2, 12, 6}), A(Shape{4, 9, 12}), A(Shape{4})},
                   p, mode);
    }
    expectAgrees(*gpu, "relative_bias_grad",
                 {a({3, 20, 30}), I(random.ids({20}, 0, 40)), I(random.ids({30}, 0, 40))},
                 {A(Shape{16, 3})}, params({{"max_distance", 30}, {"bidirectional", 1}}), mode);
  }
}

void CudaGrad::expectAttention(const AttentionCase &c, const Mode &mode) {
  CallParams p = params(
      {{"window", c.window}, {"causal", c.causal}, {"q_heads", c.heads}, {"kv_heads", c.kvHeads}},
      {{"scale", 0.3}});
  Tensor<int32_t> q({c.queries}), k({c.keys}), mask = random.ids({2, c.keys}, 0, 4);
  for (int64_t j = 0; j < c.keys; ++j) {
    k.values[size_t(j)] = int32_t(j);
    if (c.ordered)
      mask.values[size_t(j)] = 1;
  }
  if (!c.ordered)
    std::shuffle(k.values.begin(), k.values.end(), random.engine);
  for (int64_t i = 0; i < c.queries; ++i)
    q.values[size_t(i)] = int32_t(i == 5 ? -1 : i + std::max<int64_t>(0, c.keys - c.queries));
  for (int32_t &seen : mask.values)
    seen = seen > 0;
  std::vector<Operand> in{known({2, c.queries, c.heads, c.valueDim}, mode),
                          t({2, c.queries, c.heads, c.keyDim}), t({2, c.keys, c.kvHeads, c.keyDim}),
                          t({2, c.keys, c.kvHeads, c.valueDim})};
  std::vector<Operand> out{A(Shape{2, c.queries, c.heads, c.keyDim}),
                           A(Shape{2, c.keys, c.kvHeads, c.keyDim}),
                           A(Shape{2, c.keys, c.kvHeads, c.valueDim})};
  if (c.has("bias")) {
    in.push_back(a({c.heads, c.queries, c.keys}));
    out.push_back(A(Shape{c.heads, c.queries, c.keys}));
  }
  if (c.has("sinks")) {
    in.push_back(a({c.heads}));
    out.push_back(A(Shape{c.heads}));
  }
  SCOPED_TRACE(format("%lld queries, %lld keys of %lld", (long long)c.queries, (long long)c.keys,
                      (long long)c.keyDim));
  std::vector<Operand> masked = in, ordered = in;
  masked.insert(masked.end(), {I(q), I(k), I(mask)});
  p.texts["with"] = std::string(c.with) + (*c.with ? " " : "") + kOrderRoles;
  expectAgrees(*gpu, "attention_grad", masked, out, p, mode);
  if (isLeftOut())
    return;
  // Without positions and masks the same bits as where these are in order and hide nothing.
  for (Operand &o : orderOf(2, c.queries, c.keys))
    ordered.push_back(std::move(o));
  const std::vector<Operand> given = runOnGpu(*gpu, "attention_grad", ordered, out, p, mode);
  p.texts["with"] = c.with;
  const std::vector<Operand> without = runOnGpu(*gpu, "attention_grad", in, out, p, mode);
  for (size_t i = 0; i < out.size(); ++i)
    EXPECT_EQ(without[i].floats().values, given[i].floats().values) << "output " << i;
}

/// Heads that fit tiles, with rows past the last whole tile, keys that nobody sees, groups of query
/// heads, and sizes at which the plain kernels take over.
TEST_F(CudaGrad, AttentionByTiles) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    for (const AttentionCase &c : {AttentionCase{64, 64, 2, 2, 60, 64, 0, true},
                                   {70, 130, 4, 2, 20, 33, 0, true},
                                   {33, 40, 3, 1, 127, 128, 9, true, "sinks"},
                                   {100, 65, 2, 2, 80, 16, 0, false, "bias"},
                                   {130, 200, 6, 2, 17, 65, 70, true, "bias sinks"},
                                   {32, 32, 1, 1, 1, 1, 0, false},
                                   {31, 64, 2, 1, 16, 16, 0, true},
                                   {64, 64, 1, 1, 129, 16, 0, true}})
      expectAttention(c, mode);
  }
}

/// What tensor cores take in bf16: the weights and what flows back to the scores are rounded to it.
/// With workspaces that have room for the rounded dy of all heads, of some, and of none.
TEST_F(CudaGrad, AttentionOnTensorCores) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    if (mode.dtype == fb::DType::bf16)
      mode.f32Error = 5e-3;
    for (const AttentionCase &c : {AttentionCase{64, 64, 2, 2, 64, 64, 0, true},
                                   {33, 40, 3, 1, 128, 128, 9, true, "sinks"},
                                   {200, 333, 8, 2, 128, 128, 0, true, "sinks"},
                                   {200, 333, 8, 2, 128, 128, 0, true, "", true},
                                   {257, 300, 4, 4, 64, 64, 100, true, "", true},
                                   {129, 130, 2, 1, 72, 128, 0, false},
                                   {320, 190, 3, 1, 128, 64, 50, true, "sinks", true},
                                   {520, 700, 2, 1, 64, 56, 0, true, "", true},
                                   {700, 450, 2, 2, 8, 16, 0, false, "", true}})
      expectAttention(c, mode);
  }
  Mode mode = summing({.dtype = fb::DType::bf16});
  mode.f32Error = 5e-3;
  for (size_t kilobytes : {40, 100, 150, 220, 300}) {
    gpu->context.workspaceBytes = kilobytes << 10;
    expectAttention({130, 200, 8, 4, 64, 64, 0, true, "", true}, mode);
  }
}

TEST_F(CudaGrad, Routing) {
  for (Mode mode : allModes()) {
    mode = summing(mode);
    Tensor<int32_t> ids({30, 2});
    for (int32_t i = 0; i < 30; ++i) {
      ids.values[size_t(2 * i)] = i % 7;
      ids.values[size_t(2 * i + 1)] = (i + 1 + i % 5) % 7;
    }
    for (const char *score : {"softmax", "sigmoid", "sqrt_softplus", "sparsemixer"})
      for (const char *order : {"score_topk", "topk_score"})
        for (const char *renorm : {"none", "sum"}) {
          bool sparse = std::string_view(score) == "sparsemixer";
          if (sparse && (std::string_view(order) != "score_topk" || *renorm != 'n'))
            continue;
          // A sparsemixer's choices must be near the largest.
          expectAgrees(*gpu, "route_grad", {a({30, 2}), a({30, 7}), I(ids)}, {A(Shape{30, 7})},
                       params({},
                              {{"scale", 1.5},
                               {"renorm_epsilon", 1e-3},
                               {"renorm_clamp_min", 0},
                               {"jitter_eps", sparse ? 1e6 : 0}},
                              {{"score", score}, {"order", order}, {"renorm", renorm}}),
                       mode);
        }
    Tensor<int32_t> kept = ids;
    for (size_t i = 0; i < kept.values.size(); i += 3)
      kept.values[i] = -1;
    for (const char *renorm : {"none", "before", "after"})
      expectAgrees(*gpu, "limit_grad", {a({30, 2}), A(positive({30, 2})), I(kept)},
                   {A(Shape{30, 2})},
                   params({}, {{"scale", 1.5}, {"renorm_epsilon", 1e-2}, {"renorm_clamp_min", 0.3}},
                          {{"renorm", renorm}}),
                   mode);
    expectAgrees(*gpu, "choice_dots", {t({50, 70}), a({30, 70}), I(random.ids({30, 2}, -1, 49))},
                 {A(Shape{30, 2})}, {}, mode);
  }
}

/// The maximum is found while the sums are made: rows of any width, whose largest value stands
/// anywhere, rises all the time, or is far from 0; values that are no numbers make what they make
/// where it is known before.
TEST_F(CudaGrad, MaximumAndStatisticsInOne) {
  auto check = [&](Tensor<float> values, const Mode &mode) {
    const int64_t rows = values.shape[0], width = values.shape[1];
    Tensor<int32_t> labels = random.ids({rows}, 0, width - 1);
    labels.values[0] = rows % 2 ? -100 : 0;
    const std::vector<Operand> in{rounded(T(std::move(values)), mode.dtype), I(labels)},
        out{A(Shape{rows}), A(Shape{rows, 3})};
    const CallParams columns = params({{"classes", width}, {"column_offset", 0}});
    std::vector<std::vector<double>> expected;
    Status s = runOnHost<double>("row_max_stats", in, out, columns, expected);
    ASSERT_TRUE(s.ok()) << s.str();
    const std::vector<Operand> got = runOnGpu(*gpu, "row_max_stats", in, out, columns, mode);
    for (size_t o = 0; o < 2; ++o)
      for (size_t i = 0; i < expected[o].size(); ++i) {
        const double want = expected[o][i], have = got[o].floats().values[i];
        const bool agree = std::isnan(want)   ? std::isnan(have)
                           : std::isinf(want) ? have == want
                                              : std::abs(have - want) <= 1e-5 * std::abs(want);
        EXPECT_TRUE(agree) << have << " for " << want << ": output " << o << " at " << i << " of "
                           << rows << " rows of " << width;
      }
  };
  for (const Mode &mode : allModes()) {
    for (int64_t width : {1, 7, 8, 2048, 8200, 151936, 0, 0, 0, 0, 0, 0})
      for (float slope : {0.0f, 40.0f, -40.0f}) {
        const int64_t rows = random.between(1, 4);
        if (width == 0)
          width = random.between(1, 30000);
        Tensor<float> values = random.normal<float>({rows, width});
        for (size_t i = 0; i < values.values.size(); ++i)
          values.values[i] += slope * float(int64_t(i) % width) / float(width) + 10 * slope;
        check(std::move(values), mode);
      }
    for (int64_t width : {5, 64, 20000}) {
      Tensor<float> values = random.normal<float>({6, width});
      auto row = [&](int64_t r) { return values.values.begin() + r * width; };
      std::fill(row(0), row(1), -INFINITY);
      std::fill(row(1), row(2) - 1, -INFINITY);
      std::fill(row(2), row(2) + width / 2, -INFINITY);
      row(3)[width / 2] = INFINITY;
      row(4)[width / 2] = NAN;
      row(5)[width - 1] = -INFINITY;
      check(std::move(values), mode);
    }
  }
}

TEST_F(CudaGrad, Losses) {
  Mode mode = summing(Mode());
  Tensor<int32_t> labels = random.ids({3, 11}, 0, 96);
  labels.values[4] = -100;
  Tensor<float> stats({3, 11, 3});
  for (size_t i = 0; i < stats.values.size(); ++i)
    stats.values[i] = 1 + float(i % 5);
  // In packs and not, of fewer and more than a block reads at once; with pads, and without a class.
  for (int64_t width : {1, 60, 64, 3000, 5003})
    for (int64_t first : {0, 40, 97})
      for (fb::DType dtype : {fb::DType::f32, fb::DType::bf16}) {
        mode.dtype = dtype;
        CallParams columns =
            params({{"classes", std::max<int64_t>(97, width - 7)}, {"column_offset", first}});
        Operand logits = t({3, 11, width});
        if (first < columns.integer("classes")) {
          expectAgrees(*gpu, "row_max", {logits}, {A(Shape{3, 11})}, columns, mode);
          expectAgrees(*gpu, "row_max_stats", {logits, I(labels)},
                       {A(Shape{3, 11}), A(Shape{3, 11, 3})}, columns, mode);
        } else {
          const std::vector<float> none(33, -INFINITY), zeros(99, 0);
          EXPECT_EQ(runOnGpu(*gpu, "row_max", {logits}, {A(Shape{3, 11})}, columns, mode)[0]
                        .floats()
                        .values,
                    none);
          std::vector<Operand> both =
              runOnGpu(*gpu, "row_max_stats", {logits, I(labels)},
                       {A(Shape{3, 11}), A(Shape{3, 11, 3})}, columns, mode);
          EXPECT_EQ(both[0].floats().values, none);
          EXPECT_EQ(both[1].floats().values, zeros);
        }
        expectAgrees(*gpu, "cross_entropy_stats", {logits, a({3, 11}), I(labels)},
                     {A(Shape{3, 11, 3})}, columns, mode);
        expectAgrees(*gpu, "cross_entropy_stats_grad",
                     {a({3, 11, 3}), logits, a({3, 11}), I(labels)}, {T(Shape{3, 11, width})},
                     columns, mode);
      }
  mode.dtype = fb::DType::f32;
  CallParams smooth = params({{"classes", 97}}, {{"smoothing", 0.1}});
  expectAgrees(*gpu, "cross_entropy", {A(stats), I(labels)}, {A(Shape{1}), A(Shape{1})}, smooth,
               mode);
  expectAgrees(*gpu, "cross_entropy_grad", {a({1}), A(stats), I(labels)}, {A(Shape{3, 11, 3})},
               smooth, mode);
  expectAgrees(*gpu, "ratio", {A(Tensor<float>({2}, {3, 1})), A(Tensor<float>({2}, {4, 0}))},
               {A(Shape{2})}, {}, mode);
  for (int64_t experts : {3, 70}) {
    CallParams tokens = params({{"tokens", 100}});
    expectAgrees(*gpu, "expert_load", {I(random.ids({50, 2}, -1, experts - 1))},
                 {A(Shape{experts})}, {}, mode);
    expectAgrees(*gpu, "expert_probs", {a({50, experts})}, {A(Shape{experts})}, {}, mode);
    expectAgrees(*gpu, "expert_probs_grad", {a({experts}), a({50, experts})},
                 {A(Shape{50, experts})}, {}, mode);
    expectAgrees(*gpu, "balance", {A(positive({experts})), A(positive({experts}))}, {A(Shape{1})},
                 tokens, mode);
    expectAgrees(*gpu, "balance_grad", {a({1}), a({experts})}, {A(Shape{experts})}, tokens, mode);
    CallParams sequences = params({{"sequences", 10}});
    Tensor<int32_t> chosen = random.ids({5, 10, 2}, -1, experts - 1);
    expectAgrees(*gpu, "sequence_balance", {I(chosen), a({5, 10, experts})}, {A(Shape{1})},
                 sequences, mode);
    expectAgrees(*gpu, "sequence_balance_grad", {a({1}), I(chosen), a({5, 10, experts})},
                 {A(Shape{5, 10, experts})}, sequences, mode);
    expectAgrees(*gpu, "router_z", {a({50, experts})}, {A(Shape{1})}, tokens, mode);
    expectAgrees(*gpu, "router_z_grad", {a({1}), a({50, experts})}, {A(Shape{50, experts})}, tokens,
                 mode);
  }
  Tensor<int32_t> given({3, 11});
  for (size_t i = 0; i < given.values.size(); ++i)
    given.values[i] = i % 2 ? INT32_MIN : int32_t(i);
  expectAgrees(*gpu, "next_tokens", {I(random.ids({3, 11}, 0, 96)), I(given)}, {I(Shape{3, 11})},
               {}, mode);
}

// Sums of each sample by itself are the host's. Needs no device: nothing is launched.
TEST(CudaGradBySample, IsRefused) {
  const TensorRef rows{nullptr, fb::DType::f32, {6, 4}}, groups{nullptr, fb::DType::i32, {1, 2}},
      counts{nullptr, fb::DType::i32, {3, 2}}, weights{nullptr, fb::DType::f32, {2, 4, 4}},
      biases{nullptr, fb::DType::f32, {2, 4}}, weight{nullptr, fb::DType::f32, {4, 4}};
  cuda::CallContext context;
  auto refused = [&](std::string_view name, std::vector<TensorRef> in, TensorRef out,
                     CallParams p) {
    Status s = cuda::runCudaCall(name, in, std::vector{out}, p, context);
    EXPECT_NE(s.str().find("MOE-0411"), std::string::npos) << name << ": " << s.str();
    EXPECT_NE(s.str().find("for plans of --deterministic"), std::string::npos) << s.str();
  };
  CallParams one = params({{"contract", 1}});
  refused("grouped_weight_grad", {rows, groups, rows, counts}, weights,
          params({{"contract", 1}}, {}, {{"with", "counts"}}));
  refused("grouped_bias_grad", {rows, groups, counts}, biases, {});
  refused("linear_weight_grad", {rows, rows}, weight, params({{"contract", 1}, {"per_sample", 1}}));
}

} // namespace
