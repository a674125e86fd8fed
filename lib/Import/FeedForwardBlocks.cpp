//===- FeedForwardBlocks.cpp - dense and sparse feed-forward blocks -------===//
// Sums come before the residual, so that under tensor parallelism one reduction a block is enough:
// h + (combine + shared).
//===----------------------------------------------------------------------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;

Value BlockBuilder::feedForwardBlock(Value h) {
  loc = at(WeightRole::post_norm);
  bool sparse = spec.layers[layer].sparse;
  Value weight = param(WeightRole::post_norm);
  Value exact = sparse ? norm(h, weight, f32) : Value();
  Value x = sparse && type == f32 ? exact : norm(h, weight);
  Value y =
      sparse ? sparseBlock(x, exact) : gatedBlock(x, WeightRole::mlp_gate_up, WeightRole::mlp_down);
  loc = layerLoc();
  return add(h, y);
}

/// down(act(gate x) · up x)
Value BlockBuilder::gatedBlock(Value x, WeightRole gateUp, WeightRole down) {
  loc = parent(at(down));
  return linear(glu(linear(x, gateUp)), down, 1, f32);
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
  Value gateUp = moe::GroupedMatmulOp::create(b, loc, tensor({rows, 2, F}), sorted, routing,
                                              param(R::expert_gate_up), 1);
  Value down = moe::GroupedMatmulOp::create(b, loc, tensor({rows, D}), glu(gateUp), routing,
                                            param(R::expert_down), 1);
  SmallVector<int64_t> shape(tokens);
  shape.push_back(D);
  Value y = moe::CombineOp::create(b, loc, tensor(shape, f32), down, routing);
  if (!spec.sharedWidth)
    return y;
  Value shared = gatedBlock(x, R::shared_gate_up, R::shared_down);
  loc = at(R::shared_gate);
  Value gate = linear(exact, R::shared_gate, 1, f32);
  shared = moe::SigmoidGateOp::create(b, loc, shared.getType(), shared, gate);
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
