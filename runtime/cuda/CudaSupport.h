//===- CudaSupport.h - errors and memory of a CUDA device -------*- C++ -*-===//
// Statuses made of CUDA's codes, owned device and pinned memory that is counted, streams and
// events.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_CUDASUPPORT_H
#define MOIRA_RT_CUDA_CUDASUPPORT_H

#include "moira/rt/Memory.h"

#include <cuda_runtime_api.h>
#include <memory>

namespace moira::rt::cuda {

/// "cuda:0 (NVIDIA H200)" for the calling thread's device.
std::string deviceText();

/// DeviceFailed "cuda:0 (…): an illegal memory access was encountered (700) in <where>"; success
/// for cudaSuccess.
Status check(cudaError_t code, const std::string &where);

/// Bytes of the device memory blocks alive of one rank, and their peak.
struct DeviceBytes {
  uint64_t now = 0, peak = 0;
};

/// Zero-filled device memory of exactly `bytes`, aligned to 256. The counter, if any, outlives it.
class DeviceBlock {
public:
  DeviceBlock() = default;
  DeviceBlock(DeviceBlock &&other) noexcept { *this = std::move(other); }
  DeviceBlock &operator=(DeviceBlock &&other) noexcept;
  ~DeviceBlock() { release(); }
  /// OutOfMemory with the device's numbers; `what` names the use.
  static Expected<DeviceBlock> allocate(uint64_t bytes, const std::string &what,
                                        DeviceBytes *counter = nullptr);
  void release();
  char *data() const { return base; }
  uint64_t bytes() const { return size; }

private:
  char *base = nullptr;
  uint64_t size = 0;
  DeviceBytes *counter = nullptr;
};

/// Page-locked host memory that the device can read and write, zero-filled.
class PinnedBlock {
public:
  PinnedBlock() = default;
  PinnedBlock(PinnedBlock &&other) noexcept { *this = std::move(other); }
  PinnedBlock &operator=(PinnedBlock &&other) noexcept;
  ~PinnedBlock();
  static Expected<PinnedBlock> allocate(uint64_t bytes, const std::string &what);
  char *data() const { return base; }
  template <typename T> T *as() const { return reinterpret_cast<T *>(base); }

private:
  char *base = nullptr;
};

/// An owned event. `timed` ones can be subtracted.
class Event {
public:
  Event() = default;
  Event(Event &&other) noexcept : event(std::exchange(other.event, nullptr)) {}
  Event &operator=(Event &&other) noexcept {
    std::swap(event, other.event);
    return *this;
  }
  ~Event() {
    if (event)
      cudaEventDestroy(event);
  }
  static Expected<Event> make(bool timed = false);
  cudaEvent_t get() const { return event; }

private:
  cudaEvent_t event = nullptr;
};

/// An owned stream that does not wait for the default one.
class Stream {
public:
  Stream() = default;
  Stream(Stream &&other) noexcept : stream(std::exchange(other.stream, nullptr)) {}
  Stream &operator=(Stream &&other) noexcept {
    std::swap(stream, other.stream);
    return *this;
  }
  ~Stream() {
    if (stream)
      cudaStreamDestroy(stream);
  }
  static Expected<Stream> make();
  cudaStream_t get() const { return stream; }

private:
  cudaStream_t stream = nullptr;
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_CUDASUPPORT_H
