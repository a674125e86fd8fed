//===- HeadProduct.cpp - head_linear ----------------------------------------===//
// Each head's matrix product: plain loops, and oneDNN's for f32.
//===----------------------------------------------------------------------===//
#include "SampleTree.h"
#include "Sgemm.h"
#include "moira/rt/HostThreads.h"

namespace moira::rt::host {
namespace {

struct HeadProduct {
  int64_t rows, heads, inputs, outputs;
  bool transposed;
  explicit HeadProduct(const Call &call)
      : rows(leading(call.in[0], 2)), heads(call.in[1].shape[0]), inputs(call.in[0].shape.back()),
        outputs(call.out[0].shape.back()), transposed(call.params.integer("transposed") != 0) {}
};

} // namespace

template <typename S> Status ref::head_linear(const Call &call) {
  HeadProduct p(call);
  const S *x = call.input<S>(0), *w = call.input<S>(1);
  S *out = call.output<S>(0);
  // From one element of an output's row of w to the next, and from one output to the next.
  int64_t step = p.transposed ? p.outputs : 1, next = p.transposed ? 1 : p.inputs;
  for (int64_t row = 0; row < p.rows * p.heads; ++row) {
    const S *matrix = w + row % p.heads * p.inputs * p.outputs;
    for (int64_t n = 0; n < p.outputs; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < p.inputs; ++k)
        sum += double(x[row * p.inputs + k]) * double(matrix[n * next + k * step]);
      out[row * p.outputs + n] = S(sum);
    }
  }
  return {};
}
template Status ref::head_linear<float>(const Call &);
template Status ref::head_linear<double>(const Call &);
template Status ref::head_linear<Bf16>(const Call &);

template <> Status fast::head_linear<float>(const Call &call) {
  HeadProduct p(call);
  // oneDNN's sums may depend on the number of rows, so that they must be one sample's.
  int64_t samples = samplesOf(call, call.in[0]), each = p.rows / samples;
  return parallelTry(samples * p.heads, [&](int64_t task) {
    int64_t h = task % p.heads, row = task / p.heads * each * p.heads + h;
    return sgemm(call, {false, !p.transposed, each, p.outputs, p.inputs,
                        call.input<float>(0) + row * p.inputs, p.heads * p.inputs,
                        call.input<float>(1) + h * p.inputs * p.outputs,
                        p.transposed ? p.outputs : p.inputs,
                        call.output<float>(0) + row * p.outputs, p.heads * p.outputs});
  });
}

} // namespace moira::rt::host
