//===- CudnnLibrary.cpp - cuDNN, loaded when it is first needed -------------===//
// See CudnnLibrary.h.
//===----------------------------------------------------------------------===//
#include "CudnnLibrary.h"

#include <dlfcn.h>

namespace moira::rt::cuda {

namespace {

Expected<const CudnnLibrary *> load() {
  static CudnnLibrary library;
  std::string tried;
  void *handle = nullptr;
  for (const char *path : {"libcudnn.so.9", "/usr/local/cuda/lib64/libcudnn.so.9"}) {
    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle)
      break;
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  if (!handle)
    return Status(ErrorId::DeviceUnavailable,
                  "cuDNN 9 cannot be loaded (" + tried +
                      "); install it or add its directory to LD_LIBRARY_PATH");
  std::string missing;
#define MOIRA_CUDNN_FIND(name, symbol)                                                             \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(handle, #symbol));                 \
  if (!library.name)                                                                               \
    missing += " " #symbol;
  MOIRA_CUDNN_FUNCTIONS(MOIRA_CUDNN_FIND)
#undef MOIRA_CUDNN_FIND
  if (!missing.empty())
    return Status(ErrorId::DeviceUnavailable,
                  "libcudnn.so.9 lacks" + missing + "; install cuDNN 9");
  return static_cast<const CudnnLibrary *>(&library);
}

} // namespace

Expected<const CudnnLibrary *> CudnnLibrary::get() {
  static Expected<const CudnnLibrary *> library = load();
  return library;
}

} // namespace moira::rt::cuda
