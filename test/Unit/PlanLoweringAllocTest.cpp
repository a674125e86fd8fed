//===- PlanLoweringAllocTest.cpp - memory of plans ------------------------===//
// Shows that what is alive at one time never shares memory: on random intervals, and on random
// programs of several queues as the plan verifier judges them.
//===----------------------------------------------------------------------===//
#include "PlanLoweringUtil.h"
#include "moira/Conversion/IntervalAllocator.h"
#include "gtest/gtest.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;

TEST(IntervalAllocator, NothingAliveTogetherOverlaps) {
  std::mt19937 random(test::seed());
  std::printf("seed %u\n", test::seed());
  double worst = 1;
  for (int round = 0; round < 300; ++round) {
    std::vector<LiveInterval> intervals(1 + random() % 60);
    for (LiveInterval &interval : intervals) {
      interval.start = random() % 40;
      interval.end = interval.start + 1 + random() % 12;
      interval.size = random() % 4 ? random() % 1000 : random() % 100000;
    }
    Placement placement = placeIntervals(intervals, 64);
    for (size_t i = 0; i < intervals.size(); ++i) {
      EXPECT_EQ(placement.offsets[i] % 64, 0u);
      EXPECT_LE(placement.offsets[i] + intervals[i].size, placement.peak);
      for (size_t j = 0; j < i; ++j) {
        bool together =
            intervals[i].start < intervals[j].end && intervals[j].start < intervals[i].end;
        bool overlap = placement.offsets[i] < placement.offsets[j] + intervals[j].size &&
                       placement.offsets[j] < placement.offsets[i] + intervals[i].size;
        ASSERT_FALSE(together && overlap)
            << "round " << round << ", intervals " << i << " and " << j;
      }
    }
    LiveMaximum most = maxLive(intervals, 64);
    ASSERT_GE(placement.peak, most.bytes);
    worst = std::max(worst, double(placement.peak) / most.bytes);
  }
  std::printf("largest peak over what is alive at once: %.3f\n", worst);
  EXPECT_LT(worst, 2.0);
}

TEST(IntervalAllocator, MaximumIsWhereItShouldBe) {
  LiveMaximum most = maxLive({{0, 3, 64}, {1, 2, 100}, {2, 5, 64}}, 64);
  EXPECT_EQ(most.bytes, 64u + 128u);
  EXPECT_EQ(most.time, 1);
}

namespace {

/// A random program on a mesh tp=2: sums and all_reduces over values made earlier, on queues
/// compute and comm (sometimes a third).
class RandomProgram {
public:
  RandomProgram(MLIRContext &context, std::mt19937 &random)
      : builder(&context), loc(builder.getUnknownLoc()), random(random) {}

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> module = ModuleOp::create(loc);
    builder.setInsertionPointToEnd(module->getBody());
    auto info = InfoAttr::get(builder.getContext(), "random", "forward", builder.getF32Type(), 0, 0,
                              0, 0, 0, 0, ArrayAttr(), StringAttr());
    auto plan =
        PlanOp::create(builder, loc, builder.getStringAttr("host"), builder.getStrArrayAttr({"tp"}),
                       builder.getDenseI64ArrayAttr({2}), builder.getStringAttr("test"), info);
    builder.createBlock(&plan.getBody());
    auto program = ProgramOp::create(
        builder, loc, builder.getStringAttr("forward"), builder.getI64IntegerAttr(2), UnitAttr(),
        builder.getStrArrayAttr({"compute", "comm", "copy"}), builder.getDenseI64ArrayAttr({3, 9}));
    builder.createBlock(&program.getBody());
    ArenaOp::create(builder, loc, "activations", ArenaRole::activations, Space::device, 0, 0);
    ArenaOp::create(builder, loc, "ragged", ArenaRole::ragged, Space::device, 0, 0);
    // Values of one shape can be added: keep one list for each.
    Value input = view({16}, false);
    auto type = RankedTensorType::get({16}, builder.getF32Type());
    InputOp::create(builder, loc, builder.getStringAttr("x"), input, TypeAttr::get(type),
                    UnitAttr(), FloatAttr(), DenseI64ArrayAttr());
    values[0].push_back(input);
    addFilled(1);
    addFilled(2);
    for (int i = 0, n = 5 + random() % 60; i < n; ++i)
      addInstruction();
    Value need = ViewOp::create(builder, loc,
                                ViewType::get(builder.getContext(), {1}, builder.getI32Type(), -1),
                                "activations", IntegerAttr(), IntegerAttr());
    FillOp::create(builder, loc, need, builder.getF64FloatAttr(0), queue(), StringAttr(),
                   IntegerAttr());
    RequireBoundOp::create(builder, loc, need, queue(), StringAttr(), IntegerAttr());
    OutputOp::create(builder, loc, builder.getStringAttr("y"), values[0].back(),
                     TypeAttr::get(type), Attribute());
    return module;
  }

private:
  Value view(ArrayRef<int64_t> shape, bool bounded) {
    auto type = ViewType::get(builder.getContext(), shape, builder.getF32Type(), bounded ? 0 : -1);
    return ViewOp::create(builder, loc, type, bounded ? "ragged" : "activations", IntegerAttr(),
                          IntegerAttr());
  }
  Value fresh(int kind) {
    static const SmallVector<int64_t> shapes[] = {{16}, {3, 100}, {2, 24}};
    return view(shapes[kind], kind == 2);
  }
  StringAttr queue() {
    static const char *names[] = {"compute", "compute", "comm", "copy"};
    return builder.getStringAttr(names[random() % 4]);
  }
  Value pick(int kind) {
    // Mostly recent values, so that memory is reused.
    size_t count = values[kind].size(),
           back = 1 + random() % std::min<size_t>(count, random() % 4 ? 3 : count);
    return values[kind][count - back];
  }
  void addFilled(int kind) {
    Value out = fresh(kind);
    FillOp::create(builder, loc, out, builder.getF64FloatAttr(1), queue(), StringAttr(),
                   IntegerAttr());
    values[kind].push_back(out);
  }
  void addInstruction() {
    int kind = random() % 3;
    if (random() % 8 == 0)
      return addFilled(kind);
    Value a = pick(kind), b = pick(kind), out = fresh(kind);
    if (random() % 3 == 0) {
      NamedAttribute op = builder.getNamedAttr("op", builder.getI64IntegerAttr(0));
      CollectiveOp::create(
          builder, loc, CollectiveKindAttr::get(builder.getContext(), CollectiveKind::all_reduce),
          a, out, builder.getStrArrayAttr({"tp"}), builder.getDictionaryAttr(op),
          builder.getStringAttr("comm"), StringAttr(), IntegerAttr());
    } else {
      CallOp::create(builder, loc, builder.getStringAttr("add"), ValueRange{a, b}, ValueRange{out},
                     builder.getDictionaryAttr({}), queue(), StringAttr(), IntegerAttr());
    }
    values[kind].push_back(out);
  }

  OpBuilder builder;
  Location loc;
  std::mt19937 &random;
  std::vector<Value> values[3];
};

} // namespace

TEST(PlanAllocate, RandomProgramsHaveNoRaces) {
  std::mt19937 random(test::seed());
  std::printf("seed %u\n", test::seed());
  test::Context context;
  unsigned reused = 0;
  for (int round = 0; round < 200; ++round) {
    OwningOpRef<ModuleOp> module = RandomProgram(context, random).build();
    PassManager passes(&context);
    OpPassManager &plans = passes.nest<PlanOp>();
    if (round % 2)
      plans.addPass(createPlanSchedulePass());
    plans.addPass(createPlanInsertEventsPass());
    plans.addPass(createPlanAllocatePass());
    ASSERT_TRUE(succeeded(passes.run(*module)));
    // The verifier finds every race, every unordered collective and every read of unwritten bytes.
    ASSERT_TRUE(succeeded(writePlan(*module))) << "round " << round << "\n" << test::print(*module);
    uint64_t bytes = 0, arena = 0;
    module->walk([&](ViewOp view) {
      bytes += view.getType().isBounded() ? 0 : alignUp(view.getType().numBytes());
    });
    module->walk([&](ArenaOp op) { arena += op.getBytes(); });
    EXPECT_LE(arena, bytes);
    reused += arena < bytes;
  }
  EXPECT_GT(reused, 150u) << "memory is hardly ever reused: the test shows nothing";
}
