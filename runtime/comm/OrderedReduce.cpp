//===- OrderedReduce.cpp - element-wise reduction in a fixed order ----------===//
// Arithmetic only, no communication.
//===----------------------------------------------------------------------===//
#include "moira/rt/OrderedReduce.h"
#include "moira/rt/Bf16.h"

#include <algorithm>
#include <cstdint>

namespace moira::rt {

namespace {

/// A block is small enough for the loops over elements to be the inner ones.
constexpr size_t kBlock = 256;

/// sum[0, n) = what the inputs [first, first + count) have at `at`, as a tree: see the header.
template <typename Stored, typename Sum, typename Load>
void fold(std::span<const void *const> inputs, size_t at, size_t n, fb::Reduce op, Load load,
          Sum *sum) {
  size_t count = inputs.size();
  if (count == 1) {
    const Stored *in = static_cast<const Stored *>(inputs[0]) + at;
    for (size_t i = 0; i < n; ++i)
      sum[i] = load(in[i]);
    return;
  }
  size_t part = count % 2 ? 1 : count / 2;
  fold<Stored>(inputs.first(part), at, n, op, load, sum);
  for (size_t next = part; next < count; next += part) {
    Sum other[kBlock];
    fold<Stored>(inputs.subspan(next, part), at, n, op, load, other);
    for (size_t i = 0; i < n; ++i)
      sum[i] = op == fb::Reduce::sum ? Sum(sum[i] + other[i]) : std::max(sum[i], other[i]);
  }
}

/// Load and Store convert between the stored type and the one that is computed in. A block is
/// written only after all inputs of it were read.
template <typename Stored, typename Load, typename Store>
void reduce(std::span<const void *const> inputs, void *out, size_t count, fb::Reduce op, Load load,
            Store store) {
  if (inputs.empty())
    return;
  decltype(load(Stored())) sum[kBlock];
  for (size_t first = 0; first < count; first += kBlock) {
    size_t n = std::min(kBlock, count - first);
    fold<Stored>(inputs, first, n, op, load, sum);
    for (size_t i = 0; i < n; ++i)
      static_cast<Stored *>(out)[first + i] = store(sum[i]);
  }
}

} // namespace

size_t reducibleSize(fb::DType dtype) {
  switch (dtype) {
  case fb::DType::f32:
  case fb::DType::i32:
    return 4;
  case fb::DType::f64:
    return 8;
  case fb::DType::bf16:
    return 2;
  default:
    return 0;
  }
}

void reduceInOrder(std::span<const void *const> inputs, void *out, size_t count, fb::DType dtype,
                   fb::Reduce op) {
  auto same = [](auto v) { return v; };
  switch (dtype) {
  case fb::DType::f32:
    return reduce<float>(inputs, out, count, op, same, same);
  case fb::DType::f64:
    return reduce<double>(inputs, out, count, op, same, same);
  case fb::DType::bf16:
    return reduce<Bf16>(
        inputs, out, count, op, [](Bf16 v) { return float(v); }, [](float v) { return Bf16(v); });
  case fb::DType::i32:
    if (op == fb::Reduce::sum) // unsigned, so that wrapping is defined
      return reduce<uint32_t>(inputs, out, count, op, same, same);
    return reduce<int32_t>(inputs, out, count, op, same, same);
  default:
    return;
  }
}

std::pair<size_t, size_t> reduceChunk(size_t count, size_t members, size_t self) {
  constexpr size_t grain = 16;
  size_t grains = (count + grain - 1) / grain;
  auto cut = [&](size_t i) { return std::min(count, (grains * i / members) * grain); };
  return {cut(self), cut(self + 1)};
}

} // namespace moira::rt
