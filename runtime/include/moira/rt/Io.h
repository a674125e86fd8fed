//===- Io.h - a program's inputs and outputs --------------------*- C++ -*-===//
// Input tensors: from a safetensors file or memory, checked against the plan, cut into this rank's
// boxes. Output tensors: every rank's box into one file, or gathered in memory.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_IO_H
#define MOIRA_RT_IO_H

#include "moira/rt/Device.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/SafeTensorsWriter.h"

namespace moira::rt {

/// A global tensor in memory, C order; `data` need not be aligned.
struct HostTensor {
  fb::DType type;
  std::vector<int64_t> shape;
  const void *data;
};

/// Checked inputs of one program. Thread-safe once made; keeps the file mapped.
///
/// A program that takes one of several parts of a batch takes the part that was chosen last. Inputs
/// of more than one dimension hold the rows of all parts then, one part after another.
class InputSet {
public:
  /// FileNotFound, BadSafetensors, or BadInput with every problem: a missing tensor, a wrong type
  /// or shape, values out of range (the first position and value of each tensor).
  static Expected<InputSet> open(const std::string &path, const fb::Program &program,
                                 int64_t parts = 1);
  /// The same from memory that outlives the result. Names that the program does not have are
  /// BadInput here.
  static Expected<InputSet> fromMemory(const std::map<std::string, HostTensor> &tensors,
                                       const fb::Program &program, int64_t parts = 1);

  /// Lets the input `name` come from `data`, which outlives this: elements of the plan's type and
  /// shape (of all parts), read anew at every step and not checked. False if the program has no
  /// such input.
  bool give(std::string_view name, const void *data);
  /// The part whose rows `store` takes from now on.
  void choose(int64_t number) { part = number; }
  /// The tensor of an input, rows of all parts; null where it is filled.
  const HostTensor *find(std::string_view name) const;

  /// Names in the file that the program does not take.
  const std::vector<std::string> &ignored() const { return unused; }
  /// Writes the rank's box of input `index` to `to` (its view), pads as zero.
  void store(size_t index, const MeshPosition &position, const TensorRef &to) const;

private:
  struct Found;
  Status check(const std::string &origin, const std::function<Found(const fb::Input &)> &find);
  /// The shape of an input with the rows of all parts.
  std::vector<int64_t> shapeOf(const fb::Input &input) const;

  const fb::Program *program = nullptr;
  int64_t parts = 1, part = 0;
  std::optional<SafeTensorsFile> file;
  std::vector<std::optional<HostTensor>> sources; // one an input; absent: filled
  std::vector<std::string> unused;
};

/// Element `index` of integers.
int64_t integerAt(const void *data, fb::DType type, int64_t index);

/// "[2, 5]": the index of element `flat` of a C-order array.
std::string indexText(std::span<const int64_t> shape, int64_t flat);

/// One rank's part of a tensor that all ranks write. The spec is the same on all of them: floats as
/// F32 or F64, integers as I32 or I64, with the global shape; `local` has the shard's. With a
/// `source` the tensor is written as those that the source names, not under its own name.
struct ShardToWrite {
  TensorSpec spec;
  Shard shard;
  TensorRef local;
  const fb::Source *source = nullptr;
};

/// Writes global tensors to `path`: all ranks call it, each writes the boxes that it owns. The file
/// appears only when all have succeeded; all ranks return the same success or failure.
Status writeShards(const std::string &path, std::span<const ShardToWrite> shards,
                   Communicator &communicator);

/// One output of a program as a global tensor; doubles hold every type that outputs have.
struct GatheredOutput {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<double> values;
  bool ofWeight = false; ///< stored in the checkpoint's layout
};

/// writeShards for every output, floats as F32 (F64 from a program in f64) and integers as I64.
/// `views[i]` is output i of this rank.
Status writeOutputs(const std::string &path, const fb::Program &program,
                    const MeshPosition &position, std::span<const TensorRef> views,
                    Communicator &communicator);

/// Gathers every output to rank 0; other ranks get an empty list. Collective.
Expected<std::vector<GatheredOutput>> gatherOutputs(const fb::Plan &plan,
                                                    const fb::Program &program,
                                                    std::span<const TensorRef> views,
                                                    Communicator &communicator);

} // namespace moira::rt

#endif // MOIRA_RT_IO_H
