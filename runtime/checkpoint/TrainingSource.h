//===- TrainingSource.h - a training checkpoint as a model ------*- C++ -*-===//
// The weights in a training checkpoint, under the names and in the layout of the model directory
// that they came from: the way from a training run back to transformers.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_TRAININGSOURCE_H
#define MOIRA_CHECKPOINT_TRAININGSOURCE_H

#include "ModelSource.h"

namespace moira::ckpt {

/// `checkpoint` is a run's directory (then its newest checkpoint) or a step's. `plan` has trained
/// it, or any plan of that model and optimizer: it says which tensor is what. `model` is a model
/// directory or a config.json, for the config (which will say that tensors are F32) and what else
/// belongs to a model. What a tensor needs is read, checked, when it is. Everything that opening
/// finds.
rt::Expected<std::unique_ptr<ModelSource>>
openTrainingModel(const std::string &checkpoint, const std::string &plan, const std::string &model);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_TRAININGSOURCE_H
