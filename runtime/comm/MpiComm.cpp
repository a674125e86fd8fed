//===- MpiComm.cpp - collectives over MPI (libmoira_comm_mpi.so) ------------===//
// The only file that knows MPI. Collectives are made of non-blocking point-to-point messages that
// are polled: so a timeout can name the ranks whose message did not come, no communicator has to be
// created collectively for a group (which could hang), and sums are made here in rank order. All
// ranks run their collectives in one total order, and MPI keeps messages of a pair of ranks in
// order, so messages of different groups cannot be confused; the tag tells a mismatch from a match.
//===----------------------------------------------------------------------===//
#include "MpiPlugin.h"
#include "PairwiseComm.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mpi.h>
#include <thread>

namespace moira::rt {

namespace {

using Clock = std::chrono::steady_clock;

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
  MpiCommunicator(MPI_Comm own, double timeout)
      : PairwiseCommunicator(rankIn(own), sizeOf(own)), comm(own), timeoutSeconds(timeout) {}

  /// After a failure MPI_Finalize could wait for ever: the launcher ends the job when this process
  /// exits without it.
  ~MpiCommunicator() override {
    if (!failure.ok())
      return;
    MPI_Comm_free(&comm);
    MPI_Finalize();
  }

  const char *kind() const override { return "mpi"; }

  /// Ends all processes of the job. The caller has already printed the cause.
  void abort(const Status &cause) override {
    std::fflush(nullptr);
    MPI_Abort(comm, std::max(cause.exitCode(), 1));
  }

private:
  static constexpr size_t pieceBytes = size_t(1) << 30; // MPI counts are ints

  /// Sends and receives all blocks but the own one, and waits for them.
  Status exchange(const Group &group, std::span<const PairBlock> blocks, int tag,
                  const std::string &what) override {
    if (!failure.ok())
      return failure;
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
    failure = Status(ErrorId::RankFailed,
                     format("no answer within %g s at '%s' from rank %s (seen by rank %d); look at "
                            "that rank's own messages, or "
                            "allow more time with --timeout=SECONDS if it is only slow",
                            timeoutSeconds, what.c_str(), names.c_str(), rank()));
    return failure;
  }

  Status fail(const std::string &message, const std::string &what) {
    failure = Status(ErrorId::RankFailed,
                     format("MPI failed at '%s' on rank %d: %s; look at the launcher's messages",
                            what.c_str(), rank(), message.c_str()));
    return failure;
  }

  MPI_Comm comm;
  double timeoutSeconds; // not positive: no limit
  Status failure; // not ok: everything fails with it; requests may be pending, so their buffers
                  // must outlive this object
};

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
  return new MpiCommunicator(own, timeoutSeconds);
}
