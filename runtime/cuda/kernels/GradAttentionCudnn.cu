//===- GradAttentionCudnn.cu - attention_grad of whole sequences by cuDNN -----===//
// cuDNN reads what attention left and makes gradients in bf16, in the memory that the call has to
// work in, of as many heads at a time as fit there. Here are the choice of these heads, and the
// kernel that widens what it makes.
//===----------------------------------------------------------------------===//
#include "CudnnAttention.h"
#include "GradAttentionTables.h"

#include <vector>

namespace moira::rt::cuda {
namespace {

constexpr int kUnit = 8; // numbers a thread widens

/// to[row, h, :] = from[row, h, :]; rows of `to` have `rowHeads` heads.
__global__ void widen(const bf16 *from, float *to, int64_t units, int32_t width, int32_t heads,
                      int32_t rowHeads) {
  const int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= units)
    return;
  int64_t headRow, column, row, head;
  divide(unit * kUnit, width, headRow, column);
  divide(headRow, heads, row, head);
  const uint4 packed = reinterpret_cast<const uint4 *>(from)[unit];
  const bf16 *values = reinterpret_cast<const bf16 *>(&packed);
  float4 *out = reinterpret_cast<float4 *>(to + (row * rowHeads + head) * width + column);
#pragma unroll
  for (int i = 0; i < kUnit / 4; ++i)
    out[i] = make_float4(toFloat(values[i * 4]), toFloat(values[i * 4 + 1]),
                         toFloat(values[i * 4 + 2]), toFloat(values[i * 4 + 3]));
}

Status launchWiden(const Call &call, const bf16 *from, float *to, int64_t rows, int64_t heads,
                   int64_t rowHeads, int64_t width) {
  const int64_t units = rows * heads * width / kUnit;
  widen<<<blocksOfThreads(units), kWarpBlock, 0, call.stream()>>>(
      from, to, units, int32_t(width), int32_t(heads), int32_t(rowHeads));
  return launched(call);
}

/// Memory of a part.
struct PartMemory {
  bf16 *dy, *dq, *dk, *dv; // dy: null where it is in bf16 already
  float *means, *dqSum;    // dqSum: of the fastest only
  void *rest;              // cuDNN's own workspace
  int64_t restBytes;
};

bool takePart(const GradArgs &g, const GradPart &p, bool fastest, Scratch room, PartMemory &m) {
  const AttentionArgs &a = g.a;
  const int64_t queries = p.batches * a.queries * p.heads, keys = p.batches * a.keys * p.kvHeads;
  m.dy = g.dy.isBf16 ? nullptr : room.take<bf16>(queries * a.valueDim);
  m.dq = room.take<bf16>(queries * a.keyDim);
  m.dk = room.take<bf16>(keys * a.keyDim);
  m.dv = room.take<bf16>(keys * a.valueDim);
  m.means = room.take<float>(queries);
  m.dqSum = fastest ? room.take<float>(queries * a.keyDim) : nullptr;
  m.restBytes = int64_t(room.bytesLeft() / 256 * 256);
  m.rest = room.take<char>(m.restBytes);
  return (m.dy || g.dy.isBf16) && m.dq && m.dk && m.dv && m.means && (m.dqSum || !fastest) &&
         m.rest;
}

CudnnHeads headsOf(const GradArgs &g, const GradPart &p) {
  return {p.batches, p.heads, p.kvHeads, g.a.heads, g.a.kvHeads, g.dy.isBf16 ? g.a.heads : p.heads};
}

/// Few parts that each fit the room: whole batches, or key/value heads of one. None: not even those
/// of one key/value head do.
std::vector<GradPart> partsOf(const Call &call, const GradArgs &g, Scratch room, bool fastest) {
  const AttentionArgs &a = g.a;
  for (int64_t most = a.batch * a.heads; most > 0; most /= 2) {
    std::vector<GradPart> parts;
    int64_t batch = 0, kv = 0;
    bool fits = true;
    while (fits && batch < a.batch) {
      const GradPart part = partFrom(a, batch, kv, most);
      PartMemory m;
      // What is known to need more is not planned.
      fits = part.heads > 0 && takePart(g, part, fastest, room, m) &&
             (fastest || m.restBytes / (a.queries * a.keys * int64_t(sizeof(bf16))) >=
                             part.batches * part.heads);
      const bool isNew =
          parts.empty() || parts[0].batches != part.batches || parts[0].kvHeads != part.kvHeads;
      if (fits && isNew) {
        const int64_t bytes = cudnnGradBytes(call, a, headsOf(g, part), fastest);
        if (bytes < 0)
          return {};
        fits = bytes <= m.restBytes;
      }
      parts.push_back(part);
      kv += part.kvHeads;
      if (kv == a.kvHeads) {
        batch += part.batches;
        kv = 0;
      }
    }
    if (fits)
      return parts;
  }
  return {};
}

} // namespace

Expected<bool> launchAttentionGradCudnn(const Call &call, const GradArgs &g, Scratch room,
                                        float *dq, float *dk, float *dv) {
  const AttentionArgs &a = g.a;
  constexpr int64_t kFew = 32; // queries or keys that are not worth it
  const size_t addresses = addressOf(g.q.data) | addressOf(g.k.data) | addressOf(g.v.data) |
                           addressOf(g.out.data) | addressOf(g.dy.data) | addressOf(g.logSums) |
                           addressOf(dq) | addressOf(dk) | addressOf(dv);
  if (!g.logSums || !mayAskCudnn(call, a) || !g.q.isBf16 || !g.k.isBf16 || !g.v.isBf16 ||
      !g.out.isBf16 || addresses % 16 != 0 || a.queries <= kFew || a.keys <= kFew)
    return false;
  const bool fastest = call.params.integer("fastest") != 0;
  const std::vector<GradPart> parts = partsOf(call, g, room, fastest);
  for (const GradPart &part : parts) {
    PartMemory m;
    takePart(g, part, fastest, room, m);
    const int64_t query0 = part.batch0 * a.queries * a.heads + part.head0,
                  key0 = part.batch0 * a.keys * a.kvHeads + part.kv0;
    auto from = [](const Reader &reader, int64_t row, int64_t width) {
      return static_cast<const bf16 *>(reader.data) + row * width;
    };
    if (m.dy)
      if (Status s = roundPart(call, static_cast<const float *>(g.dy.data), m.dy, a, part); !s)
        return s;
    const CudnnGradOperands operands{.q = from(g.q, query0, a.keyDim),
                                     .k = from(g.k, key0, a.keyDim),
                                     .v = from(g.v, key0, a.valueDim),
                                     .out = from(g.out, query0, a.valueDim),
                                     .dy = m.dy ? m.dy : from(g.dy, query0, a.valueDim),
                                     .logSums = g.logSums +
                                                (part.batch0 * a.heads + part.head0) * a.queries,
                                     .means = m.means,
                                     .dqSum = m.dqSum,
                                     .dq = m.dq,
                                     .dk = m.dk,
                                     .dv = m.dv};
    if (Status s = runCudnnGrad(call, a, headsOf(g, part), fastest, operands, m.rest); !s)
      return s;
    const int64_t queries = part.batches * a.queries, keys = part.batches * a.keys;
    if (Status s =
            launchWiden(call, m.dq, dq + query0 * a.keyDim, queries, part.heads, a.heads, a.keyDim);
        !s)
      return s;
    if (Status s =
            launchWiden(call, m.dk, dk + key0 * a.keyDim, keys, part.kvHeads, a.kvHeads, a.keyDim);
        !s)
      return s;
    if (Status s = launchWiden(call, m.dv, dv + key0 * a.valueDim, keys, part.kvHeads, a.kvHeads,
                               a.valueDim);
        !s)
      return s;
  }
  return !parts.empty();
}

} // namespace moira::rt::cuda
