//===- Attention.cu - the attention call, and its plain kernel --------------===//
// Checks and choice of a kernel. The plain kernel takes any head dimension, one warp a query and
// 256 result columns; the others are in the files Attention*.cu.
//===----------------------------------------------------------------------===//
#include "AttentionSums.h"
#include "AttentionTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kColumns = 256; // results a warp makes, 8 a lane

/// Whether the tiled kernel of this type takes the call. In bf16 the two parts of a key lie in one
/// tile, as chunks of 16 bytes.
bool fitsTiles(const AttentionArgs &a, fb::DType type) {
  if (a.keyDim + a.sharedDim > kTiledKeyDim || a.valueDim > kTiledValueDim)
    return false;
  return !a.q2 || type == fb::DType::f32 ||
         (a.keyDim % 8 == 0 && a.sharedDim % 8 == 0 && a.valueDim % 8 == 0 &&
          (addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out) | addressOf(a.q2) |
           addressOf(a.k2)) %
                  16 ==
              0);
}

/// This lane's part of x·y.
template <typename T> __device__ float lanePart(const T *x, const T *y, int32_t n) {
  float dot = 0;
  for (int d = laneNumber(); d < n; d += 32)
    dot += toFloat(x[d]) * toFloat(y[d]);
  return dot;
}

template <typename T> __global__ void attendPlain(AttentionArgs a, int64_t parts) {
  int64_t work = warpNumber();
  if (work >= a.batch * a.queries * a.heads * parts)
    return;
  int64_t column0 = work % parts * kColumns, row = work / parts; // row: (batch, query, head)
  int64_t h = row % a.heads, i = row / a.heads % a.queries, b = row / a.heads / a.queries;
  const T *q = static_cast<const T *>(a.q) + row * a.keyDim,
          *q2 = static_cast<const T *>(a.q2) + row * a.sharedDim;
  const int64_t keyStride = int64_t(a.kvHeads) * a.keyDim,
                valueStride = int64_t(a.kvHeads) * a.valueDim;
  const int64_t head0 = b * a.keys * a.kvHeads + kvHeadOf(a, h);
  const T *k = static_cast<const T *>(a.k) + head0 * a.keyDim,
          *k2 = static_cast<const T *>(a.k2) + b * a.keys * a.sharedDim,
          *v = static_cast<const T *>(a.v) + head0 * a.valueDim;
  const float *bias = a.bias ? a.bias + (h * a.queries + i) * a.keys : nullptr;

  // A sink is a key that was seen before all others and adds nothing to the result.
  float largest = a.sinks ? a.sinks[h] : -INFINITY, total = a.sinks ? 1.0f : 0.0f,
        sum[kColumns / 32] = {};
  for (int64_t j = 0; j < a.keys; ++j) {
    if (!sees(a, queryPositionOf(a, i), keyPositionOf(a, j), keyMaskOf(a, b, j)))
      continue;
    float dot = lanePart(q, k + j * keyStride, a.keyDim);
    if (a.q2)
      dot += lanePart(q2, k2 + j * a.sharedDim, a.sharedDim);
    float score = warpSum(dot) * a.scale + (bias ? bias[j] : 0.0f);
    float next = fmaxf(largest, score), shrink = expf(largest - next), weight = expf(score - next);
    largest = next;
    total = total * shrink + weight;
#pragma unroll
    for (int c = 0; c < kColumns / 32; ++c) {
      int64_t column = column0 + c * 32 + laneNumber();
      if (column < a.valueDim)
        sum[c] = sum[c] * shrink + weight * toFloat(v[j * valueStride + column]);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns / 32; ++c) {
    int64_t column = column0 + c * 32 + laneNumber();
    if (column < a.valueDim)
      static_cast<T *>(a.out)[row * a.valueDim + column] =
          fromFloat<T>(total == 0 ? 0.0f : sum[c] / total);
  }
}

/// A warp a query and head.
template <typename T> __global__ void sumWeights(AttentionArgs a, float *logSums) {
  const int64_t row = warpNumber();
  if (row >= a.batch * a.queries * a.heads)
    return;
  const int64_t h = row % a.heads, i = row / a.heads % a.queries, b = row / a.heads / a.queries;
  float largest = a.sinks ? a.sinks[h] : -INFINITY, total = a.sinks ? 1.0f : 0.0f;
  for (int64_t j = 0; j < a.keys; ++j) {
    if (!sees(a, queryPositionOf(a, i), keyPositionOf(a, j), keyMaskOf(a, b, j)))
      continue;
    const int64_t key = b * a.keys + j;
    float dot = lanePart(
        static_cast<const T *>(a.q) + row * a.keyDim,
        static_cast<const T *>(a.k) + (key * a.kvHeads + kvHeadOf(a, h)) * a.keyDim, a.keyDim);
    if (a.q2)
      dot += lanePart(static_cast<const T *>(a.q2) + row * a.sharedDim,
                      static_cast<const T *>(a.k2) + key * a.sharedDim, a.sharedDim);
    const float score = warpSum(dot) * a.scale +
                        (a.bias ? a.bias[(h * a.queries + i) * a.keys + j] : 0.0f),
                next = fmaxf(largest, score);
    total = total * expf(largest - next) + expf(score - next);
    largest = next;
  }
  if (laneNumber() == 0)
    logSums[(b * a.heads + h) * a.queries + i] = largest + logf(total);
}

/// By the kernel that fits; whether it leaves the sums of weights, too, where they are asked for.
Expected<bool> attend(const Call &call, const AttentionArgs &a, fb::DType type) {
  auto without = [](Status made) -> Expected<bool> {
    if (!made)
      return made;
    return false;
  };
  if (!fitsTiles(a, type))
    return without(
        withFloat(type, [&]<typename T>(T) { return launchAttentionPlain<T>(call, a); }));
  if (type == fb::DType::f32)
    return without(launchAttentionF32(call, a));
  if (hasFewQueries(a))
    return without(launchAttentionFew(call, a));
  constexpr int64_t many = 32; // queries that are worth a tile of 128
  if (a.queries > many) {
    Expected<bool> done = attendByCudnn(call, a);
    if (!done || *done)
      return done;
    if (attentionFitsWgmma(a) && isHopper()) {
      if (Status s = launchAttentionWgmma(call, a); !s)
        return s;
      return true;
    }
  }
  return without(launchAttentionBf16(call, a));
}

} // namespace

template <typename T> Status launchAttentionPlain(const Call &call, const AttentionArgs &a) {
  int64_t parts = ceilDiv(a.valueDim, kColumns), warps = a.batch * a.queries * a.heads * parts;
  attendPlain<T><<<blocksOfWarps(warps), kWarpBlock, 0, call.stream()>>>(a, parts);
  return launched(call);
}

Status ops::attention(const Call &call) {
  const std::vector<int64_t> &q = call.in[0].shape, &k = call.in[1].shape;
  auto optional = [&](std::string_view role) {
    int i = call.params.optional(role);
    return i < 0 ? nullptr : &call.in[size_t(3 + i)];
  };
  const TensorRef *q2 = optional("q2"), *k2 = optional("k2"), *bias = optional("bias"),
                  *sinks = optional("sinks");
  auto integers = [&](const TensorRef *tensor) {
    return tensor ? static_cast<const int32_t *>(tensor->data) : nullptr;
  };
  if (!q2 != !k2)
    return badCall(call, "q2 and k2 are given together or not at all");
  AttentionArgs a{call.in[0].data,
                  call.in[1].data,
                  call.in[2].data,
                  q2 ? q2->data : nullptr,
                  k2 ? k2->data : nullptr,
                  bias ? static_cast<const float *>(bias->data) : nullptr,
                  sinks ? static_cast<const float *>(sinks->data) : nullptr,
                  call.out[0].data,
                  integers(optional("qpos")),
                  integers(optional("kpos")),
                  integers(optional("kmask")),
                  q[0],
                  q[1],
                  k[1],
                  int32_t(q[2]),
                  k.size() == 4 ? int32_t(k[2]) : 1,
                  int32_t(q[3]),
                  int32_t(call.in[2].shape.back()),
                  q2 ? int32_t(q2->shape[3]) : 0,
                  call.params.integer("head_offset"),
                  call.params.integer("kv_heads"),
                  call.params.integer("q_heads"),
                  call.params.integer("kv_offset"),
                  call.params.integer("window"),
                  call.params.integer("causal", 1) != 0,
                  float(call.params.real("scale", 1))};
  if (a.allHeads < 1 || a.allKvHeads < 1 || a.allKvHeads > a.allHeads || a.allHeads > INT32_MAX ||
      a.headOffset < 0 || a.kvOffset < 0 || a.headOffset > a.allHeads - a.heads)
    return badCall(call, format("heads %lld..%lld of %lld query and %lld key/value heads",
                                (long long)a.headOffset, (long long)(a.headOffset + a.heads - 1),
                                (long long)a.allHeads, (long long)a.allKvHeads));
  for (int64_t h = 0; h < a.heads; ++h) {
    int64_t kv = (a.headOffset + h) * a.allKvHeads / a.allHeads - a.kvOffset;
    if (kv < 0 || kv >= a.kvHeads)
      return badCall(call, format("query head %lld needs key/value head %lld of the %d present",
                                  (long long)h, (long long)kv, a.kvHeads));
  }
  fb::DType type = call.in[0].dtype;
  for (const TensorRef *t : {&call.in[1], &call.in[2], &call.out[0], q2, k2})
    if (t && t->dtype != type)
      return notOnCuda(call, "operands of several types");
  if (call.out[0].elements() == 0)
    return {};
  Expected<bool> made = attend(call, a, type);
  float *logSums = logSumsOf(call);
  if (!made || *made || !logSums)
    return made.takeStatus();
  return withFloat(type, [&]<typename T>(T) {
    sumWeights<T><<<blocksOfWarps(a.batch * a.queries * a.heads), kWarpBlock, 0, call.stream()>>>(
        a, logSums);
    return launched(call);
  });
}

} // namespace moira::rt::cuda
