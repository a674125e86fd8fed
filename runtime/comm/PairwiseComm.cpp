//===- PairwiseComm.cpp - collectives made of pairwise messages -------------===//
// See PairwiseComm.h.
//===----------------------------------------------------------------------===//
#include "PairwiseComm.h"

#include "CollectiveChecks.h"

#include <cstring>

namespace moira::rt {

namespace {

constexpr size_t oneRoundBytes = 8192;

/// Equal on all members of one collective, and likely different for another one.
int tagOf(const Group &group, const char *kind, size_t amount) {
  uint32_t hash = 2166136261u;
  auto mix = [&](uint64_t v) { hash = (hash ^ uint32_t(v ^ v >> 32)) * 16777619u; };
  for (int r : group.members)
    mix(uint64_t(r));
  for (const char *c = kind; *c; ++c)
    mix(uint64_t(*c));
  mix(amount);
  return int((hash ^ hash >> 15) & 0x7fff); // MPI allows at least this much
}

} // namespace

PairwiseCommunicator::PairwiseCommunicator(int rank, int size) : me(rank), ranks(size) {
  for (int r = 0; r < ranks; ++r)
    everybody.members.push_back(r);
  everybody.self = me;
}

Status PairwiseCommunicator::allReduce(const Group &group, const void *in, void *out, size_t count,
                                       fb::DType dtype, fb::Reduce op, const std::string &what) {
  size_t width = reducibleSize(dtype), members = group.members.size(), self = size_t(group.self);
  if (Status s = checkGroup(group, me, ranks, what); !s)
    return s;
  if (Status s = checkReducible(dtype, what); !s)
    return s;
  const auto *source = static_cast<const std::byte *>(in);
  auto *target = static_cast<std::byte *>(out);
  std::vector<PairBlock> blocks(members);
  std::vector<const void *> inputs(members);

  // Small ones in one round: everybody gets everything.
  bool small = count * width <= oneRoundBytes;
  auto [first, last] =
      small ? std::pair<size_t, size_t>(0, count) : reduceChunk(count, members, self);
  size_t mine = (last - first) * width;
  scratch.resize((members + 1) * mine);
  for (size_t i = 0; i < members; ++i) {
    auto [low, high] = small ? std::pair<size_t, size_t>(0, count) : reduceChunk(count, members, i);
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

Status PairwiseCommunicator::allToAll(const Group &group, const void *in, void *out,
                                      size_t blockBytes, const std::string &what) {
  return gather(group, static_cast<const std::byte *>(in), blockBytes, out, blockBytes,
                "all_to_all", what);
}

Status PairwiseCommunicator::allGather(const Group &group, const void *in, void *out, size_t bytes,
                                       const std::string &what) {
  return gather(group, static_cast<const std::byte *>(in), 0, out, bytes, "all_gather", what);
}

Status PairwiseCommunicator::barrier(const std::string &what) {
  std::byte token{};
  std::vector<std::byte> tokens(static_cast<size_t>(ranks));
  return gather(everybody, &token, 0, tokens.data(), 1, "barrier", what);
}

/// Block i of `in` (at i * stride) goes to member i; member i's block comes to block i of `out`.
Status PairwiseCommunicator::gather(const Group &group, const std::byte *in, size_t stride,
                                    void *out, size_t bytes, const char *kind,
                                    const std::string &what) {
  if (Status s = checkGroup(group, me, ranks, what); !s)
    return s;
  auto *target = static_cast<std::byte *>(out);
  std::vector<PairBlock> blocks;
  for (size_t i = 0; i < group.members.size(); ++i)
    blocks.push_back({in + i * stride, bytes, target + i * bytes, bytes});
  if (Status s = exchange(group, blocks, tagOf(group, kind, bytes), what); !s)
    return s;
  const PairBlock &own = blocks[size_t(group.self)];
  if (bytes)
    std::memcpy(own.receive, own.send, bytes);
  return {};
}

} // namespace moira::rt
