//===- CudaAttentionTest.cpp - attention's optional parts on a GPU ----------===//
// Every kernel (tiles in bf16 and f32, and the plain one) with every combination of the optional
// operands gives what the host's reference gives, and without positions and masks what it gives in
// order. What every attention does is in
// CudaCallsTest.cpp.
//===----------------------------------------------------------------------===//
#include "CudaAttentionTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaAttention : public CudaTest {};

struct Case {
  int64_t keyDim, valueDim, sharedDim = 0; // 0: no q2
  int64_t queries = 70, keys = 150, heads = 4, kvHeads = 2, window = 0;
  bool bias = false, sinks = false, causal = true;
};

void check(Gpu &gpu, Random &random, const Case &c, const Mode &mode) {
  int64_t batch = 2;
  Tensor<int32_t> qpos({c.queries}), kpos({c.keys}), mask({batch, c.keys});
  for (int64_t i = 0; i < c.queries; ++i)
    qpos.values[size_t(i)] = int32_t(c.keys - c.queries + i);
  for (int64_t j = 0; j < c.keys; ++j)
    kpos.values[size_t(j)] = int32_t(j);
  for (int32_t &m : mask.values)
    m = int32_t(random.between(0, 5) > 0);
  std::vector<Operand> in{T(random.normal<float>({batch, c.queries, c.heads, c.keyDim})),
                          T(random.normal<float>({batch, c.keys, c.kvHeads, c.keyDim})),
                          T(random.normal<float>({batch, c.keys, c.kvHeads, c.valueDim}))};
  std::string with;
  auto add = [&](const char *role, Operand operand) {
    with += std::string(with.empty() ? "" : " ") + role;
    in.push_back(std::move(operand));
  };
  if (c.sharedDim) {
    add("q2", T(random.normal<float>({batch, c.queries, c.heads, c.sharedDim})));
    add("k2", T(random.normal<float>({batch, c.keys, c.sharedDim})));
  }
  if (c.bias)
    add("bias", A(random.normal<float>({c.heads, c.queries, c.keys})));
  if (c.sinks)
    add("sinks", A(random.normal<float>({c.heads})));
  add("qpos", I(qpos));
  add("kpos", I(kpos));
  add("kmask", I(mask));
  CallParams p = params({{"window", c.window},
                         {"causal", c.causal},
                         {"q_heads", c.heads},
                         {"kv_heads", c.kvHeads},
                         {"head_offset", 0},
                         {"kv_offset", 0}},
                        {{"scale", 1 / std::sqrt(double(c.keyDim + c.sharedDim))}});
  p.texts["with"] = with;
  SCOPED_TRACE(format("keys of %lld+%lld, values of %lld, with '%s'", (long long)c.keyDim,
                      (long long)c.sharedDim, (long long)c.valueDim, with.c_str()));
  expectAgrees(gpu, "attention", in, {T(Shape{batch, c.queries, c.heads, c.valueDim})}, p, mode);
}

TEST_F(CudaAttention, EveryCombinationOfOptionalParts) {
  for (Mode mode : allModes())
    for (int64_t d : {16, 40, 128, 300})
      for (int i = 0; i < 16; ++i)
        check(*gpu, random,
              {.keyDim = d,
               .valueDim = d,
               .sharedDim = i & 1 ? 24 : 0,
               .queries = random.between(1, 100),
               .keys = random.between(100, 200),
               .window = i & 8 ? 0 : 37,
               .bias = (i & 2) != 0,
               .sinks = (i & 4) != 0,
               .causal = (i & 8) == 0},
              mode);
}

TEST_F(CudaAttention, KeysAndValuesOfDifferentWidths) {
  // 128 + 64 keys and 128 values are DeepSeek's; 512 + 64 and 512 those of its latent cache.
  for (Mode mode : allModes()) {
    for (auto [keys, shared, values] : {std::array<int64_t, 3>{128, 64, 128},
                                        {32, 16, 32},
                                        {16, 16, 24},
                                        {7, 5, 9},
                                        {64, 0, 192},
                                        {200, 0, 8},
                                        {24, 40, 200},
                                        {120, 8, 136},
                                        {250, 8, 16},
                                        {9, 8, 8}})
      check(*gpu, random, {.keyDim = keys, .valueDim = values, .sharedDim = shared}, mode);
    check(*gpu, random,
          {.keyDim = 512, .valueDim = 512, .sharedDim = 64, .queries = 1, .heads = 4, .kvHeads = 1},
          mode);
  }
}

TEST_F(CudaAttention, KeysWithoutHeadsAreOneHead) {
  for (Mode mode : allModes())
    for (int64_t d : {64, 512})
      expectAgrees(*gpu, "attention",
                   {T(random.normal<float>({2, 3, 4, d})), T(random.normal<float>({2, 70, d})),
                    T(random.normal<float>({2, 70, d})), I(random.ids({3}, 30, 80)),
                    I(random.ids({70}, 0, 69)), I(random.ids({2, 70}, 0, 3))},
                   {T(Shape{2, 3, 4, d})},
                   params({{"window", 0}, {"q_heads", 4}, {"kv_heads", 1}}, {{"scale", 0.1}},
                          {{"with", kOrderRoles}}),
                   mode);
}

TEST_F(CudaAttention, FewQueriesOverManyKeys) {
  for (Mode mode : allModes()) {
    for (int64_t d : {64, 80, 128, 256})
      for (auto [heads, kvHeads] : {std::pair<int64_t, int64_t>{8, 1}, {8, 2}, {3, 3}, {40, 2}})
        check(*gpu, random,
              {.keyDim = d,
               .valueDim = d,
               .queries = 1,
               .keys = random.between(1, 2000),
               .heads = heads,
               .kvHeads = kvHeads,
               .window = random.between(0, 1) * 300,
               .sinks = random.between(0, 1) == 1},
              mode);
    for (int64_t d : {64, 128, 256}) // enough keys for the largest clusters
      check(*gpu, random,
            {.keyDim = d,
             .valueDim = d,
             .queries = 1,
             .keys = random.between(2100, 2700),
             .heads = 16,
             .kvHeads = 2,
             .sinks = d == 64},
            mode);
    for (auto [heads, keys] : {std::pair<int64_t, int64_t>{70, 160}, {90, 17}, {67, 900}})
      check(*gpu, random, // more heads than multiprocessors
            {.keyDim = 128,
             .valueDim = 128,
             .queries = 1,
             .keys = keys,
             .heads = heads,
             .kvHeads = heads,
             .window = random.between(0, 1) * 90,
             .sinks = keys == 900},
            mode);
    for (int64_t queries : {2, 3, 4})
      check(*gpu, random,
            {.keyDim = 128,
             .valueDim = 96,
             .sharedDim = queries == 3 ? 64 : 0,
             .queries = queries,
             .keys = 1000,
             .heads = 8,
             .kvHeads = 2,
             .bias = true,
             .causal = queries != 2},
            mode);
  }
}

TEST_F(CudaAttention, ManyQueriesOverManyKeys) {
  Mode bf16{.dtype = fb::DType::bf16};
  for (auto [keys, shared, values] : {std::array<int64_t, 3>{128, 0, 128},
                                      {64, 0, 64},
                                      {128, 64, 128},
                                      {64, 24, 40},
                                      {96, 0, 80},
                                      {192, 0, 64}})
    for (bool causal : {true, false})
      check(*gpu, random,
            {.keyDim = keys,
             .valueDim = values,
             .sharedDim = shared,
             .queries = random.between(250, 400),
             .keys = random.between(500, 700),
             .heads = 6,
             .kvHeads = 2,
             .window = random.between(0, 1) * 200,
             .sinks = random.between(0, 1) == 1,
             .causal = causal},
            bf16);
}

TEST_F(CudaAttention, WithoutPositionsAndMasksIsInOrder) {
  // The same bits as with those operands, whichever are left out.
  for (Mode mode : allModes())
    for (int64_t d : {64, 128, 200, 300})
      for (auto [queries, keys] :
           {std::pair<int64_t, int64_t>{1, 90}, {3, 70}, {70, 70}, {300, 400}})
        for (int64_t window : {0, 40}) {
          if (isLeftOut())
            continue;
          SCOPED_TRACE(format("%lld queries, %lld keys of %lld", (long long)queries,
                              (long long)keys, (long long)d));
          CallParams p = params({{"window", window}, {"q_heads", 4}, {"kv_heads", 2}},
                                {{"scale", 1 / std::sqrt(double(d))}});
          const std::vector<Operand> in{T(random.normal<float>({2, queries, 4, d})),
                                        T(random.normal<float>({2, keys, 2, d})),
                                        T(random.normal<float>({2, keys, 2, d}))},
              order = orderOf(2, queries, keys), out{T(Shape{2, queries, 4, d})};
          auto resultWith = [&](unsigned which) { // a bit an operand
            std::vector<Operand> given = in;
            p.texts.clear();
            for (unsigned i = 0; i < 3; ++i)
              if (which >> i & 1) {
                constexpr const char *roles[] = {"qpos", "kpos", "kmask"};
                std::string &with = p.texts["with"];
                with += (with.empty() ? "" : " ") + std::string(roles[i]);
                given.push_back(order[i]);
              }
            return runOnGpu(*gpu, "attention", given, out, p, mode)[0].floats().values;
          };
          const std::vector<float> expected = resultWith(7);
          for (unsigned which : {0, 1, 2, 4})
            EXPECT_EQ(resultWith(which), expected) << which;
        }
}

TEST_F(CudaAttention, WhatNoQuerySeesIsNotRead) {
  // Few queries: what lies behind the filled part of a cache may be anything.
  Tensor<float> k = random.normal<float>({2, 600, 2, 64}),
                v = random.normal<float>({2, 600, 2, 64});
  Tensor<int32_t> kpos({600}), mask({2, 600});
  for (int32_t j = 0; j < 600; ++j)
    kpos.values[size_t(j)] = j;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t j = 0; j < 600; ++j)
      mask.values[size_t(b * 600 + j)] = j >= 100 * b && j % 7 != 3;
  std::vector<Operand> in{T(random.normal<float>({2, 1, 8, 64})), T(k),    T(v),
                          I(Tensor<int32_t>({1}, {300})),         I(kpos), I(mask)};
  for (Operand &o : in)
    o = rounded(std::move(o), fb::DType::bf16);
  CallParams p = params({{"window", 0}, {"q_heads", 8}, {"kv_heads", 2}}, {{"scale", 0.125}},
                        {{"with", kOrderRoles}});
  std::vector<std::vector<double>> expected;
  ASSERT_TRUE(runOnHost<double>("attention", in, {T(Shape{2, 1, 8, 64})}, p, expected).ok());
  for (size_t operand : {1, 2})
    for (int64_t at = 0; at < 2 * 600; ++at)
      if (at % 600 > 300 || !mask.values[size_t(at)])
        for (int64_t d = 0; d < 128; ++d)
          std::get<Tensor<float>>(in[operand].tensor).values[size_t(at * 128 + d)] = NAN;
  std::vector<Operand> got =
      runOnGpu(*gpu, "attention", in, {T(Shape{2, 1, 8, 64})}, p, {.dtype = fb::DType::bf16});
  EXPECT_LE(normError(got[0].floats(), expected[0]), 1e-2);
}

TEST_F(CudaAttention, HeadProducts) {
  for (Mode mode : allModes())
    for (bool transposed : {false, true})
      for (auto [rows, k, n] : {std::array<int64_t, 3>{1, 128, 512}, {20, 512, 128}, {9, 7, 33}}) {
        int64_t heads = random.between(1, 5);
        Shape w = transposed ? Shape{heads, k, n} : Shape{heads, n, k};
        expectAgrees(*gpu, "head_linear",
                     {T(random.normal<float>({1, rows, heads, k})), T(random.normal<float>(w))},
                     {T(Shape{1, rows, heads, n})}, params({{"transposed", transposed}}), mode);
      }
}

TEST_F(CudaAttention, CachesOfWhichOnlyAPartIsFilled) {
  // One query, a cache of 512 positions of which it sees 3: what lies behind is never looked at.
  for (Mode mode : allModes()) {
    Tensor<float> v = random.normal<float>({1, 512, 2, 64});
    std::fill(v.values.begin() + 256 * 2 * 64, v.values.end(), 1e30f);
    expectAgrees(*gpu, "attention",
                 {T(random.normal<float>({1, 1, 4, 64})), T(random.normal<float>({1, 512, 2, 64})),
                  T(v), I(Tensor<int32_t>({1}, {2}))},
                 {T(Shape{1, 1, 4, 64})},
                 params({{"window", 0}, {"q_heads", 4}, {"kv_heads", 2}}, {{"scale", 0.125}},
                        {{"with", "qpos"}}),
                 mode);
  }
}

} // namespace
