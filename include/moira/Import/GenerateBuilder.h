//===- GenerateBuilder.h - the programs that generate tokens ----*- C++ -*-===//
#ifndef MOIRA_IMPORT_GENERATEBUILDER_H
#define MOIRA_IMPORT_GENERATEBUILDER_H

#include "moira/Import/DecoderBuilder.h"

namespace moira {

/// A module with one moe.state for each weight and each cache, and the functions
///
///   @prefill    takes a prompt, fills the caches, gives the first new token of each row
///   @decode     takes the last token of each row and its position, gives the next
///   @reference  takes all tokens there are and the position of the last: no cache; for the
///               reference program only (attribute moe.reference)
///
/// docs/generation.md tells their arguments. A prompt has shape.seq tokens (of an encoder-decoder:
/// shape.decSeq, and its encoder shape.seq), a row shape.maxSeq at most. All rows end at one slot.
mlir::OwningOpRef<mlir::ModuleOp> buildGenerate(mlir::MLIRContext &context, const ModelSpec &spec,
                                                const WeightTable &weights,
                                                const ProgramShape &shape);

} // namespace moira

#endif // MOIRA_IMPORT_GENERATEBUILDER_H
