//===- HostCalls.cpp - how fast the host's calls are -----------------------===//
// The calls of OLMoE-1B-7B's layer and head on all cores, for a few tokens and for many, on weights
// that no cache holds; and what memory gives: bytes read, and read and written by a copy that goes
// past the caches. Bytes of a call are those of the weights or caches that it touches, counted
// once; "of read" is their rate beside that of plain reading, measured first.
//===----------------------------------------------------------------------===//
#include "moira/rt/Bf16.h"
#include "moira/rt/Device.h"
#include "moira/rt/HostThreads.h"
#include "moira/rt/Memory.h"

#include <benchmark/benchmark.h>
#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using namespace moira;
using namespace moira::rt;

namespace {

constexpr int64_t kHidden = 2048, kWidth = 1024, kExperts = 64, kChoices = 8, kHeads = 16,
                  kHeadDim = 128, kVocabulary = 50304;
/// More than the last-level cache of any machine: what calls read is spread over so many bytes.
constexpr int64_t kPool = int64_t(1) << 30;

int cores() { return std::max(1, int(std::thread::hardware_concurrency())); }

/// fn(first, bytes) for a part of `bytes` on each core.
template <typename Fn> void onAllCores(int64_t bytes, Fn fn) {
  std::vector<std::thread> threads;
  int64_t part = bytes / cores() / 4096 * 4096;
  for (int i = 1; i < cores(); ++i)
    threads.emplace_back(fn, i * part, part);
  fn(0, part);
  for (std::thread &thread : threads)
    thread.join();
}

/// 16 bytes at a time in eight sums; a loop that is bound by memory on every machine.
void readAll(const char *from, int64_t bytes) {
  using Quad [[gnu::vector_size(16)]] = int64_t;
  Quad sums[8] = {};
  const auto *at = reinterpret_cast<const Quad *>(from);
  for (int64_t i = 0; i + 8 <= bytes / 16; i += 8) {
    __builtin_prefetch(reinterpret_cast<const char *>(at + i) + 4096);
    __builtin_prefetch(reinterpret_cast<const char *>(at + i) + 4096 + 64);
    for (int j = 0; j < 8; ++j)
      sums[j] ^= at[i + j];
  }
  benchmark::DoNotOptimize(sums);
}

void copyAll(char *to, const char *from, int64_t bytes) {
#if defined(__x86_64__)
  for (int64_t i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i *>(to + i),
                     _mm_load_si128(reinterpret_cast<const __m128i *>(from + i)));
#else
  std::copy_n(from, bytes, to);
#endif
}

/// Memory in large pages, as the runtime's.
class Pool {
public:
  explicit Pool(int64_t bytes) {
    Expected<Block> made = Block::allocate(uint64_t(bytes), "a benchmark", counter);
    if (!made)
      std::exit(3);
    block = std::move(*made);
  }
  char *data() { return block.data(); }

private:
  MemoryCounter counter;
  Block block;
};

/// Weights that calls read in turn, random bf16 and f32 numbers in (-1, 1).
Pool &weights() {
  static Pool pool = [] {
    Pool made(kPool);
    std::mt19937 random(1);
    auto *at = reinterpret_cast<uint32_t *>(made.data());
    for (int64_t i = 0; i < kPool / 4; ++i) // exponents below that of 1, in both halves
      at[i] = (random() & 0x80ff80ff) | 0x3e803e80;
    return made;
  }();
  return pool;
}

double readRate = 0;

void read(benchmark::State &run) {
  char *data = weights().data();
  double seconds = 0;
  for (auto _ : run) {
    auto start = std::chrono::steady_clock::now();
    onAllCores(kPool, [=](int64_t first, int64_t bytes) { readAll(data + first, bytes); });
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  readRate = double(run.iterations()) * kPool / seconds;
  run.SetBytesProcessed(run.iterations() * kPool);
}

void copy(benchmark::State &run) {
  char *data = weights().data();
  for (auto _ : run)
    onAllCores(kPool / 2, [=](int64_t first, int64_t bytes) {
      copyAll(data + kPool / 2 + first, data + first, bytes);
    });
  run.SetBytesProcessed(run.iterations() * kPool);
}

/// Runs a call whose operand `moving` lies in another part of the pool each time.
void measure(benchmark::State &run, const char *name, std::vector<TensorRef> in,
             std::vector<TensorRef> out, const CallParams &params, std::vector<size_t> moving,
             int64_t touched, double flops) {
  setHostThreads(cores());
  char *pool = weights().data();
  int64_t at = 0;
  for (auto _ : run) {
    for (size_t i : moving) {
      int64_t bytes = (in[i].elements() * (in[i].dtype == fb::DType::bf16 ? 2 : 4) + 63) / 64 * 64;
      if (at + bytes > kPool)
        at = 0;
      in[i].data = pool + at;
      at += bytes;
    }
    if (Status status = runHostCall(name, CallFlavor::fast, in, out, params); !status)
      run.SkipWithError(status.str().c_str());
  }
  run.SetBytesProcessed(run.iterations() * touched);
  if (readRate > 0)
    run.counters["of read"] = benchmark::Counter(
        double(run.iterations()) * double(touched) / readRate, benchmark::Counter::kIsRate);
  run.counters["FLOP/s"] =
      benchmark::Counter(double(run.iterations()) * flops, benchmark::Counter::kIsRate);
}

template <typename S> constexpr fb::DType typeOf() {
  return std::is_same_v<S, Bf16> ? fb::DType::bf16 : fb::DType::f32;
}

template <typename S> void linear(benchmark::State &run, int64_t tokens, int64_t n) {
  std::vector<S> x(size_t(tokens * kHidden), S(0.5f));
  std::vector<float> out(size_t(tokens * n));
  CallParams params;
  params.integers = {{"contract", 1}};
  measure(run, "linear",
          {{x.data(), typeOf<S>(), {tokens, kHidden}}, {nullptr, typeOf<S>(), {n, kHidden}}},
          {{out.data(), fb::DType::f32, {tokens, n}}}, params, {1},
          n * kHidden * int64_t(sizeof(S)), 2.0 * double(tokens * n * kHidden));
}

/// Tokens choose experts at random, so that experts have about equally many rows.
template <typename S> void experts(benchmark::State &run, int64_t tokens, int64_t n, int64_t k) {
  std::mt19937 random(2);
  std::vector<int32_t> groups(kExperts);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0, first = int64_t(random()); j < kChoices; ++j)
      ++groups[size_t((first + j * 7) % kExperts)];
  int64_t rows = tokens * kChoices, used = 0;
  for (int32_t size : groups)
    used += size > 0;
  std::vector<S> x(size_t(rows * k), S(0.5f)), out(size_t(rows * n));
  CallParams params;
  params.integers = {{"contract", 1}};
  measure(run, "grouped_matmul",
          {{x.data(), typeOf<S>(), {rows, k}},
           {groups.data(), fb::DType::i32, {1, kExperts}},
           {nullptr, typeOf<S>(), {kExperts, n, k}}},
          {{out.data(), typeOf<S>(), {rows, n}}}, params, {2}, used * n * k * int64_t(sizeof(S)),
          2.0 * double(rows * n * k));
}

/// `queries` new tokens of each of `batch` rows that have `keys` then.
template <typename S>
void attention(benchmark::State &run, int64_t batch, int64_t queries, int64_t keys) {
  std::vector<S> q(size_t(batch * queries * kHeads * kHeadDim), S(0.01f)), out(q.size());
  std::vector<int32_t> qpos, kpos, mask(size_t(batch * keys), 1);
  for (int64_t i = 0; i < keys; ++i)
    kpos.push_back(int32_t(i));
  qpos.assign(kpos.end() - queries, kpos.end());
  std::vector<int64_t> cache{batch, keys, kHeads, kHeadDim}, rows{batch, queries, kHeads, kHeadDim};
  CallParams params;
  params.integers = {{"q_heads", kHeads}, {"kv_heads", kHeads}};
  params.reals = {{"scale", 1 / std::sqrt(double(kHeadDim))}};
  params.texts = {{"with", "qpos kpos kmask"}};
  measure(run, "attention",
          {{q.data(), typeOf<S>(), rows},
           {nullptr, typeOf<S>(), cache},
           {nullptr, typeOf<S>(), cache},
           {qpos.data(), fb::DType::i32, {queries}},
           {kpos.data(), fb::DType::i32, {keys}},
           {mask.data(), fb::DType::i32, {batch, keys}}},
          {{out.data(), typeOf<S>(), rows}}, params, {1, 2},
          2 * batch * keys * kHeads * kHeadDim * int64_t(sizeof(S)),
          4.0 * double(batch * kHeads * kHeadDim * queries) *
              (double(keys) - double(queries - 1) / 2));
}

template <typename S> void addCalls(const std::string &type) {
  auto add = [&](const std::string &name, auto fn) {
    benchmark::RegisterBenchmark((type + " " + name).c_str(), fn)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  };
  for (int64_t tokens : {1, 8, 32, 128, 512}) {
    std::string of = "/" + std::to_string(tokens) + " tokens";
    add("projection" + of, [=](benchmark::State &run) { linear<S>(run, tokens, kHidden); });
    add("experts up" + of,
        [=](benchmark::State &run) { experts<S>(run, tokens, 2 * kWidth, kHidden); });
    add("experts down" + of,
        [=](benchmark::State &run) { experts<S>(run, tokens, kHidden, kWidth); });
    if (tokens <= 32) {
      add("head" + of, [=](benchmark::State &run) { linear<S>(run, tokens, kVocabulary); });
      add("attention of 256" + of,
          [=](benchmark::State &run) { attention<S>(run, tokens, 1, 256); });
    } else {
      add("attention" + of, [=](benchmark::State &run) { attention<S>(run, 1, tokens, tokens); });
    }
  }
  add("router/1 tokens", [=](benchmark::State &run) { linear<S>(run, 1, kExperts); });
}

} // namespace

int main(int argc, char **argv) {
  benchmark::RegisterBenchmark("memory read", read)->UseRealTime()->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("memory copy", copy)->UseRealTime()->Unit(benchmark::kMillisecond);
  addCalls<Bf16>("bf16");
  addCalls<float>("f32");
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
