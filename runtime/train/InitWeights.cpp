//===- InitWeights.cpp - weights to begin training with -------------------===//
// See InitWeights.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/InitWeights.h"

#include "../host/Vectors.h"
#include "moira/rt/HostThreads.h"
#include "moira/rt/Philox.h"

#include <algorithm>
#include <cmath>

namespace moira::rt {
namespace {

/// Elements that are worth a thread's while, and those that are drawn together.
constexpr int64_t kTask = 1 << 14, kBlock = 256;
constexpr uint32_t kPurpose = 0x1417u; // the last word of the counters, ours alone

using Lanes [[gnu::vector_size(64)]] = uint64_t;
constexpr int64_t kLanes = 8;
static_assert(kBlock % kLanes == 0);

/// FNV-1a.
uint64_t hashOf(const std::string &name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name)
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

/// The word `which` of a block of elements from `first` on.
MOIRA_VECTORS void draw(uint64_t key, uint64_t first, uint32_t which, uint32_t *words) {
  const Lanes zero = {}, order = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    Lanes c0 = order + (first + uint64_t(i)), c1 = c0 >> 32, c2 = zero + which,
          c3 = zero + kPurpose;
    philoxRounds(key, c0, c1, c2, c3);
    for (int64_t lane = 0; lane < kLanes; ++lane)
      words[i + lane] = uint32_t(c0[lane]);
  }
}

double uniform(uint32_t word) { return (word + 0.5) / 4294967296.0; }

/// Draws of a normal distribution (Box and Muller 1958) for `count` elements from `first` on, at
/// most a block. Only whole numbers are computed in vectors, so that no instruction set changes a
/// bit.
void drawNormals(uint64_t key, uint64_t first, int64_t count, double deviation, double *out) {
  uint32_t radii[kBlock], angles[kBlock];
  draw(key, first, 0, radii);
  draw(key, first, 1, angles);
  for (int64_t i = 0; i < count; ++i)
    out[i] = deviation * (std::sqrt(-2 * std::log(uniform(radii[i]))) *
                          std::cos(2 * std::acos(-1.0) * uniform(angles[i])));
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
      double values[kBlock];
      for (int64_t i = task * kTask, end = std::min(n, i + kTask); i < end; i += kBlock) {
        int64_t count = std::min(kBlock, end - i);
        if (zero || norm)
          std::fill_n(values, count, zero ? 0.0 : 1.0);
        else
          drawNormals(key, static_cast<uint64_t>(global + i), count, options.deviation, values);
        convertRun(static_cast<char *>(part.data) +
                       (local + i) * static_cast<int64_t>(bytesOf(part.type)),
                   part.type, values, fb::DType::f64, static_cast<size_t>(count));
      }
    });
  });
}

} // namespace moira::rt
