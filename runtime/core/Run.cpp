//===- Run.cpp - a whole run of a plan ------------------------------------===//
// The order of things: launcher, files, memory, weights, step, outputs, check, summary.
//===----------------------------------------------------------------------===//
#include "moira/rt/Run.h"

#include "RunSession.h"
#include "RunSummary.h"
#include "Supervision.h"
#include "moira/rt/Agree.h"
#include "moira/rt/SafeTensorsWriter.h"
#include "moira/rt/Spawn.h"

#include <cmath>
#include <cstring>

namespace moira::rt {
namespace {

Status wrongWorldSize(const fb::Plan &plan, const fb::Program &program, const LaunchInfo &launch,
                      const std::string &path) {
  unsigned ranks = program.ranks();
  std::string mesh = meshText(plan);
  std::string has = program.reference() ? "the reference program has 1 rank"
                                        : format("%s has %u rank%s%s%s%s", path.c_str(), ranks,
                                                 ranks == 1 ? "" : "s", mesh.empty() ? "" : " (",
                                                 mesh.c_str(), mesh.empty() ? "" : ")");
  return Status(
      ErrorId::WrongWorldSize,
      format("%s, %s started %d; use `%s %u moe-run %s …`, or start moe-run plainly and it "
             "makes the ranks itself",
             has.c_str(), launch.launcher.c_str(), launch.size,
             launch.launcher == "srun"       ? "srun -n"
             : launch.launcher == "torchrun" ? "torchrun --nproc-per-node"
                                             : "mpirun -np",
             ranks, path.c_str()));
}

/// Whether the program runs on CUDA devices; PlanTarget in `problems` if it was asked for and
/// cannot, BadUsage for other options that only devices have.
bool usesCuda(const RunOptions &options, const PlanFile &plan, bool reference, Status &problems) {
  std::string target = plan.plan().target()->str();
  bool fits = target != "host";
  auto refuse = [&](const char *option) {
    problems.add(ErrorId::BadUsage,
                 format("%s is for plans for GPUs, and %s is compiled for %s; compile with "
                        "--target=sm_90, or leave %s out",
                        option, options.plan.c_str(), quoteName(target).c_str(), option));
  };
  if (!fits && options.device.empty() && !options.devices.empty())
    refuse("--devices");
  if (!fits && options.device.empty() && options.graphs)
    refuse(*options.graphs ? "--graphs" : "--no-graphs");
  if (reference)
    return false; // its calls run on the host whatever the plan is for
  if (options.device.empty())
    return fits;
  bool asked = options.device == "cuda";
  if (asked != fits)
    problems.add(ErrorId::PlanTarget,
                 format("%s is compiled for %s and cannot run with --device=%s; compile with "
                        "--target=%s, or run with --reference on the host",
                        options.plan.c_str(), quoteName(target).c_str(), options.device.c_str(),
                        asked ? "sm_90" : "host"));
  return asked && fits;
}

/// Finds this process's device.
Status openDevice(const RunOptions &options, const LaunchInfo &launch, RunSession &session) {
  Expected<DevicePlugin *> plugin = loadCudaPlugin();
  if (!plugin)
    return plugin.takeStatus();
  Expected<DeviceSetup> device =
      chooseDevice(**plugin, options.devices, launch.localRank, launch.localSize, launch.size);
  if (!device)
    return device.takeStatus();
  session.plugin = *plugin;
  session.device = *device;
  session.device.timeoutSeconds = options.timeoutSeconds;
  session.device.graphs = options.graphs.value_or(true);
  return {};
}

/// Ranks that share no process: starts this program again for each and waits.
Status runAsProcesses(const RunOptions &options, int ranks, std::optional<SpawnResult> &started) {
  if (!options.mayStartAgain)
    return Status(ErrorId::BadRun, format("%s has %d ranks, which need a process each on CUDA "
                                          "devices; use moe-run",
                                          options.plan.c_str(), ranks));
  SpawnOptions spawn;
  spawn.program = ownProgram();
  spawn.arguments = ownArguments();
  spawn.ranks = ranks;
  if (options.train) {
    spawn.stop = options.train->stop;
    if (options.train->begins)
      options.train->begins();
  }
  Expected<SpawnResult> result = runRanksAsProcesses(spawn);
  if (!result)
    return result.takeStatus();
  started = *result;
  return started->status;
}

bool hasRouters(const fb::Program &program) {
  return program.traces() && program.traces()->size() > 0;
}

/// What --dump-routing and --route-from ask for, if anything.
Status openRoutes(const fb::Plan &plan, bool dump, const std::string &from, RunSession &session,
                  std::optional<RouteTrace> &routes) {
  if (!dump && from.empty())
    return {};
  Expected<RouteTrace> trace = RouteTrace::create(plan, *session.program, dump, from);
  if (!trace)
    return trace.takeStatus();
  routes = std::move(*trace);
  session.routes = &*routes;
  return {};
}

/// The batch of a step, and what a run of a plan that trains needs besides.
Status openTraining(const RunOptions &options, RunSession &session) {
  if (!options.train)
    return Status(ErrorId::BadUsage, options.plan + " trains: say how many steps with --steps=N");
  Expected<TrainPrograms> programs = trainPrograms(*session.plan, *session.program);
  if (!programs)
    return programs.takeStatus();
  Expected<InputSet> inputs =
      options.train->data.empty()
          ? InputSet::open(options.inputs, *session.program, programs->microBatches)
          : session.emptyBatch(programs->microBatches);
  if (!inputs)
    return inputs.takeStatus();
  session.inputs = std::move(*inputs);
  Expected<TrainTask> task =
      TrainTask::open(*session.plan, *programs, *session.inputs, *options.train);
  if (!task)
    return task.takeStatus();
  session.training = std::move(*task);
  return {};
}

/// The inputs of a step, or the prompts of a plan that generates.
Status openInputs(const RunOptions &options, RunSession &session) {
  GeneratePrograms generate = generatePrograms(session.plan->plan());
  if (options.generate && !generate)
    return Status(ErrorId::BadRun,
                  options.plan + " generates no tokens, so it takes no --max-new-tokens; compile "
                                 "the model with --task=generate");
  if (!generate && isTraining(session.plan->plan(), *session.program))
    return openTraining(options, session);
  if (options.train)
    return Status(ErrorId::BadRun, options.plan + " does not train, so it takes no --steps; "
                                                  "compile the model with --task=train");
  if (!generate) {
    Expected<InputSet> inputs = InputSet::open(options.inputs, *session.program);
    if (!inputs)
      return inputs.takeStatus();
    session.inputs = std::move(*inputs);
    return {};
  }
  if (!options.generate)
    return Status(ErrorId::BadUsage, options.plan + " generates tokens: say how many with "
                                                    "--max-new-tokens=N");
  if (!options.dumpRouting.empty() || !options.routeFrom.empty())
    return Status(ErrorId::BadRun, "--dump-routing and --route-from are for one step; " +
                                       options.plan + " generates tokens in many");
  Expected<GenerateTask> task =
      GenerateTask::open(generate, options.inputs, options.weights, *options.generate);
  if (!task)
    return task.takeStatus();
  session.task = std::move(*task);
  return {};
}

/// Everything that fails before ranks exist, all at once where the parts are independent.
Status prepare(const RunOptions &options, const LaunchInfo &launch, PlanFile &plan,
               RunSession &session, std::optional<RouteTrace> &routes) {
  bool reference = options.reference != ReferenceMode::none && !options.check;
  Expected<PlanFile> opened = PlanFile::open(options.plan);
  if (!opened)
    return opened.takeStatus();
  plan = std::move(*opened);
  Expected<const fb::Program *> program = findProgram(plan, options.plan, reference);
  if (!program)
    return program.takeStatus();
  session.plan = &plan;
  session.program = *program;
  session.f64 = reference && options.reference == ReferenceMode::f64;
  session.profiled = !options.profile.empty();
  if (GeneratePrograms all = generatePrograms(plan.plan()); all && !reference)
    session.second = all.decode;
  if (isTraining(plan.plan(), **program)) {
    Expected<TrainPrograms> programs = trainPrograms(plan, **program);
    if (!programs)
      return programs.takeStatus();
    session.second = programs->update;
  }
  int ranks = static_cast<int>(session.program->ranks());
  bool launched = launch.launcher != "none";
  if (launched && launch.size != ranks)
    return wrongWorldSize(plan.plan(), *session.program, launch, options.plan);

  Status problems;
  if (options.check) // known now, and not only behind the run
    problems.append(findProgram(plan, options.plan, true).takeStatus());
  session.cuda = usesCuda(options, plan, reference, problems);
  if (session.cuda && (launched || ranks == 1))
    problems.append(openDevice(options, launch, session));
  if (!session.cuda)
    problems.append(session.prepare(launched ? launch.localSize : ranks));
  problems.append(openInputs(options, session));
  // A run that goes on from a checkpoint has its weights from there. Whether there is one nobody
  // knows where what it trains on could not be opened.
  bool drawn = options.train && options.train->init;
  bool resumed = session.training ? session.training->resumed() != nullptr
                                  : options.train && options.weights.empty();
  if (!drawn && !resumed && options.train && options.weights.empty())
    problems.add(ErrorId::BadUsage, options.train->checkpoint +
                                        " has no checkpoint to go on from, and neither "
                                        "--weights=DIR nor --init=SEED says how to begin");
  else if (!drawn && !resumed)
    problems.append(session.openWeights(options.weights));
  for (const std::string *file : {&options.outputs, &options.dumpRouting, &options.profile})
    if (!file->empty())
      problems.append(checkWritable(*file));
  // Training reports how its experts are loaded.
  bool watch = !options.dumpRouting.empty() || (session.training && hasRouters(*session.program));
  problems.append(openRoutes(plan.plan(), watch, options.routeFrom, session, routes));
  return problems;
}

/// A generation's tokens as an output, so that it can be compared.
std::vector<GatheredOutput> generated(const RankGeneration &loop) {
  GatheredOutput output{
      "generated_ids",
      {loop.steps() ? int64_t(loop.tokens().size()) / loop.steps() : 0, loop.steps()},
      {}};
  output.values.assign(loop.tokens().begin(), loop.tokens().end());
  return {std::move(output)};
}

/// The reference program on this process alone, with its outputs gathered.
Expected<std::vector<GatheredOutput>> runReference(const RunOptions &options, const PlanFile &plan,
                                                   const std::optional<Checkpoint> &weights) {
  Expected<const fb::Program *> program = findProgram(plan, options.plan, true);
  if (!program)
    return program.takeStatus();
  RunSession session;
  session.plan = &plan;
  session.program = *program;
  session.f64 = options.reference == ReferenceMode::f64;
  session.weights = weights;
  RunOptions quiet = options; // its tokens are only compared
  if (quiet.generate)
    quiet.generate->stream = false;
  if (Status inputs = openInputs(quiet, session); !inputs)
    return inputs;
  // Choices that are given are given to both.
  std::optional<RouteTrace> routes;
  Status status = openRoutes(plan.plan(), false, options.routeFrom, session, routes);
  Ranks one = std::move(*Ranks::threads(1, options.timeoutSeconds));
  if (status)
    status = session.prepare(1);
  if (status)
    status = session.load(one);
  if (status)
    status = session.task ? session.generate(one, 0) : session.step(one);
  if (!status)
    return status;
  if (session.task)
    return generated(*session.loops[0]);
  Expected<std::vector<TensorRef>> outputs = session.executors[0]->outputs();
  if (!outputs)
    return outputs.takeStatus();
  return gatherOutputs(plan.plan(), **program, *outputs, one.communicator(0));
}

/// Of all outputs that belong to weights. A gradient may be nothing but rounding (that of a bias of
/// keys is), so each is held against a hundredth of this besides its own largest value.
double largestOfWeights(const std::vector<GatheredOutput> &outputs) {
  double largest = 0;
  for (const GatheredOutput &output : outputs)
    for (double value : output.values)
      if (output.ofWeight)
        largest = std::max(largest, std::fabs(value));
  return largest;
}

/// Tokens must be those of the reference, but for a part of them: with bf16 one that is otherwise
/// leads to others.
Status compareTokens(const GatheredOutput &tokens, const GatheredOutput &reference, double allowed,
                     std::string &report) {
  size_t equal = 0, first = 0;
  for (size_t i = 0; i < std::min(tokens.values.size(), reference.values.size()); ++i) {
    first = equal == i ? i : first;
    equal += tokens.values[i] == reference.values[i];
  }
  size_t count = std::max(tokens.values.size(), reference.values.size());
  std::string text = format("%zu of %zu tokens are those of the one-rank reference (at least "
                            "%.0f wanted)",
                            equal, count, std::ceil((1 - allowed) * double(count)));
  if (double(count - equal) <= allowed * double(count)) {
    report += "check: " + text + "\n";
    return {};
  }
  return Status(ErrorId::CheckFailed, text + format("; token %zu is the first that is not", first));
}

/// Compares by name; appends one line each to `report`, for outputs that belong to weights one for
/// all.
Status compare(const std::vector<GatheredOutput> &outputs,
               const std::vector<GatheredOutput> &reference, double tolerance,
               std::string &report) {
  Status problems;
  double ofWeights = largestOfWeights(reference) / 100, worst = 0;
  size_t weights = 0;
  for (const GatheredOutput &output : outputs) {
    const GatheredOutput *expected = nullptr;
    for (const GatheredOutput &candidate : reference)
      if (candidate.name == output.name && candidate.shape == output.shape)
        expected = &candidate;
    if (!expected) {
      problems.add(ErrorId::CheckFailed,
                   format("the reference has no output %s %s", output.name.c_str(),
                          shapeText(output.shape).c_str()));
      continue;
    }
    double largest = 0, difference = 0;
    size_t at = 0;
    for (size_t i = 0; i < output.values.size(); ++i) {
      largest = std::max(largest, std::fabs(expected->values[i]));
      double d = std::fabs(output.values[i] - expected->values[i]);
      if (!(d <= difference)) { // also for a value that is not a number
        difference = std::isnan(d) ? INFINITY : d;
        at = i;
      }
    }
    if (output.ofWeight)
      largest += ofWeights;
    double relative = difference == 0 ? 0 : difference / largest;
    std::string text = format("%s differs from the one-rank reference by %.2g of its largest value "
                              "%.4g (allowed %.2g)",
                              output.name.c_str(), relative, largest, tolerance);
    if (!(relative <= tolerance))
      problems.add(ErrorId::CheckFailed,
                   text + format("; worst is element %zu: %.9g instead of %.9g", at,
                                 output.values[at], expected->values[at]));
    else if (!output.ofWeight)
      report += "check: " + text + "\n";
    if (output.ofWeight) {
      ++weights;
      worst = std::max(worst, relative);
    }
  }
  if (weights && problems.ok())
    report += format("check: %zu gradients differ from the one-rank reference by %.2g of their "
                     "largest values at most (allowed %.2g)\n",
                     weights, worst, tolerance);
  return problems;
}

/// What one run keeps until its summary.
struct WholeRun {
  PlanFile plan;
  RunSession session;
  std::optional<RouteTrace> routes;
  std::optional<SpawnResult> started; // the ranks were processes and are done
  // Of all ranks, on rank 0.
  std::vector<GatheredOutput> gathered;
  std::vector<RankFigures> figures;
  std::vector<RankProfile> profiles;
};

/// The part of a run that all ranks take part in. `ranks` is made here if no launcher has made it.
Status runTogether(const RunOptions &options, const LaunchInfo &launch, WholeRun &run,
                   std::optional<Ranks> &ranks,
                   const std::function<void(const Status &)> &lastWords,
                   const std::function<void(const std::string &)> &note) {
  RunSession &session = run.session;
  Status status = prepare(options, launch, run.plan, session, run.routes);
  if (ranks)
    status = agree(status, ranks->communicator(0), "opening the files");
  if (!status)
    return status;
  bool apart =
      (session.cuda && !session.plugin) || (options.processes && session.program->ranks() > 1);
  if (!ranks && apart)
    return runAsProcesses(options, static_cast<int>(session.program->ranks()), run.started);
  if (!ranks) {
    Expected<Ranks> threads =
        Ranks::threads(static_cast<int>(session.program->ranks()), options.timeoutSeconds);
    if (!threads)
      return threads.takeStatus();
    ranks = std::move(*threads);
    ranks->lastWords = lastWords;
  }
  if (options.threads > 0)
    ranks->setThreadsPerRank(options.threads);
  const std::vector<std::string> &ignored =
      session.task ? session.task->ignored() : session.inputs->ignored();
  if (ranks->hasRankZero() && !ignored.empty()) {
    std::string names;
    for (const std::string &name : ignored)
      names += (names.empty() ? "" : ", ") + quoteName(name);
    note(options.inputs + ": ignored, the plan does not take " + names);
  }
  if (ranks->hasRankZero() && session.task && !session.task->notDone().empty()) {
    std::string settings;
    for (const std::string &setting : session.task->notDone())
      settings += (settings.empty() ? "" : ", ") + setting;
    note(options.weights + "/generation_config.json: not done, moe-run has no " + settings);
  }

  status = session.load(*ranks);
  if (status && session.task)
    status = session.generate(*ranks, options.repeat);
  if (status && session.training)
    status = session.train(*ranks, note);
  bool once = !session.task && !session.training;
  if (status && once)
    status = session.step(*ranks);
  if (status && once)
    status = session.repeat(*ranks, options.repeat);
  session.phase = RunSession::Phase::ending;
  if (!status)
    return status;
  return ranks->each([&](int local) -> Ranks::Verdict {
    Communicator &communicator = ranks->communicator(local);
    ProgramRunner &executor = *session.executors[local];
    // A run that was resumed at its end has made no step.
    if (session.training && session.trainings[local]->steps() == 0)
      return Status();
    Expected<std::vector<TensorRef>> outputs = executor.outputs();
    if (!outputs)
      return outputs.takeStatus();
    if (!options.outputs.empty() && session.task)
      if (Status s = session.loops[local]->write(options.outputs, communicator); !s)
        return Ranks::shared(std::move(s));
    if (!options.outputs.empty() && !session.task)
      if (Status s = writeOutputs(options.outputs, *session.program, executor.position(), *outputs,
                                  communicator);
          !s)
        return Ranks::shared(std::move(s));
    if (communicator.rank() == 0)
      session.drops = session.training ? session.trainings[local]->drops()
                                       : countDrops(*session.program, *outputs);
    if (!options.dumpRouting.empty())
      if (Status s = session.rankRoutes[local]->write(options.dumpRouting, communicator); !s)
        return Ranks::shared(std::move(s));
    if (options.check && !session.task) {
      Expected<std::vector<GatheredOutput>> all =
          gatherOutputs(run.plan.plan(), *session.program, *outputs, communicator);
      if (!all)
        return all.takeStatus();
      if (communicator.rank() == 0)
        run.gathered = std::move(*all);
    }
    Expected<std::vector<RankFigures>> ofAll = gatherFigures(executor, communicator);
    if (!ofAll)
      return ofAll.takeStatus();
    if (communicator.rank() == 0)
      run.figures = std::move(*ofAll);
    if (session.training) {
      Expected<TimeShares> shares = gatherTimes(executor, session.programs(), communicator);
      if (!shares)
        return shares.takeStatus();
      if (communicator.rank() == 0)
        session.shares = *shares;
    }
    if (session.profiled) {
      Expected<std::vector<RankProfile>> times =
          gatherProfiles(session.profiles[local], communicator);
      if (!times)
        return times.takeStatus();
      if (communicator.rank() == 0)
        run.profiles = std::move(*times);
    }
    return Status();
  });
}

} // namespace

RunOutcome runPlan(const RunOptions &options, const std::function<void(const Status &)> &lastWords,
                   const std::function<void(const std::string &)> &note) {
  auto epoch = std::chrono::steady_clock::now();
  RunOutcome outcome;
  LaunchInfo launch = discoverLaunch();
  outcome.speaks = launch.rank == 0;
  std::optional<Ranks> ranks;
  WholeRun run;
  Supervision supervision;
  run.session.epoch = epoch;
  if (launch.size > 1) {
    // Joined first, so that the processes can agree on who reports what is wrong.
    bool told = false;
    MeetingWatch watch(launch, options.timeoutSeconds, lastWords);
    Expected<std::unique_ptr<Communicator>> world =
        makeLaunchedCommunicator(launch, options.timeoutSeconds, &told);
    watch.end();
    if (!world) {
      outcome.speaks = !told;
      outcome.status = world.takeStatus();
      return outcome;
    }
    ranks = Ranks::process(std::move(*world), launch);
    outcome.joined = true;
    supervision.begin(ranks->communicator(0), run.session, lastWords);
  }

  outcome.status = runTogether(options, launch, run, ranks, lastWords, note);
  if (!outcome.status && launch.size > 1) {
    // Launchers end the other processes once one has ended with an error, so none does before rank
    // 0 has told what all have agreed on.
    Communicator &communicator = ranks->communicator(0);
    bool reported = ranks->reported() || !communicator.news().ok();
    if (outcome.speaks && lastWords && !reported)
      lastWords(outcome.status);
    outcome.speaks = false;
    if (!reported)
      (void)communicator.barrier("ending after an error").ok();
    communicator.leave();
  }
  if (run.started)
    outcome.exitCode = run.started->exitCode;
  if (outcome.status && !run.session.trainings.empty())
    if (int signal = run.session.trainings[0]->stoppedBy())
      outcome.exitCode = 128 + signal;
  if (!outcome.status || run.started || !ranks->hasRankZero())
    return outcome;

  std::string checks;
  if (options.check) {
    // The mesh program's memory goes first; the other processes are done by now.
    run.session.executors.clear();
    Expected<std::vector<GatheredOutput>> expected =
        runReference(options, run.plan, run.session.weights);
    bool bf16 = run.plan.plan().info()->dtype() == fb::DType::bf16;
    double tolerance = options.checkTolerance.value_or(bf16 ? 2e-2 : 1e-5);
    if (!expected)
      outcome.status = expected.takeStatus();
    else if (run.session.task)
      outcome.status = compareTokens(generated(*run.session.loops[0])[0], (*expected)[0],
                                     options.checkTolerance.value_or(bf16 ? 0.5 : 0), checks);
    else
      outcome.status = compare(run.gathered, *expected, tolerance, checks);
  }
  if (run.session.profiled)
    outcome.status.append(
        writeProfile(options.profile, run.plan.plan(), run.session.programs(), run.profiles));
  if (!run.figures.empty())
    outcome.summary = summarize(options, launch, *ranks, run.session, run.figures) + checks;
  return outcome;
}

} // namespace moira::rt
