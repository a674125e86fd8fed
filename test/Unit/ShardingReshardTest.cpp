//===- ShardingReshardTest.cpp - reshards on real numbers -----------------===//
// A small SPMD interpreter carries out the steps of planReshard on every rank of a mesh and
// compares the shards with those cut from the global tensor: once for the documented examples, and
// for random pairs of shardings. It also shows that no plan sends more than the plain way does.
//===----------------------------------------------------------------------===//
#include "ShardingTestUtil.h"
#include <random>

using namespace mlir;
using namespace moira;
using dist::DimShardingAttr;
using dist::ShardingAttr;

namespace {

constexpr int64_t kSize = 8; // of both dimensions
using Matrix = std::vector<double>;

/// What one rank holds: rows × cols numbers.
struct Shard {
  int64_t rows, cols;
  Matrix data;
  bool operator==(const Shard &) const = default;
};
using State = std::vector<Shard>; // one per rank

class ReshardTest : public ShardingTest {
protected:
  MeshInfo info = mesh("dp=2,ep=2,tp=2");

  /// Row-major index of a rank along axes.
  int64_t indexOf(int64_t rank, ArrayRef<StringAttr> axes) {
    int64_t index = 0;
    for (StringAttr axis : axes) {
      int64_t stride = 1, coordinate = 0;
      for (int64_t i = info.names.size() - 1; i >= 0; --i) {
        if (info.names[i] == axis)
          coordinate = rank / stride % info.sizes[i];
        stride *= info.sizes[i];
      }
      index = index * info.sizeOf(axis.getValue()) + coordinate;
    }
    return index;
  }

  Shard cut(const Shard &all, int64_t dim, int64_t index, int64_t parts) {
    Shard out{all.rows / (dim == 0 ? parts : 1), all.cols / (dim == 1 ? parts : 1), {}};
    for (int64_t i = 0; i < out.rows; ++i)
      for (int64_t j = 0; j < out.cols; ++j)
        out.data.push_back(all.data[(i + (dim == 0 ? index * out.rows : 0)) * all.cols + j +
                                    (dim == 1 ? index * out.cols : 0)]);
    return out;
  }

  Shard concat(ArrayRef<Shard> parts, int64_t dim) {
    Shard out{parts[0].rows * (dim == 0 ? int64_t(parts.size()) : 1),
              parts[0].cols * (dim == 1 ? int64_t(parts.size()) : 1),
              {}};
    for (int64_t i = 0; i < out.rows; ++i)
      for (int64_t j = 0; j < out.cols; ++j) {
        const Shard &part = parts[dim == 0 ? i / parts[0].rows : j / parts[0].cols];
        out.data.push_back(part.data[i % part.rows * part.cols + j % part.cols]);
      }
    return out;
  }

  Shard add(Shard a, const Shard &b) {
    for (size_t i = 0; i < a.data.size(); ++i)
      a.data[i] += b.data[i];
    return a;
  }

  /// The shards of a global tensor; partial ones are random numbers that add up.
  State layOut(const Shard &global, ShardingAttr sharding, std::mt19937_64 &random) {
    State state;
    int64_t copies = info.sizeOf(sharding.getPartialAxes());
    std::vector<Shard> terms(copies, global);
    for (size_t i = 0; i < global.data.size(); ++i)
      for (int64_t c = 0; c + 1 < copies; ++c) {
        terms[c].data[i] = double(random() % 100);
        terms[copies - 1].data[i] -= terms[c].data[i];
      }
    for (int64_t rank = 0; rank < info.ranks(); ++rank) {
      Shard shard = terms[indexOf(rank, sharding.getPartialAxes())];
      for (int64_t dim = 0; dim < 2; ++dim) {
        ArrayRef<StringAttr> axes = sharding.getDims()[dim].getAxes();
        shard = cut(shard, dim, indexOf(rank, axes), info.sizeOf(axes));
      }
      state.push_back(shard);
    }
    return state;
  }

  /// What all terms of a partial value add up to on each rank.
  State complete(const State &state, ArrayRef<StringAttr> axes) {
    State out;
    for (int64_t rank = 0; rank < info.ranks(); ++rank) {
      std::vector<Shard> group = groupOf(state, rank, axes);
      Shard total = group[0];
      for (const Shard &term : ArrayRef(group).drop_front())
        total = add(total, term);
      out.push_back(total);
    }
    return out;
  }

  /// The shards of the ranks that differ from `rank` only along axes, in their order.
  std::vector<Shard> groupOf(const State &state, int64_t rank, ArrayRef<StringAttr> axes) {
    std::vector<Shard> group(info.sizeOf(axes));
    SmallVector<StringAttr> others;
    for (StringAttr axis : info.names)
      if (!llvm::is_contained(axes, axis))
        others.push_back(axis);
    for (int64_t other = 0; other < info.ranks(); ++other)
      if (indexOf(other, others) == indexOf(rank, others))
        group[indexOf(other, axes)] = state[other];
    return group;
  }

  State step(const State &state, const ReshardStep &step) {
    State out;
    int64_t parts = info.sizeOf(step.axes);
    for (int64_t rank = 0; rank < info.ranks(); ++rank) {
      std::vector<Shard> group = groupOf(state, rank, step.axes);
      int64_t me = indexOf(rank, step.axes);
      switch (step.kind) {
      case ReshardKind::slice:
        out.push_back(cut(state[rank], step.dim, me, parts));
        break;
      case ReshardKind::allGather:
        out.push_back(concat(group, step.dim));
        break;
      case ReshardKind::allReduce:
        out.push_back(complete(state, step.axes)[rank]);
        break;
      case ReshardKind::reduceScatter:
        out.push_back(cut(complete(state, step.axes)[rank], step.dim, me, parts));
        break;
      case ReshardKind::allToAll: {
        for (Shard &shard : group)
          shard = cut(shard, step.toDim, me, parts);
        out.push_back(concat(group, step.dim));
        break;
      }
      }
    }
    return out;
  }

  int64_t localSize(ShardingAttr sharding) {
    int64_t size = kSize * kSize;
    for (DimShardingAttr dim : sharding.getDims())
      size /= info.sizeOf(dim.getAxes());
    return size;
  }

  /// Numbers that a rank sends, the usual ring algorithms taken.
  double sent(ShardingAttr from, ArrayRef<ReshardStep> steps) {
    double total = 0;
    for (const ReshardStep &step : steps) {
      double parts = info.sizeOf(step.axes), before = localSize(from);
      switch (step.kind) {
      case ReshardKind::slice:
        break;
      case ReshardKind::allGather:
        total += before * (parts - 1);
        break;
      case ReshardKind::allReduce:
        total += 2 * before * (parts - 1) / parts;
        break;
      case ReshardKind::reduceScatter:
      case ReshardKind::allToAll:
        total += before * (parts - 1) / parts;
        break;
      }
      from = step.result;
    }
    return total;
  }

  ShardingAttr randomSharding(std::mt19937_64 &random, ArrayRef<StringAttr> mayBePartial) {
    SmallVector<StringAttr> order(info.names), dims[2], partial;
    std::shuffle(order.begin(), order.end(), random);
    for (StringAttr axis : order)
      if (int where = random() % 4; where < 2)
        dims[where].push_back(axis);
      else if (where == 2 && llvm::is_contained(mayBePartial, axis))
        partial.push_back(axis);
    return canonicalPartial(ShardingAttr::get(&context, {DimShardingAttr::split(&context, dims[0]),
                                                         DimShardingAttr::split(&context, dims[1])})
                                .withPartial(partial),
                            info);
  }
};

TEST_F(ReshardTest, Examples) {
  struct {
    const char *from, *to, *steps;
  } claims[] = {
      {"[{}, {}]", "[{}, {}]", ""},
      {"[{}, {}], partial = sum{tp}", "[{tp}, {}]", "reduce_scatter 0 tp;"},
      {"[{}, {}], partial = sum{tp}", "[{dp}, {}]", "slice 0 dp;all_reduce tp;"},
      {"[{}, {}], partial = sum{ep, tp}", "[{}, {}], partial = sum{tp}", "all_reduce ep;"},
      {"[{}, {}], partial = sum{dp, tp}", "[{dp}, {}]", "reduce_scatter 0 dp;all_reduce tp;"},
      {"[{ep}, {}]", "[{}, {ep}]", "all_to_all 0 1 ep;"},
      {"[{dp, ep}, {}]", "[{dp}, {}]", "all_gather 0 ep;"},
      {"[{dp, ep}, {}]", "[{}, {}]", "all_gather 0 dp,ep;"},
      {"[{dp, ep}, {}]", "[{ep, dp}, {}]", "all_gather 0 dp,ep;slice 0 ep,dp;"},
      {"[{dp, ep}, {}]", "[{}, {dp}]", "all_gather 0 ep;all_to_all 0 1 dp;"},
      {"[{}, {}]", "[{dp, ep}, {tp}]", "slice 0 dp,ep;slice 1 tp;"},
      {"[{tp} pad 2, {}]", "[{}, {}]", "all_gather 0 tp;"},
      {"[{dp, tp} pad 2, {}]", "[{}, {}]", "all_gather 0 dp,tp;"},
      {"[{tp} pad 2, {}]", "[{}, {tp}]", "all_gather 0 tp;slice 1 tp;"},
      {"[{tp} pad 2, {}]", "[{dp}, {}]", "none"},
      {"[{dp, tp} pad 2, {}]", "[{dp}, {}]", "none"},
      {"[ragged{}{ep} 2x4, {}]", "[{}, {}]", "none"},
      {"[{}, {}]", "[{}, {}], partial = sum{tp}", "none"},
      {"[{}, {}], partial = max{tp}", "[{}, {}]", "all_reduce tp;"},
  };
  for (const auto &claim : claims) {
    std::string got;
    auto steps = planReshard(sharding(claim.from), sharding(claim.to));
    if (!steps)
      got = "none";
    else
      for (const ReshardStep &step : *steps) {
        const char *names[] = {"slice", "reduce_scatter", "all_to_all", "all_reduce", "all_gather"};
        got += names[int(step.kind)];
        if (step.dim >= 0)
          got += " " + std::to_string(step.dim);
        if (step.toDim >= 0)
          got += " " + std::to_string(step.toDim);
        for (auto [i, axis] : llvm::enumerate(step.axes))
          got += (i ? "," : " ") + axis.str();
        got += ";";
      }
    EXPECT_EQ(got, claim.steps) << claim.from << " to " << claim.to;
  }
}

TEST_F(ReshardTest, RandomReshardsKeepTheValue) {
  uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  Shard global{kSize, kSize, {}};
  for (int64_t i = 0; i < kSize * kSize; ++i)
    global.data.push_back(double(i));
  for (int round = 0; round < 3000; ++round) {
    ShardingAttr from = randomSharding(random, info.names);
    ShardingAttr to = randomSharding(random, from.getPartialAxes());
    SCOPED_TRACE(text(from) + "  to  " + text(to));
    auto steps = planReshard(from, to);
    ASSERT_TRUE(steps);
    State state = layOut(global, from, random);
    for (const ReshardStep &s : *steps)
      state = step(state, s);
    ShardingAttr shape = to.withPartial({});
    ASSERT_EQ(complete(state, to.getPartialAxes()), layOut(global, shape, random));
    ASSERT_EQ(steps->empty() ? from : steps->back().result, to);

    // The plain way: sum, gather everything, slice.
    ReshardStep sum{ReshardKind::allReduce, -1, -1, {}, to};
    for (StringAttr axis : from.getPartialAxes())
      if (!llvm::is_contained(to.getPartialAxes(), axis))
        sum.axes.push_back(axis);
    std::vector<ReshardStep> plain{sum};
    double size = localSize(from), plainSent = sent(from, plain);
    for (DimShardingAttr dim : from.getDims()) {
      plainSent += size * (info.sizeOf(dim.getAxes()) - 1);
      size *= info.sizeOf(dim.getAxes());
    }
    ASSERT_LE(sent(from, *steps), plainSent + 1e-9);
  }
}

} // namespace
