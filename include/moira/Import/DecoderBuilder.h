//===- DecoderBuilder.h - a ModelSpec as a moe module -----------*- C++ -*-===//
#ifndef MOIRA_IMPORT_DECODERBUILDER_H
#define MOIRA_IMPORT_DECODERBUILDER_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "moira/Import/WeightTable.h"

namespace moira {

/// The global program for one batch size and length.
struct ProgramShape {
  int64_t batch = 1, seq = 1;
  /// The compute type, of what products multiply: f32, or bf16. The residual stream, gates, norms,
  /// rotary tables and the resulting logits are f32 always.
  bool bf16 = false;
  /// Of an encoder-decoder: tokens of the decoder; `seq` are the encoder's.
  int64_t decSeq = 1;
  /// Of programs that generate: tokens that a row has at most, prompt and new ones.
  int64_t maxSeq = 1;
  /// Whether masks may have zeros. Programs that generate always take them.
  bool padding = true;
};

/// A module with one moe.state for each weight and `@forward(input_ids, attention_mask) → logits`.
/// Every operation's location is the path of its torch module ("model.layers.0.self_attn"). The moe
/// and func dialects must be loaded.
mlir::OwningOpRef<mlir::ModuleOp> buildDecoder(mlir::MLIRContext &context, const ModelSpec &spec,
                                               const WeightTable &weights,
                                               const ProgramShape &shape);

} // namespace moira

#endif // MOIRA_IMPORT_DECODERBUILDER_H
