//===- Communicator.h - collectives over groups of ranks --------*- C++ -*-===//
// One Communicator a rank. Groups are formed from axis lists of the mesh. All buffers are
// contiguous host memory in C order. Sums are made as one tree over the group's ranks
// (OrderedReduce.h), so every implementation gives the same bits on every rank.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMMUNICATOR_H
#define MOIRA_RT_COMMUNICATOR_H

#include "moira/rt/Status.h"
#include "plan_generated.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace moira::rt {

/// The ranks that differ from this one only along some axes, in row-major order of their
/// coordinates there.
struct Group {
  std::vector<int> members; // world ranks
  int self = 0;             // index of this rank in members
};

/// What a rank's process does about failures. Called on other threads than the rank's own.
struct FailureHooks {
  /// Where the rank is, for people: "instruction 12 (all_to_all) at model.layers.0.mlp"; may be
  /// empty.
  std::function<std::string()> where;
  /// The one cause that all ranks have settled on, once; `mine`: this process is the one to report
  /// it.
  std::function<void(const Status &cause, bool mine)> settled;
};

/// Not thread-safe: one thread drives one rank. Every call is collective over its group and fails
/// on all members when one fails or the timeout passes (RankFailed names the rank that did not
/// arrive and `what`). in and out may be the same pointer only for allReduce.
class Communicator {
public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// "threads", "mpi" or "tcp".
  virtual const char *kind() const = 0;

  /// out[i] = reduce over members of in[i]; dtype f32, f64, bf16 (summed in f32) or i32.
  virtual Status allReduce(const Group &group, const void *in, void *out, size_t count,
                           fb::DType dtype, fb::Reduce op, const std::string &what) = 0;
  /// Member m sends block j of `in` (blockBytes each, group-size blocks) to member j; out holds
  /// member m's block at index m.
  virtual Status allToAll(const Group &group, const void *in, void *out, size_t blockBytes,
                          const std::string &what) = 0;
  /// out holds every member's `bytes`, in member order.
  virtual Status allGather(const Group &group, const void *in, void *out, size_t bytes,
                           const std::string &what) = 0;
  virtual Status barrier(const std::string &what) = 0;
  /// Makes every other rank's pending and later calls fail with this cause, or with an earlier one.
  /// Between processes it returns when the ranks have settled on one, after some seconds at most:
  /// it is news() then. Thread-safe.
  virtual void abort(const Status &cause) = 0;

  /// Between processes: what to do when a failure is known. Empty hooks take the earlier ones away;
  /// none of them is running after that. A process with hooks that is told to end (SIGTERM) does so
  /// half a second later, and first hears why. Threads have no use for it.
  virtual void supervise(FailureHooks) {}
  /// Nobody takes this process's end for a failure from now on; no collective follows.
  virtual void leave() {}

  /// A failure that another rank has announced by now, or that its process is gone; success while
  /// nothing is known. Thread-safe, never waits. Threads know nothing outside a collective.
  virtual Status news() const { return {}; }
  /// Whether somebody else (another rank, or who started this process) reports the failure that
  /// this communicator has met. Thread-safe.
  virtual bool toldElsewhere() const { return false; }
  /// Ranks whose processes have not given a sign of life for some seconds, as far as is known here.
  virtual std::vector<int> silentRanks() const { return {}; }
};

/// `size` communicators of one process, one for each rank thread.
std::vector<std::unique_ptr<Communicator>> makeThreadCommunicators(int size, double timeoutSeconds);

/// What a launcher says about this process, from the environment (moe-run itself for processes that
/// it has started, Open MPI, srun/PMIx, torchrun).
struct LaunchInfo {
  std::string launcher = "none"; // or "moe-run", "mpirun", "srun", "torchrun"
  int rank = 0, size = 1, localRank = 0, localSize = 1;
};
LaunchInfo discoverLaunch();

/// How the ranks of a world find each other over TCP.
struct TcpWorld {
  int rank = 0, size = 1;
  std::string address;         // where rank 0 is: a host name or number
  std::vector<uint16_t> ports; // rank 0 takes the first free one, the others look at all
  int listener = -1;           // of rank 0, if a socket that already listens is handed over; owned
  std::string job;             // only processes with the same text meet
  bool supervised = false;     // who started the ranks reports those that die
  int report = -1;             // where that one reads what ranks know of it; not owned
  std::vector<std::string> others; // further addresses of rank 0, tried after the first one
};

/// From the launcher's variables: MASTER_ADDR, MASTER_PORT, Slurm's list of nodes. BadUsage if they
/// do not say where rank 0 is.
Expected<TcpWorld> tcpWorldOf(const LaunchInfo &launch);

/// Meets the other ranks; WrongWorldSize if they have been told another number of ranks, RankFailed
/// naming those that do not come in time. A rank whose process ends without a word, or stops for
/// longer than the timeout, is noticed by all others at once, also outside collectives.
/// *told is set if it fails with what rank 0 has found out and reports itself.
Expected<std::unique_ptr<Communicator>>
makeTcpCommunicator(const TcpWorld &world, double timeoutSeconds, bool *told = nullptr);

/// The communicator that fits the launcher: MPI under mpirun and under an srun that offers PMI, TCP
/// otherwise.
Expected<std::unique_ptr<Communicator>>
makeLaunchedCommunicator(const LaunchInfo &launch, double timeoutSeconds, bool *told = nullptr);

/// Where the MPI plugin was found and loaded, without joining a world; MpiUnavailable says why not.
Expected<std::string> findMpi();

/// Loads the MPI plugin (libmoira_comm_mpi.so beside the program or its ../lib) and joins
/// MPI_COMM_WORLD. MpiUnavailable says what was tried.
Expected<std::unique_ptr<Communicator>> makeMpiCommunicator(double timeoutSeconds);

} // namespace moira::rt

#endif // MOIRA_RT_COMMUNICATOR_H
