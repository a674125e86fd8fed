//===- FakeCuda.cpp - the CUDA runtime without a device ---------------------===//
// See FakeCuda.h. NCCL is in FakeNccl.cpp.
//===----------------------------------------------------------------------===//
#include "FakeCuda.h"
#include "FakeStreams.h"

#include "../../runtime/cuda/CudaCalls.h"
#include "../../runtime/cuda/Mark.h"

#include "moira/rt/Box.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <map>
#include <mutex>
#include <random>

namespace moira::test::fake {

namespace {

struct Kernel {
  void *code;
  int operands;
};

struct Device {
  std::mutex mutex;
  std::vector<Stream *> streams;
  std::map<void *, uint64_t> blocks;
  uint64_t inUse = 0;
  bool broken = false;
};

std::mutex globalMutex;
std::map<std::string, Kernel> kernels;
std::mt19937_64 random_;
uint64_t memory = UINT64_MAX / 2;
std::atomic<int> launches = 0, failingLaunch = 0, graphs = 0, settled = 0;
std::atomic<bool> callsNotice = false;
Device devices[16];
thread_local int current = 0;

Device &device() { return devices[current]; }

uint64_t pick(uint64_t n) {
  std::lock_guard lock(globalMutex);
  return random_() % n;
}

/// Runs some work of this device's streams: each try takes the next piece of a random one.
void advance(int tries) {
  Device &d = device();
  for (int i = 0; i < tries; ++i) {
    std::unique_lock lock(d.mutex);
    if (d.streams.empty() || d.broken)
      return;
    Stream &s = *d.streams[pick(d.streams.size())];
    if (s.work.empty())
      continue;
    Work work = s.work.front();
    lock.unlock(); // a rank has one thread, so nobody else takes it
    if (work()) {
      lock.lock();
      s.work.pop_front();
    }
  }
}

bool idle(Stream *only) {
  std::lock_guard lock(device().mutex);
  for (Stream *s : device().streams)
    if ((!only || s == only) && !s->work.empty())
      return false;
  return true;
}

cudaError_t drain(Stream *only) {
  while (!idle(only)) {
    if (device().broken)
      return cudaErrorIllegalAddress;
    advance(8);
  }
  return cudaSuccess;
}

} // namespace

void seed(uint64_t value) { random_.seed(value); }
void addKernel(const std::string &name, void *code, int operands) {
  kernels[name] = {code, operands};
}
void setMemory(uint64_t bytes) { memory = bytes; }
void failAtLaunch(int n, bool noticed) {
  failingLaunch = n;
  callsNotice = noticed;
  launches = 0;
  for (Device &d : devices) {
    d.broken = false;
    for (Stream *s : d.streams) // what runners leave behind that have failed
      s->work.clear();
  }
}
int graphLaunches() { return graphs; }
uint64_t allocated() {
  uint64_t sum = 0;
  for (Device &d : devices)
    sum += d.inUse;
  return sum;
}

void enqueue(void *stream, Work work) {
  Stream &s = *static_cast<Stream *>(stream);
  if (s.capture) {
    s.capture->push_back(std::move(work));
    return;
  }
  std::lock_guard lock(device().mutex);
  s.work.push_back(std::move(work));
}

/// Lets `look` see what is there before the last work of the stream, if that is still to be done.
bool beforeLast(void *stream, std::function<void()> look) {
  Stream &s = *static_cast<Stream *>(stream);
  Work *last = nullptr;
  std::lock_guard lock(device().mutex);
  if (s.capture)
    last = s.capture->empty() ? nullptr : &s.capture->back();
  else
    last = s.work.empty() ? nullptr : &s.work.back();
  if (last)
    *last = [look, work = std::move(*last)] { return look(), work(); };
  return last;
}

int settledInputs() { return settled; }

} // namespace moira::test::fake

using namespace moira::test;
using fake::device;

namespace {

struct FakeEvent {
  std::atomic<uint64_t> asked = 0, reached = 0;
};
struct Graph {
  std::vector<fake::Work> work;
};

FakeEvent &of(cudaEvent_t event) { return *reinterpret_cast<FakeEvent *>(event); }
fake::Stream &of(cudaStream_t stream) { return *reinterpret_cast<fake::Stream *>(stream); }

CUresult moduleLoad(CUmodule *module, const void *, unsigned, CUjit_option *, void **) {
  *module = reinterpret_cast<CUmodule>(&fake::kernels);
  return CUDA_SUCCESS;
}
CUresult moduleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult getFunction(CUfunction *function, CUmodule, const char *name) {
  auto it = fake::kernels.find(name);
  if (it == fake::kernels.end())
    return CUDA_ERROR_NOT_FOUND;
  *function = reinterpret_cast<CUfunction>(&it->second);
  return CUDA_SUCCESS;
}
CUresult errorString(CUresult, const char **text) {
  *text = "fake";
  return CUDA_SUCCESS;
}
template <size_t... I>
void callWith(void *code, const std::vector<void *> &o, int64_t rows, std::index_sequence<I...>) {
  auto pointer = [&](size_t i) { return i < o.size() ? o[i] : nullptr; };
  (void)pointer;
  reinterpret_cast<void (*)(decltype(I, (void *)nullptr)..., int64_t)>(code)(o[I]..., rows);
}
template <size_t N = 0> void callKernel(void *code, const std::vector<void *> &o, int64_t rows) {
  if constexpr (N <= 16) {
    if (o.size() == N)
      return callWith(code, o, rows, std::make_index_sequence<N>());
    callKernel<N + 1>(code, o, rows);
  }
}
CUresult launchKernel(const CUlaunchConfig *config, CUfunction function, void **params, void **) {
  if (config->gridDimX == 0 || config->blockDimX == 0)
    return CUDA_ERROR_INVALID_VALUE;
  fake::Kernel kernel = *reinterpret_cast<fake::Kernel *>(function);
  std::vector<void *> operands;
  for (int i = 0; i < kernel.operands; ++i)
    operands.push_back(*static_cast<void **>(params[i]));
  int64_t rows = *static_cast<int64_t *>(params[kernel.operands]);
  int number = ++fake::launches;
  fake::enqueue(config->hStream, [=] {
    if (fake::failingLaunch && number >= fake::failingLaunch) {
      device().broken = true;
      return false;
    }
    callKernel(kernel.code, operands, rows);
    return true;
  });
  return CUDA_SUCCESS;
}

} // namespace

// --- the CUDA runtime
// ------------------------------------------------------------------------------
extern "C" {
cudaError_t cudaSetDevice(int d) {
  fake::current = d;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *d) {
  *d = fake::current;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
  *value = 4;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
  std::strcpy(p->name, "fake device");
  return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t) { return "a fake error"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *total = fake::memory;
  *free = fake::memory - device().inUse;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void **data, size_t bytes) {
  std::lock_guard lock(device().mutex);
  if (device().inUse + bytes > fake::memory)
    return cudaErrorMemoryAllocation;
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*data, 0xee, bytes);
  device().blocks[*data] = bytes;
  device().inUse += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void *data) {
  if (!data)
    return cudaSuccess;
  fake::drain(nullptr);
  std::lock_guard lock(device().mutex);
  auto it = device().blocks.find(data);
  if (it == device().blocks.end())
    return cudaErrorInvalidValue;
  std::memset(data, 0xdd, it->second);
  device().inUse -= it->second;
  device().blocks.erase(it);
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *data) {
  std::lock_guard lock(device().mutex);
  *attributes = {};
  for (const auto &[begin, bytes] : device().blocks)
    if (data >= begin && data < static_cast<const char *>(begin) + bytes)
      attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned) {
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void *data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *data, int value, size_t bytes) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream) {
  fake::enqueue(stream, [=] { return std::memset(data, value, bytes), true; });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  fake::enqueue(stream, [=] { return std::memmove(to, from, bytes), true; });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  auto *made = new fake::Stream;
  std::lock_guard lock(device().mutex);
  device().streams.push_back(made);
  *stream = reinterpret_cast<cudaStream_t>(made);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  fake::drain(&of(stream));
  std::lock_guard lock(device().mutex);
  std::erase(device().streams, &of(stream));
  delete &of(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream ? fake::drain(&of(stream)) : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (of(stream).capture)
    return cudaErrorStreamCaptureIsolation;
  uint64_t asked = of(event).asked;
  fake::enqueue(stream, [=] { return of(event).reached >= asked; });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new FakeEvent);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  uint64_t number = ++of(event).asked;
  fake::enqueue(stream, [=] { return of(event).reached = number, true; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (device().broken)
    return cudaErrorIllegalAddress;
  fake::advance(4);
  return of(event).reached >= of(event).asked ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  cudaError_t code;
  while ((code = cudaEventQuery(event)) == cudaErrorNotReady)
    ;
  return code;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *data) {
  if (of(stream).capture)
    return cudaErrorStreamCaptureUnsupported;
  fake::enqueue(stream, [=] { return fn(data), true; });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  of(stream).capture = std::make_unique<std::vector<fake::Work>>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{std::move(*of(stream).capture)});
  of(stream).capture.reset();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph *>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph *>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Graph *>(exec);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++fake::graphs;
  for (const fake::Work &work : reinterpret_cast<Graph *>(exec)->work)
    fake::enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **address, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
  static const std::map<std::string, void *> table = {
      {"cuModuleLoadDataEx", reinterpret_cast<void *>(&moduleLoad)},
      {"cuModuleUnload", reinterpret_cast<void *>(&moduleUnload)},
      {"cuModuleGetFunction", reinterpret_cast<void *>(&getFunction)},
      {"cuLaunchKernelEx", reinterpret_cast<void *>(&launchKernel)},
      {"cuGetErrorString", reinterpret_cast<void *>(&errorString)}};
  auto it = table.find(symbol);
  *result = it == table.end() ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  *address = it == table.end() ? nullptr : it->second;
  return cudaSuccess;
}
} // extern "C"

// --- library calls
// ---------------------------------------------------------------------------------
namespace moira::rt::cuda {

Expected<cublasLtHandle_t> createBlasLt() { return Status(ErrorId::Internal, "not here"); }
void destroyBlasLt(cublasLtHandle_t) {}
Expected<cudnnHandle_t> createCudnn() { return Status(ErrorId::Internal, "not here"); }
void destroyCudnn(cudnnHandle_t) {}

cudaError_t enqueueMark(uint32_t *slot, uint32_t value, cudaStream_t stream) {
  test::fake::enqueue(stream, [=] { return *slot = value, true; });
  return cudaSuccess;
}

Status runCudaCall(std::string_view name, std::span<const TensorRef> inputs,
                   std::span<const TensorRef> outputs, const CallParams &params,
                   CallContext &context) {
  if (test::fake::callsNotice && test::fake::drain(nullptr) != cudaSuccess)
    return Status(ErrorId::DeviceFailed, "a library fails");
  // What may be read early must not change in the meantime.
  using Early = std::vector<std::pair<TensorRef, std::string>>;
  auto early = std::make_shared<Early>();
  auto bytesAt = [](const TensorRef &t) {
    return std::string(static_cast<const char *>(t.data), size_t(t.elements()) * bytesOf(t.dtype));
  };
  for (size_t i = 0; i < inputs.size(); ++i)
    if (i < 32 && (context.settled >> i & 1))
      early->emplace_back(inputs[i], std::string());
  test::fake::settled += int(early->size());
  if (!test::fake::beforeLast(context.stream, [early, bytesAt] {
        for (auto &[input, bytes] : *early)
          bytes = bytesAt(input);
      }))
    early->clear();
  test::fake::enqueue(context.stream, [name = std::string(name),
                                       in = std::vector<TensorRef>(inputs.begin(), inputs.end()),
                                       out = std::vector<TensorRef>(outputs.begin(), outputs.end()),
                                       params, context, early, bytesAt] {
    for (auto &[input, bytes] : *early)
      if (bytes != bytesAt(input))
        *context.errorFlag = 2;
    RouteHooks hooks;
    std::vector<float> gaps;
    if (context.forcedIds)
      hooks.forcedIds = {context.forcedIds, static_cast<size_t>(out[0].elements())};
    if (context.gaps)
      hooks.gaps = &gaps;
    if (!runHostCall(name, CallFlavor::fast, in, out, params, &hooks))
      *context.errorFlag = 1;
    if (context.gaps)
      std::copy(gaps.begin(), gaps.end(), context.gaps);
    return true;
  });
  return {};
}

Status runCudaCopy(const Box &to, void *dst, const Box &from, const void *src, size_t bytes,
                   CallContext &context) {
  test::fake::enqueue(context.stream, [=] { return copyBox(to, dst, from, src, bytes), true; });
  return {};
}

Status runCudaFill(const TensorRef &out, double value, CallContext &context) {
  test::fake::enqueue(context.stream, [=] {
    if (out.dtype == fb::DType::i32)
      std::fill_n(static_cast<int32_t *>(out.data), out.elements(), static_cast<int32_t>(value));
    else
      for (int64_t i = 0; i < out.elements(); ++i)
        convertRun(static_cast<char *>(out.data) + i * bytesOf(out.dtype), out.dtype, &value,
                   fb::DType::f64, 1);
    return true;
  });
  return {};
}

std::string describeErrorFlag(int32_t code) { return format("complaint %d", code); }

} // namespace moira::rt::cuda
