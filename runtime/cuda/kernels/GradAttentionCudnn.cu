//===- GradAttentionCudnn.cu - attention_grad of whole sequences by cuDNN -----===//
// cuDNN reads what attention left and makes gradients in bf16, in their place or, where they are
// f32, in the memory that the call has to work in, of as many heads at a time as fit there. Here
// are the choice of these heads, and the kernel that widens what it makes.
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

/// To `rows` of a whole result in f32, from a head's row `row0` on.
Status launchWiden(const Call &call, const bf16 *from, const Writer &to, int64_t row0, int64_t rows,
                   int64_t heads, int64_t rowHeads, int64_t width) {
  const int64_t units = rows * heads * width / kUnit;
  widen<<<blocksOfThreads(units), kWarpBlock, 0, call.stream()>>>(
      from, static_cast<float *>(to.data) + row0 * width, units, int32_t(width), int32_t(heads),
      int32_t(rowHeads));
  return launched(call);
}

/// Memory of a part.
struct PartMemory {
  bf16 *dy, *dq, *dk, *dv; // null: the call's own, which is bf16
  float *means, *dqSum;    // dqSum: of the fastest only
  void *rest;              // cuDNN's own workspace
  int64_t restBytes;
};

bool takePart(const GradArgs &g, const GradResults &made, const GradPart &p, bool fastest,
              Scratch room, PartMemory &m) {
  const AttentionArgs &a = g.a;
  const int64_t queries = p.batches * a.queries * p.heads, keys = p.batches * a.keys * p.kvHeads;
  bool fits = true;
  auto takeUnless = [&](bool isBf16, int64_t values) {
    bf16 *memory = isBf16 ? nullptr : room.take<bf16>(values);
    fits = fits && (isBf16 || memory);
    return memory;
  };
  m.dy = takeUnless(g.dy.isBf16, queries * a.valueDim);
  m.dq = takeUnless(made.q.isBf16, queries * a.keyDim);
  m.dk = takeUnless(made.k.isBf16, keys * a.keyDim);
  m.dv = takeUnless(made.v.isBf16, keys * a.valueDim);
  m.means = room.take<float>(queries);
  m.dqSum = fastest ? room.take<float>(queries * a.keyDim) : nullptr;
  m.restBytes = int64_t(room.bytesLeft() / 256 * 256);
  m.rest = room.take<char>(m.restBytes);
  return fits && m.means && (m.dqSum || !fastest) && m.rest;
}

CudnnHeads headsOf(const GradArgs &g, const GradResults &made, const GradPart &p) {
  const int64_t heads = g.a.heads, kvHeads = g.a.kvHeads;
  return {.batch = p.batches,
          .heads = p.heads,
          .kvHeads = p.kvHeads,
          .rowHeads = heads,
          .rowKvHeads = kvHeads,
          .dyRowHeads = g.dy.isBf16 ? heads : p.heads,
          .dqRowHeads = made.q.isBf16 ? heads : p.heads,
          .dkRowHeads = made.k.isBf16 ? kvHeads : p.kvHeads,
          .dvRowHeads = made.v.isBf16 ? kvHeads : p.kvHeads};
}

/// Few parts that each fit the room: whole batches, or key/value heads of one. None: not even those
/// of one key/value head do.
std::vector<GradPart> partsOf(const Call &call, const GradArgs &g, const GradResults &made,
                              Scratch room, bool fastest) {
  const AttentionArgs &a = g.a;
  for (int64_t most = a.batch * a.heads; most > 0; most /= 2) {
    std::vector<GradPart> parts;
    int64_t batch = 0, kv = 0;
    bool fits = true;
    while (fits && batch < a.batch) {
      const GradPart part = partFrom(a, batch, kv, most);
      PartMemory m;
      // What is known to need more is not planned.
      fits = part.heads > 0 && takePart(g, made, part, fastest, room, m) &&
             (fastest || m.restBytes / (a.queries * a.keys * int64_t(sizeof(bf16))) >=
                             part.batches * part.heads);
      const bool isNew =
          parts.empty() || parts[0].batches != part.batches || parts[0].kvHeads != part.kvHeads;
      if (fits && isNew) {
        const int64_t bytes = cudnnGradBytes(call, a, headsOf(g, made, part), fastest);
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
                                        const GradResults &made) {
  const AttentionArgs &a = g.a;
  constexpr int64_t kFew = 32; // queries or keys that are not worth it
  const size_t addresses = addressOf(g.q.data) | addressOf(g.k.data) | addressOf(g.v.data) |
                           addressOf(g.out.data) | addressOf(g.dy.data) | addressOf(g.logSums) |
                           addressOf(made.q.data) | addressOf(made.k.data) | addressOf(made.v.data);
  if (!g.logSums || !mayAskCudnn(call, a) || !g.q.isBf16 || !g.k.isBf16 || !g.v.isBf16 ||
      !g.out.isBf16 || addresses % 16 != 0 || a.queries <= kFew || a.keys <= kFew)
    return false;
  const bool fastest = call.params.integer("fastest") != 0;
  const std::vector<GradPart> parts = partsOf(call, g, made, room, fastest);
  for (const GradPart &part : parts) {
    PartMemory m;
    takePart(g, made, part, fastest, room, m);
    const int64_t query0 = part.batch0 * a.queries * a.heads + part.head0,
                  key0 = part.batch0 * a.keys * a.kvHeads + part.kv0;
    auto from = [](const Reader &reader, int64_t row, int64_t width) {
      return static_cast<const bf16 *>(reader.data) + row * width;
    };
    auto to = [](bf16 *memory, const Writer &writer, int64_t row, int64_t width) {
      return memory ? memory : static_cast<bf16 *>(writer.data) + row * width;
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
                                     .dq = to(m.dq, made.q, query0, a.keyDim),
                                     .dk = to(m.dk, made.k, key0, a.keyDim),
                                     .dv = to(m.dv, made.v, key0, a.valueDim)};
    if (Status s = runCudnnGrad(call, a, headsOf(g, made, part), fastest, operands, m.rest); !s)
      return s;
    const int64_t queries = part.batches * a.queries, keys = part.batches * a.keys;
    if (m.dq)
      if (Status s =
              launchWiden(call, m.dq, made.q, query0, queries, part.heads, a.heads, a.keyDim);
          !s)
        return s;
    if (m.dk)
      if (Status s = launchWiden(call, m.dk, made.k, key0, keys, part.kvHeads, a.kvHeads, a.keyDim);
          !s)
        return s;
    if (m.dv)
      if (Status s =
              launchWiden(call, m.dv, made.v, key0, keys, part.kvHeads, a.kvHeads, a.valueDim);
          !s)
        return s;
  }
  return !parts.empty();
}

} // namespace moira::rt::cuda
