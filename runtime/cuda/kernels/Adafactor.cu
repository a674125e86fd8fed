//===- Adafactor.cu - the calls of Adafactor's steps --------------------------===//
// second_moment, adafactor_norm and both forms of adafactor.
//===----------------------------------------------------------------------===//
#include "RowSums.h"

namespace moira::rt::cuda {
namespace {

int64_t product(const std::vector<int64_t> &shape, size_t from, size_t to) {
  int64_t n = 1;
  for (size_t i = from; i < to; ++i)
    n *= shape[i];
  return n;
}

/// The elements of a state by parameter, matrix, row and column, and its moments: those of rows,
/// columns and matrices, or one for every element in `rowMoments`.
struct Moments {
  const float *rowMoments, *columnMoments = nullptr, *matrixMoments = nullptr;
  int64_t parameters, size; // of a parameter
  int64_t rows = 1, columns = 1;

  /// The state is of this shape; moments are the call's inputs from `first` on.
  Moments(const Call &call, const std::vector<int64_t> &shape, size_t first)
      : rowMoments(call.input<float>(first)) {
    auto kept = size_t(call.params.integer("kept")), r = size_t(call.params.integer("rows"));
    parameters = product(shape, 0, size_t(call.params.integer("parameters")));
    size = parameters == 0 ? 0 : product(shape, 0, shape.size()) / parameters;
    if (r == 0)
      return;
    columnMoments = call.input<float>(first + 1);
    matrixMoments = call.input<float>(first + 2);
    rows = product(shape, kept, kept + r);
    columns = product(shape, kept + r, shape.size());
  }

  /// The reciprocal root of an element's moment.
  __device__ float root(int64_t i) const {
    if (!columnMoments)
      return rsqrtf(rowMoments[i]);
    int64_t row, column, matrix, rest;
    divide(i, columns, row, column);
    divide(row, rows, matrix, rest);
    return rsqrtf(rowMoments[row] / matrixMoments[matrix] *
                  columnMoments[matrix * columns + column]);
  }
};

__global__ void averageMoments(const float *v, const float *squares, const int32_t *step,
                               const float *factor, float *out, int64_t n, float count, float decay,
                               float eps) {
  float share = powf(float(*step), -decay); // of the new squares; 1 in the first step
  float scale = factor ? *factor * *factor / count : 1 / count;
  for (int64_t i = threadNumber(); i < n; i += threadCount())
    out[i] = (1 - share) * v[i] + share * (scale * squares[i] + eps);
}

/// u * u of element i of parameter p.
struct SquaredUpdate {
  const float *grad;
  Moments moments;
  __device__ float operator()(int64_t p, int64_t i) const {
    float u = grad[p * moments.size + i] * moments.root(p * moments.size + i);
    return u * u;
  }
};

struct Rates {
  const float *lr, *norms, *weights, *factor; // weights and factor: null if not given
  float count, clip, eps, weightDecay;
};

__global__ void update(const float *grad, float *w, int64_t n, Moments moments, Rates rates) {
  float factor = rates.factor ? *rates.factor : 1;
  for (int64_t i = threadNumber(); i < n; i += threadCount()) {
    int64_t p, rest;
    divide(i, moments.size, p, rest);
    float rate = *rates.lr;
    if (rates.weights)
      rate *= fmaxf(rates.eps, sqrtf(rates.weights[p] / rates.count));
    float clipped = fmaxf(1.0f, factor * sqrtf(rates.norms[p] / rates.count) / rates.clip);
    w[i] =
        w[i] * (1 - rate * rates.weightDecay) - factor * rate / clipped * grad[i] * moments.root(i);
  }
}

/// Both forms: what they have of moments stands behind grad, lr and norms.
Status step(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  size_t moments = call.out.size() - 1, behind = 3 + moments;
  auto optional = [&](const char *role) {
    int at = call.params.optional(role);
    return at < 0 ? nullptr : call.input<float>(behind + size_t(at));
  };
  Rates rates{call.input<float>(1),
              call.input<float>(2),
              optional("weights"),
              optional("factor"),
              float(call.params.integer("count")),
              float(call.params.real("clip")),
              float(call.params.real("eps")),
              float(call.params.real("weight_decay"))};
  update<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.output<float>(0), n, Moments(call, call.out[0].shape, 3), rates);
  if (Status s = launched(call); !s)
    return s;
  for (size_t i = 0; i < moments; ++i)
    if (Status s = checked(call.name, cudaMemcpyAsync(call.out[1 + i].data, call.in[3 + i].data,
                                                      size_t(call.out[1 + i].elements()) * 4,
                                                      cudaMemcpyDeviceToDevice, call.stream()));
        !s)
      return s;
  return {};
}

} // namespace

Status ops::second_moment(const Call &call) {
  int64_t n = call.out[0].elements();
  if (n == 0)
    return {};
  averageMoments<<<blocksOfThreads(n), kWarpBlock, 0, call.stream()>>>(
      call.input<float>(0), call.input<float>(1), call.input<int32_t>(2),
      call.in.size() > 3 ? call.input<float>(3) : nullptr, call.output<float>(0), n,
      float(call.params.integer("count")), float(call.params.real("decay")),
      float(call.params.real("eps")));
  return launched(call);
}

Status ops::adafactor_norm(const Call &call) {
  Moments moments(call, call.in[0].shape, 1);
  return sumRows(call, moments.parameters, moments.size,
                 SquaredUpdate{call.input<float>(0), moments}, call.output<float>(0));
}

Status ops::adafactor(const Call &call) { return step(call); }

Status ops::adafactor_vector(const Call &call) { return step(call); }

} // namespace moira::rt::cuda
