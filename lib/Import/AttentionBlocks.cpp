//===- AttentionBlocks.cpp - attention with what stands around it ---------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;
using llvm::APFloat;
using R = WeightRole;

/// positions, cos and sin of `tokens` tokens that follow one another.
void BlockBuilder::rotary(int64_t tokens) {
  loc = named("model.rotary_emb");
  positions = ownPositions(tokens);
  RopeSpec::Table rope = spec.rope.table(span(tokens));
  auto half = tensor({tokens, int64_t(rope.frequencies.size())}, f32);
  auto table = moe::RopeTableOp::create(b, loc, half, half, positions,
                                        b.getF64ArrayAttr(rope.frequencies), APFloat(rope.factor));
  cos = table.getCos();
  sin = table.getSin();
}

Value BlockBuilder::attentionBlock(Value h) {
  loc = at(R::input_norm);
  Value x = norm(h, normWeights(R::input_norm, R::input_norm_bias));
  Value out = spec.latent ? latentAttention(x) : headAttention(x);
  out = outProjection(out, R::o, R::o_bias);
  loc = parent(at(R::input_norm));
  return add(h, scale(out, spec.residualScale));
}

Value BlockBuilder::headAttention(Value x) {
  bool rotated = spec.positions == PositionKind::rotary && spec.layers[layer].rotated;
  Value q = projection(x, R::q, R::q_bias, R::q_norm, rotated);
  KeyValues fresh{projection(x, R::k, R::k_bias, R::k_norm, rotated),
                  projection(x, R::v, R::v_bias, std::nullopt, /*rotated=*/false), positions, mask};
  loc = parent(at(R::q));
  KeyValues keys = selfKeys(fresh);
  Value bias = scoreBias(keys), sinks = spec.sinks ? param(R::sinks) : Value();
  Value out = attend(q, keys, spec.causal, bias);
  if (sinks)
    out.getDefiningOp<moe::AttentionOp>().getSinksMutable().assign(sinks);
  return out;
}

Value BlockBuilder::rotate(Value x, Type result) {
  return moe::RopeOp::create(b, loc, as(x, result ? result : type), x, cos, sin,
                             spec.ropeInterleaved);
}

Value BlockBuilder::crossAttentionBlock(Value h) {
  loc = at(R::cross_norm);
  Value x = norm(h, normWeights(R::cross_norm, R::cross_norm_bias));
  Value q = projection(x, R::cross_q, R::cross_q_bias, std::nullopt, /*rotated=*/false);
  KeyValues keys = crossKeys();
  loc = parent(at(R::cross_q));
  Value out = attend(q, keys, /*causal=*/false, Value());
  out = outProjection(out, R::cross_o, R::cross_o_bias);
  loc = parent(at(R::cross_norm));
  return add(h, out);
}

KeyValues BlockBuilder::crossKeys() {
  llvm_unreachable("a stack with cross-attention has a builder that knows its encoder");
}

KeyValues BlockBuilder::projectEncoded(Value x, Value positions, Value mask) {
  return {projection(x, R::cross_k, R::cross_k_bias, std::nullopt, /*rotated=*/false),
          projection(x, R::cross_v, R::cross_v_bias, std::nullopt, /*rotated=*/false), positions,
          mask};
}

/// Linear, bias, norm, clip, rotation, norm without a weight, in this order: f32 up to the last of
/// them, which rounds.
Value BlockBuilder::projection(Value x, R weight, R bias, std::optional<R> normRole, bool rotated) {
  bool unit = spec.qkNorm == QkNorm::unit && rotated, biased = spec.qkvBias,
       normed = normRole && (spec.qkNorm == QkNorm::head || spec.qkNorm == QkNorm::full),
       clipped = spec.clipQkv.has_value();
  Type afterClip = rotated ? f32 : type, afterNorm = clipped ? f32 : afterClip,
       afterBias = normed ? f32 : afterNorm;
  loc = at(weight);
  x = linear(x, weight, 1, biased ? f32 : afterBias);
  if (biased)
    x = moe::AddOp::create(b, loc, as(x, afterBias), x, param(bias));
  if (normed) {
    loc = at(*normRole);
    x = norm(x, normWeights(*normRole), afterNorm);
  }
  loc = parent(at(weight));
  if (clipped)
    x = moe::ClampOp::create(b, loc, as(x, afterClip), x, APFloat(-*spec.clipQkv),
                             APFloat(*spec.clipQkv));
  if (rotated)
    x = rotate(x, unit ? f32 : type);
  if (unit) {
    Value ones = moe::FullOp::create(b, loc, tensor({spec.headDim}, f32), APFloat(1.0));
    x = norm(x, {ones, Value()});
  }
  return x;
}

Value BlockBuilder::attend(Value q, const KeyValues &keys, bool causal, Value bias) {
  auto attention = moe::AttentionOp::create(
      b, loc, q.getType(), q, keys.k, keys.v, positions, keys.positions, keys.mask,
      spec.attentionScale, causal ? spec.layers[layer].window : 0, spec.heads, spec.kvHeads);
  attention.setBidirectional(!causal);
  if (bias)
    attention.getBiasMutable().assign(bias);
  return attention;
}

Value BlockBuilder::outProjection(Value x, R weight, R bias) {
  loc = at(weight);
  x = linear(x, weight, 2, f32);
  return spec.oBias ? add(x, param(bias)) : x;
}

/// The bias of scores by distance, which all layers share; null if the stack has none.
Value BlockBuilder::scoreBias(const KeyValues &keys) {
  if (spec.positions != PositionKind::relative)
    return {};
  if (layer == 0) {
    loc = at(R::relative_bias);
    Value table = param(R::relative_bias);
    auto result = tensor({spec.heads, shapeOf(positions)[0], shapeOf(keys.positions)[0]}, f32);
    relativeBias = moe::RelativeBiasOp::create(b, loc, result, table, positions, keys.positions,
                                               spec.maxDistance, !spec.causal);
    loc = parent(at(R::q));
  }
  return relativeBias;
}
