//===- HostTesting.h - tensors and one-line calls for host tests -*- C++ -*-===//
// An owning tensor, random contents, and running a call with named parameters. Only tests use it.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_HOSTTESTING_H
#define MOIRA_TEST_UNIT_HOSTTESTING_H

#include "moira/rt/Bf16.h"
#include "moira/rt/Device.h"

#include "gtest/gtest.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <stdexcept>

namespace moira::rt::testing {

using Shape = std::vector<int64_t>;

template <typename T> constexpr fb::DType dtypeOf() {
  if constexpr (std::is_same_v<T, float>)
    return fb::DType::f32;
  else if constexpr (std::is_same_v<T, double>)
    return fb::DType::f64;
  else if constexpr (std::is_same_v<T, Bf16>)
    return fb::DType::bf16;
  else if constexpr (std::is_same_v<T, int32_t>)
    return fb::DType::i32;
  else
    return fb::DType::i64;
}

/// A tensor that owns its elements in C order. New ones hold a value that no call leaves behind, so
/// that unwritten outputs show.
template <typename T> struct Tensor {
  Shape shape;
  std::vector<T> values;

  explicit Tensor(Shape dims)
      : shape(std::move(dims)), values(size_t(ref().elements()), T(-7777)) {}
  Tensor(Shape dims, std::vector<T> data) : shape(std::move(dims)), values(std::move(data)) {
    if (int64_t(values.size()) != ref().elements())
      throw std::logic_error("test tensor of the wrong size");
  }
  /// For calls: valid while the tensor lives. The data of an empty tensor is not null.
  TensorRef ref() const {
    static T nothing;
    return {values.empty() ? &nothing : const_cast<T *>(values.data()), dtypeOf<T>(), shape};
  }
  operator TensorRef() const { return ref(); }
  template <typename U> Tensor<U> as() const {
    return Tensor<U>(shape, std::vector<U>(values.begin(), values.end()));
  }
};

/// Parameters as {"name", value} lists.
inline CallParams params(std::map<std::string, int64_t, std::less<>> integers,
                         std::map<std::string, double, std::less<>> reals = {},
                         std::map<std::string, std::string, std::less<>> texts = {}) {
  CallParams p;
  p.integers = std::move(integers);
  p.reals = std::move(reals);
  p.texts = std::move(texts);
  return p;
}

/// Parameters of rope_table: frequencies theta^(-2i/dim).
inline CallParams ropeParams(double theta, int64_t dim, double factor = 1) {
  CallParams p = params({}, {{"factor", factor}});
  for (int64_t i = 0; i < dim; i += 2)
    p.realLists["frequencies"].push_back(std::pow(theta, -double(i) / double(dim)));
  return p;
}

inline Status call(std::string_view name, CallFlavor flavor, std::vector<TensorRef> in,
                   std::vector<TensorRef> out, const CallParams &p,
                   const RouteHooks *hooks = nullptr) {
  return runHostCall(name, flavor, in, out, p, hooks);
}

/// The seed of randomised tests: MOIRA_TEST_SEED, or a fixed one. Printed, so that a failure can be
/// repeated.
inline uint64_t testSeed() {
  const char *text = std::getenv("MOIRA_TEST_SEED");
  uint64_t seed = text ? std::strtoull(text, nullptr, 10) : 20240611;
  std::cout << "MOIRA_TEST_SEED=" << seed << "\n";
  return seed;
}

class Random {
public:
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  }
  template <typename T> Tensor<T> normal(Shape shape) {
    Tensor<T> t(std::move(shape));
    std::normal_distribution<float> gauss;
    for (T &v : t.values)
      v = T(gauss(engine)); // exact in float, so that both flavors see the same numbers
    return t;
  }
  Tensor<int32_t> ids(Shape shape, int64_t low, int64_t high) {
    Tensor<int32_t> t(std::move(shape));
    for (int32_t &v : t.values)
      v = int32_t(between(low, high));
    return t;
  }
  /// k different experts a token.
  Tensor<int32_t> choices(int64_t tokens, int64_t k, int64_t experts) {
    Tensor<int32_t> t({tokens, k});
    std::vector<int32_t> all(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e)
      all[size_t(e)] = int32_t(e);
    for (int64_t i = 0; i < tokens; ++i) {
      std::shuffle(all.begin(), all.end(), engine);
      std::copy_n(all.begin(), k, t.values.begin() + i * k);
    }
    return t;
  }
  std::mt19937_64 engine;
};

/// Largest |a - b| over the largest |b| (0 for two zero tensors).
template <typename A, typename B> double relativeError(const Tensor<A> &a, const Tensor<B> &b) {
  EXPECT_EQ(a.shape, b.shape);
  double worst = 0, largest = 0;
  for (size_t i = 0; i < b.values.size(); ++i) {
    double difference = std::abs(double(a.values[i]) - double(b.values[i]));
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    largest = std::max(largest, std::abs(double(b.values[i])));
  }
  return worst == 0 ? 0 : worst / largest;
}

} // namespace moira::rt::testing

#endif // MOIRA_TEST_UNIT_HOSTTESTING_H
