//===- CudaCalls.h - library calls, copies and fills on a GPU ---*- C++ -*-===//
// The CUDA counterpart of runHostCall: device pointers in, work enqueued on one stream out. Nothing
// here allocates device memory, synchronises or owns anything but handles of cuBLASLt and cuDNN, so
// a sequence of these calls can be captured in a CUDA graph. (Run it once before capturing: CUDA
// loads a kernel when it is first launched.) Streams, memory and the error flag belong to the
// caller.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_CUDACALLS_H
#define MOIRA_RT_CUDA_CUDACALLS_H

#include "moira/rt/Box.h"
#include "moira/rt/Device.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <string>

/// cuDNN's, whose headers a build need not have.
struct cudnnContext;
typedef struct cudnnContext *cudnnHandle_t;

namespace moira::rt::cuda {

/// Scratch memory a stream needs: reused by every call on it, in stream order.
inline constexpr size_t kWorkspaceBytes = size_t(64) << 20;

/// Where and with what a call runs. One context serves one stream at a time.
struct CallContext {
  cudaStream_t stream = nullptr;
  /// Null: dense products run on Moira's own kernels.
  cublasLtHandle_t blaslt = nullptr;
  /// Device memory, 256-byte aligned.
  void *workspace = nullptr;
  size_t workspaceBytes = 0;
  /// Device memory, one i32, zero at the start of a step. A kernel that meets bad data (an expert
  /// id, count or row out of range) sets a code here instead of using it as an address; the results
  /// of that call are then without meaning. See describeErrorFlag.
  int32_t *errorFlag = nullptr;
  /// Whether kernels may be launched before the ones that they wait for have ended.
  bool early = true;
  /// Bit i: input i of the next call was complete before the last kernel on the stream began, so
  /// that a kernel may read it before it waits for that one (DeviceTools.h).
  uint32_t settled = 0;
  /// For `route`, optional, both on the device: expert ids [tokens·k] to use instead of the gate's
  /// choice, and per token the selection score of choice k minus that of choice k+1.
  const int32_t *forcedIds = nullptr;
  float *gaps = nullptr;
  /// Null: attention runs on Moira's own kernels.
  cudnnHandle_t cudnn = nullptr;
};

/// Of attention and its gradient: whether queries and keys are in order and no key is hidden, which
/// operands that are not given say.
inline bool isInOrder(const CallParams &params) {
  return params.optional("qpos") < 0 && params.optional("kpos") < 0 && params.optional("kmask") < 0;
}

/// Loads cuBLASLt (by soname; it need not be there at link time) and makes a handle for the current
/// device. Fails with Internal if the library is missing or of another version.
Expected<cublasLtHandle_t> createBlasLt();
void destroyBlasLt(cublasLtHandle_t handle);
/// The same of cuDNN, with DeviceUnavailable where the library, or this build's support, is
/// missing.
Expected<cudnnHandle_t> createCudnn();
void destroyCudnn(cudnnHandle_t handle);

/// Enqueues the call `name` (Calls.def). T is f32 or bf16, A is f32. The plan verifier has checked
/// shapes, types and parameters. Outputs do not overlap inputs, besides need_in and need_out, which
/// may be one address.
Status runCudaCall(std::string_view name, std::span<const TensorRef> inputs,
                   std::span<const TensorRef> outputs, const CallParams &params,
                   CallContext &context);

/// copyBox on the device: box `from` of `src` to box `to` of `dst`, elements of `bytes`
/// (1, 2, 4 or 8). The two may not overlap. Also packs and unpacks slices for collectives over
/// dimensions that are not leading (one side is then a Box::all).
Status runCudaCopy(const Box &to, void *dst, const Box &from, const void *src, size_t bytes,
                   CallContext &context);

/// Every element of `out` becomes `value`, rounded to out's type.
Status runCudaFill(const TensorRef &out, double value, CallContext &context);

/// out[i] = in[0][i] + in[1][i] + … (or the largest, for Reduce::max) over `ranks` blocks of
/// `out.elements()` that follow one another from `blocks` on, in that order; float types are summed
/// in f32 (f64 for f64). For reductions whose bits may not depend on the ring.
Status runCudaReduce(const TensorRef &out, const void *blocks, int64_t ranks, fb::Reduce reduce,
                     CallContext &context);

/// What a code in CallContext::errorFlag means, as the message of a BadRun diagnostic; empty for 0.
std::string describeErrorFlag(int32_t code);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_CUDACALLS_H
