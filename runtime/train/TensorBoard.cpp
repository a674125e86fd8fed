//===- TensorBoard.cpp - event files --------------------------------------===//
// The few fields of three protocol buffers that scalars need, encoded by hand. See Metrics.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Metrics.h"
#include "moira/rt/PlanFile.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::rt {
namespace {

/// Appends fields of a protocol buffer message.
class Message {
public:
  std::string bytes;

  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7)
      bytes += static_cast<char>(value | 0x80);
    bytes += static_cast<char>(value);
  }
  void integer(int field, uint64_t value) {
    varint(static_cast<uint64_t>(field) << 3);
    varint(value);
  }
  void real64(int field, double value) { fixed(field, 1, &value, sizeof value); }
  void real32(int field, float value) { fixed(field, 5, &value, sizeof value); }
  void text(int field, const std::string &value) {
    varint(static_cast<uint64_t>(field) << 3 | 2);
    varint(value.size());
    bytes += value;
  }

private:
  void fixed(int field, int wireType, const void *value, size_t size) {
    varint(static_cast<uint64_t>(field << 3 | wireType));
    bytes.append(static_cast<const char *>(value), size); // little-endian, as plans
  }
};

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

uint32_t maskedCrc(const void *data, size_t size) {
  uint32_t crc = crc32c({static_cast<const uint8_t *>(data), size});
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

Status cannotWrite(const std::string &path) {
  return Status(ErrorId::CannotWrite, path + ": " + std::strerror(errno));
}

} // namespace

Expected<TensorBoard> TensorBoard::open(const std::string &directory) {
  if (mkdir(directory.c_str(), 0777) != 0 && errno != EEXIST)
    return cannotWrite(directory);
  char host[256] = "localhost";
  (void)gethostname(host, sizeof host - 1);
  TensorBoard board;
  std::string path = directory + format("/events.out.tfevents.%lld.%s.%d", (long long)now(), host,
                                        static_cast<int>(getpid()));
  Expected<RecordFile> file = RecordFile::open(path, 0);
  if (!file)
    return file.takeStatus();
  board.file = std::move(*file);
  Message event;
  event.real64(1, now());
  event.text(3, "brain.Event:2"); // file_version
  if (Status status = board.record(event.bytes); !status)
    return status;
  return board;
}

Status TensorBoard::write(const StepMetrics &metrics) {
  Message summary;
  for (const auto &[name, value] : metrics.values) {
    Message scalar;
    scalar.text(1, name);
    scalar.real32(2, static_cast<float>(value));
    summary.text(1, scalar.bytes);
  }
  Message event;
  event.real64(1, now());
  event.integer(2, metrics.step);
  event.text(5, summary.bytes);
  return record(event.bytes);
}

Status TensorBoard::record(const std::string &event) {
  uint64_t length = event.size();
  uint32_t ofLength = maskedCrc(&length, sizeof length),
           ofEvent = maskedCrc(event.data(), event.size());
  std::string bytes;
  bytes.append(reinterpret_cast<const char *>(&length), sizeof length);
  bytes.append(reinterpret_cast<const char *>(&ofLength), sizeof ofLength);
  bytes += event;
  bytes.append(reinterpret_cast<const char *>(&ofEvent), sizeof ofEvent);
  return file.append(bytes);
}

} // namespace moira::rt
