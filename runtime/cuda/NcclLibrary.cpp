//===- NcclLibrary.cpp - NCCL, loaded when it is first needed ---------------===//
// See NcclLibrary.h.
//===----------------------------------------------------------------------===//
#include "NcclLibrary.h"

#include <cstdlib>
#include <dlfcn.h>

namespace moira::rt::cuda {

namespace {

Expected<const NcclLibrary *> load() {
  static NcclLibrary library;
  std::string tried;
  void *handle = nullptr;
  for (const char *path : {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"}) {
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle) {
      library.path = path;
      break;
    }
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  if (!handle)
    return Status(ErrorId::DeviceUnavailable,
                  "NCCL, which several ranks on CUDA devices need, cannot be loaded (" + tried +
                      "); install it or add its directory to LD_LIBRARY_PATH");
  std::string missing;
#define MOIRA_NCCL_FIND(name, symbol)                                                              \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(handle, #symbol));                 \
  if (!library.name)                                                                               \
    missing += " " #symbol;
  MOIRA_NCCL_FUNCTIONS(MOIRA_NCCL_FIND)
#undef MOIRA_NCCL_FIND
  if (!missing.empty())
    return Status(ErrorId::DeviceUnavailable, library.path + " is too old, it lacks" + missing +
                                                  "; install NCCL 2.18 or newer");
  int number = 0;
  library.getVersion(&number);
  library.version = format("%d.%d.%d", number / 10000, number / 100 % 100, number % 100);
  return static_cast<const NcclLibrary *>(&library);
}

} // namespace

Expected<const NcclLibrary *> NcclLibrary::get() {
  static Expected<const NcclLibrary *> library = load();
  return library;
}

void prepareNccl(int rank, bool sharedDevice, bool allLocal) {
  if (!sharedDevice)
    return;
  setenv("NCCL_HOSTID", format("moira-%d", rank).c_str(), 0);
  setenv("NCCL_NET", "Socket", 0);
  setenv("NCCL_IB_DISABLE", "1", 0);
  if (allLocal)
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
}

} // namespace moira::rt::cuda
