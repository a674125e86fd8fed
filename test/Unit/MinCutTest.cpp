//===- MinCutTest.cpp - cuts against all cuts there are ---------------------===//
// Small random networks, of which every separation can be tried.
//===----------------------------------------------------------------------===//
#include "moira/Analysis/MinCut.h"

#include "gtest/gtest.h"
#include <random>

using namespace moira;

namespace {

struct Edge {
  unsigned from, to;
  int64_t capacity;
};

int64_t crossing(const std::vector<Edge> &edges, auto onSinkSide) {
  int64_t sum = 0;
  for (const Edge &edge : edges)
    if (!onSinkSide(edge.from) && onSinkSide(edge.to))
      sum += edge.capacity;
  return sum;
}

TEST(MinCut, IsTheCheapestAndNearestToTheSink) {
  std::mt19937 engine(7);
  auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(engine);
  };
  for (int i = 0; i < 400; ++i) {
    unsigned nodes = unsigned(draw(2, 9)); // 0 is the source, 1 the sink
    std::vector<Edge> edges;
    for (int e = draw(0, 25); e > 0; --e)
      edges.push_back(
          {unsigned(draw(0, int(nodes) - 1)), unsigned(draw(0, int(nodes) - 1)), draw(0, 4)});
    FlowNetwork network(nodes);
    for (const Edge &edge : edges)
      network.addEdge(edge.from, edge.to, edge.capacity);
    FlowNetwork::Cut cut = network.minCut(0, 1);

    int64_t least = FlowNetwork::kInfinite, fewest = nodes;
    for (unsigned side = 0; side < 1u << nodes; ++side) {
      if ((side & 1) || !(side & 2))
        continue;
      auto onSinkSide = [&](unsigned node) { return side >> node & 1; };
      int64_t sum = crossing(edges, onSinkSide), size = __builtin_popcount(side);
      if (sum < least || (sum == least && size < fewest)) {
        least = sum;
        fewest = size;
      }
    }
    EXPECT_EQ(cut.capacity, least);
    EXPECT_EQ(crossing(edges, [&](unsigned node) { return bool(cut.sinkSide[node]); }), least);
    EXPECT_EQ(std::count(cut.sinkSide.begin(), cut.sinkSide.end(), true), fewest);
    EXPECT_FALSE(cut.sinkSide[0]);
  }
}

TEST(MinCut, TellsWhereThereIsNone) {
  FlowNetwork network(3);
  network.addEdge(0, 2, FlowNetwork::kInfinite);
  network.addEdge(2, 1, FlowNetwork::kInfinite);
  EXPECT_GE(network.minCut(0, 1).capacity, FlowNetwork::kInfinite);
}

TEST(MinCut, LongChainsTakeNoStack) {
  constexpr unsigned kLength = 200000;
  FlowNetwork network(kLength);
  network.addEdge(0, 2, 5);
  for (unsigned i = 2; i + 1 < kLength; ++i)
    network.addEdge(i, i + 1, i == 777 ? 3 : 5);
  network.addEdge(kLength - 1, 1, 5);
  FlowNetwork::Cut cut = network.minCut(0, 1);
  EXPECT_EQ(cut.capacity, 3);
  EXPECT_FALSE(cut.sinkSide[777]);
  EXPECT_TRUE(cut.sinkSide[778]);
}

} // namespace
