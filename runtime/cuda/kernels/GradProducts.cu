//===- GradProducts.cu - gradients of dense and grouped products ------------===//
// linear_input_grad, linear_weight_grad, head_weight_grad, grouped_input_grad, grouped_weight_grad,
// grouped_bias_grad, sum_rows. Dense ones run on cuBLASLt, grouped ones of bf16 on
// Hopper's tiles; cotangents in f32 that meet bf16 are then rounded first, a part that fits the
// workspace at a time. For the rest a tiled product in f32 serves, in tiles of two sizes: it reads
// matrices by strides, and rows or terms by groups.
//===----------------------------------------------------------------------===//
#include "GradTools.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

constexpr int kTile = 32;

/// out[z][r,c] = Σ_i a[z][i,r] · b[z][i,c]. Strides count elements: of i and r in a, of i and c in
/// b, and of one z in each.
struct Product {
  Reader a, b;
  Writer out;
  int64_t rows, columns, inner;
  int64_t aInner, aRow, aNext, bInner, bColumn, bNext, outNext;
  const int32_t *groups; // null: none; else z is a group of `grouped` elements' run
  bool innerGrouped;     // the run is one of i, else of r
};

/// First element and size of the z-th group; size 0, and a fault, if the groups do not fit. By
/// whole warps, each for itself.
__device__ void groupOf(const int32_t *groups, int64_t z, int64_t room, int64_t &first,
                        int64_t &size, int32_t *flag) {
  int64_t before = 0;
  bool sound = true;
  for (int64_t g = laneNumber(); g < z; g += 32) {
    sound &= groups[g] >= 0;
    before += groups[g];
  }
  for (int step = 16; step > 0; step /= 2)
    before += __shfl_xor_sync(kAllLanes, before, step);
  first = before;
  size = groups[z];
  if (__all_sync(kAllLanes, sound) && size >= 0 && first + size <= room)
    return;
  first = size = 0;
  if (threadIdx.x == 0)
    raise(flag, Fault::groups);
}

__global__ void multiply(Product p, int32_t *flag) {
  __shared__ float aTile[kTile][kTile + 1], bTile[kTile][kTile + 1];
  int64_t z = blockIdx.z, rows = p.rows, inner = p.inner, firstRow = 0, firstInner = 0;
  if (p.groups) {
    int64_t &first = p.innerGrouped ? firstInner : firstRow;
    groupOf(p.groups, z, p.innerGrouped ? p.inner : p.rows, first, p.innerGrouped ? inner : rows,
            flag);
  }
  int64_t row0 = int64_t(blockIdx.y) * kTile, column0 = int64_t(blockIdx.x) * kTile;
  if (row0 >= rows)
    return;
  int x = threadIdx.x % kTile, y = threadIdx.x / kTile; // 32 x 8 threads, four rows each
  float sum[4] = {};
  for (int64_t i0 = 0; i0 < inner; i0 += kTile) {
    for (int j = y; j < kTile; j += 8) {
      int64_t i = i0 + j, r = row0 + x, c = column0 + x;
      aTile[j][x] = i < inner && r < rows
                        ? p.a[z * p.aNext + (firstInner + i) * p.aInner + (firstRow + r) * p.aRow]
                        : 0.0f;
      bTile[j][x] = i < inner && c < p.columns
                        ? p.b[z * p.bNext + (firstInner + i) * p.bInner + c * p.bColumn]
                        : 0.0f;
    }
    __syncthreads();
    for (int i = 0; i < kTile; ++i)
#pragma unroll
      for (int q = 0; q < 4; ++q)
        sum[q] += aTile[i][y + 8 * q] * bTile[i][x];
    __syncthreads();
  }
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    int64_t r = row0 + y + 8 * q, c = column0 + x;
    if (r < rows && c < p.columns)
      p.out.set(z * p.outNext + (firstRow + r) * p.columns + c, sum[q]);
  }
}

constexpr int kWide = 128, kDepth = 8, kWideThreads = 256; // a tile of 128 x 128, 8 x 8 a thread
constexpr int kApart = kWideThreads / kDepth; // rows from one of a thread's elements to the next
constexpr int kWideStride = kWide + 4;        // of rows in shared memory, in whole vectors
constexpr int kHeld = kWide * kDepth / kWideThreads; // of a tile's elements that a thread moves

/// One factor's elements that a thread brings to shared memory, tile by tile along the terms i:
/// kHeld a tile, of one i if terms lie side by side in memory, else of one row (or column) r.
template <typename S> struct Mover {
  const S *at;        // its first element of the next tile
  int64_t next, step; // from tile to tile, from one of its elements to the next
  int64_t left;       // terms from its own first one on
  int rows;           // of its elements, those whose row exists
  int i, r;           // where its first one stands in a tile
  bool alongTerms;

  /// `first`: the tile's first row at the first term; `terms` and `height`: how many there are from
  /// there on.
  __device__ Mover(const S *first, int64_t termStride, int64_t rowStride, int64_t terms,
                   int64_t height)
      : next(kDepth * termStride), alongTerms(termStride == 1) {
    i = int(threadIdx.x) / (alongTerms ? 1 : kWide) % kDepth;
    r = int(threadIdx.x) / (alongTerms ? kDepth : 1) % kWide;
    at = first + i * termStride + r * rowStride;
    step = alongTerms ? kApart * rowStride : 2 * termStride;
    left = terms - i;
    int64_t there = height - r;
    rows = there <= 0                                    ? 0
           : !alongTerms || there > kApart * (kHeld - 1) ? kHeld
                                                         : int(there + kApart - 1) / kApart;
  }
  __device__ void fetch(float (&held)[kHeld]) {
    int count = left <= 0 ? 0 : alongTerms || left >= 2 * kHeld ? kHeld : int(left + 1) / 2;
    count = min(count, rows);
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      held[j] = j < count ? toFloat(at[j * step]) : 0.0f;
    at += next;
    left -= kDepth;
  }
  __device__ void store(float (*tile)[kWideStride], const float (&held)[kHeld]) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      tile[alongTerms ? i : i + 2 * j][alongTerms ? r + kApart * j : r] = held[j];
  }
};

/// As multiply, for large products: each thread makes rows 4·y + {0…3} and columns 4·x + {0…3} of
/// the four quarters of a tile, and loads the next terms while it adds these.
template <typename A, typename B>
__global__ void __launch_bounds__(kWideThreads, 2) multiplyWide(Product p, int32_t *flag) {
  __shared__ __align__(16) float aTile[kDepth][kWideStride], bTile[kDepth][kWideStride];
  int64_t z = blockIdx.z, rows = p.rows, inner = p.inner, firstRow = 0, firstInner = 0;
  if (p.groups) {
    int64_t &first = p.innerGrouped ? firstInner : firstRow;
    groupOf(p.groups, z, p.innerGrouped ? p.inner : p.rows, first, p.innerGrouped ? inner : rows,
            flag);
  }
  int64_t row0 = int64_t(blockIdx.y) * kWide, column0 = int64_t(blockIdx.x) * kWide;
  if (row0 >= rows)
    return;
  Mover<A> aMover(static_cast<const A *>(p.a.data) + z * p.aNext + firstInner * p.aInner +
                      (firstRow + row0) * p.aRow,
                  p.aInner, p.aRow, inner, rows - row0);
  Mover<B> bMover(static_cast<const B *>(p.b.data) + z * p.bNext + firstInner * p.bInner +
                      column0 * p.bColumn,
                  p.bInner, p.bColumn, inner, p.columns - column0);
  float aHeld[kHeld], bHeld[kHeld], sum[8][8] = {};
  int x = int(threadIdx.x) % 16, y = int(threadIdx.x) / 16;
  aMover.fetch(aHeld);
  bMover.fetch(bHeld);
  for (int64_t i0 = 0; i0 < inner; i0 += kDepth) {
    __syncthreads(); // nobody reads the terms before these any more
    aMover.store(aTile, aHeld);
    bMover.store(bTile, bHeld);
    __syncthreads();
    aMover.fetch(aHeld);
    bMover.fetch(bHeld);
#pragma unroll 4
    for (int i = 0; i < kDepth; ++i) {
      float a[8], b[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<float4 *>(a + 4 * half) =
            *reinterpret_cast<const float4 *>(&aTile[i][64 * half + 4 * y]);
        *reinterpret_cast<float4 *>(b + 4 * half) =
            *reinterpret_cast<const float4 *>(&bTile[i][64 * half + 4 * x]);
      }
#pragma unroll
      for (int q = 0; q < 8; ++q)
#pragma unroll
        for (int c = 0; c < 8; ++c)
          sum[q][c] += a[q] * b[c];
    }
  }
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    int64_t r = row0 + 64 * (q / 4) + 4 * y + q % 4;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      int64_t c = column0 + 64 * (n / 4) + 4 * x + n % 4;
      if (r < rows && c < p.columns)
        p.out.set(z * p.outNext + (firstRow + r) * p.columns + c, sum[q][n]);
    }
  }
}

Status launch(const Call &call, const Product &p, int64_t count) {
  if (count == 0 || p.rows == 0 || p.columns == 0)
    return {};
  // Small products make too few large tiles to fill a device.
  constexpr int64_t kEnough = 64;
  bool wide = ceilDiv(p.columns, kWide) * ceilDiv(p.rows, kWide) * count >= kEnough;
  int64_t tile = wide ? kWide : kTile;
  int64_t down = ceilDiv(p.rows, tile);
  if (down > 65535 || count > 65535)
    return notOnCuda(call, "so many rows or groups");
  dim3 blocks(unsigned(ceilDiv(p.columns, tile)), unsigned(down), unsigned(count));
  if (!wide) {
    multiply<<<blocks, 256, 0, call.stream()>>>(p, call.context.errorFlag);
    return launched(call);
  }
  return withFloat(p.a.isBf16 ? fb::DType::bf16 : fb::DType::f32, [&]<typename A>(A) {
    return withFloat(p.b.isBf16 ? fb::DType::bf16 : fb::DType::f32, [&]<typename B>(B) {
      multiplyWide<A, B><<<blocks, kWideThreads, 0, call.stream()>>>(p, call.context.errorFlag);
      return launched(call);
    });
  });
}

/// out[r,c] = x[r,c], rounded: `packs` packs a row of a matrix whose rows are `width` values apart.
/// A thread rounds `n` neighbours.
template <int n>
__global__ void roundColumns(const float *x, bf16 *out, int64_t rows, int64_t packs,
                             int64_t width) {
  for (int64_t i = threadNumber(); i < rows * packs; i += threadCount()) {
    int64_t row, column;
    divide(i, packs, row, column);
    const auto from = *reinterpret_cast<const Pack<float, n> *>(x + row * width + column * n);
    Pack<bf16, n> to;
#pragma unroll
    for (int u = 0; u < n; ++u)
      to.v[u] = fromFloat<bf16>(from.v[u]);
    reinterpret_cast<Pack<bf16, n> *>(out)[i] = to;
  }
}

/// Half of the workspace is for a rounded operand, the other one for cuBLASLt.
struct Halves {
  explicit Halves(const Call &call)
      : rounded(static_cast<bf16 *>(call.context.workspace)),
        values(int64_t(call.context.workspaceBytes / 2 / sizeof(bf16))),
        rest(static_cast<char *>(call.context.workspace) + call.context.workspaceBytes / 2),
        restBytes(call.context.workspaceBytes / 2) {}
  bf16 *rounded;
  int64_t values;
  void *rest;
  size_t restBytes;
};

Status round(const Call &call, const TensorRef &x, bf16 *out, int64_t firstRow, int64_t rows,
             int64_t firstColumn, int64_t columns, int64_t width) {
  const float *from = static_cast<const float *>(x.data) + firstRow * width + firstColumn;
  auto launch = [&]<int n>(std::integral_constant<int, n>) {
    const int64_t packs = columns / n;
    roundColumns<n><<<blocksOfThreads(rows * packs), kWarpBlock, 0, call.stream()>>>(
        from, out, rows, packs, width);
    return launched(call);
  };
  const bool whole = columns % kNeighbours == 0 && width % kNeighbours == 0 &&
                     (addressOf(from) | addressOf(out)) % (kNeighbours * sizeof(float)) == 0;
  return whole ? launch(std::integral_constant<int, kNeighbours>())
               : launch(std::integral_constant<int, 1>());
}

/// Whether cuBLASLt can multiply operands of these types, perhaps with the first one rounded.
bool multiplies(const TensorRef &dy, const TensorRef &other, const TensorRef &out) {
  bool sameAsOut = out.dtype == other.dtype || out.dtype == fb::DType::f32;
  return sameAsOut && (dy.dtype == other.dtype || other.dtype == fb::DType::bf16);
}

/// dy[m,n] w[n,k], rows of dy at a time. False: not done.
Expected<bool> inputGradient(const Call &call, int64_t m, int64_t n, int64_t k) {
  const TensorRef &dy = call.in[0], &w = call.in[1], &out = call.out[0];
  if (!call.context.blaslt || m == 0 || n == 0 || k == 0 || !multiplies(dy, w, out))
    return false;
  const bool rounds = dy.dtype != w.dtype;
  Halves halves(call);
  const int64_t atOnce = rounds ? std::min(m, halves.values / n) : m;
  if (atOnce == 0)
    return false;
  for (int64_t row = 0; row < m; row += atOnce) {
    const int64_t rows = std::min(atOnce, m - row);
    const void *left = dy.data;
    if (rounds) {
      if (Status s = round(call, dy, halves.rounded, row, rows, 0, n, n); !s)
        return s;
      left = halves.rounded;
    }
    Expected<bool> done = multiplyDense(
        call,
        {left, w.data, static_cast<char *>(out.data) + row * k * int64_t(elementBytes(out.dtype)),
         w.dtype, out.dtype, rows, k, n, false, true, halves.rest, halves.restBytes});
    if (!done || !*done)
      return done;
  }
  return true;
}

/// dy^T[n,m] x[m,k], columns of dy at a time.
Expected<bool> weightGradient(const Call &call, int64_t m, int64_t n, int64_t k) {
  const TensorRef &dy = call.in[0], &x = call.in[1], &out = call.out[0];
  if (!call.context.blaslt || m == 0 || n == 0 || k == 0 || !multiplies(dy, x, out))
    return false;
  const bool rounds = dy.dtype != x.dtype;
  Halves halves(call);
  int64_t atOnce = n;
  if (rounds && m * n > halves.values)
    atOnce = halves.values / m / 64 * 64; // aligned parts
  if (atOnce == 0)
    return false;
  for (int64_t column = 0; column < n; column += atOnce) {
    const int64_t columns = std::min(atOnce, n - column);
    const void *left = dy.data;
    if (rounds) {
      if (Status s = round(call, dy, halves.rounded, 0, m, column, columns, n); !s)
        return s;
      left = halves.rounded;
    }
    Expected<bool> done = multiplyDense(
        call, {left, x.data,
               static_cast<char *>(out.data) + column * k * int64_t(elementBytes(out.dtype)),
               x.dtype, out.dtype, columns, k, m, true, true, halves.rest, halves.restBytes});
    if (!done || !*done)
      return done;
  }
  return true;
}

/// Whether Hopper's tiles may take them.
bool areBf16(const TensorRef &a, const TensorRef &b) {
  return a.dtype == fb::DType::bf16 && b.dtype == fb::DType::bf16;
}

Status zero(const Call &call, const TensorRef &tensor) {
  return checked(call.name, cudaMemsetAsync(tensor.data, 0,
                                            size_t(tensor.elements()) * elementBytes(tensor.dtype),
                                            call.stream()));
}

/// out[z · width + c] = Σ of x[i · width + c] over i; with groups, z's run of i for each
/// blockIdx.y. A block makes 32 columns: its 32 warps' lanes take one each, and the warps share the
/// rows.
__global__ void sumColumns(Reader x, float *out, int64_t rows, int64_t width, const int32_t *groups,
                           int32_t *flag) {
  __shared__ float sums[32][33];
  int64_t z = blockIdx.y, first = 0, size = rows;
  if (groups)
    groupOf(groups, z, rows, first, size, flag);
  int warp = int(threadIdx.x) / 32, lane = laneNumber();
  int64_t column = int64_t(blockIdx.x) * 32 + lane;
  float sum = 0;
  for (int64_t i = first + warp; i < first + size && column < width; i += 32)
    sum += x[i * width + column];
  sums[warp][lane] = sum;
  __syncthreads();
  // Warp w adds up the 32 sums of column w.
  sum = warpSum(sums[lane][warp]);
  column = int64_t(blockIdx.x) * 32 + warp;
  if (lane == 0 && column < width)
    out[z * width + column] = sum;
}

Status launchSums(const Call &call, int64_t rows, int64_t width, const int32_t *groups,
                  int64_t count) {
  if (count == 0 || width == 0)
    return {};
  if (count > 65535)
    return notOnCuda(call, "so many groups");
  sumColumns<<<dim3(unsigned(ceilDiv(width, 32)), unsigned(count)), 1024, 0, call.stream()>>>(
      Reader(call.in[0]), call.output<float>(0), rows, width, groups, call.context.errorFlag);
  return launched(call);
}

} // namespace

Status ops::linear_input_grad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  int64_t m = leading(call.out[0], contract), n = leading(call.in[1], contract),
          k = trailing(call.in[1], contract);
  Expected<bool> done = inputGradient(call, m, n, k);
  if (!done || *done)
    return done.takeStatus();
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), m, k, n, 1, n, 0, k,
                 1, 0, 0, nullptr, false},
                1);
}

Status ops::linear_weight_grad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  int64_t m = leading(call.in[1], contract), n = leading(call.out[0], contract),
          k = trailing(call.in[1], contract);
  Expected<bool> done = weightGradient(call, m, n, k);
  if (!done || *done)
    return done.takeStatus();
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n, k, m, n, 1, 0, k,
                 1, 0, 0, nullptr, false},
                1);
}

Status ops::head_weight_grad(const Call &call) {
  const std::vector<int64_t> &shape = call.out[0].shape;
  int64_t heads = shape[0], n = shape[1], k = shape[2], tokens = leading(call.in[0], 2);
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[1]), Writer(call.out[0]), n, k, tokens,
                 heads * n, 1, n, heads * k, 1, k, n * k, nullptr, false},
                heads);
}

Status ops::grouped_input_grad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[2], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract"), rows = call.in[0].shape[0];
  int64_t k = trailing(call.in[2], contract), n = rows ? call.in[0].elements() / rows : 0;
  if (areBf16(call.in[0], call.in[2]) && rows > 0 && k > 0) {
    const GroupedProduct product{call.in[0].data,
                                 call.in[2].data,
                                 call.out[0].data,
                                 fb::DType::bf16,
                                 call.out[0].dtype,
                                 call.input<int32_t>(1),
                                 call.in[1].elements(),
                                 rows,
                                 k,
                                 n,
                                 true};
    if (fitsWgmma(product) && isHopper())
      return launchProductWgmma(call, product);
  }
  if (Status s = zero(call, call.out[0]); !s) // rows past the groups
    return s;
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[2]), Writer(call.out[0]), rows, k, n, 1, n, 0,
                 k, 1, n * k, 0, call.input<int32_t>(1), false},
                call.in[1].elements());
}

Status ops::grouped_weight_grad(const Call &call) {
  if (call.in.size() > 3) // counts of samples, to add up rows by
    return notOnCuda(call, "plans of --deterministic");
  if (Status s = checkTrailing(call, "contract", {&call.in[2], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract"), rows = call.in[0].shape[0];
  int64_t k = trailing(call.in[2], contract), groups = call.in[1].elements(),
          n = groups * k ? call.out[0].elements() / (groups * k) : 0;
  if (groups * n * k == 0)
    return {};
  if (areBf16(call.in[0], call.in[2])) {
    const WeightGradient gradient{call.in[0].data,
                                  call.in[2].data,
                                  call.out[0].data,
                                  call.out[0].dtype,
                                  call.input<int32_t>(1),
                                  groups,
                                  rows,
                                  n,
                                  k};
    if (fitsWgmma(gradient) && isHopper())
      return launchWeightGradient(call, gradient);
  }
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[2]), Writer(call.out[0]), n, k, rows, n, 1, 0,
                 k, 1, 0, n * k, call.input<int32_t>(1), true},
                groups);
}

Status ops::grouped_bias_grad(const Call &call) {
  if (call.in.size() > 2) // counts of samples, to add up rows by
    return notOnCuda(call, "plans of --deterministic");
  int64_t n = call.in[1].elements();
  return launchSums(call, call.in[0].shape[0], n ? call.out[0].elements() / n : 0,
                    call.input<int32_t>(1), n);
}

Status ops::sum_rows(const Call &call) {
  int64_t width = call.out[0].elements();
  return launchSums(call, width ? call.in[0].elements() / width : 0, width, nullptr, 1);
}

} // namespace moira::rt::cuda
