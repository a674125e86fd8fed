//===- MinCut.cpp - the cheapest separation of a network ------------------===//
#include "moira/Analysis/MinCut.h"

#include <algorithm>

using namespace moira;

void FlowNetwork::addEdge(unsigned from, unsigned to, int64_t capacity) {
  edgesOf[from].push_back(edges.size());
  edges.push_back({to, capacity});
  edgesOf[to].push_back(edges.size());
  edges.push_back({from, 0});
}

/// Distances from the source over edges that have capacity left; false if the sink is out of reach.
bool FlowNetwork::levelFrom(unsigned source, unsigned sink) {
  level.assign(edgesOf.size(), -1);
  level[source] = 0;
  std::vector<unsigned> queue{source};
  for (size_t i = 0; i < queue.size(); ++i)
    for (unsigned e : edgesOf[queue[i]])
      if (edges[e].left > 0 && level[edges[e].to] < 0) {
        level[edges[e].to] = level[queue[i]] + 1;
        queue.push_back(edges[e].to);
      }
  return level[sink] >= 0;
}

/// Sends what one shortest path takes; 0 if none is left. A path is a stack, because it may be as
/// long as the program.
int64_t FlowNetwork::augment(unsigned source, unsigned sink) {
  std::vector<unsigned> path;
  for (unsigned node = source; node != sink;) {
    bool advanced = false;
    for (size_t &i = next[node]; i < edgesOf[node].size(); ++i) {
      const Edge &edge = edges[edgesOf[node][i]];
      if (edge.left > 0 && level[edge.to] == level[node] + 1) {
        path.push_back(edgesOf[node][i]);
        node = edge.to;
        advanced = true;
        break;
      }
    }
    if (advanced)
      continue;
    if (path.empty())
      return 0;
    node = edges[path.back() ^ 1].to;
    path.pop_back();
    ++next[node];
  }
  int64_t flow = kInfinite;
  for (unsigned e : path)
    flow = std::min(flow, edges[e].left);
  for (unsigned e : path) {
    edges[e].left -= flow;
    edges[e ^ 1].left += flow;
  }
  return flow;
}

FlowNetwork::Cut FlowNetwork::minCut(unsigned source, unsigned sink) {
  Cut cut;
  while (cut.capacity < kInfinite && levelFrom(source, sink)) {
    next.assign(edgesOf.size(), 0);
    while (int64_t flow = augment(source, sink)) {
      cut.capacity += flow;
      if (cut.capacity >= kInfinite)
        break;
    }
  }
  // Everything from which the sink can still be reached.
  cut.sinkSide.assign(edgesOf.size(), false);
  cut.sinkSide[sink] = true;
  std::vector<unsigned> queue{sink};
  for (size_t i = 0; i < queue.size(); ++i)
    for (unsigned e : edgesOf[queue[i]]) {
      unsigned from = edges[e].to;
      if (edges[e ^ 1].left > 0 && !cut.sinkSide[from]) {
        cut.sinkSide[from] = true;
        queue.push_back(from);
      }
    }
  return cut;
}
