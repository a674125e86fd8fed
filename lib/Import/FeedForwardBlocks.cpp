//===- FeedForwardBlocks.cpp - dense and sparse feed-forward blocks -------===//
// Sums come before the residual, so that under tensor parallelism one reduction a block is enough:
// h + (combine + shared).
//===----------------------------------------------------------------------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;

Value BlockBuilder::feedForwardBlock(Value h) {
  using R = WeightRole;
  bool sparse = spec.layers[layer].sparse;
  NormWeights weights = normWeights(R::post_norm, R::post_norm_bias);
  Value exact = sparse ? norm(h, weights, f32) : Value();
  Value x = sparse && type == f32 ? exact : norm(h, weights);
  Value y = sparse
                ? sparseBlock(x, exact)
                : gatedBlock(x, R::mlp_gate_up, R::mlp_gate_up_bias, R::mlp_down, R::mlp_down_bias);
  loc = layerLoc();
  return add(h, scale(y, spec.residualScale));
}

/// down(act(gate x) · up x), each product with its bias if the class has them.
Value BlockBuilder::gatedBlock(Value x, WeightRole gateUp, WeightRole gateUpBias, WeightRole down,
                               WeightRole downBias) {
  loc = parent(at(down));
  Value halves = linear(x, gateUp, 1, spec.mlpBias ? f32 : type);
  if (spec.mlpBias)
    halves = moe::AddOp::create(b, loc, as(halves, type), halves, param(gateUpBias));
  Value out = linear(glu(halves), down, 1, f32);
  return spec.mlpBias ? add(out, param(downBias)) : out;
}

Value BlockBuilder::sparseBlock(Value x, Value exact) {
  using R = WeightRole;
  Value routing = route(exact);
  loc = at(R::expert_down); // …mlp.experts
  ArrayRef<int64_t> tokens = shapeOf(x).drop_back();
  int64_t rows = cast<moe::RoutingType>(routing.getType()).numTokens() * spec.router.k,
          F = spec.expertWidth, D = spec.hidden;
  Value sorted =
      moe::DispatchOp::create(b, loc, tensor({rows, D}), x, routing, ArrayAttr(), IntegerAttr());
  auto product = [&](Value x, ArrayRef<int64_t> shape, R weight, R bias) -> Value {
    Value out = moe::GroupedMatmulOp::create(b, loc, tensor(shape), x, routing, param(weight), 1);
    if (!spec.expertBias)
      return out;
    return moe::GroupedBiasOp::create(b, loc, out.getType(), out, routing, param(bias),
                                      Attribute());
  };
  Value gateUp = product(sorted, {rows, 2, F}, R::expert_gate_up, R::expert_gate_up_bias);
  Value down = product(glu(gateUp), {rows, D}, R::expert_down, R::expert_down_bias);
  SmallVector<int64_t> shape(tokens);
  shape.push_back(D);
  Value y = moe::CombineOp::create(b, loc, tensor(shape, f32), down, routing);
  if (!spec.sharedWidth)
    return y;
  Value shared =
      gatedBlock(x, R::shared_gate_up, R::shared_gate_up_bias, R::shared_down, R::shared_down_bias);
  if (spec.sharedGated) {
    loc = at(R::shared_gate);
    Value gate = linear(exact, R::shared_gate, 1, f32);
    shared = moe::SigmoidGateOp::create(b, loc, shared.getType(), shared, gate);
  }
  loc = parent(at(R::router));
  return add(y, shared);
}

Value BlockBuilder::route(Value x) {
  loc = at(WeightRole::router);
  Value logits = linear(x, WeightRole::router, 1, f32);
  if (spec.routerBias)
    logits = add(logits, param(WeightRole::router_bias));
  Value choiceBias;
  if (spec.choiceBias != ChoiceBias::none)
    choiceBias = param(WeightRole::router_choice_bias);
  auto routing = moe::RoutingType::get(b.getContext(), shapeOf(x).drop_back(), spec.experts,
                                       spec.router.k, Attribute());
  return moe::RouteOp::create(b, loc, routing, logits, choiceBias,
                              moe::RouterAttr::get(b.getContext(), spec.router));
}
