//===- Collectives.h - collectives along any dimension ----------*- C++ -*-===//
// The plan's collectives on local tensors, over the contiguous primitives of a Communicator:
// packing, unpacking, and the ordered sum of reduce_scatter.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COLLECTIVES_H
#define MOIRA_RT_COLLECTIVES_H

#include "moira/rt/Communicator.h"
#include "moira/rt/Device.h"

namespace moira::rt {

struct CollectiveSpec {
  fb::CollectiveKind kind = fb::CollectiveKind::all_reduce;
  fb::Reduce op = fb::Reduce::sum;     // all_reduce, reduce_scatter
  int64_t dim = 0;                     // all_gather, reduce_scatter
  int64_t splitDim = 0, concatDim = 0; // all_to_all
};

/// Staging memory of one rank, kept between calls. It is not part of the plan.
struct Staging {
  std::vector<char> send, receive;
  uint64_t bytes() const { return send.capacity() + receive.capacity(); }
};

/// The shape that `spec` makes of `shape` over `ranks` members; empty with a PlanShape status when
/// the dimensions are out of range or do not divide.
Expected<std::vector<int64_t>> collectiveShape(const CollectiveSpec &spec,
                                               std::span<const int64_t> shape, int64_t ranks);

/// Collective over the group. `in` and `out` have equal types and do not overlap, save that
/// all_reduce may work in place; out.shape is collectiveShape's. `what` names the instruction in
/// errors.
Status runCollective(const CollectiveSpec &spec, const Group &group, Communicator &communicator,
                     const TensorRef &in, const TensorRef &out, Staging &staging,
                     const std::string &what);

} // namespace moira::rt

#endif // MOIRA_RT_COLLECTIVES_H
