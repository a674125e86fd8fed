//===- CudaPlugin.cpp - what libmoira_cuda.so offers ------------------------===//
// See DevicePlugin.h. The description for doctor is here; the work is CudaRunner.h's and
// SelfTest.h's.
//===----------------------------------------------------------------------===//
#include "CudaRunner.h"
#include "SelfTest.h"

#include <nccl.h>

namespace moira::rt::cuda {

namespace {

std::string versionText(int number) { return format("%d.%d", number / 1000, number % 1000 / 10); }

class CudaPlugin final : public DevicePlugin {
public:
  Expected<int> deviceCount() override {
    int count = 0;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count > 0)
      return count;
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    return Status(ErrorId::DeviceUnavailable,
                  format("no GPU can be used: %s (%d); CUDA runtime %s, driver's CUDA %s; look at "
                         "nvidia-smi and CUDA_VISIBLE_DEVICES, or compile with --target=host",
                         cudaGetErrorString(code == cudaSuccess ? cudaErrorNoDevice : code),
                         static_cast<int>(code), versionText(runtime).c_str(),
                         driver ? versionText(driver).c_str() : "not there"));
  }

  Expected<std::unique_ptr<ProgramRunner>> create(const ExecutorSetup &setup,
                                                  const DeviceSetup &device) override {
    return makeRunner(setup, device);
  }

  std::vector<std::string> describe() override {
    std::vector<std::string> lines;
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    lines.push_back(format("runtime %s, driver %s", versionText(runtime).c_str(),
                           driver ? ("for CUDA " + versionText(driver)).c_str() : "not found"));
    Expected<int> count = deviceCount();
    if (!count) {
      lines.push_back(count.status().diagnostics().front().message);
      return lines;
    }
    for (int d = 0; d < *count; ++d)
      lines.push_back(deviceLine(d));
    for (int a = 0; a < *count; ++a) {
      std::string peers;
      for (int b = 0; b < *count; ++b) {
        int access = 0, rank = 0;
        if (a == b || cudaDeviceCanAccessPeer(&access, a, b) != cudaSuccess || !access)
          continue;
        cudaDeviceGetP2PAttribute(&rank, cudaDevP2PAttrPerformanceRank, a, b);
        peers += format("%s%d (performance rank %d)", peers.empty() ? "" : ", ", b, rank);
      }
      if (*count > 1)
        lines.push_back(
            format("device %d reaches directly: %s", a, peers.empty() ? "none" : peers.c_str()));
    }
    if (Expected<cublasLtHandle_t> handle = createBlasLt()) {
      lines.push_back("cuBLASLt loads");
      destroyBlasLt(*handle);
    } else {
      lines.push_back("cuBLASLt: " + handle.status().diagnostics().front().message +
                      "; dense products use Moira's own kernels");
    }
    if (Expected<cudnnHandle_t> handle = createCudnn()) {
      lines.push_back("cuDNN loads");
      destroyCudnn(*handle);
    } else {
      lines.push_back("cuDNN: " + handle.status().diagnostics().front().message +
                      "; attention uses Moira's own kernels");
    }
    Expected<const NcclLibrary *> nccl = NcclLibrary::get();
    lines.push_back(nccl ? format("NCCL %s (%s), built for %d.%d.%d", (*nccl)->version.c_str(),
                                  (*nccl)->path.c_str(), NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH)
                         : "NCCL: " + nccl.status().diagnostics().front().message);
    return lines;
  }

  Expected<std::vector<std::string>> selfTest(Communicator &communicator,
                                              const DeviceSetup &device) override {
    return testCollectives(communicator, device);
  }

private:
  std::string deviceLine(int device) {
    cudaDeviceProp p;
    if (cudaError_t code = cudaGetDeviceProperties(&p, device); code != cudaSuccess)
      return format("device %d: %s", device, cudaGetErrorString(code));
    size_t free = 0, total = 0;
    cudaSetDevice(device);
    cudaMemGetInfo(&free, &total);
    return format("device %d: %s, compute capability %d.%d, %s (%s free), %d multiprocessors, "
                  "%d KiB shared memory a block",
                  device, p.name, p.major, p.minor, byteText(total).c_str(), byteText(free).c_str(),
                  p.multiProcessorCount, static_cast<int>(p.sharedMemPerBlockOptin / 1024));
  }
};

} // namespace
} // namespace moira::rt::cuda

extern "C" __attribute__((visibility("default"))) int moiraDevicePluginVersion() {
  return moira::rt::devicePluginVersion;
}

extern "C" __attribute__((visibility("default"))) moira::rt::DevicePlugin *moiraDevicePlugin() {
  static moira::rt::cuda::CudaPlugin plugin;
  return &plugin;
}
