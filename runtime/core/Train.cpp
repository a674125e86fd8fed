//===- Train.cpp - steps of training, one after another -------------------===//
// See Train.h.
//===----------------------------------------------------------------------===//
#include "Train.h"

#include "RunSession.h"
#include "moira/rt/Agree.h"
#include "moira/rt/InitWeights.h"
#include "moira/rt/Metrics.h"
#include "moira/rt/RouteTrace.h"

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <unistd.h>

namespace moira::rt {
namespace {

using Clock = std::chrono::steady_clock;

/// A label that no loss counts.
constexpr int64_t kNoLabel = -100;

double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <typename List> auto *named(const List &list, std::string_view name) {
  for (auto *one : list)
    if (one->name()->string_view() == name)
      return one;
  return decltype(list.Get(0))(nullptr);
}

/// A failure with the step that it was met in.
Status inStep(uint64_t number, const Status &status) {
  Status located;
  for (const Diagnostic &d : status.diagnostics())
    located.add(d.id, format("step %llu, ", (unsigned long long)number) + d.message);
  return located;
}

/// Steps that a profile has where nobody says which.
constexpr uint64_t kProfiled = 20;

/// What all steps so far have spent on this rank, in collectives or in everything else.
double secondsOf(const ProgramRunner &runner, const TrainPrograms &programs, bool exchanging) {
  double sum = 0;
  for (size_t p = 0; p < (programs.update ? 2 : 1); ++p) {
    const auto &instrs = *(p == 0 ? programs.first : programs.update)->instrs();
    std::span<const double> seconds = runner.instructionSeconds(p);
    for (unsigned i = 0; i < seconds.size(); ++i)
      if ((instrs.Get(i)->kind() == fb::InstrKind::collective) == exchanging)
        sum += seconds[i];
  }
  return sum;
}

/// The first element of an output, if the program has it.
std::optional<double> numberOf(const fb::Program &program, std::span<const TensorRef> outputs,
                               std::string_view name) {
  for (size_t i = 0; i < outputs.size(); ++i)
    if (program.outputs()->Get(i)->name()->string_view() == name) {
      double value = 0;
      convertRun(&value, fb::DType::f64, outputs[i].data, outputs[i].dtype, 1);
      return value;
    }
  return std::nullopt;
}

} // namespace

bool isTraining(const fb::Plan &plan, const fb::Program &program) {
  auto updates = [](const fb::Program &one) {
    return named(*one.inputs(), "lr") && named(*one.outputs(), "loss");
  };
  if (program.reference() || program.name()->string_view() != "accumulate")
    return updates(program);
  const fb::Program *update = named(*plan.programs(), "update");
  return update && !update->reference() && updates(*update);
}

Expected<TrainPrograms> trainPrograms(const PlanFile &plan, const fb::Program &program) {
  TrainPrograms programs;
  programs.first = &program;
  if (!isTraining(plan.plan(), program))
    return Status(ErrorId::BadRun, format("program %s does not train", program.name()->c_str()));
  if (program.reference() || program.name()->string_view() != "accumulate")
    return programs;
  programs.update = plan.program("update");
  const fb::Input *ids = named(*program.inputs(), "input_ids");
  int64_t batch = plan.plan().info()->batch();
  int64_t rows = ids && ids->shape()->size() > 1 ? ids->shape()->Get(0) : 0;
  if (rows < 1 || batch < rows || batch % rows)
    return Status(ErrorId::BadRun,
                  format("program accumulate takes %lld rows of input_ids, which do not divide the "
                         "plan's batch of %lld; compile the model anew",
                         (long long)rows, (long long)batch));
  programs.microBatches = batch / rows;
  return programs;
}

/// Labels of the whole batch that losses count. What is no label of its own (none is given, or one
/// that stands for none) is the next token of the row, for all but the last one.
static float countLabels(const fb::Program &program, const InputSet &inputs, int64_t batch) {
  const fb::Input *labels = named(*program.inputs(), "labels");
  const fb::Input *ids = named(*program.inputs(), "input_ids");
  if (!labels || !ids || ids->shape()->size() != 2)
    return 1;
  int64_t width = labels->shape()->Get(1), count = 0;
  int64_t shift = labels->optional() ? 1 : 0; // of a decoder: labels stand at their tokens
  const HostTensor *given = inputs.find("labels");
  for (int64_t row = 0; row < batch; ++row)
    for (int64_t s = shift; s < width; ++s)
      count += !given || integerAt(given->data, given->type, row * width + s) != kNoLabel;
  return static_cast<float>(count);
}

Expected<TrainTask> TrainTask::open(const PlanFile &file, const TrainPrograms &programs,
                                    const InputSet &inputs, const TrainOptions &options) {
  const fb::Plan &plan = file.plan();
  const fb::Program &program = *programs.first;
  TrainTask task;
  task.asked = options;
  task.plan = &plan;
  task.programs = programs;
  task.inputs = &inputs;
  task.planHash = format("%08x", file.checksum());
  if (programs.update) {
    Expected<InputSet> settings = InputSet::fromMemory({}, *programs.update);
    if (!settings)
      return settings.takeStatus();
    task.settings = std::move(*settings);
    task.labelCount = countLabels(program, inputs, plan.info()->batch());
  }
  double rate = options.lr.value_or(named(*programs.last().inputs(), "lr")->fill());
  Expected<Schedule> schedule =
      Schedule::parse(!options.schedule.empty() ? options.schedule
                      : plan.info()->schedule() ? plan.info()->schedule()->str()
                                                : "constant",
                      rate);
  if (!schedule)
    return schedule.takeStatus();
  task.schedule = *schedule;
  task.tokens = plan.info()->batch() * plan.info()->seq();
  if (!options.data.empty()) {
    const fb::Input *ids = named(*program.inputs(), "input_ids");
    if (!ids || ids->dtype() != fb::DType::i32 || ids->shape()->size() != 2 ||
        named(*program.inputs(), "decoder_input_ids"))
      return Status(ErrorId::BadRun, "--data is for decoders: the plan has other inputs than "
                                     "input_ids; give a batch with --inputs=FILE");
    Expected<TokenReader> reader =
        TokenReader::open(options.data, {.length = ids->shape()->Get(1),
                                         .vocabulary = ids->maximum() + 1,
                                         .seed = options.dataSeed,
                                         .temperature = options.dataTemperature});
    if (!reader)
      return reader.takeStatus();
    task.reader = std::move(*reader);
    task.start = task.reader->start();
  }
  if (options.checkpoint.empty())
    return task;
  // A directory that cannot be read may hold checkpoints, which a run from the beginning would
  // replace.
  RunDirectory directory = lookAtRun(options.checkpoint, FileSystem::real());
  if (directory.error != 0)
    return Status(ErrorId::FileNotFound, "--checkpoint=" + options.checkpoint +
                                             " cannot be read: " + std::strerror(directory.error));
  const std::vector<std::string> &there = task.there = std::move(directory.steps);
  if (!options.resume && !there.empty())
    return Status(ErrorId::BadUsage,
                  format("--checkpoint=%s holds %s already; go on from it with --resume, or name "
                         "another directory",
                         options.checkpoint.c_str(), there.back().c_str()));
  // Only a save writes LATEST: what it named has been removed, or was left behind in a copy.
  if (options.resume && there.empty() && directory.hasLatest)
    return Status(ErrorId::BadCheckpoint,
                  format("%s/LATEST names a checkpoint, and none is there; remove LATEST to begin "
                         "at the beginning",
                         options.checkpoint.c_str()));
  if (options.resume && !there.empty()) {
    Expected<TrainingCheckpoint> from = TrainingCheckpoint::open(options.checkpoint);
    if (!from) {
      Status problem = from.takeStatus();
      // Where LATEST is what is damaged, the newest step can be opened, and there is no need.
      if (!TrainingCheckpoint::open(options.checkpoint + "/" + there.back()))
        problem.append(adviseOnDamage(problem, options.checkpoint, there.back()));
      return problem;
    }
    task.from = std::move(*from);
    if (task.reader) {
      if (uint64_t seed = task.from->manifest().progress.seed; seed != options.dataSeed)
        return Status(ErrorId::BadUsage,
                      format("%s was trained with --data-seed=%llu, its position is in that order",
                             task.from->path().c_str(), (unsigned long long)seed));
      Expected<DataPosition> start =
          DataPosition::read(task.from->manifest().progress.data, options.data.size());
      if (!start)
        return start.takeStatus();
      task.start = std::move(*start);
    }
  }
  return task;
}

//===----------------------------------------------------------------------===//
// Reports
//===----------------------------------------------------------------------===//

/// Rank 0's files and lines.
struct RankTraining::Reports {
  std::optional<JsonLines> lines;
  std::optional<TensorBoard> board;
  Clock::time_point said = {};
  bool whole = true; // nothing is missing in the files

  static Expected<Reports> open(const TrainOptions &options, uint64_t from) {
    Reports reports;
    if (!options.metrics.empty()) {
      Expected<JsonLines> lines = JsonLines::open(options.metrics, from);
      if (!lines)
        return lines.takeStatus();
      reports.lines = std::move(*lines);
    }
    if (!options.tensorboard.empty()) {
      Expected<TensorBoard> board = TensorBoard::open(options.tensorboard);
      if (!board)
        return board.takeStatus();
      reports.board = std::move(*board);
    }
    return reports;
  }

  Status write(const StepMetrics &metrics) {
    if (lines)
      if (Status status = lines->write(metrics); !status)
        return status;
    return board ? board->write(metrics) : Status();
  }

  /// At most one line a second, and always the last step's.
  bool shouldSay(bool always) {
    if (!always && secondsSince(said) < 1)
      return false;
    said = Clock::now();
    return true;
  }
};

//===----------------------------------------------------------------------===//
// The loop
//===----------------------------------------------------------------------===//

RankTraining::Parts RankTraining::partsOf(ProgramRunner &runner) const {
  std::vector<TensorRef> memory = runner.states();
  const auto &states = statesOf(*task.plan, *task.programs.first);
  Parts parts;
  for (size_t i = 0; i < memory.size(); ++i) {
    const fb::State *state = states.Get(static_cast<unsigned>(i));
    if (state->transient())
      continue;
    parts.states.push_back(i);
    StatePart &part = parts.parts.emplace_back();
    part.name = state->name()->str();
    part.type = memory[i].dtype;
    part.shard = runner.position().shard(*state->shape(), *state->dims());
    part.data = memory[i].data;
    if (!part.data)
      part.read = [&runner, i](void *to) { return runner.readState(i, to); };
    part.experts = isSavedByExpert(states, *state);
  }
  return parts;
}

/// The name of its directory in the run's.
static std::string stepNameOf(const TrainingCheckpoint &checkpoint) {
  return checkpoint.path().substr(checkpoint.path().rfind('/') + 1);
}

Expected<uint64_t> RankTraining::begin(const Parts &parts, ProgramRunner &runner) {
  const TrainingCheckpoint *from = task.resumed();
  if (from)
    if (Status status = from->check(parts.parts); !status)
      return status;
  auto fill = [&](const StatePart &part) {
    if (from)
      return from->load(part);
    initWeight(part, {*task.asked.init, task.asked.initDeviation});
    return Status();
  };
  const auto &states = statesOf(*task.plan, *task.programs.first);
  std::vector<char> there; // what becomes of one that lies on a device
  for (size_t i = 0; i < parts.parts.size(); ++i) {
    StatePart part = parts.parts[i];
    if (!from && !(task.asked.init && named(states, part.name)->source()))
      continue;
    bool onDevice = !part.data;
    if (onDevice) {
      int64_t elements = 1;
      for (int64_t size : part.shard.local)
        elements *= size;
      there.assign(static_cast<size_t>(elements) * bytesOf(part.type), 0); // pads are zero
      part.data = there.data();
    }
    Status status = fill(part);
    if (status && onDevice)
      status = runner.writeState(parts.states[i], there.data());
    if (!status)
      return status;
  }
  return from ? from->manifest().progress.step : uint64_t(0);
}

Status RankTraining::readBatch(const MeshPosition &position) {
  const fb::Input &ids = *named(*task.programs.first->inputs(), "input_ids");
  Shard shard = position.shard(*ids.shape(), *ids.dims());
  int64_t width = shard.global[1], rows = shard.valid[0];
  int64_t all = shard.global[0] * task.programs.microBatches;
  batch.resize(static_cast<size_t>(all * width));
  inputs.give("input_ids", batch.data());
  Status status;
  for (int64_t first = shard.start[0]; first < all && status; first += shard.global[0])
    status = task.reader->read(data, static_cast<uint64_t>(first), static_cast<uint64_t>(rows),
                               std::span(batch).subspan(static_cast<size_t>(first * width),
                                                        static_cast<size_t>(rows * width)));
  data = task.reader->advance(data, static_cast<uint64_t>(all));
  return status;
}

Status RankTraining::runPrograms(ProgramRunner &runner, RankRoutes *routes) {
  dropped.reset();
  for (microBatch = 0; microBatch < task.programs.microBatches; ++microBatch) {
    inputs.choose(microBatch);
    if (Status status = runner.step(inputs); !status)
      return status;
    if (routes && routes->isRecording())
      routes->addLoads();
    Expected<std::vector<TensorRef>> outputs = runner.outputs();
    if (!outputs)
      return outputs.takeStatus();
    if (std::optional<DropCount> drops = countDrops(*task.programs.first, *outputs)) {
      DropCount before = dropped.value_or(DropCount());
      dropped = {before.dropped + drops->dropped, before.offered + drops->offered};
    }
  }
  return settings ? runner.step(*settings, 1) : Status();
}

TrainingProgress RankTraining::progress(uint64_t number) const {
  TrainingProgress progress;
  progress.step = number;
  progress.seed = task.asked.dataSeed;
  progress.planHash = task.planHash;
  if (task.reader)
    progress.data = data.write();
  return progress;
}

Status RankTraining::judge(const Status &saved, uint64_t number, bool last) {
  // Losing the other ranks is not a failed save.
  bool lost = !saved && saved.diagnostics().front().id == ErrorId::RankFailed;
  if (saved || lost)
    return saved;
  std::string what =
      format("the checkpoint of step %llu was not saved", (unsigned long long)number);
  if (!last) {
    note(saved.str() + what + "; training goes on");
    return {};
  }
  together = true;
  note(what);
  return saved;
}

Status RankTraining::step(ProgramRunner &runner, uint64_t number, Communicator &communicator,
                          RankRoutes *routes, Reports *reports) {
  auto start = Clock::now();
  lr = static_cast<float>(task.schedule.at(number));
  stepNumber = static_cast<int32_t>(number);
  at = number;
  if (profile)
    profile->recording = task.asked.profileSteps ? number >= task.asked.profileSteps->first &&
                                                       number <= task.asked.profileSteps->second
                                                 : made < kProfiled;
  ProfileSpan span(profile, RankProfile::Span::step, number);
  double computed = secondsOf(runner, task.programs, false);
  double exchanged = secondsOf(runner, task.programs, true);
  if (task.reader) {
    ProfileSpan reading(profile, RankProfile::Span::input, number);
    if (Status status = readBatch(runner.position()); !status)
      return status;
    loop.reading += secondsSince(start);
  }
  if (Status status = runPrograms(runner, routes); !status)
    return inStep(number, status);
  const fb::Program &program = task.programs.last();
  Expected<std::vector<TensorRef>> outputs = runner.outputs(settings ? 1 : 0);
  if (!outputs)
    return outputs.takeStatus();
  double took = secondsSince(start);
  spent += took;
  last = numberOf(program, *outputs, "loss").value_or(NAN);
  first = made == 0 ? last : first;
  ++made;

  double load = 1; // of the expert that has most tokens, over the mean of its layer
  if (routes && routes->isRecording()) {
    Expected<double> worst = routes->largestLoad(communicator);
    if (!worst)
      return worst.takeStatus();
    load = *worst;
  }
  if (!reports)
    return {};
  double share = dropped && dropped->offered > 0 ? dropped->dropped / dropped->offered : 0;
  double norm = numberOf(program, *outputs, "grad_norm").value_or(NAN);
  StepMetrics metrics{number,
                      {{"loss", last},
                       {"grad_norm", norm},
                       {"lr", lr},
                       {"tokens_per_s", double(task.tokens) / took},
                       {"dropped_fraction", share},
                       {"expert_load_max_over_mean", load}}};
  // The parts of the loss, where it has several.
  for (const char *name : {"ce_loss", "aux_loss", "z_loss"})
    if (std::optional<double> part = numberOf(program, *outputs, name))
      metrics.values.emplace_back(name, *part);
  if (reports->shouldSay(made == 1 || number == task.asked.steps))
    note(format("step %llu/%llu  loss %.5f  grad norm %.3g  lr %.3g  %.0f tokens/s  %.0f ms",
                (unsigned long long)number, (unsigned long long)task.asked.steps, last, norm,
                double(lr), double(task.tokens) / took, took * 1e3) +
         (runner.instructionSeconds().empty()
              ? std::string()
              : format(" (compute %.0f, exchange %.0f)",
                       (secondsOf(runner, task.programs, false) - computed) * 1e3,
                       (secondsOf(runner, task.programs, true) - exchanged) * 1e3)) +
         format("  load %.2f  dropped %.1f %%", load, share * 100));
  // A full disk does not end a run; what it keeps from the files is said once.
  if (Status status = reports->write(metrics); !status && std::exchange(reports->whole, false))
    note(status.str() + "the metrics of some steps are lost; training goes on");
  return {};
}

Status RankTraining::holdDirectory(RunLock &lock, Communicator &communicator) {
  const std::string &directory = task.asked.checkpoint;
  bool holds = communicator.rank() == 0;
  Group world = worldGroup(communicator);
  for (int tries = 0;; ++tries) {
    int32_t busy = holds && !lock.take(directory), any = 0;
    if (Status status = communicator.allReduce(world, &busy, &any, 1, fb::DType::i32,
                                               fb::Reduce::max, "asking for the directory");
        !status)
      return status;
    if (!any)
      break;
    if (tries == 0)
      note("waiting for another run that saves in --checkpoint=" + directory);
    if (tries == 60)
      return agree(Status(ErrorId::BadUsage, "another run saves in --checkpoint=" + directory +
                                                 "; end it first, or name another directory"),
                   communicator, "asking for the directory");
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  if (holds && access(directory.c_str(), W_OK) != 0)
    note("--checkpoint=" + directory + ": " + std::strerror(errno) +
         "; no checkpoint can be saved while that is so");
  Status mine;
  if (holds && listCheckpoints(directory, FileSystem::real()) != task.there)
    mine.add(ErrorId::BadUsage, "another run has changed --checkpoint=" + directory +
                                    " while this one began; give the same command again");
  return agree(mine, communicator, "looking at the directory again");
}

Status RankTraining::run(ProgramRunner &runner, RankRoutes *routes, Communicator &communicator,
                         const std::function<void(const std::string &)> &say) {
  bool speaks = communicator.rank() == 0;
  note = [&](const std::string &text) {
    if (speaks)
      say(text);
  };
  for (InputSet *set : {&inputs, settings ? &*settings : nullptr})
    if (set) {
      set->give("lr", &lr);
      set->give("step", &stepNumber);
      set->give("micro_batch", &microBatch);
      set->give("label_count", &task.labelCount);
    }

  const TrainOptions &asked = task.asked;
  RunLock lock;
  if (!asked.checkpoint.empty())
    if (Status status = holdDirectory(lock, communicator); !status)
      return status;
  Parts parts = partsOf(runner);
  Expected<uint64_t> done = begin(parts, runner);
  Status mine = done ? Status() : done.takeStatus();
  uint64_t number = done ? *done : 0;
  data = task.start;
  std::optional<Reports> reports;
  if (speaks && mine) {
    Expected<Reports> opened = Reports::open(asked, number);
    if (opened)
      reports = std::move(*opened);
    else
      mine = opened.takeStatus();
  }
  if (Status all = agree(mine, communicator, "preparing to train"); !all) {
    if (const TrainingCheckpoint *from = task.resumed()) {
      if (isDamage(all))
        note(format("%s cannot be used; looking for an older one", from->path().c_str()));
      // One rank reads, and all know: whichever speaks of the failure says it all.
      Status advice = speaks ? adviseOnDamage(all, asked.checkpoint, stepNameOf(*from)) : Status();
      all.append(agree(advice, communicator, "looking for an older checkpoint"));
    }
    return all;
  }
  if (task.resumed())
    note(format("resumed from %s", task.resumed()->path().c_str()));

  std::optional<CheckpointSaver> saver;
  if (!asked.checkpoint.empty())
    saver.emplace(asked.checkpoint, asked.keep);
  uint64_t saved = number; // the step of the last save that was begun
  auto finish = [&](bool wait, bool last) -> Status {
    if (!saver || !saver->busy())
      return {};
    auto start = Clock::now();
    ProfileSpan span(profile, RankProfile::Span::save, saved);
    std::optional<Status> result = saver->poll(communicator, wait);
    loop.saving += secondsSince(start);
    return result ? judge(*result, saved, last) : Status();
  };
  auto save = [&](bool last) -> Status {
    if (Status status = finish(true, false); !status)
      return status;
    saved = number;
    auto start = Clock::now();
    ProfileSpan span(profile, RankProfile::Span::save, saved);
    Status begun = saver->begin(parts.parts, progress(number), communicator);
    loop.saving += secondsSince(start);
    return judge(begun, number, last);
  };

  auto begun = Clock::now();
  Group world = worldGroup(communicator);
  while (number < asked.steps && !stopped) {
    if (Status status =
            step(runner, number + 1, communicator, routes, reports ? &*reports : nullptr);
        !status)
      return status;
    ++number;
    if (Status status = finish(false, false); !status)
      return status;
    // One rank may have been told to end: then all do, after this step.
    int32_t signal = asked.stop ? asked.stop->load() : 0, any = 0;
    if (Status status = communicator.allReduce(world, &signal, &any, 1, fb::DType::i32,
                                               fb::Reduce::max, "asking whether to go on");
        !status)
      return status;
    stopped = any;
    bool more = number < asked.steps && !stopped; // the last save is below
    if (saver && more && asked.saveEvery && number % asked.saveEvery == 0)
      if (Status status = save(false); !status)
        return status;
  }
  Status ended = saver && saved != number ? save(true) : Status();
  if (ended)
    ended = finish(true, true);
  loop.whole = secondsSince(begun);
  return ended;
}

} // namespace moira::rt
