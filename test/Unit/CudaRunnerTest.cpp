//===- CudaRunnerTest.cpp - plans on CUDA devices, without a device ---------===//
// Runs the CUDA device's executor over a fake CUDA and NCCL that reorder what events do not order.
// Shows that golden models compiled for sm_90 give the golden logits on every mesh, also when
// replayed from graphs and when the ragged bound must grow; that memory is as planned and given
// back; and that what goes wrong on the device is named with rank, instruction and layer.
//===----------------------------------------------------------------------===//
#include "CudaRunnerTesting.h"

#include <algorithm>
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <random>

using namespace moira::rt;
using namespace moira::test;
using testing::HasSubstr;

namespace fb = moira::fb;

namespace {

struct Ran {
  Status status;
  double worst = INFINITY; // of the largest golden logit
  std::vector<double> logits;
  RankFigures figures = {};
};

/// Routing to record into a file or to take from one; either may be empty.
struct Routes {
  std::string to, from;
};

Ran runIt(const Compiled &compiled, int repeat = 0, const Routes &routes = {},
          std::vector<RankProfile> *profiles = nullptr, size_t together = 0) {
  FakePlugin plugin;
  Ran ran;
  RunSession session;
  session.plan = &compiled.device;
  session.program = *findProgram(compiled.device, "p", false);
  session.plugin = &plugin;
  session.device.timeoutSeconds = 60;
  std::optional<RouteTrace> trace;
  if (!routes.to.empty() || !routes.from.empty()) {
    auto made = RouteTrace::create(compiled.device.plan(), *session.program, !routes.to.empty(),
                                   routes.from);
    ran.status = made.takeStatus();
    if (!ran.status)
      return ran;
    session.routes = &trace.emplace(std::move(*made));
  }
  session.profiled = profiles != nullptr;
  ran.status = session.openWeights(compiled.folder);
  auto inputs = InputSet::open(compiled.folder + "/io.safetensors", *session.program);
  EXPECT_TRUE(inputs) << inputs.status().str();
  session.inputs = std::move(*inputs);
  Ranks ranks = std::move(*Ranks::threads(static_cast<int>(session.program->ranks()), 60));
  if (ran.status)
    ran.status = session.load(ranks);
  if (ran.status)
    ran.status = session.step(ranks);
  if (ran.status)
    ran.status = session.repeat(ranks, repeat);
  std::vector<double> times(together, -1);
  if (ran.status)
    ran.status = session.steps(ranks, times);
  if (!ran.status)
    return ran;
  ran.status = ranks.each([&](int local) -> Ranks::Verdict {
    auto mine = session.executors[local]->outputs();
    if (!mine)
      return mine.takeStatus();
    auto all =
        gatherOutputs(compiled.device.plan(), *session.program, *mine, ranks.communicator(local));
    if (!all)
      return all.takeStatus();
    if (local == 0)
      ran.logits = (*all)[0].values;
    if (!routes.to.empty())
      return session.rankRoutes[local]->write(routes.to, ranks.communicator(local));
    return Status();
  });
  EXPECT_TRUE(std::all_of(times.begin(), times.end(), [](double time) { return time >= 0; }));
  ran.figures = session.executors[0]->figures();
  if (profiles)
    *profiles = session.profiles;
  auto file = SafeTensorsFile::open(compiled.folder + "/io.safetensors");
  const TensorInfo *info = file->find("logits");
  const float *golden = reinterpret_cast<const float *>(file->data(*info).data());
  double largest = 0, worst = 0;
  EXPECT_EQ(ran.logits.size(), size_t(info->elements()));
  for (size_t i = 0; i < ran.logits.size(); ++i) {
    largest = std::max(largest, std::fabs(double(golden[i])));
    worst = std::max(worst, std::fabs(ran.logits[i] - golden[i]));
  }
  ran.worst = worst / largest;
  return ran;
}

TEST(CudaRunner, GoldenLogitsOnEveryMeshInAnyOrder) {
  uint64_t seed = std::random_device()();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  fake::seed(seed);
  for (std::string model : {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"})
    for (std::string mesh :
         {"", "--mesh=ep=2", "--mesh=tp=2", "--mesh=dp=2", "--mesh=ep=4", "--mesh=ep=2,tp=2"}) {
      SCOPED_TRACE(model + " " + mesh);
      TempDir dir;
      Compiled compiled(dir, model, mesh);
      Ran once = runIt(compiled);
      ASSERT_TRUE(once.status) << once.status.str();
      EXPECT_LT(once.worst, 1e-5);
      EXPECT_EQ(once.figures.allocated, once.figures.planned);
      EXPECT_EQ(once.figures.graphs, 0u);
      int before = fake::graphLaunches();
      Ran often = runIt(compiled, 3);
      ASSERT_TRUE(often.status) << often.status.str();
      EXPECT_EQ(often.logits, once.logits);
      EXPECT_GT(often.figures.graphs, 10u);
      EXPECT_GT(fake::graphLaunches(), before);
      EXPECT_EQ(fake::allocated(), 0u);
    }
}

/// Those that the device gets one behind the other, where the program lets it: on one rank.
TEST(CudaRunner, StepsThatFollowEachOtherGiveTheSame) {
  fake::seed(11);
  for (std::string mesh : {"", "--mesh=ep=2"}) {
    TempDir dir;
    Compiled compiled(dir, "olmoe", mesh);
    Ran once = runIt(compiled);
    ASSERT_TRUE(once.status) << once.status.str();
    Ran often = runIt(compiled, 0, {}, nullptr, 70); // more than are enqueued at a time
    ASSERT_TRUE(often.status) << often.status.str();
    EXPECT_EQ(often.logits, once.logits);
    EXPECT_EQ(often.figures.allocated, often.figures.planned);
    EXPECT_EQ(fake::allocated(), 0u);
  }
}

TEST(CudaRunner, ASmallBoundGrowsAndTheGraphsFollow) {
  fake::seed(7);
  for (std::string mesh : {"--mesh=ep=2", "--mesh=ep=2,tp=2"}) {
    TempDir dir;
    Compiled compiled(dir, "qwen2_moe", mesh + " --ragged-bound=1");
    Ran ran = runIt(compiled, 2);
    ASSERT_TRUE(ran.status) << ran.status.str();
    EXPECT_LT(ran.worst, 1e-5);
    EXPECT_GE(ran.figures.retries, 1u);
    EXPECT_EQ(ran.figures.allocated, ran.figures.planned);
    EXPECT_EQ(fake::allocated(), 0u);
  }
}

template <typename T> std::vector<T> valuesIn(const std::string &path, const std::string &name) {
  auto file = SafeTensorsFile::open(path);
  EXPECT_TRUE(file) << file.status().str();
  const TensorInfo *info = file->find(name);
  EXPECT_TRUE(info) << name;
  std::vector<T> values(info ? info->elements() : 0);
  if (info)
    std::memcpy(values.data(), file->data(*info).data(), info->bytes);
  return values;
}

/// Eager steps and ones that are replayed from graphs; a bound that must grow in between.
TEST(CudaRunner, RoutingIsSeenAndForcedOnEveryMesh) {
  uint64_t seed = std::random_device()();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  fake::seed(seed);
  TempDir dir;
  std::string one = dir / "one.safetensors", other = dir / "other.safetensors",
              mine = dir / "mine.safetensors", seen = dir / "seen.safetensors";
  constexpr int kLayers = 2, kExperts = 16;
  auto name = [](int layer, const char *what) { return format("layers.%d.%s", layer, what); };
  std::vector<double> moved;
  for (std::string mesh : {"", "--mesh=ep=2 --ragged-bound=1", "--mesh=tp=2", "--mesh=dp=2",
                           "--mesh=ep=4", "--mesh=ep=2,tp=2"}) {
    SCOPED_TRACE(mesh);
    Compiled compiled(dir, "olmoe", mesh);
    Ran free = runIt(compiled, 0, {.to = mesh.empty() ? one : mine, .from = {}});
    ASSERT_TRUE(free.status) << free.status.str();
    EXPECT_LT(free.worst, 1e-5);
    Ran replayed = runIt(compiled, 2, {.to = seen, .from = one});
    ASSERT_TRUE(replayed.status) << replayed.status.str();
    EXPECT_EQ(replayed.logits, free.logits);
    EXPECT_GT(replayed.figures.graphs, 10u);
    if (mesh.empty()) {
      // Every token to the expert after the one of its choice.
      std::vector<TestTensor> tensors;
      for (int layer = 0; layer < kLayers; ++layer) {
        std::vector<int32_t> ids = valuesIn<int32_t>(one, name(layer, "ids"));
        for (int32_t &id : ids)
          id = (id + 1) % kExperts;
        tensors.push_back(testTensor(name(layer, "ids"), "I32",
                                     {2, 24, static_cast<int64_t>(ids.size()) / 48}, ids));
      }
      writeFile(other, safetensorsBytes(tensors));
    }
    for (const std::string &dump : {mesh.empty() ? one : mine, seen})
      for (int layer = 0; layer < kLayers; ++layer) {
        EXPECT_EQ(valuesIn<int32_t>(dump, name(layer, "ids")),
                  valuesIn<int32_t>(one, name(layer, "ids")));
        for (const char *what : {"weights", "gaps"}) {
          std::vector<float> got = valuesIn<float>(dump, name(layer, what)),
                             want = valuesIn<float>(one, name(layer, what));
          ASSERT_EQ(got.size(), want.size());
          for (size_t i = 0; i < got.size(); ++i)
            EXPECT_NEAR(got[i], want[i], 2e-6);
        }
      }
    Ran forced = runIt(compiled, 1, {.to = seen, .from = other});
    ASSERT_TRUE(forced.status) << forced.status.str();
    EXPECT_EQ(valuesIn<int32_t>(seen, name(1, "ids")), valuesIn<int32_t>(other, name(1, "ids")));
    if (mesh.empty())
      moved = forced.logits;
    EXPECT_GT(forced.worst, 1e-3) << "other experts must give other logits";
    double largest = 0, worst = 0;
    for (size_t i = 0; i < moved.size(); ++i) {
      largest = std::max(largest, std::fabs(moved[i]));
      worst = std::max(worst, std::fabs(moved[i] - forced.logits[i]));
    }
    EXPECT_LT(worst, 1e-5 * largest);
    EXPECT_EQ(fake::allocated(), 0u);
  }
}

/// Prefill and decode share weights, caches and arenas; decode is one recorded step for all
/// positions; a bound that must grow moves the arena under both.
TEST(CudaRunner, GenerationReplaysDecodeAndGivesTheGoldenTokens) {
  uint64_t seed = std::random_device()();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  fake::seed(seed);
  for (std::string model : {"olmoe", "deepseek_v3"})
    for (std::string mesh : {"", "--mesh=ep=2 --ragged-bound=1", "--mesh=dp=2", "--mesh=tp=2",
                             "--mesh=ep=2,tp=2 --ragged-bound=1"}) {
      SCOPED_TRACE(model + " " + mesh);
      const int settled = fake::settledInputs();
      TempDir dir;
      Compiled compiled(dir, model, "--task=generate --max-seq=40 " + mesh);
      GeneratePrograms programs = generatePrograms(compiled.device.plan());
      ASSERT_TRUE(programs);
      std::string io = compiled.folder + "/io.safetensors";
      GenerateOptions options;
      options.maxNewTokens = 12;
      options.ignoreEos = true;
      Expected<GenerateTask> task = GenerateTask::open(programs, io, compiled.folder, options);
      ASSERT_TRUE(task) << task.status().str();
      {
        FakePlugin plugin;
        RunSession session;
        session.plan = &compiled.device;
        session.program = programs.prefill;
        session.second = programs.decode;
        session.plugin = &plugin;
        session.device.timeoutSeconds = 60;
        session.task = std::move(*task);
        Status status = session.openWeights(compiled.folder);
        Ranks ranks = std::move(*Ranks::threads(static_cast<int>(programs.decode->ranks()), 60));
        if (status)
          status = session.load(ranks);
        if (status)
          status = session.generate(ranks, 1); // the second time prefill is replayed, too
        ASSERT_TRUE(status) << status.str();
        std::vector<int64_t> golden = valuesIn<int64_t>(io, "greedy_ids");
        for (auto &loop : session.loops) {
          ASSERT_EQ(loop->steps(), 12);
          EXPECT_EQ(std::vector<int64_t>(loop->tokens().begin(), loop->tokens().begin() + 12),
                    std::vector<int64_t>(golden.end() - 12, golden.end()));
        }
        RankFigures figures = session.executors[0]->figures();
        EXPECT_EQ(figures.allocated, figures.planned);
        EXPECT_GT(figures.graphs, 20u);
        EXPECT_GT(fake::settledInputs(), settled); // weights at least
        if (mesh.find("ragged") != std::string::npos)
          EXPECT_GE(figures.retries, 1u);
      }
      EXPECT_EQ(fake::allocated(), 0u);
    }
}

/// With the experts that f32 chooses bf16 is close to the golden logits, on one rank and on a mesh.
TEST(CudaRunner, Bf16WithTheChoicesOfF32) {
  fake::seed(10);
  TempDir dir;
  std::string routes = dir / "f32.safetensors";
  {
    Compiled f32(dir, "mixtral", "");
    Ran ran = runIt(f32, 0, {.to = routes, .from = {}});
    ASSERT_TRUE(ran.status) << ran.status.str();
  }
  for (std::string mesh : {"", "--mesh=ep=2,tp=2"}) {
    SCOPED_TRACE(mesh);
    Compiled bf16(dir, "mixtral", mesh + " --dtype=bf16");
    Ran forced = runIt(bf16, 1, {.to = {}, .from = routes});
    ASSERT_TRUE(forced.status) << forced.status.str();
    EXPECT_LT(forced.worst, 2e-2);
    EXPECT_GT(forced.worst, 1e-4) << "nothing has been rounded";
    EXPECT_GT(forced.figures.graphs, 10u);
  }
}

TEST(CudaRunner, TheProfileHasEveryInstruction) {
  fake::seed(9);
  TempDir dir;
  Compiled compiled(dir, "mixtral", "--mesh=ep=2");
  std::vector<RankProfile> profiles;
  Ran ran = runIt(compiled, 0, {}, &profiles);
  ASSERT_TRUE(ran.status) << ran.status.str();
  ASSERT_EQ(profiles.size(), 2u);
  EXPECT_EQ(profiles[1].events.size(),
            (*findProgram(compiled.device, "p", false))->instrs()->size());
}

TEST(CudaRunner, TooLittleMemoryIsNamedWithNumbersAndLeavesNothing) {
  TempDir dir;
  Compiled compiled(dir, "mixtral", "--mesh=dp=2");
  fake::setMemory(1 << 20);
  Ran ran = runIt(compiled);
  fake::setMemory(UINT64_MAX / 2);
  ASSERT_FALSE(ran.status);
  EXPECT_EQ(ran.status.exitCode(), 3);
  EXPECT_THAT(ran.status.str(), HasSubstr("arena state of rank 0 needs"));
  EXPECT_THAT(ran.status.str(), HasSubstr("arena state of rank 1 needs"));
  EXPECT_THAT(ran.status.str(), HasSubstr("1.0 MiB are free"));
  EXPECT_EQ(fake::allocated(), 0u);
}

/// Also where a later instruction is the first to notice.
TEST(CudaRunner, AFailureOfTheDeviceNamesRankInstructionAndLayer) {
  TempDir dir;
  Compiled compiled(dir, "mixtral", "");
  std::vector<std::string> texts;
  for (bool noticed : {false, true}) {
    fake::failAtLaunch(4, noticed);
    Ran ran = runIt(compiled);
    fake::failAtLaunch(0);
    ASSERT_FALSE(ran.status);
    EXPECT_EQ(ran.status.exitCode(), 5);
    EXPECT_THAT(ran.status.str(), HasSubstr("MOE-0510: rank 0"));
    EXPECT_THAT(ran.status.str(), HasSubstr("instruction"));
    EXPECT_THAT(ran.status.str(), HasSubstr("at model.layers.0"));
    texts.push_back(ran.status.str());
  }
  EXPECT_EQ(texts[0], texts[1]);
}

TEST(CudaRunner, AFailureAmongStepsThatFollowEachOtherIsReported) {
  TempDir dir;
  Compiled compiled(dir, "mixtral", "");
  int kernels = 0;
  for (const fb::Instr *instr : *(*findProgram(compiled.device, "p", false))->instrs())
    kernels += instr->kind() == fb::InstrKind::launch;
  fake::failAtLaunch(kernels + 4); // in the second step
  Ran ran = runIt(compiled, 0, {}, nullptr, 5);
  fake::failAtLaunch(0);
  ASSERT_FALSE(ran.status);
  EXPECT_EQ(ran.status.exitCode(), 5);
  EXPECT_THAT(ran.status.str(), HasSubstr("MOE-0510: rank 0"));
  EXPECT_THAT(ran.status.str(), HasSubstr("or what follows it in the same graph"));
}

} // namespace
