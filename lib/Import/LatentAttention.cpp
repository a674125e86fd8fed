//===- LatentAttention.cpp - attention over a shared latent ---------------===//
// Multi-head latent attention (DeepSeek): keys and values of all heads grow out of one latent a
// token, which is what a cache holds; a second part of the keys, which is rotated, is shared by the
// heads as it is.
//===----------------------------------------------------------------------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;

/// The norms of the latents have an eps of their own.
static constexpr double kLatentEps = 1e-6;

Value BlockBuilder::latentAttention(Value x) {
  using R = WeightRole;
  const LatentSpec &latent = *spec.latent;
  bool compressed = latent.queryRank > 0;
  /// A product with its bias, if the class has them, as a value of `result`.
  auto biased = [&](Value from, R weight, R bias, Type result) -> Value {
    loc = at(weight);
    Value out = linear(from, weight, 1, spec.qkvBias ? f32 : result);
    if (spec.qkvBias)
      out = moe::AddOp::create(b, loc, as(out, result), out, param(bias));
    return out;
  };
  auto normed = [&](Value from, R weight) -> Value {
    loc = at(weight);
    return moe::RmsNormOp::create(b, loc, as(from, type), from, param(weight),
                                  llvm::APFloat(kLatentEps));
  };
  Value source = compressed ? normed(biased(x, R::q_a, R::q_a_bias, f32), R::q_a_norm) : x;
  R plain = compressed ? R::q_b_plain : R::q_plain,
    turned = compressed ? R::q_b_turned : R::q_turned;
  loc = at(plain);
  Location whole = parent(loc);
  Value q = linear(source, plain), q2 = linear(source, turned, 1, f32);
  Value c = normed(biased(x, R::kv_a, R::kv_a_bias, f32), R::kv_a_norm);
  Value k2 = biased(x, R::k_turned, R::k_turned_bias, f32);
  loc = whole;
  q2 = rotate(q2);
  LatentKeys keys = selfLatents({c, rotate(k2), positions, mask});
  bool inside = staysLatent(shapeOf(q)[1], shapeOf(keys.latent)[1]);
  Value k = keys.latent, v = keys.latent;
  SmallVector<int64_t> shape(shapeOf(q).drop_back());
  if (inside) {
    loc = at(R::k_b);
    q = headLinear(q, R::k_b, latent.rank, /*transposed=*/true);
    shape.push_back(latent.rank);
  } else {
    // On a mesh that cuts the sequence the latent is what travels.
    Value all = moe::WholeOp::create(b, loc, k.getType(), k, b.getDenseI64ArrayAttr({1}));
    loc = at(R::k_b);
    k = linear(all, R::k_b);
    v = linear(all, R::v_b);
    shape.push_back(latent.valueDim);
  }
  loc = whole;
  auto out = moe::AttentionOp::create(b, loc, tensor(shape), q, k, v, positions, keys.positions,
                                      keys.mask, spec.attentionScale, spec.layers[layer].window,
                                      spec.heads, inside ? 1 : spec.heads);
  out.getQ2Mutable().assign(q2);
  out.getK2Mutable().assign(keys.turned);
  if (!inside)
    return out;
  loc = at(R::v_b);
  return headLinear(out, R::v_b, latent.valueDim, /*transposed=*/false);
}

/// Whether queries and results go through the latent's products, rather than all keys and values
/// growing out of it: what costs fewer multiplications. So it is where few queries look at many
/// keys, as in decode.
bool BlockBuilder::staysLatent(int64_t queries, int64_t keys) const {
  const LatentSpec &latent = *spec.latent;
  double pairs = double(queries) * keys, plain = latent.plainDim, value = latent.valueDim,
         rank = latent.rank;
  double grown = keys * rank * (plain + value) + pairs * (plain + value),
         inside = queries * rank * (plain + value) + pairs * 2 * rank;
  return inside < grown;
}

/// Each head of x [B,S,H,K] times its own part of a weight.
Value BlockBuilder::headLinear(Value x, WeightRole weight, int64_t outputs, bool transposed) {
  SmallVector<int64_t> shape(shapeOf(x).drop_back());
  shape.push_back(outputs);
  return moe::HeadLinearOp::create(b, loc, tensor(shape), x, param(weight), transposed);
}
