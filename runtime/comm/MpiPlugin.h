//===- MpiPlugin.h - the C entry of libmoira_comm_mpi.so --------*- C++ -*-===//
// What the loader in the program and the plugin agree on. Nothing here needs MPI.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMM_MPIPLUGIN_H
#define MOIRA_RT_COMM_MPIPLUGIN_H

#include "moira/rt/Communicator.h"

namespace moira::rt {

/// Raised whenever Communicator, Group or Status change their layout.
inline constexpr int mpiPluginVersion = 3;

/// Symbol `moiraMpiPluginVersion`: int(void).
using MpiPluginVersionFn = int();
/// Symbol `moiraMakeMpiCommunicator`: initialises MPI and joins MPI_COMM_WORLD. The caller owns the
/// result; on failure it is null and *error says why.
using MakeMpiCommunicatorFn = Communicator *(double timeoutSeconds, Status *error);

} // namespace moira::rt

#endif // MOIRA_RT_COMM_MPIPLUGIN_H
