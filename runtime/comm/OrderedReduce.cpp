//===- OrderedReduce.cpp - element-wise reduction in a fixed order ----------===//
// Arithmetic only, no communication.
//===----------------------------------------------------------------------===//
#include "OrderedReduce.h"
#include "moira/rt/Bf16.h"

#include <algorithm>
#include <cstdint>

namespace moira::rt {

namespace {

/// Load and Store convert between the stored type and the one that is computed in. Works in blocks
/// so that the loops over elements are the inner ones; a block is written only after all inputs of
/// it were read.
template <typename Stored, typename Load, typename Store>
void reduce(std::span<const void *const> inputs, void *out, size_t count, fb::Reduce op, Load load,
            Store store) {
  constexpr size_t block = 256;
  decltype(load(Stored())) sum[block];
  for (size_t first = 0; first < count; first += block) {
    size_t n = std::min(block, count - first);
    for (size_t r = 0; r < inputs.size(); ++r) {
      const Stored *in = static_cast<const Stored *>(inputs[r]) + first;
      for (size_t i = 0; i < n; ++i) {
        auto value = load(in[i]);
        if (r == 0)
          sum[i] = value;
        else if (op == fb::Reduce::sum)
          sum[i] += value;
        else
          sum[i] = std::max(sum[i], value);
      }
    }
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
