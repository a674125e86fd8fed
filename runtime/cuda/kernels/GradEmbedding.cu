//===- GradEmbedding.cu - gradients of embedding tables ----------------------===//
// embedding_grad: rows that have one id are added in the order of their tokens. Tokens are listed
// by id first, so that those of an id that is everywhere in a text are added by several blocks,
// columns apart, with many rows under way.
//===----------------------------------------------------------------------===//
#include "GradTools.h"

namespace moira::rt::cuda {
namespace {

/// Of each row of the table: its first token, above all tokens if there is none; how many there
/// are; and where they begin in `list`. Where depends on the order of blocks, what stands there
/// does not.
struct Lists {
  int32_t *first, *count, *start, *list, *used;
};
constexpr int kNoTokenByte = 0x7f;

/// The ids whose rows are here: `count` from `from` on, but for `pad`.
struct Ids {
  int64_t from, count, pad;
};

/// The row of the table that is token t's, or -1.
template <typename Id> __device__ int64_t rowOf(const void *ids, int64_t t, Ids here) {
  const int64_t id = idAt<Id>(ids, t), row = id - here.from;
  return row >= 0 && row < here.count && id != here.pad ? row : -1;
}

template <typename Id>
__global__ void countTokens(const void *ids, Lists lists, int64_t tokens, Ids here) {
  for (int64_t t = threadNumber(); t < tokens; t += threadCount())
    if (const int64_t row = rowOf<Id>(ids, t, here); row >= 0) {
      atomicMin(lists.first + row, int32_t(t));
      atomicAdd(lists.count + row, 1);
    }
}

/// Of an id's first token, the block of this number: lists all tokens that have it.
template <typename Id>
__global__ void listTokens(const void *ids, Lists lists, int64_t tokens, Ids here) {
  __shared__ int32_t partial[33], start;
  const int64_t own = blockIdx.x, row = rowOf<Id>(ids, own, here);
  if (row < 0 || lists.first[row] != own)
    return;
  const int32_t count = lists.count[row];
  if (threadIdx.x == 0)
    lists.start[row] = start = atomicAdd(lists.used, count);
  __syncthreads();
  int32_t listed = start;
  const int32_t end = listed + count;
  for (int64_t t0 = own; listed < end; t0 += blockDim.x * kNeighbours) {
    unsigned mine = 0; // neighbours that have the id
#pragma unroll
    for (int i = 0; i < kNeighbours; ++i) {
      const int64_t t = t0 + threadIdx.x * kNeighbours + i;
      mine |= unsigned(t < tokens && rowOf<Id>(ids, t, here) == row) << i;
    }
    int32_t found = 0, at = listed + blockScan(int32_t(__popc(mine)), partial, found);
    for (; mine; mine &= mine - 1)
      lists.list[at++] = int32_t(t0) + int32_t(threadIdx.x) * kNeighbours + __ffs(int(mine)) - 1;
    listed += found;
  }
}

constexpr int kSumBlock = 128, kAtOnce = 8;

/// A block makes kSumBlock * n columns of the row whose first token has its number; a thread n
/// neighbours.
template <typename Id, int n>
__global__ void __launch_bounds__(kSumBlock)
    sumTokens(const void *ids, Lists lists, Reader dy, float *out, int64_t width, Ids here) {
  const int64_t own = blockIdx.x, row = rowOf<Id>(ids, own, here),
                column = (int64_t(blockIdx.y) * kSumBlock + threadIdx.x) * n;
  if (row < 0 || lists.first[row] != own || column >= width)
    return;
  const int32_t *list = lists.list + lists.start[row], count = lists.count[row];
  float sum[n] = {};
  for (int32_t i = 0; i < count; i += kAtOnce) {
    float part[kAtOnce][n] = {};
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (i + u < count)
        dy.load(list[i + u] * width + column, part[u]);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
#pragma unroll
      for (int c = 0; c < n; ++c)
        sum[c] += part[u][c];
  }
  Pack<float, n> result;
#pragma unroll
  for (int c = 0; c < n; ++c)
    result.v[c] = sum[c];
  *reinterpret_cast<Pack<float, n> *>(out + row * width + column) = result;
}

} // namespace

Status ops::embedding_grad(const Call &call) {
  const TensorRef &ids = call.in[0], &dy = call.in[1], &out = call.out[0];
  const int64_t rows = out.shape[0], width = out.shape[1], tokens = ids.elements();
  const Ids here{call.params.integer("row_offset"), rows, call.params.integer("pad", -1)};
  auto fill = [&](void *data, int byte, size_t bytes) {
    return checked(call.name, cudaMemsetAsync(data, byte, bytes, call.stream()));
  };
  if (Status s = fill(out.data, 0, size_t(out.elements()) * sizeof(float)); !s)
    return s;
  if (tokens * width * rows == 0)
    return {};
  if (tokens > INT32_MAX / 2)
    return notOnCuda(call, format("%lld tokens", (long long)tokens));
  Scratch scratch(call.context);
  Lists lists{scratch.take<int32_t>(rows), scratch.take<int32_t>(rows), scratch.take<int32_t>(rows),
              scratch.take<int32_t>(tokens), scratch.take<int32_t>(1)};
  if (!lists.used)
    return noScratch(call);
  const size_t bytes = size_t(rows) * sizeof(int32_t);
  if (Status s = fill(lists.first, kNoTokenByte, bytes); !s)
    return s;
  if (Status s = fill(lists.count, 0, bytes); !s)
    return s;
  if (Status s = fill(lists.used, 0, sizeof(int32_t)); !s)
    return s;
  constexpr int wide = 4;
  const bool packs = width % wide == 0 && addressOf(out.data) % (wide * sizeof(float)) == 0 &&
                     addressOf(dy.data) % (wide * elementBytes(dy.dtype)) == 0;
  auto run = [&]<typename Id>(Id) {
    countTokens<Id>
        <<<blocksOfThreads(tokens), kWarpBlock, 0, call.stream()>>>(ids.data, lists, tokens, here);
    listTokens<Id>
        <<<unsigned(tokens), kWarpBlock, 0, call.stream()>>>(ids.data, lists, tokens, here);
    auto sum = [&]<int n>(std::integral_constant<int, n>) {
      const dim3 blocks(unsigned(tokens), unsigned(ceilDiv(width, kSumBlock * n)));
      sumTokens<Id, n><<<blocks, kSumBlock, 0, call.stream()>>>(ids.data, lists, Reader(dy),
                                                                call.output<float>(0), width, here);
    };
    if (packs)
      sum(std::integral_constant<int, wide>());
    else
      sum(std::integral_constant<int, 1>());
    return launched(call);
  };
  return ids.dtype == fb::DType::i64 ? run(int64_t()) : run(int32_t());
}

} // namespace moira::rt::cuda
