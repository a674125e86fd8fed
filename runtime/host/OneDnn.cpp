//===- OneDnn.cpp - oneDNN, loaded when it is first needed ------------------===//
// See OneDnn.h.
//===----------------------------------------------------------------------===//
#include "OneDnn.h"

#include <dlfcn.h>
#include <dnnl_version.h>

#define MOIRA_TEXT_OF(x) #x
#define MOIRA_TEXT(x) MOIRA_TEXT_OF(x)

namespace moira::rt::host {

const OneDnn *OneDnn::get() {
  static const OneDnn library = [] {
    OneDnn found;
    void *handle = dlopen("libdnnl.so." MOIRA_TEXT(DNNL_VERSION_MAJOR), RTLD_NOW | RTLD_LOCAL);
    if (!handle)
      return found;
    found.sgemm = reinterpret_cast<decltype(found.sgemm)>(dlsym(handle, "dnnl_sgemm"));
    // Found among the libraries that oneDNN itself needs.
    found.threads = reinterpret_cast<decltype(found.threads)>(dlsym(handle, "omp_get_max_threads"));
    found.setThreads =
        reinterpret_cast<decltype(found.setThreads)>(dlsym(handle, "omp_set_num_threads"));
    return found;
  }();
  return library.sgemm ? &library : nullptr;
}

} // namespace moira::rt::host
