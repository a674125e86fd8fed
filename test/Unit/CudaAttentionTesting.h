//===- CudaAttentionTesting.h - attention over whole sequences --*- C++ -*-===//
// Shapes, operands and parameters of calls without positions and masks, which cuDNN takes.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_CUDA_ATTENTION_TESTING_H
#define MOIRA_TEST_CUDA_ATTENTION_TESTING_H

#include "CudaTesting.h"

namespace moira::rt::testing {

inline constexpr Mode kBf16{.dtype = fb::DType::bf16};
inline constexpr int64_t kBatch = 2;

struct WholeCase {
  int64_t queries, keys, heads = 4, kvHeads = 2, keyDim = 128, valueDim = 128, window = 0;
  bool causal = true;
  int64_t roomKibibytes = 64 << 10; // that a gradient has to work in
};

/// q, k and v as bf16 holds them.
inline std::vector<Operand> operandsOf(Random &random, const WholeCase &c) {
  std::vector<Operand> in{T(random.normal<float>({kBatch, c.queries, c.heads, c.keyDim})),
                          T(random.normal<float>({kBatch, c.keys, c.kvHeads, c.keyDim})),
                          T(random.normal<float>({kBatch, c.keys, c.kvHeads, c.valueDim}))};
  for (Operand &o : in)
    o = rounded(std::move(o), fb::DType::bf16);
  return in;
}

/// Without optional operands.
inline CallParams paramsOf(const WholeCase &c) {
  return params({{"window", c.window},
                 {"causal", c.causal},
                 {"q_heads", c.heads},
                 {"kv_heads", c.kvHeads},
                 {"head_offset", 0},
                 {"kv_offset", 0}},
                {{"scale", 1 / std::sqrt(double(c.keyDim))}});
}

/// What says the same as no positions and no mask: operands of the roles in kOrderRoles.
inline constexpr const char *kOrderRoles = "qpos kpos kmask";
inline std::vector<Operand> orderOf(int64_t batch, int64_t queries, int64_t keys) {
  Tensor<int32_t> qpos({queries}), kpos({keys});
  std::iota(qpos.values.begin(), qpos.values.end(), 0);
  std::iota(kpos.values.begin(), kpos.values.end(), 0);
  return {I(qpos), I(kpos),
          I(Tensor<int32_t>({batch, keys}, std::vector<int32_t>(size_t(batch * keys), 1)))};
}

} // namespace moira::rt::testing

#endif // MOIRA_TEST_CUDA_ATTENTION_TESTING_H
