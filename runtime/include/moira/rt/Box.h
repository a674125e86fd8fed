//===- Box.h - boxes of dense arrays ----------------------------*- C++ -*-===//
// Copying a box of one C-order array into a box of another, as few contiguous runs as there can be.
// Weights, inputs, outputs, copies and collectives are all made of this. Nothing about meshes here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_BOX_H
#define MOIRA_RT_BOX_H

#include "plan_generated.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace moira::rt {

/// Bytes of one element.
size_t bytesOf(fb::DType type);
bool isFloat(fb::DType type);
/// "f32", "i64", …
const char *nameOf(fb::DType type);

/// A box inside a C-order array: `extent` elements a dimension from `start`, in an array of
/// `shape`. All three have the same length; start + extent <= shape.
struct Box {
  std::vector<int64_t> shape, start, extent;
  /// The whole array.
  static Box all(std::span<const int64_t> shape);
};

/// Calls fn(element offset in a's array, element offset in b's array, length) for the runs that are
/// contiguous in both, in C order. The boxes' extents are equal. Empty boxes give no run.
void forEachRun(const Box &a, const Box &b,
                const std::function<void(int64_t, int64_t, int64_t)> &fn);

/// Copies box `from` of `src` to box `to` of `dst`; both have elements of `elementBytes`.
void copyBox(const Box &to, void *dst, const Box &from, const void *src, size_t elementBytes);

/// The same with a conversion between float types (f32, bf16, f16, f64), rounding to nearest even.
/// Equal types of any kind are copied. `src` need not be aligned.
void convertBox(const Box &to, void *dst, fb::DType dstType, const Box &from, const void *src,
                fb::DType srcType);

/// One contiguous run of convertBox.
void convertRun(void *dst, fb::DType dstType, const void *src, fb::DType srcType, size_t count);

} // namespace moira::rt

#endif // MOIRA_RT_BOX_H
