//===- CudaTrainTest.cpp - training on CUDA devices, without a device -------===//
// Plans that train, compiled for sm_90, on the fake CUDA and NCCL that reorder what events do not
// order: the golden losses of AdamW on every mesh, stage of ZeRO and number of micro-batches, with
// bounds that are too small at first (an update that came before one was noticed would show), and
// runs that are taken up again from checkpoints to the bit, on the device and on the host.
//===----------------------------------------------------------------------===//
#include "CudaRunnerTesting.h"

#include "../../runtime/cuda/HostWork.h"

#include <gmock/gmock.h>
#include <random>

using namespace moira::rt;
using namespace moira::test;

namespace fb = moira::fb;

namespace {

const std::string kTrain = "--task=train ";
const std::string kAdamW = kTrain + "--optimizer=adamw --lr=1e-3 --weight-decay=0.01 ";

struct Trained {
  Status status;
  std::vector<double> losses;
  RankFigures figures = {};
};

/// The numbers of a name in a file of JSON lines.
std::vector<double> numbersIn(const std::string &path, const std::string &name) {
  std::ifstream file(path);
  std::vector<double> numbers;
  for (std::string line; std::getline(file, line);) {
    size_t at = line.find("\"" + name + "\":");
    EXPECT_NE(at, std::string::npos) << line;
    if (at != std::string::npos)
      numbers.push_back(std::stod(line.substr(at + name.size() + 3)));
  }
  return numbers;
}

/// Trains on the golden batch with the golden weights, on fake devices or on the host.
Trained train(const Compiled &compiled, TrainOptions options, bool onHost = false) {
  const PlanFile &plan = onHost ? compiled.host : compiled.device;
  TempDir dir;
  options.metrics = dir / "metrics.jsonl";
  FakePlugin plugin;
  Trained trained;
  {
    RunSession session;
    session.plan = &plan;
    session.program = *findProgram(plan, "p", false);
    if (onHost)
      session.images = compiled.images;
    else
      session.plugin = &plugin;
    session.device.timeoutSeconds = 60;
    auto programs = trainPrograms(plan, *session.program);
    EXPECT_TRUE(programs) << programs.status().str();
    session.second = programs->update;
    auto inputs = InputSet::open(compiled.folder + "/io.safetensors", *session.program,
                                 programs->microBatches);
    EXPECT_TRUE(inputs) << inputs.status().str();
    session.inputs = std::move(*inputs);
    auto task = TrainTask::open(plan, *programs, *session.inputs, options);
    trained.status = task.takeStatus();
    if (!trained.status)
      return trained;
    session.training = std::move(*task);
    auto trace = RouteTrace::create(plan.plan(), *session.program, true, "");
    EXPECT_TRUE(trace) << trace.status().str();
    session.routes = &*trace;
    if (!options.init && !session.training->resumed())
      trained.status = session.openWeights(compiled.folder);
    Ranks ranks = std::move(*Ranks::threads(static_cast<int>(session.program->ranks()), 60));
    if (trained.status)
      trained.status = session.load(ranks);
    if (trained.status)
      trained.status = session.train(ranks, [](const std::string &) {});
    if (!session.executors.empty() && session.executors[0])
      trained.figures = session.executors[0]->figures();
  }
  if (trained.status)
    trained.losses = numbersIn(options.metrics, "loss");
  return trained;
}

std::vector<double> goldenLosses(const Compiled &compiled) {
  auto file = SafeTensorsFile::open(compiled.folder + "/io.safetensors");
  EXPECT_TRUE(file) << file.status().str();
  const TensorInfo *info = file->find("adamw_losses");
  std::vector<double> losses(info->elements());
  for (size_t i = 0; i < losses.size(); ++i)
    losses[i] = info->type == TensorType::f64
                    ? reinterpret_cast<const double *>(file->data(*info).data())[i]
                    : reinterpret_cast<const float *>(file->data(*info).data())[i];
  return losses;
}

/// The largest relative difference.
double worst(const std::vector<double> &got, const std::vector<double> &want) {
  EXPECT_EQ(got.size(), want.size());
  double most = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i)
    most = std::max(most, std::fabs(got[i] - want[i]) / std::fabs(want[i]));
  return most;
}

TrainOptions stepsOf(uint64_t steps) {
  TrainOptions options;
  options.steps = steps;
  return options;
}

void seedAnew() {
  uint64_t seed = std::random_device()();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  fake::seed(seed);
}

TEST(CudaTrain, GoldenLossesOnEveryMeshInAnyOrder) {
  // A run that failed before this test may have left its memory, on purpose.
  const uint64_t before = fake::allocated();
  seedAnew();
  for (std::string model : {"olmoe", "deepseek_v3", "switch_transformers"}) {
    bool encoderDecoder = model == "switch_transformers";
    std::vector<std::string> meshes{""};
    for (std::string mesh :
         {"ep=2 --ragged-bound=1", "dp=2", "tp=2", "dp=2,ep=2 --ragged-bound=1 --zero=3"})
      if (!encoderDecoder)
        meshes.push_back("--mesh=" + mesh);
    for (const std::string &mesh : meshes) {
      SCOPED_TRACE(model + " " + mesh);
      TempDir dir;
      Compiled compiled(dir, model, kAdamW + (encoderDecoder ? "--dec-seq=12 " : "") + mesh);
      Trained trained = train(compiled, stepsOf(10));
      ASSERT_TRUE(trained.status) << trained.status.str();
      EXPECT_LT(worst(trained.losses, goldenLosses(compiled)), 1e-4);
      EXPECT_EQ(trained.figures.allocated, trained.figures.planned);
      EXPECT_GT(trained.figures.graphs, 20u);
      EXPECT_EQ(trained.figures.retries >= 1, mesh.find("ragged") != std::string::npos);
      EXPECT_EQ(fake::allocated(), before);
    }
  }
}

TEST(CudaTrain, StagesOfZeroMicroBatchesAndRecomputedValuesChangeNothing) {
  // A run that failed before this test may have left its memory, on purpose.
  const uint64_t before = fake::allocated();
  seedAnew();
  for (std::string options :
       {"--mesh=dp=2 --zero=1", "--mesh=dp=2,ep=2 --zero=2 --ragged-bound=1", "--micro-batches=2",
        "--mesh=ep=2 --zero=2 --micro-batches=2 --ragged-bound=1",
        "--recompute=full --mesh=ep=2 --ragged-bound=1"}) {
    SCOPED_TRACE(options);
    TempDir dir;
    Compiled compiled(dir, "olmoe", kAdamW + options);
    Trained trained = train(compiled, stepsOf(10));
    ASSERT_TRUE(trained.status) << trained.status.str();
    EXPECT_LT(worst(trained.losses, goldenLosses(compiled)), 1e-4);
    EXPECT_EQ(trained.figures.retries >= 1, options.find("ragged") != std::string::npos);
    EXPECT_EQ(fake::allocated(), before);
  }
}

/// On one rank the device makes the host's own sequence of calls.
TEST(CudaTrain, OneRankTrainsAsTheHostDoesToTheBit) {
  seedAnew();
  struct Case {
    std::string model, options;
  };
  for (const Case &one :
       {Case{"olmoe", kAdamW + "--dtype=bf16 --clip-norm=0.5 --aux-loss=0.01 --z-loss=0.001"},
        {"olmoe", kTrain + "--optimizer=sgd --lr=0.1 --momentum=0.9 --label-smoothing=0.1"},
        {"olmoe", kTrain + "--optimizer=adafactor --lr=1e-2 --micro-batches=2"},
        {"deepseek_v3", kAdamW + "--bias-update-rate=0.01"},
        {"mixtral", kAdamW + "--schedule=cosine,warmup=2,steps=6,least=1e-5"}}) {
    SCOPED_TRACE(one.model + " " + one.options);
    TempDir dir;
    Compiled compiled(dir, one.model, one.options);
    Trained here = train(compiled, stepsOf(6), true), there = train(compiled, stepsOf(6));
    ASSERT_TRUE(here.status) << here.status.str();
    ASSERT_TRUE(there.status) << there.status.str();
    EXPECT_EQ(here.losses, there.losses);
    EXPECT_NE(here.losses.front(), here.losses.back());
  }
}

/// Moves, updates on the host and the device's work in any order that events allow: on one rank to
/// the bit of what the host does, and on meshes as near as without it.
TEST(CudaTrain, StatesOnTheHostChangeNothing) {
  const uint64_t before = fake::allocated();
  seedAnew();
  for (std::string what : {" --offload=optimizer", " --offload=optimizer+params"})
    for (std::string options :
         {"", "--dtype=bf16 --clip-norm=0.5", "--micro-batches=2 --clip-norm=0.5",
          "--mesh=dp=2,ep=2 --zero=3 --ragged-bound=1",
          "--mesh=ep=2 --zero=3 --micro-batches=2 --ragged-bound=1 --dtype=bf16"}) {
      SCOPED_TRACE(options + what);
      TempDir dir;
      Trained want = train(Compiled(dir, "olmoe", kAdamW + options), stepsOf(6), true);
      ASSERT_TRUE(want.status) << want.status.str();
      Compiled compiled(dir, "olmoe", kAdamW + options + what);
      Trained got = train(compiled, stepsOf(6));
      ASSERT_TRUE(got.status) << got.status.str();
      if (options.find("--mesh") == std::string::npos)
        EXPECT_EQ(got.losses, want.losses);
      else
        EXPECT_LT(worst(got.losses, want.losses), 1e-4);
      EXPECT_EQ(got.figures.allocated, got.figures.planned);
      EXPECT_GT(got.figures.graphs, 20u);
      EXPECT_EQ(got.figures.retries >= 1, options.find("ragged") != std::string::npos);
      EXPECT_EQ(fake::allocated(), before);
    }
}

/// The first failure of the host's work is the step's, with the instruction.
TEST(CudaTrain, WhatFailsOnTheHostIsSaid) {
  cuda::HostWork work(1);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, 0), cudaSuccess);
  BoundInstr good, bad;
  float x[4] = {1, 2, 3, 4}, y[4] = {};
  good.kind = fb::InstrKind::copy;
  good.in = {{x, fb::DType::f32, {4}}};
  good.out = {{y, fb::DType::f32, {4}}};
  good.box = Box::all(good.in[0].shape);
  bad.kind = fb::InstrKind::call;
  bad.call = "no_such_call";
  for (size_t i : {1, 2})
    ASSERT_EQ(work.enqueue(i, bad, format("instruction %zu", i), stream), cudaSuccess);
  ASSERT_EQ(work.enqueue(3, good, "instruction 3", stream), cudaSuccess);
  EXPECT_EQ(y[3], 0); // not before the stream comes to it
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(y[3], 4);
  Status failure = work.failure();
  ASSERT_FALSE(failure);
  EXPECT_THAT(failure.str(), ::testing::HasSubstr("instruction 1: "));
  EXPECT_THAT(failure.str(), ::testing::Not(::testing::HasSubstr("instruction 2")));
  work.reset();
  EXPECT_TRUE(work.failure());
  cudaStreamDestroy(stream);
}

std::string contentsOf(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The tensors of a checkpoint, all ranks' files.
std::vector<std::string> tensorsOf(const std::string &step) {
  std::vector<std::string> files;
  for (const auto &entry : std::filesystem::directory_iterator(step))
    if (entry.path().extension() == ".safetensors")
      files.push_back(entry.path().filename().string() + contentsOf(entry.path()));
  std::sort(files.begin(), files.end());
  EXPECT_FALSE(files.empty()) << step;
  return files;
}

/// From random weights and saves in the background; a rank's states are cut with ZeRO.
TEST(CudaTrain, RunsGoOnFromCheckpointsOfTheDeviceAndOfTheHost) {
  // A run that failed before this test may have left its memory, on purpose.
  const uint64_t before = fake::allocated();
  seedAnew();
  for (std::string mesh : {"", "--mesh=dp=2,ep=2 --zero=3 --ragged-bound=1",
                           "--mesh=dp=2,ep=2 --zero=3 --ragged-bound=1 --offload=optimizer"}) {
    SCOPED_TRACE(mesh);
    TempDir dir;
    Compiled compiled(dir, "olmoe", kAdamW + mesh);
    TrainOptions options = stepsOf(6);
    options.init = 5;
    options.saveEvery = 2;
    options.checkpoint = dir / "whole";
    Trained whole = train(compiled, options);
    ASSERT_TRUE(whole.status) << whole.status.str();
    for (int first = 0; first < 2; ++first) // on the device, on the host
      for (int second = 0; second < 2; ++second) {
        options.checkpoint = dir / format("parts-%d-%d", first, second);
        options.resume = false;
        options.steps = 4;
        Trained begun = train(compiled, options, first == 1);
        ASSERT_TRUE(begun.status) << begun.status.str();
        options.resume = true;
        options.steps = 6;
        Trained ended = train(compiled, options, second == 1);
        ASSERT_TRUE(ended.status) << ended.status.str();
        ASSERT_EQ(ended.losses.size(), 2u);
        std::vector<double> losses = begun.losses;
        losses.insert(losses.end(), ended.losses.begin(), ended.losses.end());
        if (mesh.empty() || (first == 0 && second == 0)) {
          EXPECT_EQ(losses, whole.losses);
          EXPECT_TRUE(tensorsOf(options.checkpoint + "/step-6") == tensorsOf(dir / "whole/step-6"));
        } else {
          EXPECT_LT(worst(losses, whole.losses), 1e-6);
        }
      }
    EXPECT_EQ(fake::allocated(), before);
  }
}

} // namespace
