//===- AttentionTools.h - who sees what ---------------------------*- C++ -*-===//
// Visibility of keys, the summary of a run of keys that lets a kernel pass over those that no query
// of its block sees. Shared by all attention kernels, so that they cannot disagree.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_ATTENTIONTOOLS_H
#define MOIRA_RT_CUDA_KERNELS_ATTENTIONTOOLS_H

#include "DeviceTools.h"
#include "Exponential.h"

namespace moira::rt::cuda {

__device__ inline int32_t queryPositionOf(const AttentionArgs &a, int64_t i) {
  return a.qpos ? a.qpos[i] : int32_t(i);
}
__device__ inline int32_t keyPositionOf(const AttentionArgs &a, int64_t j) {
  return a.kpos ? a.kpos[j] : int32_t(j);
}
__device__ inline int32_t keyMaskOf(const AttentionArgs &a, int64_t batch, int64_t j) {
  return a.kmask ? a.kmask[batch * a.keys + j] : 1;
}

/// Positions are any i32, so differences are taken in 64 bits.
__device__ inline bool sees(const AttentionArgs &a, int32_t queryPosition, int32_t keyPosition,
                            int32_t mask) {
  return mask != 0 && (!a.causal || keyPosition <= queryPosition) &&
         (a.window <= 0 || int64_t(queryPosition) - keyPosition < a.window);
}

__device__ inline int64_t kvHeadOf(const AttentionArgs &a, int64_t head) {
  return (a.headOffset + head) * a.allKvHeads / a.allHeads - a.kvOffset;
}

/// Least and greatest position of `count` queries from `first` on. By one warp.
__device__ inline void queryRange(const AttentionArgs &a, int64_t first, int32_t count,
                                  int32_t &least, int32_t &greatest) {
  int32_t low = INT32_MAX, high = INT32_MIN;
  for (int32_t i = laneNumber(); i < count; i += 32) {
    int32_t position = queryPositionOf(a, first + i);
    low = min(low, position);
    high = max(high, position);
  }
  least = __reduce_min_sync(kAllLanes, low);
  greatest = __reduce_max_sync(kAllLanes, high);
}

/// none: no query sees any key; all: the tile is full and every query sees every key.
enum class Sight { none, some, all };

/// What queries at positions [least, greatest] see of keys whose positions, as far as they are not
/// masked, are in [low, high]. `unmasked`: none is masked, and they make a full tile.
__device__ inline Sight sightOfRange(const AttentionArgs &a, int32_t low, int32_t high,
                                     bool unmasked, int32_t least, int32_t greatest) {
  if (low > high || (a.causal && low > greatest) ||
      (a.window > 0 && int64_t(least) - high >= a.window))
    return Sight::none;
  return unmasked && (!a.causal || high <= least) &&
                 (a.window <= 0 || int64_t(greatest) - low < a.window)
             ? Sight::all
             : Sight::some;
}

/// The same of keys [first, first + count), `wanted` keys making a full tile. By one warp.
__device__ inline Sight sightOf(const AttentionArgs &a, int64_t batch, int64_t first, int32_t count,
                                int32_t wanted, int32_t least, int32_t greatest) {
  int32_t low = INT32_MAX, high = INT32_MIN;
  bool unmasked = count == wanted;
  for (int32_t j = laneNumber(); j < count; j += 32) {
    if (keyMaskOf(a, batch, first + j) == 0) {
      unmasked = false;
      continue;
    }
    int32_t position = keyPositionOf(a, first + j);
    low = min(low, position);
    high = max(high, position);
  }
  return sightOfRange(a, __reduce_min_sync(kAllLanes, low), __reduce_max_sync(kAllLanes, high),
                      __all_sync(kAllLanes, unmasked), least, greatest);
}

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_ATTENTIONTOOLS_H
