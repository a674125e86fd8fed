//===- ProductFewRows.cu - grouped products that stream the weights ---------===//
// For few rows a group, as decode has them, a product takes as long as reading its weights. A block
// makes the results of 16 columns for up to 16 rows of one group: its warps share the depth.
// Each lane copies the bytes of its own fragments, several steps ahead, so nobody waits for others
// until the warps' sums are added, always in the same order.
//===----------------------------------------------------------------------===//
#include "GroupTiles.h"
#include "Tiles.h"

namespace moira::rt::cuda {
namespace {

/// Values of each row that a warp takes at a time, as two chunks a lane.
constexpr int kDepth = 64, kReads = 2;
/// With fewer blocks than this, blocks are larger, so that every SM has enough reads under way.
constexpr int64_t kManyBlocks = 512;
/// With more than this, the largest blocks would not all run at once.
constexpr int64_t kFewBlocks = 132;
/// The most groups among which each warp looks for its tile by itself.
constexpr int64_t kGroupsOfWarp = 256;
/// Bytes that a warp's 16-byte copies fill.
constexpr int kCopyBytes = 512;

/// What is read by it makes room in the L2 cache before all else: of weights each byte is read
/// once, and kernels and activations should stay.
__device__ inline uint64_t readOncePolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

/// Copies 16 bytes that this thread alone reads back, or writes zeros. Weights (`kept` false) are
/// read once and pass by the L1 cache, where the rows stay.
template <bool kept>
__device__ void copyOwn(uint32_t to, const bf16 *from, bool valid, uint64_t policy = 0) {
  const int bytes = valid ? 16 : 0;
  if constexpr (kept)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;\n" ::"r"(to),
        "l"(from), "r"(bytes), "l"(policy)
        : "memory");
}
__device__ inline uint4 readOwn(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

/// A block's shared memory: for each warp a ring of stages, in whose place its sums come in the
/// end.
template <int rowParts, int warps> struct Layout {
  static constexpr int rows = rowParts * 8, columns = 16, pitch = columns + 4;
  static constexpr int copies = kReads * (2 + rowParts); // a lane and stage
  static constexpr int stageBytes = copies * kCopyBytes;
  static constexpr int stages = warps == 16 ? 4 : 3;
  static constexpr int ringBytes = stages * stageBytes;
  static_assert(stages >= 2 && rows * pitch * int(sizeof(float)) <= ringBytes);
  static constexpr size_t bytes = size_t(warps) * ringBytes;
};

/// What the warps of a block make of one tile: `tile.count` rows of x by 16 rows of w (n in each
/// group, of k values) from `column0` on; store(row, column, sum) gets each result. A lane's 16
/// bytes are the fragments of two matrix instructions: the order of the depth inside an instruction
/// is the same on both sides, which is all that a product asks of it.
template <int rowParts, int warps, typename Store>
__device__ __forceinline__ void streamTile(const bf16 *x, const bf16 *w, const RowTile &tile,
                                           int64_t n, int64_t k, int64_t column0,
                                           unsigned char *sharedBytes, Store store) {
  using L = Layout<rowParts, warps>;
  const int lane = laneNumber(), warp = int(threadIdx.x) / 32, quad = lane / 4;
  unsigned char *ring = sharedBytes + warp * L::ringBytes;
  float sum[rowParts][4] = {};
  const uint64_t once = readOncePolicy();
  if (tile.group >= 0) {
    // Rows and columns past the end are the last one again; their results are not stored.
    const bf16 *left[2], *right[rowParts];
    const bf16 *matrix = w + int64_t(tile.group) * n * k + lane % 4 * kChunk;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      left[half] = matrix + min(n - 1, column0 + half * 8 + quad) * k;
#pragma unroll
    for (int j = 0; j < rowParts; ++j)
      right[j] = x + (tile.row + min(tile.count - 1, j * 8 + quad)) * k + lane % 4 * kChunk;
    const int live = (tile.count + 7) / 8;

    // Step s of this warp; one group of copies in any case.
    const uint32_t own = sharedAddress(ring) + lane * 16;
    auto issue = [&](int64_t s) {
      const int64_t at = (s * warps + warp) * kDepth;
      uint32_t to = own + uint32_t(s % L::stages) * L::stageBytes;
      if (at < k) {
#pragma unroll
        for (int c = 0; c < kReads; ++c) {
          const int64_t from = at + c * (kDepth / kReads);
          const bool there = from + lane % 4 * kChunk < k;
#pragma unroll
          for (int half = 0; half < 2; ++half, to += kCopyBytes)
            copyOwn<false>(to, there ? left[half] + from : w, there, once);
#pragma unroll
          for (int j = 0; j < rowParts; ++j, to += kCopyBytes)
            if (j == 0 || j < live)
              copyOwn<true>(to, there ? right[j] + from : x, there);
        }
      }
      commitCopies();
    };
#pragma unroll
    for (int s = 0; s < L::stages - 1; ++s)
      issue(s);
    for (int64_t s = 0; (s * warps + warp) * kDepth < k; ++s) {
      issue(s + L::stages - 1);
      waitCopies<L::stages - 1>(); // what this lane reads, it copied
      uint32_t from = own + uint32_t(s % L::stages) * L::stageBytes;
#pragma unroll
      for (int c = 0; c < kReads; ++c) {
        const uint4 low = readOwn(from), high = readOwn(from + kCopyBytes);
        const uint32_t first[4] = {low.x, high.x, low.y, high.y},
                       second[4] = {low.z, high.z, low.w, high.w};
        from += 2 * kCopyBytes;
#pragma unroll
        for (int j = 0; j < rowParts; ++j, from += kCopyBytes) {
          if (j > 0 && j >= live)
            continue;
          const uint4 b = readOwn(from);
          multiplyAdd(sum[j], first, b.x, b.y);
          multiplyAdd(sum[j], second, b.z, b.w);
        }
      }
    }
    waitCopies<0>();
  }

  auto sumsOf = [&](int s) {
    return reinterpret_cast<float (*)[L::pitch]>(sharedBytes + s * L::ringBytes);
  };
  __syncwarp(); // the ring is read
#pragma unroll
  for (int j = 0; j < rowParts; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      sumsOf(warp)[j * 8 + lane % 4 * 2 + c % 2][c / 2 * 8 + quad] = sum[j][c];
  __syncthreads();
  for (int at = int(threadIdx.x); at < tile.count * L::columns; at += warps * 32) {
    const int row = at / L::columns, column = at % L::columns;
    float total = 0;
#pragma unroll
    for (int s = 0; s < warps; ++s)
      total += sumsOf(s)[row][column];
    if (column0 + column < n)
      store(tile.row + row, column0 + column, total);
  }
}

/// `rowParts` × 8 rows of x by 16 rows of w.
template <int rowParts, int warps, typename Out>
__global__ void __launch_bounds__(warps * 32)
    streamWeights(const bf16 *x, const bf16 *w, Out *out, const int32_t *groups, int64_t groupCount,
                  int64_t m, int64_t n, int64_t k, int64_t columnBlocks, int32_t *flag) {
  using L = Layout<rowParts, warps>;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  const int64_t column0 = blockIdx.x % columnBlocks * L::columns;
  awaitResults();
  letNextStart();
  const int64_t index = blockIdx.x / columnBlocks;
  const RowTile tile = groupCount <= kGroupsOfWarp
                           ? rowTile(groups, groupCount, m, index, L::rows, flag)
                           : blockRowTile(groups, groupCount, m, index, L::rows, flag);
  if (tile.count == 0)
    return;
  streamTile<rowParts, warps>(
      x, w, tile, n, k, column0, sharedBytes,
      [&](int64_t row, int64_t column, float sum) { out[row * n + column] = fromFloat<Out>(sum); });
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

template <int warps>
__global__ void __launch_bounds__(warps * 32)
    streamSeveral(const bf16 *x, __grid_constant__ const Parts parts, int64_t m, int64_t k) {
  using L = Layout<1, warps>;
  extern __shared__ __align__(128) unsigned char sharedBytes[];
  int part = 0;
  while (int(blockIdx.x) >= parts.end[part])
    ++part;
  const int first = part ? parts.end[part - 1] : 0;
  const int64_t n = parts.n[part], column0 = int64_t(int(blockIdx.x) - first) * L::columns;
  awaitResults();
  letNextStart();
  streamTile<1, warps>(x, parts.w[part], RowTile{0, 0, int32_t(m)}, n, k, column0, sharedBytes,
                       [&](int64_t row, int64_t column, float sum) {
                         const int64_t at = row * n + column;
                         if (parts.wide[part])
                           static_cast<float *>(parts.out[part])[at] = sum;
                         else
                           static_cast<bf16 *>(parts.out[part])[at] = fromFloat<bf16>(sum);
                       });
}

template <int warps>
Status launchParts(const Call &call, const bf16 *x, const Parts &parts, int32_t blocks, int64_t m,
                   int64_t k) {
  auto kernel = streamSeveral<warps>;
  constexpr size_t bytes = Layout<1, warps>::bytes;
  if (Status s = checked(
          call.name,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
      !s)
    return s;
  return launchEarly(call, kernel, unsigned(blocks), warps * 32, bytes, x, parts, m, k);
}

template <int rowParts, int warps, typename Out>
Status launch(const Call &call, const GroupedProduct &p) {
  int64_t columnBlocks = ceilDiv(p.n, 16);
  int64_t blocks = columnBlocks * (p.groups ? mostRowTiles(p.m, p.groupCount, rowParts * 8)
                                            : ceilDiv(p.m, rowParts * 8));
  if (blocks > INT32_MAX)
    return notOnCuda(call, format("%lld tiles of results", (long long)blocks));
  auto kernel = streamWeights<rowParts, warps, Out>;
  constexpr size_t bytes = Layout<rowParts, warps>::bytes;
  if (Status s = checked(
          call.name,
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
      !s)
    return s;
  return launchEarly(call, kernel, unsigned(blocks), warps * 32, bytes, p.x, p.w, p.out, p.groups,
                     p.groupCount, p.m, p.n, p.k, columnBlocks, call.context.errorFlag);
}

/// The most rows a group may have on average, and groups in all.
constexpr int64_t kFewRows = 16, kMostGroups = 4096;
/// Of one group, which cuBLASLt multiplies as well: the most rows for any number of columns, and
/// for few.
constexpr int64_t kFewLinearRows = 8, kFewRowsOfFewColumns = 32, kFewColumns = 1024;

} // namespace

bool hasFewRows(const GroupedProduct &p) {
  const int64_t most = p.groups             ? p.groupCount * kFewRows
                       : p.n <= kFewColumns ? kFewRowsOfFewColumns
                                            : kFewLinearRows;
  return p.inType == fb::DType::bf16 && p.k > 0 && p.k % kChunk == 0 && addressOf(p.x) % 16 == 0 &&
         addressOf(p.w) % 16 == 0 && p.m <= most && p.groupCount <= kMostGroups;
}

Status launchProductFewRows(const Call &call, const GroupedProduct &p) {
  // A third more than the average fits in most groups; groups that are larger take several tiles.
  const int64_t most = p.groups ? std::min(p.m, ceilDiv(p.m * 4, p.groupCount * 3)) : p.m;
  const int64_t tiles = p.groups ? std::min(p.m, p.groupCount) : 1;
  const bool many = tiles * ceilDiv(p.n, 16) >= kManyBlocks;
  return withFloat(p.outType, [&]<typename Out>(Out) {
    if (most <= 8 && many)
      return launch<1, 4, Out>(call, p);
    if (most <= 8)
      return tiles * ceilDiv(p.n, 16) > kFewBlocks ? launch<1, 8, Out>(call, p)
                                                   : launch<1, 16, Out>(call, p);
    return many ? launch<2, 4, Out>(call, p) : launch<2, 8, Out>(call, p);
  });
}

bool haveFewRows(std::span<const GroupedProduct> products) {
  int64_t blocks = 0;
  for (const GroupedProduct &p : products) {
    blocks += ceilDiv(p.n, 16);
    if (!hasFewRows(p) || p.m > 8 || p.m == 0 || p.groups)
      return false;
  }
  return products.size() <= kMostParts && blocks > 0 && blocks <= INT32_MAX;
}

Status launchProductsFewRows(const Call &call, std::span<const GroupedProduct> products) {
  Parts parts{};
  int32_t blocks = 0;
  for (size_t i = 0; i < kMostParts; ++i) {
    if (i < products.size()) {
      const GroupedProduct &p = products[i];
      parts.w[i] = static_cast<const bf16 *>(p.w);
      parts.out[i] = p.out;
      parts.n[i] = p.n;
      parts.wide[i] = p.outType == fb::DType::f32;
      blocks += int32_t(ceilDiv(p.n, 16));
    }
    parts.end[i] = blocks;
  }
  const auto *x = static_cast<const bf16 *>(products[0].x);
  const int64_t m = products[0].m, k = products[0].k;
  if (blocks >= kManyBlocks)
    return launchParts<4>(call, x, parts, blocks, m, k);
  if (blocks > kFewBlocks)
    return launchParts<8>(call, x, parts, blocks, m, k);
  return launchParts<16>(call, x, parts, blocks, m, k);
}

} // namespace moira::rt::cuda
