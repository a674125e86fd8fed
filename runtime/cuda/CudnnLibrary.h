//===- CudnnLibrary.h - cuDNN, loaded when it is first needed ----*- C++ -*-===//
// cuDNN's functions as a table. Built only where cuDNN's headers were found; nothing else in the
// CUDA device needs them.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_CUDNNLIBRARY_H
#define MOIRA_RT_CUDA_CUDNNLIBRARY_H

#include "moira/rt/Status.h"

#include <cudnn_graph.h>

namespace moira::rt::cuda {

#define MOIRA_CUDNN_FUNCTIONS(X)                                                                   \
  X(getVersion, cudnnGetVersion)                                                                   \
  X(getErrorString, cudnnGetErrorString)                                                           \
  X(create, cudnnCreate)                                                                           \
  X(destroy, cudnnDestroy)                                                                         \
  X(setStream, cudnnSetStream)                                                                     \
  X(createDescriptor, cudnnBackendCreateDescriptor)                                                \
  X(destroyDescriptor, cudnnBackendDestroyDescriptor)                                              \
  X(setAttribute, cudnnBackendSetAttribute)                                                        \
  X(getAttribute, cudnnBackendGetAttribute)                                                        \
  X(finalize, cudnnBackendFinalize)                                                                \
  X(execute, cudnnBackendExecute)

struct CudnnLibrary {
#define MOIRA_CUDNN_MEMBER(name, symbol) decltype(&symbol) name = nullptr;
  MOIRA_CUDNN_FUNCTIONS(MOIRA_CUDNN_MEMBER)
#undef MOIRA_CUDNN_MEMBER

  /// DeviceUnavailable says what was tried. Thread-safe.
  static Expected<const CudnnLibrary *> get();
};

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_CUDNNLIBRARY_H
