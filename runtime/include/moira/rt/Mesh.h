//===- Mesh.h - one rank's place in the mesh --------------------*- C++ -*-===//
// Coordinates, groups and shards by the rules of docs/architecture.md, section 2. Pure arithmetic
// on a verified plan.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_MESH_H
#define MOIRA_RT_MESH_H

#include "moira/rt/Box.h"
#include "moira/rt/Communicator.h"
#include "plan_generated.h"

#include <cstdint>
#include <span>
#include <vector>

namespace moira::rt {

/// What one rank holds of a global tensor.
struct Shard {
  std::vector<int64_t> global; // without pads
  std::vector<int64_t> local;  // of this rank, pads included
  std::vector<int64_t> start;  // first global index
  std::vector<int64_t> valid;  // elements that are not pads, 0..local
  bool owner = true;           // no lower rank holds the same shard
  /// The part without pads, as a box of the global and of the local array.
  Box inGlobal() const { return {global, start, valid}; }
  Box inLocal() const { return {local, std::vector<int64_t>(local.size(), 0), valid}; }
};

/// A rank's coordinates. Axes are given by their index in Plan.axes. In a program of one rank every
/// axis counts as 1.
class MeshPosition {
public:
  MeshPosition(const fb::Plan &plan, const fb::Program &program, int rank);

  int rank() const { return self; }
  /// Ranks that differ only along `axes`.
  int64_t size(std::span<const uint8_t> axes) const;
  /// Row-major index of this rank along `axes`.
  int64_t index(std::span<const uint8_t> axes) const;
  /// Those ranks, in row-major order over `axes` as they are listed.
  Group group(std::span<const uint8_t> axes) const;
  /// This rank's shard of a tensor with one DimSharding a dimension.
  Shard shard(const flatbuffers::Vector<int64_t> &shape,
              const flatbuffers::Vector<flatbuffers::Offset<fb::DimSharding>> &dims) const;

private:
  int self;
  std::vector<int64_t> sizes, coordinates, strides; // one for each axis of the plan
};

/// All ranks, in order.
Group worldGroup(const Communicator &communicator);

/// The axes of a FlatBuffer field; empty when it is absent.
std::span<const uint8_t> axesOf(const flatbuffers::Vector<uint8_t> *axes);

} // namespace moira::rt

#endif // MOIRA_RT_MESH_H
