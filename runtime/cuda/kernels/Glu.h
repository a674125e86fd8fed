//===- Glu.h - activations and gated units ------------------------*- C++ -*-===//
// The numbers of act and glu, for kernels of their own and for epilogues of products.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GLU_H
#define MOIRA_RT_CUDA_KERNELS_GLU_H

#include "DeviceTools.h"

namespace moira::rt::cuda {

__device__ inline float activate(Activation activation, float x) {
  switch (activation) {
  case Activation::silu:
    return x / (1.0f + expf(-x));
  case Activation::gelu:
    return 0.5f * x * erfcf(-x * 0.70710678118654752f);
  case Activation::geluTanh:
    return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  case Activation::relu:
    return x > 0.0f ? x : x == x ? 0.0f : x;
  }
  return x;
}

__device__ inline float gluOf(const GluForm &form, float gate, float up) {
  // Comparisons that leave NaN as it is.
  gate = gate > form.limit ? form.limit : gate;
  up = up > form.limit ? form.limit : up < -form.limit ? -form.limit : up;
  const float activated = form.alpha == 1.0f ? activate(form.activation, gate)
                                             : gate / (1.0f + expf(-form.alpha * gate));
  return activated * (up + form.upShift);
}

/// The same of a form that is known, by the fast exponential: off by some 2^-20 of the result, for
/// what is rounded to bf16 then.
template <Activation activation, bool clamped>
__device__ float fastGluOf(const GluForm &form, float gate, float up) {
  auto gated = [](float x, float by) { return __fdividef(x, 1.0f + __expf(-by)); };
  if constexpr (clamped) {
    gate = gate > form.limit ? form.limit : gate;
    up = (up > form.limit ? form.limit : up < -form.limit ? -form.limit : up) + form.upShift;
  }
  if constexpr (activation == Activation::silu)
    return gated(gate, clamped ? form.alpha * gate : gate) * up;
  else if constexpr (activation == Activation::geluTanh) // 1 + tanh(x) = 2 / (1 + exp(-2 x))
    return gated(gate, 1.59576912160573071f * (gate + 0.044715f * gate * gate * gate)) * up;
  else
    return activate(activation, gate) * up;
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GLU_H
