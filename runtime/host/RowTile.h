//===- RowTile.h - dot products of a few rows with a few rows ---*- C++ -*-===//
// The innermost piece of RowProduct.cpp, for the best instruction set that this machine has.
// Weights are read where they lie, and bf16 ones are widened in registers, never in memory.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_ROWTILE_H
#define MOIRA_RT_HOST_ROWTILE_H

#include "moira/rt/Bf16.h"

#include <cstdint>
#include <vector>

namespace moira::rt::host {

/// Most rows of x and of w that one tile takes, and sums that it may write.
inline constexpr int kTileRows = 4, kTileColumns = 6, kTileSums = kTileRows * kTileColumns;
/// Elements of a row that lie side by side in packed rows, and that a tile reads at a time.
inline constexpr int64_t kTileLanes = 32;

/// Elements of `rows` packed rows of length k.
inline int64_t packedSize(int rows, int64_t k) {
  return (k + kTileLanes - 1) / kTileLanes * kTileLanes * rows;
}

/// Rows of x as tiles read them: kTileLanes elements of each row in turn, zeros behind the last.
/// Rows that lie a power of two apart would share too few places of a cache.
/// `stride`: from a row of x to the next.
template <typename S> void packRows(const S *x, int64_t stride, int rows, int64_t k, S *packed);

/// Memory, at any address, that a tile brings near beside its work: `lines` lines of 64 bytes in
/// turn for each kTileLanes elements of a row.
struct Ahead {
  const void *at;
  int lines;
};

/// sums[i * columns + j] = sum_c x[i, c] * w[j * stride + c] for c < k, in float, for `rows` packed
/// rows x and `columns` rows w; the rest of the kTileSums sums is undefined. The order of a sum
/// depends on k and the machine only.
template <typename S>
using RowTile = void (*)(const S *x, int rows, const S *w, int64_t stride, int columns, int64_t k,
                         Ahead ahead, float *sums);

/// Tile products for one instruction set.
template <typename S> struct RowTileKind {
  const char *name;
  /// Rows w are near, or will be read again: all of them side by side.
  RowTile<S> block;
  /// Rows w come from memory: one after the other, which is how memory is read fastest. Brings
  /// nothing else near.
  RowTile<S> stream;
  int columns; // most that a tile takes
};

/// All that this machine can run, best first; the last one runs everywhere. S = float or Bf16.
template <typename S> const std::vector<RowTileKind<S>> &rowTiles();

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_ROWTILE_H
