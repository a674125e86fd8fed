//===- CudnnAttention.cpp - attention of whole sequences by cuDNN -----------===//
// What attention and its gradient are in cuDNN's operations, the graphs, which are the same for all
// calls of one shape, and the handle. cuDNN asks for a structure that does not depend on data:
// calls without positions and masks. Whatever it does not take our own kernels do. It knows graphs
// by their patterns, so nothing in them is arbitrary: they are those that cuDNN's documentation of
// its fused attention describes.
//===----------------------------------------------------------------------===//
#include "CudnnAttention.h"
#include "AttentionSums.h"
#include "CudnnGraph.h"

#include <limits>
#include <map>
#include <memory>
#include <mutex>

namespace moira::rt::cuda {
namespace {

enum class Direction { forward, forwardWithSums, backward, fastestBackward };

/// What a graph is made for.
struct Problem {
  cudnnHandle_t handle;
  Direction direction;
  CudnnHeads h;
  int64_t queries, keys, keyDim, valueDim, window;
  bool causal;
  auto operator<=>(const Problem &) const = default;
};

Problem problemOf(const Call &call, Direction direction, const AttentionArgs &a,
                  const CudnnHeads &h) {
  return {call.context.cudnn, direction,  h,        a.queries, a.keys,
          a.keyDim,           a.valueDim, a.window, a.causal};
}

struct Solution {
  std::unique_ptr<CudnnGraph> graph;                               // null: cuDNN does not take it
  CudnnTensor q, k, v, out, logSums, dy, means, dq, dqSum, dk, dv; // id 0: not in the graph
  CudnnTensor scale, lowest, window, one;
};

/// The operations of one graph.
class Builder {
public:
  Builder(CudnnGraph &graph, const Problem &problem, Solution &solution)
      : g(graph), p(problem), s(solution), all{p.h.batch, p.h.heads, p.queries, p.keys},
        perQuery{p.h.batch, p.h.heads, p.queries, 1} {}

  void forward() {
    s.q = heads(p.queries, p.h.heads, p.h.rowHeads, p.keyDim);
    s.k = transposed(p.keyDim);
    s.v = heads(p.keys, p.h.kvHeads, p.h.rowKvHeads, p.valueDim);
    s.out = heads(p.queries, p.h.heads, p.h.rowHeads, p.valueDim);
    s.scale = g.scalar();
    CudnnTensor scores = mask(times(product(s.q, s.k), s.scale));
    CudnnTensor largest = between(perQuery), total = between(perQuery),
                weights = between(all, CUDNN_DATA_BFLOAT16);
    g.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, largest);
    CudnnTensor powers = exp(minus(scores, largest));
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, powers, total);
    // Part of the pattern even where nobody asks for the sums.
    CudnnTensor exponent = between(perQuery), logSums;
    g.apply(CUDNN_POINTWISE_LOG, total, exponent);
    if (p.direction == Direction::forwardWithSums)
      logSums = s.logSums = sums(p.h.rowHeads);
    else
      logSums = between(perQuery);
    g.apply(CUDNN_POINTWISE_ADD, largest, exponent, logSums);
    g.apply(CUDNN_POINTWISE_DIV, powers, total, weights);
    g.multiply(weights, s.v, s.out);
  }

  /// Where dq is a product like the others cuDNN keeps the cotangents of all scores for it in its
  /// workspace, and sums have one order. Where f32 sums of it are in memory, it adds to these with
  /// atomics.
  void backward() {
    s.q = heads(p.queries, p.h.heads, p.h.rowHeads, p.keyDim);
    s.k = transposed(p.keyDim);
    s.v = transposed(p.valueDim);
    s.out = heads(p.queries, p.h.heads, p.h.rowHeads, p.valueDim);
    s.dy = heads(p.queries, p.h.heads, p.h.dyRowHeads, p.valueDim);
    s.dq = heads(p.queries, p.h.heads, p.h.dqRowHeads, p.keyDim);
    s.dk = heads(p.keys, p.h.kvHeads, p.h.dkRowHeads, p.keyDim);
    s.dv = heads(p.keys, p.h.kvHeads, p.h.dvRowHeads, p.valueDim);
    s.logSums = sums(p.h.rowHeads);
    s.means = sums(p.h.heads);
    s.scale = g.scalar();
    s.one = g.scalar();
    CudnnTensor parts = between({p.h.batch, p.h.heads, p.queries, p.valueDim}),
                mean = between(perQuery);
    g.apply(CUDNN_POINTWISE_MUL, s.dy, s.out, parts);
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, parts, mean);
    g.apply(CUDNN_POINTWISE_MUL, mean, s.one, s.means);

    CudnnTensor weights = exp(mask(minus(times(product(s.q, s.k), s.scale), s.logSums)));
    overQueries(weights, s.dy, s.dv);
    CudnnTensor back = minus(product(s.dy, s.v), s.means), unscaled = between(all);
    g.apply(CUDNN_POINTWISE_MUL, back, weights, unscaled);
    CudnnTensor grads = times(unscaled, s.scale);
    overQueries(grads, s.q, s.dk);
    CudnnTensor keys =
        g.between(CUDNN_DATA_FLOAT, {p.h.batch, p.h.kvHeads, p.keys, p.keyDim},
                  {p.keys * p.h.rowKvHeads * p.keyDim, p.keyDim, p.h.rowKvHeads * p.keyDim, 1});
    g.reshape(s.k, keys);
    if (p.direction == Direction::backward) {
      g.multiply(grads, keys, s.dq);
      return;
    }
    s.dqSum = g.tensor(CUDNN_DATA_FLOAT, s.dq.dims,
                       {p.h.heads * p.queries * p.keyDim, p.queries * p.keyDim, p.keyDim, 1});
    g.multiply(grads, keys, s.dqSum);
    g.apply(CUDNN_POINTWISE_IDENTITY, s.dqSum, s.dq);
  }

private:
  /// [batch, rows, heads, width] as cuDNN names dimensions, (batch, head, row, column); a row has
  /// `rowHeads` heads.
  CudnnTensor heads(int64_t rows, int64_t heads, int64_t rowHeads, int64_t width) {
    return g.tensor(CUDNN_DATA_BFLOAT16, {p.h.batch, heads, rows, width},
                    {rows * rowHeads * width, width, rowHeads * width, 1});
  }
  /// Keys or values, a column a key.
  CudnnTensor transposed(int64_t width) {
    return g.tensor(CUDNN_DATA_BFLOAT16, {p.h.batch, p.h.kvHeads, width, p.keys},
                    {p.keys * p.h.rowKvHeads * width, width, 1, p.h.rowKvHeads * width});
  }
  CudnnTensor sums(int64_t rowHeads) {
    return g.tensor(CUDNN_DATA_FLOAT, perQuery, {rowHeads * p.queries, p.queries, 1, 1});
  }
  CudnnTensor between(const CudnnDims &dims, cudnnDataType_t type = CUDNN_DATA_FLOAT) {
    return g.between(type, dims);
  }
  CudnnTensor product(CudnnTensor a, CudnnTensor b) {
    CudnnTensor made = between(all);
    g.multiply(a, b, made);
    return made;
  }
  CudnnTensor times(CudnnTensor a, CudnnTensor b) {
    CudnnTensor made = between(all);
    g.apply(CUDNN_POINTWISE_MUL, a, b, made);
    return made;
  }
  CudnnTensor minus(CudnnTensor a, CudnnTensor b) {
    CudnnTensor made = between(all);
    g.apply(CUDNN_POINTWISE_SUB, a, b, made);
    return made;
  }
  CudnnTensor exp(CudnnTensor a) {
    CudnnTensor made = between(all);
    g.apply(CUDNN_POINTWISE_EXP, a, made);
    return made;
  }
  /// out = aᵀ·b, added up over the query heads that share a key/value head.
  void overQueries(CudnnTensor a, CudnnTensor b, CudnnTensor out) {
    CudnnTensor turned = g.between(CUDNN_DATA_BFLOAT16, {p.h.batch, p.h.heads, p.keys, p.queries},
                                   {p.h.heads * p.queries * p.keys, p.queries * p.keys, 1, p.keys});
    g.reshape(a, turned);
    if (p.h.heads == p.h.kvHeads) {
      g.multiply(turned, b, out);
      return;
    }
    CudnnTensor each = between({p.h.batch, p.h.heads, p.keys, out.dims[3]}, CUDNN_DATA_BFLOAT16);
    g.multiply(turned, b, each);
    g.reduce(CUDNN_REDUCE_TENSOR_ADD, each, out);
  }
  /// Scores of keys that are not seen become the lowest number: the pattern by which cuDNN knows a
  /// causal mask and a window.
  CudnnTensor mask(CudnnTensor scores) {
    auto place = [&](int64_t dimension) {
      CudnnTensor index = between(all, CUDNN_DATA_INT32);
      g.index(dimension, scores, index);
      return index;
    };
    auto keep = [&](CudnnTensor condition) {
      CudnnTensor kept = between(all);
      g.select(condition, scores, s.lowest, kept);
      scores = kept;
    };
    if (p.causal || p.window > 0)
      s.lowest = g.scalar();
    if (p.causal) {
      CudnnTensor row = place(2), column = place(3), seen = between(all, CUDNN_DATA_BOOLEAN);
      g.apply(CUDNN_POINTWISE_CMP_GE, row, column, seen, CUDNN_DATA_BOOLEAN);
      keep(seen);
    }
    if (p.window > 0) {
      CudnnTensor row = place(2), column = place(3), last = between(all),
                  seen = between(all, CUDNN_DATA_BOOLEAN);
      s.window = g.scalar();
      g.apply(CUDNN_POINTWISE_ADD, column, s.window, last);
      g.apply(CUDNN_POINTWISE_CMP_GT, last, row, seen, CUDNN_DATA_BOOLEAN);
      keep(seen);
    }
    return scores;
  }

  CudnnGraph &g;
  const Problem &p;
  Solution &s;
  const CudnnDims all, perQuery; // scores, and a number a query
};

/// Solutions live as long as their handle.
std::mutex solutionsMutex;
std::map<Problem, Solution> solutions;

const Solution &solutionOf(const Problem &problem) {
  std::lock_guard lock(solutionsMutex);
  auto [found, fresh] = solutions.try_emplace(problem);
  Solution &s = found->second;
  if (fresh) {
    s.graph = std::make_unique<CudnnGraph>(**CudnnLibrary::get());
    Builder builder(*s.graph, problem, s);
    problem.direction == Direction::forward || problem.direction == Direction::forwardWithSums
        ? builder.forward()
        : builder.backward();
    if (!s.graph->plan(problem.handle))
      s.graph.reset();
  }
  return s;
}

Status failed(std::string_view what, cudnnStatus_t status) {
  return Status(ErrorId::DeviceFailed,
                format("cuDNN fails in '%.*s': %s", int(what.size()), what.data(),
                       (*CudnnLibrary::get())->getErrorString(status)));
}

/// `data`: of tensors, of which those that the graph does not have are left out.
Status run(const Call &call, const Solution &s, const AttentionArgs &a,
           std::initializer_list<std::pair<CudnnTensor, const void *>> data, void *workspace) {
  const float lowest = std::numeric_limits<float>::lowest(), window = float(a.window), one = 1;
  std::vector<std::pair<int64_t, const void *>> pack;
  auto add = [&](CudnnTensor tensor, const void *at) {
    if (tensor.id)
      pack.emplace_back(tensor.id, at);
  };
  for (auto [tensor, at] : data)
    add(tensor, at);
  add(s.scale, &a.scale);
  add(s.lowest, &lowest);
  add(s.window, &window);
  add(s.one, &one);
  const CallContext &context = call.context;
  cudnnStatus_t status = (*CudnnLibrary::get())->setStream(context.cudnn, context.stream);
  if (status == CUDNN_STATUS_SUCCESS)
    status = s.graph->run(context.cudnn, pack, workspace);
  return status == CUDNN_STATUS_SUCCESS ? Status() : failed(call.name, status);
}

} // namespace

Expected<cudnnHandle_t> createCudnn() {
  Expected<const CudnnLibrary *> library = CudnnLibrary::get();
  if (!library)
    return library.takeStatus();
  cudnnHandle_t handle = nullptr;
  if (cudnnStatus_t status = (*library)->create(&handle); status != CUDNN_STATUS_SUCCESS)
    return failed("create", status);
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

bool mayAskCudnn(const Call &call, const AttentionArgs &a) {
  if (!call.context.cudnn || !isInOrder(call.params) || a.sharedDim != 0 || a.bias || a.sinks ||
      (a.keyDim | a.valueDim) % 8 != 0 || a.heads % a.kvHeads != 0)
    return false;
  // cuDNN shares key/value heads evenly and in order.
  for (int64_t h = 0; h < a.heads; ++h)
    if ((a.headOffset + h) * a.allKvHeads / a.allHeads - a.kvOffset != h / (a.heads / a.kvHeads))
      return false;
  return true;
}

Expected<bool> attendByCudnn(const Call &call, const AttentionArgs &a) {
  float *logSums = logSumsOf(call);
  if (!mayAskCudnn(call, a) ||
      (addressOf(a.q) | addressOf(a.k) | addressOf(a.v) | addressOf(a.out) | addressOf(logSums)) %
              16 !=
          0)
    return false;
  const Solution &s =
      solutionOf(problemOf(call, logSums ? Direction::forwardWithSums : Direction::forward, a,
                           {a.batch, a.heads, a.kvHeads, a.heads, a.kvHeads}));
  if (!s.graph || s.graph->workspaceBytes() > call.context.workspaceBytes)
    return false;
  if (Status status = run(
          call, s, a, {{s.q, a.q}, {s.k, a.k}, {s.v, a.v}, {s.out, a.out}, {s.logSums, logSums}},
          call.context.workspace);
      !status)
    return status;
  return true;
}

int64_t cudnnGradBytes(const Call &call, const AttentionArgs &a, const CudnnHeads &heads,
                       bool fastest) {
  constexpr size_t clearsSums = 90600; // before it whoever called had to
  if (fastest && (*CudnnLibrary::get())->getVersion() < clearsSums)
    return -1;
  const Solution &s = solutionOf(
      problemOf(call, fastest ? Direction::fastestBackward : Direction::backward, a, heads));
  return s.graph ? int64_t(s.graph->workspaceBytes()) : -1;
}

Status runCudnnGrad(const Call &call, const AttentionArgs &a, const CudnnHeads &heads, bool fastest,
                    const CudnnGradOperands &o, void *workspace) {
  const Solution &s = solutionOf(
      problemOf(call, fastest ? Direction::fastestBackward : Direction::backward, a, heads));
  return run(call, s, a,
             {{s.q, o.q},
              {s.k, o.k},
              {s.v, o.v},
              {s.out, o.out},
              {s.dy, o.dy},
              {s.logSums, o.logSums},
              {s.means, o.means},
              {s.dq, o.dq},
              {s.dqSum, o.dqSum},
              {s.dk, o.dk},
              {s.dv, o.dv}},
             workspace);
}

} // namespace moira::rt::cuda
