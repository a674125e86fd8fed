//===- ModelSource.h - a model that can be read tensor by tensor *- C++ -*-===//
// Where moe-ckpt reads from: a config, tensors, and files to carry along. A Hugging Face directory
// is one kind of source; TrainingSource.h has another.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_CHECKPOINT_MODELSOURCE_H
#define MOIRA_CHECKPOINT_MODELSOURCE_H

#include "Config.h"

#include "moira/rt/SafeTensorsWriter.h"

#include <memory>

namespace moira::ckpt {

/// Not thread-safe.
class ModelSource {
public:
  virtual ~ModelSource() = default;

  /// What was opened, for messages.
  virtual const std::string &path() const = 0;
  virtual const Config &config() const = 0;
  /// Sorted by name.
  virtual const std::vector<rt::TensorSpec> &tensors() const = 0;
  /// Copies part of a tensor: [offset, offset + to.size()) lies in it. Reading is from front to
  /// back where it can be chosen; what is read so to its end is checked against its checksum where
  /// there is one (ChecksumMismatch).
  virtual rt::Status read(size_t tensor, uint64_t offset, std::span<uint8_t> to) const = 0;
  /// Paths of the files that belong to the model beside config and weights: tokenizer, generation
  /// defaults, licence.
  virtual std::vector<std::string> companions() const = 0;

  /// The tensor's number, or none.
  std::optional<size_t> find(std::string_view name) const;
};

/// A directory as transformers writes it: config.json, model.safetensors or shards with their
/// index. Every problem that opening finds.
rt::Expected<std::unique_ptr<ModelSource>> openModel(const std::string &directory);

/// Paths of the files in a model's directory that belong to it beside config and weights, sorted.
std::vector<std::string> companionsOf(const std::string &directory);

/// Elements of a tensor.
uint64_t elementsOf(const rt::TensorSpec &tensor);
/// Bytes of `elements` elements.
uint64_t bytesOf(rt::TensorType type, uint64_t elements);

} // namespace moira::ckpt

#endif // MOIRA_CHECKPOINT_MODELSOURCE_H
