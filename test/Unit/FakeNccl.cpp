//===- FakeNccl.cpp - NCCL between threads ----------------------------------===//
// Each collective is done once all members' streams have come to it, member by member, in the way
// of NCCL: results may be written only when everybody has read.
//===----------------------------------------------------------------------===//
#include "FakeStreams.h"

#include "../../runtime/cuda/NcclLibrary.h"

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>

namespace {

struct Side {
  const void *in = nullptr;
  std::vector<char> result; // what will be written
  bool computed = false;
};
struct Meeting {
  std::vector<Side> sides;
  int arrived = 0, computed = 0;
};
struct World {
  int size = 0, joined = 0;
  std::map<uint64_t, Meeting> meetings;
};

std::mutex mutex;
std::map<std::string, World> worlds;

size_t widthOf(ncclDataType_t type) {
  return type == ncclInt64 || type == ncclFloat64      ? 8
         : type == ncclFloat16 || type == ncclBfloat16 ? 2
         : type == ncclInt8 || type == ncclUint8       ? 1
                                                       : 4;
}

} // namespace

struct ncclComm {
  World *world;
  int rank;
  uint64_t sequence = 0;
};

namespace {

/// Enqueues a collective: `compute` makes this member's result of everybody's input.
ncclResult_t meet(ncclComm_t comm, const void *in, void *out, cudaStream_t stream,
                  std::function<std::vector<char>(const std::vector<Side> &)> compute) {
  uint64_t number = comm->sequence++;
  auto came = std::make_shared<bool>(false);
  moira::test::fake::enqueue(stream, [=] {
    std::lock_guard lock(mutex);
    Meeting &m = comm->world->meetings[number];
    m.sides.resize(static_cast<size_t>(comm->world->size));
    Side &mine = m.sides[static_cast<size_t>(comm->rank)];
    if (!*came) {
      *came = true;
      mine.in = in;
      ++m.arrived;
    }
    if (m.arrived < comm->world->size)
      return false;
    if (!mine.computed) {
      mine.result = compute(m.sides);
      mine.computed = true;
      ++m.computed;
    }
    if (m.computed < comm->world->size)
      return false;
    std::memcpy(out, mine.result.data(), mine.result.size());
    return true;
  });
  return ncclInProgress;
}

template <typename T>
void reduceInto(std::vector<char> &result, const std::vector<Side> &sides, size_t first,
                size_t count, ncclRedOp_t op) {
  T *to = reinterpret_cast<T *>(result.data());
  for (size_t i = 0; i < count; ++i) {
    T value = static_cast<const T *>(sides[0].in)[first + i];
    for (size_t r = 1; r < sides.size(); ++r) {
      T other = static_cast<const T *>(sides[r].in)[first + i];
      value = op == ncclMax ? std::max(value, other) : value + other;
    }
    to[i] = value;
  }
}

std::vector<char> reduced(const std::vector<Side> &sides, size_t first, size_t count,
                          ncclDataType_t type, ncclRedOp_t op) {
  std::vector<char> result(count * widthOf(type));
  if (type == ncclInt32)
    reduceInto<int32_t>(result, sides, first, count, op);
  else
    reduceInto<float>(result, sides, first, count, op);
  return result;
}

ncclResult_t getVersion(int *version) {
  *version = 22809;
  return ncclSuccess;
}
ncclResult_t getUniqueId(ncclUniqueId *id) {
  static std::atomic<uint64_t> next = 1;
  uint64_t number = next++;
  std::memcpy(id, &number, sizeof number);
  return ncclSuccess;
}
ncclResult_t init(ncclComm_t *comm, int size, ncclUniqueId id, int rank, ncclConfig_t *) {
  std::lock_guard lock(mutex);
  World &world = worlds[std::string(id.internal, sizeof id.internal)];
  world.size = size;
  ++world.joined;
  *comm = new ncclComm{&world, rank};
  return ncclInProgress;
}
ncclResult_t destroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t finalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t asyncError(ncclComm_t comm, ncclResult_t *error) {
  std::lock_guard lock(mutex);
  *error = comm->world->joined < comm->world->size ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}
const char *errorString(ncclResult_t) { return "a fake NCCL error"; }
const char *lastError(ncclComm_t) { return ""; }
ncclResult_t allReduce(const void *in, void *out, size_t count, ncclDataType_t type, ncclRedOp_t op,
                       ncclComm_t comm, cudaStream_t stream) {
  return meet(comm, in, out, stream,
              [=](const std::vector<Side> &sides) { return reduced(sides, 0, count, type, op); });
}
ncclResult_t allGather(const void *in, void *out, size_t count, ncclDataType_t type,
                       ncclComm_t comm, cudaStream_t stream) {
  return meet(comm, in, out, stream, [=](const std::vector<Side> &sides) {
    std::vector<char> result;
    for (const Side &side : sides)
      result.insert(result.end(), static_cast<const char *>(side.in),
                    static_cast<const char *>(side.in) + count * widthOf(type));
    return result;
  });
}
ncclResult_t reduceScatter(const void *in, void *out, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  size_t first = static_cast<size_t>(comm->rank) * count;
  return meet(comm, in, out, stream, [=](const std::vector<Side> &sides) {
    return reduced(sides, first, count, type, op);
  });
}

/// Sends and receives of one group: equal blocks, one to and from each member, as Moira makes them.
struct Exchange {
  ncclComm_t comm = nullptr;
  const void *in = nullptr;
  void *out = nullptr;
  size_t bytes = 0;
  cudaStream_t stream = nullptr;
  int sends = 0, receives = 0;
};
thread_local Exchange exchange;

ncclResult_t groupStart() {
  exchange = {};
  return ncclSuccess;
}
ncclResult_t send(const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                  cudaStream_t stream) {
  if (peer != exchange.sends++)
    return ncclInvalidUsage;
  if (peer == 0)
    exchange.in = data;
  exchange.comm = comm;
  exchange.bytes = count * widthOf(type);
  exchange.stream = stream;
  return ncclSuccess;
}
ncclResult_t recv(void *data, size_t, ncclDataType_t, int peer, ncclComm_t, cudaStream_t) {
  if (peer != exchange.receives++)
    return ncclInvalidUsage;
  if (peer == 0)
    exchange.out = data;
  return ncclSuccess;
}
ncclResult_t groupEnd() {
  Exchange e = exchange;
  if (e.sends != e.comm->world->size || e.receives != e.sends)
    return ncclInvalidUsage;
  return meet(e.comm, e.in, e.out, e.stream, [e](const std::vector<Side> &sides) {
    std::vector<char> result;
    for (const Side &side : sides) {
      const char *block = static_cast<const char *>(side.in) + e.comm->rank * e.bytes;
      result.insert(result.end(), block, block + e.bytes);
    }
    return result;
  });
}

} // namespace

namespace moira::rt::cuda {

Expected<const NcclLibrary *> NcclLibrary::get() {
  static NcclLibrary library = [] {
    NcclLibrary l;
    l.getVersion = ::getVersion;
    l.getUniqueId = ::getUniqueId;
    l.commInitRankConfig = init;
    l.commDestroy = destroy;
    l.commFinalize = finalize;
    l.commAbort = [](ncclComm_t) { return ncclSuccess; };
    l.commGetAsyncError = asyncError;
    l.getErrorString = errorString;
    l.getLastError = lastError;
    l.allReduce = ::allReduce;
    l.allGather = ::allGather;
    l.reduceScatter = ::reduceScatter;
    l.send = ::send;
    l.recv = ::recv;
    l.groupStart = ::groupStart;
    l.groupEnd = ::groupEnd;
    return l;
  }();
  return static_cast<const NcclLibrary *>(&library);
}

void prepareNccl(int, bool, bool) {}

} // namespace moira::rt::cuda
