//===- TcpComm.cpp - collectives and news over TCP --------------------------===//
// Data goes over one connection for each pair of ranks, used by the rank's own thread; failures go
// over NewsPlane.h's, so that a rank learns of another one's end whatever it waits for.
//===----------------------------------------------------------------------===//
#include "NewsPlane.h"
#include "PairwiseComm.h"
#include "TcpRendezvous.h"

#include <cerrno>
#include <poll.h>

namespace moira::rt {

namespace {

struct DataHead {
  uint64_t tag = 0, bytes = 0;
};

double secondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class TcpCommunicator final : public PairwiseCommunicator {
public:
  TcpCommunicator(const TcpWorld &world, TcpLinks links, double timeoutSeconds)
      : PairwiseCommunicator(world.rank, world.size), timeoutSeconds(timeoutSeconds),
        data(std::move(links.data)),
        plane({world.rank, timeoutSeconds, world.supervised, world.report}, std::move(links.news)) {
  }

  const char *kind() const override { return "tcp"; }
  void abort(const Status &cause) override { (void)plane.announce(cause); }
  void supervise(FailureHooks hooks) override { plane.supervise(std::move(hooks)); }
  void leave() override { plane.leave(); }
  Status news() const override { return plane.verdict(); }
  bool toldElsewhere() const override { return plane.toldElsewhere(); }
  std::vector<int> silentRanks() const override { return plane.silentRanks(); }

private:
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
      entries.push_back({plane.verdictHandle(), POLLIN, 0});
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
      if (timeoutSeconds > 0 && secondsSince(last) > timeoutSeconds)
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

  Status broken(int peer, const std::string &what) {
    return plane.announce(
        Status(ErrorId::RankFailed, format("rank %d closed its connection to rank %d at '%s'", peer,
                                           rank(), what.c_str())));
  }

  Status mismatch(int peer, const std::string &what) {
    return plane.announce(
        Status(ErrorId::Internal,
               format("rank %d runs '%s' while rank %d runs another collective; please report this "
                      "with the plan",
                      rank(), what.c_str(), peer)));
  }

  Status timedOut(const std::vector<Flight> &flights, const std::string &what) {
    std::string names;
    for (const Flight &flight : flights)
      if (!flight.done())
        names += (names.empty() ? "" : ", ") + std::to_string(flight.peer);
    return plane.announce(
        Status(ErrorId::RankFailed,
               format("no answer within %g s at '%s' from rank %s (seen by rank %d); look at that "
                      "rank's own messages, or allow more time with --timeout=SECONDS if it is "
                      "only slow",
                      timeoutSeconds, what.c_str(), names.c_str(), rank())));
  }

  double timeoutSeconds; // not positive: no limit
  std::vector<Socket> data;
  NewsPlane plane;
};

} // namespace

Expected<std::unique_ptr<Communicator>> makeTcpCommunicator(const TcpWorld &world,
                                                            double timeoutSeconds, bool *told) {
  Expected<TcpLinks> links = meet(world, /*withData=*/true, timeoutSeconds, told);
  if (!links)
    return links.takeStatus();
  return std::unique_ptr<Communicator>(
      new TcpCommunicator(world, std::move(*links), timeoutSeconds));
}

} // namespace moira::rt
