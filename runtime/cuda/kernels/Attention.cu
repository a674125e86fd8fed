//===- Attention.cu - the attention call, and its plain kernel --------------===//
// Checks and choice of a kernel. The plain kernel takes any head dimension, one warp a query and
// 256 result columns; the tiled ones are in AttentionBf16.cu and AttentionF32.cu.
//===----------------------------------------------------------------------===//
#include "AttentionTools.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int kColumns = 256; // results a warp makes, 8 a lane

template <typename T> __global__ void attendPlain(AttentionArgs a, int64_t parts) {
  int64_t work = warpNumber();
  if (work >= a.batch * a.queries * a.heads * parts)
    return;
  int64_t column0 = work % parts * kColumns, row = work / parts; // row: (batch, query, head)
  int64_t h = row % a.heads, i = row / a.heads % a.queries, b = row / a.heads / a.queries;
  const T *q = static_cast<const T *>(a.q) + row * a.headDim;
  const int64_t keyStride = int64_t(a.kvHeads) * a.headDim;
  const int64_t head0 = b * a.keys * keyStride + kvHeadOf(a, h) * a.headDim;
  const T *k = static_cast<const T *>(a.k) + head0, *v = static_cast<const T *>(a.v) + head0;

  float largest = -INFINITY, total = 0, sum[kColumns / 32] = {};
  for (int64_t j = 0; j < a.keys; ++j) {
    if (!sees(a.qpos[i], a.kpos[j], a.kmask[b * a.keys + j], a.window))
      continue;
    float dot = 0;
    for (int d = laneNumber(); d < a.headDim; d += 32)
      dot += toFloat(q[d]) * toFloat(k[j * keyStride + d]);
    float score = warpSum(dot) * a.scale;
    float next = fmaxf(largest, score), shrink = expf(largest - next), weight = expf(score - next);
    largest = next;
    total = total * shrink + weight;
#pragma unroll
    for (int c = 0; c < kColumns / 32; ++c) {
      int64_t column = column0 + c * 32 + laneNumber();
      if (column < a.headDim)
        sum[c] = sum[c] * shrink + weight * toFloat(v[j * keyStride + column]);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns / 32; ++c) {
    int64_t column = column0 + c * 32 + laneNumber();
    if (column < a.headDim)
      static_cast<T *>(a.out)[row * a.headDim + column] =
          fromFloat<T>(total == 0 ? 0.0f : sum[c] / total);
  }
}

} // namespace

template <typename T> Status launchAttentionPlain(const Call &call, const AttentionArgs &a) {
  int64_t parts = ceilDiv(a.headDim, kColumns), warps = a.batch * a.queries * a.heads * parts;
  attendPlain<T><<<blocksOfWarps(warps), kWarpBlock, 0, call.stream()>>>(a, parts);
  return launched(call);
}

Status ops::attention(const Call &call) {
  const std::vector<int64_t> &q = call.in[0].shape, &k = call.in[1].shape;
  AttentionArgs a{call.in[0].data,
                  call.in[1].data,
                  call.in[2].data,
                  call.out[0].data,
                  call.input<int32_t>(3),
                  call.input<int32_t>(4),
                  call.input<int32_t>(5),
                  q[0],
                  q[1],
                  k[1],
                  int32_t(q[2]),
                  int32_t(k[2]),
                  int32_t(q[3]),
                  call.params.integer("head_offset"),
                  call.params.integer("kv_heads"),
                  call.params.integer("q_heads"),
                  call.params.integer("kv_offset"),
                  call.params.integer("window"),
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
  for (const TensorRef *t : {&call.in[1], &call.in[2], &call.out[0]})
    if (t->dtype != type)
      return notOnCuda(call, "operands of several types");
  if (call.out[0].elements() == 0)
    return {};
  if (a.headDim > kTiledHeadDim)
    return withFloat(type, [&]<typename T>(T) { return launchAttentionPlain<T>(call, a); });
  return type == fb::DType::bf16 ? launchAttentionBf16(call, a) : launchAttentionF32(call, a);
}

} // namespace moira::rt::cuda
