//===- Bf16Tile.h - small products of bf16 rows -----------------*- C++ -*-===//
// The innermost piece of Bf16Product.cpp: dot products of a few rows of x with a few rows of w, for
// the best instruction set that this machine has. Weights are widened in registers, never in
// memory.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_BF16TILE_H
#define MOIRA_RT_HOST_BF16TILE_H

#include "moira/rt/Bf16.h"

#include <vector>

namespace moira::rt::host {

/// Most rows of x and of w that one tile takes.
inline constexpr int kTileRows = 4, kTileColumns = 6;

/// sums[i * kTileColumns + j] = sum_c x[i * k + c] * w[j * k + c] for `rows` rows of x and
/// `columns` rows of w, in float. The order of a sum depends on k and the machine only.
using Bf16Tile = void (*)(const Bf16 *x, int rows, const Bf16 *w, int columns, int64_t k,
                          float *sums);

/// The tile product of this machine, and the columns that suit it.
struct Bf16TileKind {
  const char *name;
  Bf16Tile multiply;
  int columns;
};
const Bf16TileKind &bf16Tile();

/// All that this machine can run, best first; the last one runs everywhere.
const std::vector<Bf16TileKind> &allBf16Tiles();

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_BF16TILE_H
