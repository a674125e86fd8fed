//===- MinCut.h - the cheapest separation of a network ----------*- C++ -*-===//
// Maximum flow by Dinic's algorithm, and the minimum cut that it proves. No IR here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_ANALYSIS_MINCUT_H
#define MOIRA_ANALYSIS_MINCUT_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moira {

/// A directed network with capacities.
///
///     source ─5▶ a ─2▶ b ─9▶ sink         minCut: 2, with a on the source's side and b on the
///                                         sink's
class FlowNetwork {
public:
  /// More than any sum of other capacities may be.
  static constexpr int64_t kInfinite = INT64_MAX / 4;

  explicit FlowNetwork(unsigned nodes) : edgesOf(nodes) {}

  void addEdge(unsigned from, unsigned to, int64_t capacity);

  struct Cut {
    int64_t capacity = 0;       ///< what crosses it; kInfinite or more: there is none
    std::vector<bool> sinkSide; ///< for each node
  };
  /// Of all minimum cuts the one nearest to the sink: the fewest nodes are on the sink's side. Uses
  /// up the network.
  Cut minCut(unsigned source, unsigned sink);

private:
  struct Edge {
    unsigned to;
    int64_t left; ///< capacity that is not used; the edge with the number ^1 goes back
  };
  bool levelFrom(unsigned source, unsigned sink);
  int64_t augment(unsigned source, unsigned sink);

  std::vector<Edge> edges;
  std::vector<std::vector<unsigned>> edgesOf;
  std::vector<int> level;
  std::vector<std::size_t> next;
};

} // namespace moira

#endif // MOIRA_ANALYSIS_MINCUT_H
