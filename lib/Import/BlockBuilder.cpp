//===- BlockBuilder.cpp - weights, single ops, both ends of a stack -------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;
using llvm::APFloat;

BlockBuilder::BlockBuilder(MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
                           int64_t batch, bool bf16, bool ofEncoder)
    : b(&context), spec(spec), weights(weights), B(batch), ofEncoder(ofEncoder),
      f32(b.getF32Type()), type(bf16 ? Type(b.getBF16Type()) : f32), loc(b.getUnknownLoc()) {}

//===----------------------------------------------------------------------===//
// Weights
//===----------------------------------------------------------------------===//

OwningOpRef<ModuleOp> BlockBuilder::startModule() {
  OwningOpRef<ModuleOp> module = ModuleOp::create(named("model"));
  b.setInsertionPointToEnd(module->getBody());
  for (const WeightState &state : weights.states()) {
    SmallVector<Attribute> names;
    for (const std::string &name : state.from)
      names.push_back(b.getStringAttr(name));
    auto permute =
        state.permute.empty() ? DenseI64ArrayAttr() : b.getDenseI64ArrayAttr(state.permute);
    auto slice = state.slice.empty() ? DenseI64ArrayAttr() : b.getDenseI64ArrayAttr(state.slice);
    auto source = moe::SourceAttr::get(b.getContext(), b.getArrayAttr(names), state.perExpert,
                                       b.getDenseI64ArrayAttr(state.diskShape), permute, slice);
    moe::StateOp::create(b, named(state.name), state.name, weightType(state), source,
                         state.layer < 0 ? IntegerAttr() : b.getI64IntegerAttr(state.layer),
                         state.separateExperts);
  }
  return module;
}

RankedTensorType BlockBuilder::weightType(const WeightState &state) {
  using R = WeightRole;
  switch (state.role) {
  case R::embedding: // a product's operand, too, if it is the head
    return tensor(state.shape, spec.tiedHead ? type : f32);
  case R::stack_embedding:
  case R::input_norm:
  case R::post_norm:
  case R::final_norm:
  case R::q_norm:
  case R::k_norm:
  case R::q_bias:
  case R::k_bias:
  case R::v_bias:
  case R::o_bias:
  case R::router:
  case R::router_bias:
  case R::router_choice_bias:
  case R::shared_gate:
  case R::input_norm_bias:
  case R::post_norm_bias:
  case R::final_norm_bias:
  case R::cross_norm:
  case R::cross_norm_bias:
  case R::cross_q_bias:
  case R::cross_k_bias:
  case R::cross_v_bias:
  case R::cross_o_bias:
  case R::relative_bias:
  case R::mlp_up_bias:
  case R::mlp_down_bias:
  case R::mlp_gate_up_bias:
  case R::shared_gate_up_bias:
  case R::shared_down_bias:
  case R::head_bias:
  case R::sinks:
  case R::q_a_bias:
  case R::q_a_norm:
  case R::kv_a_bias:
  case R::kv_a_norm:
  case R::k_turned_bias:
    return tensor(state.shape, f32);
  default:
    return tensor(state.shape, type);
  }
}

Value BlockBuilder::param(WeightRole role) {
  const WeightState &state = *weights.find(role, layer, ofEncoder);
  return moe::ParamOp::create(b, loc, weightType(state), state.name);
}

//===----------------------------------------------------------------------===//
// Single ops
//===----------------------------------------------------------------------===//

Value BlockBuilder::linear(Value x, WeightRole role, int64_t contract, Type result) {
  Value w = param(role);
  SmallVector<int64_t> shape(shapeOf(x).drop_back(contract));
  llvm::append_range(shape, shapeOf(w).drop_back(contract));
  return moe::LinearOp::create(b, loc, tensor(shape, result ? result : type), x, w, contract);
}

Value BlockBuilder::add(Value x, Value y) { return moe::AddOp::create(b, loc, x.getType(), x, y); }

Value BlockBuilder::scale(Value x, double factor) {
  if (factor == 1)
    return x;
  return moe::ScaleOp::create(b, loc, x.getType(), x, APFloat(factor));
}

BlockBuilder::NormWeights BlockBuilder::normWeights(WeightRole weight,
                                                    std::optional<WeightRole> bias) {
  Value w = param(weight);
  return {w, spec.normBias && bias ? param(*bias) : Value()};
}

Value BlockBuilder::norm(Value x, NormWeights weights, Type result) {
  auto out = as(x, result ? result : type);
  if (spec.norm == Norm::rms)
    return moe::RmsNormOp::create(b, loc, out, x, weights.w, APFloat(spec.normEps));
  return moe::LayerNormOp::create(b, loc, out, x, weights.w, weights.shift, APFloat(spec.normEps));
}

Value BlockBuilder::glu(Value x) {
  SmallVector<int64_t> out(shapeOf(x).drop_back(2));
  out.push_back(shapeOf(x).back());
  auto real = [&](std::optional<double> value) {
    return value ? b.getF64FloatAttr(*value) : FloatAttr();
  };
  return moe::GluOp::create(b, loc, tensor(out), x, spec.activation, real(spec.gluLimit),
                            real(spec.gluAlpha), real(spec.gluUpShift));
}

Value BlockBuilder::act(Value x) {
  return moe::ActOp::create(b, loc, as(x, type), x, spec.activation);
}

//===----------------------------------------------------------------------===//
// Where a stack begins and ends
//===----------------------------------------------------------------------===//

Value BlockBuilder::embedding(Value ids) {
  WeightRole role = spec.ownEmbedding ? WeightRole::stack_embedding : WeightRole::embedding;
  loc = at(role);
  SmallVector<int64_t> shape(shapeOf(ids));
  shape.push_back(spec.hidden);
  IntegerAttr pad = spec.untrainedId < 0 ? IntegerAttr() : b.getI64IntegerAttr(spec.untrainedId);
  Value h =
      moe::EmbeddingOp::create(b, loc, tensor(shape, f32), ids, param(role), Attribute(), pad);
  return scale(h, spec.embeddingScale);
}

Value BlockBuilder::startStack(Value ids) {
  int64_t S = shapeOf(ids)[1];
  Value h = embedding(ids);
  if (spec.positions == PositionKind::rotary) {
    rotary(S);
    return h;
  }
  loc = parent(at(WeightRole::final_norm));
  positions = ownPositions(S);
  if (spec.positions == PositionKind::relative)
    return h;
  Value places = sinusoidPlaces(ids);
  SmallVector<int64_t> shape(shapeOf(places));
  shape.push_back(spec.hidden);
  return add(
      h, moe::SinusoidOp::create(b, loc, tensor(shape, f32), places, sinusoidOffset(), spec.padId));
}

Value BlockBuilder::ownPositions(int64_t tokens) {
  return moe::PositionsOp::create(b, loc, tensor({tokens}, b.getI32Type()), Attribute());
}

Value BlockBuilder::sinusoidPlaces(Value ids) {
  if (spec.positions == PositionKind::sinusoid)
    return positions;
  return moe::TokenPositionsOp::create(b, loc, as(ids, b.getI32Type()), ids, Value(), spec.padId,
                                       Attribute());
}

Value BlockBuilder::finalNorm(Value h) {
  layer = -1;
  loc = at(WeightRole::final_norm);
  return norm(h, normWeights(WeightRole::final_norm, WeightRole::final_norm_bias));
}

Value BlockBuilder::head(Value x) {
  loc =
      named(llvm::StringRef(spec.modelClass->tensors.at(WeightRole::head).state).rsplit('.').first);
  x = scale(x, spec.headScale);
  Value out = linear(x, spec.tiedHead ? WeightRole::embedding : WeightRole::head, 1, f32);
  if (spec.headBias)
    out = add(out, param(WeightRole::head_bias));
  return scale(out, spec.logitsScale);
}

//===----------------------------------------------------------------------===//
// Locations and attributes
//===----------------------------------------------------------------------===//

Location BlockBuilder::at(WeightRole role) {
  StringRef name = weights.find(role, layer, ofEncoder)->name;
  return named(name.rsplit('.').first);
}

Location BlockBuilder::parent(Location child) {
  return named(cast<NameLoc>(child).getName().getValue().rsplit('.').first);
}

SmallVector<NamedAttribute> BlockBuilder::idsAttrs(StringRef name) {
  return {nameAttr(name), b.getNamedAttr("moe.range", b.getDenseI64ArrayAttr({0, spec.vocab - 1}))};
}

SmallVector<NamedAttribute> BlockBuilder::maskAttrs(StringRef name, bool padding) {
  SmallVector<NamedAttribute> attrs{nameAttr(name), b.getNamedAttr("moe.optional", b.getUnitAttr()),
                                    b.getNamedAttr("moe.fill", b.getF64FloatAttr(1.0))};
  if (!padding)
    attrs.push_back(b.getNamedAttr("moe.range", b.getDenseI64ArrayAttr({1, 1})));
  return attrs;
}
