//===- NewsPlane.cpp - how processes learn of each other's failures ---------===//
// See NewsPlane.h. Sending and hooks never happen under `mutex`.
//===----------------------------------------------------------------------===//
#include "NewsPlane.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace moira::rt {

namespace {

constexpr double kBeatSeconds = 0.5;     // between signs of life
constexpr double kSilentSeconds = 2;     // after which a rank counts as silent
constexpr double kLostSettle = 0.15;     // in which this rank comes to wait for the lost one
constexpr double kSuspicionSettle = 1;   // in which the reason of a broken connection shows
constexpr double kSuspicionLimit = 2.5;  // the same while a rank is silent: it may be dying
constexpr double kAnswerSeconds = 3;     // that an arbiter may take; over the two above
constexpr double kAnnounceSeconds = 4.5; // all of it
constexpr double kTerminationDelay = 0.5;
constexpr double kEndSeconds = 3;  // that a process may take to end after the verdict
constexpr double kSuspended = 1.5; // longer between two looks: this process was stopped itself
constexpr size_t kLongestNews = 1 << 16;

double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string encode(const Status &status) {
  const Diagnostic &first = status.diagnostics().front();
  return (std::to_string(int(first.id)) + " " + first.message).substr(0, kLongestNews);
}

Status decode(const std::string &text) {
  size_t space = std::min(text.find(' '), text.size());
  return Status(ErrorId(std::atoi(text.c_str())), text.substr(std::min(space + 1, text.size())));
}

void raiseFlag(const Socket &flag) {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t n = write(flag.get(), &one, sizeof one);
}

// Launchers end all ranks by SIGTERM once one is lost. That one's end is known here at the same
// moment, so a rank that is told to end first takes a breath to say why.
volatile std::sig_atomic_t terminationAsked = 0;
std::atomic<int> terminationFlag = -1; // an eventfd of the plane that listens

void onTermination(int) {
  int kept = errno;
  terminationAsked = 1;
  uint64_t one = 1;
  if (int fd = terminationFlag; fd >= 0) [[maybe_unused]]
    ssize_t n = write(fd, &one, sizeof one);
  errno = kept;
}

/// Where nobody has chosen what a SIGTERM does.
void deferTermination(int flag) {
  struct sigaction now = {};
  if (sigaction(SIGTERM, nullptr, &now) != 0 || now.sa_handler != SIG_DFL)
    return;
  terminationFlag = flag;
  struct sigaction mine = {};
  mine.sa_handler = onTermination;
  mine.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &mine, nullptr);
}

void dieOfTermination() {
  std::signal(SIGTERM, SIG_DFL);
  std::raise(SIGTERM);
}

} // namespace

NewsPlane::NewsPlane(const Setup &setup, std::vector<Socket> links)
    : setup(setup), peers(links.size()), wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      settledFlag(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  for (size_t r = 0; r < links.size(); ++r) {
    peers[r].link = std::move(links[r]);
    peers[r].heard = Clock::now();
  }
  watcher = std::thread([this] { watch(); });
  pthread_setname_np(watcher.native_handle(), "moira-news");
}

NewsPlane::~NewsPlane() {
  leave();
  if (terminationFlag == wake.get()) {
    std::signal(SIGTERM, SIG_DFL);
    terminationFlag = -1;
  }
  stop = true;
  raiseFlag(wake);
  watcher.join();
}

void NewsPlane::supervise(FailureHooks given) {
  if (given.settled)
    deferTermination(wake.get());
  std::lock_guard lock(calling);
  hooks = std::move(given);
}

Status NewsPlane::verdict() const {
  std::lock_guard lock(mutex);
  return settled;
}

bool NewsPlane::toldElsewhere() const {
  std::lock_guard lock(mutex);
  return elsewhere;
}

std::vector<int> NewsPlane::silentRanks() const {
  std::lock_guard lock(mutex);
  std::vector<int> list;
  for (size_t r = 0; r < peers.size(); ++r)
    if (peers[r].reachable() && silent(peers[r], kSilentSeconds))
      list.push_back(int(r));
  return list;
}

/// With the mutex held.
bool NewsPlane::silent(const Peer &peer, double seconds) const {
  return secondsSince(peer.heard) > seconds;
}

/// With the mutex held: the lowest rank that can be heard, perhaps this one.
int NewsPlane::arbiter() const {
  for (int r = 0; r < setup.rank; ++r)
    if (peers[size_t(r)].reachable() && !silent(peers[size_t(r)], kSilentSeconds))
      return r;
  return setup.rank;
}

void NewsPlane::leave() {
  {
    std::lock_guard lock(mutex);
    if (std::exchange(leaving, true))
      return;
  }
  for (size_t r = 0; r < peers.size(); ++r)
    post(int(r), Kind::bye, Weight::suspicion, "");
}

Status NewsPlane::announce(const Status &found) {
  ErrorId id = found.diagnostics().front().id;
  // A rank that is gone shows as a broken connection or a device's error elsewhere.
  bool doubtful = id == ErrorId::RankFailed || id == ErrorId::DeviceFailed;
  add(doubtful ? Weight::suspicion : Weight::cause, found);
  std::unique_lock lock(mutex);
  changed.wait_for(lock, std::chrono::duration<double>(kAnnounceSeconds),
                   [&] { return !settled.ok() || leaving; });
  return settled.ok() ? found : settled;
}

void NewsPlane::add(Weight weight, Status status) {
  {
    std::lock_guard lock(mutex);
    if (!settled.ok() || leaving || (finding && weight <= finding->weight))
      return;
    if (finding && finding->weight != Weight::suspicion)
      return; // the first one stands
    finding = {weight, std::move(status), Clock::now()};
    sentTo = -1;
  }
  raiseFlag(wake);
}

/// News are small: what a peer's buffer cannot take at once the peer will not read.
void NewsPlane::post(int r, Kind kind, Weight weight, const std::string &text) {
  Head head{kind, weight, uint32_t(text.size())};
  std::string frame(reinterpret_cast<const char *>(&head), sizeof head);
  frame += text;
  std::lock_guard lock(sending);
  {
    std::lock_guard state(mutex);
    if (!peers[size_t(r)].reachable())
      return;
  }
  Deadline soon(0.3);
  sendAll(peers[size_t(r)].link, frame.data(), frame.size(), soon);
}

// --- the watcher thread
// -----------------------------------------------------------------------------

void NewsPlane::watch() {
  Clock::time_point lastBeat = Clock::now(), lastLook = lastBeat;
  while (!stop) {
    std::vector<pollfd> entries = {{wake.get(), POLLIN, 0}};
    std::vector<int> ranks;
    {
      std::lock_guard lock(mutex);
      for (size_t r = 0; r < peers.size(); ++r)
        if (peers[r].reachable()) {
          entries.push_back({peers[r].link.get(), POLLIN, 0});
          ranks.push_back(int(r));
        }
    }
    poll(entries.data(), entries.size(), 50);
    if (stop)
      return;
    if (secondsSince(lastLook) > kSuspended) {
      std::lock_guard lock(mutex);
      for (Peer &peer : peers)
        peer.heard = Clock::now();
    }
    lastLook = Clock::now();
    uint64_t count = 0;
    if (entries[0].revents) [[maybe_unused]]
      ssize_t n = read(wake.get(), &count, sizeof count);
    for (size_t i = 0; i < ranks.size(); ++i)
      if (entries[i + 1].revents)
        listen(ranks[i]);
    if (secondsSince(lastBeat) >= kBeatSeconds) {
      lastBeat = Clock::now();
      beat();
    }
    checkSilence();
    think();
    obeyTermination();
  }
}

void NewsPlane::listen(int r) {
  Peer &peer = peers[size_t(r)];
  Head head;
  std::string text;
  Deadline soon(1);
  bool got = receiveAll(peer.link, &head, sizeof head, soon) && head.length <= kLongestNews;
  if (got) {
    text.resize(head.length);
    got = receiveAll(peer.link, text.data(), text.size(), soon);
  }
  bool over;
  {
    std::lock_guard lock(mutex);
    peer.heard = Clock::now();
    peer.gone = !got;
    peer.left = got && head.kind == Kind::bye;
    over = !settled.ok();
  }
  if (!got)
    return add(Weight::lost,
               Status(ErrorId::RankFailed,
                      format("rank %d has ended without a word; it was killed or has crashed", r)));
  if (head.kind == Kind::verdict)
    adopt(decode(text), /*mine=*/false);
  if (head.kind != Kind::finding)
    return;
  if (over)
    post(r, Kind::verdict, Weight::cause, encode(verdict()));
  else
    add(head.weight, decode(text));
}

/// To those that read; the others are told again once they give a sign themselves.
void NewsPlane::beat() {
  std::vector<int> ranks;
  {
    std::lock_guard lock(mutex);
    for (size_t r = 0; r < peers.size(); ++r)
      if (peers[r].reachable() && !silent(peers[r], kSilentSeconds))
        ranks.push_back(int(r));
  }
  for (int r : ranks)
    post(r, Kind::alive, Weight::suspicion, "");
}

void NewsPlane::checkSilence() {
  if (setup.timeoutSeconds <= 0)
    return;
  int lost = -1;
  {
    std::lock_guard lock(mutex);
    for (size_t r = 0; r < peers.size() && lost < 0; ++r)
      if (peers[r].reachable() && silent(peers[r], std::max(setup.timeoutSeconds, kSilentSeconds)))
        lost = int(r);
  }
  if (lost >= 0)
    add(Weight::lost,
        Status(ErrorId::RankFailed,
               format("rank %d has given no sign of life for %g s; its process is stopped or its "
                      "machine cannot be reached",
                      lost, setup.timeoutSeconds)));
}

/// Passes the finding to the arbiter, or settles on it.
void NewsPlane::think() {
  std::optional<Finding> mine;
  int judge, unheard = -1; // the lowest rank that has given no sign of life since
  {
    std::lock_guard lock(mutex);
    if (!settled.ok() || leaving || !finding)
      return;
    for (size_t r = peers.size(); r-- > 0;)
      if (peers[r].reachable() && peers[r].heard < finding->since)
        unheard = int(r);
    judge = arbiter();
    if (judge != setup.rank && secondsSince(finding->since) > kAnswerSeconds)
      judge = setup.rank;
    if (judge == sentTo)
      return;
    sentTo = judge == setup.rank ? -1 : judge;
    mine = finding;
  }
  if (judge != setup.rank)
    return post(judge, Kind::finding, mine->weight, encode(mine->status));
  // The kernel closes what a process had open one by one, and takes seconds over a GPU's memory:
  // the data's connections may break long before ours does.
  bool dying = mine->weight == Weight::suspicion && unheard >= 0;
  double settle = dying                               ? kSuspicionLimit
                  : mine->weight == Weight::suspicion ? kSuspicionSettle
                  : mine->weight == Weight::lost      ? kLostSettle
                                                      : 0;
  if (secondsSince(mine->since) < settle)
    return;
  if (dying)
    mine->status = Status(ErrorId::RankFailed,
                          format("rank %d gives no sign of life; it was killed, has crashed or is "
                                 "stopped; noticed by %s",
                                 unheard, mine->status.diagnostics().front().message.c_str()));
  else if (mine->weight != Weight::lost)
    return adopt(mine->status, /*mine=*/true);
  std::string where = whereText();
  const Diagnostic &first = mine->status.diagnostics().front();
  adopt(Status(first.id, first.message + (where.empty() ? "" : "; ") + where), /*mine=*/true,
        where);
}

/// "rank 0 was in …", or nothing.
std::string NewsPlane::whereText() {
  std::lock_guard lock(calling);
  std::string where = hooks.where ? hooks.where() : "";
  return where.empty() ? "" : format("rank %d was in %s", setup.rank, where.c_str());
}

/// The rank's own thread may end the process as soon as it can see the verdict, so everybody else
/// hears it before.
void NewsPlane::adopt(const Status &status, bool mine, const std::string &where) {
  bool byParent = false;
  {
    std::lock_guard lock(mutex);
    if (!settled.ok() || leaving)
      return;
    // Whoever started the ranks knows best how one has ended, and says it.
    byParent = mine && setup.supervised && finding && finding->weight == Weight::lost &&
               std::any_of(peers.begin(), peers.end(), [](const Peer &p) { return p.gone; });
  }
  if (byParent && setup.report >= 0) {
    std::string line = where + "\n";
    [[maybe_unused]] ssize_t n = write(setup.report, line.data(), line.size());
  }
  {
    // Said first: launchers end all once one has ended.
    std::lock_guard lock(calling);
    if (hooks.settled)
      hooks.settled(status, mine && !byParent);
  }
  if (mine)
    for (size_t r = 0; r < peers.size(); ++r)
      post(int(r), Kind::verdict, Weight::cause, encode(status));
  {
    std::lock_guard lock(mutex);
    settled = status;
    elsewhere = !mine || byParent;
  }
  raiseFlag(settledFlag);
  changed.notify_all();
}

void NewsPlane::obeyTermination() {
  if (!terminationAsked || terminationFlag != wake.get())
    return;
  if (!terminatedAt)
    terminatedAt = Clock::now();
  double delay = kTerminationDelay;
  if (!verdict())
    delay += kEndSeconds; // this process is about to end with the verdict's exit code
  if (secondsSince(*terminatedAt) < delay)
    return;
  leave();
  dieOfTermination();
}

} // namespace moira::rt
