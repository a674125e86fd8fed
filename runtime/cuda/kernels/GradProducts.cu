//===- GradProducts.cu - gradients of dense and grouped products ------------===//
// linear_input_grad, linear_weight_grad, head_weight_grad, grouped_input_grad, grouped_weight_grad,
// grouped_bias_grad, embedding_grad, sum_rows. One tiled product in f32 serves all of them: it
// reads matrices by strides, and rows or terms by groups.
//===----------------------------------------------------------------------===//
#include "GradTools.h"

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

/// First element and size of the z-th group; size 0, and a fault, if the groups do not fit.
__device__ void groupOf(const int32_t *groups, int64_t z, int64_t room, int64_t &first,
                        int64_t &size, int32_t *flag) {
  first = 0;
  bool sound = true;
  for (int64_t g = 0; g < z; ++g) {
    sound &= groups[g] >= 0;
    first += groups[g];
  }
  size = groups[z];
  if (sound && size >= 0 && first + size <= room)
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

Status launch(const Call &call, const Product &p, int64_t count) {
  if (count == 0 || p.rows == 0 || p.columns == 0)
    return {};
  dim3 blocks(unsigned(ceilDiv(p.columns, kTile)), unsigned(ceilDiv(p.rows, kTile)),
              unsigned(count));
  if (blocks.y > 65535 || blocks.z > 65535)
    return notOnCuda(call, "so many rows or groups");
  multiply<<<blocks, 256, 0, call.stream()>>>(p, call.context.errorFlag);
  return launched(call);
}

Status zero(const Call &call, const TensorRef &tensor) {
  return checked(call.name, cudaMemsetAsync(tensor.data, 0,
                                            size_t(tensor.elements()) * elementBytes(tensor.dtype),
                                            call.stream()));
}

/// out[j] = Σ of x[i · width + j] over i, one thread a column; with groups, one run of i for each.
__global__ void sumColumns(Reader x, float *out, int64_t rows, int64_t width, const int32_t *groups,
                           int64_t count, int32_t *flag) {
  for (int64_t at = threadNumber(); at < count * width; at += threadCount()) {
    int64_t first = 0, size = rows;
    if (groups)
      groupOf(groups, at / width, rows, first, size, flag);
    float sum = 0;
    for (int64_t i = first; i < first + size; ++i)
      sum += x[i * width + at % width];
    out[at] = sum;
  }
}

/// One block a token. The first token with an id adds up those of all tokens that have it, in
/// order; the others have nothing to do. `out` is zero to begin with.
template <typename Id>
__global__ void sumById(const void *ids, Reader dy, float *out, int64_t tokens, int64_t rows,
                        int64_t width, int64_t first) {
  __shared__ int64_t found[kWarpBlock];
  __shared__ int count;
  int64_t own = blockIdx.x, id = idAt<Id>(ids, own);
  if (id < first || id - first >= rows)
    return;
  int earlier = 0;
  for (int64_t t = threadIdx.x; t < own; t += blockDim.x)
    earlier |= idAt<Id>(ids, t) == id;
  if (__syncthreads_or(earlier))
    return;
  float *target = out + (id - first) * width;
  for (int64_t from = own; from < tokens; from += blockDim.x) {
    int64_t t = from + threadIdx.x;
    if (!__syncthreads_or(t < tokens && idAt<Id>(ids, t) == id))
      continue;
    if (threadIdx.x == 0) {
      count = 0;
      for (int64_t other = from; other < tokens && other < from + blockDim.x; ++other)
        if (idAt<Id>(ids, other) == id)
          found[count++] = other;
    }
    __syncthreads();
    for (int64_t d = threadIdx.x; d < width; d += blockDim.x) {
      float sum = target[d];
      for (int i = 0; i < count; ++i)
        sum += dy[found[i] * width + d];
      target[d] = sum;
    }
    __syncthreads();
  }
}

} // namespace

Status ops::linear_input_grad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[1], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  int64_t m = leading(call.out[0], contract), n = leading(call.in[1], contract),
          k = trailing(call.in[1], contract);
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
  if (Status s = zero(call, call.out[0]); !s) // rows past the groups
    return s;
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[2]), Writer(call.out[0]), rows, k, n, 1, n, 0,
                 k, 1, n * k, 0, call.input<int32_t>(1), false},
                call.in[1].elements());
}

Status ops::grouped_weight_grad(const Call &call) {
  if (Status s = checkTrailing(call, "contract", {&call.in[2], &call.out[0]}); !s)
    return s;
  int64_t contract = call.params.integer("contract"), rows = call.in[0].shape[0];
  int64_t k = trailing(call.in[2], contract), n = rows ? call.in[0].elements() / rows : 0;
  return launch(call,
                {Reader(call.in[0]), Reader(call.in[2]), Writer(call.out[0]), n, k, rows, n, 1, 0,
                 k, 1, 0, n * k, call.input<int32_t>(1), true},
                call.in[1].elements());
}

Status ops::grouped_bias_grad(const Call &call) {
  int64_t rows = call.in[0].shape[0], n = call.in[1].elements(), all = call.out[0].elements();
  if (all == 0)
    return {};
  sumColumns<<<blocksOfThreads(all), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), call.output<float>(0), rows, all / n, call.input<int32_t>(1), n,
      call.context.errorFlag);
  return launched(call);
}

Status ops::sum_rows(const Call &call) {
  int64_t width = call.out[0].elements();
  if (width == 0)
    return {};
  sumColumns<<<blocksOfThreads(width), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), call.output<float>(0), call.in[0].elements() / width, width, nullptr, 1,
      call.context.errorFlag);
  return launched(call);
}

Status ops::embedding_grad(const Call &call) {
  int64_t rows = call.out[0].shape[0], width = call.out[0].shape[1];
  int64_t tokens = call.in[0].elements(), first = call.params.integer("row_offset");
  if (Status s = zero(call, call.out[0]); !s || tokens * width == 0)
    return s;
  auto run = [&]<typename Id>(Id) {
    sumById<Id><<<unsigned(tokens), kWarpBlock, 0, call.stream()>>>(
        call.in[0].data, Reader(call.in[1]), call.output<float>(0), tokens, rows, width, first);
    return launched(call);
  };
  return call.in[0].dtype == fb::DType::i64 ? run(int64_t()) : run(int32_t());
}

} // namespace moira::rt::cuda
