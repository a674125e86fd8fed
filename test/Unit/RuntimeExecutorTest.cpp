//===- RuntimeExecutorTest.cpp ----------------------------------*- C++ -*-===//
// Shows that hand-made plans run right from files to files: kernels, calls with rank offsets,
// collectives, boxes, the repetition of a step whose bound was too small, f64, --check, routing
// files, and that bad inputs are named. Ranks are threads.
//===----------------------------------------------------------------------===//
#include "RuntimeFiles.h"
#include "RuntimePlans.h"

#include "moira/rt/Checkpoint.h"
#include "moira/rt/Run.h"

#include <gmock/gmock.h>

using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace {

struct Ran {
  RunOutcome outcome;
  std::string notes;
};

Ran runIt(const RunOptions &options) {
  Ran ran;
  ran.outcome = runPlan(
      options, [](const Status &status) { std::fputs(status.str().c_str(), stderr); },
      [&](const std::string &note) { ran.notes += note; });
  return ran;
}

std::vector<float> floats(const std::string &path, const std::string &name) {
  auto file = SafeTensorsFile::open(path);
  EXPECT_TRUE(file) << file.status().str();
  const TensorInfo *info = file ? file->find(name) : nullptr;
  bool wide = info && info->type == TensorType::f64; // what a reference in f64 writes
  EXPECT_TRUE(wide || (info && info->type == TensorType::f32)) << name;
  std::vector<float> values(info ? info->elements() : 0);
  if (info)
    convertRun(values.data(), fb::DType::f32, file->data(*info).data(),
               wide ? fb::DType::f64 : fb::DType::f32, info->elements());
  return values;
}

std::vector<int64_t> shapeIn(const std::string &path, const std::string &name) {
  auto file = SafeTensorsFile::open(path);
  const TensorInfo *info = file ? file->find(name) : nullptr;
  return info ? info->shape : std::vector<int64_t>{-1};
}

RunOptions expertsRun(const TempDir &dir, const std::string &out) {
  RunOptions options;
  options.plan = dir / "p.moeplan";
  options.weights = dir / "model";
  options.inputs = dir / "in.safetensors";
  options.outputs = dir / out;
  options.timeoutSeconds = 20;
  return options;
}

TEST(RuntimeExecutor, MeshEqualsReferenceAndTheBoundDoesNotMatter) {
  TempDir dir;
  writeExpertsFiles(dir, 5);
  std::vector<float> first;
  for (uint32_t ep : {1u, 2u, 4u})
    for (uint64_t bound : {1u, 5u, 24u}) {
      SCOPED_TRACE(format("ep %u bound %llu", ep, (unsigned long long)bound));
      savePlan(dir / "p.moeplan", expertsPlan(ep, bound, kTokens * kK));
      RunOptions options = expertsRun(dir, "o.safetensors");
      options.check = true;
      Ran ran = runIt(options);
      ASSERT_TRUE(ran.outcome.status) << ran.outcome.status.str();
      EXPECT_THAT(ran.outcome.summary, HasSubstr("check: y differs"));
      EXPECT_THAT(ran.outcome.summary, HasSubstr(bound == 24 ? "retries 0" : "retries 1"));
      EXPECT_THAT(ran.outcome.summary, HasSubstr("as planned"));
      EXPECT_THAT(ran.outcome.summary, testing::Not(HasSubstr("NOT")));
      EXPECT_EQ(shapeIn(dir / "o.safetensors", "y"), (std::vector<int64_t>{kTokens, kHidden}));
      std::vector<float> y = floats(dir / "o.safetensors", "y");
      static std::map<uint32_t, std::vector<float>> ofMesh;
      auto [it, added] = ofMesh.try_emplace(ep, y);
      EXPECT_EQ(it->second, y) << "the bound changes bits";
    }
}

TEST(RuntimeExecutor, F64ReferenceIsCloseToF32) {
  TempDir dir;
  writeExpertsFiles(dir, 6);
  savePlan(dir / "p.moeplan", expertsPlan(2, 24, 24));
  RunOptions options = expertsRun(dir, "f32.safetensors");
  options.reference = ReferenceMode::f32;
  ASSERT_TRUE(runIt(options).outcome.status);
  options.reference = ReferenceMode::f64;
  options.outputs = dir / "f64.safetensors";
  Ran ran = runIt(options);
  ASSERT_TRUE(ran.outcome.status) << ran.outcome.status.str();
  EXPECT_THAT(ran.outcome.summary, HasSubstr("in f64"));
  std::vector<float> a = floats(dir / "f32.safetensors", "y"),
                     b = floats(dir / "f64.safetensors", "y");
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_NEAR(a[i], b[i], 1e-4);
}

TEST(RuntimeExecutor, BoundBeyondTheLargestIsAnError) {
  TempDir dir;
  writeExpertsFiles(dir, 7);
  savePlan(dir / "p.moeplan", expertsPlan(2, 1, 2));
  Ran ran = runIt(expertsRun(dir, "o.safetensors"));
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().size(), 1u) << ran.outcome.status.str();
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::BoundOverflow);
  EXPECT_FALSE(std::filesystem::exists(dir / "o.safetensors"));
}

std::vector<int32_t> integers(const std::string &path, const std::string &name) {
  Expected<SafeTensorsFile> file = SafeTensorsFile::open(path);
  EXPECT_TRUE(file) << file.status().str();
  const TensorInfo *info = file->find(name);
  std::vector<int32_t> values(info ? info->elements() : 0);
  if (info)
    std::memcpy(values.data(), file->data(*info).data(), info->bytes);
  return values;
}

TEST(RuntimeExecutor, RoutingIsDumpedAndForcedOnMeshAndReference) {
  TempDir dir;
  writeExpertsFiles(dir, 8);
  savePlan(dir / "p.moeplan", expertsPlan(2, 1, 24)); // the step is repeated with a larger bound
  RunOptions options = expertsRun(dir, "o.safetensors");
  for (ReferenceMode mode : {ReferenceMode::none, ReferenceMode::f32, ReferenceMode::f64}) {
    std::string name = format("routes%d.safetensors", static_cast<int>(mode));
    options.dumpRouting = dir / name;
    options.routeFrom.clear();
    options.reference = mode;
    Ran ran = runIt(options);
    ASSERT_TRUE(ran.outcome.status) << ran.outcome.status.str();
    EXPECT_THAT(ran.outcome.summary, HasSubstr("choices of 1 router written to"));
    EXPECT_EQ(shapeIn(dir / name, "layers.3.ids"), (std::vector<int64_t>{kTokens, kK}));
    EXPECT_EQ(shapeIn(dir / name, "layers.3.gaps"), (std::vector<int64_t>{kTokens}));
    EXPECT_EQ(integers(dir / name, "layers.3.ids"),
              integers(dir / "routes0.safetensors", "layers.3.ids"));
    for (const char *values : {"layers.3.weights", "layers.3.gaps"}) {
      std::vector<float> got = floats(dir / name, values),
                         want = floats(dir / "routes0.safetensors", values);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_GT(got[i], 0);
        EXPECT_NEAR(got[i], want[i], 1e-6);
      }
    }
    // The same choices give the same bits, whoever has written them.
    std::vector<float> free = floats(dir / "o.safetensors", "y");
    options.dumpRouting.clear();
    options.routeFrom = dir / "routes0.safetensors";
    ASSERT_TRUE(runIt(options).outcome.status);
    EXPECT_EQ(floats(dir / "o.safetensors", "y"), free);
  }

  // Others give other ones, the same on the mesh as without one.
  std::vector<int32_t> other(kTokens * kK);
  for (size_t i = 0; i < other.size(); ++i)
    other[i] = static_cast<int32_t>(i % kExperts);
  std::vector<float> before = floats(dir / "o.safetensors", "y");
  writeFile(dir / "forced.safetensors",
            safetensorsBytes({testTensor("layers.3.ids", "I32", {kTokens, kK}, other)}));
  options.routeFrom = dir / "forced.safetensors";
  options.reference = ReferenceMode::f32;
  options.check = true;
  Ran forced = runIt(options);
  ASSERT_TRUE(forced.outcome.status) << forced.outcome.status.str();
  EXPECT_NE(floats(dir / "o.safetensors", "y"), before);
}

TEST(RuntimeExecutor, EveryProblemOfARoutingFileIsNamed) {
  TempDir dir;
  writeExpertsFiles(dir, 8);
  savePlan(dir / "p.moeplan", expertsPlan(2, 24, 24));
  RunOptions options = expertsRun(dir, "o.safetensors");
  options.routeFrom = dir / "forced.safetensors";
  auto refused = [&](const std::vector<TestTensor> &tensors) {
    writeFile(dir / "forced.safetensors", safetensorsBytes(tensors));
    Ran ran = runIt(options);
    EXPECT_FALSE(ran.outcome.status);
    EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::BadInput);
    return ran.outcome.status.str();
  };
  std::vector<int32_t> ids(kTokens * kK);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i % kExperts);
  ids[5] = kExperts;
  ids[9] = -1;
  ids[6] = ids[7] = 2;
  std::string text = refused({testTensor("layers.3.ids", "I32", {kTokens, kK}, ids),
                              testTensor("layers.4.ids", "I32", {kTokens, kK}, ids)});
  EXPECT_THAT(text, HasSubstr("layers.3.ids[2, 1] = 4 is out of range 0..3, and so are 1 other"));
  EXPECT_THAT(text, HasSubstr("layers.3.ids[3] names expert 2 twice"));
  EXPECT_THAT(text, HasSubstr("'layers.4.ids' is of no router of this plan"));
  EXPECT_THAT(refused({testTensor("layers.3.ids", "I32", {kTokens / 2, 2 * kK}, ids)}),
              HasSubstr("layers.3.ids is I32 [6, 4], the plan needs I32 [12, 2]"));
  EXPECT_THAT(refused({testTensor("layers.3.weights", "F32", {1}, std::vector<float>{1})}),
              HasSubstr("tensor layers.3.ids [12, 2] is missing"));
}

TEST(RuntimeExecutor, ProfileHasEveryInstructionOfEveryRank) {
  TempDir dir;
  writeExpertsFiles(dir, 9);
  savePlan(dir / "p.moeplan", expertsPlan(2, 1, 24));
  RunOptions options = expertsRun(dir, "o.safetensors");
  options.profile = dir / "trace.json";
  ASSERT_TRUE(runIt(options).outcome.status);
  std::ifstream in(dir / "trace.json");
  std::string text((std::istreambuf_iterator<char>(in)), {});
  size_t events = 0;
  for (size_t at = 0; (at = text.find("\"ph\":\"X\"", at)) != std::string::npos; ++at)
    ++events;
  EXPECT_EQ(events, 4u * (9u * 2u + 1u)); // ranks, instructions, attempts, and the step itself
  EXPECT_THAT(text, HasSubstr("forward 1"));
  EXPECT_THAT(text, HasSubstr("grouped_matmul"));
}

/// A plan of boxes: rank r of a ring of 4 holds its part of x along dimension 1, pads included;
/// a kernel scales it, a copy with an offset that depends on the rank picks one column of a table.
std::vector<uint8_t> boxesPlan(const std::vector<uint8_t> &object, const std::string &features) {
  PlanBuilder builder({{{"dp", 2}, {"tp", 2}}});
  auto f32 = fb::DType::f32;
  uint32_t kernel = builder.kernel("scale_rows",
                                   {{f32, {1}, false, false},
                                    {f32, {3}, true, false},
                                    {f32, {3}, false, false},
                                    {f32, {3}, true, true}},
                                   object, features);
  auto &p = builder.program(false);
  DimSpec split{{0, 1}, 2}; // 10 columns and 2 pads in 4 parts of 3
  uint32_t x = p.input("x", f32, {5, 10}, {{}, split});
  uint32_t a = p.state("a", f32, {1}, {{}}, {{"a"}, false, {1}});
  uint32_t table = p.state("table", f32, {3, 4}, {{}, {}}, {{"table"}, false, {12}});
  uint32_t column = p.tensor(f32, {3, 1});
  p.instr(fb::InstrKind::copy, 0, {table}, {column},
          {integer("dim", 1), integer("start", 0), offset("offset", 1, {0, 1})});
  uint32_t y = p.tensor(f32, {5, 3});
  p.instr(fb::InstrKind::launch, kernel, {a, x, column}, {y},
          {integer("rows", 5), integer("rows_scale_bound", 0)});
  p.output("y", f32, {5, 10}, {{}, split}, y);
  return builder.finish();
}

std::vector<uint8_t> kernelObject() {
  std::ifstream in(MOIRA_TEST_KERNEL, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Boxes : testing::Test {
  Boxes() {
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>(i + 1);
    for (size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<float>(100 * i);
    writeFile(dir / "model.safetensors",
              safetensorsBytes({testTensor<float>("a", "F32", {1}, {2}),
                                testTensor("table", "F32", {12}, table)}));
    writeFile(dir / "in.safetensors", safetensorsBytes({testTensor("x", "F32", {5, 10}, x)}));
    options = expertsRun(dir, "o.safetensors");
    options.weights = dir.str();
  }
  TempDir dir;
  std::vector<float> x = std::vector<float>(50), table = std::vector<float>(12);
  RunOptions options;
};

TEST_F(Boxes, KernelsCopiesAndPadsGiveTheNaiveResult) {
  savePlan(dir / "p.moeplan", boxesPlan(kernelObject(), "+sse2"));
  Ran ran = runIt(options);
  ASSERT_TRUE(ran.outcome.status) << ran.outcome.status.str();
  std::vector<float> y = floats(dir / "o.safetensors", "y");
  ASSERT_EQ(y.size(), 50u);
  for (int64_t r = 0; r < 5; ++r)
    for (int64_t c = 0; c < 10; ++c)
      EXPECT_EQ(y[r * 10 + c], 2 * x[r * 10 + c] + table[c % 3 * 4 + c / 3]) << r << " " << c;
}

TEST_F(Boxes, LaunchesOfManyRowsGiveEveryRow) {
  // So many rows that they are launched in pieces.
  constexpr int64_t rows = 60001;
  PlanBuilder builder({{{"dp", 2}}});
  auto f32 = fb::DType::f32;
  uint32_t kernel = builder.kernel("scale_rows",
                                   {{f32, {1}, false, false},
                                    {f32, {3}, true, false},
                                    {f32, {3}, false, false},
                                    {f32, {3}, true, true}},
                                   kernelObject(), "+sse2");
  auto &p = builder.program(false);
  DimSpec split{{0}, 1};
  uint32_t in = p.input("x", f32, {rows, 3}, {split, {}});
  uint32_t a = p.state("a", f32, {1}, {{}}, {{"a"}, false, {1}});
  uint32_t b = p.state("table", f32, {3, 4}, {{}, {}}, {{"table"}, false, {12}});
  uint32_t column = p.tensor(f32, {3, 1});
  p.instr(fb::InstrKind::copy, 0, {b}, {column},
          {integer("dim", 1), integer("start", 0), offset("offset", 1, {0})});
  uint32_t y = p.tensor(f32, {(rows + 1) / 2, 3});
  p.instr(fb::InstrKind::launch, kernel, {a, in, column}, {y},
          {integer("rows", (rows + 1) / 2), integer("rows_scale_bound", 0)});
  p.output("y", f32, {rows, 3}, {split, {}}, y);
  savePlan(dir / "p.moeplan", builder.finish());
  std::vector<float> many(rows * 3);
  for (size_t i = 0; i < many.size(); ++i)
    many[i] = static_cast<float>(i);
  writeFile(dir / "in.safetensors", safetensorsBytes({testTensor("x", "F32", {rows, 3}, many)}));
  Ran ran = runIt(options);
  ASSERT_TRUE(ran.outcome.status) << ran.outcome.status.str();
  std::vector<float> got = floats(dir / "o.safetensors", "y"), want(many.size());
  for (size_t i = 0; i < many.size(); ++i)
    want[i] = 2 * many[i] + table[i % 3 * 4 + i / 3 / ((rows + 1) / 2)];
  EXPECT_EQ(got, want);
}

TEST_F(Boxes, ForeignInstructionSetsAndBrokenObjectsAreRefused) {
  savePlan(dir / "p.moeplan", boxesPlan(kernelObject(), "+sse2,+quantum"));
  Ran ran = runIt(options);
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::PlanTarget);
  EXPECT_THAT(ran.outcome.status.str(), HasSubstr("lacks: quantum"));

  std::vector<uint8_t> broken(1000, 7);
  savePlan(dir / "p.moeplan", boxesPlan(broken, ""));
  ran = runIt(options);
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::BadRun);
}

// --- inputs
// ----------------------------------------------------------------------------------------

/// ids [2,3] in 0..9 and an optional mask; both come back as outputs.
std::vector<uint8_t> inputsPlan() {
  PlanBuilder builder({{{"dp", 2}}});
  auto &p = builder.program(false);
  uint32_t ids = p.input("ids", fb::DType::i32, {2, 3}, {{{0}}, {}}, {false, 0, 0, 9});
  uint32_t mask = p.input("mask", fb::DType::i32, {2, 3}, {{{0}}, {}}, {true, 1, 0, 1});
  p.output("ids_out", fb::DType::i32, {2, 3}, {{{0}}, {}}, ids);
  p.output("mask_out", fb::DType::i32, {2, 3}, {{{0}}, {}}, mask);
  return builder.finish();
}

TEST(RuntimeIo, ConvertsAndFillsInputs) {
  TempDir dir;
  savePlan(dir / "p.moeplan", inputsPlan());
  writeFile(dir / "in.safetensors",
            safetensorsBytes({testTensor<int64_t>("ids", "I64", {2, 3}, {1, 2, 3, 4, 5, 9}),
                              testTensor<float>("logits", "F32", {1}, {0})}));
  Ran ran = runIt(expertsRun(dir, "o.safetensors"));
  ASSERT_TRUE(ran.outcome.status) << ran.outcome.status.str();
  EXPECT_THAT(ran.notes, HasSubstr("'logits'"));
  auto file = SafeTensorsFile::open(dir / "o.safetensors");
  ASSERT_TRUE(file);
  auto values = [&](const char *name) {
    std::vector<int64_t> v(6);
    std::memcpy(v.data(), file->data(*file->find(name)).data(), 48);
    return v;
  };
  EXPECT_EQ(values("ids_out"), (std::vector<int64_t>{1, 2, 3, 4, 5, 9}));
  EXPECT_EQ(values("mask_out"), (std::vector<int64_t>{1, 1, 1, 1, 1, 1}));
}

TEST(RuntimeIo, NamesWhatIsWrongWithInputs) {
  struct Case {
    std::vector<TestTensor> tensors;
    std::vector<const char *> says;
  } cases[] = {
      {{}, {"ids [2, 3] is missing"}},
      {{testTensor<int32_t>("idz", "I32", {1}, {0})}, {"ids [2, 3] is missing", "'idz'"}},
      {{testTensor<int32_t>("ids", "I32", {3, 2}, {0, 0, 0, 0, 0, 0})}, {"[3, 2]", "[2, 3]"}},
      {{testTensor<float>("ids", "F32", {2, 3}, {0, 0, 0, 0, 0, 0})}, {"ids is F32"}},
      {{testTensor<int32_t>("ids", "I32", {2, 3}, {0, 0, 0, 0, 10, -1})},
       {"ids[1, 1] = 10 is out of range 0..9", "1 other"}},
      {{testTensor<int64_t>("ids", "I64", {2, 3}, {0, 0, 0, 0, 0, int64_t(1) << 32})},
       {"ids[1, 2] = 4294967296"}},
      {{testTensor<int32_t>("ids", "I32", {2, 3}, {0, 0, 0, 0, 0, 77}),
        testTensor<int32_t>("mask", "I32", {2, 2}, {0, 0, 0, 0})},
       {"ids[1, 2] = 77", "mask has shape [2, 2]"}},
  };
  TempDir dir;
  savePlan(dir / "p.moeplan", inputsPlan());
  for (const Case &c : cases) {
    writeFile(dir / "in.safetensors", safetensorsBytes(c.tensors));
    Ran ran = runIt(expertsRun(dir, "o.safetensors"));
    ASSERT_FALSE(ran.outcome.status) << c.says[0];
    for (const Diagnostic &d : ran.outcome.status.diagnostics())
      EXPECT_EQ(d.id, ErrorId::BadInput);
    for (const char *says : c.says)
      EXPECT_THAT(ran.outcome.status.str(), HasSubstr(says));
    EXPECT_FALSE(std::filesystem::exists(dir / "o.safetensors"));
  }
}

TEST(RuntimeIo, ReportsWeightsInputsAndOutputsAtOnce) {
  TempDir dir;
  writeExpertsFiles(dir, 1);
  savePlan(dir / "p.moeplan", expertsPlan(2, 24, 24));
  RunOptions options = expertsRun(dir, "no/where.safetensors");
  options.weights = dir / "absent";
  options.inputs = dir / "absent.safetensors";
  Ran ran = runIt(options);
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().size(), 3u) << ran.outcome.status.str();
}

TEST(RuntimeIo, OtherTargetsAndMissingProgramsAreRefused) {
  TempDir dir;
  writeExpertsFiles(dir, 1);
  savePlan(dir / "p.moeplan", inputsPlan());
  RunOptions options = expertsRun(dir, "o.safetensors");
  options.reference = ReferenceMode::f32;
  Ran ran = runIt(options);
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::BadRun);

  PlanBuilder builder({{{"dp", 1}}}, "sm_90");
  auto &p = builder.program(false);
  p.output("y", fb::DType::f32, {1}, {{}}, p.input("x", fb::DType::f32, {1}, {{}}));
  savePlan(dir / "p.moeplan", builder.finish());
  writeFile(dir / "in.safetensors", safetensorsBytes({testTensor<float>("x", "F32", {1}, {0})}));
  options.reference = ReferenceMode::none;
  options.device = "host";
  ran = runIt(options);
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::PlanTarget);

  savePlan(dir / "p.moeplan", inputsPlan());
  options.device = "cuda";
  options.devices = {0, 0};
  ran = runIt(options);
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::PlanTarget);

  options.device.clear();
  writeFile(dir / "in.safetensors",
            safetensorsBytes({testTensor<int64_t>("ids", "I64", {2, 3}, {1, 2, 3, 4, 5, 9})}));
  ran = runIt(options);
  ASSERT_EQ(ran.outcome.status.diagnostics().size(), 1u) << ran.outcome.status.str();
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::BadUsage);
  EXPECT_THAT(ran.outcome.status.str(), HasSubstr("--devices is for plans for GPUs"));
  options.devices.clear();
  ran = runIt(options);
  EXPECT_TRUE(ran.outcome.status) << ran.outcome.status.str();
}

TEST(RuntimeMemory, APlanThatCannotFitIsRefusedBeforeItRuns) {
  TempDir dir;
  PlanBuilder builder({{{"dp", 4}}});
  auto &p = builder.program(false);
  uint32_t big = p.tensor(fb::DType::f32, {int64_t(1) << 20, int64_t(1) << 18});
  (void)big;
  p.output("y", fb::DType::f32, {1}, {{}}, p.input("x", fb::DType::f32, {1}, {{}}));
  savePlan(dir / "p.moeplan", builder.finish());
  writeFile(dir / "in.safetensors", safetensorsBytes({testTensor<float>("x", "F32", {1}, {0})}));
  Ran ran = runIt(expertsRun(dir, "o.safetensors"));
  ASSERT_FALSE(ran.outcome.status);
  EXPECT_EQ(ran.outcome.status.diagnostics().front().id, ErrorId::OutOfMemory);
  EXPECT_THAT(ran.outcome.status.str(), HasSubstr("1.0 TiB"));
}

} // namespace
