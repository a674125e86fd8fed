//===- TensorMaps.cpp - what the tensor copy engine is told -----------------===//
// The driver's encoder, which is there as soon as the CUDA runtime has loaded the driver.
//===----------------------------------------------------------------------===//
#include "TensorMaps.h"

#include <cuda_runtime_api.h>

namespace moira::rt::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  static const Encode function = [] {
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess)
      found = nullptr;
    return reinterpret_cast<Encode>(found);
  }();
  return function;
}

/// Dimensions and boxes from the innermost on.
template <size_t rank>
bool describe(CUtensorMap &map, const void *data, const cuuint64_t (&sizes)[rank],
              const cuuint32_t (&box)[rank]) {
  cuuint64_t strides[rank] = {};
  cuuint32_t steps[rank];
  for (size_t i = 0, bytes = sizeof(bf16); i < rank; ++i) {
    bytes *= sizes[i];
    strides[i] = bytes;
    steps[i] = 1;
  }
  return encoder() &&
         encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void *>(data), sizes,
                   strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

} // namespace

bool describeMatrix(CUtensorMap &map, const void *data, int64_t rows, int64_t width, int boxRows) {
  return describe<2>(map, data, {cuuint64_t(width), cuuint64_t(rows)}, {64, cuuint32_t(boxRows)});
}

bool describeHeads(CUtensorMap &map, const void *data, int64_t batch, int64_t rows, int64_t heads,
                   int64_t width, int boxWidth, int boxRows) {
  return describe<4>(map, data,
                     {cuuint64_t(width), cuuint64_t(heads), cuuint64_t(rows), cuuint64_t(batch)},
                     {cuuint32_t(boxWidth), 1, cuuint32_t(boxRows), 1});
}

Status noTensorMap(const Call &call) {
  return Status(ErrorId::Internal,
                format("the CUDA driver cannot describe the operands of call '%.*s' to the tensor "
                       "copy engine; report it with the sizes of the plan",
                       int(call.name.size()), call.name.data()));
}

} // namespace moira::rt::cuda
