//===- FastOptimizer.cpp - updates of weights as fast as memory is ----------===//
// adamw, expert_adamw, sgd, accumulate and squares of f32 and of gradients in bf16, and the
// rounding of f32 to bf16, one pass over memory in vectors as wide as the processor has, shared out
// among threads in blocks. Which thread does a block changes no bit: updates are element-wise, and
// sums are made block by block in one order.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "Vectors.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <cmath>

namespace moira::rt::host {
namespace {

/// Elements of a block; a multiple of every vector.
constexpr int64_t kBlock = 1 << 15;

/// Blocks of a task, so that a thread has a run of memory to itself.
constexpr int64_t kTaskBlocks = 8;

int64_t blocksOf(int64_t n) { return (n + kBlock - 1) / kBlock; }

/// fn(first, last) for the blocks of n elements, on this thread and its workers.
template <typename Fn> void forBlocks(int64_t n, Fn fn) {
  int64_t blocks = blocksOf(n);
  parallelFor((blocks + kTaskBlocks - 1) / kTaskBlocks, [&](int64_t task) {
    for (int64_t b = task * kTaskBlocks, end = std::min(blocks, b + kTaskBlocks); b < end; ++b)
      fn(b * kBlock, std::min(n, (b + 1) * kBlock));
  });
}

struct AdamW {
  float beta1, rest1, beta2, rest2; // rest = 1 - beta
  float factor, decay, rate, root2, eps;
};

MOIRA_VECTORS void adamwBlock(const float *__restrict grad, float *__restrict w,
                              float *__restrict m, float *__restrict v, int64_t n, AdamW p) {
  for (int64_t i = 0; i < n; ++i) {
    float g = p.factor * grad[i];
    m[i] = p.beta1 * m[i] + p.rest1 * g;
    v[i] = p.beta2 * v[i] + p.rest2 * (g * g);
    w[i] = w[i] * p.decay - p.rate * m[i] / (std::sqrt(v[i]) * p.root2 + p.eps);
  }
}

struct Sgd {
  float factor, lr, momentum, decay;
};

MOIRA_VECTORS void sgdBlock(const float *__restrict grad, float *__restrict w, int64_t n, Sgd p) {
  for (int64_t i = 0; i < n; ++i)
    w[i] -= p.lr * (p.factor * grad[i] + p.decay * w[i]);
}

MOIRA_VECTORS void momentumBlock(const float *__restrict grad, float *__restrict w,
                                 float *__restrict b, int64_t n, Sgd p) {
  for (int64_t i = 0; i < n; ++i) {
    b[i] = p.momentum * b[i] + (p.factor * grad[i] + p.decay * w[i]);
    w[i] -= p.lr * b[i];
  }
}

MOIRA_VECTORS void nesterovBlock(const float *__restrict grad, float *__restrict w,
                                 float *__restrict b, int64_t n, Sgd p) {
  for (int64_t i = 0; i < n; ++i) {
    float g = p.factor * grad[i] + p.decay * w[i];
    b[i] = p.momentum * b[i] + g;
    w[i] -= p.lr * (g + p.momentum * b[i]);
  }
}

MOIRA_VECTORS void addBlock(const float *__restrict x, float *__restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    sum[i] += x[i];
}

/// As Bf16 does, whose constructor is a template: a function with clones cannot make it.
MOIRA_VECTORS void roundBlock(const float *__restrict x, Bf16 *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t wide = __builtin_bit_cast(uint32_t, x[i]);
    uint32_t nan = wide >> 16 | 0x40, near = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    out[i].bits = uint16_t((wide & 0x7fffffff) > 0x7f800000 ? nan : near);
  }
}

/// Sixteen sums, so that the order is one whatever the width of the vectors.
MOIRA_VECTORS double squaresBlock(const float *__restrict x, int64_t n) {
  double sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int64_t j = 0; j < 16; ++j)
      sums[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < n; ++i)
    sums[i % 16] += double(x[i]) * double(x[i]);
  double sum = 0;
  for (double one : sums)
    sum += one;
  return sum;
}

/// Of the blocks' sums, in their order.
float total(const std::vector<double> &sums) {
  double sum = 0;
  for (double one : sums)
    sum += one;
  return float(sum);
}

MOIRA_VECTORS void widenBlock(const Bf16 *__restrict x, float *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = __builtin_bit_cast(float, uint32_t(x[i].bits) << 16);
}

/// A gradient in f32 or bf16, of which a thread takes a block at a time.
class Gradient {
public:
  explicit Gradient(const TensorRef &tensor)
      : data(tensor.data), isBf16(tensor.dtype == fb::DType::bf16) {}
  /// fn(the values from i to end in f32)
  template <typename Fn> void take(int64_t i, int64_t end, Fn fn) const {
    if (!isBf16)
      return fn(static_cast<const float *>(data) + i);
    alignas(64) thread_local float wide[kBlock];
    widenBlock(static_cast<const Bf16 *>(data) + i, wide, end - i);
    fn(static_cast<const float *>(wide));
  }

private:
  const void *data;
  bool isBf16;
};

float scalar(const Call &call, size_t input) {
  return input < call.in.size() ? *call.input<float>(input) : 1.0f;
}

/// The numbers of a parameter's step, which counts from 1.
AdamW adamwAt(const Call &call, double step) {
  double lr = scalar(call, 1);
  double beta1 = call.params.real("beta1"), beta2 = call.params.real("beta2");
  AdamW p;
  p.beta1 = float(beta1), p.rest1 = float(1 - beta1);
  p.beta2 = float(beta2), p.rest2 = float(1 - beta2);
  p.factor = scalar(call, 3);
  p.decay = float(1 - lr * call.params.real("weight_decay"));
  p.rate = float(lr / (1 - std::pow(beta1, step)));
  p.root2 = float(1 / std::sqrt(1 - std::pow(beta2, step)));
  p.eps = float(call.params.real("eps"));
  return p;
}

} // namespace

template <typename S> Status fast::adamw(const Call &call) {
  AdamW p = adamwAt(call, *call.input<int32_t>(2));
  const Gradient grad(call.in[0]);
  float *w = call.output<float>(0), *m = call.output<float>(1), *v = call.output<float>(2);
  int64_t n = call.out[0].elements();
  const bool addsUp = call.out.size() > 3;
  std::vector<double> sums(addsUp ? size_t(blocksOf(n)) : 0);
  forBlocks(n, [&](int64_t i, int64_t end) {
    grad.take(i, end, [&](const float *g) {
      if (addsUp)
        sums[size_t(i / kBlock)] = squaresBlock(g, end - i);
      adamwBlock(g, w + i, m + i, v + i, end - i, p);
    });
  });
  if (addsUp)
    *call.output<float>(3) = total(sums);
  return {};
}

template <typename S> Status fast::expert_adamw(const Call &call) {
  const Gradient grad(call.in[0]);
  const float *load = call.input<float>(2);
  float *w = call.output<float>(0), *m = call.output<float>(1), *v = call.output<float>(2),
        *steps = call.output<float>(3);
  int64_t experts = call.out[3].elements();
  int64_t each = experts == 0 ? 0 : call.out[0].elements() / experts;
  for (int64_t e = 0; e < experts; ++e) {
    if (load[e] == 0)
      continue;
    AdamW p = adamwAt(call, steps[e] += 1);
    forBlocks(each, [&](int64_t i, int64_t end) {
      i += e * each, end += e * each;
      grad.take(i, end, [&](const float *g) { adamwBlock(g, w + i, m + i, v + i, end - i, p); });
    });
  }
  return {};
}

template <typename S> Status fast::sgd(const Call &call) {
  Sgd p{scalar(call, 2), scalar(call, 1), float(call.params.real("momentum")),
        float(call.params.real("weight_decay"))};
  bool nesterov = call.params.integer("nesterov") != 0;
  const Gradient grad(call.in[0]);
  float *w = call.output<float>(0), *b = call.out.size() > 1 ? call.output<float>(1) : nullptr;
  forBlocks(call.out[0].elements(), [&](int64_t i, int64_t end) {
    grad.take(i, end, [&](const float *g) {
      if (!b)
        sgdBlock(g, w + i, end - i, p);
      else if (nesterov)
        nesterovBlock(g, w + i, b + i, end - i, p);
      else
        momentumBlock(g, w + i, b + i, end - i, p);
    });
  });
  return {};
}

template <typename S> Status fast::accumulate(const Call &call) {
  bool first = *call.input<int32_t>(1) == 0;
  const Gradient part(call.in[0]);
  float *sum = call.output<float>(0);
  forBlocks(call.out[0].elements(), [&](int64_t i, int64_t end) {
    part.take(i, end, [&](const float *x) {
      if (first)
        std::copy(x, x + (end - i), sum + i);
      else
        addBlock(x, sum + i, end - i);
    });
  });
  return {};
}

template <typename S> Status fast::squares(const Call &call) {
  if (keptBySquares(call) != std::pair<size_t, size_t>())
    return ref::squares<S>(call);
  const Gradient grad(call.in[0]);
  int64_t n = call.in[0].elements();
  std::vector<double> sums(size_t(blocksOf(n)));
  forBlocks(n, [&](int64_t i, int64_t end) {
    grad.take(i, end, [&](const float *x) { sums[size_t(i / kBlock)] = squaresBlock(x, end - i); });
  });
  *call.output<float>(0) = total(sums);
  return {};
}

template <typename S> Status fast::scale(const Call &call) {
  if (call.params.real("factor") != 1 || call.in[0].dtype != fb::DType::f32 ||
      call.out[0].dtype != fb::DType::bf16)
    return ref::scale<S>(call);
  const float *x = call.input<float>(0);
  Bf16 *out = call.output<Bf16>(0);
  forBlocks(call.in[0].elements(),
            [&](int64_t i, int64_t end) { roundBlock(x + i, out + i, end - i); });
  return {};
}

template Status fast::scale<Bf16>(const Call &);

#define INSTANTIATE(name)                                                                          \
  template Status fast::name<float>(const Call &);                                                 \
  template Status fast::name<Bf16>(const Call &);
INSTANTIATE(adamw)
INSTANTIATE(expert_adamw)
INSTANTIATE(sgd)
INSTANTIATE(accumulate)
INSTANTIATE(squares)

} // namespace moira::rt::host
