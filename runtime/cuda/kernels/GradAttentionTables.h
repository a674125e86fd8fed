//===- GradAttentionTables.h - what is made before attention_grad -*- C++ -*-===//
// What GradAttentionWgmma.cu reads besides the call's operands, and the parts in which it takes a
// call whose dy does not fit the workspace rounded.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GRADATTENTIONTABLES_H
#define MOIRA_RT_CUDA_KERNELS_GRADATTENTIONTABLES_H

#include "GradAttention.h"

namespace moira::rt::cuda {

/// Queries or keys of a tile.
inline constexpr int kGradTile = 64;

/// Least and greatest position of a tile's queries, or of its keys that are not masked.
struct alignas(16) TileRange {
  int32_t low, high;
  int32_t full; // of keys: all are there, and none is masked
  int32_t unused;
};

/// What the kernels read besides the operands, made before; rows of queries and keys filled up to
/// whole tiles. And what the first launch leaves to the second one.
struct GradTables {
  TileRange *queryRanges, *keyRanges; // [queryTiles], [batch, keyTiles]
  int32_t *queries, *keys, *keyMasks; // positions, and masks [batch, keys]; 0 past the end
  float *logSums, *means;             // [batch, heads, queries]; logarithms to base 2, of weights
  int64_t queryTiles, keyTiles;
};

/// The batches, key/value heads and query heads that a launch takes. Its dy has no others.
struct GradPart {
  int64_t batch0, batches, kv0, kvHeads, head0, heads;
};

/// The first query head that reads this key/value head or a later one.
__host__ __device__ inline int64_t firstHeadOf(const AttentionArgs &a, int64_t kv) {
  const int64_t head =
      ((kv + a.kvOffset) * a.allHeads + a.allKvHeads - 1) / a.allKvHeads - a.headOffset;
  return head < 0 ? 0 : head > a.heads ? a.heads : head;
}

/// Sets the sizes and takes the memory; false if there is too little.
bool takeTables(const AttentionArgs &a, Scratch &scratch, GradTables &tables);
/// Sums and means from what attention left, in t and in g.
Status takeSums(const Call &call, const GradArgs &g, const GradTables &tables);
/// Fills all but logSums and means.
Status describeTiles(const Call &call, const AttentionArgs &a, const GradTables &tables);
/// The part from batch and key/value head on whose dy has at most so many rows of all queries of a
/// head; whole batches if one fits. No heads: not even those of one key/value head.
GradPart partFrom(const AttentionArgs &a, int64_t batch, int64_t kv, int64_t most);
/// dy of a part, rounded. Both are aligned to 16 bytes, and rows of a head a multiple of as many.
Status roundPart(const Call &call, const float *dy, bf16 *out, const AttentionArgs &a,
                 const GradPart &part);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GRADATTENTIONTABLES_H
