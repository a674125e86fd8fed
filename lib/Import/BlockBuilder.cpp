//===- BlockBuilder.cpp - weights and single ops --------------------------===//
#include "BlockBuilder.h"

using namespace mlir;
using namespace moira;
using llvm::APFloat;

BlockBuilder::BlockBuilder(MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
                           int64_t batch, bool bf16)
    : b(&context), spec(spec), weights(weights), B(batch), f32(b.getF32Type()),
      type(bf16 ? Type(b.getBF16Type()) : f32), loc(b.getUnknownLoc()) {}

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
                         state.layer < 0 ? IntegerAttr() : b.getI64IntegerAttr(state.layer));
  }
  return module;
}

RankedTensorType BlockBuilder::weightType(const WeightState &state) {
  using R = WeightRole;
  switch (state.role) {
  case R::embedding: // a product's operand, too, if it is the head
    return tensor(state.shape, spec.tiedHead ? type : f32);
  case R::input_norm:
  case R::input_norm_bias:
  case R::post_norm:
  case R::post_norm_bias:
  case R::final_norm:
  case R::final_norm_bias:
  case R::q_norm:
  case R::k_norm:
  case R::q_bias:
  case R::k_bias:
  case R::v_bias:
  case R::o_bias:
  case R::mlp_gate_up_bias:
  case R::mlp_down_bias:
  case R::shared_gate_up_bias:
  case R::shared_down_bias:
  case R::head_bias:
  case R::router:
  case R::router_bias:
  case R::router_choice_bias:
  case R::shared_gate:
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
  const WeightState &state = *weights.find(role, layer);
  return moe::ParamOp::create(b, loc, weightType(state), state.name);
}

Value BlockBuilder::linear(Value x, WeightRole role, int64_t contract, Type result) {
  Value w = param(role);
  SmallVector<int64_t> shape(shapeOf(x).drop_back(contract));
  llvm::append_range(shape, shapeOf(w).drop_back(contract));
  return moe::LinearOp::create(b, loc, tensor(shape, result ? result : type), x, w, contract);
}

Value BlockBuilder::add(Value x, Value y) { return moe::AddOp::create(b, loc, x.getType(), x, y); }

Value BlockBuilder::norm(Value x, Value w, Type result) {
  return moe::RmsNormOp::create(b, loc, as(x, result ? result : type), x, w, APFloat(spec.normEps));
}

BlockBuilder::NormWeights BlockBuilder::normWeights(WeightRole weight, WeightRole bias) {
  loc = at(weight);
  return {param(weight), spec.layerNorm ? param(bias) : Value()};
}

Value BlockBuilder::norm(Value x, NormWeights weights, Type result) {
  if (!weights.bias)
    return norm(x, weights.weight, result);
  return moe::LayerNormOp::create(b, loc, as(x, result ? result : type), x, weights.weight,
                                  weights.bias, APFloat(spec.normEps));
}

Value BlockBuilder::scale(Value x, double factor) {
  if (factor == 1)
    return x;
  return moe::ScaleOp::create(b, loc, x.getType(), x, APFloat(factor));
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

Value BlockBuilder::embedding(Value ids) {
  loc = at(WeightRole::embedding);
  SmallVector<int64_t> shape(shapeOf(ids));
  shape.push_back(spec.hidden);
  Value h = moe::EmbeddingOp::create(b, loc, tensor(shape, f32), ids, param(WeightRole::embedding),
                                     Attribute());
  return scale(h, spec.embeddingScale);
}

Location BlockBuilder::at(WeightRole role) {
  StringRef name = weights.find(role, layer)->name;
  return named(name.rsplit('.').first);
}

Location BlockBuilder::parent(Location child) {
  return named(cast<NameLoc>(child).getName().getValue().rsplit('.').first);
}
