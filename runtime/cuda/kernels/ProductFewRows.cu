//===- ProductFewRows.cu - grouped products that stream the weights ---------===//
// For few rows a group, as decode has them, a product takes as long as reading its weights. A block
// makes the results of 16 columns, or of glu of 8 gates and ups, for up to 16 rows of one group
// (StreamedTile.h).
//===----------------------------------------------------------------------===//
#include "Glu.h"
#include "GroupTiles.h"
#include "StreamedTile.h"

#include <type_traits>

namespace moira::rt::cuda {
namespace {

/// Tiles of up to eight rows. The first two are for very many blocks: their rings hold all of a
/// depth of up to kShortDepth, eight blocks running on a multiprocessor at once, or six longer
/// ones. The others are for fewer, larger blocks, three at once, so that every multiprocessor has
/// enough reads under way; all of a depth of 2048 or 4096 stands in their rings.
using ShortTile = StreamedTile<1, 2, 4, 3>;
using LongTile = StreamedTile<1, 2, 4, 4>;
using DeepTile = StreamedTile<1, 2, 8, 4>;
using NarrowTile = StreamedTile<1, 1, 8, 8>;
/// Of up to sixteen rows, for many blocks and for fewer.
using TallTile = StreamedTile<2, 2, 4, 3>;
using DeepTallTile = StreamedTile<2, 2, 8, 3>;

constexpr int64_t kShortDepth = 768;
/// Multiprocessors of a large device. So many blocks of 16 columns are many, and so many few.
constexpr int64_t kProcessors = 132, kManyBlocks = 512, kFewBlocks = kProcessors;
/// The most groups among which each warp looks for its tile by itself.
constexpr int64_t kGroupsOfWarp = 256;

/// Of many blocks, whether they are of ShortTile: of depths that fit its rings, and where all of
/// them, but not all of LongTile, run at once on a large device.
bool areShort(int64_t blocks, int64_t k) {
  return k <= kShortDepth || (blocks > LongTile::kTogether * kProcessors &&
                              blocks <= ShortTile::kTogether * kProcessors);
}

/// fn with the tile for up to eight rows.
template <typename Fn> Status withTile(int64_t blocks, int64_t k, Fn fn) {
  if (blocks <= kFewBlocks)
    return fn(std::type_identity<NarrowTile>());
  if (blocks < kManyBlocks)
    return fn(std::type_identity<DeepTile>());
  return areShort(blocks, k) ? fn(std::type_identity<ShortTile>())
                             : fn(std::type_identity<LongTile>());
}

/// What all threads of a block do with one tile of `count` rows, `some` of which are a group's:
/// weightsAt(i) and rowAt(i) say where column and row i begin; finish(product) stores the results,
/// or zeros if not `some`. `settled`: weights may be read before the kernel before this one has
/// ended, and nobody has waited for it yet.
template <typename Tile, typename WeightsAt, typename RowAt, typename Finish>
__device__ __forceinline__ void streamTile(int32_t count, bool some, int64_t k, bool settled,
                                           unsigned char *sharedBytes, WeightsAt weightsAt,
                                           RowAt rowAt, Finish finish) {
  Tile product(weightsAt, k, sharedBytes);
  if (!settled && some)
    product.askForRows(rowAt, count);
  if (some)
    product.askForWeights();
  if (settled) {
    awaitPrevious();
    if (some)
      product.askForRows(rowAt, count);
  }
  if (some)
    product.multiply();
  finish(product);
}

/// The same of rows of x by rows of w (n in each group, of k values) from `column0` on; store(row,
/// column, sum) gets each result.
template <typename Tile, typename Store>
__device__ __forceinline__ void streamColumns(const bf16 *x, const bf16 *w, const RowTile &tile,
                                              int64_t n, int64_t k, int64_t column0, bool settled,
                                              unsigned char *sharedBytes, Store store) {
  const bool some = tile.count > 0 && tile.group >= 0;
  streamTile<Tile>(
      tile.count, some, k, settled, sharedBytes,
      [&](int i) { return w + (int64_t(max(0, tile.group)) * n + min(n - 1, column0 + i)) * k; },
      [&](int i) { return x + (tile.row + i) * k; },
      [&](const Tile &product) {
        for (int at = int(threadIdx.x); at < tile.count * Tile::kColumns; at += Tile::kThreads)
          if (const int row = at / Tile::kColumns, column = at % Tile::kColumns;
              column0 + column < n)
            store(tile.row + row, column0 + column, some ? product.result(row, column) : 0.0f);
      });
}

/// A tile a block. `settled`: w and groups may be read at once.
template <typename Tile, typename Out>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kTogether)
    streamWeights(const bf16 *x, const bf16 *w, Out *out, const int32_t *groups, int64_t groupCount,
                  int64_t m, int64_t n, int64_t k, int64_t columnBlocks, bool settled,
                  int32_t *flag) {
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  if (!settled)
    awaitPrevious();
  const int64_t index = blockIdx.x / columnBlocks,
                column0 = blockIdx.x % columnBlocks * Tile::kColumns;
  const RowTile tile = groupCount <= kGroupsOfWarp
                           ? rowTile(groups, groupCount, m, index, Tile::kRows, flag)
                           : blockRowTile(groups, groupCount, m, index, Tile::kRows, flag);
  streamColumns<Tile>(
      x, w, tile, n, k, column0, settled, sharedBytes,
      [&](int64_t row, int64_t column, float sum) { out[row * n + column] = fromFloat<Out>(sum); });
}

/// The same of half as many results, a tile's columns being gates and the ups that belong to them.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kTogether)
    streamGlu(const __grid_constant__ GroupedGlu p, int64_t columnBlocks, bool settled,
              int32_t *flag) {
  constexpr int half = Tile::kColumns / 2;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  if (!settled)
    awaitPrevious();
  const int64_t index = blockIdx.x / columnBlocks, column0 = blockIdx.x % columnBlocks * half;
  const RowTile tile = p.groupCount <= kGroupsOfWarp
                           ? rowTile(p.groups, p.groupCount, p.m, index, Tile::kRows, flag)
                           : blockRowTile(p.groups, p.groupCount, p.m, index, Tile::kRows, flag);
  const bool some = tile.count > 0 && tile.group >= 0;
  const bf16 *w = static_cast<const bf16 *>(p.w) + int64_t(max(0, tile.group)) * 2 * p.n * p.k;
  streamTile<Tile>(
      tile.count, some, p.k, settled, sharedBytes,
      [&](int i) { return w + (i / half * p.n + min(p.n - 1, column0 + i % half)) * p.k; },
      [&](int i) {
        int64_t row = tile.row + i;
        if (p.tokens) {
          row = p.tokens[row];
          if (row < 0 || row >= p.xRows) {
            raise(flag, Fault::row);
            row = 0;
          }
        }
        return static_cast<const bf16 *>(p.x) + row * p.k;
      },
      [&](const Tile &product) {
        for (int at = int(threadIdx.x); at < tile.count * half; at += Tile::kThreads)
          if (const int row = at / half, column = at % half; column0 + column < p.n)
            static_cast<bf16 *>(p.out)[(tile.row + row) * p.n + column0 + column] =
                fromFloat<bf16>(some ? gluOf(p.form, product.result(row, column),
                                             product.result(row, half + column))
                                     : 0.0f);
      });
}

/// Up to four products of the same rows, one behind the other in the grid.
constexpr int kMostParts = 4;
struct Parts {
  const bf16 *w[kMostParts];
  void *out[kMostParts];
  int64_t n[kMostParts];
  int32_t end[kMostParts]; // of its blocks
  bool wide[kMostParts];   // out is f32
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kTogether)
    streamSeveral(const bf16 *x, __grid_constant__ const Parts parts, int64_t m, int64_t k,
                  bool settled) {
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  int part = 0;
  while (int(blockIdx.x) >= parts.end[part])
    ++part;
  const int first = part ? parts.end[part - 1] : 0;
  const int64_t n = parts.n[part], column0 = int64_t(int(blockIdx.x) - first) * Tile::kColumns;
  if (!settled)
    awaitPrevious();
  streamColumns<Tile>(x, parts.w[part], RowTile{0, 0, int32_t(m)}, n, k, column0, settled,
                      sharedBytes, [&](int64_t row, int64_t column, float sum) {
                        const int64_t at = row * n + column;
                        if (parts.wide[part])
                          static_cast<float *>(parts.out[part])[at] = sum;
                        else
                          static_cast<bf16 *>(parts.out[part])[at] = fromFloat<bf16>(sum);
                      });
}

template <typename Tile>
Status launchParts(const Call &call, std::span<const GroupedProduct> products) {
  Parts parts{};
  int32_t blocks = 0;
  bool settled = true;
  for (size_t i = 0; i < kMostParts; ++i) {
    if (i < products.size()) {
      const GroupedProduct &p = products[i];
      parts.w[i] = static_cast<const bf16 *>(p.w);
      parts.out[i] = p.out;
      parts.n[i] = p.n;
      parts.wide[i] = p.outType == fb::DType::f32;
      blocks += int32_t(ceilDiv(p.n, Tile::kColumns));
      settled &= p.settled;
    }
    parts.end[i] = blocks;
  }
  auto kernel = streamSeveral<Tile>;
  constexpr size_t bytes = Tile::kBytes;
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  return launchEarly(call, kernel, unsigned(blocks), Tile::kThreads, bytes,
                     static_cast<const bf16 *>(products[0].x), parts, products[0].m, products[0].k,
                     settled);
}

template <typename Tile, typename Out> Status launch(const Call &call, const GroupedProduct &p) {
  int64_t columnBlocks = ceilDiv(p.n, Tile::kColumns);
  int64_t blocks = columnBlocks * (p.groups ? mostRowTiles(p.m, p.groupCount, Tile::kRows)
                                            : ceilDiv(p.m, Tile::kRows));
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of results", (long long)blocks));
  auto kernel = streamWeights<Tile, Out>;
  constexpr size_t bytes = Tile::kBytes;
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  return launchEarly(call, kernel, unsigned(blocks), Tile::kThreads, bytes, p.x, p.w, p.out,
                     p.groups, p.groupCount, p.m, p.n, p.k, columnBlocks,
                     p.settled && Tile::kWeightsFirst, call.context.errorFlag);
}

template <typename Tile> Status launchGlu(const Call &call, const GroupedGlu &p) {
  const int64_t columnBlocks = ceilDiv(p.n, Tile::kColumns / 2),
                blocks = columnBlocks * mostRowTiles(p.m, p.groupCount, Tile::kRows);
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of results", (long long)blocks));
  auto kernel = streamGlu<Tile>;
  constexpr size_t bytes = Tile::kBytes;
  if (Status s = allowSharedBytes(call, kernel, bytes); !s)
    return s;
  return launchEarly(call, kernel, unsigned(blocks), Tile::kThreads, bytes, p, columnBlocks,
                     p.settled && Tile::kWeightsFirst, call.context.errorFlag);
}

/// The most rows a group may have on average, groups in all, and the largest depth.
constexpr int64_t kFewRows = 16, kMostGroups = 4096, kMostDepth = 1 << 30;
/// Of one group, which cuBLASLt multiplies as well: the most rows for any number of columns, and
/// for few.
constexpr int64_t kFewLinearRows = 8, kFewRowsOfFewColumns = 32, kFewColumns = 1024;

/// What fits in most groups, a third more than the average; larger ones take several tiles.
int64_t mostRowsOf(int64_t m, int64_t groupCount) {
  return std::min(m, ceilDiv(m * 4, groupCount * 3));
}

} // namespace

bool hasFewRows(const GroupedProduct &p) {
  const int64_t most = p.groups             ? p.groupCount * kFewRows
                       : p.n <= kFewColumns ? kFewRowsOfFewColumns
                                            : kFewLinearRows;
  return p.inType == fb::DType::bf16 && p.k > 0 && p.k <= kMostDepth && p.k % kChunk == 0 &&
         addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0 && p.m <= most &&
         p.groupCount <= kMostGroups;
}

bool hasFewRows(const GroupedGlu &p) {
  return p.dtype == fb::DType::bf16 && !p.kept && p.k > 0 && p.k <= kMostDepth &&
         p.k % kChunk == 0 && addressOf(p.x) % 16 == 0 && addressOf(p.w) % 16 == 0 &&
         p.m <= p.groupCount * kFewRows && p.groupCount <= kMostGroups;
}

Status launchProductFewRows(const Call &call, const GroupedProduct &p) {
  const int64_t most = p.groups ? mostRowsOf(p.m, p.groupCount) : p.m;
  const int64_t tiles = p.groups ? std::min(p.m, p.groupCount) : 1;
  const int64_t blocks = tiles * ceilDiv(p.n, 16);
  return withFloat(p.outType, [&]<typename Out>(Out) {
    if (most <= 8)
      return withTile(blocks, p.k, [&]<typename Tile>(std::type_identity<Tile>) {
        return launch<Tile, Out>(call, p);
      });
    return blocks >= kManyBlocks ? launch<TallTile, Out>(call, p)
                                 : launch<DeepTallTile, Out>(call, p);
  });
}

Status launchGluFewRows(const Call &call, const GroupedGlu &p) {
  const int64_t blocks = std::min(p.m, p.groupCount) * ceilDiv(p.n, 8);
  if (mostRowsOf(p.m, p.groupCount) > 8)
    return blocks >= kManyBlocks ? launchGlu<TallTile>(call, p) : launchGlu<DeepTallTile>(call, p);
  if (blocks < kManyBlocks)
    return launchGlu<DeepTile>(call, p);
  return areShort(blocks, p.k) ? launchGlu<ShortTile>(call, p) : launchGlu<LongTile>(call, p);
}

bool haveFewRows(std::span<const GroupedProduct> products) {
  int64_t blocks = 0;
  for (const GroupedProduct &p : products) {
    blocks += ceilDiv(p.n, 16);
    if (!hasFewRows(p) || p.m > 8 || p.m == 0 || p.groups)
      return false;
  }
  return products.size() <= kMostParts && blocks > 0 && blocks <= INT32_MAX / 2;
}

Status launchProductsFewRows(const Call &call, std::span<const GroupedProduct> products) {
  int64_t blocks = 0;
  for (const GroupedProduct &p : products)
    blocks += ceilDiv(p.n, 16);
  return withTile(blocks, products[0].k, [&]<typename Tile>(std::type_identity<Tile>) {
    return launchParts<Tile>(call, products);
  });
}

} // namespace moira::rt::cuda
