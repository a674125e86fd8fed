//===- Encoder.h - the encoder's stack of a program -------------*- C++ -*-===//
// What every program of an encoder-decoder begins with that does not find the encoder's output in a
// cache.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_IMPORT_ENCODER_H
#define MOIRA_LIB_IMPORT_ENCODER_H

#include "BlockBuilder.h"

namespace moira {

/// What cross-attention reads: x [B,S,D], and positions [S] and mask [B,S] of its tokens.
struct Encoded {
  mlir::Value x, positions, mask;
};

class Encoder : BlockBuilder {
public:
  Encoder(mlir::MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
          int64_t batch, bool bf16)
      : BlockBuilder(context, spec, weights, batch, bf16, /*ofEncoder=*/true) {}

  /// Adds the stack at the end of `body`.
  Encoded build(mlir::Block *body, mlir::Value ids, mlir::Value attentionMask) {
    b.setInsertionPointToEnd(body);
    mask = attentionMask;
    mlir::Value h = startStack(ids);
    for (layer = 0; layer < int64_t(spec.layers.size()); ++layer) {
      h = attentionBlock(h);
      h = feedForwardBlock(h);
    }
    return {finalNorm(h), positions, mask};
  }
};

} // namespace moira

#endif // MOIRA_LIB_IMPORT_ENCODER_H
