//===- Positions.cu - token_positions, sinusoid, relative_bias --------------===//
// What models make of positions, besides rotation (Dense.cu has rope_table). Float arithmetic as
// the host's: each function rounded once from double, every product and quotient rounded to float.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

/// One warp a row of ids, 32 columns at a time.
template <typename Id>
__global__ void countTokens(const Id *ids, const int32_t *counts, int32_t *out, int64_t batch,
                            int64_t columns, int64_t wanted, int64_t start, int64_t pad) {
  int64_t b = warpNumber();
  if (b >= batch)
    return;
  int64_t count = 0;
  for (int64_t first = 0; first < start + wanted; first += 32) {
    int64_t u = first + laneNumber();
    bool token = u < columns && int64_t(ids[b * columns + u]) != pad;
    unsigned tokens = __ballot_sync(kAllLanes, token);
    unsigned upToHere = tokens & (kAllLanes >> (31 - laneNumber()));
    if (u >= start && u < start + wanted) {
      int64_t to = b * wanted + u - start, given = counts ? counts[to] : 0;
      out[to] = int32_t(token ? pad + (given ? given : count + __popc(upToHere)) : pad);
    }
    count += __popc(tokens);
  }
}

__global__ void fillSinusoid(const int32_t *pos, float *out, int64_t n, int64_t width, float step,
                             int64_t offset, int64_t zero) {
  int64_t half = width / 2;
  for (int64_t at = threadNumber(); at < n * width; at += threadCount()) {
    int64_t t = at / width, column = at % width, i = column % half;
    int64_t p = pos[t] + offset;
    float frequency = float(exp(double(__fmul_rn(float(i), -step))));
    double angle = double(__fmul_rn(float(p), frequency));
    bool none = p == zero || column == 2 * half;
    out[at] = none ? 0.0f : float(column < half ? sin(angle) : cos(angle));
  }
}

__device__ int64_t bucketOf(int64_t relative, int64_t buckets, float logMost, bool bidirectional) {
  int64_t first = 0;
  if (bidirectional) {
    buckets /= 2;
    first = relative > 0 ? buckets : 0;
    relative = relative < 0 ? -relative : relative;
  } else {
    relative = relative < 0 ? -relative : 0;
  }
  int64_t exact = buckets / 2;
  if (relative < exact)
    return first + relative;
  float distance = float(log(double(__fdiv_rn(float(relative), float(exact)))));
  int64_t grown = int64_t(__fmul_rn(__fdiv_rn(distance, logMost), float(buckets - exact)));
  return first + (exact + grown < buckets ? exact + grown : buckets - 1);
}

/// One thread a pair of positions; neighbours have neighbouring keys.
__global__ void fillBias(const float *table, const int32_t *qpos, const int32_t *kpos, float *out,
                         int64_t queries, int64_t keys, int64_t heads, int64_t buckets,
                         float logMost, bool bidirectional) {
  int64_t pairs = queries * keys;
  for (int64_t at = threadNumber(); at < pairs; at += threadCount()) {
    int64_t relative = int64_t(kpos[at % keys]) - qpos[at / keys];
    const float *row = table + bucketOf(relative, buckets, logMost, bidirectional) * heads;
    for (int64_t h = 0; h < heads; ++h)
      out[h * pairs + at] = row[h];
  }
}

/// A warp a bucket and head: the sum of dy over all pairs of that bucket.
__global__ void sumByBucket(const float *dy, const int32_t *qpos, const int32_t *kpos, float *out,
                            int64_t queries, int64_t keys, int64_t heads, int64_t buckets,
                            float logMost, bool bidirectional) {
  int64_t own = warpNumber(), pairs = queries * keys;
  if (own >= buckets * heads)
    return;
  float sum = 0;
  for (int64_t at = laneNumber(); at < pairs; at += 32) {
    int64_t relative = int64_t(kpos[at % keys]) - qpos[at / keys];
    if (bucketOf(relative, buckets, logMost, bidirectional) == own / heads)
      sum += dy[own % heads * pairs + at];
  }
  sum = warpSum(sum);
  if (laneNumber() == 0)
    out[own] = sum;
}

template <typename Id> Status count(const Call &call) {
  int64_t batch = call.in[0].shape[0], columns = call.in[0].shape[1], wanted = call.out[0].shape[1],
          start = call.params.integer("start");
  if (start < 0 || start + wanted > columns)
    return badCall(call, format("columns %lld..%lld of %lld", (long long)start,
                                (long long)(start + wanted), (long long)columns));
  if (batch * wanted == 0)
    return {};
  countTokens<<<blocksOfWarps(batch), kWarpBlock, 0, call.stream()>>>(
      call.input<Id>(0), call.in.size() > 1 ? call.input<int32_t>(1) : nullptr,
      call.output<int32_t>(0), batch, columns, wanted, start, call.params.integer("pad"));
  return launched(call);
}

} // namespace

Status ops::token_positions(const Call &call) {
  return call.in[0].dtype == fb::DType::i64 ? count<int64_t>(call) : count<int32_t>(call);
}

Status ops::sinusoid(const Call &call) {
  int64_t n = call.in[0].elements(), width = call.out[0].shape.back(), half = width / 2;
  if (half < 2)
    return badCall(call, format("rows of %lld", (long long)width));
  if (n == 0)
    return {};
  fillSinusoid<<<blocksOfThreads(n * width), kWarpBlock, 0, call.stream()>>>(
      call.input<int32_t>(0), call.output<float>(0), n, width,
      float(std::log(10000.0) / double(half - 1)), call.params.integer("offset"),
      call.params.integer("zero"));
  return launched(call);
}

Status ops::relative_bias(const Call &call) {
  int64_t buckets = call.in[0].shape[0], heads = call.in[0].shape[1];
  int64_t queries = call.in[1].elements(), keys = call.in[2].elements();
  int64_t maxDistance = call.params.integer("max_distance");
  bool bidirectional = call.params.integer("bidirectional") != 0;
  int64_t exact = buckets / (bidirectional ? 4 : 2);
  if (exact < 1 || maxDistance <= exact)
    return badCall(call, format("%lld buckets for distances up to %lld", (long long)buckets,
                                (long long)maxDistance));
  if (queries * keys * heads == 0)
    return {};
  fillBias<<<blocksOfThreads(queries * keys), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<int32_t>(1), call.input<int32_t>(2), call.output<float>(0),
      queries, keys, heads, buckets, float(std::log(double(maxDistance) / double(exact))),
      bidirectional);
  return launched(call);
}

Status ops::relative_bias_grad(const Call &call) {
  int64_t buckets = call.out[0].shape[0], heads = call.out[0].shape[1];
  int64_t queries = call.in[1].elements(), keys = call.in[2].elements();
  int64_t maxDistance = call.params.integer("max_distance");
  bool bidirectional = call.params.integer("bidirectional") != 0;
  int64_t exact = buckets / (bidirectional ? 4 : 2);
  if (exact < 1 || maxDistance <= exact)
    return badCall(call, format("%lld buckets for distances up to %lld", (long long)buckets,
                                (long long)maxDistance));
  if (buckets * heads == 0)
    return {};
  sumByBucket<<<blocksOfWarps(buckets * heads), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<int32_t>(1), call.input<int32_t>(2), call.output<float>(0),
      queries, keys, heads, buckets, float(std::log(double(maxDistance) / double(exact))),
      bidirectional);
  return launched(call);
}

} // namespace moira::rt::cuda
