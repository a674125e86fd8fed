//===- Box.cpp - boxes of dense arrays ------------------------------------===//
// See Box.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Box.h"
#include "moira/rt/Bf16.h"
#include "moira/rt/CallRegistry.h"

#include <cstring>

namespace moira::rt {

size_t bytesOf(fb::DType type) { return dtypeBytes(type); }

bool isFloat(fb::DType type) {
  return type == fb::DType::f32 || type == fb::DType::bf16 || type == fb::DType::f16 ||
         type == fb::DType::f64;
}

const char *nameOf(fb::DType type) { return fb::EnumNameDType(type); }

Box Box::all(std::span<const int64_t> shape) {
  Box box;
  box.shape.assign(shape.begin(), shape.end());
  box.start.assign(shape.size(), 0);
  box.extent = box.shape;
  return box;
}

void forEachRun(const Box &a, const Box &b,
                const std::function<void(int64_t, int64_t, int64_t)> &fn) {
  const size_t rank = a.extent.size();
  for (int64_t e : a.extent)
    if (e == 0)
      return;
  // Trailing dimensions that both boxes cover completely belong to one run, and so does the
  // dimension before them.
  size_t outer = rank;
  int64_t run = 1;
  while (outer > 0) {
    --outer;
    run *= a.extent[outer];
    if (a.extent[outer] != a.shape[outer] || b.extent[outer] != b.shape[outer])
      break;
  }
  std::vector<int64_t> strideA(rank), strideB(rank);
  for (int64_t d = static_cast<int64_t>(rank) - 1, sa = 1, sb = 1; d >= 0; --d) {
    strideA[d] = sa, strideB[d] = sb;
    sa *= a.shape[d], sb *= b.shape[d];
  }
  int64_t offsetA = 0, offsetB = 0;
  for (size_t d = 0; d < rank; ++d)
    offsetA += a.start[d] * strideA[d], offsetB += b.start[d] * strideB[d];
  std::vector<int64_t> index(outer, 0);
  for (;;) {
    fn(offsetA, offsetB, run);
    size_t d = outer;
    for (;;) {
      if (d == 0)
        return;
      --d;
      offsetA += strideA[d], offsetB += strideB[d];
      if (++index[d] < a.extent[d])
        break;
      offsetA -= index[d] * strideA[d], offsetB -= index[d] * strideB[d];
      index[d] = 0;
    }
  }
}

void copyBox(const Box &to, void *dst, const Box &from, const void *src, size_t elementBytes) {
  forEachRun(to, from, [&](int64_t t, int64_t f, int64_t n) {
    std::memcpy(static_cast<char *>(dst) + t * elementBytes,
                static_cast<const char *>(src) + f * elementBytes, n * elementBytes);
  });
}

namespace {

struct F16 {
  _Float16 value;
};

double widen(float v) { return v; }
double widen(double v) { return v; }
float widen(F16 v) { return static_cast<float>(v.value); }
float widen(Bf16 v) { return v; }

template <typename T> T narrow(double v) { return static_cast<T>(v); }
template <> F16 narrow<F16>(double v) { return {static_cast<_Float16>(v)}; }
// The sources that are written as bf16 (f32, f16) are exact in f32: they are rounded once.
template <> Bf16 narrow<Bf16>(double v) { return Bf16(v); }

template <typename D, typename S> void convertLoop(char *dst, const char *src, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    S s;
    std::memcpy(&s, src + i * sizeof(S), sizeof(S));
    D d = narrow<D>(widen(s));
    std::memcpy(dst + i * sizeof(D), &d, sizeof(D));
  }
}

template <typename D>
void convertFrom(char *dst, const char *src, fb::DType srcType, size_t count) {
  switch (srcType) {
  case fb::DType::f32:
    return convertLoop<D, float>(dst, src, count);
  case fb::DType::f64:
    return convertLoop<D, double>(dst, src, count);
  case fb::DType::f16:
    return convertLoop<D, F16>(dst, src, count);
  case fb::DType::bf16:
    return convertLoop<D, Bf16>(dst, src, count);
  default:
    return;
  }
}

} // namespace

void convertRun(void *dst, fb::DType dstType, const void *src, fb::DType srcType, size_t count) {
  char *to = static_cast<char *>(dst);
  const char *from = static_cast<const char *>(src);
  if (dstType == srcType) {
    std::memcpy(to, from, count * bytesOf(dstType));
    return;
  }
  switch (dstType) {
  case fb::DType::f32:
    return convertFrom<float>(to, from, srcType, count);
  case fb::DType::f64:
    return convertFrom<double>(to, from, srcType, count);
  case fb::DType::f16:
    return convertFrom<F16>(to, from, srcType, count);
  case fb::DType::bf16:
    return convertFrom<Bf16>(to, from, srcType, count);
  case fb::DType::i32: // only i64 is left; what does not fit becomes a number that is no index
    for (size_t i = 0; i < count && srcType == fb::DType::i64; ++i) {
      int64_t wide;
      std::memcpy(&wide, from + i * sizeof wide, sizeof wide);
      int32_t narrow = wide == int32_t(wide) ? int32_t(wide) : -1;
      std::memcpy(to + i * sizeof narrow, &narrow, sizeof narrow);
    }
    return;
  default:
    return;
  }
}

void convertBox(const Box &to, void *dst, fb::DType dstType, const Box &from, const void *src,
                fb::DType srcType) {
  forEachRun(to, from, [&](int64_t t, int64_t f, int64_t n) {
    convertRun(static_cast<char *>(dst) + t * bytesOf(dstType), dstType,
               static_cast<const char *>(src) + f * bytesOf(srcType), srcType, n);
  });
}

} // namespace moira::rt
