//===- KernelImageTest.cpp - Generated host code and PTX ------------------===//
//
// Host images are loaded like the runtime loads them (memfd, dlopen) and compared with
// KernelReference.h. MOIRA_SEED repeats a run.
//
//===----------------------------------------------------------------------===//
#include "moira/Target/Kernels/KernelImage.h"
#include "KernelSamples.h"
#include "llvm/Object/ELFObjectFile.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace moira::kernels;
using namespace moira::kernels::test;
using testing::HasSubstr;
using testing::Not;

namespace {

uint64_t seed() {
  const char *text = std::getenv("MOIRA_SEED");
  uint64_t value = text ? std::strtoull(text, nullptr, 10) : std::random_device{}();
  std::printf("seed %llu (set MOIRA_SEED to repeat)\n", (unsigned long long)value);
  return value;
}

template <typename T> std::string errorOf(llvm::Expected<T> value) {
  return value ? "" : llvm::toString(value.takeError());
}

/// A loaded image.
class Image {
public:
  explicit Image(const std::string &bytes) {
    int fd = memfd_create("kernels", MFD_CLOEXEC);
    if (write(fd, bytes.data(), bytes.size()) == ssize_t(bytes.size()))
      handle = dlopen(("/proc/self/fd/" + std::to_string(fd)).c_str(), RTLD_NOW | RTLD_LOCAL);
    close(fd);
  }
  ~Image() {
    if (handle)
      dlclose(handle);
  }
  void *handle = nullptr;

  /// Calls a kernel of the fixed shape with up to six operands.
  void call(const std::string &name, const std::vector<void *> &p, int64_t rows) {
    void *f = dlsym(handle, name.c_str());
    ASSERT_NE(f, nullptr) << name;
    using P = void *;
    switch (p.size()) {
    case 2:
      return reinterpret_cast<void (*)(P, P, int64_t)>(f)(p[0], p[1], rows);
    case 3:
      return reinterpret_cast<void (*)(P, P, P, int64_t)>(f)(p[0], p[1], p[2], rows);
    case 4:
      return reinterpret_cast<void (*)(P, P, P, P, int64_t)>(f)(p[0], p[1], p[2], p[3], rows);
    case 5:
      return reinterpret_cast<void (*)(P, P, P, P, P, int64_t)>(f)(p[0], p[1], p[2], p[3], p[4],
                                                                   rows);
    case 6:
      return reinterpret_cast<void (*)(P, P, P, P, P, P, int64_t)>(f)(p[0], p[1], p[2], p[3], p[4],
                                                                      p[5], rows);
    }
    FAIL() << name << " has " << p.size() << " operands";
  }
};

/// Largest error that rounding explains: 1e-6 in f32; two neighbouring values of a narrow output
/// type.
double tolerance(ScalarType type, double wanted) {
  double relative = type == ScalarType::BF16  ? 1.0 / 128
                    : type == ScalarType::F16 ? 1.0 / 1024
                                              : 1e-6;
  return relative * std::max(1.0, std::abs(wanted));
}

/// What rounding inputs and means by half a unit in the last place moves each output by, in f32.
/// Where that is much (a layer_norm of two nearly equal values), no f32 code can do better.
std::vector<Data> roundingMoves(const KernelSpec &spec, const std::vector<RowValue> &types,
                                const std::vector<Data> &inputs, int64_t rows) {
  std::mt19937_64 random(rows);
  auto round = [&](double v) { return v * (1 + (random() % 2 ? 0x1p-24 : -0x1p-24)); };
  std::vector<Data> wanted = evaluate(spec, types, inputs, rows), moves = wanted;
  for (Data &d : moves)
    std::fill(d.begin(), d.end(), 0);
  for (int trial = 0; trial < 8; ++trial) {
    std::vector<Data> moved = inputs;
    for (size_t i = 0; i < moved.size(); ++i)
      if (spec.operands[i].type == ScalarType::F32)
        for (double &e : moved[i])
          e = round(e);
    std::vector<Data> there = evaluate(spec, types, moved, rows, round);
    for (size_t k = 0; k < moves.size(); ++k)
      for (size_t i = 0; i < moves[k].size(); ++i)
        moves[k][i] = std::max(moves[k][i], std::abs(there[k][i] - wanted[k][i]));
  }
  return moves;
}

constexpr size_t kGuard = 64;

/// Runs a kernel on random data and compares every element; bytes behind the outputs must stay.
void check(Image &image, const KernelSpec &spec, Samples &samples, int64_t rows) {
  SCOPED_TRACE(spec.name + ", rows " + std::to_string(rows) + ": " + spec.key());
  auto types = spec.infer();
  ASSERT_TRUE(bool(types)) << llvm::toString(types.takeError());
  std::vector<Data> inputs;
  std::vector<std::vector<char>> memory;
  std::vector<void *> pointers;
  bool narrow = false;
  for (unsigned i = 0; i < spec.operands.size(); ++i) {
    const KernelOperand &o = spec.operands[i];
    if (!o.output) {
      inputs.push_back(samples.input(spec, i, rows));
      memory.push_back(encode(o.type, inputs.back()));
    } else {
      memory.emplace_back(product(o.inner) * rows * byteSize(o.type), 0);
    }
    memory.back().resize(memory.back().size() + kGuard, 0x5a);
  }
  for (const KernelStep &step : spec.steps)
    narrow |= step.type != ScalarType::F32;
  for (std::vector<char> &m : memory)
    pointers.push_back(m.data());
  image.call(spec.name, pointers, rows);
  std::vector<Data> wanted = evaluate(spec, *types, inputs, rows), moves;
  for (unsigned k = 0; k < wanted.size(); ++k) {
    unsigned operand = spec.numInputs() + k;
    ScalarType type = spec.operands[operand].type;
    // A narrow value in between that rounds the other way moves the result like a narrow output.
    ScalarType coarsest = narrow ? ScalarType::BF16 : type;
    const char *bytes = memory[operand].data();
    for (size_t i = 0; i < wanted[k].size(); ++i) {
      double got = decode(type, bytes + i * byteSize(type));
      double bound = tolerance(coarsest, wanted[k][i]) * (narrow ? 3 : 1);
      if (std::abs(got - wanted[k][i]) > bound && coarsest == ScalarType::F32) {
        if (moves.empty())
          moves = roundingMoves(spec, *types, inputs, rows);
        bound = std::max(bound, 4 * moves[k][i]);
      }
      ASSERT_LE(std::abs(got - wanted[k][i]), bound)
          << "output " << k << " element " << i << ": " << got << ", wanted " << wanted[k][i];
    }
    for (size_t i = 0; i < kGuard; ++i)
      ASSERT_EQ(memory[operand][memory[operand].size() - 1 - i], 0x5a)
          << "written past output " << k;
  }
}

void checkAll(const std::string &cpu, ScalarType type, unsigned rounds) {
  Samples samples(seed());
  std::vector<KernelSpec> specs;
  for (unsigned i = 0; i < rounds; ++i)
    for (KernelSpec &k : samples.kernels(type))
      specs.push_back(std::move(k));
  auto built = buildHostImage(specs, {cpu});
  ASSERT_TRUE(bool(built)) << llvm::toString(built.takeError());
  Image image(built->bytes);
  ASSERT_NE(image.handle, nullptr) << dlerror();
  for (const KernelSpec &spec : specs)
    for (int64_t rows : {0, 1, 3}) {
      check(image, spec, samples, rows);
      if (testing::Test::HasFatalFailure())
        return;
    }
}

// Every kind of kernel in f32 equals double precision within 1e-6, on random shapes and for 0, 1
// and 3 rows.
TEST(HostImage, MatchesReferenceF32) { checkAll("x86-64-v3", ScalarType::F32, 4); }

// The same for bf16 and f16 operands, within the rounding of those types.
TEST(HostImage, MatchesReferenceBF16) { checkAll("x86-64-v3", ScalarType::BF16, 2); }
TEST(HostImage, MatchesReferenceF16) { checkAll("x86-64-v3", ScalarType::F16, 2); }

// The widest code that this machine can run is right too.
TEST(HostImage, MatchesReferenceNative) { checkAll("native", ScalarType::F32, 2); }

// Values far out: activations saturate, infinities and NaN go through as in the formulas.
TEST(HostImage, ExtremeValues) {
  KernelSpec silu, relu, clamp, gelu;
  silu.output(silu.glu(silu.input(ScalarType::F32, {2, 8}), Activation::Silu));
  relu.output(relu.glu(relu.input(ScalarType::F32, {2, 8}), Activation::Relu));
  gelu.output(gelu.glu(gelu.input(ScalarType::F32, {2, 8}), Activation::GeluTanh));
  clamp.output(clamp.clamp(clamp.input(ScalarType::F32, {8}), -8, 8));
  silu.name = "silu", relu.name = "relu", clamp.name = "clamp8", gelu.name = "gelu";
  auto built = buildHostImage({silu, relu, clamp, gelu});
  ASSERT_TRUE(bool(built)) << llvm::toString(built.takeError());
  Image image(built->bytes);
  ASSERT_NE(image.handle, nullptr) << dlerror();
  float inf = INFINITY;
  std::vector<float> x = {-1000, -100, -88, 88, 100, 1000, inf, NAN, 1, 1, 1, 1, 1, 1, 1, 1};
  std::vector<float> y(8);
  image.call("silu", {x.data(), y.data()}, 1);
  EXPECT_THAT(std::vector<float>(y.begin(), y.begin() + 3),
              testing::Each(testing::FloatNear(0, 1e-35)));
  EXPECT_THAT(std::vector<float>(y.begin() + 3, y.begin() + 7),
              testing::ElementsAre(88, 100, 1000, inf));
  EXPECT_TRUE(std::isnan(y[7]));
  image.call("gelu", {x.data(), y.data()}, 1);
  EXPECT_THAT(std::vector<float>(y.begin(), y.begin() + 7),
              testing::ElementsAre(0, 0, 0, 88, 100, 1000, inf));
  EXPECT_TRUE(std::isnan(y[7]));
  image.call("relu", {x.data(), y.data()}, 1);
  EXPECT_THAT(std::vector<float>(y.begin(), y.begin() + 7),
              testing::ElementsAre(0, 0, 0, 88, 100, 1000, inf));
  EXPECT_TRUE(std::isnan(y[7]));
  image.call("clamp8", {x.data(), y.data()}, 1);
  EXPECT_THAT(std::vector<float>(y.begin(), y.begin() + 7),
              testing::ElementsAre(-8, -8, -8, 8, 8, 8, 8));
  EXPECT_TRUE(std::isnan(y[7]));
}

// Two builds give the same bytes; the image imports nothing, needs no library and holds no path.
TEST(HostImage, DeterministicAndSelfContained) {
  Samples samples(seed());
  std::vector<KernelSpec> specs = samples.kernels(ScalarType::F32);
  auto first = buildHostImage(specs), second = buildHostImage(specs);
  ASSERT_TRUE(first && second);
  EXPECT_TRUE(first->bytes == second->bytes);
  EXPECT_EQ(first->target, "x86_64-unknown-linux-gnu/x86-64-v3");
  EXPECT_EQ(first->features, "avx,avx2,bmi,bmi2,f16c,fma,lzcnt,movbe");
  EXPECT_THAT(first->bytes, Not(HasSubstr("/tmp")));

  auto elf = llvm::object::ELFObjectFile<llvm::object::ELF64LE>::create(
      llvm::MemoryBufferRef(first->bytes, "image"));
  ASSERT_TRUE(bool(elf));
  unsigned exported = 0;
  for (auto symbol : elf->getDynamicSymbolIterators()) {
    EXPECT_FALSE(*symbol.getFlags() & llvm::object::SymbolRef::SF_Undefined)
        << symbol.getName()->str();
    ++exported;
  }
  EXPECT_EQ(exported, specs.size());
  auto dynamic = elf->getELFFile().dynamicEntries();
  ASSERT_TRUE(bool(dynamic));
  for (auto &entry : *dynamic)
    EXPECT_NE(entry.getTag(), llvm::ELF::DT_NEEDED);
}

// Bad requests are errors that name the kernel or the option.
TEST(HostImage, Errors) {
  Samples samples(1);
  KernelSpec good = samples.kernels(ScalarType::F32)[0], bad = good;
  bad.name = "bad";
  bad.steps[0].args[1] = 7;
  EXPECT_THAT(errorOf(buildHostImage({good, bad})),
              HasSubstr("kernel 'bad': step 0 (rms_norm) reads v7"));
  EXPECT_THAT(errorOf(buildHostImage({good, good})), HasSubstr("two kernels are named"));
  EXPECT_THAT(errorOf(buildHostImage({good}, {"pentium"})),
              HasSubstr("unknown host cpu 'pentium'"));
  bad = good;
  bad.name = "a-b";
  EXPECT_THAT(errorOf(buildHostImage({bad})), HasSubstr("not a C identifier"));
  EXPECT_THAT(errorOf(buildPtx({good}, "sm_1")), HasSubstr("sm_1"));
}

// PTX has one entry per kernel with its block size, calls nothing, and is the same every time.
TEST(Ptx, SelfContained) {
  Samples samples(seed());
  std::vector<KernelSpec> specs;
  for (ScalarType t : {ScalarType::F32, ScalarType::BF16})
    for (KernelSpec &k : samples.kernels(t))
      specs.push_back(std::move(k));
  auto ptx = buildPtx(specs), again = buildPtx(specs);
  ASSERT_TRUE(bool(ptx)) << llvm::toString(ptx.takeError());
  ASSERT_TRUE(bool(again));
  EXPECT_TRUE(*ptx == *again);
  EXPECT_THAT(*ptx, HasSubstr(".target sm_90"));
  EXPECT_THAT(*ptx, Not(HasSubstr(".extern")));
  EXPECT_THAT(*ptx, Not(HasSubstr("call")));
  for (const KernelSpec &spec : specs)
    EXPECT_THAT(*ptx, HasSubstr(".visible .entry " + spec.name + "("));
  size_t sizes = 0;
  for (size_t at = 0; (at = ptx->find(".reqntid", at)) != std::string::npos; ++at)
    ++sizes;
  EXPECT_EQ(sizes, specs.size());
}

} // namespace
