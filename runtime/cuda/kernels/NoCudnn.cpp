//===- NoCudnn.cpp - attention where cuDNN's headers were not found ---------===//
// In the place of CudnnAttention.cpp: cuDNN takes no call.
//===----------------------------------------------------------------------===//
#include "CudnnAttention.h"

namespace moira::rt::cuda {

Expected<cudnnHandle_t> createCudnn() {
  return Status(ErrorId::DeviceUnavailable,
                "this build has no cuDNN; install cuDNN 9's headers and build again");
}

void destroyCudnn(cudnnHandle_t) {}

Expected<bool> attendByCudnn(const Call &, const AttentionArgs &) { return false; }

bool mayAskCudnn(const Call &, const AttentionArgs &) { return false; }

int64_t cudnnGradBytes(const Call &, const AttentionArgs &, const CudnnHeads &, bool) { return -1; }

Status runCudnnGrad(const Call &call, const AttentionArgs &, const CudnnHeads &, bool,
                    const CudnnGradOperands &, void *) {
  return badCall(call, "this build has no cuDNN");
}

} // namespace moira::rt::cuda
