//===- CudaCallsTest.cpp - dense and element-wise CUDA calls ----------------===//
// Every call gives what the host's reference gives in double precision, on random shapes, in f32
// and bf16, with operands on and off their alignment. Routing and expert rows are in
// CudaExpertsTest.cpp.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaCalls : public CudaTest {};

TEST_F(CudaCalls, EmbeddingTakesOnlyRowsOfItsShard) {
  for (Mode mode : allModes()) {
    mode.exact = true;
    for (int64_t width : {1, 7, 64, 200}) {
      Operand table = T(random.normal<float>({10, width}));
      Tensor<int64_t> wide({3, 11});
      for (int64_t &id : wide.values)
        id = random.between(0, 29);
      wide.values[0] = -1;
      wide.values[1] = INT64_MAX;
      wide.values[2] = INT64_MIN;
      CallParams p = params({{"row_offset", 10}});
      expectAgrees(*gpu, "embedding", {I(wide), table}, {T(Shape{3, 11, width})}, p, mode);
      expectAgrees(*gpu, "embedding", {I(random.ids({5}, -3, 25)), table}, {T(Shape{5, width})}, p,
                   mode);
    }
    // A bf16 table, f32 activations.
    expectAgrees(
        *gpu, "embedding",
        {I(random.ids({50}, 0, 9)), rounded(T(random.normal<float>({10, 33})), mode.dtype)},
        {A(Shape{50, 33})}, params({{"row_offset", 0}}), mode);
  }
}

TEST_F(CudaCalls, PositionsStartAtTheShard) {
  expectAgrees(*gpu, "positions", {}, {I(Shape{3000})}, params({{"start", 12}}), {});
}

TEST_F(CudaCalls, RopeTableRoundsAsTheHostDoes) {
  // Angles reach thousands, so an angle that is off by one unit in the last place already shows.
  Mode mode{.hostFloat = true, .f32Error = 1e-6};
  expectAgrees(*gpu, "rope_table", {I(random.ids({500}, 0, 8191))},
               {A(Shape{500, 64}), A(Shape{500, 64})}, ropeParams(10000, 128), mode);
  expectAgrees(*gpu, "rope_table", {I(random.ids({70}, 0, 40000))},
               {A(Shape{70, 8}), A(Shape{70, 8})}, ropeParams(1e6, 16, 1.375), mode);
  // More frequencies than one launch takes.
  expectAgrees(*gpu, "rope_table", {I(random.ids({9}, 0, 4000))},
               {A(Shape{9, 600}), A(Shape{9, 600})}, ropeParams(1e4, 1200), mode);
}

TEST_F(CudaCalls, LinearWithAndWithoutCublas) {
  Gpu own(false);
  for (Mode mode : allModes())
    for (Gpu *device : {gpu.get(), &own})
      for (int i = 0; i < 12; ++i) {
        int64_t b = random.between(1, 3), s = random.between(1, 100), n1 = random.between(1, 5),
                n2 = random.between(1, 70), k1 = random.between(1, 3), k2 = random.between(1, 130);
        if (i % 3 == 0) { // what tensor cores like
          n2 = n2 / 8 * 8 + 8;
          k2 = k2 / 8 * 8 + 8;
        }
        Operand x = T(random.normal<float>({b, s, k1, k2})),
                w = T(random.normal<float>({n1, n2, k1, k2}));
        CallParams p = params({{"contract", 2}});
        expectAgrees(*device, "linear", {x, w}, {T(Shape{b, s, n1, n2})}, p, mode);
        expectAgrees(*device, "linear", {x, w}, {A(Shape{b, s, n1, n2})}, p, mode);
      }
}

TEST_F(CudaCalls, LinearIsNotTF32) {
  // Values that TF32 would round away: 1 + 2^-15 in every place.
  Tensor<float> x({64, 256}), w({64, 256});
  std::fill(x.values.begin(), x.values.end(), 1 + std::ldexp(1.0f, -15));
  std::fill(w.values.begin(), w.values.end(), 1.0f);
  Mode mode;
  mode.f32Error = 1e-6;
  expectAgrees(*gpu, "linear", {T(x), T(w)}, {T(Shape{64, 64})}, params({{"contract", 1}}), mode);
}

TEST_F(CudaCalls, LinearOfNothing) {
  for (Mode mode : allModes()) {
    expectAgrees(*gpu, "linear", {T(Shape{2, 0}), T(Shape{3, 0})}, {T(Shape{2, 3})},
                 params({{"contract", 1}}), mode);
    expectAgrees(*gpu, "linear", {T(Shape{0, 4}), T(Shape{3, 4})}, {T(Shape{0, 3})},
                 params({{"contract", 1}}), mode);
  }
}

TEST_F(CudaCalls, NormsOfNarrowAndWideRows) {
  for (Mode mode : allModes())
    for (int64_t width : {1, 16, 31, 128, 1000, 1024, 1025, 2048, 5000}) {
      int64_t rows = random.between(1, 40);
      Operand x = T(random.normal<float>({2, rows, width})), w = T(random.normal<float>({width}));
      expectAgrees(*gpu, "rms_norm", {x, w}, {T(Shape{2, rows, width})},
                   params({{"norm_dims", 1}}, {{"eps", 1e-5}}), mode);
      expectAgrees(*gpu, "sum_squares", {x}, {A(Shape{2, rows})}, params({{"norm_dims", 1}}), mode);
      Tensor<float> sums = random.normal<float>({2, rows});
      for (float &v : sums.values)
        v = std::abs(v) * float(width);
      expectAgrees(*gpu, "rms_apply", {x, A(sums), w}, {T(Shape{2, rows, width})},
                   params({{"norm_dims", 1}, {"count", 2 * width}}, {{"eps", 1e-6}}), mode);
    }
  expectAgrees(*gpu, "rms_norm",
               {T(random.normal<float>({7, 3, 40})), T(random.normal<float>({3, 40}))},
               {T(Shape{7, 3, 40})}, params({{"norm_dims", 2}}, {{"eps", 1e-5}}), {});
}

TEST_F(CudaCalls, LayerNormsOfNarrowAndWideRows) {
  for (Mode mode : allModes())
    for (int64_t width : {1, 16, 31, 1000, 1024, 1025, 5000}) {
      int64_t rows = random.between(1, 40);
      Operand x = T(random.normal<float>({2, rows, width})), w = T(random.normal<float>({width})),
              b = T(random.normal<float>({width}));
      CallParams p = params({{"norm_dims", 1}}, {{"eps", 1e-5}});
      expectAgrees(*gpu, "layer_norm", {x, w, b}, {T(Shape{2, rows, width})}, p, mode);
      expectAgrees(*gpu, "layer_norm", {x, w}, {T(Shape{2, rows, width})}, p, mode);
      // f32 activations beside weights of the compute type.
      expectAgrees(*gpu, "layer_norm", {A(random.normal<float>({2, rows, width})), w, b},
                   {T(Shape{2, rows, width})}, p, mode);
    }
}

TEST_F(CudaCalls, ElementwiseCalls) {
  for (Mode mode : allModes()) {
    int64_t b = random.between(1, 4), s = random.between(1, 70), d = random.between(1, 300);
    Operand x = T(random.normal<float>({b, s, d}));
    expectAgrees(*gpu, "add", {x, T(random.normal<float>({d}))}, {T(Shape{b, s, d})}, {}, mode);
    expectAgrees(*gpu, "add", {x, T(random.normal<float>({s, d}))}, {T(Shape{b, s, d})}, {}, mode);
    expectAgrees(*gpu, "add", {x, T(random.normal<float>({b, s, d}))}, {T(Shape{b, s, d})}, {},
                 mode);
    expectAgrees(*gpu, "clamp", {x}, {T(Shape{b, s, d})},
                 params({}, {{"min", -0.5}, {"max", 0.75}}), mode);
    expectAgrees(*gpu, "sigmoid_gate", {x, T(random.normal<float>({b, s, 1}))}, {T(Shape{b, s, d})},
                 {}, mode);
    expectAgrees(*gpu, "scale", {x}, {T(Shape{b, s, d})}, params({}, {{"factor", 0.22}}), mode);
    expectAgrees(*gpu, "scale", {x}, {A(Shape{b, s, d})}, params({}, {{"factor", -3}}), mode);
    expectAgrees(
        *gpu, "glu", {T(random.normal<float>({b, s, 2, d}))}, {T(Shape{b, s, d})},
        params({}, {{"limit", 0.75}, {"alpha", 1.702}, {"up_shift", 1}}, {{"activation", "silu"}}),
        mode);
    for (const char *activation : {"silu", "gelu", "gelu_tanh", "relu"})
      expectAgrees(*gpu, "act", {x}, {T(Shape{b, s, d})},
                   params({}, {}, {{"activation", activation}}), mode);
    for (const char *activation : {"silu", "gelu", "gelu_tanh", "relu"})
      expectAgrees(*gpu, "glu", {T(random.normal<float>({b, s, 2, d}))}, {T(Shape{b, s, d})},
                   params({}, {}, {{"activation", activation}}), mode);
  }
}

TEST_F(CudaCalls, ClampKeepsNaN) {
  Tensor<float> x({3}, {NAN, -9, 9});
  std::vector<Operand> got =
      runOnGpu(*gpu, "clamp", {T(x)}, {T(Shape{3})}, params({}, {{"min", -1}, {"max", 1}}), {});
  EXPECT_TRUE(std::isnan(got[0].floats().values[0]));
  EXPECT_EQ(got[0].floats().values[1], -1);
  EXPECT_EQ(got[0].floats().values[2], 1);
}

TEST_F(CudaCalls, RopeRotatesHalvesAndPassesTheRest) {
  for (Mode mode : allModes())
    for (auto [d, r] : {std::pair<int64_t, int64_t>{128, 64}, {64, 16}, {5, 2}, {7, 3}}) {
      Shape shape{2, random.between(1, 50), random.between(1, 9), d};
      expectAgrees(*gpu, "rope",
                   {T(random.normal<float>(shape)), A(random.normal<float>({shape[1], r})),
                    A(random.normal<float>({shape[1], r}))},
                   {T(shape)}, {}, mode);
    }
}

struct AttentionCase {
  int64_t headDim, queries, keys, heads = 4, kvHeads = 2, window = 0;
  bool masked = false, shuffled = false;
};

void checkAttention(Gpu &gpu, Random &random, const AttentionCase &c, const Mode &mode) {
  int64_t batch = 2;
  Tensor<int32_t> qpos({c.queries}), kpos({c.keys}), mask({batch, c.keys});
  for (int64_t i = 0; i < c.queries; ++i)
    qpos.values[size_t(i)] = int32_t(c.keys - c.queries + i);
  for (int64_t j = 0; j < c.keys; ++j)
    kpos.values[size_t(j)] = int32_t(j);
  if (c.shuffled) {
    std::shuffle(qpos.values.begin(), qpos.values.end(), random.engine);
    std::shuffle(kpos.values.begin(), kpos.values.end(), random.engine);
  }
  for (int32_t &m : mask.values)
    m = c.masked ? int32_t(random.between(0, 3) > 0) : 1;
  if (c.masked) // a whole tile of keys is masked
    for (int64_t j = 0; j < std::min<int64_t>(c.keys, 70); ++j)
      mask.values[size_t(j)] = 0;
  expectAgrees(gpu, "attention",
               {T(random.normal<float>({batch, c.queries, c.heads, c.headDim})),
                T(random.normal<float>({batch, c.keys, c.kvHeads, c.headDim})),
                T(random.normal<float>({batch, c.keys, c.kvHeads, c.headDim})), I(qpos), I(kpos),
                I(mask)},
               {T(Shape{batch, c.queries, c.heads, c.headDim})},
               params({{"window", c.window},
                       {"q_heads", c.heads},
                       {"kv_heads", c.kvHeads},
                       {"head_offset", 0},
                       {"kv_offset", 0}},
                      {{"scale", 1 / std::sqrt(double(c.headDim))}}, {{"with", "qpos kpos kmask"}}),
               mode);
}

TEST_F(CudaCalls, AttentionOfEveryHeadDimension) {
  for (Mode mode : allModes())
    for (int64_t d : {8, 16, 24, 40, 64, 80, 96, 128, 136, 192, 256, 7, 33, 130, 255, 264, 320})
      checkAttention(*gpu, random, {.headDim = d, .queries = 70, .keys = 70}, mode);
}

TEST_F(CudaCalls, AttentionSeesWhatPositionsMaskAndWindowAllow) {
  for (Mode mode : allModes())
    for (int64_t d : {16, 128, 200, 300})
      for (int64_t window : {0, 1, 9, 100})
        for (bool masked : {false, true})
          for (bool shuffled : {false, true})
            checkAttention(*gpu, random,
                           {.headDim = d,
                            .queries = random.between(1, 150),
                            .keys = random.between(150, 200),
                            .heads = d > 128 ? 2 : 4,
                            .kvHeads = d > 128 ? 1 : 2,
                            .window = window,
                            .masked = masked,
                            .shuffled = shuffled},
                           mode);
  Mode bf16{.dtype = fb::DType::bf16};
  checkAttention(*gpu, random, {.headDim = 128, .queries = 1, .keys = 1}, bf16);
  checkAttention(*gpu, random, {.headDim = 128, .queries = 1, .keys = 300}, bf16);
  checkAttention(*gpu, random,
                 {.headDim = 64, .queries = 500, .keys = 500, .heads = 3, .kvHeads = 3}, bf16);
}

TEST_F(CudaCalls, AttentionAtTheEndsOfPositions) {
  // Differences of positions leave i32; query 0 sees no key and gives zeros.
  for (Mode mode : allModes())
    for (int64_t window : {int64_t(0), int64_t(2), int64_t(1) << 40})
      for (int64_t d : {8, 264})
        expectAgrees(
            *gpu, "attention",
            {T(random.normal<float>({1, 3, 1, d})), T(random.normal<float>({1, 4, 1, d})),
             T(random.normal<float>({1, 4, 1, d})), I(Tensor<int32_t>({3}, {-5, 5, INT32_MAX})),
             I(Tensor<int32_t>({4}, {3, 4, 5, 7})), I(Tensor<int32_t>({1, 4}, {1, 1, 1, 1}))},
            {T(Shape{1, 3, 1, d})},
            params({{"window", window}, {"q_heads", 1}, {"kv_heads", 1}}, {{"scale", 1}},
                   {{"with", "qpos kpos kmask"}}),
            mode);
  expectAgrees(*gpu, "attention",
               {T(random.normal<float>({1, 2, 1, 8})), T(random.normal<float>({1, 2, 1, 8})),
                T(random.normal<float>({1, 2, 1, 8})),
                I(Tensor<int32_t>({2}, {INT32_MIN, INT32_MAX})),
                I(Tensor<int32_t>({2}, {INT32_MIN, 0})), I(Tensor<int32_t>({1, 2}, {1, 1}))},
               {T(Shape{1, 2, 1, 8})},
               params({{"window", int64_t(1) << 31}, {"q_heads", 1}, {"kv_heads", 1}},
                      {{"scale", 1}}, {{"with", "qpos kpos kmask"}}),
               {});
}

TEST_F(CudaCalls, AttentionMapsQueryHeadsToTheirKeyHeads) {
  // 8 query heads share 4 key/value heads; this rank has query heads 4..7 and key/value heads 1..3.
  Operand q = T(random.normal<float>({1, 5, 4, 16})), k = T(random.normal<float>({1, 6, 3, 16})),
          v = T(random.normal<float>({1, 6, 3, 16}));
  Operand qpos = I(Tensor<int32_t>({5}, {1, 2, 3, 4, 5}));
  CallParams p = params({{"q_heads", 8}, {"kv_heads", 4}, {"head_offset", 4}, {"kv_offset", 1}},
                        {{"scale", 0.25}}, {{"with", "qpos"}});
  for (Mode mode : allModes())
    expectAgrees(*gpu, "attention", {q, k, v, qpos}, {T(Shape{1, 5, 4, 16})}, p, mode);
  p.integers["kv_offset"] = 3; // head 4 would read before the first row
  TensorRef nothing{nullptr, fb::DType::f32, {1, 5, 4, 16}};
  TensorRef keys{nullptr, fb::DType::f32, {1, 6, 3, 16}}, ints{nullptr, fb::DType::i32, {5}};
  EXPECT_FALSE(cuda::runCudaCall("attention", std::vector{nothing, keys, keys, ints},
                                 std::vector{nothing}, p, gpu->context)
                   .ok());
}

TEST_F(CudaCalls, ChecksWhatTheHostKnows) {
  TensorRef f64{nullptr, fb::DType::f64, {2, 2}}, f32{nullptr, fb::DType::f32, {2, 2}};
  Status s = cuda::runCudaCall("linear", std::vector{f64, f64}, std::vector{f64},
                               params({{"contract", 1}}), gpu->context);
  EXPECT_NE(s.str().find("no version of call 'linear' for f64"), std::string::npos) << s.str();
  s = cuda::runCudaCall("linear", std::vector{f32}, std::vector{f32}, {}, gpu->context);
  EXPECT_NE(s.str().find("operand 'w' is missing"), std::string::npos) << s.str();
  s = cuda::runCudaCall("multiply", {}, {}, {}, gpu->context);
  EXPECT_NE(s.str().find("no call 'multiply'"), std::string::npos) << s.str();
}

TEST_F(CudaCalls, BlocksSplitAndJoin) {
  for (Mode mode : allModes()) {
    mode.exact = true;
    for (int64_t d : {1, 3, 8})
      for (int64_t blocks : {1, 2, 4}) {
        CallParams p = params({{"blocks", blocks}, {"dim", 1}});
        Operand x = T(random.normal<float>({5, 4 * 3, d}));
        expectAgrees(*gpu, "split_blocks", {x}, {T(Shape{5 * blocks, 12 / blocks, d})}, p, mode);
        Operand y = T(random.normal<float>({5 * blocks, 12 / blocks, d}));
        expectAgrees(*gpu, "join_blocks", {y}, {T(Shape{5, 12, d})}, p, mode);
      }
    expectAgrees(*gpu, "split_blocks", {T(random.normal<float>({2, 3, 4, 6}))},
                 {T(Shape{6, 3, 4, 2})}, params({{"blocks", 3}, {"dim", 3}}), mode);
    expectAgrees(*gpu, "join_blocks", {I(random.ids({6, 3, 2}, -1, 99))}, {I(Shape{2, 9, 2})},
                 params({{"blocks", 3}, {"dim", 1}}), mode);
  }
}

} // namespace
