//===- FeedForwardBlocks.cpp - dense and sparse feed-forward blocks -------===//
// Sums come before the residual, so that under tensor parallelism one reduction a block is enough:
// h + (combine + shared).
//===----------------------------------------------------------------------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;
using R = WeightRole;

Value BlockBuilder::feedForwardBlock(Value h) {
  loc = at(R::post_norm);
  NormWeights weights = normWeights(R::post_norm, R::post_norm_bias);
  Value y;
  if (spec.layers[layer].sparse) {
    Value exact = norm(h, weights, f32);
    y = sparseBlock(type == f32 ? exact : norm(h, weights), exact);
  } else {
    Value x = norm(h, weights);
    y = spec.gated
            ? gatedBlock(x, R::mlp_gate_up, R::mlp_gate_up_bias, R::mlp_down, R::mlp_down_bias)
            : plainBlock(x);
  }
  loc = parent(at(R::post_norm));
  return add(h, scale(y, spec.residualScale));
}

/// down(act(gate x) · up x), each product with its bias if the class has them.
Value BlockBuilder::gatedBlock(Value x, R gateUp, R gateUpBias, R down, R downBias) {
  loc = parent(at(down));
  Value halves = linear(x, gateUp, 1, spec.mlpBias ? f32 : type);
  if (spec.mlpBias)
    halves = moe::AddOp::create(b, loc, as(halves, type), halves, param(gateUpBias));
  Value out = linear(glu(halves), down, 1, f32);
  return spec.mlpBias ? add(out, param(downBias)) : out;
}

/// down(act(up x)); what a bias is added to is f32.
Value BlockBuilder::plainBlock(Value x) {
  loc = parent(at(R::mlp_down));
  x = linear(x, R::mlp_up, 1, spec.mlpBias ? f32 : type);
  if (spec.mlpBias)
    x = add(x, param(R::mlp_up_bias));
  x = linear(act(x), R::mlp_down, 1, f32);
  return spec.mlpBias ? add(x, param(R::mlp_down_bias)) : x;
}

Value BlockBuilder::sparseBlock(Value x, Value exact) {
  Value routing = route(exact);
  loc = at(R::expert_down); // …mlp.experts
  int64_t rows = cast<moe::RoutingType>(routing.getType()).numTokens() * spec.router.k;
  Value sorted = moe::DispatchOp::create(b, loc, tensor({rows, spec.hidden}), x, routing,
                                         ArrayAttr(), IntegerAttr());
  SmallVector<int64_t> shape(shapeOf(x));
  Value y = moe::CombineOp::create(b, loc, tensor(shape, f32), experts(sorted, routing), routing);
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

/// Each row through its expert, [R,D] → [R,D].
Value BlockBuilder::experts(Value rows, Value routing) {
  Value hidden = groupedMatmul(rows, routing, spec.gated ? R::expert_gate_up : R::expert_up);
  if (spec.expertBias)
    hidden = groupedBias(hidden, routing, spec.gated ? R::expert_gate_up_bias : R::expert_up_bias);
  Value down = groupedMatmul(spec.gated ? glu(hidden) : act(hidden), routing, R::expert_down);
  return spec.expertBias ? groupedBias(down, routing, R::expert_down_bias) : down;
}

/// rows[R,K] times w[E,N..,K] → [R,N..]
Value BlockBuilder::groupedMatmul(Value rows, Value routing, R role) {
  Value w = param(role);
  SmallVector<int64_t> shape{shapeOf(rows)[0]};
  llvm::append_range(shape, shapeOf(w).drop_front().drop_back());
  return moe::GroupedMatmulOp::create(b, loc, tensor(shape), rows, routing, w, 1);
}

Value BlockBuilder::groupedBias(Value rows, Value routing, R role) {
  return moe::GroupedBiasOp::create(b, loc, rows.getType(), rows, routing, param(role),
                                    Attribute());
}

/// Whether an expert can get more of these choices than it takes: at most one of a token.
bool BlockBuilder::mayDrop(moe::RoutingType routing) {
  if (!spec.capacity)
    return false;
  int64_t sequences =
      spec.capacity->domain == moe::CapacityDomain::sequence ? routing.getTokens()[0] : 1;
  int64_t tokens = routing.numTokens() / sequences;
  return moe::CapacityAttr::get(b.getContext(), *spec.capacity)
             .capacityFor(tokens, routing.getExperts(), routing.getK()) < tokens;
}

Value BlockBuilder::route(Value x) {
  loc = at(R::router);
  Value logits = linear(x, R::router, 1, f32);
  if (spec.routerBias)
    logits = add(logits, param(R::router_bias));
  Value choiceBias;
  if (spec.choiceBias != ChoiceBias::none)
    choiceBias = param(R::router_choice_bias);
  auto routing = moe::RoutingType::get(b.getContext(), shapeOf(x).drop_back(), spec.experts,
                                       spec.router.k, Attribute());
  moe::RouterFields gate = spec.router;
  bool limited = mayDrop(routing);
  if (limited && spec.capacity->renorm != moe::LimitRenorm::none) {
    gate.renorm = moe::Renorm::none; // the limit's work
    gate.renormEpsilon = gate.renormClampMin = 0;
    gate.scale = 1;
  }
  Value routed = moe::RouteOp::create(b, loc, routing, logits, choiceBias,
                                      moe::RouterAttr::get(b.getContext(), gate));
  if (limited) {
    moe::CapacityFields capacity = *spec.capacity;
    capacity.layer = layer;
    routed = moe::LimitOp::create(b, loc, routing, tensor({2}, f32), routed, Value(),
                                  moe::CapacityAttr::get(b.getContext(), capacity), Attribute())
                 .getResult();
  }
  if (spec.redirect)
    routed = moe::RedirectOp::create(b, loc, routing, routed, spec.redirect->first,
                                     spec.redirect->second);
  return routed;
}
