//===- DecoderBuilder.cpp - a ModelSpec as a moe module -------------------===//
// One function a concept (attention, dense block, sparse block, router); which of them a layer has
// is data of the ModelSpec. Sums come before the residual, so that under tensor parallelism one
// reduction a block is enough: h + (combine + shared).
//===----------------------------------------------------------------------===//
#include "moira/Import/DecoderBuilder.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"

#include <cmath>

using namespace mlir;
using namespace moira;
using llvm::APFloat;

namespace {

class DecoderBuilder {
public:
  DecoderBuilder(MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
                 const ProgramShape &shape)
      : b(&context), spec(spec), weights(weights), B(shape.batch), S(shape.seq) {
    f32 = b.getF32Type();
    type = shape.bf16 ? b.getBF16Type() : f32;
  }

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> module = ModuleOp::create(named("model"));
    b.setInsertionPointToEnd(module->getBody());
    for (const WeightState &state : weights.states())
      addState(state);
    forward();
    return module;
  }

private:
  OpBuilder b;
  const ModelSpec &spec;
  const WeightTable &weights;
  int64_t B, S;
  Type f32, type; // type: of weights and activations; the residual stream is always f32
  Location loc = b.getUnknownLoc();
  int64_t layer = -1;

  // What the top of the program makes once.
  Value positions, mask, cos, sin;

  Location named(const Twine &name) { return NameLoc::get(b.getStringAttr(name)); }
  /// The module that a weight of this role belongs to: its state's name without the last word.
  Location at(WeightRole role) {
    StringRef name = weights.find(role, layer)->name;
    return named(name.rsplit('.').first);
  }
  RankedTensorType tensor(ArrayRef<int64_t> shape, Type element) {
    return RankedTensorType::get(shape, element);
  }
  RankedTensorType tensor(ArrayRef<int64_t> shape) { return tensor(shape, type); }

  void addState(const WeightState &state) {
    SmallVector<Attribute> names;
    for (const std::string &name : state.from)
      names.push_back(b.getStringAttr(name));
    auto source = moe::SourceAttr::get(b.getContext(), b.getArrayAttr(names), state.perExpert,
                                       b.getDenseI64ArrayAttr(state.diskShape));
    moe::StateOp::create(b, named(state.name), state.name, weightType(state), source,
                         state.layer < 0 ? IntegerAttr() : b.getI64IntegerAttr(state.layer));
  }

  /// A bias that is added to the residual stream is f32 like it.
  RankedTensorType weightType(const WeightState &state) {
    return tensor(state.shape, state.role == WeightRole::o_bias ? f32 : type);
  }

  Value param(WeightRole role) {
    const WeightState &state = *weights.find(role, layer);
    return moe::ParamOp::create(b, loc, weightType(state), state.name);
  }

  /// x[t..,K..]·w[N..,K..] → [t..,N..]
  Value linear(Value x, WeightRole role, int64_t contract = 1, Type result = {}) {
    Value w = param(role);
    ArrayRef<int64_t> xs = cast<RankedTensorType>(x.getType()).getShape(),
                      ws = cast<RankedTensorType>(w.getType()).getShape();
    SmallVector<int64_t> shape(xs.drop_back(contract));
    llvm::append_range(shape, ws.drop_back(contract));
    return moe::LinearOp::create(b, loc, tensor(shape, result ? result : type), x, w, contract);
  }
  Value add(Value x, Value y) { return moe::AddOp::create(b, loc, x.getType(), x, y); }
  /// Of the residual stream or of a projection; the result is an activation.
  Value norm(Value x, WeightRole role) {
    auto result = tensor(cast<RankedTensorType>(x.getType()).getShape());
    return moe::RmsNormOp::create(b, loc, result, x, param(role), APFloat(spec.normEps));
  }

  void forward() {
    int64_t V = spec.vocab;
    auto ids = tensor({B, S}, b.getI32Type());
    auto logits = tensor({B, S, V}, f32);
    loc = named("model");
    auto name = [&](StringRef text) { return b.getNamedAttr("moe.name", b.getStringAttr(text)); };
    auto func = func::FuncOp::create(b, loc, "forward", b.getFunctionType({ids, ids}, {logits}));
    func.setArgAttrs(
        0, {name("input_ids"), b.getNamedAttr("moe.range", b.getDenseI64ArrayAttr({0, V - 1}))});
    func.setArgAttrs(1, {name("attention_mask"), b.getNamedAttr("moe.optional", b.getUnitAttr()),
                         b.getNamedAttr("moe.fill", b.getF64FloatAttr(1.0))});
    func.setResultAttrs(0, {name("logits")});
    Block *body = func.addEntryBlock();
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(body);
    mask = body->getArgument(1);

    loc = at(WeightRole::embedding);
    Value h =
        moe::EmbeddingOp::create(b, loc, tensor({B, S, spec.hidden}, f32), body->getArgument(0),
                                 param(WeightRole::embedding), Attribute());
    rotary();
    for (layer = 0; layer < int64_t(spec.layers.size()); ++layer) {
      h = attentionBlock(h);
      h = feedForwardBlock(h);
    }
    layer = -1;
    loc = at(WeightRole::final_norm);
    h = norm(h, WeightRole::final_norm);
    loc = named(
        llvm::StringRef(spec.modelClass->tensors.at(WeightRole::head).state).rsplit('.').first);
    Value out = linear(h, spec.tiedHead ? WeightRole::embedding : WeightRole::head, 1, f32);
    func::ReturnOp::create(b, loc, out);
  }

  void rotary() {
    loc = named("model.rotary_emb");
    positions = moe::PositionsOp::create(b, loc, tensor({S}, b.getI32Type()), Attribute());
    auto half = tensor({S, spec.headDim / 2}, f32);
    auto table =
        moe::RopeTableOp::create(b, loc, half, half, positions, APFloat(spec.rope.theta),
                                 spec.headDim, spec.rope.scaling, APFloat(spec.rope.factor));
    cos = table.getCos();
    sin = table.getSin();
  }

  /// h + attention(norm(h))
  Value attentionBlock(Value h) {
    using R = WeightRole;
    loc = at(R::input_norm);
    Value x = norm(h, R::input_norm);
    Value q = projection(x, R::q, R::q_bias, R::q_norm, /*rotated=*/true);
    Value k = projection(x, R::k, R::k_bias, R::k_norm, /*rotated=*/true);
    Value v = projection(x, R::v, R::v_bias, std::nullopt, /*rotated=*/false);
    loc = attentionLoc();
    Value out = moe::AttentionOp::create(b, loc, q.getType(), q, k, v, positions, positions, mask,
                                         APFloat(1.0 / std::sqrt(double(spec.headDim))),
                                         spec.layers[layer].window, spec.heads, spec.kvHeads,
                                         Attribute(), Attribute());
    loc = at(R::o);
    out = linear(out, R::o, 2, f32);
    if (spec.oBias)
      out = add(out, param(R::o_bias));
    loc = layerLoc();
    return add(h, out);
  }

  /// Linear, bias, norm, clip, rotation, in this order.
  Value projection(Value x, WeightRole weight, WeightRole bias, std::optional<WeightRole> normRole,
                   bool rotated) {
    loc = at(weight);
    x = linear(x, weight);
    if (spec.qkvBias)
      x = add(x, param(bias));
    if (normRole && spec.qkNorm != QkNorm::none) {
      loc = at(*normRole);
      x = norm(x, *normRole);
    }
    loc = attentionLoc();
    if (spec.clipQkv)
      x = moe::ClampOp::create(b, loc, x.getType(), x, APFloat(-*spec.clipQkv),
                               APFloat(*spec.clipQkv));
    if (rotated)
      x = moe::RopeOp::create(b, loc, x.getType(), x, cos, sin);
    return x;
  }

  /// h + feed-forward(norm(h))
  Value feedForwardBlock(Value h) {
    loc = at(WeightRole::post_norm);
    Value x = norm(h, WeightRole::post_norm);
    Value y = spec.layers[layer].sparse
                  ? sparseBlock(x)
                  : gatedBlock(x, WeightRole::mlp_gate_up, WeightRole::mlp_down);
    loc = layerLoc();
    return add(h, y);
  }

  Value glu(Value x) {
    ArrayRef<int64_t> shape = cast<RankedTensorType>(x.getType()).getShape();
    SmallVector<int64_t> out(shape.drop_back(2));
    out.push_back(shape.back());
    return moe::GluOp::create(b, loc, tensor(out), x, spec.activation);
  }

  /// down(act(gate x) · up x)
  Value gatedBlock(Value x, WeightRole gateUp, WeightRole down) {
    loc = parent(at(down));
    return linear(glu(linear(x, gateUp)), down, 1, f32);
  }

  Value sparseBlock(Value x) {
    using R = WeightRole;
    Value routing = route(x);
    loc = at(R::expert_down); // …mlp.experts
    int64_t rows = B * S * spec.k, F = spec.expertWidth, D = spec.hidden;
    Value sorted =
        moe::DispatchOp::create(b, loc, tensor({rows, D}), x, routing, ArrayAttr(), IntegerAttr());
    Value gateUp = moe::GroupedMatmulOp::create(b, loc, tensor({rows, 2, F}), sorted, routing,
                                                param(R::expert_gate_up), 1);
    Value down = moe::GroupedMatmulOp::create(b, loc, tensor({rows, D}), glu(gateUp), routing,
                                              param(R::expert_down), 1);
    Value y = moe::CombineOp::create(b, loc, tensor({B, S, D}, f32), down, routing);
    if (!spec.sharedWidth)
      return y;
    Value shared = gatedBlock(x, R::shared_gate_up, R::shared_down);
    loc = at(R::shared_gate);
    Value gate = linear(x, R::shared_gate, 1, f32);
    shared = moe::SigmoidGateOp::create(b, loc, shared.getType(), shared, gate);
    loc = parent(at(R::router));
    return add(y, shared);
  }

  Value route(Value x) {
    loc = at(WeightRole::router);
    Value logits = linear(x, WeightRole::router, 1, f32);
    auto router = moe::RouterAttr::get(b.getContext(), spec.k, spec.score, spec.order, spec.renorm,
                                       b.getF64FloatAttr(spec.routerScale));
    auto routing = moe::RoutingType::get(b.getContext(), {B, S}, spec.experts, spec.k, Attribute());
    return moe::RouteOp::create(b, loc, routing, logits, router);
  }

  Location attentionLoc() { return parent(at(WeightRole::q)); }
  Location layerLoc() { return parent(at(WeightRole::input_norm)); }
  /// The module that holds this one.
  Location parent(Location child) {
    return named(cast<NameLoc>(child).getName().getValue().rsplit('.').first);
  }
};

} // namespace

OwningOpRef<ModuleOp> moira::buildDecoder(MLIRContext &context, const ModelSpec &spec,
                                          const WeightTable &weights, const ProgramShape &shape) {
  return DecoderBuilder(context, spec, weights, shape).build();
}
