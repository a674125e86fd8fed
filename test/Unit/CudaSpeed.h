//===- CudaSpeed.h - timing CUDA calls ----------------------------*- C++ -*-===//
// Device memory full of numbers, and the medians of calls and of graphs of calls. Only
// CudaCallsSpeed uses it.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_CUDASPEED_H
#define MOIRA_TEST_UNIT_CUDASPEED_H

#include "CudaTesting.h"

namespace moira::rt::testing {

/// Device memory full of random values in (-1, 1), or of given integers.
class Big {
public:
  Big(Shape shape, fb::DType dtype) : dtype(dtype), shape(std::move(shape)) {
    size_t element = dtype == fb::DType::bf16 ? 2 : 4, total = size_t(ref().elements()) * element;
    mustWork(cudaMalloc(&data, total + 1));
    std::vector<uint8_t> some(std::min<size_t>(total, size_t(8) << 20));
    static std::mt19937 engine(1);
    for (size_t i = 0; i + element <= some.size(); i += element) {
      float v = float(engine()) / 2147483648.0f - 1;
      uint16_t bits = bf16Bits(v);
      std::memcpy(some.data() + i, element == 2 ? static_cast<void *>(&bits) : &v, element);
    }
    mustWork(cudaMemcpy(data, some.data(), some.size(), cudaMemcpyHostToDevice));
    for (size_t filled = some.size(); filled < total; filled *= 2)
      mustWork(cudaMemcpy(static_cast<uint8_t *>(data) + filled, data,
                          std::min(filled, total - filled), cudaMemcpyDeviceToDevice));
  }
  Big(Shape shape, std::vector<int32_t> values) : dtype(fb::DType::i32), shape(std::move(shape)) {
    mustWork(cudaMalloc(&data, values.size() * 4 + 1));
    mustWork(cudaMemcpy(data, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  }
  Big(const Big &) = delete;
  ~Big() { cudaFree(data); }
  TensorRef ref() const { return {data, dtype, shape}; }
  /// Part `index` of as many of this shape as fit, round and round.
  TensorRef slice(Shape part, int64_t index) const {
    TensorRef t{data, dtype, std::move(part)};
    int64_t fit = std::max<int64_t>(1, ref().elements() / t.elements());
    t.data = static_cast<uint8_t *>(data) +
             size_t(index % fit * t.elements()) * (dtype == fb::DType::bf16 ? 2 : 4);
    return t;
  }

private:
  fb::DType dtype;
  Shape shape;
  void *data = nullptr;
};

inline void mustRun(Gpu &gpu, std::string_view name, const std::vector<TensorRef> &in,
                    const std::vector<TensorRef> &out, const CallParams &p) {
  if (Status s = cuda::runCudaCall(name, in, out, p, gpu.context); !s)
    throw std::runtime_error(s.str());
}

inline double medianOf(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

/// Milliseconds of `work`, enqueued on the device's stream: the median of `runs`, each between two
/// events, after `warm` others.
template <typename Work> double millisecondsOf(Gpu &gpu, int runs, int warm, Work work) {
  std::vector<cudaEvent_t> events(size_t(runs) + 1);
  for (cudaEvent_t &e : events)
    mustWork(cudaEventCreate(&e));
  for (int i = -warm; i <= runs; ++i) {
    if (i >= 0)
      mustWork(cudaEventRecord(events[size_t(i)], gpu.context.stream));
    if (i < runs)
      work();
  }
  if (int32_t fault = gpu.finish())
    throw std::runtime_error(cuda::describeErrorFlag(fault));
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    float ms = 0;
    mustWork(cudaEventElapsedTime(&ms, events[size_t(i)], events[size_t(i) + 1]));
    times.push_back(ms);
  }
  for (cudaEvent_t e : events)
    cudaEventDestroy(e);
  return medianOf(times);
}

/// The same for `work` as a graph, which is captured once.
template <typename Work> double graphMilliseconds(Gpu &gpu, int runs, Work work) {
  work(); // loads the kernels
  gpu.finish();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  mustWork(cudaStreamBeginCapture(gpu.context.stream, cudaStreamCaptureModeThreadLocal));
  work();
  mustWork(cudaStreamEndCapture(gpu.context.stream, &graph));
  mustWork(cudaGraphInstantiate(&instance, graph, 0));
  double ms = millisecondsOf(gpu, runs, 2,
                             [&] { mustWork(cudaGraphLaunch(instance, gpu.context.stream)); });
  mustWork(cudaGraphExecDestroy(instance));
  mustWork(cudaGraphDestroy(graph));
  return ms;
}

/// Terabytes a second, read and written, that a copy on this device moves.
double copyRate(Gpu &gpu);

void measureProducts(Gpu &gpu);
void measureAttention(Gpu &gpu);
void measureAround(Gpu &gpu);
void measureLayers(Gpu &gpu);
void measureTraining(Gpu &gpu);
void measureDecode(Gpu &gpu, std::initializer_list<int64_t> tokens,
                   std::initializer_list<int64_t> tokensOfLongCaches);

} // namespace moira::rt::testing

#endif // MOIRA_TEST_UNIT_CUDASPEED_H
