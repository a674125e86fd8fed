//===- moe-run.cpp - runs plans ---------------------------------------------===//
// The command: its line is read in Options.cpp, the work is moira/rt/Run.h's. stdout is for results
// (help, version, doctor, a simulation); a run says everything on stderr.
//===----------------------------------------------------------------------===//
#include "Doctor.h"
#include "Options.h"

#include "moira/rt/Communicator.h"
#include "moira/rt/OutputFile.h"
#include "moira/rt/Simulate.h"
#include "moira/rt/Spawn.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

using namespace moira;

namespace {

void say(const std::string &text) {
  std::string whole = text;
  if (!whole.empty() && whole.back() != '\n')
    whole += '\n';
  std::fputs(whole.c_str(), stderr); // one write, so that ranks do not cut each other's lines
  std::fflush(stderr);
}

/// The signal that is to end training after its step.
std::atomic<int> stopSignal = 0;

/// SIGINT, SIGTERM, SIGHUP (of a terminal that is closed) and SIGUSR1 (which mpirun and srun pass
/// on at once) end training after its step from here on. Where this process was started by hand a
/// second one ends it at once. Launchers pass signals on, some of them twice, and have a SIGKILL
/// for those who take too long; a moe-run that has started its ranks passes on SIGTERM, so the
/// terminal's SIGINT is not for them.
void stopTrainingOnSignals() {
  std::string launcher = rt::discoverLaunch().launcher;
  struct sigaction action = {};
  action.sa_flags = SA_RESTART;
  sigfillset(&action.sa_mask); // one after the other
  if (launcher == "none")
    action.sa_handler = [](int number) {
      bool second = stopSignal.exchange(number) != 0; // two threads may take one each
      for (int any : {SIGINT, SIGTERM, SIGUSR1})
        std::signal(any, SIG_DFL);
      std::signal(SIGHUP, SIG_IGN); // a shell repeats what its terminal has sent
      if (second)
        std::raise(number);
    };
  else
    action.sa_handler = [](int number) { stopSignal = number; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
  if (launcher == "moe-run")
    action.sa_handler = SIG_IGN;
  sigaction(SIGINT, &action, nullptr);
  struct sigaction hangup; // nohup has it ignored
  if ((launcher == "none" || launcher == "moe-run") && sigaction(SIGHUP, nullptr, &hangup) == 0 &&
      hangup.sa_handler != SIG_IGN)
    sigaction(SIGHUP, &action, nullptr);
}

/// All problems, up to a number that nobody reads.
std::string textOf(const rt::Status &status) { return status.str(200); }

/// The exit code. A process that fails before it has joined the others gives rank 0 the time to say
/// why: launchers end all processes once one has ended with an error.
int leave(const rt::Status &status, bool waits) {
  if (!status && waits && rt::discoverLaunch().rank != 0)
    std::this_thread::sleep_for(std::chrono::seconds(1));
  return status.exitCode();
}

int runSimulation(const tool::CommandLine &line) {
  auto fail = [](const rt::Status &status) {
    say(textOf(status));
    return status.exitCode();
  };
  rt::SimOptions options;
  rt::Expected<rt::SimCluster> cluster =
      rt::SimCluster::open(line.cluster.empty() ? "h100" : line.cluster);
  if (!cluster)
    return fail(cluster.status());
  rt::Expected<rt::PlanFile> plan = rt::PlanFile::open(line.options.plan);
  if (!plan)
    return fail(plan.status());
  options.cluster = *cluster;
  options.expertLoad = line.expertLoad;
  rt::SimResult result = rt::simulate(*plan, options);
  std::string text = line.json ? rt::simulationJson(*plan, options, result)
                               : rt::simulationText(*plan, options, result);
  std::fputs(text.c_str(), stdout);
  if (!line.options.outputs.empty())
    say("--device=sim computes nothing: " + line.options.outputs + " is not written");
  if (line.options.profile.empty())
    return 0;
  rt::Status written = rt::writeSimulation(line.options.profile, *plan, result);
  return written.ok() ? 0 : fail(written);
}

int run(int argc, char **argv) {
  bool speaks = rt::discoverLaunch().rank == 0;
  rt::Expected<tool::CommandLine> line = tool::parseCommandLine(argc, argv);
  if (!line) {
    if (speaks)
      say(textOf(line.status()));
    return leave(line.status(), !speaks);
  }
  switch (line->command) {
  case tool::Command::help:
    if (speaks)
      std::fputs(line->helpText.c_str(), stdout);
    return 0;
  case tool::Command::version:
    if (speaks)
      std::printf("moe-run %s\n", MOIRA_VERSION);
    return 0;
  case tool::Command::doctor:
    return tool::runDoctor(*line);
  case tool::Command::simulate:
    return speaks ? runSimulation(*line) : 0;
  case tool::Command::run:
    break;
  }
  // Who no longer reads what a run says, or its metrics, does not end it. stdout has results only
  // of a generation that is followed step by step.
  if (!line->options.generate || !line->options.generate->stream)
    std::signal(SIGPIPE, SIG_IGN);
  if (line->options.train) {
    line->options.train->stop = &stopSignal;
    line->options.train->begins = stopTrainingOnSignals;
  }
  rt::RunOutcome outcome =
      rt::runPlan(line->options, [](const rt::Status &status) { say(textOf(status)); }, say);
  if (outcome.speaks) {
    if (!outcome.summary.empty())
      say(outcome.summary);
    if (!outcome.status)
      say(textOf(outcome.status));
  }
  if (outcome.exitCode != 0) // of ranks that were processes
    return outcome.exitCode;
  int code = leave(outcome.status, !outcome.speaks && !outcome.joined);
  if (code != 0) {
    // A device that has failed can hang whoever cleans up after it.
    std::fflush(nullptr);
    std::_Exit(code);
  }
  return code;
}

} // namespace

int main(int argc, char **argv) {
  rt::openStandardStreams();
  rt::followParent();
  try {
    int code = run(argc, argv);
    rt::Status printed = rt::finishStdout();
    if (code != 0 || printed.ok())
      return code;
    say(textOf(printed));
    return printed.exitCode();
  } catch (const std::exception &error) {
    say(rt::Status(rt::ErrorId::Internal, error.what()).str());
    return rt::exitCodeOf(rt::ErrorId::Internal);
  }
}
