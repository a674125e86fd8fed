//===- TcpSocket.cpp - owned sockets with deadlines -------------------------===//
// See TcpSocket.h.
//===----------------------------------------------------------------------===//
#include "TcpSocket.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

namespace moira::rt {

namespace {

constexpr int pollSlice = 200; // milliseconds

void prepare(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

/// Waits until `fd` is ready for `events` or in error; false when the deadline passes first.
bool waitFor(int fd, short events, const Deadline &deadline) {
  while (!deadline.passed()) {
    pollfd entry{fd, events, 0};
    int ready = poll(&entry, 1, deadline.pollTime(pollSlice));
    if (ready > 0)
      return true;
    if (ready < 0 && errno != EINTR)
      return false;
  }
  return false;
}

} // namespace

int Deadline::pollTime(int most) const {
  if (!limited)
    return most;
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(at - Clock::now()).count() + 1;
  return int(std::clamp<int64_t>(left, 0, most));
}

Socket &Socket::operator=(Socket &&other) noexcept {
  if (this != &other) {
    close();
    fd = other.release();
  }
  return *this;
}

int Socket::release() {
  int was = fd;
  fd = -1;
  return was;
}

void Socket::close() {
  if (fd >= 0)
    ::close(fd);
  fd = -1;
}

Expected<Socket> listenOn(uint16_t port, bool loopbackOnly) {
  int lastError = 0;
  // One socket for both families where the machine has IPv6, otherwise IPv4 alone.
  for (int family : {AF_INET6, AF_INET}) {
    if (loopbackOnly && family == AF_INET6)
      continue;
    Socket socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket.open()) {
      lastError = errno;
      continue;
    }
    int on = 1, off = 0;
    setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    PeerAddress address;
    if (family == AF_INET6) {
      setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
      auto *in = reinterpret_cast<sockaddr_in6 *>(&address.storage);
      in->sin6_family = AF_INET6;
      in->sin6_addr = in6addr_any;
      address.length = sizeof *in;
    } else {
      auto *in = reinterpret_cast<sockaddr_in *>(&address.storage);
      in->sin_family = AF_INET;
      in->sin_addr.s_addr = htonl(loopbackOnly ? INADDR_LOOPBACK : INADDR_ANY);
      address.length = sizeof *in;
    }
    setPort(address, port);
    if (bind(socket.get(), reinterpret_cast<sockaddr *>(&address.storage), address.length) == 0 &&
        listen(socket.get(), SOMAXCONN) == 0) {
      prepare(socket.get());
      return socket;
    }
    lastError = errno;
  }
  return Status(ErrorId::RankFailed,
                format("cannot listen on TCP port %u: %s", port, std::strerror(lastError)));
}

uint16_t portOf(const Socket &socket) {
  PeerAddress address;
  socklen_t length = sizeof address.storage;
  if (getsockname(socket.get(), reinterpret_cast<sockaddr *>(&address.storage), &length) != 0)
    return 0;
  return portIn(address);
}

uint16_t portIn(const PeerAddress &address) {
  return ntohs(address.storage.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6 *>(&address.storage)->sin6_port
                   : reinterpret_cast<const sockaddr_in *>(&address.storage)->sin_port);
}

PeerAddress peerOf(const Socket &socket) {
  PeerAddress address;
  socklen_t length = sizeof address.storage;
  if (getpeername(socket.get(), reinterpret_cast<sockaddr *>(&address.storage), &length) == 0)
    address.length = length;
  return address;
}

void setPort(PeerAddress &address, uint16_t port) {
  if (address.storage.ss_family == AF_INET6)
    reinterpret_cast<sockaddr_in6 *>(&address.storage)->sin6_port = htons(port);
  else
    reinterpret_cast<sockaddr_in *>(&address.storage)->sin_port = htons(port);
}

std::vector<std::string> interfaceAddresses() {
  std::vector<std::string> list;
  ifaddrs *first = nullptr;
  if (getifaddrs(&first) != 0)
    return list;
  for (ifaddrs *i = first; i; i = i->ifa_next) {
    if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK))
      continue;
    int family = i->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6)
      continue;
    socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    char text[NI_MAXHOST];
    if (getnameinfo(i->ifa_addr, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0)
      list.push_back(text);
  }
  freeifaddrs(first);
  return list;
}

Socket connectTo(const PeerAddress &address, const Deadline &deadline) {
  Socket socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.open())
    return {};
  prepare(socket.get());
  int result =
      connect(socket.get(), reinterpret_cast<const sockaddr *>(&address.storage), address.length);
  if (result != 0 && errno != EINPROGRESS)
    return {};
  int error = 0;
  socklen_t length = sizeof error;
  if (result != 0 &&
      (!waitFor(socket.get(), POLLOUT, deadline) ||
       getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0))
    return {};
  return socket;
}

Socket connectTo(const std::string &host, uint16_t port, const Deadline &deadline) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0)
    return {};
  Socket socket;
  for (addrinfo *a = found; a && !socket.open(); a = a->ai_next) {
    PeerAddress address;
    std::memcpy(&address.storage, a->ai_addr, a->ai_addrlen);
    address.length = a->ai_addrlen;
    socket = connectTo(address, deadline);
  }
  freeaddrinfo(found);
  return socket;
}

Socket acceptOn(const Socket &listener, const Deadline &deadline) {
  while (waitFor(listener.get(), POLLIN, deadline)) {
    Socket socket(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.open()) {
      prepare(socket.get());
      return socket;
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
      return {};
  }
  return {};
}

bool sendAll(const Socket &socket, const void *data, size_t bytes, const Deadline &deadline) {
  const char *at = static_cast<const char *>(data);
  while (bytes > 0) {
    ssize_t n = send(socket.get(), at, bytes, MSG_NOSIGNAL);
    if (n > 0) {
      at += n;
      bytes -= size_t(n);
    } else if (n < 0 && errno == EAGAIN) {
      if (!waitFor(socket.get(), POLLOUT, deadline))
        return false;
    } else if (n == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool receiveAll(const Socket &socket, void *data, size_t bytes, const Deadline &deadline) {
  char *at = static_cast<char *>(data);
  while (bytes > 0) {
    ssize_t n = recv(socket.get(), at, bytes, 0);
    if (n > 0) {
      at += n;
      bytes -= size_t(n);
    } else if (n < 0 && errno == EAGAIN) {
      if (!waitFor(socket.get(), POLLIN, deadline))
        return false;
    } else if (n == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

} // namespace moira::rt
