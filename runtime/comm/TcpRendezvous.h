//===- TcpRendezvous.h - how ranks find each other over TCP -----*- C++ -*-===//
// Everybody tells rank 0 where it listens, rank 0 tells everybody, then each pair connects. Gives
// connected sockets; TcpComm.cpp uses them.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMM_TCPRENDEZVOUS_H
#define MOIRA_RT_COMM_TCPRENDEZVOUS_H

#include "TcpSocket.h"
#include "moira/rt/Communicator.h"

namespace moira::rt {

struct TcpLinks {
  // One a rank, the own one unconnected.
  std::vector<Socket> data; // empty if not asked for
  std::vector<Socket> news; // for NewsPlane.h
};

/// Collective. WrongWorldSize, RankFailed. *told as for makeTcpCommunicator; may be null.
Expected<TcpLinks> meet(const TcpWorld &world, bool withData, double timeoutSeconds, bool *told);

} // namespace moira::rt

#endif // MOIRA_RT_COMM_TCPRENDEZVOUS_H
