//===- Product.cpp - which kernel makes a product ---------------------------===//
// The choice among the kernels of the Product*.cu files, by type, alignment, rows a group and GPU.
//===----------------------------------------------------------------------===//
#include "CudaOps.h"

namespace moira::rt::cuda {

bool isHopper() {
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

Status launchProduct(const Call &call, const GroupedProduct &product) {
  if (product.m == 0 || product.n == 0)
    return {};
  if (product.inType == fb::DType::f32)
    return launchProductF32(call, product);
  if (fitsStreamed(product) && isHopper())
    return launchProductStreamed(call, product);
  if (hasFewRows(product))
    return launchProductFewRows(call, product);
  if (fitsWgmma(product) && isHopper())
    return launchProductWgmma(call, product);
  return launchProductBf16(call, product);
}

} // namespace moira::rt::cuda
