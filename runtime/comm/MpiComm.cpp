//===- MpiComm.cpp - collectives over MPI (libmoira_comm_mpi.so) ------------===//
// The only file that knows MPI. Collectives are made of non-blocking point-to-point messages that
// are polled: so a timeout can name the ranks whose message did not come, no communicator has to be
// created collectively for a group (which could hang), and sums are made here in rank order. All
// ranks run their collectives in one total order, and MPI keeps messages of a pair of ranks in
// order, so messages of different groups cannot be confused; the tag tells a mismatch from a match.
//===----------------------------------------------------------------------===//
#include "CollectiveChecks.h"
#include "MpiPlugin.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstring>
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

/// What one member sends to and receives from another.
struct Block {
  const std::byte *send = nullptr;
  size_t sendBytes = 0;
  std::byte *receive = nullptr;
  size_t receiveBytes = 0;
};

class MpiCommunicator final : public Communicator {
public:
  MpiCommunicator(MPI_Comm own, double timeout) : comm(own), timeoutSeconds(timeout) {
    MPI_Comm_rank(comm, &me);
    MPI_Comm_size(comm, &ranks);
    for (int r = 0; r < ranks; ++r)
      everybody.members.push_back(r);
    everybody.self = me;
  }

  /// After a failure MPI_Finalize could wait for ever: the launcher ends the job when this process
  /// exits without it.
  ~MpiCommunicator() override {
    if (!failure.ok())
      return;
    MPI_Comm_free(&comm);
    MPI_Finalize();
  }

  int rank() const override { return me; }
  int size() const override { return ranks; }
  const char *kind() const override { return "mpi"; }

  Status allReduce(const Group &group, const void *in, void *out, size_t count, fb::DType dtype,
                   fb::Reduce op, const std::string &what) override {
    size_t width = reducibleSize(dtype), members = group.members.size(), self = size_t(group.self);
    if (Status s = checkGroup(group, me, ranks, what); !s)
      return s;
    if (Status s = checkReducible(dtype, what); !s)
      return s;
    const auto *source = static_cast<const std::byte *>(in);
    auto *target = static_cast<std::byte *>(out);
    std::vector<Block> blocks(members);
    std::vector<const void *> inputs(members);

    // Small ones in one round: everybody gets everything.
    bool small = count * width <= oneRoundBytes;
    auto [first, last] =
        small ? std::pair<size_t, size_t>(0, count) : reduceChunk(count, members, self);
    size_t mine = (last - first) * width;
    scratch.resize((members + 1) * mine);
    for (size_t i = 0; i < members; ++i) {
      auto [low, high] =
          small ? std::pair<size_t, size_t>(0, count) : reduceChunk(count, members, i);
      blocks[i] = {source + low * width, (high - low) * width, scratch.data() + i * mine, mine};
      inputs[i] = i == self ? source + first * width : scratch.data() + i * mine;
    }
    int tag = tagOf(group, "all_reduce", count * width + size_t(op));
    if (Status s = exchange(group, blocks, tag, what); !s)
      return s;
    std::byte *sum = scratch.data() + members * mine;
    reduceInOrder(inputs, sum, last - first, dtype, op);
    if (mine)
      std::memcpy(target + first * width, sum, mine);
    if (small)
      return {};
    for (size_t i = 0; i < members; ++i) {
      auto [low, high] = reduceChunk(count, members, i);
      blocks[i] = {sum, mine, target + low * width, (high - low) * width};
    }
    return exchange(group, blocks, tag, what);
  }

  Status allToAll(const Group &group, const void *in, void *out, size_t blockBytes,
                  const std::string &what) override {
    return gather(group, static_cast<const std::byte *>(in), blockBytes, out, blockBytes,
                  "all_to_all", what);
  }

  Status allGather(const Group &group, const void *in, void *out, size_t bytes,
                   const std::string &what) override {
    return gather(group, static_cast<const std::byte *>(in), 0, out, bytes, "all_gather", what);
  }

  Status barrier(const std::string &what) override {
    std::byte token{};
    std::vector<std::byte> tokens(static_cast<size_t>(ranks));
    return gather(everybody, &token, 0, tokens.data(), 1, "barrier", what);
  }

  /// Ends all processes of the job. The caller has already printed the cause.
  void abort(const Status &cause) override {
    std::fflush(nullptr);
    MPI_Abort(comm, std::max(cause.exitCode(), 1));
  }

private:
  static constexpr size_t oneRoundBytes = 8192;
  static constexpr size_t pieceBytes = size_t(1) << 30; // MPI counts are ints

  /// Block i of `in` (at i * stride) goes to member i; member i's block comes to block i of `out`.
  Status gather(const Group &group, const std::byte *in, size_t stride, void *out, size_t bytes,
                const char *kind, const std::string &what) {
    if (Status s = checkGroup(group, me, ranks, what); !s)
      return s;
    auto *target = static_cast<std::byte *>(out);
    std::vector<Block> blocks;
    for (size_t i = 0; i < group.members.size(); ++i)
      blocks.push_back({in + i * stride, bytes, target + i * bytes, bytes});
    if (Status s = exchange(group, blocks, tagOf(group, kind, bytes), what); !s)
      return s;
    const Block &own = blocks[size_t(group.self)];
    if (bytes)
      std::memcpy(own.receive, own.send, bytes);
    return {};
  }

  /// Equal on all members of one collective, and likely different for another one.
  static int tagOf(const Group &group, const char *kind, size_t amount) {
    uint32_t hash = 2166136261u;
    auto mix = [&](uint64_t v) { hash = (hash ^ uint32_t(v ^ v >> 32)) * 16777619u; };
    for (int r : group.members)
      mix(uint64_t(r));
    for (const char *c = kind; *c; ++c)
      mix(uint64_t(*c));
    mix(amount);
    return int((hash ^ hash >> 15) & 0x7fff); // MPI allows at least this much
  }

  /// Sends and receives all blocks but the own one, and waits for them.
  Status exchange(const Group &group, std::span<const Block> blocks, int tag,
                  const std::string &what) {
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
                            timeoutSeconds, what.c_str(), names.c_str(), me));
    return failure;
  }

  Status fail(const std::string &message, const std::string &what) {
    failure = Status(ErrorId::RankFailed,
                     format("MPI failed at '%s' on rank %d: %s; look at the launcher's messages",
                            what.c_str(), me, message.c_str()));
    return failure;
  }

  MPI_Comm comm;
  double timeoutSeconds; // not positive: no limit
  int me = 0, ranks = 1;
  Group everybody;
  Status failure; // not ok: everything fails with it; requests may be pending, so their buffers
                  // must outlive this object
  std::vector<std::byte> scratch;
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
