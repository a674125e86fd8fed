//===- ThreadComm.cpp - collectives between threads of one process ----------===//
// Ranks meet at a Meeting (one for each group), read each other's buffers directly, and leave
// together. All waiting, failing and blaming is here; the arithmetic is in OrderedReduce.
//
// A collective has two kinds of waits. Arriving can fail (timeout, abort); nobody has touched
// anything yet. Once all have arrived every member only copies, so the later waits cannot block for
// long and ignore aborts: returning early would free buffers that another member still reads.
//===----------------------------------------------------------------------===//
#include "CollectiveChecks.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>

namespace moira::rt {

namespace {

using Clock = std::chrono::steady_clock;

/// What a member brings to a meeting. Equal on all members but for `in`.
struct Offer {
  const char *kind = "";
  size_t amount = 0; // elements or bytes
  fb::DType dtype = fb::DType::u8;
  fb::Reduce op = fb::Reduce::sum;
  const void *in = nullptr;
  bool matches(const Offer &o) const {
    return !std::strcmp(kind, o.kind) && amount == o.amount && dtype == o.dtype && op == o.op;
  }
};

/// The rendezvous of one group. Guarded by World::mutex, but for offers and scratch between a
/// meeting's first and last wait, when only their owners write and the waits order the rest.
struct Meeting {
  explicit Meeting(const std::vector<int> &ranks)
      : members(ranks), here(ranks.size()), offers(ranks.size()), scratch(ranks.size()) {}
  std::vector<int> members;
  std::vector<char> here;
  size_t arrived = 0;
  uint64_t generation = 0; // counts completed waits
  std::vector<Offer> offers;
  std::vector<std::vector<std::byte>> scratch; // by member: its chunk of a reduction
};

class World {
public:
  World(int size, double timeout) : ranks(size_t(size)), timeoutSeconds(timeout) {}

  int size() const { return int(ranks.size()); }

  /// The group's meeting place. The reference stays valid as long as the world.
  Meeting &meeting(const std::vector<int> &members) {
    std::lock_guard lock(mutex);
    auto &place = meetings[members];
    if (!place)
      place = std::make_unique<Meeting>(members);
    return *place;
  }

  /// Puts down the offer and waits for the other members' ones.
  Status arrive(Meeting &m, int self, const Offer &offer, const std::string &what) {
    std::unique_lock lock(mutex);
    if (!cause.ok())
      return cause;
    size_t index = size_t(self);
    RankState &state = ranks[size_t(m.members[index])];
    state.lastSeen = what;
    m.offers[index] = offer;
    m.here[index] = 1;
    if (++m.arrived == m.members.size()) {
      if (Status s = agree(m, what); !s) {
        fail(s);
        withdraw(m, index);
        return cause;
      }
      complete(m);
      return {};
    }
    state.waitsAt = &m;
    uint64_t before = m.generation;
    auto done = [&] { return m.generation != before || !cause.ok(); };
    bool inTime = changed.wait_until(lock, deadline(), done);
    bool met = m.generation != before;
    if (!met) {
      if (!inTime && cause.ok())
        fail(blame(m, what)); // while this rank still counts as waiting
      withdraw(m, index);
    }
    state.waitsAt = nullptr;
    return met ? Status() : cause;
  }

  /// A later wait of a meeting that all members have reached.
  void together(Meeting &m, int self) {
    std::unique_lock lock(mutex);
    if (++m.arrived == m.members.size())
      return complete(m);
    uint64_t before = m.generation;
    changed.wait(lock, [&] { return m.generation != before; });
  }

  void abort(const Status &why) {
    std::lock_guard lock(mutex);
    fail(why.ok()
             ? Status(ErrorId::RankFailed, "a rank gave up without a reason; look at its messages")
             : why);
  }

private:
  struct RankState {
    const Meeting *waitsAt = nullptr;
    std::string lastSeen; // the last collective it arrived at
  };

  Clock::time_point deadline() const {
    double seconds = timeoutSeconds > 0 && timeoutSeconds < 1e8 ? timeoutSeconds : 1e8;
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  void complete(Meeting &m) {
    m.arrived = 0;
    std::fill(m.here.begin(), m.here.end(), 0);
    ++m.generation;
    changed.notify_all();
  }

  void withdraw(Meeting &m, size_t index) {
    m.here[index] = 0;
    --m.arrived;
  }

  /// The first cause wins.
  void fail(Status why) {
    if (cause.ok())
      cause = std::move(why);
    changed.notify_all();
  }

  Status agree(const Meeting &m, const std::string &what) const {
    for (size_t i = 1; i < m.members.size(); ++i)
      if (const Offer &a = m.offers[0], &b = m.offers[i]; !a.matches(b))
        return Status(ErrorId::RankFailed, format("ranks disagree at '%s': rank %d does %s of %zu, "
                                                  "rank %d %s of %zu; all ranks must run the same "
                                                  "plan and version",
                                                  what.c_str(), m.members[0], a.kind, a.amount,
                                                  m.members[i], b.kind, b.amount));
    return {};
  }

  /// Names the ranks that hold everybody up: who misses here, or, where such a rank waits elsewhere
  /// itself, who misses there.
  Status blame(const Meeting &m, const std::string &what) const {
    std::vector<int> missing = absent(m), culprits, seen;
    std::vector<int> open = missing;
    while (!open.empty()) {
      int rank = open.back();
      open.pop_back();
      if (std::find(seen.begin(), seen.end(), rank) != seen.end())
        continue;
      seen.push_back(rank);
      if (const Meeting *elsewhere = ranks[size_t(rank)].waitsAt) {
        std::vector<int> more = absent(*elsewhere);
        open.insert(open.end(), more.begin(), more.end());
      } else {
        culprits.push_back(rank);
      }
    }
    if (culprits.empty()) // they wait for each other
      culprits = missing;
    std::sort(culprits.begin(), culprits.end());
    std::string names;
    for (int rank : culprits) {
      const std::string &last = ranks[size_t(rank)].lastSeen;
      names += format("%s%d (%s)", names.empty() ? "" : ", ", rank,
                      last.empty() ? "arrived nowhere yet" : ("last at '" + last + "'").c_str());
    }
    return Status(ErrorId::RankFailed, format("no answer within %g s at '%s' from rank %s; look at "
                                              "that rank's own messages, or allow more time with "
                                              "--timeout=SECONDS if it is only slow",
                                              timeoutSeconds, what.c_str(), names.c_str()));
  }

  static std::vector<int> absent(const Meeting &m) {
    std::vector<int> result;
    for (size_t i = 0; i < m.members.size(); ++i)
      if (!m.here[i])
        result.push_back(m.members[i]);
    return result;
  }

  std::mutex mutex;
  std::condition_variable changed;
  Status cause; // not ok: everything fails with it
  std::map<std::vector<int>, std::unique_ptr<Meeting>> meetings;
  std::vector<RankState> ranks;
  double timeoutSeconds;
};

class ThreadCommunicator final : public Communicator {
public:
  ThreadCommunicator(std::shared_ptr<World> shared, int self) : world(std::move(shared)), me(self) {
    for (int r = 0; r < world->size(); ++r)
      everybody.members.push_back(r);
    everybody.self = me;
  }

  int rank() const override { return me; }
  int size() const override { return world->size(); }
  const char *kind() const override { return "threads"; }
  void abort(const Status &cause) override { world->abort(cause); }

  Status allReduce(const Group &group, const void *in, void *out, size_t count, fb::DType dtype,
                   fb::Reduce op, const std::string &what) override {
    if (Status s = checkReducible(dtype, what); !s)
      return s;
    size_t width = reducibleSize(dtype);
    Meeting *m = nullptr;
    if (Status s = enter(group, {"all_reduce", count, dtype, op, in}, what, m); !s)
      return s;
    // Everybody reduces one chunk for all into its scratch; inputs are dead after the first wait,
    // so out may be in.
    size_t members = group.members.size();
    auto [first, last] = reduceChunk(count, members, size_t(group.self));
    std::vector<std::byte> &mine = m->scratch[size_t(group.self)];
    mine.resize((last - first) * width);
    std::vector<const void *> inputs;
    for (const Offer &o : m->offers)
      inputs.push_back(static_cast<const std::byte *>(o.in) + first * width);
    reduceInOrder(inputs, mine.data(), last - first, dtype, op);
    world->together(*m, group.self);
    for (size_t i = 0; i < members; ++i) {
      size_t at = reduceChunk(count, members, i).first * width;
      copy(static_cast<std::byte *>(out) + at, m->scratch[i].data(), m->scratch[i].size());
    }
    // No wait: scratch is next written after all members have arrived again.
    return {};
  }

  Status allToAll(const Group &group, const void *in, void *out, size_t blockBytes,
                  const std::string &what) override {
    return exchange(group, {"all_to_all", blockBytes, fb::DType::u8, fb::Reduce::sum, in}, out,
                    size_t(group.self) * blockBytes, what);
  }

  Status allGather(const Group &group, const void *in, void *out, size_t bytes,
                   const std::string &what) override {
    return exchange(group, {"all_gather", bytes, fb::DType::u8, fb::Reduce::sum, in}, out, 0, what);
  }

  Status barrier(const std::string &what) override {
    Meeting *m = nullptr;
    return enter(everybody, {"barrier"}, what, m);
  }

private:
  static void copy(void *to, const void *from, size_t bytes) {
    if (bytes)
      std::memcpy(to, from, bytes);
  }

  Status enter(const Group &group, const Offer &offer, const std::string &what, Meeting *&m) {
    if (Status s = checkGroup(group, me, size(), what); !s)
      return s;
    m = &world->meeting(group.members);
    return world->arrive(*m, group.self, offer, what);
  }

  /// Copies `offer.amount` bytes at `offset` of every member's input to out, in member order.
  Status exchange(const Group &group, const Offer &offer, void *out, size_t offset,
                  const std::string &what) {
    Meeting *m = nullptr;
    if (Status s = enter(group, offer, what, m); !s)
      return s;
    for (size_t i = 0; i < group.members.size(); ++i)
      copy(static_cast<std::byte *>(out) + i * offer.amount,
           static_cast<const std::byte *>(m->offers[i].in) + offset, offer.amount);
    world->together(*m, group.self);
    return {};
  }

  std::shared_ptr<World> world;
  int me;
  Group everybody;
};

} // namespace

std::vector<std::unique_ptr<Communicator>> makeThreadCommunicators(int size,
                                                                   double timeoutSeconds) {
  auto world = std::make_shared<World>(size, timeoutSeconds);
  std::vector<std::unique_ptr<Communicator>> result;
  for (int r = 0; r < size; ++r)
    result.push_back(std::make_unique<ThreadCommunicator>(world, r));
  return result;
}

} // namespace moira::rt
