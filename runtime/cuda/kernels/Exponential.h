//===- Exponential.h - exponentials by powers of two ------------*- C++ -*-===//
// Of kernels that make one for every value they read: two instructions, right to 2 units of the
// last place but for the rounding of what is raised.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_EXPONENTIAL_H
#define MOIRA_RT_CUDA_KERNELS_EXPONENTIAL_H

namespace moira::rt::cuda {

/// Exponentials are powers of two of so many times the exponent.
inline constexpr float kPerNat = 1.44269504088896341f;
__device__ inline float powerOfTwo(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_EXPONENTIAL_H
