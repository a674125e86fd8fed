//===- MpiComm.cpp - collectives over MPI (libmoira_comm_mpi.so) ------------===//
// The only file that knows MPI. Collectives are made of non-blocking point-to-point messages that
// are polled: so a timeout can name the ranks whose message did not come, no communicator has to be
// created collectively for a group (which could hang), and sums are made here in rank order. All
// ranks run their collectives in one total order, and MPI keeps messages of a pair of ranks in
// order, so messages of different groups cannot be confused; the tag tells a mismatch from a match.
// MPI says nothing of ranks that die or stop, so failures go over NewsPlane.h, whose connections
// are arranged over MPI.
//===----------------------------------------------------------------------===//
#include "MpiPlugin.h"
#include "NewsPlane.h"
#include "PairwiseComm.h"
#include "TcpRendezvous.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mpi.h>
#include <sstream>
#include <thread>
#include <unistd.h>

namespace moira::rt {

namespace {

constexpr double kMeetingSeconds = 10; // for the connections of the news

std::string mpiMessage(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, size_t(length));
}

int rankIn(MPI_Comm comm) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  return rank;
}

int sizeOf(MPI_Comm comm) {
  int size = 1;
  MPI_Comm_size(comm, &size);
  return size;
}

class MpiCommunicator final : public PairwiseCommunicator {
public:
  /// `plane` may be null: then lost ranks only show in collectives.
  MpiCommunicator(MPI_Comm own, double timeout, std::unique_ptr<NewsPlane> plane)
      : PairwiseCommunicator(rankIn(own), sizeOf(own)), comm(own), timeoutSeconds(timeout),
        plane(std::move(plane)) {}

  /// After a failure MPI_Finalize could wait for ever: the launcher ends the job when this process
  /// exits without it.
  ~MpiCommunicator() override {
    if (!failure.ok() || !news().ok())
      return;
    leave();
    MPI_Comm_free(&comm);
    MPI_Finalize();
  }

  const char *kind() const override { return "mpi"; }

  /// Without a news plane it ends all processes of the job.
  void abort(const Status &cause) override {
    if (plane) {
      (void)plane->announce(cause);
      return;
    }
    {
      std::lock_guard lock(calling);
      if (hooks.settled)
        hooks.settled(cause, true);
    }
    std::fflush(nullptr);
    MPI_Abort(comm, std::max(cause.exitCode(), 1));
  }
  void supervise(FailureHooks given) override {
    if (plane)
      return plane->supervise(std::move(given));
    std::lock_guard lock(calling);
    hooks = std::move(given);
  }
  void leave() override {
    if (plane)
      plane->leave();
  }
  Status news() const override { return plane ? plane->verdict() : Status(); }
  bool toldElsewhere() const override { return plane && plane->toldElsewhere(); }
  std::vector<int> silentRanks() const override {
    return plane ? plane->silentRanks() : std::vector<int>();
  }

private:
  static constexpr size_t pieceBytes = size_t(1) << 30; // MPI counts are ints

  /// Sends and receives all blocks but the own one, and waits for them.
  Status exchange(const Group &group, std::span<const PairBlock> blocks, int tag,
                  const std::string &what) override {
    if (!failure.ok())
      return failure;
    if (Status s = news(); !s)
      return failure = s;
    std::vector<MPI_Request> requests;
    std::vector<int> peers; // whom each request waits for
    int result = MPI_SUCCESS;
    auto post = [&](size_t i, auto *data, size_t bytes, auto start) {
      for (size_t at = 0; at < bytes && result == MPI_SUCCESS; at += pieceBytes) {
        requests.push_back(MPI_REQUEST_NULL);
        peers.push_back(group.members[i]);
        result = start(data + at, int(std::min(pieceBytes, bytes - at)), MPI_BYTE, group.members[i],
                       tag, comm, &requests.back());
      }
    };
    for (size_t i = 0; i < blocks.size(); ++i)
      if (i != size_t(group.self))
        post(i, blocks[i].receive, blocks[i].receiveBytes, MPI_Irecv);
    for (size_t i = 0; i < blocks.size(); ++i)
      if (i != size_t(group.self))
        post(i, blocks[i].send, blocks[i].sendBytes, MPI_Isend);
    return result == MPI_SUCCESS ? finish(requests, peers, what) : fail(mpiMessage(result), what);
  }

  /// Polls until all requests are done. The time limit runs from the last one that got done.
  Status finish(std::vector<MPI_Request> &requests, const std::vector<int> &peers,
                const std::string &what) {
    std::vector<int> done(requests.size());
    Clock::time_point last = Clock::now();
    for (int idle = 0;; ++idle) {
      int count = 0;
      int result = MPI_Testsome(int(requests.size()), requests.data(), &count, done.data(),
                                MPI_STATUSES_IGNORE);
      if (result != MPI_SUCCESS)
        return fail(mpiMessage(result), what);
      if (count == MPI_UNDEFINED) // none left
        return {};
      if (count > 0) {
        idle = 0;
        last = Clock::now();
        continue;
      }
      if (idle > 200)
        if (Status s = news(); !s)
          return failure = s;
      // Spin briefly, then give the core to others, then sleep: ranks may outnumber cores.
      if (idle > 20000)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      else if (idle > 200)
        std::this_thread::yield();
      if (timeoutSeconds > 0 &&
          std::chrono::duration<double>(Clock::now() - last).count() > timeoutSeconds)
        return timedOut(requests, peers, what);
    }
  }

  Status timedOut(const std::vector<MPI_Request> &requests, const std::vector<int> &peers,
                  const std::string &what) {
    std::vector<int> missing;
    for (size_t i = 0; i < requests.size(); ++i)
      if (requests[i] != MPI_REQUEST_NULL)
        missing.push_back(peers[i]);
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    std::string names;
    for (int r : missing)
      names += (names.empty() ? "" : ", ") + std::to_string(r);
    return settle(
        Status(ErrorId::RankFailed,
               format("no answer within %g s at '%s' from rank %s (seen by rank %d); look at "
                      "that rank's own messages, or "
                      "allow more time with --timeout=SECONDS if it is only slow",
                      timeoutSeconds, what.c_str(), names.c_str(), rank())));
  }

  Status fail(const std::string &message, const std::string &what) {
    return settle(
        Status(ErrorId::RankFailed,
               format("MPI failed at '%s' on rank %d: %s; look at the launcher's messages",
                      what.c_str(), rank(), message.c_str())));
  }

  /// What has been found here, or what the ranks agree is the cause.
  Status settle(Status found) {
    failure = plane ? plane->announce(found) : std::move(found);
    return failure;
  }

  MPI_Comm comm;
  double timeoutSeconds; // not positive: no limit
  Status failure; // not ok: everything fails with it; requests may be pending, so their buffers
                  // must outlive this object
  std::unique_ptr<NewsPlane> plane;
  std::mutex calling; // held while hooks run
  FailureHooks hooks; // without a plane
};

/// Addresses at which other machines may find this one, likely ones first.
std::vector<std::string> ownAddresses() {
  std::vector<std::string> list;
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) == 0)
    list.push_back(name);
  for (std::string &address : interfaceAddresses())
    list.push_back(std::move(address));
  return list;
}

/// The text of rank 0 on all ranks.
std::string fromRankZero(std::string text, MPI_Comm comm) {
  int length = int(text.size());
  MPI_Bcast(&length, 1, MPI_INT, 0, comm);
  text.resize(size_t(length));
  MPI_Bcast(text.data(), length, MPI_CHAR, 0, comm);
  return text;
}

/// Collective; null on all ranks if they cannot reach each other over TCP.
std::unique_ptr<NewsPlane> makeNewsPlane(MPI_Comm comm, double timeoutSeconds) {
  TcpWorld world;
  world.rank = rankIn(comm);
  world.size = sizeOf(comm);
  if (world.size == 1)
    return nullptr;
  MPI_Comm machine;
  MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  bool oneMachine = sizeOf(machine) == world.size;
  MPI_Comm_free(&machine);
  std::string text;
  if (world.rank == 0) {
    Expected<Socket> listener = listenOn(0, /*loopbackOnly=*/false);
    text = listener ? std::to_string(portOf(*listener)) : "0";
    for (const std::string &address :
         oneMachine ? std::vector<std::string>{"127.0.0.1"} : ownAddresses())
      text += " " + address;
    world.listener = listener ? listener->release() : -1;
  }
  std::istringstream words(fromRankZero(text, comm));
  unsigned port = 0;
  words >> port >> world.address;
  for (std::string other; words >> other;)
    world.others.push_back(other);
  world.ports = {static_cast<uint16_t>(port)};
  world.job = "mpi";
  double patience =
      timeoutSeconds > 0 ? std::min(timeoutSeconds / 2, kMeetingSeconds) : kMeetingSeconds;
  Expected<TcpLinks> links = port ? meet(world, /*withData=*/false, patience, nullptr)
                                  : Expected<TcpLinks>(Status(ErrorId::RankFailed, "no port"));
  int mine = bool(links), all = 0;
  MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, comm);
  if (!all)
    return nullptr;
  return std::make_unique<NewsPlane>(NewsPlane::Setup{world.rank, timeoutSeconds},
                                     std::move(links->news));
}

Status unavailable(const char *step, int code) {
  return Status(ErrorId::MpiUnavailable,
                format("%s failed: %s; start with the mpirun of the MPI that Moira was built with",
                       step, mpiMessage(code).c_str()));
}

} // namespace
} // namespace moira::rt

using namespace moira::rt;

extern "C" __attribute__((visibility("default"))) int moiraMpiPluginVersion() {
  return mpiPluginVersion;
}

extern "C" __attribute__((visibility("default"))) Communicator *
moiraMakeMpiCommunicator(double timeoutSeconds, Status *error) {
  int started = 0, ended = 0, threads = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (ended || started) {
    *error = Status(ErrorId::MpiUnavailable,
                    "MPI was already used by this process; start one process a rank");
    return nullptr;
  }
  // abort() may come from another thread than the one that communicates.
  if (int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &threads);
      code != MPI_SUCCESS) {
    *error = unavailable("MPI_Init_thread", code);
    return nullptr;
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm own;
  if (int code = MPI_Comm_dup(MPI_COMM_WORLD, &own); code != MPI_SUCCESS) {
    *error = unavailable("MPI_Comm_dup", code);
    return nullptr;
  }
  MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);
  return new MpiCommunicator(own, timeoutSeconds, makeNewsPlane(own, timeoutSeconds));
}
