//===- CudaTesting.h - running calls on a GPU and on the host ---*- C++ -*-===//
// Operands that exist on both sides, guarded and poisoned device memory, and the comparison of a
// CUDA call with the host's reference. Only tests use it.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_CUDATESTING_H
#define MOIRA_TEST_UNIT_CUDATESTING_H

#include "HostTesting.h"

#include "../../runtime/cuda/CudaCalls.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>
#include <variant>

namespace moira::rt::testing {

inline uint16_t bf16Bits(float v) {
  uint32_t bits = std::bit_cast<uint32_t>(v);
  if (std::isnan(v))
    return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16Value(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

/// An operand: floats of the compute type (T) or of f32 (A), or integers. On the host floats are
/// float; for bf16 they are rounded before either side sees them.
struct Operand {
  std::variant<Tensor<float>, Tensor<int32_t>, Tensor<int64_t>> tensor;
  bool compute = false;

  const Shape &shape() const {
    return std::visit([](const auto &t) -> const Shape & { return t.shape; }, tensor);
  }
  const Tensor<float> &floats() const { return std::get<Tensor<float>>(tensor); }
  const Tensor<int32_t> &ints() const { return std::get<Tensor<int32_t>>(tensor); }
};
inline Operand T(Tensor<float> t) { return {std::move(t), true}; }
inline Operand T(Shape shape) { return T(Tensor<float>(std::move(shape))); }
inline Operand A(Tensor<float> t) { return {std::move(t), false}; }
inline Operand A(Shape shape) { return A(Tensor<float>(std::move(shape))); }
template <typename Int> Operand I(Tensor<Int> t) { return {std::move(t), false}; }
inline Operand I(Shape shape) { return I(Tensor<int32_t>(std::move(shape))); }

/// Of which only every n-th case is run, and only once: MOIRA_TEST_SMALL=n, for tools under which a
/// kernel takes a thousand times as long. Without it 1.
inline int64_t everyNthCase() {
  static const char *text = std::getenv("MOIRA_TEST_SMALL");
  static const int64_t n = text ? std::max(1, std::atoi(text)) : 1;
  return n;
}
/// Whether this case is left out. The first one never is.
inline bool isLeftOut() {
  static int64_t count = 0;
  return count++ % everyNthCase() != 0;
}

inline void mustWork(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// Device memory with guard bytes on both sides of what is used.
class Guarded {
public:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kGuardByte = 0x5c;

  /// `shift` bytes off the alignment that the runtime's arenas have.
  Guarded(size_t bytes, size_t shift) : bytes(bytes), shift(shift) {
    mustWork(cudaMalloc(&base, total()));
    mustWork(cudaMemset(base, kGuardByte, total()));
    mustWork(cudaStreamSynchronize(nullptr));
  }
  Guarded(const Guarded &) = delete;
  ~Guarded() { cudaFree(base); }
  void *data() const { return static_cast<uint8_t *>(base) + kGuard + shift; }
  // The calls' streams do not wait for the default one, on which these run.
  void poison(uint8_t byte) {
    mustWork(cudaMemset(data(), byte, bytes));
    mustWork(cudaStreamSynchronize(nullptr));
  }
  void upload(const void *from) {
    mustWork(cudaMemcpy(data(), from, bytes, cudaMemcpyHostToDevice));
    mustWork(cudaStreamSynchronize(nullptr));
  }
  std::vector<uint8_t> download() const {
    std::vector<uint8_t> to(bytes);
    mustWork(cudaMemcpy(to.data(), data(), bytes, cudaMemcpyDeviceToHost));
    return to;
  }
  bool guardsIntact() const {
    std::vector<uint8_t> all(total());
    mustWork(cudaMemcpy(all.data(), base, total(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < all.size(); ++i)
      if ((i < kGuard + shift || i >= kGuard + shift + bytes) && all[i] != kGuardByte)
        return false;
    return true;
  }

private:
  size_t total() const { return bytes + 2 * kGuard + shift; }
  size_t bytes, shift;
  void *base = nullptr;
};

/// One stream with what calls on it need.
class Gpu {
public:
  static bool present() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }
  explicit Gpu(bool withBlas = true) : workspace(cuda::kWorkspaceBytes, 0) {
    mustWork(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
    if (withBlas) {
      Expected<cublasLtHandle_t> handle = cuda::createBlasLt();
      if (!handle)
        throw std::runtime_error(handle.status().str());
      context.blaslt = *handle;
    }
    context.workspace = workspace.data();
    context.workspaceBytes = cuda::kWorkspaceBytes;
    void *flag = nullptr; // in the host's memory, as a step's
    mustWork(cudaHostAlloc(&flag, sizeof(int32_t), cudaHostAllocMapped));
    context.errorFlag = static_cast<int32_t *>(flag);
    *context.errorFlag = 0;
    workspace.poison(0xb5);
    mustWork(cudaDeviceSynchronize());
  }
  ~Gpu() {
    cudaFreeHost(context.errorFlag);
    cuda::destroyBlasLt(context.blaslt);
    cudaStreamDestroy(context.stream);
  }
  /// Waits, and returns the error flag, which becomes 0 again.
  int32_t finish() {
    mustWork(cudaStreamSynchronize(context.stream));
    return std::exchange(*context.errorFlag, 0);
  }
  cuda::CallContext context;

private:
  Guarded workspace;
};

/// An operand on the device.
class OnDevice {
public:
  OnDevice(const Operand &operand, fb::DType compute, bool shifted)
      : dtype(std::holds_alternative<Tensor<float>>(operand.tensor)
                  ? operand.compute ? compute : fb::DType::f32
              : std::holds_alternative<Tensor<int32_t>>(operand.tensor) ? fb::DType::i32
                                                                        : fb::DType::i64),
        shape(operand.shape()), memory(bytesOf(operand), shifted ? elementBytes() : 0) {
    std::visit(
        [&](const auto &t) {
          if (t.values.empty())
            return;
          if (dtype == fb::DType::bf16) {
            std::vector<uint16_t> bits;
            for (auto v : t.values)
              bits.push_back(bf16Bits(float(v)));
            memory.upload(bits.data());
          } else {
            memory.upload(t.values.data());
          }
        },
        operand.tensor);
  }
  TensorRef ref() const { return {memory.data(), dtype, shape}; }
  Guarded &bytes() { return memory; }
  /// What is there now, in the form of `like`.
  Operand read(const Operand &like) const {
    Operand result = like;
    std::vector<uint8_t> raw = memory.download();
    std::visit(
        [&](auto &t) {
          using Value = typename std::decay_t<decltype(t)>;
          if (dtype == fb::DType::bf16)
            for (size_t i = 0; i < t.values.size(); ++i) {
              uint16_t bits;
              std::memcpy(&bits, raw.data() + 2 * i, 2);
              t.values[i] = typename decltype(Value::values)::value_type(bf16Value(bits));
            }
          else if (!t.values.empty())
            std::memcpy(t.values.data(), raw.data(), raw.size());
        },
        result.tensor);
    return result;
  }

private:
  size_t elementBytes() const {
    return dtype == fb::DType::bf16 ? 2 : dtype == fb::DType::i64 ? 8 : 4;
  }
  size_t bytesOf(const Operand &operand) const {
    return elementBytes() *
           std::visit([](const auto &t) { return t.values.size(); }, operand.tensor);
  }
  fb::DType dtype;
  Shape shape;
  Guarded memory;
};

/// ‖a - b‖ / ‖b‖, or over the root of `size` if there is one; infinite if it is no number or if b
/// alone is zero.
inline double normError(const Tensor<float> &a, const std::vector<double> &b, double size = 0) {
  double difference = 0, own = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (double(a.values[i]) - b[i]) * (double(a.values[i]) - b[i]);
    own += b[i] * b[i];
  }
  double error = difference == 0 ? 0 : std::sqrt(difference / (size > 0 ? size : own));
  return std::isnan(error) ? INFINITY : error;
}

/// How a call is run and compared.
struct Mode {
  fb::DType dtype = fb::DType::f32;
  bool shifted = false;   // operands off their alignment by one element
  bool exact = false;     // floats equal the reference's too
  bool hostFloat = false; // against the float reference, for calls that choose
  /// Results are sums of products of the inputs, of which few may be compared. A sum x·w of terms
  /// of both signs may come near zero by chance, but its rounding errors stay as large as its
  /// partial sums, about √Σ(xw)²: errors are then relative to that, which for many results is their
  /// own size.
  bool sums = false;
  double f32Error = 1e-5, bf16Error = 1e-2;
  int32_t fault = 0; // the error flag afterwards
};

/// Runs the call twice (everyNthCase) on the GPU, on differently poisoned outputs, once with inputs
/// that may be read early, and returns the outputs after checking that both runs agree bit for bit,
/// touch nothing beside them and leave `mode.fault`.
inline std::vector<Operand> runOnGpu(Gpu &gpu, std::string_view name,
                                     const std::vector<Operand> &in,
                                     const std::vector<Operand> &out, const CallParams &p,
                                     const Mode &mode) {
  std::vector<std::unique_ptr<OnDevice>> inputs, outputs;
  std::vector<TensorRef> inRefs, outRefs;
  for (const Operand &o : in) {
    inputs.push_back(std::make_unique<OnDevice>(o, mode.dtype, mode.shifted));
    inRefs.push_back(inputs.back()->ref());
  }
  for (const Operand &o : out) {
    outputs.push_back(std::make_unique<OnDevice>(o, mode.dtype, mode.shifted));
    outRefs.push_back(outputs.back()->ref());
  }
  std::vector<std::vector<uint8_t>> first;
  for (uint8_t poison : {0xff, 0x7b}) {
    for (auto &o : outputs)
      o->bytes().poison(poison);
    mustWork(cudaDeviceSynchronize());
    gpu.context.settled = poison == 0xff ? ~0u : 0;
    Status s = cuda::runCudaCall(name, inRefs, outRefs, p, gpu.context);
    gpu.context.settled = 0;
    EXPECT_TRUE(s.ok()) << name << ": " << s.str();
    EXPECT_EQ(gpu.finish(), mode.fault) << name;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (poison == 0xff)
        first.push_back(outputs[i]->bytes().download());
      else if (mode.fault == 0)
        EXPECT_EQ(first[i], outputs[i]->bytes().download())
            << name << ": output " << i << " differs from run to run";
      EXPECT_TRUE(outputs[i]->bytes().guardsIntact()) << name << " writes outside output " << i;
    }
    if (everyNthCase() > 1)
      break;
  }
  for (size_t i = 0; i < inputs.size(); ++i)
    EXPECT_TRUE(inputs[i]->bytes().guardsIntact()) << name << " writes outside input " << i;
  std::vector<Operand> results;
  for (size_t i = 0; i < outputs.size(); ++i)
    results.push_back(outputs[i]->read(out[i]));
  return results;
}

/// The call on the host's reference with scalar S.
template <typename S>
Status runOnHost(std::string_view name, const std::vector<Operand> &in,
                 const std::vector<Operand> &out, const CallParams &p,
                 std::vector<std::vector<double>> &values) {
  std::vector<Tensor<S>> scalars;
  std::vector<Tensor<int32_t>> ints;
  std::vector<std::pair<bool, size_t>> where;
  scalars.reserve(in.size() + out.size());
  ints.reserve(out.size());
  std::vector<TensorRef> inRefs, outRefs;
  for (const Operand &o : in)
    std::visit(
        [&]<typename V>(const Tensor<V> &t) {
          if constexpr (std::is_same_v<V, float>) {
            scalars.push_back(t.template as<S>());
            inRefs.push_back(scalars.back());
          } else {
            inRefs.push_back(t);
          }
        },
        o.tensor);
  for (const Operand &o : out)
    if (std::holds_alternative<Tensor<float>>(o.tensor)) {
      where.emplace_back(true, scalars.size());
      scalars.emplace_back(o.shape());
      outRefs.push_back(scalars.back());
    } else {
      where.emplace_back(false, ints.size());
      ints.emplace_back(o.shape());
      outRefs.push_back(ints.back());
    }
  Status s = runHostCall(name, CallFlavor::reference, inRefs, outRefs, p);
  for (auto [isFloat, i] : where)
    if (isFloat)
      values.emplace_back(scalars[i].values.begin(), scalars[i].values.end());
    else
      values.emplace_back(ints[i].values.begin(), ints[i].values.end());
  return s;
}

inline Operand rounded(Operand o, fb::DType dtype) {
  if (dtype == fb::DType::bf16 && o.compute)
    for (float &v : std::get<Tensor<float>>(o.tensor).values)
      v = bf16Value(bf16Bits(v));
  return o;
}

/// Runs the call on both sides and compares all outputs.
inline void expectAgrees(Gpu &gpu, std::string_view name, std::vector<Operand> in,
                         const std::vector<Operand> &out, const CallParams &p, const Mode &mode) {
  if (isLeftOut())
    return;
  for (Operand &o : in)
    o = rounded(std::move(o), mode.dtype);
  std::vector<std::vector<double>> expected;
  Status s = mode.hostFloat ? runOnHost<float>(name, in, out, p, expected)
                            : runOnHost<double>(name, in, out, p, expected);
  ASSERT_TRUE(s.ok()) << s.str();
  std::vector<double> sizes(out.size()); // Σ(xw)² of each output
  if (mode.sums) {
    std::vector<Operand> squares = in;
    for (Operand &o : squares)
      for (float &v : std::get<Tensor<float>>(o.tensor).values)
        v *= v;
    std::vector<std::vector<double>> sums;
    s = runOnHost<double>(name, squares, out, p, sums);
    ASSERT_TRUE(s.ok()) << s.str();
    for (size_t i = 0; i < out.size(); ++i)
      sizes[i] = std::accumulate(sums[i].begin(), sums[i].end(), 0.0);
  }
  std::vector<Operand> got = runOnGpu(gpu, name, in, out, p, mode);
  for (size_t i = 0; i < out.size(); ++i) {
    if (const auto *ints = std::get_if<Tensor<int32_t>>(&got[i].tensor)) {
      std::vector<int32_t> want(expected[i].begin(), expected[i].end());
      EXPECT_EQ(ints->values, want) << name << ": output " << i;
      continue;
    }
    double allowed = mode.exact                                        ? 0
                     : mode.dtype == fb::DType::bf16 && out[i].compute ? mode.bf16Error
                                                                       : mode.f32Error;
    EXPECT_LE(normError(got[i].floats(), expected[i], sizes[i]), allowed)
        << name << ": output " << i << " of " << (mode.dtype == fb::DType::bf16 ? "bf16" : "f32")
        << (mode.shifted ? ", shifted" : "");
  }
}

/// Both compute types, aligned and shifted.
inline std::vector<Mode> allModes() {
  std::vector<Mode> modes;
  for (fb::DType dtype : {fb::DType::f32, fb::DType::bf16})
    for (bool shifted : {false, true})
      modes.push_back({.dtype = dtype, .shifted = shifted});
  return modes;
}

class CudaTest : public ::testing::Test {
protected:
  void SetUp() override {
    if (!Gpu::present())
      GTEST_SKIP() << "no CUDA device here";
    gpu = std::make_unique<Gpu>();
  }
  std::unique_ptr<Gpu> gpu;
  Random random{testSeed()};
};

} // namespace moira::rt::testing

#endif // MOIRA_TEST_UNIT_CUDATESTING_H
