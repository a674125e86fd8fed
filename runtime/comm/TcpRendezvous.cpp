//===- TcpRendezvous.cpp - how ranks find each other over TCP ---------------===//
// See TcpRendezvous.h. Other programs may listen or connect where we do, so every connection starts
// with a greeting and the wrong ones are dropped.
//===----------------------------------------------------------------------===//
#include "TcpRendezvous.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>

namespace moira::rt {

namespace {

constexpr uint64_t kMagic = 0x4d4f495241544350; // "MOIRATCP"
constexpr double kGreetingSeconds = 3;          // for the few bytes of a greeting

struct Hello {
  uint64_t magic = kMagic;
  uint64_t job = 0;
  int32_t rank = 0, size = 0;
  uint16_t port = 0; // where the sender takes connections of pairs
  uint16_t unused[3] = {};
};
struct Answer {
  uint64_t magic = kMagic;
  uint32_t failed = 0; // else the table follows
  uint32_t length = 0; // of what follows
};
enum class Purpose : int32_t { data, news };
struct PairHello {
  uint64_t magic = kMagic;
  uint64_t nonce = 0;
  int32_t rank = 0;
  Purpose purpose = Purpose::data;
};

uint64_t hashOf(const std::string &text) {
  uint64_t hash = 14695981039346656037u;
  for (unsigned char c : text)
    hash = (hash ^ c) * 1099511628211u;
  return hash;
}

std::string listOf(const std::vector<int> &ranks) {
  std::string text;
  for (int r : ranks)
    text += (text.empty() ? "" : ", ") + std::to_string(r);
  return text;
}

std::string waitedText(double seconds) {
  return format("within %g s; look at their own messages, or allow more time with "
                "--timeout=SECONDS",
                seconds);
}

class Meeting {
public:
  Meeting(const TcpWorld &world, bool withData, double timeoutSeconds)
      : world(world), seconds(timeoutSeconds), deadline(timeoutSeconds), job(hashOf(world.job)) {
    links.data.resize(withData ? size_t(world.size) : 0);
    links.news.resize(size_t(world.size));
    table.resize(size_t(world.size));
  }

  bool told = false; // another process reports the failure

  Expected<TcpLinks> run() {
    Expected<Socket> own = listenOn(0, false);
    if (!own)
      return own.takeStatus();
    listener = std::move(*own);
    if (Status s = world.rank == 0 ? gather() : join(); !s)
      return s;
    if (Status s = connectPairs(); !s)
      return s;
    return std::move(links);
  }

private:
  /// Rank 0: waits for all others and sends each the table.
  Status gather() {
    Socket door(world.listener);
    for (size_t i = 0; !door.open() && i < world.ports.size(); ++i)
      if (Expected<Socket> socket = listenOn(world.ports[i], false))
        door = std::move(*socket);
    if (!door.open())
      return Status(ErrorId::RankFailed,
                    format("rank 0 cannot listen on TCP port %u nor on the %zu after it; choose "
                           "another MASTER_PORT",
                           world.ports.empty() ? 0 : world.ports.front(),
                           world.ports.empty() ? 0 : world.ports.size() - 1));
    Status problem;
    int arrived = 1;
    while (arrived < world.size && problem.ok()) {
      Socket socket = acceptOn(door, deadline);
      if (!socket.open()) {
        problem = missing();
        arrived = world.size; // nobody else is waited for
        break;
      }
      Hello hello;
      Deadline greeting(kGreetingSeconds);
      if (!receiveAll(socket, &hello, sizeof hello, greeting) || hello.magic != kMagic ||
          hello.job != job)
        continue;
      uint64_t welcome = kMagic;
      if (!sendAll(socket, &welcome, sizeof welcome, greeting))
        continue;
      problem = check(hello);
      if (!problem) {
        if (hello.rank > 0 && hello.rank < world.size && !links.news[hello.rank].open())
          links.news[hello.rank] = std::move(socket);
        else
          answer(socket, problem);
        break;
      }
      PeerAddress address = peerOf(socket);
      setPort(address, hello.port);
      table[size_t(hello.rank)] = address;
      links.news[size_t(hello.rank)] = std::move(socket);
      ++arrived;
    }
    if (!problem.ok() && arrived < world.size)
      tellLatecomers(door, problem, world.size - arrived - 1);
    // Rank 0 does not know its own address as others see it: its entry only has the port.
    setPort(table[0], portOf(listener));
    std::random_device random;
    nonce = uint64_t(random()) << 32 | random();
    for (const Socket &socket : links.news)
      if (socket.open() && !answer(socket, problem) && problem.ok())
        problem = Status(ErrorId::RankFailed, "a rank left while the ranks were meeting");
    return problem;
  }

  /// Ranks that are still on their way hear the problem too, if they come soon.
  void tellLatecomers(Socket &door, const Status &problem, int expected) const {
    Deadline soon(kGreetingSeconds);
    while (expected > 0) {
      Socket socket = acceptOn(door, soon);
      if (!socket.open())
        return;
      Hello hello;
      uint64_t welcome = kMagic;
      if (receiveAll(socket, &hello, sizeof hello, soon) && hello.magic == kMagic &&
          hello.job == job && sendAll(socket, &welcome, sizeof welcome, soon)) {
        answer(socket, problem);
        --expected;
      }
    }
  }

  Status check(const Hello &hello) const {
    if (hello.size != world.size)
      return Status(ErrorId::WrongWorldSize,
                    format("rank %d was told of %d ranks, rank 0 of %d; start all processes with "
                           "the same number",
                           hello.rank, hello.size, world.size));
    if (hello.rank < 1 || hello.rank >= world.size || links.news[size_t(hello.rank)].open())
      return Status(ErrorId::WrongWorldSize,
                    format("two processes say that they are rank %d of %d; give each its own rank",
                           hello.rank, world.size));
    return {};
  }

  Status missing() const {
    std::vector<int> absent;
    for (int r = 1; r < world.size; ++r)
      if (!links.news[size_t(r)].open())
        absent.push_back(r);
    return Status(ErrorId::RankFailed,
                  format("rank %s of %d did not arrive %s", listOf(absent).c_str(), world.size,
                         waitedText(seconds).c_str()));
  }

  /// Sends the table, or the problem as "id message".
  bool answer(const Socket &socket, const Status &problem) const {
    std::string body;
    if (problem.ok()) {
      body.append(reinterpret_cast<const char *>(&nonce), sizeof nonce);
      body.append(reinterpret_cast<const char *>(table.data()), table.size() * sizeof(PeerAddress));
    } else {
      const Diagnostic &first = problem.diagnostics().front();
      body = std::to_string(int(first.id)) + " " + first.message;
    }
    Answer head;
    head.failed = !problem.ok();
    head.length = uint32_t(body.size());
    Deadline soon(kGreetingSeconds);
    return sendAll(socket, &head, sizeof head, soon) &&
           sendAll(socket, body.data(), body.size(), soon);
  }

  /// Other ranks: find rank 0 and get the table.
  Status join() {
    Hello hello;
    hello.job = job;
    hello.rank = world.rank;
    hello.size = world.size;
    hello.port = portOf(listener);
    std::vector<std::string> addresses = {world.address};
    addresses.insert(addresses.end(), world.others.begin(), world.others.end());
    // Rank 1 says first that there is no rank 0: launchers then end the others.
    Deadline patient(seconds > 0 ? seconds + (world.rank == 1 ? 0 : 2) : 0);
    Socket socket;
    while (!socket.open()) {
      for (const std::string &address : addresses)
        for (size_t i = 0; i < world.ports.size() && !socket.open(); ++i) {
          Deadline greeting(kGreetingSeconds);
          Socket candidate = connectTo(address, world.ports[i], greeting);
          uint64_t welcome = 0;
          if (candidate.open() && sendAll(candidate, &hello, sizeof hello, greeting) &&
              receiveAll(candidate, &welcome, sizeof welcome, greeting) && welcome == kMagic)
            socket = std::move(candidate);
        }
      if (socket.open())
        break;
      if (patient.passed())
        return Status(ErrorId::RankFailed,
                      format("rank %d did not find rank 0 at %s, port %u%s, %s", world.rank,
                             world.address.c_str(), world.ports.empty() ? 0 : world.ports.front(),
                             world.ports.size() > 1 ? " or one of the next" : "",
                             waitedText(seconds).c_str()));
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    // Rank 0 answers when all are there, or gives up by its own deadline, a little before ours.
    Deadline patience(seconds > 0 ? seconds + kGreetingSeconds : 0);
    Answer head;
    std::string body;
    constexpr uint32_t kMost = 1 << 24;
    bool heard = receiveAll(socket, &head, sizeof head, patience) && head.magic == kMagic &&
                 head.length <= kMost;
    if (heard) {
      body.resize(head.length);
      heard = receiveAll(socket, body.data(), body.size(), patience);
    }
    if (!heard) {
      // All notice it; one of them, or who has started them, reports it.
      told = world.supervised || world.rank != 1;
      return Status(ErrorId::RankFailed,
                    "rank 0 has ended while the ranks were meeting; look at its own messages");
    }
    if (head.failed) {
      told = true;
      size_t space = std::min(body.find(' '), body.size());
      return Status(ErrorId(std::atoi(body.c_str())),
                    body.substr(std::min(space + 1, body.size())));
    }
    if (body.size() != sizeof nonce + table.size() * sizeof(PeerAddress))
      return Status(ErrorId::RankFailed, "rank 0 is of another version of Moira");
    std::memcpy(&nonce, body.data(), sizeof nonce);
    std::memcpy(table.data(), body.data() + sizeof nonce, table.size() * sizeof(PeerAddress));
    uint16_t port = portIn(table[0]);
    table[0] = peerOf(socket);
    setPort(table[0], port);
    links.news[0] = std::move(socket);
    return {};
  }

  /// Each rank connects to those below it and accepts those above. News between rank 0 and the
  /// others take the connections of the meeting.
  Status connectPairs() {
    auto lost = [&](int r) {
      return Status(ErrorId::RankFailed, format("rank %d and rank %d could not connect %s",
                                                world.rank, r, waitedText(seconds).c_str()));
    };
    auto linksFor = [&](Purpose purpose) -> std::vector<Socket> & {
      return purpose == Purpose::data ? links.data : links.news;
    };
    PairHello hello;
    hello.nonce = nonce;
    hello.rank = world.rank;
    int awaited = 0;
    for (Purpose purpose : {Purpose::data, Purpose::news}) {
      std::vector<Socket> &list = linksFor(purpose);
      hello.purpose = purpose;
      for (int r = 0; r < int(list.size()); ++r) {
        if (r == world.rank || list[size_t(r)].open())
          continue;
        if (r > world.rank) {
          ++awaited;
          continue;
        }
        Socket socket = connectTo(table[size_t(r)], deadline);
        if (!socket.open() || !sendAll(socket, &hello, sizeof hello, deadline))
          return lost(r);
        list[size_t(r)] = std::move(socket);
      }
    }
    while (awaited > 0) {
      Socket socket = acceptOn(listener, deadline);
      if (!socket.open())
        return lost(world.size - 1);
      PairHello theirs;
      Deadline greeting(kGreetingSeconds);
      if (!receiveAll(socket, &theirs, sizeof theirs, greeting) || theirs.magic != kMagic ||
          theirs.nonce != nonce || theirs.rank <= world.rank || theirs.rank >= world.size)
        continue;
      std::vector<Socket> &list = linksFor(theirs.purpose);
      if (size_t(theirs.rank) >= list.size() || list[size_t(theirs.rank)].open())
        continue;
      list[size_t(theirs.rank)] = std::move(socket);
      --awaited;
    }
    return {};
  }

  const TcpWorld &world;
  double seconds;
  Deadline deadline;
  uint64_t job, nonce = 0;
  Socket listener; // for connections of pairs
  TcpLinks links;
  std::vector<PeerAddress> table;
};

} // namespace

Expected<TcpLinks> meet(const TcpWorld &world, bool withData, double timeoutSeconds, bool *told) {
  Meeting meeting(world, withData, timeoutSeconds);
  Expected<TcpLinks> links = meeting.run();
  if (told)
    *told = meeting.told;
  return links;
}

} // namespace moira::rt
