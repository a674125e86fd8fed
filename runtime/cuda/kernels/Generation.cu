//===- Generation.cu - write_rows, slot, sample -----------------------------===//
// What programs with caches do besides a forward pass. Positions are read on the device, so that a
// recorded step serves all of them. Sample.h has the rule of the draw.
//===----------------------------------------------------------------------===//
#include "DeviceTools.h"
#include "moira/rt/Sample.h"

namespace moira::rt::cuda {
namespace {

constexpr int kSampleBlock = 1024;

/// What write_rows writes to one state; units are those of a row.
template <typename V> struct WrittenRows {
  const V *rows;
  V *state;
  int64_t units, total;
};

/// One thread a unit of the rows, first those of `a`.
template <typename V>
__global__ void copyRows(WrittenRows<V> a, WrittenRows<V> b, const int32_t *at, int64_t count,
                         int64_t all, int32_t *flag) {
  awaitPrevious();
  int64_t first = at ? at[0] : 0;
  if (first < 0 || first > all - count) {
    if (threadNumber() == 0)
      raise(flag, Fault::slot);
    return;
  }
  for (int64_t t = threadNumber(); t < a.total + b.total; t += threadCount()) {
    const WrittenRows<V> &w = t < a.total ? a : b;
    const int64_t i = t < a.total ? t : t - a.total;
    int64_t row, unit;
    divide(i, count * w.units, row, unit);
    w.state[(row * all + first) * w.units + unit] = w.rows[i];
  }
}

/// One thread a unit of the result.
template <typename V>
__global__ void takeSlot(const V *x, const int32_t *at, V *out, int64_t total, int64_t slots,
                         int64_t index, int64_t units) {
  int64_t from = index + (at ? at[0] : 0);
  bool here = from >= 0 && from < slots;
  for (int64_t i = threadNumber(); i < total; i += threadCount())
    out[i] = here ? x[(i / units * slots + from) * units + i % units] : V{};
}

/// Sum over the block, the same in every thread; `shared` is for 33 values.
template <typename S> __device__ S blockSum(S v, S *shared) {
  S total;
  blockScan(v, shared, total);
  return total;
}

/// The token with the largest score, the first of equal ones; in every thread.
template <typename S>
__device__ int32_t blockArgMax(S score, int32_t token, S *scores, int *tokens) {
  auto take = [&](S otherScore, int32_t other) {
    if (otherScore > score || (otherScore == score && other < token)) {
      score = otherScore;
      token = other;
    }
  };
  for (int step = 16; step > 0; step /= 2) {
    S otherScore = __shfl_xor_sync(kAllLanes, score, step);
    take(otherScore, __shfl_xor_sync(kAllLanes, token, step));
  }
  if (laneNumber() == 0) {
    scores[threadIdx.x / 32] = score;
    tokens[threadIdx.x / 32] = token;
  }
  __syncthreads();
  for (int warp = 0; warp < kSampleBlock / 32; ++warp)
    take(scores[warp], tokens[warp]);
  __syncthreads();
  return token;
}

/// The largest bit pattern t for which `enough` holds, which holds for 0 and for all below t.
template <typename Fn> __device__ uint32_t largest(Fn enough) {
  uint32_t t = 0;
  for (uint32_t bit = 0x80000000u; bit; bit >>= 1)
    if (enough(t | bit))
      t |= bit;
  return t;
}

/// One block a row.
__global__ void sampleRows(const float *logits, const float *sampling, const int32_t *draw,
                           int32_t *ids, int32_t vocab, int64_t perRow, int64_t firstRow) {
  __shared__ double doubles[33];
  __shared__ int ints[33];
  __shared__ uint32_t orders[33];
  const float *row = logits + int64_t(blockIdx.x) * vocab;
  SampleRule rule = sampleRule(sampling[0], sampling[1], draw);
  auto mine = [&](auto fn) {
    for (int32_t v = int32_t(threadIdx.x); v < vocab; v += kSampleBlock)
      fn(v, orderOf(row[v]));
  };
  uint32_t most = 0;
  int32_t token = vocab;
  mine([&](int32_t v, uint32_t order) {
    if (token == vocab || order > most) {
      most = order;
      token = v;
    }
  });
  token = blockArgMax(most, token, orders, ints);
  if (rule.greedy()) {
    if (threadIdx.x == 0)
      ids[blockIdx.x] = token;
    return;
  }

  uint32_t least = 0;
  if (rule.topK > 0 && rule.topK < vocab)
    least = largest([&](uint32_t t) {
      int n = 0;
      mine([&](int32_t, uint32_t order) { n += order >= t; });
      return blockSum(n, ints) >= rule.topK;
    });
  if (rule.cutsByP()) {
    double top = row[token];
    auto weightFrom = [&](uint32_t t) {
      double sum = 0;
      mine([&](int32_t v, uint32_t order) {
        if (order >= t)
          sum += exp((double(row[v]) - top) / rule.temperature);
      });
      return blockSum(sum, doubles);
    };
    double wanted = rule.topP * weightFrom(least);
    uint32_t cut = largest([&](uint32_t t) { return weightFrom(t > least ? t : least) >= wanted; });
    least = cut > least ? cut : least;
  }

  double best = -INFINITY;
  token = vocab;
  auto number = uint32_t(firstRow + int64_t(blockIdx.x) / perRow);
  mine([&](int32_t v, uint32_t order) {
    if (order < least)
      return;
    double score = drawScore(rule, row[v], number, uint32_t(v));
    if (token == vocab || score > best) {
      best = score;
      token = v;
    }
  });
  token = blockArgMax(best, token, doubles, ints);
  if (threadIdx.x == 0)
    ids[blockIdx.x] = token < vocab ? token : 0;
}

const int32_t *placeOf(const Call &call) {
  return call.in.size() > 1 ? call.input<int32_t>(1) : nullptr;
}

} // namespace

Status ops::write_rows(const Call &call) {
  const int64_t count = call.in[0].shape[1], all = call.out[0].shape[1];
  auto rowBytes = [&](size_t state) {
    const TensorRef &rows = call.in[state * 2];
    return size_t(trailing(rows, int64_t(rows.shape.size()) - 2)) * elementBytes(rows.dtype);
  };
  size_t unit = 16;
  for (size_t i = 0; i < call.out.size(); ++i)
    unit = commonUnit(
        unit, commonUnit(rowBytes(i), addressOf(call.in[i * 2].data), addressOf(call.out[i].data)));
  return withUnit(unit, [&]<typename V>(V) -> Status {
    WrittenRows<V> written[2]{};
    for (size_t i = 0; i < call.out.size(); ++i) {
      const int64_t units = int64_t(rowBytes(i) / sizeof(V));
      written[i] = {call.input<V>(i * 2), call.output<V>(i), units,
                    call.in[0].shape[0] * count * units};
    }
    const int64_t total = written[0].total + written[1].total;
    if (total == 0)
      return {};
    return launchEarly(call, copyRows<V>, blocksOfThreads(total), kWarpBlock, 0, written[0],
                       written[1], placeOf(call), count, all, call.context.errorFlag);
  });
}

Status ops::slot(const Call &call) {
  const TensorRef &x = call.in[0];
  size_t bytes = size_t(trailing(x, int64_t(x.shape.size()) - 2)) * elementBytes(x.dtype);
  size_t unit = commonUnit(addressOf(x.data), addressOf(call.out[0].data), bytes);
  int64_t units = int64_t(bytes / unit), total = x.shape[0] * units;
  if (total == 0)
    return {};
  return withUnit(unit, [&]<typename V>(V) {
    takeSlot<<<blocksOfThreads(total), kWarpBlock, 0, call.stream()>>>(
        call.input<V>(0), placeOf(call), call.output<V>(0), total, x.shape[1],
        call.params.integer("index") - call.params.integer("start"), units);
    return launched(call);
  });
}

Status ops::sample(const Call &call) {
  const TensorRef &logits = call.in[0];
  int64_t rows = logits.shape[0] * logits.shape[1];
  if (logits.dtype != fb::DType::f32)
    return notOnCuda(call, "logits other than f32");
  if (rows == 0)
    return {};
  sampleRows<<<unsigned(rows), kSampleBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.input<int32_t>(2), call.output<int32_t>(0),
      int32_t(logits.shape[2]), logits.shape[1], call.params.integer("row_offset"));
  return launched(call);
}

} // namespace moira::rt::cuda
