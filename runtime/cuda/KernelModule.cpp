//===- KernelModule.cpp - a plan's generated kernels on a device ------------===//
// See KernelModule.h. The driver's functions are looked up at run time, so that nothing here links
// libcuda.
//===----------------------------------------------------------------------===//
#include "KernelModule.h"

#include "moira/rt/Binding.h"
#include "moira/rt/SafeTensors.h"

#include "CudaSupport.h"

#include <algorithm>
#include <cstdlib>

namespace moira::rt::cuda {

namespace {

/// The driver's entry points that are used here.
struct Driver {
  decltype(&cuModuleLoadDataEx) moduleLoadDataEx = nullptr;
  decltype(&cuModuleUnload) moduleUnload = nullptr;
  decltype(&cuModuleGetFunction) moduleGetFunction = nullptr;
  decltype(&cuLaunchKernelEx) launchKernel = nullptr;
  decltype(&cuGetErrorString) getErrorString = nullptr;

  static const Driver *get() {
    static const Driver driver = [] {
      Driver d;
      bool all = d.find("cuModuleLoadDataEx", d.moduleLoadDataEx) &&
                 d.find("cuModuleUnload", d.moduleUnload) &&
                 d.find("cuModuleGetFunction", d.moduleGetFunction) &&
                 d.find("cuLaunchKernelEx", d.launchKernel) &&
                 d.find("cuGetErrorString", d.getErrorString);
      return all ? d : Driver();
    }();
    return driver.launchKernel ? &driver : nullptr;
  }

  std::string text(CUresult code) const {
    const char *words = nullptr;
    getErrorString(code, &words);
    return format("%s (%d)", words ? words : "unknown error", static_cast<int>(code));
  }

private:
  template <typename Fn> bool find(const char *name, Fn &fn) {
    void *address = nullptr;
    cudaDriverEntryPointQueryResult result;
    constexpr unsigned kCuda12 = 12000;
    if (cudaGetDriverEntryPointByVersion(name, &address, kCuda12, cudaEnableDefault, &result) !=
            cudaSuccess ||
        result != cudaDriverEntryPointSuccess)
      return false;
    fn = reinterpret_cast<Fn>(address);
    return true;
  }
};

/// From `.entry name(` up to the next entry; empty if there is none.
std::string_view textOf(std::string_view ptx, const std::string &name) {
  for (size_t at = 0; (at = ptx.find(".entry " + name, at)) != std::string_view::npos; ++at) {
    char after = at + 7 + name.size() < ptx.size() ? ptx[at + 7 + name.size()] : ' ';
    if (after != '(' && after != ' ' && after != '\n')
      continue; // another kernel whose name starts with this one's
    return ptx.substr(at, ptx.find(".entry ", at + 7) - at);
  }
  return {};
}

/// The block size that a kernel's `.reqntid x` asks for; 0 if it has no such line.
unsigned threadsOf(std::string_view text) {
  size_t words = text.find(".reqntid");
  if (words == std::string_view::npos || words > text.find('{'))
    return 0;
  std::string number(text.substr(words + 8, 16));
  return static_cast<unsigned>(std::strtoul(number.c_str(), nullptr, 10));
}

/// Blocks that a launch may have.
constexpr int64_t kMostGrid = INT32_MAX;

int64_t pointsPerRow(const fb::Kernel &kernel) {
  int64_t most = 1;
  for (const fb::KernelOperand *operand : *kernel.operands()) {
    if (!operand->output() || !operand->rowwise())
      continue;
    int64_t points = 1;
    for (size_t d = 0; d + 1 < operand->inner()->size(); ++d)
      points *= operand->inner()->Get(d);
    most = std::max(most, points);
  }
  return most;
}

} // namespace

Expected<std::unique_ptr<KernelModule>> KernelModule::load(const PlanFile &file) {
  const fb::Plan &plan = file.plan();
  if (!Driver::get())
    return Status(ErrorId::DeviceUnavailable,
                  "the CUDA driver lacks functions of CUDA 12; install a newer driver");
  int device = 0, multiprocessors = 1;
  if (Status s = check(cudaGetDevice(&device), "choosing a device"); !s)
    return s;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  std::unique_ptr<KernelModule> module(new KernelModule());
  constexpr int64_t kBlocksPerMultiprocessor = 32;
  module->mostBlocks = multiprocessors * kBlocksPerMultiprocessor;
  module->modules.assign(plan.sections()->size(), nullptr);
  module->kernels.assign(plan.kernels()->size(), Kernel());
  Status problems;
  for (size_t i = 0; i < plan.sections()->size(); ++i)
    if (plan.sections()->Get(i)->kind() == fb::SectionKind::ptx)
      problems.append(module->loadSection(file, i));
  if (!problems)
    return problems;
  return module;
}

Status KernelModule::loadSection(const PlanFile &file, size_t section) {
  const fb::Plan &plan = file.plan();
  std::span<const uint8_t> bytes = file.section(section);
  std::string ptx(reinterpret_cast<const char *>(bytes.data()), bytes.size());
  std::string target = plan.sections()->Get(section)->target()->str();
  std::vector<char> errors(16384), notes(16384);
  CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
                            CU_JIT_INFO_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES};
  void *values[] = {errors.data(), reinterpret_cast<void *>(errors.size()), notes.data(),
                    reinterpret_cast<void *>(notes.size())};
  const Driver &driver = *Driver::get();
  CUresult code =
      driver.moduleLoadDataEx(&modules[section], ptx.c_str(), std::size(options), options, values);
  if (code == CUDA_ERROR_NO_BINARY_FOR_GPU || code == CUDA_ERROR_INVALID_PTX ||
      code == CUDA_ERROR_UNSUPPORTED_PTX_VERSION) {
    return Status(ErrorId::PlanTarget,
                  format("the plan's kernels are for %s, %s or its driver does not take them: %s; "
                         "%s",
                         target.c_str(), deviceText().c_str(), driver.text(code).c_str(),
                         errors.data()));
  }
  if (code == CUDA_ERROR_OUT_OF_MEMORY)
    return Status(ErrorId::OutOfMemory,
                  format("the plan's kernels do not fit on %s", deviceText().c_str()));
  if (code != CUDA_SUCCESS)
    return Status(ErrorId::DeviceFailed,
                  format("%s: loading the plan's kernels, section %zu: %s; %s",
                         deviceText().c_str(), section, driver.text(code).c_str(), errors.data()));
  Status problems;
  for (size_t k = 0; k < kernels.size(); ++k) {
    const fb::Kernel &kernel = *plan.kernels()->Get(k);
    if (kernel.section() != section)
      continue;
    std::string name = kernel.name()->str();
    std::string_view text = textOf(ptx, name);
    kernels[k].threads = threadsOf(text);
    // One that lets the next start without having waited must not start early itself.
    const size_t wait = text.find("griddepcontrol.wait");
    kernels[k].waits = wait != text.npos && wait < text.find("griddepcontrol.launch_dependents");
    kernels[k].pointsPerRow = pointsPerRow(kernel);
    code = driver.moduleGetFunction(&kernels[k].function, modules[section], name.c_str());
    if (code != CUDA_SUCCESS || kernels[k].threads == 0)
      problems.add(ErrorId::BadRun,
                   format("kernel %s is not in section %zu of the plan, or does not say its block "
                          "size",
                          quoteName(name).c_str(), section));
  }
  return problems;
}

KernelModule::~KernelModule() {
  for (CUmodule module : modules)
    if (module)
      Driver::get()->moduleUnload(module);
}

Status KernelModule::launch(const Kernel &kernel, const std::vector<void *> &operands, int64_t rows,
                            cudaStream_t stream) const {
  if (rows <= 0)
    return {};
  void *arguments[kMaxOperands + 1];
  for (size_t i = 0; i < operands.size(); ++i)
    arguments[i] = const_cast<void **>(&operands[i]);
  arguments[operands.size()] = &rows;
  // What has so large blocks has one vector a thread: a block for each point ends most evenly.
  constexpr unsigned kLargeBlock = 1024;
  int64_t most = kernel.threads >= kLargeBlock ? kMostGrid : mostBlocks;
  int64_t blocks = kernel.pointsPerRow > most / rows
                       ? most
                       : std::clamp<int64_t>(rows * kernel.pointsPerRow, 1, most);
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attribute.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(blocks);
  config.blockDimX = kernel.threads;
  config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
  config.hStream = stream;
  config.attrs = &attribute;
  config.numAttrs = kernel.waits ? 1 : 0;
  CUresult code = Driver::get()->launchKernel(&config, kernel.function, arguments, nullptr);
  if (code == CUDA_SUCCESS)
    return {};
  return Status(ErrorId::DeviceFailed,
                format("%s: %s", deviceText().c_str(), Driver::get()->text(code).c_str()));
}

} // namespace moira::rt::cuda
