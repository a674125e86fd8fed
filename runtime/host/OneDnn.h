//===- OneDnn.h - oneDNN, loaded when it is first needed --------*- C++ -*-===//
// The one way to oneDNN. Programs start and run (slower) where it is not installed.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_ONEDNN_H
#define MOIRA_RT_HOST_ONEDNN_H

#include <dnnl.h>

namespace moira::rt::host {

struct OneDnn {
  decltype(&dnnl_sgemm) sgemm = nullptr;
  // Of the OpenMP runtime that it uses, if it does, per calling thread.
  int (*threads)() = nullptr;
  void (*setThreads)(int) = nullptr;

  /// The library, or null if it cannot be loaded. Thread-safe.
  static const OneDnn *get();
};

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_ONEDNN_H
