//===- RouteBuffers.cpp - a router's choices to and from the device ---------===//
// See RouteBuffers.h.
//===----------------------------------------------------------------------===//
#include "RouteBuffers.h"

namespace moira::rt::cuda {

namespace {

constexpr const char *kUse = "a router's choices";

uint64_t bytesOfTensor(const TensorRef &tensor) {
  return static_cast<uint64_t>(tensor.elements()) * bytesOf(tensor.dtype);
}

uint64_t tokensOf(const TensorRef &ids) {
  return static_cast<uint64_t>(ids.elements() / ids.shape.back());
}

} // namespace

Expected<RouteBuffers> RouteBuffers::make(RankRoutes &routes, size_t index,
                                          const BoundInstr &instr) {
  RouteBuffers made;
  made.routes = &routes;
  made.index = index;
  Status problems;
  auto take = [&](auto &to, auto expected) {
    if (expected)
      to = std::move(*expected);
    else
      problems.append(expected.takeStatus());
  };
  RouteHooks hooks = routes.before(index);
  uint64_t gapBytes = tokensOf(instr.out[0]) * sizeof(float);
  if (routes.isRecording()) {
    take(made.hostIds, PinnedBlock::allocate(bytesOfTensor(instr.out[0]), kUse));
    take(made.hostWeights, PinnedBlock::allocate(bytesOfTensor(instr.out[1]), kUse));
  }
  if (hooks.gaps) {
    take(made.gaps, DeviceBlock::allocate(gapBytes, kUse));
    take(made.hostGaps, PinnedBlock::allocate(gapBytes, kUse));
  }
  if (!hooks.forcedIds.empty()) {
    take(made.forced, DeviceBlock::allocate(hooks.forcedIds.size_bytes(), kUse));
    if (problems)
      problems = check(cudaMemcpy(made.forced.data(), hooks.forcedIds.data(),
                                  hooks.forcedIds.size_bytes(), cudaMemcpyHostToDevice),
                       kUse);
  }
  if (!problems)
    return problems;
  return made;
}

Status RouteBuffers::enqueue(const BoundInstr &instr, CallContext context) {
  context.forcedIds = reinterpret_cast<const int32_t *>(forced.data());
  context.gaps = reinterpret_cast<float *>(gaps.data());
  Status status = runCudaCall(instr.call, instr.in, instr.out, instr.params, context);
  auto fetch = [&](const PinnedBlock &to, const void *from, uint64_t bytes) {
    if (status && to.data())
      status = check(
          cudaMemcpyAsync(to.data(), from, bytes, cudaMemcpyDeviceToHost, context.stream), kUse);
  };
  fetch(hostIds, instr.out[0].data, bytesOfTensor(instr.out[0]));
  fetch(hostWeights, instr.out[1].data, bytesOfTensor(instr.out[1]));
  fetch(hostGaps, gaps.data(), gaps.bytes());
  return status;
}

void RouteBuffers::collect(const BoundInstr &instr) {
  if (!routes->isRecording())
    return;
  if (std::vector<float> *to = routes->before(index).gaps)
    to->assign(hostGaps.as<float>(), hostGaps.as<float>() + tokensOf(instr.out[0]));
  routes->after(index, {hostIds.data(), instr.out[0].dtype, instr.out[0].shape},
                {hostWeights.data(), instr.out[1].dtype, instr.out[1].shape});
}

} // namespace moira::rt::cuda
