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
      : BlockBuilder(context, spec, weights, shape.batch, shape.bf16), S(shape.seq),
        padding(shape.padding) {}

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> module = startModule();
    forward();
    return module;
  }

private:
  int64_t S;
  bool padding;

  void forward() {
    auto ids = tensor({B, S}, b.getI32Type());
    auto logits = tensor({B, S, spec.vocab}, f32);
    loc = named("model");
    auto func = func::FuncOp::create(b, loc, "forward", b.getFunctionType({ids, ids}, {logits}));
    func.setArgAttrs(0, idsAttrs("input_ids"));
    func.setArgAttrs(1, maskAttrs("attention_mask", padding));
    func.setResultAttrs(0, {nameAttr("logits")});
    Block *body = func.addEntryBlock();
    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToStart(body);
    mask = body->getArgument(1);

    Value h = startStack(body->getArgument(0));
    for (layer = 0; layer < int64_t(spec.layers.size()); ++layer) {
      h = attentionBlock(h);
      h = feedForwardBlock(h);
    }
    func::ReturnOp::create(b, loc, head(finalNorm(h)));
  }
};

} // namespace

OwningOpRef<ModuleOp> moira::buildDecoder(MLIRContext &context, const ModelSpec &spec,
                                          const WeightTable &weights, const ProgramShape &shape) {
  return DecoderBuilder(context, spec, weights, shape).build();
}
