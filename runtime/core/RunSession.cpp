//===- RunSession.cpp - what the ranks of a process share -----------------===//
// See RunSession.h.
//===----------------------------------------------------------------------===//
#include "RunSession.h"

#include "moira/rt/Agree.h"
#include "moira/rt/Weights.h"

#include <algorithm>
#include <cstdio>

namespace moira::rt {
namespace {

double secondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// One line of --stream.
void printStep(int64_t step, std::span<const int32_t> ids) {
  std::string line = format("{\"step\":%lld,\"ids\":[", static_cast<long long>(step));
  for (size_t i = 0; i < ids.size(); ++i)
    line += (i ? "," : "") + std::to_string(ids[i]);
  std::puts((line + "]}").c_str());
  std::fflush(stdout);
}

} // namespace

Expected<const fb::Program *> findProgram(const PlanFile &plan, const std::string &path,
                                          bool reference) {
  if (GeneratePrograms generate = generatePrograms(plan.plan()); generate && !reference)
    return generate.prefill;
  for (const fb::Program *program : *plan.plan().programs())
    if (program->reference() == reference &&
        (reference || program->name()->string_view() == "forward" ||
         program->name()->string_view() == "grad" || program->name()->string_view() == "train" ||
         program->name()->string_view() == "accumulate"))
      return program;
  return Status(ErrorId::BadRun,
                format("%s has no program %s", path.c_str(),
                       reference ? "reference; one that was compiled from IR of the phase shard, "
                                   "partition or localize has none: run it without --check and "
                                   "--reference"
                                 : "forward, grad, train or accumulate"));
}

std::string meshText(const fb::Plan &plan) {
  std::string text;
  for (const fb::Axis *axis : *plan.axes())
    text += format("%s%s=%u", text.empty() ? "" : ", ", axis->name()->c_str(), axis->size());
  return text;
}

Status RunSession::prepare(int localRanks) {
  if (plugin)
    return {};
  // Each rank's own allocation would succeed where all of them together do not fit.
  uint64_t each = plannedBytes(programs(), f64);
  uint64_t available = availableMemory();
  if (each > available / localRanks)
    return Status(
        ErrorId::OutOfMemory,
        format("the plan needs %s for each of %d ranks on this machine, %s are available; "
               "use more machines or more ranks",
               byteText(each).c_str(), localRanks, byteText(available).c_str()));
  // A reference program runs no code of the plan. A plan for another device is refused when its
  // executors are made.
  if (program->reference() || plan->plan().target()->string_view() != "host")
    return {};
  Expected<std::shared_ptr<const HostImages>> loaded = HostImages::load(*plan);
  if (!loaded)
    return loaded.takeStatus();
  images = std::move(*loaded);
  return {};
}

Status RunSession::openWeights(const std::string &path) {
  const auto &states = statesOf(plan->plan(), *program);
  bool needed = std::any_of(states.begin(), states.end(),
                            [](const fb::State *state) { return state->source() != nullptr; });
  if (!needed)
    return {};
  Expected<Checkpoint> opened = Checkpoint::open(path);
  if (!opened)
    return opened.takeStatus();
  if (Status status = checkWeights(plan->plan(), *program, *opened); !status)
    return status;
  weights = std::move(*opened);
  return {};
}

Expected<InputSet> RunSession::emptyBatch(int64_t parts) {
  std::map<std::string, HostTensor> tensors;
  for (const fb::Input *input : *program->inputs()) {
    if (input->name()->string_view() != "input_ids")
      continue;
    std::vector<int64_t> shape(input->shape()->begin(), input->shape()->end());
    shape[0] *= parts;
    size_t elements = 1;
    for (int64_t d : shape)
      elements *= static_cast<size_t>(d);
    zeros.assign(elements, 0);
    tensors["input_ids"] = {fb::DType::i32, shape, zeros.data()};
  }
  return InputSet::fromMemory(tensors, *program, parts);
}

Status RunSession::load(Ranks &ranks) {
  auto start = std::chrono::steady_clock::now();
  phase = Phase::loading;
  executors.resize(ranks.localSize());
  profiles.resize(profiled ? ranks.localSize() : 0);
  rankRoutes.resize(routes ? ranks.localSize() : 0);
  Status status = ranks.each([&](int local) -> Ranks::Verdict {
    Communicator &communicator = ranks.communicator(local);
    ExecutorSetup setup;
    setup.plan = plan;
    setup.programs = programs();
    setup.images = images;
    setup.communicator = &communicator;
    setup.f64 = f64;
    setup.epoch = epoch;
    if (profiled) {
      profiles[local].rank = communicator.rank();
      profiles[local].epoch = epoch;
      setup.profile = &profiles[local];
    }
    if (routes) {
      rankRoutes[local] = std::make_unique<RankRoutes>(
          *routes, MeshPosition(plan->plan(), *program, communicator.rank()));
      setup.routes = rankRoutes[local].get();
    }
    DeviceSetup given = device;
    given.hostThreads = ranks.threadsPerRank();
    Expected<std::unique_ptr<ProgramRunner>> executor =
        plugin ? plugin->create(setup, given) : Executor::create(setup);
    Status mine = executor ? Status() : executor.takeStatus();
    if (Status all = agree(mine, communicator, "loading the plan"); !all)
      return Ranks::shared(std::move(all));
    executors[local] = std::move(*executor);
    return executors[local]->loadWeights(weights ? &*weights : nullptr);
  });
  loadSeconds = secondsSince(start);
  return status;
}

Status RunSession::generate(Ranks &ranks, int again) {
  auto start = std::chrono::steady_clock::now();
  phase = Phase::stepping;
  loops.clear();
  for (int local = 0; local < ranks.localSize(); ++local)
    loops.push_back(std::make_unique<RankGeneration>(*task, profiled ? &profiles[local] : nullptr));
  Status status = ranks.each([&](int local) -> Ranks::Verdict {
    bool speaks = task->options().stream && ranks.communicator(local).rank() == 0;
    Status mine;
    for (int turn = 0; turn <= again && mine; ++turn)
      mine = loops[local]->run(*executors[local], program->reference(),
                               speaks && turn == again ? printStep : nullptr);
    return {mine, executors[local]->failedTogether()};
  });
  stepSeconds = secondsSince(start);
  arenaSizes = executors[0]->arenaSizes();
  return status;
}

Status RunSession::train(Ranks &ranks, const std::function<void(const std::string &)> &note) {
  auto start = std::chrono::steady_clock::now();
  trainings.clear();
  for (int local = 0; local < ranks.localSize(); ++local)
    trainings.push_back(
        std::make_unique<RankTraining>(*training, profiled ? &profiles[local] : nullptr));
  phase = Phase::stepping;
  if (training->options().begins)
    training->options().begins();
  Status status = ranks.each([&](int local) -> Ranks::Verdict {
    Status mine = trainings[local]->run(*executors[local],
                                        rankRoutes.empty() ? nullptr : rankRoutes[local].get(),
                                        ranks.communicator(local), note);
    return {mine, trainings[local]->failedTogether() || executors[local]->failedTogether()};
  });
  stepSeconds = secondsSince(start);
  arenaSizes = executors[0]->arenaSizes();
  return status;
}

Status RunSession::step(Ranks &ranks) {
  auto start = std::chrono::steady_clock::now();
  phase = Phase::stepping;
  Status status = ranks.each([&](int local) -> Ranks::Verdict {
    RankProfile *profile = profiled ? &profiles[local] : nullptr;
    ProfileSpan span(profile, RankProfile::Span::program, profile ? profile->spans.size() + 1 : 0);
    return {executors[local]->step(*inputs), executors[local]->failedTogether()};
  });
  stepSeconds = secondsSince(start);
  arenaSizes = executors[0]->arenaSizes();
  return status;
}

Status RunSession::steps(Ranks &ranks, std::span<double> seconds) {
  phase = Phase::stepping;
  std::vector<std::vector<double>> mine(executors.size(), std::vector<double>(seconds.size()));
  Status status = ranks.each([&](int local) -> Ranks::Verdict {
    return {executors[local]->steps(*inputs, mine[local]), executors[local]->failedTogether()};
  });
  arenaSizes = executors[0]->arenaSizes();
  for (size_t i = 0; i < seconds.size(); ++i) {
    seconds[i] = 0;
    for (const std::vector<double> &each : mine)
      seconds[i] = std::max(seconds[i], each[i]);
  }
  return status;
}

std::string RunSession::where() const {
  switch (phase) {
  case Phase::opening:
    return "opening the files";
  case Phase::loading:
    return "loading the weights";
  case Phase::stepping: {
    std::string text = executors[0]->where();
    if (!trainings.empty())
      return trainings[0]->where() + (text.empty() ? "" : ", " + text);
    return text.empty() ? "between two steps" : text;
  }
  case Phase::ending:
    return "writing the results";
  }
  return "";
}

Status RunSession::repeat(Ranks &ranks, int count) {
  if (count == 0)
    return {};
  double first = stepSeconds;
  // Not timed: a device may record the step in it.
  Status status = step(ranks);
  for (int i = 0; i < count && status; ++i) {
    status = step(ranks);
    repeats.push_back(stepSeconds);
  }
  stepSeconds = first;
  return status;
}

} // namespace moira::rt
