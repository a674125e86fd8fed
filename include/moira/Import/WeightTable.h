//===- WeightTable.h - the weights of a model and where they lie -*- C++ -*-===//
// Every state tensor that a ModelSpec needs, and the exact accounting of a checkpoint's tensors
// against it: each needed tensor is there with its shape, each tensor that is there is needed or
// known not to be.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_WEIGHTTABLE_H
#define MOIRA_IMPORT_WEIGHTTABLE_H

#include "moira/Import/ModelSpec.h"
#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"
#include <compare>
#include <map>

namespace moira {

/// One state tensor.
struct WeightState {
  std::string name; // the symbol
  WeightRole role;
  int64_t layer = -1; // −1: outside of the layers; a decoder's are numbered after its encoder's
  llvm::SmallVector<int64_t> shape; // [experts,] [names,] block…
  std::vector<std::string> from;    // names in the checkpoint, {e} for the expert
  bool perExpert = false;
  bool separateExperts = false;         // as moe.state has it
  llvm::SmallVector<int64_t> diskShape; // of each named tensor
  llvm::SmallVector<int64_t> permute;   // of its dimensions, as #moe.source has it; empty: none
  llvm::SmallVector<int64_t> slice;     // as #moe.source has it; empty: none

  int64_t elements() const;
  /// False for the later ones of several states that share the tensors in `from` by slices.
  bool isFirstPart() const { return slice.empty() || slice[1] == 0; }
};

class WeightTable {
public:
  /// All weights of `spec`; layouts[l] is the number of the ExpertLayout of layer l (ignored for
  /// dense layers), an encoder's layers before its decoder's.
  WeightTable(const ModelSpec &spec, llvm::ArrayRef<unsigned> layouts);

  /// In the order of the model: embedding, layers and norm of each stack, head.
  const std::vector<WeightState> &states() const { return all; }
  /// The weight, or null if the model has none in this role. `layer` counts within its stack.
  const WeightState *find(WeightRole role, int64_t layer = -1, bool ofEncoder = false) const;

  int64_t parameters() const;
  /// Parameters that one token meets: all but the experts not chosen.
  int64_t activeParameters() const;
  /// Tensors that a checkpoint in these layouts has.
  int64_t tensors() const;

private:
  struct Key {
    bool ofEncoder;
    int64_t layer;
    WeightRole role;
    auto operator<=>(const Key &) const = default;
  };
  class StackAdder;
  void add(const ModelSpec &stack, bool ofEncoder, llvm::ArrayRef<unsigned> layouts);

  const ModelSpec &spec;
  std::vector<WeightState> all;
  std::map<Key, size_t> index;
};

/// A tensor of a checkpoint, as its header describes it.
struct StoredTensor {
  std::string name;
  std::string type; // "F32", "BF16", …
  std::vector<int64_t> shape;
  std::string file; // for messages
};

/// The layout of each layer's experts, from the names that are there (0 where there are none), in
/// the order that WeightTable takes. A layer in several layouts is an ExtraTensor.
std::vector<unsigned> detectLayouts(const ModelSpec &spec, llvm::ArrayRef<StoredTensor> stored,
                                    rt::Status &status);

/// Adds MissingTensor, TensorShape, TensorDType and ExtraTensor problems: of each kind the first
/// few by name, and how many more. Names of tensors that are known to be read by nobody are
/// appended to `unused`.
void account(const ModelSpec &spec, const WeightTable &table, llvm::ArrayRef<StoredTensor> stored,
             rt::Status &status, std::vector<std::string> *unused = nullptr);

/// `pattern` with its {l} and {e} (−1: kept) replaced.
std::string expandName(llvm::StringRef pattern, int64_t layer, int64_t expert = -1);

} // namespace moira

#endif // MOIRA_IMPORT_WEIGHTTABLE_H
