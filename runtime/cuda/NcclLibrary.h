//===- NcclLibrary.h - NCCL, loaded when it is first needed -----*- C++ -*-===//
// NCCL's functions as a table. Runs of one rank need none of it.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_NCCLLIBRARY_H
#define MOIRA_RT_CUDA_NCCLLIBRARY_H

#include "moira/rt/Status.h"

#include <nccl.h>

namespace moira::rt::cuda {

/// NCCL functions that are used: name in the table, name in the library.
#define MOIRA_NCCL_FUNCTIONS(X)                                                                    \
  X(getVersion, ncclGetVersion)                                                                    \
  X(getUniqueId, ncclGetUniqueId)                                                                  \
  X(commInitRankConfig, ncclCommInitRankConfig)                                                    \
  X(commDestroy, ncclCommDestroy)                                                                  \
  X(commFinalize, ncclCommFinalize)                                                                \
  X(commAbort, ncclCommAbort)                                                                      \
  X(commGetAsyncError, ncclCommGetAsyncError)                                                      \
  X(getErrorString, ncclGetErrorString)                                                            \
  X(getLastError, ncclGetLastError)                                                                \
  X(allReduce, ncclAllReduce)                                                                      \
  X(allGather, ncclAllGather)                                                                      \
  X(reduceScatter, ncclReduceScatter)                                                              \
  X(send, ncclSend)                                                                                \
  X(recv, ncclRecv)                                                                                \
  X(groupStart, ncclGroupStart)                                                                    \
  X(groupEnd, ncclGroupEnd)

struct NcclLibrary {
#define MOIRA_NCCL_MEMBER(name, symbol) decltype(&symbol) name = nullptr;
  MOIRA_NCCL_FUNCTIONS(MOIRA_NCCL_MEMBER)
#undef MOIRA_NCCL_MEMBER
  std::string path, version; // where it was found, "2.28.9"

  /// DeviceUnavailable says what was tried. Thread-safe. Settings in the environment must be made
  /// before.
  static Expected<const NcclLibrary *> get();
};

/// What NCCL must be told by its environment, before its first use, for this rank: several ranks on
/// one device pass as ranks of different machines; ranks of one machine need no other network.
/// Variables that are set already stay as they are.
void prepareNccl(int rank, bool sharedDevice, bool allLocal);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_NCCLLIBRARY_H
