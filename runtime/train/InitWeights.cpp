//===- InitWeights.cpp - weights to begin training with -------------------===//
// See InitWeights.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/InitWeights.h"

#include "moira/rt/HostThreads.h"
#include "moira/rt/Philox.h"

#include <algorithm>
#include <cmath>

namespace moira::rt {
namespace {

/// Elements that are worth a thread's while.
constexpr int64_t kTask = 1 << 14;

/// FNV-1a.
uint64_t hashOf(const std::string &name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name)
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

/// A draw of the standard normal distribution (Box and Muller 1958).
double normal(uint64_t key, uint64_t element) {
  auto uniform = [&](uint32_t which) {
    return (philox(key, uint32_t(element), uint32_t(element >> 32), which, 0x1417u) + 0.5) /
           4294967296.0;
  };
  return std::sqrt(-2 * std::log(uniform(0))) * std::cos(2 * std::acos(-1.0) * uniform(1));
}

} // namespace

void initWeight(const StatePart &part, const InitOptions &options) {
  const Shard &shard = part.shard;
  bool vector = shard.global.size() == 1;
  bool norm = vector && part.name.find("norm") != std::string::npos;
  bool zero = part.name.ends_with("bias") || part.name.ends_with("sinks");
  uint64_t key = options.seed ^ hashOf(part.name);
  // The place of the shard's elements in the whole tensor.
  forEachRun(shard.inLocal(), shard.inGlobal(), [&](int64_t local, int64_t global, int64_t n) {
    host::parallelFor((n + kTask - 1) / kTask, [&](int64_t task) {
      for (int64_t i = task * kTask, end = std::min(n, i + kTask); i < end; ++i) {
        double value = zero   ? 0
                       : norm ? 1
                              : options.deviation * normal(key, static_cast<uint64_t>(global + i));
        convertRun(static_cast<char *>(part.data) +
                       (local + i) * static_cast<int64_t>(bytesOf(part.type)),
                   part.type, &value, fb::DType::f64, 1);
      }
    });
  });
}

} // namespace moira::rt
