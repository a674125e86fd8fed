//===- TcpComm.cpp - collectives and news over TCP --------------------------===//
// Two planes. Data: one connection for each pair of ranks, used by the rank's own thread. News: one
// connection from each rank to rank 0, watched by a thread, which carries failures and signs of
// life; so a rank that waits for a GPU learns of another one's end, and the first cause reaches
// everybody before its consequences do.
//===----------------------------------------------------------------------===//
#include "PairwiseComm.h"
#include "TcpRendezvous.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <poll.h>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>

namespace moira::rt {

namespace {

constexpr double kBeatSeconds = 0.5; // between signs of life
constexpr double kSilentSeconds = 2; // after which a rank counts as silent
constexpr double kNewsGrace = 2;     // that a broken data connection waits for its reason
constexpr size_t kLongestNews = 1 << 16;

enum class NewsKind : uint32_t { alive, failure, bye };
struct NewsHead {
  NewsKind kind = NewsKind::alive;
  uint32_t length = 0;
};
struct DataHead {
  uint64_t tag = 0, bytes = 0;
};

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

class TcpCommunicator final : public PairwiseCommunicator {
public:
  TcpCommunicator(const TcpWorld &world, TcpLinks links, double timeoutSeconds)
      : PairwiseCommunicator(world.rank, world.size), supervised(world.supervised),
        timeoutSeconds(timeoutSeconds), data(std::move(links.data)),
        control(std::move(links.control)), heard(control.size(), Clock::now()),
        left(control.size(), false), wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        watcher([this] { watch(); }) {}

  ~TcpCommunicator() override {
    stop = true;
    wakeUp();
    watcher.join();
    std::lock_guard lock(sending);
    for (const Socket &socket : control)
      post(socket, NewsKind::bye, "");
  }

  const char *kind() const override { return "tcp"; }

  void abort(const Status &cause) override {
    learn(cause, /*elsewhere=*/false);
    std::lock_guard lock(sending);
    for (const Socket &socket : control)
      post(socket, NewsKind::failure, encode(cause));
  }

  Status news() const override {
    std::lock_guard lock(mutex);
    return failure;
  }
  bool toldElsewhere() const override {
    std::lock_guard lock(mutex);
    return elsewhere;
  }
  std::vector<int> silentRanks() const override {
    std::lock_guard lock(mutex);
    std::vector<int> list;
    for (size_t r = 0; r < control.size(); ++r)
      if (control[r].open() && !left[r] && secondsSince(heard[r]) > kSilentSeconds)
        list.push_back(int(r));
    return list;
  }

private:
  // --- news: everything here but learn() runs on the watcher thread
  // --------------------------------

  /// Keeps the first failure and interrupts whoever waits.
  void learn(const Status &status, bool fromElsewhere) {
    {
      std::lock_guard lock(mutex);
      if (!failure.ok())
        return;
      failure = status;
      elsewhere = fromElsewhere;
    }
    wakeUp();
  }

  void wakeUp() {
    uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(wake.get(), &one, sizeof one);
  }

  /// With `sending` held. News are small: what a peer's buffer cannot take at once it will not
  /// read.
  void post(const Socket &socket, NewsKind kind, const std::string &text) {
    if (!socket.open())
      return;
    NewsHead head{kind, uint32_t(text.size())};
    std::string frame(reinterpret_cast<const char *>(&head), sizeof head);
    frame += text;
    Deadline soon(1);
    sendAll(socket, frame.data(), frame.size(), soon);
  }

  void watch() {
    Clock::time_point lastBeat = Clock::now();
    while (!stop) {
      std::vector<pollfd> entries;
      std::vector<size_t> ranks;
      for (size_t r = 0; r < control.size(); ++r)
        if (control[r].open() && !left[r]) {
          entries.push_back({control[r].get(), POLLIN, 0});
          ranks.push_back(r);
        }
      poll(entries.data(), entries.size(), 100);
      for (size_t i = 0; i < entries.size() && !stop; ++i)
        if (entries[i].revents)
          listen(ranks[i]);
      if (secondsSince(lastBeat) >= kBeatSeconds) {
        lastBeat = Clock::now();
        std::lock_guard lock(sending);
        for (size_t r : ranks)
          if (!left[r])
            post(control[r], NewsKind::alive, "");
      }
      checkSilence();
    }
  }

  void listen(size_t r) {
    NewsHead head;
    std::string text;
    Deadline soon(2);
    bool got = receiveAll(control[r], &head, sizeof head, soon) && head.length <= kLongestNews;
    if (got) {
      text.resize(head.length);
      got = receiveAll(control[r], text.data(), text.size(), soon);
    }
    {
      std::lock_guard lock(mutex);
      heard[r] = Clock::now();
      left[r] = !got || head.kind == NewsKind::bye;
    }
    if (!got)
      return gone(r);
    if (head.kind != NewsKind::failure)
      return;
    learn(decode(text), /*elsewhere=*/true);
    forward(text, r);
  }

  /// Rank 0 passes news on; the others have nobody to pass it to.
  void forward(const std::string &text, size_t except) {
    if (rank() != 0)
      return;
    std::lock_guard lock(sending);
    for (size_t r = 0; r < control.size(); ++r)
      if (r != except && !left[r])
        post(control[r], NewsKind::failure, text);
  }

  void gone(size_t r) {
    Status status(ErrorId::RankFailed,
                  format("rank %zu has ended without a word; it was killed or has crashed", r));
    // Whoever can reports it once: who started the ranks, else rank 0, or rank 1 in its place.
    learn(status, supervised || (rank() != 0 && rank() != 1));
    forward(encode(status), r);
  }

  void checkSilence() {
    if (timeoutSeconds <= 0 || rank() != 0)
      return;
    size_t silent = 0;
    {
      std::lock_guard lock(mutex);
      for (size_t r = 1; r < control.size() && !silent; ++r)
        if (!left[r] && secondsSince(heard[r]) > std::max(timeoutSeconds, kSilentSeconds))
          silent = r;
    }
    if (!silent || !news().ok())
      return;
    Status status(ErrorId::RankFailed,
                  format("rank %zu has given no sign of life for %g s; its process is stopped or "
                         "its machine cannot be reached",
                         silent, timeoutSeconds));
    learn(status, false);
    forward(encode(status), silent);
  }

  // --- data
  // ----------------------------------------------------------------------------------------

  /// A peer's block on its way, both directions.
  struct Flight {
    int peer;
    PairBlock block;
    DataHead outHead, inHead;
    size_t sent = 0, received = 0; // heads included
    size_t toSend() const { return sizeof outHead + block.sendBytes; }
    size_t toReceive() const { return sizeof inHead + block.receiveBytes; }
    bool done() const { return sent == toSend() && received == toReceive(); }
  };

  Status exchange(const Group &group, std::span<const PairBlock> blocks, int tag,
                  const std::string &what) override {
    if (Status s = news(); !s)
      return s;
    std::vector<Flight> flights;
    for (size_t i = 0; i < blocks.size(); ++i)
      if (i != size_t(group.self))
        flights.push_back({group.members[i], blocks[i], {uint64_t(tag), blocks[i].sendBytes}, {}});
    Clock::time_point last = Clock::now();
    for (;;) {
      std::vector<pollfd> entries;
      std::vector<Flight *> of;
      for (Flight &flight : flights) {
        if (flight.done())
          continue;
        short events = (flight.sent < flight.toSend() ? POLLOUT : 0) |
                       (flight.received < flight.toReceive() ? POLLIN : 0);
        entries.push_back({data[size_t(flight.peer)].get(), events, 0});
        of.push_back(&flight);
      }
      if (entries.empty())
        return {};
      entries.push_back({wake.get(), POLLIN, 0});
      poll(entries.data(), entries.size(), 100);
      if (Status s = news(); !s)
        return s;
      bool moved = false;
      for (size_t i = 0; i + 1 < entries.size(); ++i) {
        if (!entries[i].revents)
          continue;
        Flight &flight = *of[i];
        size_t before = flight.sent + flight.received;
        if (!advance(flight))
          return broken(flight.peer, what);
        if (flight.received >= sizeof(DataHead) &&
            (flight.inHead.tag != uint64_t(tag) ||
             flight.inHead.bytes != flight.block.receiveBytes))
          return mismatch(flight.peer, what);
        moved |= flight.sent + flight.received != before;
      }
      if (moved)
        last = Clock::now();
      // Rank 0 decides first, so that one message is everybody's.
      if (timeoutSeconds > 0 && secondsSince(last) > timeoutSeconds + (rank() == 0 ? 0 : 1))
        return timedOut(flights, what);
    }
  }

  bool advance(Flight &flight) {
    int fd = data[size_t(flight.peer)].get();
    while (flight.sent < flight.toSend()) {
      bool head = flight.sent < sizeof(DataHead);
      const char *from =
          head ? reinterpret_cast<const char *>(&flight.outHead) + flight.sent
               : reinterpret_cast<const char *>(flight.block.send) + flight.sent - sizeof(DataHead);
      ssize_t n =
          send(fd, from, (head ? sizeof(DataHead) : flight.toSend()) - flight.sent, MSG_NOSIGNAL);
      if (n < 0 && (errno == EAGAIN || errno == EINTR))
        break;
      if (n <= 0)
        return false;
      flight.sent += size_t(n);
    }
    while (flight.received < flight.toReceive()) {
      bool head = flight.received < sizeof(DataHead);
      char *to = head ? reinterpret_cast<char *>(&flight.inHead) + flight.received
                      : reinterpret_cast<char *>(flight.block.receive) + flight.received -
                            sizeof(DataHead);
      ssize_t n = recv(fd, to, (head ? sizeof(DataHead) : flight.toReceive()) - flight.received, 0);
      if (n < 0 && (errno == EAGAIN || errno == EINTR))
        break;
      if (n <= 0)
        return false;
      flight.received += size_t(n);
      // The length that follows is checked by the caller before more is read into the block.
      if (flight.received == sizeof(DataHead) && flight.block.receiveBytes != flight.inHead.bytes)
        break;
    }
    return true;
  }

  /// The reason comes over the other plane, perhaps a little later.
  Status broken(int peer, const std::string &what) {
    for (Deadline grace(kNewsGrace); !grace.passed();) {
      if (Status s = news(); !s)
        return s;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    learn(Status(ErrorId::RankFailed, format("rank %d closed its connection to rank %d at '%s'",
                                             peer, rank(), what.c_str())),
          supervised);
    return news();
  }

  Status mismatch(int peer, const std::string &what) {
    learn(Status(ErrorId::Internal,
                 format("rank %d runs '%s' while rank %d runs another collective; please report "
                        "this with the plan",
                        rank(), what.c_str(), peer)),
          false);
    return news();
  }

  Status timedOut(const std::vector<Flight> &flights, const std::string &what) {
    std::string names;
    for (const Flight &flight : flights)
      if (!flight.done())
        names += (names.empty() ? "" : ", ") + std::to_string(flight.peer);
    learn(Status(ErrorId::RankFailed,
                 format("no answer within %g s at '%s' from rank %s (seen by rank %d); look at "
                        "that rank's own messages, or allow more time with --timeout=SECONDS if "
                        "it is only slow",
                        timeoutSeconds, what.c_str(), names.c_str(), rank())),
          false);
    return news();
  }

  bool supervised;
  double timeoutSeconds; // not positive: no limit
  std::vector<Socket> data, control;

  mutable std::mutex mutex; // of the next four
  Status failure;
  bool elsewhere = false;
  std::vector<Clock::time_point> heard; // last sign of life, by rank
  std::vector<bool> left;               // has said goodbye or is gone; written by the watcher only

  std::mutex sending; // on control
  std::atomic<bool> stop = false;
  Socket wake; // readable once there is a failure
  std::thread watcher;
};

} // namespace

Expected<std::unique_ptr<Communicator>> makeTcpCommunicator(const TcpWorld &world,
                                                            double timeoutSeconds, bool *told) {
  Expected<TcpLinks> links = meet(world, timeoutSeconds, told);
  if (!links)
    return links.takeStatus();
  return std::unique_ptr<Communicator>(
      new TcpCommunicator(world, std::move(*links), timeoutSeconds));
}

} // namespace moira::rt
