//===- KernelSamples.h - Random kernels to test -----------------*- C++ -*-===//
//
// Every kind of step and the fusions that models need, on random shapes; and random data for their
// operands.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_KERNELSAMPLES_H
#define MOIRA_TEST_UNIT_KERNELSAMPLES_H

#include "KernelReference.h"
#include <random>

namespace moira::kernels::test {

class Samples {
public:
  explicit Samples(uint64_t seed) : random(seed) {}

  int64_t pick(std::initializer_list<int64_t> from) {
    return *(from.begin() + random() % from.size());
  }
  /// Row widths: 1, odd, not a multiple of a vector, head sizes, hidden sizes.
  int64_t width() { return pick({1, 2, 7, 16, 33, 80, 112, 128, 576, 1000, 2048, 4096}); }
  ScalarType type() { return ScalarType(random() % 3); }

  /// One kernel of each kind, operand types `t`.
  std::vector<KernelSpec> kernels(ScalarType t) {
    std::vector<KernelSpec> all;
    auto add = [&](auto build) {
      KernelSpec k;
      build(k);
      k.name = "k" + std::to_string(count++) + "_" + k.stepNames();
      all.push_back(std::move(k));
    };
    add([&](KernelSpec &k) { // rms_norm over the last dim
      int64_t n = width();
      unsigned x = k.input(t, {n}), w = k.shared(t, {n});
      k.output(k.rmsNorm(x, w, 1e-5));
    });
    add([&](KernelSpec &k) { // over two dims, behind a leading one
      int64_t h = pick({1, 3, 4}), d = pick({1, 7, 16, 80});
      unsigned x = k.input(t, {pick({1, 5}), h, d}), w = k.shared(t, {h, d});
      k.output(k.rmsNorm(x, w, 1e-6));
    });
    add([&](KernelSpec &k) { // residual add and norm, both stored
      int64_t n = width();
      unsigned x = k.input(t, {n}), r = k.input(t, {n}), w = k.shared(t, {n});
      unsigned sum = k.add(x, r);
      k.output(sum);
      k.output(k.rmsNorm(sum, w, 1e-5));
    });
    add([&](KernelSpec &k) { // the same, only the norm stored
      int64_t n = width();
      unsigned x = k.input(t, {n}), r = k.input(t, {n}), w = k.shared(t, {n});
      k.output(k.rmsNorm(k.add(x, r), w, 1e-5));
    });
    add([&](KernelSpec &k) { // bias and the two halves of a norm, over [H,d]
      int64_t h = pick({2, 4}), d = pick({7, 16, 128});
      unsigned x = k.input(t, {3, h, d}), b = k.shared(t, {d});
      unsigned y = k.add(x, b);
      k.output(y);
      k.output(k.sumSquares(y, 2));
    });
    add([&](KernelSpec &k) {
      int64_t n = width();
      unsigned x = k.input(t, {n}), ss = k.input(ScalarType::F32, {}), w = k.shared(t, {n});
      k.output(k.rmsApply(x, ss, w, 1e-5, 2 * n));
    });
    add([&](KernelSpec &k) { // suffix broadcasts, shared and rowwise, and clamp
      int64_t h = pick({1, 3, 8}), d = width();
      unsigned x = k.input(t, {2, h, d}), b = k.shared(t, {h, d}), c = k.input(t, {d});
      k.output(k.clamp(k.add(k.add(x, b), c), -0.5, 0.75));
    });
    add([&](KernelSpec &k) { // two parts with rows of their own and one weight
      int64_t n = width();
      unsigned x = k.input(t, {pick({1, 4}), n}), y = k.input(t, {pick({1, 3, 9}), n}),
               w = k.shared(t, {n});
      unsigned normed = k.rmsNorm(x, w, 1e-5), scaled = k.scale(k.rmsNorm(y, w, 1e-6), 0.5);
      k.output(scaled);
      k.output(normed);
    });
    for (Activation act :
         {Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu})
      add([&](KernelSpec &k) {
        unsigned x = k.input(t, {pick({1, 3}), 2, width()});
        k.output(k.glu(x, act));
      });
    add([&](KernelSpec &k) { // the clamped form of glu
      unsigned x = k.input(t, {pick({1, 3}), 2, width()});
      unsigned y = k.glu(x, Activation::Silu);
      k.back().limit = 0.75;
      k.back().alpha = 1.702;
      k.back().upShift = 1;
      k.output(y);
    });
    add([&](KernelSpec &k) { // layer_norm with a bias, of a scaled sum that is stored
      int64_t n = width();
      unsigned x = k.input(t, {n}), r = k.input(t, {n}), w = k.shared(t, {n}), b = k.shared(t, {n});
      unsigned sum = k.add(x, k.scale(r, 0.22));
      k.output(sum);
      k.output(k.layerNorm(sum, w, b, 1e-5));
    });
    add([&](KernelSpec &k) { // layer_norm without one, over two dims behind a leading one
      int64_t h = pick({1, 3}), d = pick({2, 16, 80});
      unsigned x = k.input(t, {5, h, d}), w = k.shared(t, {h, d});
      k.output(k.layerNorm(x, w, std::nullopt, 1e-5));
    });
    add([&](KernelSpec &k) { // bias and activation
      int64_t n = width();
      unsigned x = k.input(t, {n}), b = k.shared(t, {n});
      k.output(k.act(k.add(x, b), Activation(random() % 4)));
    });
    add([&](KernelSpec &k) { // glu into a norm: recomputed in both passes
      int64_t n = width();
      unsigned x = k.input(t, {2, n}), w = k.shared(t, {n});
      k.output(k.rmsNorm(k.glu(x, Activation::Silu), w, 1e-5));
    });
    add([&](KernelSpec &k) { // shared expert's gate and sum
      int64_t n = width();
      unsigned a = k.input(t, {n}), x = k.input(t, {n}), g = k.input(t, {1});
      k.output(k.add(k.sigmoidGate(x, g), a));
    });
    add([&](KernelSpec &k) { // rope with bias, d = 2r
      int64_t s = pick({1, 6}), h = pick({1, 4}), d = pick({2, 16, 80, 128});
      unsigned x = k.input(t, {s, h, d}), b = k.shared(t, {h, d});
      unsigned c = k.shared(ScalarType::F32, {s, d / 2}),
               sn = k.shared(ScalarType::F32, {s, d / 2});
      k.output(k.rope(k.add(x, b), c, sn));
    });
    add([&](KernelSpec &k) { // head norm and rope, d > 2r
      int64_t s = pick({1, 6}), h = pick({1, 4}), d = pick({16, 80, 112}),
              r = pick({1, 4, 5, 6, 8});
      unsigned x = k.input(t, {s, h, d}), w = k.shared(t, {d});
      unsigned c = k.shared(ScalarType::F32, {s, r}), sn = k.shared(ScalarType::F32, {s, r});
      k.output(k.rope(k.rmsNorm(x, w, 1e-6), c, sn));
    });
    add([&](KernelSpec &k) { // norm over all heads, then rope
      int64_t s = pick({1, 6}), h = pick({1, 4}), d = pick({16, 128});
      unsigned x = k.input(t, {s, h, d}), w = k.shared(t, {h, d});
      unsigned c = k.shared(ScalarType::F32, {s, d / 2}),
               sn = k.shared(ScalarType::F32, {s, d / 2});
      unsigned y = k.rmsNorm(x, w, 1e-6);
      k.output(y);
      k.output(k.rope(y, c, sn));
    });
    add([&](KernelSpec &k) { // one element a row
      unsigned x = k.input(t, {});
      k.output(k.clamp(x, -1, 1));
    });
    add([&](KernelSpec &k) { // types
      int64_t n = width();
      unsigned x = k.input(t, {n}), i = k.input(ScalarType::I32, {n});
      unsigned y = k.add(k.cast(x, ScalarType::F32), k.cast(i, ScalarType::BF16));
      k.output(y);
      k.output(k.cast(y, type()));
    });
    return all;
  }

  /// Elements of an operand: standard normal, small integers for i32, rounded to the type.
  Data data(ScalarType t, int64_t n) {
    std::normal_distribution<double> normal;
    Data d(n);
    for (double &e : d)
      e = roundTo(t, t == ScalarType::I32 ? normal(random) * 100 : normal(random));
    return d;
  }
  /// Elements of input `i`. A sum of squares must not be negative.
  Data input(const KernelSpec &spec, unsigned i, int64_t rows) {
    const KernelOperand &o = spec.operands[i];
    Data d = data(o.type, product(o.inner) * (o.rowwise ? rows : 1));
    for (const KernelStep &step : spec.steps)
      if (step.kind == StepKind::RmsApply && step.args[1] == i)
        for (double &e : d)
          e = float(std::abs(e) * double(step.count));
    return d;
  }

private:
  std::mt19937_64 random;
  unsigned count = 0;
};

} // namespace moira::kernels::test
#endif
