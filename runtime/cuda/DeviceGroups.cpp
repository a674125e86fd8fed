//===- DeviceGroups.cpp - a plan's collectives on CUDA devices --------------===//
// See DeviceGroups.h.
//===----------------------------------------------------------------------===//
#include "DeviceGroups.h"

#include "moira/rt/Agree.h"

#include "CudaSupport.h"
#include "moira/rt/Box.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace moira::rt::cuda {

namespace {

using Clock = std::chrono::steady_clock;

ncclDataType_t ncclType(fb::DType type) {
  switch (type) {
  case fb::DType::f32:
    return ncclFloat32;
  case fb::DType::bf16:
    return ncclBfloat16;
  case fb::DType::f16:
    return ncclFloat16;
  case fb::DType::f64:
    return ncclFloat64;
  case fb::DType::i32:
    return ncclInt32;
  case fb::DType::i64:
    return ncclInt64;
  case fb::DType::u8:
    return ncclUint8;
  }
  return ncclUint8;
}

} // namespace

Status checkContiguous(const BoundInstr &instr) {
  auto contiguous = [](const TensorRef &tensor, int64_t dim) {
    return std::all_of(tensor.shape.begin(), tensor.shape.begin() + dim,
                       [](int64_t d) { return d == 1; });
  };
  bool fits = true;
  switch (instr.collective.kind) {
  case fb::CollectiveKind::all_reduce:
    break;
  case fb::CollectiveKind::all_gather:
    fits = contiguous(instr.out[0], instr.collective.dim);
    break;
  case fb::CollectiveKind::reduce_scatter:
    fits = contiguous(instr.in[0], instr.collective.dim);
    break;
  case fb::CollectiveKind::all_to_all:
    fits = contiguous(instr.in[0], instr.collective.splitDim) &&
           contiguous(instr.out[0], instr.collective.concatDim);
    break;
  }
  if (fits || instr.group->members.size() == 1)
    return {};
  return Status(ErrorId::PlanTarget, "the blocks that it exchanges are not contiguous, which CUDA "
                                     "devices need; compile the plan again");
}

Expected<std::unique_ptr<DeviceGroups>>
DeviceGroups::make(std::span<const std::vector<BoundInstr> *const> programs, Communicator &host,
                   double timeoutSeconds) {
  std::unique_ptr<DeviceGroups> groups(new DeviceGroups());
  if (host.size() == 1)
    return groups;
  // Group by group in the order of the programs. Every rank is in exactly one group of an axis
  // list, so all ranks make the same number of communicators.
  std::vector<const BoundInstr *> all;
  for (const std::vector<BoundInstr> *program : programs)
    for (const BoundInstr &instr : *program)
      all.push_back(&instr);
  for (const BoundInstr *each : all) {
    const BoundInstr &instr = *each;
    if (instr.kind != fb::InstrKind::collective || instr.group->members.size() == 1 ||
        groups->comms.count(instr.group->members))
      continue;
    Status mine;
    if (!groups->nccl) {
      Expected<const NcclLibrary *> library = NcclLibrary::get();
      if (library)
        groups->nccl = *library;
      else
        mine = library.takeStatus();
      if (Status all = agree(mine, host, "loading NCCL"); !all)
        return all;
    }
    ncclUniqueId id = {};
    if (instr.group->self == 0)
      mine = groups->failed(groups->nccl->getUniqueId(&id), nullptr);
    if (Status all = agree(mine, host, "preparing NCCL"); !all)
      return all;
    std::string bytes(reinterpret_cast<const char *>(&id), sizeof id);
    Expected<std::vector<std::string>> ids = gatherStrings(bytes, host, "exchanging NCCL's ids");
    if (!ids)
      return ids.takeStatus();
    const std::string &leaders = (*ids)[static_cast<size_t>(instr.group->members[0])];
    mine = groups->init(*instr.group, leaders, host, timeoutSeconds);
    if (Status all = agree(mine, host, "connecting NCCL"); !all) {
      groups->abort();
      return all;
    }
  }
  return groups;
}

Status DeviceGroups::init(const Group &group, const std::string &id, Communicator &host,
                          double timeoutSeconds) {
  ncclUniqueId unique;
  std::memcpy(&unique, id.data(), sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  ncclResult_t result = nccl->commInitRankConfig(&comm, static_cast<int>(group.members.size()),
                                                 unique, group.self, &config);
  if (comm)
    comms[group.members] = comm;
  auto start = Clock::now();
  while (result == ncclInProgress) {
    if (nccl->commGetAsyncError(comm, &result) != ncclSuccess)
      result = ncclInternalError;
    if (Status news = host.news(); !news)
      return news;
    std::chrono::duration<double> since = Clock::now() - start;
    if (timeoutSeconds > 0 && since.count() > timeoutSeconds)
      return Status(ErrorId::RankFailed,
                    format("rank %d: NCCL has not connected a group of %zu ranks within %g s",
                           host.rank(), group.members.size(), timeoutSeconds));
    if (result == ncclInProgress)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return failed(result, comm);
}

Status DeviceGroups::failed(ncclResult_t result, ncclComm_t comm) const {
  if (result == ncclSuccess)
    return {};
  const char *last = nccl->getLastError(comm);
  std::string detail = last && *last ? std::string(": ") + last : "";
  while (!detail.empty() && detail.back() == '\n')
    detail.pop_back();
  // A peer that is gone shows as a remote error or a broken connection here.
  ErrorId id = result == ncclRemoteError ? ErrorId::RankFailed : ErrorId::DeviceFailed;
  return Status(id, format("NCCL on %s: %s (%d)%s", deviceText().c_str(),
                           nccl->getErrorString(result), static_cast<int>(result), detail.c_str()));
}

DeviceGroups::~DeviceGroups() {
  if (aborted)
    return;
  for (auto &[members, comm] : comms) {
    // Finalize is a matter of the group; all ranks come here after the last step.
    ncclResult_t result = nccl->commFinalize(comm);
    for (auto start = Clock::now();
         result == ncclInProgress && Clock::now() - start < std::chrono::seconds(2);) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      nccl->commGetAsyncError(comm, &result);
    }
    if (result == ncclSuccess)
      nccl->commDestroy(comm);
    else
      nccl->commAbort(comm);
  }
}

Status DeviceGroups::settle(ncclComm_t comm, ncclResult_t result) {
  while (result == ncclInProgress && !aborted)
    if (nccl->commGetAsyncError(comm, &result) != ncclSuccess)
      result = ncclInternalError;
  if (aborted)
    return Status(ErrorId::RankFailed, "the collective was given up");
  return failed(result, comm);
}

Status DeviceGroups::run(const BoundInstr &instr, cudaStream_t stream) {
  const TensorRef &in = instr.in[0], &out = instr.out[0];
  size_t ranks = instr.group->members.size(), size = bytesOf(in.dtype);
  size_t sent = static_cast<size_t>(in.elements()), received = static_cast<size_t>(out.elements());
  if (ranks == 1) {
    if (in.data == out.data)
      return {};
    return check(cudaMemcpyAsync(out.data, in.data, sent * size, cudaMemcpyDeviceToDevice, stream),
                 "a collective of one rank");
  }
  std::lock_guard lock(inUse);
  if (aborted)
    return Status(ErrorId::RankFailed, "the collective was given up");
  ncclComm_t comm = comms.at(instr.group->members);
  ncclDataType_t type = ncclType(in.dtype);
  ncclRedOp_t op = instr.collective.op == fb::Reduce::max ? ncclMax : ncclSum;
  switch (instr.collective.kind) {
  case fb::CollectiveKind::all_reduce:
    return settle(comm, nccl->allReduce(in.data, out.data, sent, type, op, comm, stream));
  case fb::CollectiveKind::all_gather:
    return settle(comm, nccl->allGather(in.data, out.data, sent, type, comm, stream));
  case fb::CollectiveKind::reduce_scatter:
    return settle(comm, nccl->reduceScatter(in.data, out.data, received, type, op, comm, stream));
  case fb::CollectiveKind::all_to_all:
    break;
  }
  size_t block = sent / ranks;
  ncclResult_t result = nccl->groupStart();
  for (size_t r = 0; r < ranks && result == ncclSuccess; ++r) {
    int peer = static_cast<int>(r);
    ncclResult_t results[] = {nccl->send(static_cast<const char *>(in.data) + r * block * size,
                                         block, type, peer, comm, stream),
                              nccl->recv(static_cast<char *>(out.data) + r * block * size, block,
                                         type, peer, comm, stream)};
    for (ncclResult_t each : results)
      if (each != ncclSuccess && each != ncclInProgress)
        result = each;
  }
  ncclResult_t ended = nccl->groupEnd();
  return settle(comm, result == ncclSuccess ? ended : result);
}

Status DeviceGroups::asyncError() const {
  std::unique_lock lock(inUse, std::try_to_lock);
  if (!lock.owns_lock() || aborted)
    return {};
  for (auto &[members, comm] : comms) {
    ncclResult_t result = ncclSuccess;
    ncclResult_t asked = nccl->commGetAsyncError(comm, &result);
    if (asked != ncclSuccess)
      return failed(asked, comm);
    if (result != ncclSuccess && result != ncclInProgress)
      return failed(result, comm);
  }
  return {};
}

void DeviceGroups::abort() {
  if (aborted.exchange(true))
    return;
  for (auto &[members, comm] : comms)
    nccl->commAbort(comm);
}

} // namespace moira::rt::cuda
