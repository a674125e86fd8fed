//===- TcpSocket.h - owned sockets with deadlines ---------------*- C++ -*-===//
// Listening, connecting, and moving a known number of bytes before a deadline. Who talks to whom is
// TcpRendezvous.h's and TcpComm.cpp's business.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_COMM_TCPSOCKET_H
#define MOIRA_RT_COMM_TCPSOCKET_H

#include "moira/rt/Status.h"

#include <chrono>
#include <cstdint>
#include <sys/socket.h>

namespace moira::rt {

using Clock = std::chrono::steady_clock;

/// A point in time, or never.
class Deadline {
public:
  /// Not positive: never.
  explicit Deadline(double seconds)
      : limited(seconds > 0),
        at(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                              std::chrono::duration<double>(limited ? seconds : 0))) {}
  bool passed() const { return limited && Clock::now() >= at; }
  /// For poll(): milliseconds left, at most `most`.
  int pollTime(int most) const;

private:
  bool limited;
  Clock::time_point at;
};

/// A file descriptor, closed at the end. Movable.
class Socket {
public:
  Socket() = default;
  explicit Socket(int fd) : fd(fd) {}
  Socket(Socket &&other) noexcept : fd(other.release()) {}
  Socket &operator=(Socket &&other) noexcept;
  ~Socket() { close(); }
  int get() const { return fd; }
  bool open() const { return fd >= 0; }
  int release();
  void close();

private:
  int fd = -1;
};

/// Where a socket listens: an address family and bytes, as peers can be told.
struct PeerAddress {
  sockaddr_storage storage = {};
  uint32_t length = 0;
};

/// Listens on `port` (0: any) of all interfaces, or of the loopback one. Not blocking.
Expected<Socket> listenOn(uint16_t port, bool loopbackOnly);
uint16_t portOf(const Socket &socket);
PeerAddress peerOf(const Socket &socket);
uint16_t portIn(const PeerAddress &address);
void setPort(PeerAddress &address, uint16_t port);

/// Numeric addresses of this machine's interfaces that other machines may reach.
std::vector<std::string> interfaceAddresses();

/// One try each; an unconnected Socket if nobody is there. Not blocking once connected.
Socket connectTo(const PeerAddress &address, const Deadline &deadline);
/// The same by name; every address that the name has is tried.
Socket connectTo(const std::string &host, uint16_t port, const Deadline &deadline);
/// The next connection, or an unconnected Socket if none comes before the deadline.
Socket acceptOn(const Socket &listener, const Deadline &deadline);

/// All bytes, or false when the peer is gone or the deadline has passed.
bool sendAll(const Socket &socket, const void *data, size_t bytes, const Deadline &deadline);
bool receiveAll(const Socket &socket, void *data, size_t bytes, const Deadline &deadline);

} // namespace moira::rt

#endif // MOIRA_RT_COMM_TCPSOCKET_H
