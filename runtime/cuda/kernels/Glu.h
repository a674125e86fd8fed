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

/// An activation and its derivative at x.
__device__ inline void activate(Activation activation, float alpha, float x, float &value,
                                float &slope) {
  switch (activation) {
  case Activation::silu: {
    const float s = 1.0f / (1.0f + expf(-alpha * x));
    value = x * s;
    slope = s + alpha * x * s * (1 - s);
    return;
  }
  case Activation::gelu: {
    const float cumulative = 0.5f * erfcf(-x * 0.70710678f);
    value = x * cumulative;
    slope = cumulative + x * expf(-0.5f * x * x) * 0.39894228f;
    return;
  }
  case Activation::geluTanh: {
    const float t = tanhf(0.79788456f * (x + 0.044715f * x * x * x));
    value = 0.5f * x * (1 + t);
    slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456f * (1 + 3 * 0.044715f * x * x);
    return;
  }
  case Activation::relu:
    value = fmaxf(x, 0.0f);
    slope = x > 0 ? 1.0f : 0.0f;
  }
}

/// glu of a pair, and its derivatives by both.
struct GluSlopes {
  float value, gate, up;
};

/// `activated`: the activation at the clamped gate, and its derivative.
__device__ inline GluSlopes slopesOf(const GluForm &form, float gate, float up, float activated,
                                     float slope) {
  const bool gateMoves = gate <= form.limit, upMoves = up >= -form.limit && up <= form.limit;
  up = fmaxf(fminf(up, form.limit), -form.limit) + form.upShift;
  return {activated * up, gateMoves ? slope * up : 0.0f, upMoves ? activated : 0.0f};
}
__device__ inline GluSlopes slopesOf(const GluForm &form, float gate, float up) {
  float value, slope;
  activate(form.activation, form.alpha, fminf(gate, form.limit), value, slope);
  return slopesOf(form, gate, up, value, slope);
}

/// Forms that epilogues of products are made for.
enum class GluEpilogue { silu, clampedSilu, gelu, geluTanh, relu };

template <GluEpilogue epilogue>
inline constexpr Activation kActivationOf =
    epilogue == GluEpilogue::gelu       ? Activation::gelu
    : epilogue == GluEpilogue::geluTanh ? Activation::geluTanh
    : epilogue == GluEpilogue::relu     ? Activation::relu
                                        : Activation::silu;

template <GluEpilogue epilogue>
__device__ float fastGluOf(const GluForm &form, float gate, float up) {
  return fastGluOf<kActivationOf<epilogue>, epilogue != GluEpilogue::silu>(form, gate, up);
}

/// As fastGluOf.
template <GluEpilogue epilogue>
__device__ GluSlopes fastSlopesOf(const GluForm &form, float gate, float up) {
  if constexpr (kActivationOf<epilogue> == Activation::silu) {
    constexpr bool clamped = epilogue == GluEpilogue::clampedSilu;
    const float alpha = clamped ? form.alpha : 1.0f, x = clamped ? fminf(gate, form.limit) : gate,
                s = __fdividef(1.0f, 1.0f + __expf(-alpha * x)), value = x * s,
                slope = s + alpha * value * (1.0f - s);
    return clamped ? slopesOf(form, gate, up, value, slope)
                   : GluSlopes{value * up, slope * up, value};
  } else {
    float value, slope;
    activate(kActivationOf<epilogue>, 1.0f, fminf(gate, form.limit), value, slope);
    return slopesOf(form, gate, up, value, slope);
  }
}

/// fn.operator()<epilogue>(): a template by form.
template <typename Fn> Status withEpilogue(const GluForm &form, Fn fn) {
  switch (form.activation) {
  case Activation::silu:
    return form.limit == INFINITY && form.alpha == 1 && form.upShift == 0
               ? fn.template operator()<GluEpilogue::silu>()
               : fn.template operator()<GluEpilogue::clampedSilu>();
  case Activation::gelu:
    return fn.template operator()<GluEpilogue::gelu>();
  case Activation::geluTanh:
    return fn.template operator()<GluEpilogue::geluTanh>();
  case Activation::relu:
    return fn.template operator()<GluEpilogue::relu>();
  }
  return {};
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GLU_H
