//===- Mesh.cpp - one rank's place in the mesh ----------------------------===//
// See Mesh.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Mesh.h"

#include <algorithm>
#include <numeric>

namespace moira::rt {

std::span<const uint8_t> axesOf(const flatbuffers::Vector<uint8_t> *axes) {
  return axes ? std::span<const uint8_t>(axes->data(), axes->size()) : std::span<const uint8_t>();
}

MeshPosition::MeshPosition(const fb::Plan &plan, const fb::Program &program, int rank)
    : self(rank) {
  size_t n = plan.axes()->size();
  sizes.assign(n, 1);
  coordinates.assign(n, 0);
  strides.assign(n, 0);
  if (program.ranks() == 1)
    return;
  int64_t stride = 1;
  for (size_t i = n; i-- > 0;) {
    sizes[i] = plan.axes()->Get(i)->size();
    strides[i] = stride;
    coordinates[i] = rank / stride % sizes[i];
    stride *= sizes[i];
  }
}

int64_t MeshPosition::size(std::span<const uint8_t> axes) const {
  int64_t product = 1;
  for (uint8_t a : axes)
    product *= sizes[a];
  return product;
}

int64_t MeshPosition::index(std::span<const uint8_t> axes) const {
  int64_t index = 0;
  for (uint8_t a : axes)
    index = index * sizes[a] + coordinates[a];
  return index;
}

Group MeshPosition::group(std::span<const uint8_t> axes) const {
  Group group;
  int64_t base = self;
  for (uint8_t a : axes)
    base -= coordinates[a] * strides[a];
  int64_t count = size(axes);
  for (int64_t i = 0; i < count; ++i) {
    int64_t rest = i, rank = base;
    for (size_t j = axes.size(); j-- > 0;) {
      rank += rest % sizes[axes[j]] * strides[axes[j]];
      rest /= sizes[axes[j]];
    }
    group.members.push_back(static_cast<int>(rank));
  }
  group.self = static_cast<int>(index(axes));
  return group;
}

Shard MeshPosition::shard(
    const flatbuffers::Vector<int64_t> &shape,
    const flatbuffers::Vector<flatbuffers::Offset<fb::DimSharding>> &dims) const {
  Shard shard;
  std::vector<bool> used(sizes.size(), false);
  for (size_t d = 0; d < shape.size(); ++d) {
    std::span<const uint8_t> axes = axesOf(dims.Get(d)->axes());
    int64_t global = shape.Get(d);
    int64_t local = (global + dims.Get(d)->pad()) / size(axes);
    int64_t start = std::min(index(axes) * local, global);
    shard.global.push_back(global);
    shard.local.push_back(local);
    shard.start.push_back(start);
    shard.valid.push_back(std::min(local, global - start));
    for (uint8_t a : axes)
      used[a] = true;
  }
  for (size_t a = 0; a < sizes.size(); ++a)
    shard.owner &= used[a] || coordinates[a] == 0;
  return shard;
}

Group worldGroup(const Communicator &communicator) {
  Group group;
  group.members.resize(communicator.size());
  std::iota(group.members.begin(), group.members.end(), 0);
  group.self = communicator.rank();
  return group;
}

} // namespace moira::rt
