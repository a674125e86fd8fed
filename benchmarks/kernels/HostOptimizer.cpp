//===- HostOptimizer.cpp - how fast the host updates weights ---------------===//
// Bytes moved each second by the updates of the host device beside those of memcpy, for states that
// no cache holds. adamw reads 16 bytes of a weight and writes 12.
//===----------------------------------------------------------------------===//
#include "moira/rt/Device.h"
#include "moira/rt/HostThreads.h"

#include <benchmark/benchmark.h>
#include <cstring>
#include <thread>

using namespace moira;
using namespace moira::rt;

namespace {

constexpr int64_t kWeights = int64_t(1) << 26;

struct State {
  std::vector<float> grad, w, m, v;
  State() : grad(kWeights, 0.5f), w(kWeights, 1.0f), m(kWeights), v(kWeights) {}
};

State &state() {
  static State all;
  return all;
}

TensorRef ref(std::vector<float> &values) { return {values.data(), fb::DType::f32, {kWeights}}; }

void copy(benchmark::State &run) {
  State &s = state();
  for (auto _ : run) {
    std::memcpy(s.m.data(), s.grad.data(), kWeights * sizeof(float));
    benchmark::ClobberMemory();
  }
  run.SetBytesProcessed(run.iterations() * kWeights * 8);
}

void update(benchmark::State &run, const char *name, CallFlavor flavor, int64_t bytes) {
  State &s = state();
  setHostThreads(int(run.range(0)));
  float lr = 1e-3f;
  int32_t step = 5;
  TensorRef rate{&lr, fb::DType::f32, {1}}, number{&step, fb::DType::i32, {1}};
  CallParams params;
  params.reals = {
      {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {"weight_decay", 0.01}, {"momentum", 0.9}};
  params.integers = {{"nesterov", 0}};
  bool adamw = std::string_view(name) == "adamw";
  std::vector<TensorRef> in{ref(s.grad), rate}, out{ref(s.w), ref(s.m)};
  if (adamw) {
    in.push_back(number);
    out.push_back(ref(s.v));
  }
  for (auto _ : run)
    if (Status status = runHostCall(name, flavor, in, out, params); !status)
      run.SkipWithError(status.str().c_str());
  run.SetBytesProcessed(run.iterations() * kWeights * bytes);
  run.counters["weights/s"] =
      benchmark::Counter(double(run.iterations() * kWeights), benchmark::Counter::kIsRate);
}

} // namespace

int main(int argc, char **argv) {
  int cores = int(std::thread::hardware_concurrency());
  auto add = [&](const char *label, const char *call, CallFlavor flavor, int64_t bytes) {
    auto *bench = benchmark::RegisterBenchmark(
        label, [=](benchmark::State &run) { update(run, call, flavor, bytes); });
    bench->Arg(1)->UseRealTime();
    if (flavor == CallFlavor::fast && cores > 1)
      bench->Arg(cores);
  };
  benchmark::RegisterBenchmark("memcpy", copy)->UseRealTime();
  add("adamw", "adamw", CallFlavor::fast, 28);
  add("adamw reference", "adamw", CallFlavor::reference, 28);
  add("sgd with momentum", "sgd", CallFlavor::fast, 20);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
