//===- CudnnAttention.cpp - attention of whole sequences by cuDNN -----------===//
// What attention is in cuDNN's operations, where its graph is the same for all calls of one shape,
// and the handle. cuDNN asks for a structure that does not depend on data: positions in order and
// no masked keys (`in_order` of the call). Whatever it does not take our own kernels do. It knows
// its fused attention by the graph's pattern, so no operation of it may be left out.
//===----------------------------------------------------------------------===//
#include "CudaOps.h"
#include "CudnnGraph.h"

#include <compare>
#include <limits>
#include <map>
#include <memory>
#include <mutex>

namespace moira::rt::cuda {
namespace {

/// What a graph is made for.
struct Problem {
  cudnnHandle_t handle;
  int64_t batch, queries, keys, heads, kvHeads, keyDim, valueDim, window;
  bool causal;
  auto operator<=>(const Problem &) const = default;
};

struct Solution {
  std::unique_ptr<CudnnGraph> graph; // null: cuDNN does not take it
  CudnnTensor q, k, v, out, scale, lowest, window;
};

/// [batch, rows, heads, width] as cuDNN names dimensions: (batch, head, row, column).
CudnnTensor headsOf(CudnnGraph &graph, int64_t batch, int64_t rows, int64_t heads, int64_t width) {
  return graph.tensor(CUDNN_DATA_BFLOAT16, {batch, heads, rows, width},
                      {rows * heads * width, width, heads * width, 1});
}

/// Scores of keys that are not seen become the lowest number: the pattern by which cuDNN knows a
/// causal mask and a window.
CudnnTensor mask(CudnnGraph &graph, const Problem &p, Solution &s, CudnnTensor scores) {
  auto like = [&](cudnnDataType_t type) { return graph.between(type, scores.dims); };
  auto place = [&](int64_t dimension) {
    CudnnTensor index = like(CUDNN_DATA_INT32);
    graph.index(dimension, scores, index);
    return index;
  };
  auto keep = [&](CudnnTensor condition) {
    CudnnTensor kept = like(CUDNN_DATA_FLOAT);
    graph.select(condition, scores, s.lowest, kept);
    scores = kept;
  };
  if (p.causal || p.window > 0)
    s.lowest = graph.scalar();
  if (p.causal) {
    CudnnTensor row = place(2), column = place(3), seen = like(CUDNN_DATA_BOOLEAN);
    graph.apply(CUDNN_POINTWISE_CMP_GE, row, column, seen, CUDNN_DATA_BOOLEAN);
    keep(seen);
  }
  if (p.window > 0) {
    CudnnTensor row = place(2), column = place(3), last = like(CUDNN_DATA_FLOAT),
                seen = like(CUDNN_DATA_BOOLEAN);
    s.window = graph.scalar();
    graph.apply(CUDNN_POINTWISE_ADD, column, s.window, last);
    graph.apply(CUDNN_POINTWISE_CMP_GT, last, row, seen, CUDNN_DATA_BOOLEAN);
    keep(seen);
  }
  return scores;
}

void solve(const CudnnLibrary &library, const Problem &p, Solution &s) {
  s.graph = std::make_unique<CudnnGraph>(library);
  CudnnGraph &g = *s.graph;
  s.q = headsOf(g, p.batch, p.queries, p.heads, p.keyDim);
  s.k = g.tensor(CUDNN_DATA_BFLOAT16, {p.batch, p.kvHeads, p.keyDim, p.keys}, // transposed
                 {p.keys * p.kvHeads * p.keyDim, p.keyDim, 1, p.kvHeads * p.keyDim});
  s.v = headsOf(g, p.batch, p.keys, p.kvHeads, p.valueDim);
  s.out = headsOf(g, p.batch, p.queries, p.heads, p.valueDim);
  s.scale = g.scalar();
  const CudnnDims all{p.batch, p.heads, p.queries, p.keys}, perRow{p.batch, p.heads, p.queries, 1};
  auto between = [&](const CudnnDims &dims, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return g.between(type, dims);
  };
  CudnnTensor products = between(all), scaled = between(all);
  g.multiply(s.q, s.k, products);
  g.apply(CUDNN_POINTWISE_MUL, products, s.scale, scaled);
  CudnnTensor scores = mask(g, p, s, scaled);
  CudnnTensor largest = between(perRow), below = between(all), powers = between(all),
              total = between(perRow), exponent = between(perRow), logSum = between(perRow),
              weights = between(all, CUDNN_DATA_BFLOAT16);
  g.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, largest);
  g.apply(CUDNN_POINTWISE_SUB, scores, largest, below);
  g.apply(CUDNN_POINTWISE_EXP, below, powers);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, powers, total);
  // Of the pattern, though nobody reads it.
  g.apply(CUDNN_POINTWISE_LOG, total, exponent);
  g.apply(CUDNN_POINTWISE_ADD, largest, exponent, logSum);
  g.apply(CUDNN_POINTWISE_DIV, powers, total, weights);
  g.multiply(weights, s.v, s.out);
  if (!g.plan(p.handle))
    s.graph.reset();
}

/// Solutions live as long as their handle.
std::mutex solutionsMutex;
std::map<Problem, Solution> solutions;

const Solution &solutionOf(const CudnnLibrary &library, const Problem &problem) {
  std::lock_guard lock(solutionsMutex);
  auto [found, fresh] = solutions.try_emplace(problem);
  if (fresh)
    solve(library, problem, found->second);
  return found->second;
}

/// Whether cuDNN's sharing of key/value heads, evenly and in order, is the call's.
bool sharesHeadsEvenly(const AttentionArgs &a) {
  if (a.heads % a.kvHeads != 0)
    return false;
  for (int64_t h = 0; h < a.heads; ++h)
    if ((a.headOffset + h) * a.allKvHeads / a.allHeads - a.kvOffset != h / (a.heads / a.kvHeads))
      return false;
  return true;
}

Status failed(std::string_view what, const CudnnLibrary &library, cudnnStatus_t status) {
  return Status(ErrorId::DeviceFailed, format("cuDNN fails in '%.*s': %s", int(what.size()),
                                              what.data(), library.getErrorString(status)));
}

} // namespace

Expected<cudnnHandle_t> createCudnn() {
  Expected<const CudnnLibrary *> library = CudnnLibrary::get();
  if (!library)
    return library.takeStatus();
  cudnnHandle_t handle = nullptr;
  if (cudnnStatus_t status = (*library)->create(&handle); status != CUDNN_STATUS_SUCCESS)
    return failed("create", **library, status);
  return handle;
}

void destroyCudnn(cudnnHandle_t handle) {
  if (!handle)
    return;
  {
    std::lock_guard lock(solutionsMutex);
    std::erase_if(solutions, [&](const auto &entry) { return entry.first.handle == handle; });
  }
  (*CudnnLibrary::get())->destroy(handle);
}

Expected<bool> attendByCudnn(const Call &call, const AttentionArgs &a) {
  const CallContext &context = call.context;
  if (!context.cudnn || call.params.integer("in_order") == 0 || a.q2 || a.bias || a.sinks ||
      !sharesHeadsEvenly(a) || (a.keyDim | a.valueDim) % 8 != 0 ||
      (addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out)) % 16 != 0)
    return false;
  const CudnnLibrary &library = **CudnnLibrary::get();
  const Solution &s = solutionOf(library, {context.cudnn, a.batch, a.queries, a.keys, a.heads,
                                           a.kvHeads, a.keyDim, a.valueDim, a.window, a.causal});
  if (!s.graph || s.graph->workspaceBytes() > context.workspaceBytes)
    return false;
  const float lowest = std::numeric_limits<float>::lowest(), window = float(a.window);
  std::vector<std::pair<int64_t, const void *>> data{
      {s.q.id, a.q}, {s.k.id, a.k}, {s.v.id, a.v}, {s.out.id, a.out}, {s.scale.id, &a.scale}};
  if (a.causal || a.window > 0)
    data.emplace_back(s.lowest.id, &lowest);
  if (a.window > 0)
    data.emplace_back(s.window.id, &window);
  cudnnStatus_t status = library.setStream(context.cudnn, context.stream);
  if (status == CUDNN_STATUS_SUCCESS)
    status = s.graph->run(context.cudnn, data, context.workspace);
  if (status != CUDNN_STATUS_SUCCESS)
    return failed(call.name, library, status);
  return true;
}

} // namespace moira::rt::cuda
