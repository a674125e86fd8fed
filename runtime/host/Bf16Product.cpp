//===- Bf16Product.cpp - matrix products of bf16 ----------------------------===//
// linear and grouped_matmul for bf16 operands. Blocks of weights that fit a core's cache meet all
// rows of their group before the next block is touched, so that weights are read from memory once
// and are never copied. Blocks are shared out among threads; which thread does one changes no bit.
//===----------------------------------------------------------------------===//
#include "Bf16Tile.h"
#include "GroupedProduct.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace moira::rt::host {
namespace {

/// Bytes of weights of one block: half of a small second-level cache.
constexpr int64_t kBlockBytes = 256 << 10;
/// Multiplications below which another thread is not worth its start.
constexpr int64_t kThreadWork = 4 << 20;

/// One product: out[m,n] = sum_k x[m,k] * w[n,k], all contiguous.
struct Product {
  const Bf16 *x, *w;
  void *out;
  int64_t m;
};

/// Columns [first, last) of one product.
template <typename O>
void multiplyBlock(const Product &p, int64_t first, int64_t last, int64_t n, int64_t k) {
  const Bf16TileKind &tile = bf16Tile();
  float sums[kTileRows * kTileColumns];
  for (int64_t i = 0; i < p.m; i += kTileRows)
    for (int64_t j = first; j < last; j += tile.columns) {
      int rows = int(std::min<int64_t>(kTileRows, p.m - i));
      int columns = int(std::min<int64_t>(tile.columns, last - j));
      tile.multiply(p.x + i * k, rows, p.w + j * k, columns, k, sums);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c)
          static_cast<O *>(p.out)[(i + r) * n + j + c] = O(sums[r * kTileColumns + c]);
    }
}

/// All products, which have one n and k, on this thread and as many others as it may use.
template <typename O> void multiplyAll(std::span<const Product> products, int64_t n, int64_t k) {
  int64_t columns = bf16Tile().columns;
  int64_t block = std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(1, k * 2) / columns);
  block = std::min(block * columns, std::max<int64_t>(n, 1));
  int64_t blocks = (n + block - 1) / block, tasks = int64_t(products.size()) * blocks, work = 0;
  for (const Product &p : products)
    work += p.m * n * k;
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      int64_t first = task % blocks * block;
      multiplyBlock<O>(products[size_t(task / blocks)], first, std::min(n, first + block), n, k);
    }
  };
  int64_t helpers = std::min({int64_t(hostThreads()), tasks, work / kThreadWork + 1}) - 1;
  std::vector<std::thread> threads;
  try {
    for (int64_t i = 0; i < helpers; ++i)
      threads.emplace_back(run);
  } catch (const std::system_error &) { // no more threads: the ones there do the work
  }
  run();
  for (std::thread &thread : threads)
    thread.join();
}

} // namespace

namespace fast {

template <> Status linear<Bf16>(const Call &call) {
  if (Status s = checkLinear(call); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  Product product{call.input<Bf16>(0), call.input<Bf16>(1), call.out[0].data,
                  leading(call.in[0], contract)};
  return withEither<Bf16>(call.out[0].dtype, [&]<typename O>(O) {
    multiplyAll<O>({&product, 1}, leading(call.in[1], contract), trailing(call.in[0], contract));
    return Status();
  });
}

template <> Status grouped_matmul<Bf16>(const Call &call) {
  std::vector<Product> products;
  int64_t n = 0, k = 0;
  Status s = groupedProduct<Bf16>(
      call, [&](const Bf16 *x, const Bf16 *w, Bf16 *out, int64_t m, int64_t outer, int64_t inner) {
        if (m > 0)
          products.push_back({x, w, out, m});
        n = outer;
        k = inner;
        return Status();
      });
  if (s)
    multiplyAll<Bf16>(products, n, k);
  return s;
}

} // namespace fast
} // namespace moira::rt::host
