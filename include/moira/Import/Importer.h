//===- Importer.h - model directories → the moe dialect ---------*- C++ -*-===//
// config.json and the headers of the safetensors files beside it; no weight is read.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_IMPORTER_H
#define MOIRA_IMPORT_IMPORTER_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "moira/Import/ConfigValues.h"

namespace moira {

struct ImportOptions {
  int64_t batch = 1, seq = 1;
  int64_t microBatches = 1;     // --task=train: parts that the batch is taken in; divides it
  std::string dtype = "f32";    // f32 or bf16: type of weights and activations
  std::string task = "forward"; // or generate
  /// Tokens of an encoder-decoder's decoder; default: seq, of --task=generate 1.
  std::optional<int64_t> decSeq;
  /// --task=generate: tokens that a row has at most; default: 128 more than the prompt.
  std::optional<int64_t> maxSeq;
  bool padding = true;  // whether rows may be padded; not of --task=generate
  std::string schedule; // --task=train: of the learning rate; empty: none
  /// Operations that Moira lacks are stood in for by others of the same sizes.
  bool memoryOnly = false;
};

/// What was imported, for the report.
struct ImportSummary {
  std::string modelClass;
  uint64_t parameters = 0, activeParameters = 0;  // active: met by one token
  uint64_t tensorsExpected = 0, tensorsFound = 0; // found is 0 for a config alone
  std::vector<DefaultTaken> defaults;             // fields that the config leaves out
  std::vector<std::string> unusedTensors;         // stored, and known to be read by nobody
  std::vector<std::string> standIns; // what is stood in for, as the error without memoryOnly says
};

/// Whether `path` is what importModel reads: a directory, or a .json file.
bool looksLikeModel(llvm::StringRef path);

/// Imports a model directory, or a config.json alone (planning without weights; one tensor an
/// expert is assumed). Everything wrong with the config, or else with the tensors, is added to
/// `status` and the result is null. The module's attributes are `plan.info` and
/// `moe.config_fields`, a dictionary from sizes (experts, heads, kv_heads, dense_width,
/// expert_width, shared_width, vocab, hidden, layers) to the config fields that gave them.
mlir::OwningOpRef<mlir::ModuleOp> importModel(mlir::MLIRContext &context, llvm::StringRef path,
                                              const ImportOptions &options, rt::Status &status,
                                              ImportSummary &summary);

} // namespace moira

#endif // MOIRA_IMPORT_IMPORTER_H
