//===- Dense.cu - embedding, positions, rope_table --------------------------===//
// What feeds the first layer. Products are in Linear.cpp.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <algorithm>

namespace moira::rt::cuda {
namespace {

/// The row of a table shard of `vocabulary` rows from `first` on that `id` means; -1: another
/// shard's.
__device__ int64_t shardRow(int64_t id, int64_t first, int64_t vocabulary) {
  // first >= 0 and id < 0 both belong to "not ours"; no subtraction that could overflow.
  return id >= first && id - first < vocabulary && id >= 0 && first >= 0 ? id - first : -1;
}

/// One warp a token; rows of `units` units.
template <typename Id, typename V>
__global__ void moveEmbedding(const Id *ids, const V *table, V *out, int64_t tokens, int64_t first,
                              int64_t vocabulary, int64_t units) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  int64_t row = shardRow(ids[t], first, vocabulary);
  warpMove(out + t * units, row < 0 ? nullptr : table + row * units, units);
}

/// The same with a conversion.
template <typename Id, typename From, typename To>
__global__ void convertEmbedding(const Id *ids, const From *table, To *out, int64_t tokens,
                                 int64_t first, int64_t vocabulary, int64_t width) {
  int64_t t = warpNumber();
  if (t >= tokens)
    return;
  int64_t row = shardRow(ids[t], first, vocabulary);
  for (int64_t d = laneNumber(); d < width; d += 32)
    out[t * width + d] = fromFloat<To>(row < 0 ? 0.0f : toFloat(table[row * width + d]));
}

__global__ void fillPositions(int32_t *out, int64_t n, int64_t start) {
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    out[i] = int32_t(start + i);
}

/// As many frequencies as one launch takes; they travel with its arguments.
constexpr int64_t kFrequencies = 256;
struct Frequencies {
  float at[kFrequencies];
};

/// Columns [first, first + count) of the table. Float arithmetic as the host's: products rounded to
/// float, each function rounded once from double, which is what a good libm gives.
__global__ void fillRopeTable(const int32_t *pos, float *cosines, float *sines, int64_t n,
                              int64_t r, int64_t first, int64_t count, Frequencies frequencies,
                              float factor) {
  for (int64_t at = threadNumber(); at < n * count; at += threadCount()) {
    int64_t p = at / count, i = at % count, to = p * r + first + i;
    double angle = double(__fmul_rn(float(pos[p]), frequencies.at[i]));
    cosines[to] = __fmul_rn(float(cos(angle)), factor);
    sines[to] = __fmul_rn(float(sin(angle)), factor);
  }
}

template <typename Id> Status embed(const Call &call) {
  const TensorRef &table = call.in[1], &out = call.out[0];
  int64_t tokens = call.in[0].elements(), vocabulary = table.shape[0], width = table.shape[1];
  int64_t first = call.params.integer("row_offset");
  if (tokens == 0 || width == 0)
    return {};
  const Id *ids = call.input<Id>(0);
  if (table.dtype == out.dtype) {
    size_t rowBytes = size_t(width) * elementBytes(table.dtype);
    size_t unit = commonUnit(rowBytes, addressOf(table.data), addressOf(out.data));
    return withUnit(unit, [&]<typename V>(V) {
      moveEmbedding<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
          ids, call.input<V>(1), call.output<V>(0), tokens, first, vocabulary,
          int64_t(rowBytes / sizeof(V)));
      return launched(call);
    });
  }
  return withFloat(table.dtype, [&]<typename From>(From) {
    return withFloat(out.dtype, [&]<typename To>(To) {
      convertEmbedding<<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
          ids, call.input<From>(1), call.output<To>(0), tokens, first, vocabulary, width);
      return launched(call);
    });
  });
}

} // namespace

Status ops::embedding(const Call &call) {
  return call.in[0].dtype == fb::DType::i64 ? embed<int64_t>(call) : embed<int32_t>(call);
}

Status ops::positions(const Call &call) {
  int64_t n = call.out[0].elements(), start = call.params.integer("start");
  if (start < 0 || start > INT32_MAX - n)
    return badCall(call, format("start is %lld", (long long)start));
  if (n == 0)
    return {};
  fillPositions<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(call.output<int32_t>(0), n,
                                                                      start);
  return launched(call);
}

Status ops::rope_table(const Call &call) {
  int64_t n = call.in[0].elements(), r = call.out[0].shape[1];
  std::span<const double> list = call.params.list("frequencies");
  if (int64_t(list.size()) != r)
    return badCall(call, format("%zu frequencies for %lld columns", list.size(), (long long)r));
  float factor = float(call.params.real("factor", 1));
  for (int64_t first = 0; n > 0 && first < r; first += kFrequencies) {
    int64_t count = std::min(kFrequencies, r - first);
    Frequencies frequencies = {};
    for (int64_t i = 0; i < count; ++i)
      frequencies.at[i] = float(list[size_t(first + i)]);
    fillRopeTable<<<blocksOfThreads(n * count), kWarpBlock, 0, call.stream()>>>(
        call.input<int32_t>(0), call.output<float>(0), call.output<float>(1), n, r, first, count,
        frequencies, factor);
    if (Status s = launched(call); !s)
      return s;
  }
  return {};
}

} // namespace moira::rt::cuda
