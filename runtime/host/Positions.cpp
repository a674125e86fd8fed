//===- Positions.cpp - reference token_positions, sinusoid, relative_bias(_grad) -===//
// What models make of positions, besides rotation (Dense.cpp has rope_table).
//===----------------------------------------------------------------------===//
#include "HostOps.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// Computed in float whatever the program's type, as the published implementations do: a distance
/// on the edge of two buckets must fall into the same one everywhere.
int64_t bucketOf(int64_t relative, int64_t buckets, int64_t maxDistance, bool bidirectional) {
  int64_t first = 0;
  if (bidirectional) {
    buckets /= 2;
    first = relative > 0 ? buckets : 0;
    relative = std::llabs(relative);
  } else {
    relative = std::max<int64_t>(-relative, 0);
  }
  int64_t exact = buckets / 2;
  if (relative < exact)
    return first + relative;
  float log = float(std::log(double(float(relative) / float(exact))));
  float grown = log / float(std::log(double(maxDistance) / double(exact))) * float(buckets - exact);
  return first + std::min(exact + int64_t(grown), buckets - 1);
}

} // namespace

template <typename> Status token_positions(const Call &call) {
  const TensorRef &ids = call.in[0], &result = call.out[0];
  int64_t batch = ids.shape[0], columns = ids.shape[1], wanted = result.shape[1];
  int64_t pad = call.params.integer("pad"), start = call.params.integer("start");
  const int32_t *counts = call.in.size() > 1 ? call.input<int32_t>(1) : nullptr;
  if (start < 0 || start + wanted > columns || pad < 0)
    return badCall(call, format("columns %lld..%lld of %lld, pad %lld", (long long)start,
                                (long long)(start + wanted), (long long)columns, (long long)pad));
  for (int64_t b = 0; b < batch; ++b) {
    int64_t count = 0;
    for (int64_t u = 0; u < start + wanted; ++u) {
      int64_t at = b * columns + u;
      int64_t id =
          ids.dtype == fb::DType::i64 ? call.input<int64_t>(0)[at] : call.input<int32_t>(0)[at];
      count += id != pad;
      if (u < start)
        continue;
      int64_t to = b * wanted + u - start, given = counts ? counts[to] : 0;
      if (given < 0 || given > INT32_MAX - pad)
        return badCall(call, format("%lld tokens up to one", (long long)given));
      call.output<int32_t>(0)[to] = int32_t(id == pad ? pad : pad + (given ? given : count));
    }
  }
  return {};
}

/// Frequencies and angles in the type of the result, so in float for f32, as the published
/// implementations round them.
template <typename T> Status sinusoid(const Call &call) {
  using S = Accumulator<T>;
  const int32_t *pos = call.input<int32_t>(0);
  S *out = call.output<S>(0);
  int64_t n = call.in[0].elements(), width = call.out[0].shape.back(), half = width / 2;
  int64_t offset = call.params.integer("offset"), zero = call.params.integer("zero");
  if (half < 2)
    return badCall(call, format("rows of %lld", (long long)width));
  S step = S(std::log(10000.0) / double(half - 1));
  for (int64_t i = 0; i < half; ++i) {
    S frequency = S(std::exp(double(S(i) * -step)));
    for (int64_t t = 0; t < n; ++t) {
      int64_t p = pos[t] + offset;
      S angle = S(p) * frequency;
      out[t * width + i] = p == zero ? S(0) : std::sin(angle);
      out[t * width + half + i] = p == zero ? S(0) : std::cos(angle);
    }
  }
  if (width % 2)
    for (int64_t t = 0; t < n; ++t)
      out[t * width + width - 1] = S(0);
  return {};
}

template <typename T> Status relative_bias(const Call &call) {
  using S = Accumulator<T>;
  const S *table = call.input<S>(0);
  const int32_t *qpos = call.input<int32_t>(1), *kpos = call.input<int32_t>(2);
  S *out = call.output<S>(0);
  int64_t buckets = call.in[0].shape[0], heads = call.in[0].shape[1];
  int64_t queries = call.in[1].elements(), keys = call.in[2].elements();
  int64_t maxDistance = call.params.integer("max_distance");
  bool bidirectional = call.params.integer("bidirectional") != 0;
  int64_t exact = buckets / (bidirectional ? 4 : 2);
  if (exact < 1 || maxDistance <= exact)
    return badCall(call, format("%lld buckets for distances up to %lld", (long long)buckets,
                                (long long)maxDistance));
  for (int64_t i = 0; i < queries; ++i)
    for (int64_t j = 0; j < keys; ++j) {
      int64_t bucket = bucketOf(int64_t(kpos[j]) - qpos[i], buckets, maxDistance, bidirectional);
      for (int64_t h = 0; h < heads; ++h)
        out[(h * queries + i) * keys + j] = table[bucket * heads + h];
    }
  return {};
}

template <typename T> Status relative_bias_grad(const Call &call) {
  using S = Accumulator<T>;
  const S *dy = call.input<S>(0);
  const int32_t *qpos = call.input<int32_t>(1), *kpos = call.input<int32_t>(2);
  int64_t buckets = call.out[0].shape[0], heads = call.out[0].shape[1];
  int64_t queries = call.in[1].elements(), keys = call.in[2].elements();
  int64_t maxDistance = call.params.integer("max_distance");
  bool bidirectional = call.params.integer("bidirectional") != 0;
  int64_t exact = buckets / (bidirectional ? 4 : 2);
  if (exact < 1 || maxDistance <= exact)
    return badCall(call, format("%lld buckets for distances up to %lld", (long long)buckets,
                                (long long)maxDistance));
  std::vector<double> sums(size_t(buckets * heads), 0.0);
  for (int64_t i = 0; i < queries; ++i)
    for (int64_t j = 0; j < keys; ++j) {
      int64_t bucket = bucketOf(int64_t(kpos[j]) - qpos[i], buckets, maxDistance, bidirectional);
      for (int64_t h = 0; h < heads; ++h)
        sums[size_t(bucket * heads + h)] += double(dy[(h * queries + i) * keys + j]);
    }
  std::transform(sums.begin(), sums.end(), call.output<S>(0), [](double v) { return S(v); });
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(token_positions)
INSTANTIATE(sinusoid)
INSTANTIATE(relative_bias)
INSTANTIATE(relative_bias_grad)

} // namespace moira::rt::host::ref
