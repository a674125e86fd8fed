//===- EncoderDecoderBuilder.cpp - two stacks as a moe module -------------===//
// The program: the encoder's stack, then the decoder's, whose cross-attention reads what the
// encoder gives. The blocks are BlockBuilder's.
//===----------------------------------------------------------------------===//
#include "moira/Import/EncoderDecoderBuilder.h"
#include "Encoder.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;
using namespace moira;

namespace {

class EncoderDecoderBuilder : BlockBuilder {
public:
  EncoderDecoderBuilder(MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
                        const ProgramShape &shape)
      : BlockBuilder(context, spec, weights, shape.batch, shape.bf16),
        encoder(context, *spec.encoder, weights, shape.batch, shape.bf16), S(shape.seq),
        T(shape.decSeq), padding(shape.padding) {}

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> module = startModule();
    forward();
    return module;
  }

private:
  Encoder encoder;
  int64_t S, T; // tokens of the encoder, of the decoder
  bool padding;
  Encoded encoded;

  KeyValues crossKeys() override {
    return projectEncoded(encoded.x, encoded.positions, encoded.mask);
  }

  void forward() {
    auto source = tensor({B, S}, b.getI32Type()), target = tensor({B, T}, b.getI32Type());
    auto logits = tensor({B, T, spec.vocab}, f32);
    loc = named("model");
    auto func = func::FuncOp::create(b, loc, "forward",
                                     b.getFunctionType({source, source, target, target}, {logits}));
    func.setArgAttrs(0, idsAttrs("input_ids"));
    func.setArgAttrs(1, maskAttrs("attention_mask", padding));
    func.setArgAttrs(2, idsAttrs("decoder_input_ids"));
    func.setArgAttrs(3, maskAttrs("decoder_attention_mask", padding));
    func.setResultAttrs(0, {nameAttr("logits")});
    Block *body = func.addEntryBlock();
    encoded = encoder.build(body, body->getArgument(0), body->getArgument(1));
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToEnd(body);
    mask = body->getArgument(3);

    Value h = startStack(body->getArgument(2));
    for (layer = 0; layer < int64_t(spec.layers.size()); ++layer) {
      h = attentionBlock(h);
      h = crossAttentionBlock(h);
      h = feedForwardBlock(h);
    }
    func::ReturnOp::create(b, loc, head(finalNorm(h)));
  }
};

} // namespace

OwningOpRef<ModuleOp> moira::buildEncoderDecoder(MLIRContext &context, const ModelSpec &spec,
                                                 const WeightTable &weights,
                                                 const ProgramShape &shape) {
  return EncoderDecoderBuilder(context, spec, weights, shape).build();
}
