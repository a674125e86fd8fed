//===- EncoderDecoderBuilder.h - two stacks as a moe module -----*- C++ -*-===//
#ifndef MOIRA_IMPORT_ENCODERDECODERBUILDER_H
#define MOIRA_IMPORT_ENCODERDECODERBUILDER_H

#include "moira/Import/DecoderBuilder.h"

namespace moira {

/// A module with one moe.state for each weight and `@forward(input_ids, attention_mask,
/// decoder_input_ids, decoder_attention_mask) → logits`; `spec` has an encoder. Else as
/// buildDecoder.
mlir::OwningOpRef<mlir::ModuleOp> buildEncoderDecoder(mlir::MLIRContext &context,
                                                      const ModelSpec &spec,
                                                      const WeightTable &weights,
                                                      const ProgramShape &shape);

} // namespace moira

#endif // MOIRA_IMPORT_ENCODERDECODERBUILDER_H
