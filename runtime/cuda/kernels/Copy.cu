//===- Copy.cu - copies, fills and ordered sums of views --------------------===//
// The plan's copy and fill instructions, split_blocks and join_blocks, and what collectives need
// beside NCCL: packing slices of dimensions that are not leading, and reductions in rank order.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <cmath>
#include <cuda_fp16.h>
#include <utility>

namespace moira::rt::cuda {
namespace {

constexpr int kMostDims = 16;

/// A copy of extent[0] × extent[1] × … units; strides and extents in units, dimension 0 innermost.
struct Copy {
  int dims;
  int64_t extent[kMostDims], from[kMostDims], to[kMostDims];
  int64_t total;
};

template <typename V> __global__ void copyStrided(Copy copy, const V *src, V *dst) {
  for (int64_t i = threadNumber(); i < copy.total; i += threadCount()) {
    int64_t left = i, from = 0, to = 0;
    for (int d = 0; d < copy.dims; ++d) {
      int64_t extent = copy.extent[d], next;
      if (((left | extent) >> 32) == 0)
        next = uint32_t(left) / uint32_t(extent);
      else
        next = left / extent;
      int64_t index = left - next * extent;
      from += index * copy.from[d];
      to += index * copy.to[d];
      left = next;
    }
    dst[to] = src[from];
  }
}

/// `copy` is in bytes; goes by the widest units that fit.
Status launchCopy(std::string_view name, const Copy &copy, const void *src, void *dst,
                  cudaStream_t stream) {
  if (copy.dims == 1)
    return checked(
        name, cudaMemcpyAsync(dst, src, size_t(copy.extent[0]), cudaMemcpyDeviceToDevice, stream));
  size_t unit = commonUnit(addressOf(src), addressOf(dst), size_t(copy.extent[0]));
  for (int d = 1; d < copy.dims; ++d)
    unit = commonUnit(unit, size_t(copy.from[d]), size_t(copy.to[d]));
  return withUnit(unit, [&]<typename V>(V) {
    Copy inUnits = copy;
    inUnits.extent[0] /= int64_t(sizeof(V));
    inUnits.total = 1;
    for (int d = 0; d < copy.dims; ++d) {
      inUnits.total *= inUnits.extent[d];
      if (d > 0) {
        inUnits.from[d] /= int64_t(sizeof(V));
        inUnits.to[d] /= int64_t(sizeof(V));
      }
    }
    copyStrided<<<blocksOfThreads(inUnits.total), kWarpBlock, 0, stream>>>(
        inUnits, static_cast<const V *>(src), static_cast<V *>(dst));
    return checked(name, cudaGetLastError());
  });
}

/// Between `whole` [d0,..,blocks*s,..] and the other operand [blocks*d0,..,s,..].
Status moveBlocks(const Call &call, const TensorRef &whole, bool toParts) {
  int64_t blocks = call.params.integer("blocks"), dim = call.params.integer("dim");
  int64_t rank = int64_t(whole.shape.size());
  if (blocks < 1 || dim < 1 || dim >= rank || whole.shape[size_t(dim)] % blocks != 0)
    return badCall(call, format("dimension %lld does not fall into %lld blocks", (long long)dim,
                                (long long)blocks));
  if (call.in[0].dtype != call.out[0].dtype)
    return badCall(call, "a copy between two types");
  int64_t outer = leading(whole, rank - dim);
  int64_t run = trailing(whole, rank - dim) / blocks * int64_t(elementBytes(whole.dtype));
  if (outer * run == 0)
    return {};
  Copy copy{3, {run, outer, blocks}, {1, run * blocks, run}, {1, run, run * outer}, 0};
  if (!toParts)
    std::swap(copy.from, copy.to);
  return launchCopy(call.name, copy, call.in[0].data, call.out[0].data, call.stream());
}

template <typename T> __global__ void fillAll(T *out, int64_t n, T value) {
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    out[i] = value;
}

/// How a type is summed: in Sum, then rounded.
template <typename T> struct Summed {
  using Sum = T;
  __device__ static Sum load(T v) { return v; }
  __device__ static T store(Sum v) { return v; }
};
template <> struct Summed<bf16> {
  using Sum = float;
  __device__ static float load(bf16 v) { return __bfloat162float(v); }
  __device__ static bf16 store(float v) { return __float2bfloat16_rn(v); }
};
template <> struct Summed<__half> {
  using Sum = float;
  __device__ static float load(__half v) { return __half2float(v); }
  __device__ static __half store(float v) { return __float2half_rn(v); }
};

template <typename T>
__global__ void reduceBlocks(const T *blocks, T *out, int64_t n, int64_t ranks, bool largest) {
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    auto result = Summed<T>::load(blocks[i]);
    for (int64_t p = 1; p < ranks; ++p) {
      auto one = Summed<T>::load(blocks[p * n + i]);
      if (largest)
        result = result < one || one != one ? one : result; // what is no number stays
      else
        result += one;
    }
    out[i] = Summed<T>::store(result);
  }
}

/// fn(T()) with the C++ type of any dtype.
template <typename Fn> Status withAny(fb::DType dtype, Fn fn) {
  switch (dtype) {
  case fb::DType::f32:
    return fn(float());
  case fb::DType::bf16:
    return fn(bf16());
  case fb::DType::f16:
    return fn(__half());
  case fb::DType::f64:
    return fn(double());
  case fb::DType::i32:
    return fn(int32_t());
  case fb::DType::i64:
    return fn(int64_t());
  case fb::DType::u8:
    return fn(uint8_t());
  }
  return Status(ErrorId::Internal, format("no dtype has the number %d", int(dtype)));
}

template <typename T> T converted(double value) {
  if constexpr (std::is_same_v<T, bf16>)
    return __double2bfloat16(value);
  else if constexpr (std::is_same_v<T, __half>)
    return __double2half(value);
  else
    return static_cast<T>(value);
}

} // namespace

Status ops::split_blocks(const Call &call) { return moveBlocks(call, call.in[0], true); }
Status ops::join_blocks(const Call &call) { return moveBlocks(call, call.out[0], false); }

Status runCudaCopy(const Box &to, void *dst, const Box &from, const void *src, size_t bytes,
                   CallContext &context) {
  const size_t rank = to.extent.size();
  int64_t total = 1;
  for (int64_t extent : to.extent)
    total *= extent;
  if (total == 0)
    return {};
  // From the innermost dimension out, joining those that are dense on both sides; bytes first.
  Copy copy{};
  int64_t strideFrom = int64_t(bytes), strideTo = strideFrom;
  int64_t offsetFrom = 0, offsetTo = 0;
  copy.dims = 1;
  copy.extent[0] = strideFrom;
  copy.from[0] = copy.to[0] = 1;
  for (size_t i = 0; i < rank; ++i) {
    size_t d = rank - 1 - i;
    offsetFrom += from.start[d] * strideFrom;
    offsetTo += to.start[d] * strideTo;
    if (int64_t extent = to.extent[d]; extent != 1) {
      int last = copy.dims - 1;
      if (strideFrom == copy.from[last] * copy.extent[last] &&
          strideTo == copy.to[last] * copy.extent[last]) {
        copy.extent[last] *= extent;
      } else {
        if (copy.dims == kMostDims)
          return Status(ErrorId::Internal, "a copy of more than 15 separate dimensions");
        copy.extent[copy.dims] = extent;
        copy.from[copy.dims] = strideFrom;
        copy.to[copy.dims] = strideTo;
        ++copy.dims;
      }
    }
    strideFrom *= from.shape[d];
    strideTo *= to.shape[d];
  }
  const char *source = static_cast<const char *>(src) + offsetFrom;
  char *target = static_cast<char *>(dst) + offsetTo;
  return launchCopy("copy", copy, source, target, context.stream);
}

Status runCudaFill(const TensorRef &out, double value, CallContext &context) {
  int64_t n = out.elements();
  if (n == 0)
    return {};
  if (value == 0 && !std::signbit(value))
    return checked(
        "fill", cudaMemsetAsync(out.data, 0, size_t(n) * elementBytes(out.dtype), context.stream));
  return withAny(out.dtype, [&]<typename T>(T) {
    fillAll<<<blocksOfThreads(n), kWarpBlock, 0, context.stream>>>(static_cast<T *>(out.data), n,
                                                                   converted<T>(value));
    return checked("fill", cudaGetLastError());
  });
}

Status runCudaReduce(const TensorRef &out, const void *blocks, int64_t ranks, fb::Reduce reduce,
                     CallContext &context) {
  int64_t n = out.elements();
  if (n == 0 || ranks == 0)
    return {};
  return withAny(out.dtype, [&]<typename T>(T) {
    reduceBlocks<<<blocksOfThreads(n), kWarpBlock, 0, context.stream>>>(
        static_cast<const T *>(blocks), static_cast<T *>(out.data), n, ranks,
        reduce == fb::Reduce::max);
    return checked("reduce", cudaGetLastError());
  });
}

} // namespace moira::rt::cuda
