//===- Transforms.h - models made of models ---------------------*- C++ -*-===//
// What to write for each command of moe-ckpt that changes a model. Nothing is computed here: the
// results are recipes for ModelWriter.h. Sources outlive them.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_TRANSFORMS_H
#define MOIRA_CHECKPOINT_TRANSFORMS_H

#include "ModelWriter.h"

namespace moira::ckpt {

/// Every tensor as it is, config and companions.
ModelToWrite copyModel(const ModelSource &source);

struct ConvertOptions {
  std::optional<rt::TensorType> type; // of all floating-point tensors; the config then says so
  /// "separate" (each expert's tensors by themselves), "stacked", or the name of one of the class's
  /// layouts; empty: as it is.
  std::string layout;
};
/// BadUsage: the class has no such layout; and what findSparseLayers finds.
rt::Expected<ModelToWrite> convertModel(const ModelSource &source, const ConvertOptions &options);

/// Aggregation of Experts: shared weights are averaged, gates concatenated, experts united: those
/// of `a`, then those of `b`. Types and layouts are a's, and expert groups double with the experts.
/// BadUsage: no experts, different classes or layouts; BadConfigValue: other sizes of the model;
/// MissingTensor, ExtraTensor, TensorShape, TensorDType where the two have different tensors.
rt::Expected<ModelToWrite> aggregateModels(const ModelSource &a, const ModelSource &b);

struct PruneOptions {
  int64_t keep = 0;               // experts a layer
  std::optional<uint64_t> random; // seed of the choice
  std::string mostUsed;           // or a file of moe-run --dump-routing
  std::vector<int64_t> experts;   // or these, in every layer
};
/// Keeps so many experts of every layer, in their old order. Random: those with the largest
/// Philox(seed; layer, expert); most used: those that most choices in the file went to, of equal
/// ones the first. Where a gate chooses among groups every group keeps as many. BadUsage, BadInput,
/// and what findSparseLayers finds. `kept` gets each layer's list, by the layer's number.
rt::Expected<ModelToWrite> pruneModel(const ModelSource &source, const PruneOptions &options,
                                      std::map<int64_t, std::vector<int64_t>> *kept = nullptr);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_TRANSFORMS_H
