//===- SparseLayers.h - a model's experts and gates -------------*- C++ -*-===//
// Which tensors of a source hold the experts of each layer and their gate, found by their names and
// checked: every expert is there, once, with one shape.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_SPARSELAYERS_H
#define MOIRA_CHECKPOINT_SPARSELAYERS_H

#include "ClassNames.h"
#include "ModelSource.h"

namespace moira::ckpt {

struct SparseLayer {
  struct Role {
    const RoleNames *names;
    /// Tensors' numbers: one an expert and name (expert e's n-th at e · names + n), or one for all.
    std::vector<size_t> tensors;
  };
  const StackNames *stack;
  const ExpertLayout *layout;
  int64_t layer;  // in its stack
  int64_t number; // in the model: a decoder's after its encoder's
  int64_t experts;
  std::vector<Role> roles;
  /// Tensors with one row an expert: dimension 0 of the router and of biases [E], the last one of
  /// biases [1, E].
  std::vector<size_t> gates;
};

/// All layers with experts, in the order of the model; none for a dense model. `names` outlives
/// the result. BadConfigValue, MissingTensor, ExtraTensor (experts that the config does not count,
/// a layer in two layouts), TensorShape, TensorDType; all problems at once.
rt::Expected<std::vector<SparseLayer>> findSparseLayers(const ClassNames &names,
                                                        const ModelSource &source);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_SPARSELAYERS_H
