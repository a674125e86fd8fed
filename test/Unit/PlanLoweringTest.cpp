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
  struct Case {
    const char *text, *says;
  } cases[] = {
      {R"mlir(func.func @forward(%x: tensor<2xf32, #dist.sharding<[{dp}]>> {moe.name = "x"}) { return })mlir",
       "MOE-0601: a value of type 'tensor<2xf32, #dist.sharding<[{dp}]>>' has no memory"},
      {R"mlir(func.func @forward(%x: tensor<2x?xf32> {moe.name = "x"}) { return })mlir",
       "has no memory"},
      {R"mlir(func.func @forward(%x: tensor<2xf32>) { return })mlir",
       "MOE-0601: argument 0 has no moe.name"},
      {R"mlir(func.func @forward(%x: tensor<2xf32> {moe.name = "x"}) -> tensor<2xf32> { return %x : tensor<2xf32> })mlir",
       "MOE-0601: result 0 has no moe.name"},
      {R"mlir(func.func @forward(%x: tensor<2xf32> {moe.name = "x\0A"}) { return })mlir",
       "MOE-0601: the name of argument 0 must be 1 to 512 bytes of UTF-8"},
      {R"mlir(func.func @forward(%x: tensor<2xf32> {moe.name = "x"}) -> (tensor<2xf32> {moe.name = "\FF"}) { return %x : tensor<2xf32> })mlir",
       "MOE-0601: the name of result 0 must be"},
      {R"mlir(func.func @"" (%x: tensor<2xf32> {moe.name = "x"}) { return })mlir",
       "MOE-0601: the name of a program must be"},
      {R"mlir(moe.state @"\01" : tensor<2xf32>)mlir", "MOE-0601: the name of a state must be"},
      {R"mlir(moe.state @s : tensor<2xf32> from <names = ["a\0A"], disk_shape = [2]>)mlir",
       "MOE-0601: the name of a state's tensor must be"},
      {R"mlir(func.func @forward(%x: tensor<2xf32> {moe.name = "x"}, %y: tensor<2xf32> {moe.name = "x"}) { return })mlir",
       "MOE-0601: arguments 0 and 1 are both called 'x'"},
      {R"mlir(func.func @forward(%x: tensor<2xf32> {moe.name = "x"}) -> (tensor<2xf32> {moe.name = "y"}) {
                %0 = func.call @forward(%x) : (tensor<2xf32>) -> tensor<2xf32>
                return %0 : tensor<2xf32>
              })mlir",
       "MOE-0601: has no instruction"},
      {R"mlir(func.func @forward(%x: tensor<2x4xf32> {moe.name = "x"}) -> (tensor<2x4xf32> {moe.name = "y"}) {
                %l = moe.add %x, %x : (tensor<2x4xf32>, tensor<2x4xf32>) -> tensor<2x4xf32>
                %r = moe.route <k = 1, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %l
                    : (tensor<2x4xf32>) -> !moe.routing<2, experts = 4, k = 1>
                %y = moe.combine %x, %r : (tensor<2x4xf32>, !moe.routing<2, experts = 4, k = 1>) -> tensor<2x4xf32>
                return %y : tensor<2x4xf32>
              })mlir",
       "MOE-0601: no moe.dispatch before it"},
  };
  for (const Case &one : cases) {
    test::Context context;
    OwningOpRef<ModuleOp> module = test::parse(context, one.text);
    ASSERT_TRUE(module) << one.text;
    std::string said;
    ScopedDiagnosticHandler handler(&context, [&](Diagnostic &diagnostic) {
      said += diagnostic.str();
      return success();
    });
    OwningOpRef<ModuleOp> out;
    EXPECT_TRUE(failed(buildPlan(*module, {}, PlanOptions(), out)));
    EXPECT_THAT(said, testing::HasSubstr(one.says)) << one.text;
  }
}
