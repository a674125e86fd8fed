//===- ExchangeCost.cpp - how long collectives take -----------------------===//
// See ExchangeCost.h. A collective takes a latency, which grows with the steps of its algorithm,
// and the time of its bytes at the algorithm's bandwidth; the fastest of algorithms (ring, tree)
// and protocols (LL: 8-byte words with flags, half of the bandwidth or less; LL128: 128-byte lines
// with flags, 0.92 of it; simple: all of it, with the largest latency) is taken. Constants are
// those of NCCL's tuner.
//===----------------------------------------------------------------------===//
#include "ExchangeCost.h"

#include "moira/rt/Mesh.h"

#include <algorithm>
#include <bit>
#include <map>

namespace moira::rt {
namespace {

constexpr double kMicro = 1e-6, kGB = 1e9;

enum Protocol { LL, LL128, Simple, kProtocols };

/// In microseconds, by protocol.
struct Latencies {
  double base[kProtocols], node[kProtocols], network[kProtocols];
};
constexpr Latencies kRing = {{6.6, 14.0, 8.4}, {0.6, 1.9, 3.4}, {2.7, 4.0, 14.0}},
                    kTree = {{6.8, 14.0, 8.4}, {0.6, 1.25, 4.0}, {5.0, 8.5, 14.0}};
/// Most that LL moves, in GB/s: within a node, between two, between more.
constexpr double kMostLL[] = {141.0, 45.0, 35.0};
/// The network's overhead of a step of a ring, in microseconds; three times that for Simple.
constexpr double kStepOverhead = 1;

/// What all devices of a node that are in the group bring to its border together, or a device to
/// its neighbours, whichever is less.
double busRate(const GroupPlace &place, const SimCluster &cluster) {
  if (place.nodes == 1)
    return cluster.nodeRate;
  double border = double(place.ranksOfNode) * cluster.networkRate;
  return place.ranksOfNode == 1 ? border : std::min(cluster.nodeRate, border);
}

double mostLL(const GroupPlace &place) {
  return kMostLL[std::min<int64_t>(place.nodes, 3) - 1] * kGB;
}

double ringSeconds(double bytes, int64_t steps, const GroupPlace &place, double rate) {
  int64_t rounds = steps / (place.ranks - 1); // 2: all_reduce
  int64_t between = place.nodes == 1 ? 0 : rounds * (place.nodes - 1);
  double best = 0;
  for (int p = 0; p < kProtocols; ++p) {
    double bus = p == LL ? std::min(mostLL(place), rate * 0.5) : p == LL128 ? rate * 0.92 : rate;
    double overhead = place.nodes == 1 ? 0 : kStepOverhead * (p == Simple ? 3 : 1);
    // With one rank a node nothing hides the network.
    double far = place.ranksOfNode == 1 ? kTree.network[p] : kRing.network[p];
    double latency = kRing.base[p] + double(steps - between) * std::max(kRing.node[p], overhead) +
                     double(between) * far;
    double seconds = latency * kMicro + bytes * double(steps) / double(place.ranks) / bus;
    best = p == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

/// Up and down again: all_reduce only.
double treeSeconds(double bytes, const GroupPlace &place, double rate) {
  double best = 0;
  auto levels = double(std::bit_width(uint64_t(place.nodes)) - 1);
  for (int p = 0; p < kProtocols; ++p) {
    double bus = rate * 0.92;
    if (p == LL)
      bus = std::min(bus / 3.8, mostLL(place));
    if (p == LL128)
      bus *= place.nodes == 1 ? 7.0 / 9.0 : 120.0 / 128.0;
    double latency = kTree.base[p] + 2 * (double(place.ranksOfNode - 1) * kTree.node[p] +
                                          levels * kTree.network[p]);
    double seconds = latency * kMicro + bytes / (bus * 0.5);
    best = p == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

/// Everybody to everybody at once: within the node and between nodes beside each other.
double pairwiseSeconds(double bytes, const GroupPlace &place, const SimCluster &cluster) {
  double block = bytes / double(place.ranks);
  double near = double(place.ranksOfNode - 1) * block / cluster.nodeRate;
  double far = double(place.ranks - place.ranksOfNode) * block / cluster.networkRate;
  double latency =
      kRing.base[Simple] + (place.nodes == 1 ? kRing.node[Simple] : kRing.network[Simple]);
  return latency * kMicro + std::max(near, far);
}

} // namespace

GroupPlace placeOf(const fb::Plan &plan, const fb::Program &program, std::span<const uint8_t> axes,
                   int devicesPerNode) {
  GroupPlace worst;
  for (uint32_t rank = 0; rank < program.ranks(); ++rank) {
    Group group = MeshPosition(plan, program, int(rank)).group(axes);
    if (group.self != 0)
      continue; // seen from its first rank
    std::map<int, int64_t> ofNode;
    for (int member : group.members)
      ++ofNode[member / devicesPerNode];
    int64_t fewest = int64_t(group.members.size());
    for (const auto &[node, count] : ofNode)
      fewest = std::min(fewest, count);
    GroupPlace place{int64_t(group.members.size()), int64_t(ofNode.size()), fewest};
    if (place.nodes > worst.nodes ||
        (place.nodes == worst.nodes && place.ranksOfNode < worst.ranksOfNode) || worst.ranks == 1)
      worst = place;
  }
  return worst;
}

double exchangeSeconds(fb::CollectiveKind kind, double bytes, const GroupPlace &place,
                       const SimCluster &cluster) {
  if (place.ranks <= 1)
    return 0;
  double rate = busRate(place, cluster);
  switch (kind) {
  case fb::CollectiveKind::all_reduce:
    return std::min(ringSeconds(bytes, 2 * (place.ranks - 1), place, rate),
                    treeSeconds(bytes, place, rate));
  case fb::CollectiveKind::all_gather: // what comes out is counted
    return ringSeconds(bytes * double(place.ranks), place.ranks - 1, place, rate);
  case fb::CollectiveKind::reduce_scatter:
    return ringSeconds(bytes, place.ranks - 1, place, rate);
  case fb::CollectiveKind::all_to_all:
    break;
  }
  return pairwiseSeconds(bytes, place, cluster);
}

} // namespace moira::rt
