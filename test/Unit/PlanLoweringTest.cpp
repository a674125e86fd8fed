//===- PlanLoweringTest.cpp - from localized IR to a plan file ------------===//
// Shows what a ragged MoE block becomes, that equal input gives equal bytes, and that reading a
// file and writing it again changes nothing.
//===----------------------------------------------------------------------===//
#include "PlanLoweringUtil.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

using namespace mlir;
using namespace moira;
using namespace moira::plan;
using test::kGlobalBlock;
using test::kLocalizedBlock;

namespace {

/// The plan of the block, with kernels for `target`.
OwningOpRef<ModuleOp> planOf(MLIRContext &context, const std::string &target = "host") {
  OwningOpRef<ModuleOp> localized = test::parse(context, kLocalizedBlock),
                        global = test::parse(context, kGlobalBlock), module;
  if (!localized || !global)
    return {};
  PlanOptions options;
  options.target = target;
  if (failed(buildPlan(*localized, *global, options, module)))
    return {};
  return module;
}

ProgramOp programOf(ModuleOp module, StringRef name) {
  for (auto program : getPlan(module).getOps<ProgramOp>())
    if (program.getSymName() == name)
      return program;
  return {};
}

/// What the instructions of a program do, in order: call names, kernel names, kinds.
std::vector<std::string> stepsOf(ProgramOp program) {
  std::vector<std::string> steps;
  for (Operation &op : program.getBody().front()) {
    if (auto call = dyn_cast<CallOp>(op))
      steps.push_back(call.getCallee().str());
    else if (auto launch = dyn_cast<LaunchOp>(op))
      steps.push_back("@" + launch.getKernel().str());
    else if (auto collective = dyn_cast<CollectiveOp>(op))
      steps.push_back(stringifyCollectiveKind(collective.getKind()).str());
    else if (isa<InstructionInterface>(op) && !isa<RecordOp, WaitOp>(op))
      steps.push_back(op.getName().stripDialect().str());
  }
  return steps;
}

} // namespace

TEST(PlanLowering, MoeBlockOverlapsTheSharedExpertWithTheExchange) {
  test::Context context;
  OwningOpRef<ModuleOp> module = planOf(context);
  ASSERT_TRUE(module);
  EXPECT_THAT(stepsOf(programOf(*module, "forward")),
              testing::ElementsAre(
                  "@rms_norm", "linear", "route", "fill", "pack",
                  // Both exchanges start, then the shared expert runs, then the rows are needed.
                  "all_to_all", "all_to_all", "all_reduce", "linear", "@glu", "linear",
                  // One kernel for both glus: rows are an argument.
                  "regroup", "grouped_matmul", "@glu", "grouped_matmul", "ungroup", "all_to_all",
                  "combine", "@add_add", "require_bound"));
}

TEST(PlanLowering, ReferenceIsCallsInF32) {
  test::Context context;
  OwningOpRef<ModuleOp> module = planOf(context);
  ASSERT_TRUE(module);
  ProgramOp reference = programOf(*module, "reference");
  EXPECT_THAT(stepsOf(reference),
              testing::ElementsAre("rms_norm", "linear", "route", "fill", "select",
                                   "grouped_matmul", "glu", "grouped_matmul", "combine"));
  EXPECT_EQ(reference.getRanks(), 1u);
  EXPECT_FALSE(reference.getBound());
  for (auto view : reference.getOps<ViewOp>())
    EXPECT_FALSE(view.getType().getElementType().isBF16());
}

TEST(PlanLowering, OnlyTheExchangeOfRowsGrowsWithTheBound) {
  test::Context context;
  OwningOpRef<ModuleOp> module = planOf(context);
  ASSERT_TRUE(module);
  ProgramOp program = programOf(*module, "forward");
  EXPECT_EQ(program.boundInitial(), 7);
  EXPECT_EQ(program.boundMax(), 12);
  for (auto view : program.getOps<ViewOp>())
    EXPECT_EQ(view.getType().isBounded(), view.getArena() == "ragged");
  std::vector<std::pair<int64_t, bool>> rows;
  for (auto launch : program.getOps<LaunchOp>())
    rows.emplace_back(launch.getRows(), launch.getBounded());
  EXPECT_THAT(rows, testing::ElementsAre(std::pair(6, false), std::pair(6, false),
                                         std::pair(2, true), std::pair(6, false)));
}

TEST(PlanFile, EqualInputGivesEqualBytes) {
  std::vector<std::vector<uint8_t>> files;
  for (int i = 0; i < 3; ++i) {
    test::Context context;
    OwningOpRef<ModuleOp> module = planOf(context);
    ASSERT_TRUE(module);
    FailureOr<std::vector<uint8_t>> bytes = writePlan(*module);
    ASSERT_TRUE(succeeded(bytes));
    files.push_back(std::move(*bytes));
  }
  EXPECT_EQ(files[0], files[1]);
  EXPECT_EQ(files[0], files[2]);
}

TEST(PlanFile, ReadingAndWritingChangesNothing) {
  for (const char *target : {"host", "sm_90"}) {
    test::Context context;
    OwningOpRef<ModuleOp> module = planOf(context, target);
    ASSERT_TRUE(module);
    FailureOr<std::vector<uint8_t>> bytes = writePlan(*module);
    ASSERT_TRUE(succeeded(bytes));

    test::Context second;
    rt::Expected<rt::PlanFile> file = rt::PlanFile::fromBytes(*bytes);
    ASSERT_TRUE(bool(file));
    OwningOpRef<ModuleOp> read = readPlan(*file, &second);
    ASSERT_TRUE(read);
    FailureOr<std::vector<uint8_t>> again = writePlan(*read);
    ASSERT_TRUE(succeeded(again));
    EXPECT_EQ(*bytes, *again);

    // Through text as well.
    test::Context third;
    OwningOpRef<ModuleOp> parsed = test::parse(third, test::print(*read));
    ASSERT_TRUE(parsed);
    FailureOr<std::vector<uint8_t>> fromText = writePlan(*parsed);
    ASSERT_TRUE(succeeded(fromText));
    EXPECT_EQ(*bytes, *fromText);
    // And the IR that wrote the file is the IR that was read.
    EXPECT_EQ(test::print(*module), test::print(*read));
  }
}

TEST(PlanFile, WhatIsUnfinishedIsNotWritten) {
  test::Context context;
  OwningOpRef<ModuleOp> module = test::parse(context, kLocalizedBlock);
  ASSERT_TRUE(module);
  std::string said;
  ScopedDiagnosticHandler handler(&context, [&](Diagnostic &diagnostic) {
    said += diagnostic.str();
    return success();
  });
  EXPECT_TRUE(failed(writePlan(*module)));
  EXPECT_THAT(said, testing::HasSubstr("MOE-0601: the module holds no plan.plan"));
  PassManager passes(&context);
  passes.addPass(createPlanLowerPass());
  ASSERT_TRUE(succeeded(passes.run(*module)));
  said.clear();
  EXPECT_TRUE(failed(writePlan(*module)));
  EXPECT_THAT(said, testing::HasSubstr("MOE-0601: has no address; run plan-allocate first"));
}

TEST(PlanLowering, WhatTheLocalizePhaseLeftIsAnError) {
  test::Context context;
  OwningOpRef<ModuleOp> module = test::parse(context, R"mlir(
    func.func @forward(%x: tensor<2xf32, #dist.sharding<[{}]>> {moe.name = "x"}) -> (tensor<2xf32, #dist.sharding<[{dp}]>> {moe.name = "y"}) {
      %0 = dist.reshard %x : tensor<2xf32, #dist.sharding<[{}]>> -> tensor<2xf32, #dist.sharding<[{dp}]>>
      return %0 : tensor<2xf32, #dist.sharding<[{dp}]>>
    })mlir");
  ASSERT_TRUE(module);
  std::string said;
  ScopedDiagnosticHandler handler(&context, [&](Diagnostic &diagnostic) {
    said += diagnostic.str();
    return success();
  });
  OwningOpRef<ModuleOp> out;
  EXPECT_TRUE(failed(buildPlan(*module, {}, PlanOptions(), out)));
  EXPECT_THAT(said, testing::HasSubstr("MOE-0601: has no instruction"));
}
