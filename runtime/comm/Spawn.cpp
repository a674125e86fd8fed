//===- Spawn.cpp - ranks as processes of this machine -----------------------===//
// See Spawn.h. The parent makes rank 0's listening socket, so that no port can be taken in between.
//===----------------------------------------------------------------------===//
#include "moira/rt/Spawn.h"

#include "TcpSocket.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <optional>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

extern char **environ;

namespace moira::rt {

namespace {

struct Child {
  pid_t pid = -1;
  bool running = true;
};

/// This process's environment, with `extra` ("NAME=value") instead of what it has of these names.
std::vector<std::string> environmentWith(const std::vector<std::string> &extra) {
  std::vector<std::string> all = extra;
  for (char **v = environ; *v; ++v) {
    std::string_view text = *v, name = text.substr(0, text.find('=') + 1);
    if (std::none_of(extra.begin(), extra.end(),
                     [&](const std::string &e) { return e.rfind(name, 0) == 0; }))
      all.emplace_back(text);
  }
  return all;
}

std::vector<char *> pointers(std::vector<std::string> &strings) {
  std::vector<char *> list;
  for (std::string &s : strings)
    list.push_back(s.data());
  list.push_back(nullptr);
  return list;
}

int start(const SpawnOptions &options, int rank, int listener, uint16_t port, int report,
          pid_t &pid) {
  std::vector<std::string> words = {options.program};
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  std::vector<std::string> variables = environmentWith(
      {"MOIRA_RANK=" + std::to_string(rank), "MOIRA_WORLD_SIZE=" + std::to_string(options.ranks),
       "MOIRA_PORT=" + std::to_string(port), "MOIRA_PARENT=" + std::to_string(getpid()),
       "MOIRA_LISTENER=" + std::to_string(rank == 0 ? listener : -1),
       "MOIRA_REPORT=" + std::to_string(report)});
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (rank == 0) // onto itself: stays open there, and nowhere else
    posix_spawn_file_actions_adddup2(&actions, listener, listener);
  posix_spawn_file_actions_adddup2(&actions, report, report);
  int error = posix_spawn(&pid, options.program.c_str(), &actions, nullptr, pointers(words).data(),
                          pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

/// What the ranks write of one that has ended without a word: where another one was then.
class Report {
public:
  Report() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0) {
      in = Socket(ends[0]);
      out = Socket(ends[1]);
    }
  }
  int writer() const { return out.get(); }
  /// The first line that has come, or nothing.
  std::optional<std::string> line() const {
    char text[4096];
    ssize_t n = read(in.get(), text, sizeof text);
    if (n <= 0)
      return std::nullopt;
    std::string all(text, size_t(n));
    return all.substr(0, all.find('\n'));
  }

private:
  Socket in, out; // closed at the end like sockets
};

/// How a rank ended, as waitpid says.
struct End {
  int rank;
  int status;
  bool bySignal() const { return WIFSIGNALED(status); }
  bool failed() const { return bySignal() || WEXITSTATUS(status) != 0; }
};

} // namespace

Expected<SpawnResult> runRanksAsProcesses(const SpawnOptions &options) {
  Expected<Socket> listener = listenOn(0, /*loopbackOnly=*/true);
  if (!listener)
    return listener.takeStatus();
  uint16_t port = portOf(*listener);
  Report report;
  std::vector<Child> children(size_t(options.ranks));
  auto killAll = [&] {
    for (const Child &child : children)
      if (child.pid > 0 && child.running)
        kill(child.pid, SIGKILL);
  };
  int started = 0;
  for (int error = 0; started < options.ranks; ++started) {
    error = start(options, started, listener->get(), port, report.writer(),
                  children[size_t(started)].pid);
    if (!error)
      continue;
    killAll();
    for (int r = 0; r < started; ++r)
      waitpid(children[size_t(r)].pid, nullptr, 0);
    return Status(ErrorId::OutOfMemory, format("process %d of %d cannot be started: %s", started,
                                               options.ranks, std::strerror(error)));
  }
  listener->close();

  // A signal that ends one rank is a better cause than the exit codes that follow from it, so each
  // look at the children takes in all that have ended by then.
  std::optional<End> cause;
  Clock::time_point failedAt;
  bool killed = false;
  int asked = 0; // the signal that was passed on
  for (int running = options.ranks; running > 0;) {
    if (int signal = options.stop ? options.stop->load() : 0; signal && !asked) {
      asked = signal;
      for (const Child &child : children)
        if (child.running)
          kill(child.pid, SIGTERM);
    }
    std::vector<End> ends;
    for (int r = 0; r < options.ranks; ++r) {
      Child &child = children[size_t(r)];
      int status = 0;
      if (child.running && waitpid(child.pid, &status, WNOHANG) == child.pid) {
        child.running = false;
        --running;
        ends.push_back({r, status});
      }
    }
    for (const End &end : ends)
      if (end.failed() && !killed && (!cause || (end.bySignal() && !cause->bySignal()))) {
        if (!cause)
          failedAt = Clock::now();
        cause = end;
      }
    std::chrono::duration<double> since = Clock::now() - failedAt;
    if (cause && !killed && since.count() > options.graceSeconds) {
      killed = true;
      killAll();
    }
    if (ends.empty() && running > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

  SpawnResult result;
  if (!cause)
    return result;
  // SIGINT: of a terminal, which sends it to all.
  if (asked &&
      (cause->bySignal() ? WTERMSIG(cause->status) == SIGTERM || WTERMSIG(cause->status) == SIGINT
                         : WEXITSTATUS(cause->status) == 128 + SIGTERM)) {
    result.exitCode = 128 + asked;
    return result;
  }
  std::optional<std::string> where = report.line();
  std::string rest =
      (where && !where->empty() ? "; " + *where : "") + "; the other ranks have been stopped";
  if (cause->bySignal()) {
    int signal = WTERMSIG(cause->status);
    result.status = Status(
        ErrorId::RankFailed,
        format("rank %d was ended by signal %d (%s)%s%s", cause->rank, signal, strsignal(signal),
               signal == SIGKILL ? ", by you or for want of memory" : "", rest.c_str()));
    result.exitCode = result.status.exitCode();
  } else if (where) {
    result.status =
        Status(ErrorId::RankFailed, format("rank %d has ended with exit code %d without a word%s",
                                           cause->rank, WEXITSTATUS(cause->status), rest.c_str()));
    result.exitCode = result.status.exitCode();
  } else {
    result.exitCode = WEXITSTATUS(cause->status);
  }
  return result;
}

void followParent() {
  const char *parent = std::getenv("MOIRA_PARENT");
  if (!parent)
    return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != std::atoi(parent)) // it has ended before that
    std::_Exit(exitCodeOf(ErrorId::RankFailed));
}

std::string ownProgram() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).string();
}

std::vector<std::string> ownArguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');)
    words.push_back(word);
  if (!words.empty())
    words.erase(words.begin());
  return words;
}

} // namespace moira::rt
