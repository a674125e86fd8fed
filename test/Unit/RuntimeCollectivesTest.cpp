//===- RuntimeCollectivesTest.cpp -------------------------------*- C++ -*-===//
// Shows that collectives along any dimension, over groups of any axes, do what their names say:
// against an oracle that works on global arrays of all ranks' tensors.
//===----------------------------------------------------------------------===//
#include "RuntimePlanBuilder.h"

#include "moira/rt/Collectives.h"
#include "moira/rt/Mesh.h"
#include "moira/rt/Ranks.h"

#include <gmock/gmock.h>
#include <numeric>
#include <random>
#include <unistd.h>

using namespace moira::rt;
using namespace moira::test;

namespace {

int64_t product(const Shape &shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<>());
}

using Tensor = std::vector<float>;

float &at(Tensor &t, const Shape &shape, const Shape &index) {
  int64_t flat = 0;
  for (size_t d = 0; d < shape.size(); ++d)
    flat = flat * shape[d] + index[d];
  return t[flat];
}

template <typename Fn> void forAll(const Shape &shape, Fn fn) {
  Shape index(shape.size(), 0);
  for (;;) {
    fn(index);
    size_t d = shape.size();
    while (d > 0 && ++index[d - 1] == shape[d - 1])
      index[--d] = 0;
    if (d == 0)
      return;
  }
}

/// What member `self` of a group has at the end, from all members' inputs.
Tensor oracle(const CollectiveSpec &spec, std::vector<Tensor> ins, const Shape &shape,
              const Shape &outShape, int64_t self) {
  Tensor out(product(outShape));
  const int64_t n = static_cast<int64_t>(ins.size());
  auto reduce = [&](const Shape &index) {
    // Runs of an odd length one after the other, then neighbours in pairs.
    std::vector<float> values;
    for (Tensor &in : ins)
      values.push_back(at(in, shape, index));
    auto join = [&](float a, float b) {
      return spec.op == fb::Reduce::max ? std::max(a, b) : a + b;
    };
    size_t odd = values.size();
    while (odd % 2 == 0)
      odd /= 2;
    std::vector<float> runs;
    for (size_t i = 0; i < values.size(); ++i)
      if (i % odd == 0)
        runs.push_back(values[i]);
      else
        runs.back() = join(runs.back(), values[i]);
    for (; runs.size() > 1; runs.resize(runs.size() / 2))
      for (size_t i = 0; i < runs.size() / 2; ++i)
        runs[i] = join(runs[2 * i], runs[2 * i + 1]);
    return runs[0];
  };
  forAll(outShape, [&](const Shape &index) {
    Shape from = index;
    float &to = at(out, outShape, index);
    switch (spec.kind) {
    case fb::CollectiveKind::all_reduce:
      to = reduce(index);
      break;
    case fb::CollectiveKind::all_gather:
      from[spec.dim] %= shape[spec.dim];
      to = at(ins[index[spec.dim] / shape[spec.dim]], shape, from);
      break;
    case fb::CollectiveKind::reduce_scatter:
      from[spec.dim] += self * outShape[spec.dim];
      to = reduce(from);
      break;
    case fb::CollectiveKind::all_to_all: {
      // The sender of an element is told by its place along the concatenated dimension. The
      // receiver sees a tensor that is the split dimension's `self`-th part of each sender's.
      int64_t part = outShape[spec.concatDim] / n;
      int64_t sender = index[spec.concatDim] / part;
      from[spec.concatDim] -= sender * part;
      from[spec.splitDim] += self * (shape[spec.splitDim] / n);
      to = at(ins[sender], shape, from);
      break;
    }
    }
  });
  return out;
}

TEST(RuntimeCollectives, MatchTheOracleOnRandomMeshes) {
  const unsigned seed = 7;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int trial = 0; trial < 120; ++trial) {
    SCOPED_TRACE("trial " + std::to_string(trial));
    PlanBuilder builder({{{"dp", static_cast<uint32_t>(pick(1, 2))},
                          {"ep", static_cast<uint32_t>(pick(1, 3))},
                          {"tp", static_cast<uint32_t>(pick(1, 2))}}});
    auto &p = builder.program(false);
    p.output("x", fb::DType::f32, {1}, {{}}, p.input("x", fb::DType::f32, {1}, {{}}));
    std::vector<uint8_t> bytes = builder.finish();
    auto plan = PlanFile::fromBytes(bytes);
    ASSERT_TRUE(plan) << plan.status().str();
    const fb::Program &program = *plan->program("forward");
    const int ranks = static_cast<int>(program.ranks());

    Axes axes = {0, 1, 2};
    std::shuffle(axes.begin(), axes.end(), random);
    axes.resize(pick(1, 3));
    int64_t n = MeshPosition(plan->plan(), program, 0).size(axes);

    CollectiveSpec spec;
    spec.kind = static_cast<fb::CollectiveKind>(pick(0, 3));
    spec.op = static_cast<fb::Reduce>(pick(0, 1));
    Shape shape;
    int rank = pick(1, 4);
    for (int d = 0; d < rank; ++d)
      shape.push_back(pick(1, 3));
    spec.dim = pick(0, rank - 1);
    spec.splitDim = pick(0, rank - 1);
    spec.concatDim = pick(0, rank - 1);
    shape[spec.kind == fb::CollectiveKind::all_to_all ? spec.splitDim : spec.dim] *= n;
    auto outShape = collectiveShape(spec, shape, n);
    ASSERT_TRUE(outShape) << outShape.status().str();

    std::vector<Tensor> ins(ranks), outs(ranks);
    for (Tensor &t : ins) {
      t.resize(product(shape));
      for (float &x : t)
        x = static_cast<float>(pick(-1000, 1000)) / 7;
    }
    Ranks team = std::move(*Ranks::threads(ranks, 20));
    Status status = team.each([&](int r) -> Ranks::Verdict {
      Staging staging;
      outs[r].resize(product(*outShape));
      return runCollective(spec, MeshPosition(plan->plan(), program, r).group(axes),
                           team.communicator(r), {ins[r].data(), fb::DType::f32, shape},
                           {outs[r].data(), fb::DType::f32, *outShape}, staging, "test");
    });
    ASSERT_TRUE(status) << status.str();
    for (int r = 0; r < ranks; ++r) {
      Group group = MeshPosition(plan->plan(), program, r).group(axes);
      ASSERT_EQ(group.members[group.self], r);
      std::vector<Tensor> members;
      for (int m : group.members)
        members.push_back(ins[m]);
      // Equal bits: sums are made in member order.
      if (spec.kind == fb::CollectiveKind::all_to_all && spec.splitDim == spec.concatDim) {
        // The same dimension is cut and joined: a transpose of blocks.
        Tensor want(product(*outShape));
        int64_t block = shape[spec.splitDim] / n;
        forAll(*outShape, [&](const Shape &index) {
          Shape from = index;
          int64_t sender = index[spec.splitDim] / block;
          from[spec.splitDim] = group.self * block + index[spec.splitDim] % block;
          at(want, *outShape, index) = at(members[sender], shape, from);
        });
        ASSERT_EQ(outs[r], want);
        continue;
      }
      ASSERT_EQ(outs[r], oracle(spec, members, shape, *outShape, group.self));
    }
  }
}

TEST(RuntimeCollectives, RefuseWhatDoesNotDivide) {
  CollectiveSpec spec;
  spec.kind = fb::CollectiveKind::reduce_scatter;
  spec.dim = 0;
  Shape shape = {5, 2};
  EXPECT_FALSE(collectiveShape(spec, shape, 2));
  spec.dim = 2;
  EXPECT_FALSE(collectiveShape(spec, shape, 2));
  spec.kind = fb::CollectiveKind::all_to_all;
  spec.splitDim = 0;
  EXPECT_FALSE(collectiveShape(spec, shape, 2));
}

TEST(RuntimeRanks, FirstFailureIsTheOneReported) {
  Ranks team = std::move(*Ranks::threads(3, 20));
  Status status = team.each([&](int r) -> Ranks::Verdict {
    if (r == 1)
      return Status(ErrorId::BadRun, "rank 1 has had enough");
    return team.communicator(r).barrier("waiting");
  });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.diagnostics().front().id, ErrorId::BadRun);
  EXPECT_THAT(status.str(), testing::HasSubstr("rank 1 has had enough"));
}

TEST(RuntimeRanksDeathTest, ARankThatHangsDoesNotKeepTheProcessAlive) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        Ranks team = std::move(*Ranks::threads(2, 20));
        team.lastWords = [](const Status &status) { std::fputs(status.str().c_str(), stderr); };
        Status never = team.each([&](int r) -> Ranks::Verdict {
          if (r == 1)
            return Status(ErrorId::BadRun, "rank 1 has had enough");
          for (;;)
            pause();
        });
      },
      testing::ExitedWithCode(2), "MOE-0508: rank 1 has had enough");
}

TEST(RuntimeRanks, TooManyThreadsAreRefused) {
  auto ranks = Ranks::threads(100000, 20);
  ASSERT_FALSE(ranks);
  EXPECT_EQ(ranks.status().diagnostics().front().id, ErrorId::WrongWorldSize);
}

TEST(RuntimeRanks, ExceptionsBecomeErrors) {
  Ranks team = std::move(*Ranks::threads(2, 20));
  Status status = team.each([&](int r) -> Ranks::Verdict {
    if (r == 0)
      throw std::bad_alloc();
    return team.communicator(r).barrier("waiting");
  });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.diagnostics().front().id, ErrorId::OutOfMemory);
}

} // namespace
