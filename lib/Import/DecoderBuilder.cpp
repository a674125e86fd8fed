//===- DecoderBuilder.cpp - a decoder-only ModelSpec as a moe module ------===//
// The program: inputs, embedding, layers, head. The blocks are BlockBuilder's.
//===----------------------------------------------------------------------===//
#include "moira/Import/DecoderBuilder.h"
#include "BlockBuilder.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;
using namespace moira;

namespace {

class DecoderBuilder : BlockBuilder {
public:
  DecoderBuilder(MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
                 const ProgramShape &shape)
      : BlockBuilder(context, spec, weights, shape.batch, shape.bf16), S(shape.seq) {}

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> module = startModule();
    forward();
    return module;
  }

private:
  int64_t S;

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

    Value h = embedding(body->getArgument(0));
    rotary(S);
    for (layer = 0; layer < int64_t(spec.layers.size()); ++layer) {
      h = attentionBlock(h);
      h = feedForwardBlock(h);
    }
    layer = -1;
    h = norm(h, normWeights(WeightRole::final_norm, WeightRole::final_norm_bias));
    loc = named(
        llvm::StringRef(spec.modelClass->tensors.at(WeightRole::head).state).rsplit('.').first);
    Value out = linear(h, spec.tiedHead ? WeightRole::embedding : WeightRole::head, 1, f32);
    if (spec.headBias)
      out = add(out, param(WeightRole::head_bias));
    func::ReturnOp::create(b, loc, scale(out, spec.logitsScale));
  }
};

} // namespace

OwningOpRef<ModuleOp> moira::buildDecoder(MLIRContext &context, const ModelSpec &spec,
                                          const WeightTable &weights, const ProgramShape &shape) {
  return DecoderBuilder(context, spec, weights, shape).build();
}
