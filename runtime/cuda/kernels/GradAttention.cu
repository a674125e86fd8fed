//===- GradAttention.cu - attention_grad --------------------------------------===//
// Plain and correct: the first kernel leaves of every query and head the largest score, the sum of
// the weights and the mean of what flows back; from these each of the others makes one output, a
// warp an output row, with sums in one order and no atomics. For what GradAttentionWgmma.cu and
// GradAttentionTiles.cu do not take, and for the optional outputs.
//===----------------------------------------------------------------------===//
#include "GradAttention.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kColumns = 256; // of an output row that a warp makes at a time, 8 a lane

__device__ float dotOf(Reader x, int64_t atX, Reader y, int64_t atY, int32_t n) {
  float dot = 0;
  for (int d = laneNumber(); d < n; d += 32)
    dot += x[atX + d] * y[atY + d];
  return dot;
}

__device__ int64_t queryRow(const AttentionArgs &a, int64_t b, int64_t i, int64_t h) {
  return (b * a.queries + i) * a.heads + h;
}
__device__ int64_t keyRow(const AttentionArgs &a, int64_t b, int64_t j, int64_t h) {
  return (b * a.keys + j) * a.kvHeads + kvHeadOf(a, h);
}

/// By a warp: the score of key j for a query, and what flows back to its weight.
__device__ float scoreOf(const GradArgs &g, int64_t b, int64_t i, int64_t h, int64_t j) {
  const AttentionArgs &a = g.a;
  int64_t row = queryRow(a, b, i, h);
  float dot = dotOf(g.q, row * a.keyDim, g.k, keyRow(a, b, j, h) * a.keyDim, a.keyDim);
  if (g.q2.data)
    dot += dotOf(g.q2, row * a.sharedDim, g.k2, (b * a.keys + j) * a.sharedDim, a.sharedDim);
  return warpSum(dot) * a.scale + (a.bias ? a.bias[(h * a.queries + i) * a.keys + j] : 0.0f);
}
__device__ float backOf(const GradArgs &g, int64_t b, int64_t i, int64_t h, int64_t j) {
  const AttentionArgs &a = g.a;
  return warpSum(dotOf(g.dy, queryRow(a, b, i, h) * a.valueDim, g.v,
                       keyRow(a, b, j, h) * a.valueDim, a.valueDim));
}

__device__ bool visible(const AttentionArgs &a, int64_t b, int64_t i, int64_t j) {
  return sees(a, queryPositionOf(a, i), keyPositionOf(a, j), keyMaskOf(a, b, j));
}

/// The weight of key j, and the cotangent of its score. Zero where it is not seen.
__device__ void weightAndGrad(const GradArgs &g, int64_t b, int64_t i, int64_t h, int64_t j,
                              float &weight, float &grad) {
  weight = grad = 0;
  int64_t row = queryRow(g.a, b, i, h);
  if (!visible(g.a, b, i, j))
    return;
  weight = expf(scoreOf(g, b, i, h, j) - g.largest[row]) / g.total[row];
  grad = weight * (backOf(g, b, i, h, j) - g.mean[row]);
}

__global__ void summarise(GradArgs g) {
  const AttentionArgs &a = g.a;
  int64_t row = warpNumber();
  if (row >= a.batch * a.queries * a.heads)
    return;
  int64_t h = row % a.heads, i = row / a.heads % a.queries, b = row / a.heads / a.queries;
  float largest = a.sinks ? a.sinks[h] : -INFINITY, total = a.sinks ? 1.0f : 0.0f, mean = 0;
  for (int64_t j = 0; j < a.keys; ++j) {
    if (!visible(a, b, i, j))
      continue;
    float score = scoreOf(g, b, i, h, j), next = fmaxf(largest, score);
    float shrink = expf(largest - next), weight = expf(score - next);
    total = total * shrink + weight;
    mean = mean * shrink + weight * backOf(g, b, i, h, j);
    largest = next;
  }
  if (laneNumber() == 0) {
    g.largest[row] = largest;
    g.total[row] = total;
    g.mean[row] = total == 0 ? 0.0f : mean / total;
  }
}

/// out[row, column] = Σ over what `terms` calls add(factor, reader, first element) with. By a warp.
template <typename Terms>
__device__ void sumRow(const Writer &out, int64_t row, int32_t width, Terms terms) {
  for (int32_t column0 = 0; column0 < width; column0 += kColumns) {
    float sum[kColumns / 32] = {};
    terms([&](float factor, Reader x, int64_t first) {
#pragma unroll
      for (int c = 0; c < kColumns / 32; ++c) {
        int32_t column = column0 + c * 32 + laneNumber();
        if (column < width)
          sum[c] += factor * x[first + column];
      }
    });
#pragma unroll
    for (int c = 0; c < kColumns / 32; ++c) {
      int32_t column = column0 + c * 32 + laneNumber();
      if (column < width)
        out.set(row * width + column, sum[c]);
    }
  }
}

/// dq and dq2.
__global__ void queryGrads(GradArgs g, Writer dq, Writer dq2) {
  const AttentionArgs &a = g.a;
  int64_t row = warpNumber();
  if (row >= a.batch * a.queries * a.heads)
    return;
  int64_t h = row % a.heads, i = row / a.heads % a.queries, b = row / a.heads / a.queries;
  auto overKeys = [&](Reader keys, int32_t width, bool shared) {
    return [&g, &a, keys, width, shared, b, i, h](auto add) {
      for (int64_t j = 0; j < a.keys; ++j) {
        float weight, grad;
        weightAndGrad(g, b, i, h, j, weight, grad);
        add(grad * a.scale, keys, (shared ? b * a.keys + j : keyRow(a, b, j, h)) * width);
      }
    };
  };
  sumRow(dq, row, a.keyDim, overKeys(g.k, a.keyDim, false));
  if (dq2.data)
    sumRow(dq2, row, a.sharedDim, overKeys(g.k2, a.sharedDim, true));
}

/// dk and dv: a key row (b, j, kv head).
__global__ void keyGrads(GradArgs g, Writer dk, Writer dv) {
  const AttentionArgs &a = g.a;
  int64_t row = warpNumber();
  if (row >= a.batch * a.keys * a.kvHeads)
    return;
  int64_t kv = row % a.kvHeads, j = row / a.kvHeads % a.keys, b = row / a.kvHeads / a.keys;
  auto overQueries = [&](bool values) {
    return [&g, &a, values, b, j, kv](auto add) {
      for (int64_t i = 0; i < a.queries; ++i)
        for (int64_t h = 0; h < a.heads; ++h) {
          if (kvHeadOf(a, h) != kv)
            continue;
          float weight, grad;
          weightAndGrad(g, b, i, h, j, weight, grad);
          int64_t query = queryRow(a, b, i, h);
          if (values)
            add(weight, g.dy, query * a.valueDim);
          else
            add(grad * a.scale, g.q, query * a.keyDim);
        }
    };
  };
  sumRow(dk, row, a.keyDim, overQueries(false));
  sumRow(dv, row, a.valueDim, overQueries(true));
}

/// dk2: a key (b, j), whose shared part all heads read.
__global__ void sharedKeyGrads(GradArgs g, Writer dk2) {
  const AttentionArgs &a = g.a;
  int64_t row = warpNumber();
  if (row >= a.batch * a.keys)
    return;
  int64_t j = row % a.keys, b = row / a.keys;
  sumRow(dk2, row, a.sharedDim, [&](auto add) {
    for (int64_t i = 0; i < a.queries; ++i)
      for (int64_t h = 0; h < a.heads; ++h) {
        float weight, grad;
        weightAndGrad(g, b, i, h, j, weight, grad);
        add(grad * a.scale, g.q2, queryRow(a, b, i, h) * a.sharedDim);
      }
  });
}

/// A warp a number of the bias [H,Sq,Sk].
__global__ void biasGrads(GradArgs g, float *dbias) {
  const AttentionArgs &a = g.a;
  int64_t at = warpNumber();
  if (at >= a.heads * a.queries * a.keys)
    return;
  int64_t j = at % a.keys, i = at / a.keys % a.queries, h = at / a.keys / a.queries;
  float sum = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    float weight, grad;
    weightAndGrad(g, b, i, h, j, weight, grad);
    sum += grad;
  }
  if (laneNumber() == 0)
    dbias[at] = sum;
}

/// A warp a head: the sink's weight times the mean that flows back, over all queries.
__global__ void sinkGrads(GradArgs g, float *dsinks) {
  const AttentionArgs &a = g.a;
  int64_t h = warpNumber();
  if (h >= a.heads)
    return;
  float sum = 0;
  for (int64_t q = laneNumber(); q < a.batch * a.queries; q += 32) {
    int64_t row = q * a.heads + h;
    sum -= expf(a.sinks[h] - g.largest[row]) / g.total[row] * g.mean[row];
  }
  sum = warpSum(sum);
  if (laneNumber() == 0)
    dsinks[h] = sum;
}

} // namespace

Status ops::attention_grad(const Call &call) {
  const std::vector<int64_t> &q = call.in[1].shape, &k = call.in[2].shape;
  auto optional = [&](std::span<const TensorRef> operands, size_t behind,
                      std::string_view role) -> const TensorRef * {
    int i = call.params.optional(role);
    return i < 0 ? nullptr : &operands[behind + size_t(i)];
  };
  auto input = [&](std::string_view role) { return optional(call.in, 4, role); };
  auto output = [&](std::string_view role) {
    const TensorRef *tensor = optional(call.out, 3, role);
    return Writer(tensor ? *tensor : TensorRef());
  };
  auto floats = [&](const TensorRef *tensor) {
    return tensor ? static_cast<const float *>(tensor->data) : nullptr;
  };
  auto integers = [&](const TensorRef *tensor) {
    return tensor ? static_cast<const int32_t *>(tensor->data) : nullptr;
  };
  auto reader = [](const TensorRef *tensor) { return Reader(tensor ? *tensor : TensorRef()); };
  const TensorRef *q2 = input("q2"), *k2 = input("k2");
  if (!q2 != !k2)
    return badCall(call, "q2 and k2 are given together or not at all");
  AttentionArgs a{};
  a.bias = floats(input("bias"));
  a.sinks = floats(input("sinks"));
  a.qpos = integers(input("qpos"));
  a.kpos = integers(input("kpos"));
  a.kmask = integers(input("kmask"));
  a.batch = q[0];
  a.queries = q[1];
  a.keys = k[1];
  a.heads = int32_t(q[2]);
  a.kvHeads = k.size() == 4 ? int32_t(k[2]) : 1;
  a.keyDim = int32_t(q[3]);
  a.valueDim = int32_t(call.in[3].shape.back());
  a.sharedDim = q2 ? int32_t(q2->shape[3]) : 0;
  a.headOffset = call.params.integer("head_offset");
  a.allKvHeads = call.params.integer("kv_heads");
  a.allHeads = call.params.integer("q_heads");
  a.kvOffset = call.params.integer("kv_offset");
  a.window = call.params.integer("window");
  a.causal = call.params.integer("causal", 1) != 0;
  a.scale = float(call.params.real("scale", 1));
  if (a.allHeads < 1 || a.allKvHeads < 1 || a.allKvHeads > a.allHeads)
    return badCall(
        call, format("%lld query heads over %lld", (long long)a.allHeads, (long long)a.allKvHeads));
  for (int64_t h = 0; h < a.heads; ++h) {
    int64_t kv = (a.headOffset + h) * a.allKvHeads / a.allHeads - a.kvOffset;
    if (kv < 0 || kv >= a.kvHeads)
      return badCall(call, format("query head %lld needs key/value head %lld of the %d present",
                                  (long long)h, (long long)kv, a.kvHeads));
  }
  int64_t queryRows = a.batch * a.queries * a.heads, keyRows = a.batch * a.keys * a.kvHeads;
  if (queryRows == 0 || keyRows == 0)
    return {};
  Scratch scratch(call.context);
  GradArgs g{a,
             Reader(call.in[0]),
             Reader(call.in[1]),
             Reader(call.in[2]),
             Reader(call.in[3]),
             reader(q2),
             reader(k2),
             scratch.take<float>(queryRows),
             scratch.take<float>(queryRows),
             scratch.take<float>(queryRows),
             reader(input("out")),
             floats(input("log_sums"))};
  if (!g.mean)
    return noScratch(call);
  cudaStream_t stream = call.stream();
  const GradResults made{Writer(call.out[0]), Writer(call.out[1]), Writer(call.out[2])};
  bool done = false;
  if (call.params.optional("room") >= 0) {
    CallContext context = call.context;
    context.workspace = call.out.back().data;
    context.workspaceBytes = size_t(call.out.back().elements()) * sizeof(float);
    Expected<bool> taken = launchAttentionGradCudnn(call, g, Scratch(context), made);
    if (!taken)
      return taken.takeStatus();
    done = *taken;
  }
  if (!done && attentionGradFitsWgmma(g, made) && isHopper()) {
    Expected<bool> taken = launchAttentionGradWgmma(call, g, scratch, made);
    if (!taken)
      return taken.takeStatus();
    done = *taken;
  }
  if (!done && attentionGradFitsTiles(a)) {
    if (Status s = launchAttentionGradTiles(call, g, made); !s)
      return s;
  } else if (!done) {
    summarise<<<blocksOfWarps(queryRows), kWarpBlock, 0, stream>>>(g);
    queryGrads<<<blocksOfWarps(queryRows), kWarpBlock, 0, stream>>>(g, made.q, output("q2"));
    keyGrads<<<blocksOfWarps(keyRows), kWarpBlock, 0, stream>>>(g, made.k, made.v);
  }
  if (q2)
    sharedKeyGrads<<<blocksOfWarps(a.batch * a.keys), kWarpBlock, 0, stream>>>(g, output("k2"));
  if (a.bias)
    biasGrads<<<blocksOfWarps(a.heads * a.queries * a.keys), kWarpBlock, 0, stream>>>(
        g, static_cast<float *>(output("bias").data));
  if (a.sinks)
    sinkGrads<<<blocksOfWarps(a.heads), kWarpBlock, 0, stream>>>(
        g, static_cast<float *>(output("sinks").data));
  return launched(call);
}

} // namespace moira::rt::cuda
