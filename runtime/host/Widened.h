//===- Widened.h - operands of either width as one type ---------*- C++ -*-===//
// Gradients read f32 and bf16 side by side. They are computed in the accumulator's type, into which
// narrower operands are converted once, and narrower results rounded at the end.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_WIDENED_H
#define MOIRA_RT_HOST_WIDENED_H

#include "HostOps.h"

namespace moira::rt::host {

/// An input, or `count` of its values from `first` on, as values of A (float or double).
template <typename A> class Widened {
public:
  explicit Widened(const TensorRef &tensor) : Widened(tensor, 0, tensor.elements()) {}
  Widened(const TensorRef &tensor, int64_t first, int64_t count) {
    if (tensor.dtype != fb::DType::bf16) {
      values = static_cast<const A *>(tensor.data) + first;
      return;
    }
    const Bf16 *from = static_cast<const Bf16 *>(tensor.data) + first;
    converted.assign(from, from + count);
    values = converted.data();
  }
  Widened(const Widened &) = delete;
  const A *data() const { return values; }
  A operator[](int64_t i) const { return values[i]; }

private:
  std::vector<A> converted;
  const A *values;
};

/// An output, or `count` of its values from `first` on, as values of A; complete when this ends.
/// Not initialised.
template <typename A> class Rounded {
public:
  explicit Rounded(const TensorRef &tensor) : Rounded(tensor, 0, tensor.elements()) {}
  Rounded(const TensorRef &tensor, int64_t first, int64_t count) {
    if (tensor.dtype != fb::DType::bf16) {
      values = static_cast<A *>(tensor.data) + first;
      return;
    }
    target = static_cast<Bf16 *>(tensor.data) + first;
    converted.resize(size_t(count));
    values = converted.data();
  }
  Rounded(const Rounded &) = delete;
  ~Rounded() {
    for (size_t i = 0; i < converted.size(); ++i)
      target[i] = Bf16(float(converted[i]));
  }
  A *data() { return values; }
  A &operator[](int64_t i) { return values[i]; }

private:
  std::vector<A> converted;
  Bf16 *target = nullptr;
  A *values;
};

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_WIDENED_H
