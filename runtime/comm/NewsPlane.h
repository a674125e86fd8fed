//===- NewsPlane.h - how processes learn of each other's failures -*- C++ -*-===//
// A TCP connection between every two ranks, watched by a thread, on which failures, signs of life
// and goodbyes travel at any time, whatever the ranks' own threads wait for. It makes all ranks
// settle on one cause, which exactly one process reports. Data never travels here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMM_NEWSPLANE_H
#define MOIRA_RT_COMM_NEWSPLANE_H

#include "TcpSocket.h"
#include "moira/rt/Communicator.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

namespace moira::rt {

/// How findings become one cause: every rank sends what it finds to the lowest rank that is alive
/// (the arbiter), which takes the first one, prefers facts over their consequences for a moment,
/// reports it and tells everybody. If the arbiter is lost meanwhile the next one takes its place.
class NewsPlane {
public:
  struct Setup {
    int rank = 0;
    double timeoutSeconds = 0; // of silence, after which a rank counts as lost; 0: never
    bool supervised = false;   // who started the ranks reports those that end without a word
    int report = -1;           // where that one reads what the ranks know of it; not owned
  };
  /// `links`: one a rank, the own one unconnected.
  NewsPlane(const Setup &setup, std::vector<Socket> links);
  /// Says goodbye.
  ~NewsPlane();

  /// See Communicator. After a call with empty hooks none of the earlier ones is running.
  void supervise(FailureHooks hooks);
  /// Makes `found` known and returns the cause that the ranks settle on, after at most some
  /// seconds.
  Status announce(const Status &found);
  /// What the ranks have settled on; success as long as nothing is wrong.
  Status verdict() const;
  bool toldElsewhere() const;
  std::vector<int> silentRanks() const;
  /// The others no longer take this process's end for a failure.
  void leave();

  /// A descriptor that is readable once there is a verdict.
  int verdictHandle() const { return settledFlag.get(); }

private:
  /// What may become the cause.
  enum class Weight : uint32_t {
    suspicion, // may be the consequence of something that is not known yet
    lost,      // a rank's process is gone or stopped
    cause      // known to be one
  };
  struct Finding {
    Weight weight;
    Status status;
    Clock::time_point since;
  };
  struct Peer {
    Socket link;
    Clock::time_point heard; // last sign of life
    bool left = false;       // has said goodbye
    bool gone = false;       // has ended without
    bool reachable() const { return link.open() && !left && !gone; }
  };
  enum class Kind : uint32_t { alive, finding, verdict, bye };
  struct Head {
    Kind kind = Kind::alive;
    Weight weight = Weight::suspicion;
    uint32_t length = 0;
  };

  void add(Weight weight, Status status);
  void watch();
  void listen(int r);
  void beat();
  void checkSilence();
  void think();
  void obeyTermination();
  void adopt(const Status &status, bool mine, const std::string &where = {});
  int arbiter() const;
  bool silent(const Peer &peer, double seconds) const;
  std::string whereText();
  void post(int r, Kind kind, Weight weight, const std::string &text);

  const Setup setup;

  mutable std::mutex mutex; // of what follows
  std::condition_variable changed;
  std::vector<Peer> peers; // links are only closed by the destructor
  std::optional<Finding> finding;
  int sentTo = -1; // the arbiter that has been sent the finding
  Status settled;
  bool elsewhere = false;
  bool leaving = false;

  std::mutex calling; // held while hooks run
  FailureHooks hooks;
  std::mutex sending; // on the links
  std::atomic<bool> stop = false;
  Socket wake;        // readable: there is something to think about
  Socket settledFlag; // readable: there is a verdict
  std::optional<Clock::time_point> terminatedAt;
  std::thread watcher;
};

} // namespace moira::rt

#endif // MOIRA_RT_COMM_NEWSPLANE_H
