//===- ExchangeCost.h - how long collectives take ---------------*- C++ -*-===//
// Rings, trees and pairwise messages by the model that NCCL chooses its algorithms with.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SIM_EXCHANGECOST_H
#define MOIRA_RT_SIM_EXCHANGECOST_H

#include "moira/rt/Simulate.h"

namespace moira::rt {

/// Where the ranks of one group stand.
struct GroupPlace {
  int64_t ranks = 1;
  int64_t nodes = 1;
  int64_t ranksOfNode = 1; ///< in the node with the fewest of them
};

/// The most spread group of those that differ along `axes` only.
GroupPlace placeOf(const fb::Plan &plan, const fb::Program &program, std::span<const uint8_t> axes,
                   int devicesPerNode);

/// Seconds, with `bytes` of this rank's operand. Source: NCCL, src/graph/tuning.cc.
double exchangeSeconds(fb::CollectiveKind kind, double bytes, const GroupPlace &place,
                       const SimCluster &cluster);

} // namespace moira::rt

#endif // MOIRA_RT_SIM_EXCHANGECOST_H
