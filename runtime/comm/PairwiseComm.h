//===- PairwiseComm.h - collectives made of pairwise messages ---*- C++ -*-===//
// What the communicators between processes share: every collective is one or two rounds in which
// each member sends a block to and receives a block from each other one, and sums are made here, in
// rank order. How a round travels is the subclass's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMM_PAIRWISECOMM_H
#define MOIRA_RT_COMM_PAIRWISECOMM_H

#include "moira/rt/Communicator.h"

#include <cstddef>

namespace moira::rt {

/// What one member sends to and receives from another. Either may be empty.
struct PairBlock {
  const std::byte *send = nullptr;
  size_t sendBytes = 0;
  std::byte *receive = nullptr;
  size_t receiveBytes = 0;
};

class PairwiseCommunicator : public Communicator {
public:
  int rank() const final { return me; }
  int size() const final { return ranks; }
  Status allReduce(const Group &group, const void *in, void *out, size_t count, fb::DType dtype,
                   fb::Reduce op, const std::string &what) final;
  Status allToAll(const Group &group, const void *in, void *out, size_t blockBytes,
                  const std::string &what) final;
  Status allGather(const Group &group, const void *in, void *out, size_t bytes,
                   const std::string &what) final;
  Status barrier(const std::string &what) final;

protected:
  PairwiseCommunicator(int rank, int size);
  /// One round: block i goes to and comes from group.members[i]; the own one is not touched. `tag`
  /// (0..32767) is equal on all members of one collective, and likely different for another one.
  virtual Status exchange(const Group &group, std::span<const PairBlock> blocks, int tag,
                          const std::string &what) = 0;

private:
  Status gather(const Group &group, const std::byte *in, size_t stride, void *out, size_t bytes,
                const char *kind, const std::string &what);

  int me, ranks;
  Group everybody;
  std::vector<std::byte> scratch; // receives partial sums; must outlive a failed round
};

} // namespace moira::rt

#endif // MOIRA_RT_COMM_PAIRWISECOMM_H
