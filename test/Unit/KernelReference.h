//===- KernelReference.h - Kernel specs in double precision -----*- C++ -*-===//
//
// What a KernelSpec means, written as plainly as possible: every step on the values of one row in
// double precision, rounded to the step's type. Generated code is compared with it.
//
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_KERNELREFERENCE_H
#define MOIRA_TEST_UNIT_KERNELREFERENCE_H

#include "moira/Target/Kernels/KernelSpec.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

namespace moira::kernels::test {

using Data = std::vector<double>;

inline int64_t product(llvm::ArrayRef<int64_t> shape) {
  int64_t n = 1;
  for (int64_t d : shape)
    n *= d;
  return n;
}

/// `v` as the nearest value of the type, ties to even; towards zero for i32.
inline double roundTo(ScalarType type, double v) {
  switch (type) {
  case ScalarType::F32:
    return float(v);
  case ScalarType::BF16: {
    if (std::isnan(v))
      return v;
    uint32_t bits = std::bit_cast<uint32_t>(float(v));
    bits += 0x7fff + ((bits >> 16) & 1);
    return std::bit_cast<float>(bits & 0xffff0000u);
  }
  case ScalarType::F16:
    return double(_Float16(float(v)));
  case ScalarType::I32:
    return std::trunc(v);
  }
  return v;
}

/// Bytes of `data` in memory.
inline std::vector<char> encode(ScalarType type, const Data &data) {
  std::vector<char> bytes(data.size() * byteSize(type));
  for (size_t i = 0; i < data.size(); ++i) {
    char *at = bytes.data() + i * byteSize(type);
    float f = float(data[i]);
    if (type == ScalarType::F32) {
      std::memcpy(at, &f, 4);
    } else if (type == ScalarType::BF16) {
      uint16_t high = std::bit_cast<uint32_t>(f) >> 16;
      std::memcpy(at, &high, 2);
    } else if (type == ScalarType::F16) {
      _Float16 h = _Float16(f);
      std::memcpy(at, &h, 2);
    } else {
      int32_t n = int32_t(data[i]);
      std::memcpy(at, &n, 4);
    }
  }
  return bytes;
}

inline double decode(ScalarType type, const char *at) {
  uint32_t word = 0;
  std::memcpy(&word, at, byteSize(type));
  switch (type) {
  case ScalarType::F32:
    return std::bit_cast<float>(word);
  case ScalarType::BF16:
    return std::bit_cast<float>(word << 16);
  case ScalarType::F16:
    return double(std::bit_cast<_Float16>(uint16_t(word)));
  case ScalarType::I32:
    return int32_t(word);
  }
  return 0;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline double activate(Activation a, double x) {
  switch (a) {
  case Activation::Silu:
    return x * sigmoid(x);
  case Activation::Gelu:
    return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  case Activation::GeluTanh:
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  case Activation::Relu:
    return x > 0 ? x : 0;
  }
  return 0;
}

/// What becomes of a value that code in f32 rounds although the reference does not.
using Rounding = llvm::function_ref<double(double)>;
inline double exactly(double v) { return v; }

/// One step on one row. `v`: the values before it; `shape`: of its first argument.
inline Data evaluateStep(const KernelStep &step, const std::vector<Data> &v,
                         llvm::ArrayRef<int64_t> shape, Rounding round) {
  const Data &x = v[step.args[0]];
  Data out;
  auto normalise = [&](const Data &w, auto meanOf) {
    for (size_t i = 0; i < x.size(); ++i)
      out.push_back(x[i] / std::sqrt(meanOf(i / w.size()) + step.eps) * w[i % w.size()]);
  };
  auto sumSquares = [&](size_t from, size_t count) {
    double sum = 0;
    for (size_t i = from; i < from + count; ++i)
      sum += x[i] * x[i];
    return sum;
  };
  switch (step.kind) {
  case StepKind::RmsNorm: {
    size_t n = v[step.args[1]].size();
    normalise(v[step.args[1]], [&](size_t block) { return sumSquares(block * n, n) / n; });
    break;
  }
  case StepKind::LayerNorm: {
    const Data &w = v[step.args[1]];
    size_t n = w.size();
    for (size_t block = 0; block < x.size() / n; ++block) {
      double mean = 0, variance = 0;
      for (size_t i = 0; i < n; ++i)
        mean += x[block * n + i] / n;
      mean = round(mean);
      for (size_t i = 0; i < n; ++i)
        variance += std::pow(x[block * n + i] - mean, 2) / n;
      for (size_t i = 0; i < n; ++i)
        out.push_back((x[block * n + i] - mean) / std::sqrt(variance + step.eps) * w[i] +
                      (step.args.size() > 2 ? v[step.args[2]][i] : 0));
    }
    break;
  }
  case StepKind::SumSquares: {
    size_t n = product(shape.take_back(step.normDims));
    for (size_t block = 0; block < x.size() / n; ++block)
      out.push_back(sumSquares(block * n, n));
    break;
  }
  case StepKind::RmsApply:
    normalise(v[step.args[2]],
              [&](size_t block) { return v[step.args[1]][block] / double(step.count); });
    break;
  case StepKind::Add:
    for (size_t i = 0; i < x.size(); ++i)
      out.push_back(x[i] + v[step.args[1]][i % v[step.args[1]].size()]);
    break;
  case StepKind::Scale:
    for (double e : x)
      out.push_back(e * float(step.factor));
    break;
  case StepKind::Act:
    for (double e : x)
      out.push_back(activate(step.activation, e));
    break;
  case StepKind::Clamp:
    for (double e : x)
      out.push_back(std::min(std::max(e, double(float(step.lo))), double(float(step.hi))));
    break;
  case StepKind::Glu: {
    size_t f = shape.back();
    for (size_t i = 0; i < x.size() / 2; ++i) {
      size_t at = i / f * 2 * f + i % f;
      double gate = std::min(x[at], step.limit);
      double up = std::max(std::min(x[at + f], step.limit), -step.limit) + step.upShift;
      double act =
          step.alpha == 1 ? activate(step.activation, gate) : gate * sigmoid(step.alpha * gate);
      out.push_back(act * up);
    }
    break;
  }
  case StepKind::SigmoidGate:
    for (size_t i = 0; i < x.size(); ++i)
      out.push_back(x[i] * sigmoid(v[step.args[1]][i / shape.back()]));
    break;
  case StepKind::Rope: {
    const Data &cos = v[step.args[1]], &sin = v[step.args[2]];
    size_t heads = shape[1], d = shape[2], r = cos.size() / shape[0];
    out = x;
    for (size_t i = 0; i < x.size(); ++i) {
      size_t s = i / d / heads, e = i % d;
      if (e < r)
        out[i] = x[i] * cos[s * r + e] - x[i + r] * sin[s * r + e];
      else if (e < 2 * r)
        out[i] = x[i] * cos[s * r + e - r] + x[i - r] * sin[s * r + e - r];
    }
    break;
  }
  case StepKind::Cast:
    out = x;
    break;
  }
  for (double &e : out)
    e = roundTo(step.type, e);
  return out;
}

/// Outputs of the kernel for `rows` rows. `inputs`: all elements of each input operand.
inline std::vector<Data> evaluate(const KernelSpec &spec, const std::vector<RowValue> &types,
                                  const std::vector<Data> &inputs, int64_t rows,
                                  Rounding round = exactly) {
  std::vector<Data> outputs(spec.results.size());
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<Data> v;
    for (size_t i = 0; i < inputs.size(); ++i) {
      int64_t n = product(types[i].shape), at = types[i].rowwise ? row * n : 0;
      v.emplace_back(inputs[i].begin() + at, inputs[i].begin() + at + n);
    }
    for (const KernelStep &step : spec.steps)
      v.push_back(evaluateStep(step, v, types[step.args[0]].shape, round));
    for (size_t i = 0; i < outputs.size(); ++i)
      outputs[i].insert(outputs[i].end(), v[spec.results[i]].begin(), v[spec.results[i]].end());
  }
  return outputs;
}

} // namespace moira::kernels::test
#endif
