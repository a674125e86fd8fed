//===- CudaSupport.cpp - errors and memory of a CUDA device -----------------===//
// See CudaSupport.h.
//===----------------------------------------------------------------------===//
#include "CudaSupport.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace moira::rt::cuda {

std::string deviceText() {
  int device = 0;
  cudaDeviceProp properties;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaGetDeviceProperties(&properties, device) != cudaSuccess)
    return "cuda";
  return format("cuda:%d (%s)", device, properties.name);
}

Status check(cudaError_t code, const std::string &where) {
  if (code == cudaSuccess)
    return {};
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError(); // it is no failure of the device
    return Status(ErrorId::OutOfMemory,
                  format("%s has no memory left for %s", deviceText().c_str(), where.c_str()));
  }
  return Status(ErrorId::DeviceFailed,
                format("%s: %s (%d) in %s", deviceText().c_str(), cudaGetErrorString(code),
                       static_cast<int>(code), where.c_str()));
}

DeviceBlock &DeviceBlock::operator=(DeviceBlock &&other) noexcept {
  if (this == &other)
    return *this;
  release();
  base = std::exchange(other.base, nullptr);
  size = std::exchange(other.size, 0);
  counter = std::exchange(other.counter, nullptr);
  return *this;
}

Expected<DeviceBlock> DeviceBlock::allocate(uint64_t bytes, const std::string &what,
                                            DeviceBytes *counter) {
  DeviceBlock block;
  if (bytes == 0)
    return block;
  size_t free = 0, total = 0;
  if (Status s = check(cudaMemGetInfo(&free, &total), what); !s)
    return s;
  void *data = nullptr;
  cudaError_t code = cudaMalloc(&data, bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError(); // it is no failure of the device
    return Status(ErrorId::OutOfMemory,
                  format("%s needs %llu bytes (%s) on %s, %s of %s are free; use more ranks, a "
                         "smaller batch, or a smaller --ragged-bound",
                         what.c_str(), static_cast<unsigned long long>(bytes),
                         byteText(bytes).c_str(), deviceText().c_str(), byteText(free).c_str(),
                         byteText(total).c_str()));
  }
  if (Status s = check(code, what); !s)
    return s;
  block.base = static_cast<char *>(data);
  block.size = bytes;
  block.counter = counter;
  if (counter) {
    counter->now += bytes;
    counter->peak = std::max(counter->peak, counter->now);
  }
  // Our streams do not wait for the default one, on which this runs.
  cudaError_t cleared = cudaMemset(data, 0, bytes);
  if (cleared == cudaSuccess)
    cleared = cudaStreamSynchronize(nullptr);
  if (Status s = check(cleared, what); !s)
    return s;
  return block;
}

void DeviceBlock::release() {
  if (!base)
    return;
  cudaFree(base);
  if (counter)
    counter->now -= size;
  base = nullptr;
  size = 0;
}

PinnedBlock &PinnedBlock::operator=(PinnedBlock &&other) noexcept {
  std::swap(base, other.base);
  return *this;
}

PinnedBlock::~PinnedBlock() {
  if (base)
    cudaFreeHost(base);
}

Expected<PinnedBlock> PinnedBlock::allocate(uint64_t bytes, const std::string &what) {
  PinnedBlock block;
  void *data = nullptr;
  cudaError_t code = cudaHostAlloc(&data, std::max<uint64_t>(bytes, 1), cudaHostAllocMapped);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return Status(ErrorId::OutOfMemory,
                  format("%s needs %s of page-locked host memory, the system does not give it",
                         what.c_str(), byteText(bytes).c_str()));
  }
  if (Status s = check(code, what); !s)
    return s;
  block.base = static_cast<char *>(data);
  std::memset(data, 0, bytes);
  return block;
}

Expected<Event> Event::make(bool timed) {
  Event event;
  cudaError_t code =
      cudaEventCreateWithFlags(&event.event, timed ? cudaEventDefault : cudaEventDisableTiming);
  if (Status s = check(code, "making an event"); !s)
    return s;
  return event;
}

Expected<Stream> Stream::make() {
  Stream stream;
  if (Status s = check(cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking),
                       "making a stream");
      !s)
    return s;
  return stream;
}

} // namespace moira::rt::cuda
