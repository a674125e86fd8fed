//===- HostOptimizerTest.cpp - updates of weights -----------------*- C++ -*-===//
// The updates against plain double arithmetic from the papers' formulas over many steps, the fast
// forms against the reference ones on every size around a block, and results that no number of
// threads changes.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "moira/rt/HostThreads.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

constexpr CallFlavor kFlavors[] = {CallFlavor::fast, CallFlavor::reference};

class HostOptimizer : public ::testing::Test {
protected:
  Random random{testSeed()};
};

template <typename T> Tensor<T> one(double value) { return Tensor<T>({1}, {T(value)}); }

TEST_F(HostOptimizer, AdamWFollowsItsFormulas) {
  const double beta1 = 0.9, beta2 = 0.95, eps = 1e-6, decay = 0.1;
  CallParams p =
      params({}, {{"beta1", beta1}, {"beta2", beta2}, {"eps", eps}, {"weight_decay", decay}});
  for (CallFlavor flavor : kFlavors) {
    Tensor<float> w = random.normal<float>({3, 50}), m({3, 50}), v({3, 50});
    std::fill(m.values.begin(), m.values.end(), 0.0f);
    std::fill(v.values.begin(), v.values.end(), 0.0f);
    std::vector<double> w64(w.values.begin(), w.values.end()), m64(150), v64(150);
    for (int step = 1; step <= 20; ++step) {
      Tensor<float> grad = random.normal<float>({3, 50});
      Tensor<Bf16> narrow({3, 50}); // every third step's gradient
      for (size_t i = 0; i < 150 && step % 3 == 0; ++i)
        grad.values[i] = float(narrow.values[i] = Bf16(grad.values[i]));
      double lr = 0.01 / step, factor = step % 2 ? 1.0 : 0.25;
      Tensor<float> rate = one<float>(lr), scale = one<float>(factor);
      Tensor<int32_t> number = one<int32_t>(step);
      std::vector<TensorRef> in{step % 3 ? TensorRef(grad) : TensorRef(narrow), rate, number};
      if (step % 2 == 0)
        in.push_back(scale);
      ASSERT_TRUE(call("adamw", flavor, in, {w, m, v}, p));
      for (size_t i = 0; i < 150; ++i) {
        double g = factor * double(grad.values[i]);
        w64[i] -= double(rate.values[0]) * decay * w64[i];
        m64[i] = beta1 * m64[i] + (1 - beta1) * g;
        v64[i] = beta2 * v64[i] + (1 - beta2) * g * g;
        double mHat = m64[i] / (1 - std::pow(beta1, step));
        double vHat = v64[i] / (1 - std::pow(beta2, step));
        w64[i] -= double(rate.values[0]) * mHat / (std::sqrt(vHat) + eps);
      }
    }
    EXPECT_LT(relativeError(w, Tensor<double>({3, 50}, w64)), 1e-6);
    EXPECT_LT(relativeError(m, Tensor<double>({3, 50}, m64)), 1e-6);
    EXPECT_LT(relativeError(v, Tensor<double>({3, 50}, v64)), 1e-6);
  }
}

TEST_F(HostOptimizer, AdamWAddsUpSquaresOfItsGradient) {
  // Not of factor * grad; and nothing else changes.
  CallParams p =
      params({}, {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-6}, {"weight_decay", 0.1}});
  Tensor<float> rate = one<float>(0.01), factor = one<float>(0.5);
  Tensor<int32_t> step = one<int32_t>(3);
  for (CallFlavor flavor : kFlavors)
    for (int64_t n : {0, 1, 15, 17, 32767, 32768, 32769, 100001})
      for (bool isNarrow : {false, true}) {
        Tensor<float> grad = random.normal<float>({n}), w = random.normal<float>({n}), m({n}),
                      v({n}), squares = one<float>(7), alone = one<float>(7);
        Tensor<Bf16> narrow({n});
        double sum = 0;
        for (size_t i = 0; i < size_t(n); ++i) {
          if (isNarrow)
            grad.values[i] = float(narrow.values[i] = Bf16(grad.values[i]));
          m.values[i] = grad.values[i] / 2, v.values[i] = 1;
          sum += double(grad.values[i]) * double(grad.values[i]);
        }
        Tensor<float> w1 = w, m1 = m, v1 = v;
        std::vector<TensorRef> in{isNarrow ? TensorRef(narrow) : TensorRef(grad), rate, step,
                                  factor};
        ASSERT_TRUE(call("adamw", flavor, in, {w, m, v, squares}, p));
        ASSERT_TRUE(call("adamw", flavor, in, {w1, m1, v1}, p));
        ASSERT_TRUE(call("squares", flavor, {in[0]}, {alone}, {}));
        EXPECT_FLOAT_EQ(squares.values[0], float(sum));
        EXPECT_EQ(squares.values, alone.values);
        EXPECT_EQ(w.values, w1.values);
        EXPECT_EQ(m.values, m1.values);
        EXPECT_EQ(v.values, v1.values);
      }
}

TEST_F(HostOptimizer, ExpertsWithoutTokensArePassedOver) {
  // Each expert alone by adamw, at its own step, in the steps in which it has tokens.
  const int64_t experts = 3, each = 40000; // more than a block
  CallParams p =
      params({}, {{"beta1", 0.9}, {"beta2", 0.95}, {"eps", 1e-6}, {"weight_decay", 0.1}});
  Tensor<float> rate = one<float>(0.01), factor = one<float>(0.5);
  for (CallFlavor flavor : kFlavors) {
    Tensor<float> w = random.normal<float>({experts, each}), m({experts, each}), v({experts, each}),
                  steps({experts});
    for (Tensor<float> *zero : {&m, &v, &steps})
      std::fill(zero->values.begin(), zero->values.end(), 0.0f);
    auto expert = [&](const Tensor<float> &of, int64_t e) {
      auto from = of.values.begin() + e * each;
      return Tensor<float>({each}, {from, from + each});
    };
    std::vector<Tensor<float>> w1, m1, v1;
    for (int64_t e = 0; e < experts; ++e) {
      w1.push_back(expert(w, e));
      m1.push_back(expert(m, e));
      v1.push_back(expert(v, e));
    }
    std::vector<int> made(experts);
    for (int step = 0; step < 6; ++step) {
      Tensor<float> grad = random.normal<float>({experts, each}), load({experts});
      for (int64_t e = 0; e < experts; ++e)
        load.values[size_t(e)] = float((step >> e) % 2 * (e + 1));
      ASSERT_TRUE(call("expert_adamw", flavor, {grad, rate, load, factor}, {w, m, v, steps}, p));
      for (size_t e = 0; e < experts; ++e) {
        if (load.values[e] == 0)
          continue;
        Tensor<int32_t> number = one<int32_t>(++made[e]);
        Tensor<float> own = expert(grad, int64_t(e));
        ASSERT_TRUE(call("adamw", flavor, {own, rate, number, factor}, {w1[e], m1[e], v1[e]}, p));
      }
    }
    for (size_t e = 0; e < experts; ++e) {
      EXPECT_EQ(steps.values[e], float(made[e]));
      EXPECT_EQ(expert(w, int64_t(e)).values, w1[e].values);
      EXPECT_EQ(expert(m, int64_t(e)).values, m1[e].values);
      EXPECT_EQ(expert(v, int64_t(e)).values, v1[e].values);
    }
  }
}

TEST_F(HostOptimizer, SgdFollowsItsFormulas) {
  for (CallFlavor flavor : kFlavors)
    for (int kind = 0; kind < 3; ++kind) { // plain, momentum, Nesterov
      const double momentum = 0.8, decay = 0.05, lr = 0.125;
      CallParams p =
          params({{"nesterov", kind == 2}}, {{"momentum", momentum}, {"weight_decay", decay}});
      Tensor<float> w = random.normal<float>({77}), b({77}), rate = one<float>(lr);
      std::fill(b.values.begin(), b.values.end(), 0.0f);
      std::vector<double> w64(w.values.begin(), w.values.end()), b64(77);
      for (int step = 0; step < 10; ++step) {
        Tensor<float> grad = random.normal<float>({77});
        std::vector<TensorRef> out{w};
        if (kind)
          out.push_back(b);
        ASSERT_TRUE(call("sgd", flavor, {grad, rate}, out, p));
        for (size_t i = 0; i < 77; ++i) {
          double g = double(grad.values[i]) + decay * w64[i];
          b64[i] = momentum * b64[i] + g;
          w64[i] -= lr * (kind == 0 ? g : kind == 1 ? b64[i] : g + momentum * b64[i]);
        }
      }
      EXPECT_LT(relativeError(w, Tensor<double>({77}, w64)), 1e-5);
    }
}

TEST_F(HostOptimizer, SquaresAddUp) {
  for (CallFlavor flavor : kFlavors)
    for (int64_t n : {1, 15, 16, 17, 32767, 32768, 32769, 100001}) {
      Tensor<float> x = random.normal<float>({n}), out({1});
      double sum = 0;
      for (float value : x.values)
        sum += double(value) * double(value);
      ASSERT_TRUE(call("squares", flavor, {x}, {out}, {}));
      EXPECT_FLOAT_EQ(out.values[0], float(sum));
    }
}

TEST_F(HostOptimizer, WeightsAreRoundedToNearestEven) {
  for (CallFlavor flavor : kFlavors)
    for (int64_t n : {5, 17, 32769, 300001}) {
      Tensor<float> x = random.normal<float>({n});
      x.values[0] = INFINITY, x.values[1] = 1.00390625f, x.values[2] = 1.01171875f; // ties
      x.values[3] = -3.4e38f, x.values[4] = -0.0f;
      Tensor<Bf16> out({n});
      ASSERT_TRUE(call("scale", flavor, {x}, {out}, params({}, {{"factor", 1}})));
      for (int64_t i = 0; i < n; ++i)
        ASSERT_EQ(out.values[i].bits, Bf16(x.values[i]).bits) << i << " " << x.values[i];
    }
}

TEST_F(HostOptimizer, TheFirstMicroBatchIsStoredAndLaterOnesAreAdded) {
  for (CallFlavor flavor : kFlavors)
    for (int64_t n : {1, 17, 32769, 300001}) {
      Tensor<float> x = random.normal<float>({n}), sum = random.normal<float>({n});
      Tensor<float> was = sum;
      Tensor<Bf16> narrow({n});
      for (size_t i = 0; i < x.values.size(); ++i)
        x.values[i] = float(narrow.values[i] = Bf16(x.values[i]));
      for (int32_t micro : {1, 0, 2, 3}) {
        const TensorRef part = micro < 2 ? TensorRef(x) : TensorRef(narrow);
        ASSERT_TRUE(call("accumulate", flavor, {part, Tensor<int32_t>({1}, {micro})}, {sum}, {}));
        for (size_t i = 0; i < x.values.size(); ++i)
          ASSERT_EQ(sum.values[i], micro == 0 ? x.values[i] : was.values[i] + x.values[i]);
        was = sum;
      }
    }
}

TEST_F(HostOptimizer, BiasesMoveAgainstTheLoad) {
  Tensor<float> load({4}, {6, 2, 4, 4}), bias({4}, {1, 1, 1, -1});
  ASSERT_TRUE(call("balance_bias", CallFlavor::fast, {load}, {bias}, params({}, {{"rate", 0.25}})));
  EXPECT_EQ(bias.values, (std::vector<float>{0.75, 1.25, 1, -1}));
}

TEST_F(HostOptimizer, ClippingScalesToTheLargestNorm) {
  Tensor<float> squares = one<float>(16), norm({1}), factor({1});
  for (auto [most, expected] : {std::pair(1.0, 0.25), {8.0, 1.0}, {0.0, 1.0}}) {
    ASSERT_TRUE(call("clip_factor", CallFlavor::fast, {squares}, {norm, factor},
                     params({}, {{"max_norm", most}})));
    EXPECT_FLOAT_EQ(norm.values[0], 4.0f);
    EXPECT_NEAR(factor.values[0], expected, 1e-6);
  }
}

TEST_F(HostOptimizer, FastIsReferenceOnEverySizeAndThreadsChangeNoBit) {
  CallParams p =
      params({}, {{"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 0.01}});
  Tensor<float> rate = one<float>(1e-3);
  Tensor<int32_t> step = one<int32_t>(5);
  for (int64_t n : {1, 7, 31, 32767, 32769, 1000003}) {
    Tensor<float> grad = random.normal<float>({n}), w = random.normal<float>({n}),
                  m = random.normal<float>({n}), v = random.normal<float>({n});
    for (float &value : v.values)
      value = std::fabs(value);
    Tensor<float> squares({1}), squares3({1});
    Tensor<float> wRef = w, mRef = m, vRef = v, w3 = w, m3 = m, v3 = v;
    ASSERT_TRUE(call("adamw", CallFlavor::reference, {grad, rate, step}, {wRef, mRef, vRef}, p));
    setHostThreads(1);
    ASSERT_TRUE(call("adamw", CallFlavor::fast, {grad, rate, step}, {w, m, v}, p));
    ASSERT_TRUE(call("squares", CallFlavor::fast, {grad}, {squares}, {}));
    setHostThreads(3);
    ASSERT_TRUE(call("adamw", CallFlavor::fast, {grad, rate, step}, {w3, m3, v3}, p));
    ASSERT_TRUE(call("squares", CallFlavor::fast, {grad}, {squares3}, {}));
    setHostThreads(1);
    EXPECT_LT(relativeError(w, wRef), 1e-6);
    EXPECT_LT(relativeError(m, mRef), 1e-6);
    EXPECT_LT(relativeError(v, vRef), 1e-6);
    EXPECT_EQ(w.values, w3.values);
    EXPECT_EQ(m.values, m3.values);
    EXPECT_EQ(v.values, v3.values);
    EXPECT_EQ(squares.values, squares3.values);
  }
}

} // namespace
