//===- NoCudnn.cpp - attention where cuDNN's headers were not found ---------===//
// In the place of CudnnAttention.cpp: cuDNN takes no call.
//===----------------------------------------------------------------------===//
#include "CudaOps.h"

namespace moira::rt::cuda {

Expected<cudnnHandle_t> createCudnn() {
  return Status(ErrorId::DeviceUnavailable,
                "this build has no cuDNN; install cuDNN 9's headers and build again");
}

void destroyCudnn(cudnnHandle_t) {}

Expected<bool> attendByCudnn(const Call &, const AttentionArgs &) { return false; }

} // namespace moira::rt::cuda
