//===- HostKernels.cpp - Speed of generated host kernels ------------------===//
//
// Time to build a plan's image, and bytes per second of its kernels on rows that fit the cache and
// rows that do not. Bytes are those of all operands, each counted once. MOIRA_HOST_CPU chooses the
// code (default x86-64-v3).
//
//===----------------------------------------------------------------------===//
#include "moira/Target/Kernels/KernelImage.h"
#include <benchmark/benchmark.h>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

using namespace moira::kernels;

static std::vector<KernelSpec> makeKernels() {
  constexpr ScalarType f32 = ScalarType::F32;
  std::vector<KernelSpec> all(5);
  all[0].name = "silu_mul";
  all[0].output(all[0].glu(all[0].input(f32, {2, 4096}), Activation::Silu));
  all[1].name = "gelu_mul";
  all[1].output(all[1].glu(all[1].input(f32, {2, 4096}), Activation::Gelu));
  all[2].name = "rms_norm";
  {
    unsigned x = all[2].input(f32, {4096}), w = all[2].shared(f32, {4096});
    all[2].output(all[2].rmsNorm(x, w, 1e-5));
  }
  all[3].name = "add_rms_norm";
  {
    KernelSpec &k = all[3];
    unsigned x = k.input(f32, {4096}), r = k.input(f32, {4096}), w = k.shared(f32, {4096});
    unsigned sum = k.add(x, r);
    k.output(sum);
    k.output(k.rmsNorm(sum, w, 1e-5));
  }
  all[4].name = "head_norm_rope"; // 32 positions of 32 heads of 128
  {
    KernelSpec &k = all[4];
    unsigned x = k.input(f32, {32, 32, 128}), w = k.shared(f32, {128});
    unsigned cos = k.shared(f32, {32, 64}), sin = k.shared(f32, {32, 64});
    k.output(k.rope(k.rmsNorm(x, w, 1e-6), cos, sin));
  }
  return all;
}

static HostImage build(const std::vector<KernelSpec> &kernels) {
  const char *cpu = std::getenv("MOIRA_HOST_CPU");
  llvm::Expected<HostImage> image = buildHostImage(kernels, {cpu ? cpu : "x86-64-v3"});
  if (!image) {
    std::fprintf(stderr, "%s\n", llvm::toString(image.takeError()).c_str());
    std::exit(4);
  }
  return std::move(*image);
}

static void buildImage(benchmark::State &state) {
  std::vector<KernelSpec> kernels = makeKernels();
  for (auto _ : state)
    benchmark::DoNotOptimize(build(kernels));
}

static void runKernel(benchmark::State &state, void *kernel, const KernelSpec &spec) {
  int64_t rows = state.range(0), bytes = 0;
  std::vector<std::unique_ptr<char, decltype(&std::free)>> memory;
  void *p[6] = {};
  for (const KernelOperand &o : spec.operands) {
    int64_t n = byteSize(o.type) * (o.rowwise ? rows : 1);
    for (int64_t d : o.inner)
      n *= d;
    auto *floats = static_cast<float *>(std::aligned_alloc(64, (n + 63) / 64 * 64));
    std::fill_n(floats, n / sizeof(float), 0.5f);
    p[memory.size()] = floats;
    memory.emplace_back(reinterpret_cast<char *>(floats), &std::free);
    bytes += n;
  }
  for (auto _ : state) {
    switch (spec.operands.size()) {
    case 2:
      reinterpret_cast<void (*)(void *, void *, int64_t)>(kernel)(p[0], p[1], rows);
      break;
    case 3:
      reinterpret_cast<void (*)(void *, void *, void *, int64_t)>(kernel)(p[0], p[1], p[2], rows);
      break;
    case 5:
      reinterpret_cast<void (*)(void *, void *, void *, void *, void *, int64_t)>(kernel)(
          p[0], p[1], p[2], p[3], p[4], rows);
      break;
    }
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * bytes);
}

int main(int argc, char **argv) {
  std::vector<KernelSpec> kernels = makeKernels();
  HostImage image = build(kernels);
  int fd = memfd_create("kernels", MFD_CLOEXEC);
  if (write(fd, image.bytes.data(), image.bytes.size()) != ssize_t(image.bytes.size()))
    return 5;
  void *handle = dlopen(("/proc/self/fd/" + std::to_string(fd)).c_str(), RTLD_NOW);
  if (!handle) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 5;
  }
  benchmark::RegisterBenchmark("build_image", buildImage)->Unit(benchmark::kMillisecond);
  for (const KernelSpec &k : kernels) {
    void *kernel = dlsym(handle, k.name.c_str());
    bool large = k.operands[0].inner.size() == 3;
    benchmark::RegisterBenchmark(k.name.c_str(),
                                 [=, &k](benchmark::State &state) { runKernel(state, kernel, k); })
        ->Arg(large ? 1 : 16)
        ->Arg(large ? 64 : 4096);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
