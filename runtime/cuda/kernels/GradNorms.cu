//===- GradNorms.cu - gradients of norms ------------------------------------===//
// rms_sums, rms_norm_grad, layer_norm_grad. Rows of up to kMostWidth values in packs are read once:
// a group of threads holds a row in registers, makes its gradient, and adds the row's part of the
// weight's to what it keeps of each column; the groups' sums are added in their order. Other rows
// are a warp's work, and one thread a column sums over them.
//===----------------------------------------------------------------------===//
#include "GradTools.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::cuda {
namespace {

__device__ void rowSums(Reader dy, Reader x, Reader w, int64_t first, int64_t width, float &squares,
                        float &dot) {
  squares = dot = 0;
  for (int64_t i = laneNumber(); i < width; i += 32) {
    float v = x[first + i];
    squares += v * v;
    dot += dy[first + i] * w[i] * v;
  }
  squares = warpSum(squares);
  dot = warpSum(dot);
}

__global__ void rmsSums(Reader dy, Reader x, Reader w, float *ss, float *dot, int64_t rows,
                        int64_t width) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  float squares, product;
  rowSums(dy, x, w, t * width, width, squares, product);
  if (laneNumber() == 0) {
    ss[t] = squares;
    dot[t] = product;
  }
}

constexpr int kThreads = 256, kWarps = kThreads / 32;
/// The widest row that the lanes of a warp, or a block's threads, hold: so many packs each.
constexpr int kMostPacks = 4;
constexpr int64_t kWarpWidth = kMostPacks * kNeighbours * 32,
                  kMostWidth = kMostPacks * kNeighbours * kThreads;
/// Blocks, as far as the workspace has room for a row of sums of each.
constexpr int64_t kMostBlocks = 1056;

/// Sums over the threads of a group of one or kWarps warps, given to all. Of a block, each call
/// takes the buffers in turn: a thread is in the next one only after all have been in this one.
template <int warps> class GroupSums {
public:
  template <int n> __device__ void add(float (&values)[n]) {
#pragma unroll
    for (int i = 0; i < n; ++i)
      values[i] = warpSum(values[i]);
    if constexpr (warps > 1) {
      __shared__ float partial[2][2][warps];
      static_assert(n <= 2);
      const int warp = int(threadIdx.x) / 32;
      turn ^= 1;
      if (laneNumber() == 0)
#pragma unroll
        for (int i = 0; i < n; ++i)
          partial[turn][i][warp] = values[i];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < n; ++i) {
        values[i] = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w)
          values[i] += partial[turn][i][w];
      }
    }
  }

private:
  int turn = 0;
};

struct NormBack {
  Reader dy, x, w;
  const float *squares, *dots; // of rows that lie on several ranks, or null
  Writer dx;
  float *weights, *biases; // [blocks, width]: sums of each block's rows
  int64_t rows, width;
  float count, eps;
};

/// A group of `warps` warps a row, `packs` packs of it a thread.
template <bool layerNorm, int warps, int packs>
__global__ void __launch_bounds__(kThreads) normBack(NormBack norm) {
  constexpr int n = kNeighbours, groups = kWarps / warps;
  const int group = int(threadIdx.x) / (warps * 32), member = int(threadIdx.x) % (warps * 32);
  GroupSums<warps> sums;
  float w[packs][n] = {}, weight[packs][n] = {}, bias[layerNorm ? packs : 1][n] = {};
  auto each = [&](auto work) {
#pragma unroll
    for (int p = 0; p < packs; ++p)
      if (const int64_t column = (p * warps * 32 + member) * n; column < norm.width)
        work(p, column);
  };
  each([&](int p, int64_t column) { norm.w.load(column, w[p]); });

  for (int64_t row = int64_t(blockIdx.x) * groups + group; row < norm.rows;
       row += int64_t(gridDim.x) * groups) {
    // Past the width both are zero, and so are their parts of the sums.
    float x[packs][n] = {}, dy[packs][n] = {};
    each([&](int p, int64_t column) {
      norm.x.load(row * norm.width + column, x[p]);
      norm.dy.load(row * norm.width + column, dy[p]);
    });
    auto total = [&](auto term) {
      float sum = 0;
      each([&](int p, int64_t) {
#pragma unroll
        for (int i = 0; i < n; ++i)
          sum += term(p, i);
      });
      return sum;
    };
    float r, back, middle = 0;
    if constexpr (layerNorm) {
      const float width = float(norm.width);
      float mean[1] = {total([&](int p, int i) { return x[p][i]; })};
      sums.add(mean);
      mean[0] /= width;
      each([&](int p, int64_t) {
#pragma unroll
        for (int i = 0; i < n; ++i)
          x[p][i] -= mean[0];
      });
      float variance[1] = {total([&](int p, int i) { return x[p][i] * x[p][i]; })};
      sums.add(variance);
      r = 1.0f / sqrtf(variance[0] / width + norm.eps);
      float both[2] = {total([&](int p, int i) { return dy[p][i] * w[p][i]; }),
                       total([&](int p, int i) { return dy[p][i] * w[p][i] * x[p][i] * r; })};
      sums.add(both);
      middle = r * both[0] / width;
      back = r * r * both[1] / width;
    } else {
      float both[2];
      if (norm.squares) {
        both[0] = norm.squares[row];
        both[1] = norm.dots[row];
      } else {
        both[0] = total([&](int p, int i) { return x[p][i] * x[p][i]; });
        both[1] = total([&](int p, int i) { return dy[p][i] * w[p][i] * x[p][i]; });
        sums.add(both);
      }
      r = 1.0f / sqrtf(both[0] / norm.count + norm.eps);
      back = r * r * r * both[1] / norm.count;
    }
    each([&](int p, int64_t column) {
      float dx[n];
#pragma unroll
      for (int i = 0; i < n; ++i) {
        dx[i] = r * dy[p][i] * w[p][i] - middle - x[p][i] * back;
        weight[p][i] += dy[p][i] * x[p][i] * r;
        if constexpr (layerNorm)
          bias[p][i] += dy[p][i];
      }
      norm.dx.store(row * norm.width + column, dx);
    });
  }

  __shared__ float kept[groups > 1 ? groups : 1][groups > 1 ? kWarpWidth : 1];
  auto leave = [&](float *sumsOfBlocks, const auto &values) {
    float *out = sumsOfBlocks + int64_t(blockIdx.x) * norm.width;
    if constexpr (groups == 1) {
      each([&](int p, int64_t column) {
#pragma unroll
        for (int i = 0; i < n; ++i)
          out[column + i] = values[p][i];
      });
    } else {
      __syncthreads();
      each([&](int p, int64_t column) {
#pragma unroll
        for (int i = 0; i < n; ++i)
          kept[group][column + i] = values[p][i];
      });
      __syncthreads();
      for (int64_t column = threadIdx.x; column < norm.width; column += kThreads) {
        float sum = 0;
#pragma unroll
        for (int g = 0; g < groups; ++g)
          sum += kept[g][column];
        out[column] = sum;
      }
    }
  };
  leave(norm.weights, weight);
  if constexpr (layerNorm)
    if (norm.biases)
      leave(norm.biases, bias);
}

/// out[column] = the sum of the blocks' sums; a block 32 columns, each warp a share of the rows.
__global__ void __launch_bounds__(kThreads)
    addBlocks(const float *sums, float *out, int64_t blocks, int64_t width) {
  __shared__ float partial[kWarps][32];
  const int64_t column = int64_t(blockIdx.x) * 32 + laneNumber();
  const int warp = int(threadIdx.x) / 32;
  float sum = 0;
  if (column < width)
#pragma unroll 8
    for (int64_t b = warp; b < blocks; b += kWarps)
      sum += sums[b * width + column];
  partial[warp][laneNumber()] = sum;
  __syncthreads();
  if (warp != 0 || column >= width)
    return;
  sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    sum += partial[w][laneNumber()];
  out[column] = sum;
}

template <bool layerNorm> Status launchNormBack(const Call &call, NormBack norm) {
  const bool byWarps = norm.width <= kWarpWidth;
  const int64_t groups = byWarps ? kWarps : 1;
  float *db = layerNorm ? call.output<float>(2) : nullptr;
  Scratch scratch(call.context);
  const int64_t room = int64_t(scratch.bytesLeft() / (2 * (norm.width + 64) * sizeof(float))),
                blocks = std::min({kMostBlocks, room, ceilDiv(norm.rows, groups)});
  norm.weights = scratch.take<float>(blocks * norm.width);
  norm.biases = db ? scratch.take<float>(blocks * norm.width) : nullptr;
  if (blocks == 0 || !norm.weights || (db && !norm.biases))
    return noScratch(call);
  auto launch = [&]<int packs>(std::integral_constant<int, packs>) {
    if (byWarps)
      normBack<layerNorm, 1, packs><<<unsigned(blocks), kThreads, 0, call.stream()>>>(norm);
    else
      normBack<layerNorm, kWarps, packs><<<unsigned(blocks), kThreads, 0, call.stream()>>>(norm);
  };
  const int64_t packs = ceilDiv(norm.width, kNeighbours * (byWarps ? 32 : kThreads));
  if (packs == 1)
    launch(std::integral_constant<int, 1>());
  else if (packs == 2)
    launch(std::integral_constant<int, 2>());
  else
    launch(std::integral_constant<int, kMostPacks>());
  const unsigned columns = unsigned(ceilDiv(norm.width, 32));
  addBlocks<<<columns, kThreads, 0, call.stream()>>>(norm.weights, call.output<float>(1), blocks,
                                                     norm.width);
  if (db)
    addBlocks<<<columns, kThreads, 0, call.stream()>>>(norm.biases, db, blocks, norm.width);
  return launched(call);
}

bool holdsRows(const Call &call, int64_t rows, int64_t width) {
  return rows > 0 && width <= kMostWidth &&
         inPacks(width, call.in[0], call.in[1], call.in[2], call.out[0]);
}

/// dx; and the row's r, or mean and r, for the weight's gradient.
__global__ void rmsRows(Reader dy, Reader x, Reader w, const float *ss, const float *dots,
                        Writer dx, float *factors, int64_t rows, int64_t width, float count,
                        float eps) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  float squares, dot;
  if (ss) {
    squares = ss[t];
    dot = dots[t];
  } else {
    rowSums(dy, x, w, t * width, width, squares, dot);
  }
  float r = 1.0f / sqrtf(squares / count + eps), back = r * r * r * dot / count;
  for (int64_t i = laneNumber(); i < width; i += 32)
    dx.set(t * width + i, r * dy[t * width + i] * w[i] - x[t * width + i] * back);
  if (laneNumber() == 0)
    factors[2 * t] = 0, factors[2 * t + 1] = r;
}

__global__ void layerRows(Reader dy, Reader x, Reader w, Writer dx, float *factors, int64_t rows,
                          int64_t width, float eps) {
  int64_t t = warpNumber();
  if (t >= rows)
    return;
  int64_t first = t * width;
  float n = float(width), mean = 0, variance = 0, grad = 0, product = 0;
  for (int64_t i = laneNumber(); i < width; i += 32)
    mean += x[first + i];
  mean = warpSum(mean) / n;
  for (int64_t i = laneNumber(); i < width; i += 32)
    variance += (x[first + i] - mean) * (x[first + i] - mean);
  float r = 1.0f / sqrtf(warpSum(variance) / n + eps);
  for (int64_t i = laneNumber(); i < width; i += 32) {
    float scaled = dy[first + i] * w[i];
    grad += scaled;
    product += scaled * (x[first + i] - mean) * r;
  }
  grad = warpSum(grad) / n;
  product = warpSum(product) / n;
  for (int64_t i = laneNumber(); i < width; i += 32)
    dx.set(first + i, r * (dy[first + i] * w[i] - grad - (x[first + i] - mean) * r * product));
  if (laneNumber() == 0)
    factors[2 * t] = mean, factors[2 * t + 1] = r;
}

/// dw = Σ dy · (x − mean) · r and db = Σ dy over the rows; db may be null.
__global__ void weightSums(Reader dy, Reader x, const float *factors, float *dw, float *db,
                           int64_t rows, int64_t width) {
  for (int64_t i = threadNumber(); i < width; i += threadCount()) {
    float sum = 0, plain = 0;
    for (int64_t t = 0; t < rows; ++t) {
      float g = dy[t * width + i];
      sum += g * (x[t * width + i] - factors[2 * t]) * factors[2 * t + 1];
      plain += g;
    }
    dw[i] = sum;
    if (db)
      db[i] = plain;
  }
}

/// The weight's part of a norm's gradient.
Status sumWeights(const Call &call, const float *factors, float *db, int64_t rows, int64_t width) {
  weightSums<<<blocksOfThreads(width), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), factors, call.output<float>(1), db, rows, width);
  return launched(call);
}

} // namespace

Status ops::rms_sums(const Call &call) {
  int64_t width = call.in[2].elements(), rows = call.out[0].elements();
  if (rows == 0)
    return {};
  rmsSums<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]), call.output<float>(0),
      call.output<float>(1), rows, width);
  return launched(call);
}

Status ops::rms_norm_grad(const Call &call) {
  int64_t width = call.in[2].elements(), rows = width ? call.in[0].elements() / width : 0;
  const bool given = call.in.size() > 3;
  const float *squares = given ? call.input<float>(3) : nullptr,
              *dots = given ? call.input<float>(4) : nullptr;
  const float count = float(call.params.integer("count")), eps = float(call.params.real("eps"));
  if (holdsRows(call, rows, width))
    return launchNormBack<false>(call, {Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]),
                                        squares, dots, Writer(call.out[0]), nullptr, nullptr, rows,
                                        width, count, eps});
  float *factors = Scratch(call.context).take<float>(2 * rows);
  if (!factors)
    return noScratch(call);
  if (rows > 0)
    rmsRows<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
        Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]), squares, dots,
        Writer(call.out[0]), factors, rows, width, count, eps);
  if (Status s = launched(call); !s)
    return s;
  return sumWeights(call, factors, nullptr, rows, width);
}

Status ops::layer_norm_grad(const Call &call) {
  int64_t width = call.in[2].elements(), rows = width ? call.in[0].elements() / width : 0;
  const float eps = float(call.params.real("eps"));
  if (holdsRows(call, rows, width))
    return launchNormBack<true>(call, {Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]),
                                       nullptr, nullptr, Writer(call.out[0]), nullptr, nullptr,
                                       rows, width, float(width), eps});
  float *factors = Scratch(call.context).take<float>(2 * rows);
  if (!factors)
    return noScratch(call);
  if (rows > 0)
    layerRows<<<blocksOfWarps(rows), kWarpBlock, 0, call.stream()>>>(
        Reader(call.in[0]), Reader(call.in[1]), Reader(call.in[2]), Writer(call.out[0]), factors,
        rows, width, eps);
  if (Status s = launched(call); !s)
    return s;
  return sumWeights(call, factors, call.output<float>(2), rows, width);
}

} // namespace moira::rt::cuda
