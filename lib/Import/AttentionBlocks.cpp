//===- AttentionBlocks.cpp - attention with what stands around it ---------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;
using llvm::APFloat;

void BlockBuilder::rotary(int64_t length) {
  loc = named("model.rotary_emb");
  positions = moe::PositionsOp::create(b, loc, tensor({length}, b.getI32Type()), Attribute());
  RopeSpec::Table rope = spec.rope.table(length);
  auto half = tensor({length, int64_t(rope.frequencies.size())}, f32);
  auto table = moe::RopeTableOp::create(b, loc, half, half, positions,
                                        b.getF64ArrayAttr(rope.frequencies), APFloat(rope.factor));
  cos = table.getCos();
  sin = table.getSin();
}

Value BlockBuilder::attentionBlock(Value h) {
  using R = WeightRole;
  Value x = norm(h, normWeights(R::input_norm, R::input_norm_bias));
  Value out = spec.latent ? latentAttention(x) : headAttention(x);
  loc = at(R::o);
  out = linear(out, R::o, 2, f32);
  if (spec.oBias)
    out = add(out, param(R::o_bias));
  loc = layerLoc();
  return add(h, scale(out, spec.residualScale));
}

Value BlockBuilder::headAttention(Value x) {
  using R = WeightRole;
  Value q = projection(x, R::q, R::q_bias, R::q_norm, /*rotated=*/true);
  KeyValues fresh{projection(x, R::k, R::k_bias, R::k_norm, /*rotated=*/true),
                  projection(x, R::v, R::v_bias, std::nullopt, /*rotated=*/false), positions, mask};
  loc = attentionLoc();
  KeyValues keys = selfKeys(fresh);
  Value sinks = spec.sinks ? param(R::sinks) : Value();
  auto out = moe::AttentionOp::create(b, loc, q.getType(), q, keys.k, keys.v, positions,
                                      keys.positions, keys.mask, spec.attentionScale,
                                      spec.layers[layer].window, spec.heads, spec.kvHeads);
  if (sinks)
    out.getSinksMutable().assign(sinks);
  return out;
}

Value BlockBuilder::rotate(Value x) {
  return moe::RopeOp::create(b, loc, as(x, type), x, cos, sin, spec.ropeInterleaved);
}

/// Linear, bias, norm, clip, rotation, in this order: f32 up to the last of them, which rounds.
Value BlockBuilder::projection(Value x, WeightRole weight, WeightRole bias,
                               std::optional<WeightRole> normRole, bool rotated) {
  bool biased = spec.qkvBias, normed = normRole && spec.qkNorm != QkNorm::none,
       clipped = spec.clipQkv.has_value();
  Type afterClip = rotated ? beforeRotation() : type, afterNorm = clipped ? f32 : afterClip,
       afterBias = normed ? f32 : afterNorm;
  loc = at(weight);
  x = linear(x, weight, 1, biased ? f32 : afterBias);
  if (biased)
    x = moe::AddOp::create(b, loc, as(x, afterBias), x, param(bias));
  if (normed) {
    loc = at(*normRole);
    x = norm(x, *normRole, afterNorm);
  }
  loc = attentionLoc();
  if (clipped)
    x = moe::ClampOp::create(b, loc, as(x, afterClip), x, APFloat(-*spec.clipQkv),
                             APFloat(*spec.clipQkv));
  if (rotated)
    x = rotate(x);
  return x;
}
