//===- RowProduct.cpp - linear and grouped_matmul ---------------------------===//
// Products of rows with weights, by tiles. Blocks of weights are shared out among threads; a tile
// of weights meets all rows of its product while it is in the nearest cache, so that weights are
// read from memory once, and are never copied. Sums are those of RowTile.h, whatever the number of
// rows.
//===----------------------------------------------------------------------===//
#include "RowProduct.h"
#include "GroupedProduct.h"
#include "RowTile.h"
#include "moira/rt/HostThreads.h"

#include <algorithm>
#include <new>

namespace moira::rt::host {
namespace {

/// Bytes of the weights of one task, and of the rows that a tile of weights meets in it: half of a
/// small second-level cache.
constexpr int64_t kTaskBytes = 256 << 10, kRowsBytes = 256 << 10;
/// Multiplications below which workers are not worth their wait.
constexpr int64_t kSharedWork = 1 << 16;

/// Memory for packed rows: aligned to a cache line, not initialised.
template <typename S> class PackedRows {
public:
  explicit PackedRows(int64_t size)
      : values(static_cast<S *>(::operator new(size_t(size) * sizeof(S), kAlignment))) {}
  PackedRows(const PackedRows &) = delete;
  ~PackedRows() { ::operator delete(values, kAlignment); }
  S *data() { return values; }

private:
  static constexpr std::align_val_t kAlignment{64};
  S *values;
};

/// One product: out[m,n] = sum_k x[m,k] * w[n,k], all contiguous.
template <typename S, typename O> struct RowProduct {
  const S *x, *w;
  O *out;
  int64_t m;
};

/// Some rows of one product, packed, against some of its weights.
template <typename S, typename O> struct Task {
  const S *packed;
  int64_t m;
  const S *w;
  int64_t columns;
  O *out; // of the first row and column
};

template <typename S, typename O> void run(const Task<S, O> &task, int64_t n, int64_t k) {
  const RowTileKind<S> &tile = rowTiles<S>().front();
  float sums[kTileSums];
  for (int64_t j = 0; j < task.columns; j += tile.columns) {
    int columns = int(std::min<int64_t>(tile.columns, task.columns - j));
    const S *w = task.w + j * k, *packed = task.packed;
    // The next tile's weights, of so many bytes, are fetched while rows meet this one's; what lies
    // behind this task is another thread's.
    int64_t bytes = j + 2 * columns <= task.columns ? columns * k * int64_t(sizeof(S)) : 0;
    auto *next = reinterpret_cast<const char *>(w + columns * k), *nextEnd = next + bytes;
    int64_t steps = std::max<int64_t>(1, k / kTileLanes * ((task.m + kTileRows - 1) / kTileRows));
    int lines = int((bytes / 64 + steps - 1) / steps);
    for (int64_t i = 0; i < task.m; i += kTileRows) {
      int rows = int(std::min<int64_t>(kTileRows, task.m - i));
      (task.m <= kTileRows ? tile.stream : tile.block)(packed, rows, w, k, columns, k,
                                                       {next, next < nextEnd ? lines : 0}, sums);
      packed += packedSize(rows, k);
      next += lines * 64 * (k / kTileLanes);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c)
          task.out[(i + r) * n + j + c] = O(sums[r * columns + c]);
    }
  }
}

/// All products, which have one n and k, on this thread and its workers.
template <typename S, typename O>
void multiplyRows(std::span<const RowProduct<S, O>> products, int64_t n, int64_t k) {
  const RowTileKind<S> &tile = rowTiles<S>().front();
  int64_t total = 0;
  for (const RowProduct<S, O> &p : products)
    total += p.m;
  // Rows of a tile lie together whatever their number, so that rows take packedSize(1) each.
  int64_t rowSize = packedSize(1, k), rowBytes = std::max<int64_t>(1, k * int64_t(sizeof(S)));
  PackedRows<S> packed(total * rowSize);
  int64_t columns = std::max<int64_t>(1, kTaskBytes / rowBytes / tile.columns) * tile.columns;
  int64_t rows = std::max<int64_t>(1, kRowsBytes / rowBytes / kTileRows) * kTileRows;
  std::vector<Task<S, O>> tasks;
  S *at = packed.data();
  for (const RowProduct<S, O> &p : products) {
    // All rows of some weights before the next weights.
    for (int64_t j = 0; j < n; j += columns)
      for (int64_t i = 0; i < p.m; i += rows)
        tasks.push_back({at + i * rowSize, std::min(rows, p.m - i), p.w + j * k,
                         std::min(columns, n - j), p.out + i * n + j});
    for (int64_t i = 0; i < p.m; i += kTileRows) {
      int count = int(std::min<int64_t>(kTileRows, p.m - i));
      packRows(p.x + i * k, k, count, k, at);
      at += count * rowSize;
    }
  }
  auto one = [&](int64_t i) { run(tasks[size_t(i)], n, k); };
  if (total * n * k >= kSharedWork)
    return parallelFor(int64_t(tasks.size()), one);
  for (size_t i = 0; i < tasks.size(); ++i)
    one(int64_t(i));
}

} // namespace

void multiplyTransposed(const float *x, const float *w, float *out, int64_t m, int64_t n,
                        int64_t k) {
  constexpr int64_t block = 32; // of lines of w and of its copy that are near at a time
  std::vector<float> transposed(size_t(n * k));
  parallelFor((k + block - 1) / block, [&](int64_t task) {
    int64_t from = task * block, to = std::min(k, from + block);
    for (int64_t j = 0; j < n; j += block)
      for (int64_t c = from; c < to; ++c)
        for (int64_t i = j; i < std::min(n, j + block); ++i)
          transposed[size_t(c * n + i)] = w[i * k + c];
  });
  RowProduct<float, float> product{x, transposed.data(), out, m};
  multiplyRows<float, float>({&product, 1}, k, n);
}

namespace fast {

template <typename S> Status linear(const Call &call) {
  if (Status s = checkLinear(call); !s)
    return s;
  int64_t contract = call.params.integer("contract");
  return withEither<S>(call.out[0].dtype, [&]<typename O>(O) {
    RowProduct<S, O> product{call.input<S>(0), call.input<S>(1), call.output<O>(0),
                             leading(call.in[0], contract)};
    multiplyRows<S, O>({&product, 1}, leading(call.in[1], contract),
                       trailing(call.in[0], contract));
    return Status();
  });
}
template Status linear<float>(const Call &);
template Status linear<Bf16>(const Call &);

template <typename S> Status linears(const Call &call) { return eachLinear(call, linear<S>); }
template Status linears<float>(const Call &);
template Status linears<Bf16>(const Call &);

template <typename S> Status grouped_matmul(const Call &call) {
  std::vector<RowProduct<S, S>> products;
  int64_t n = 0, k = 0;
  Status s = groupedProduct<S>(
      call, [&](const S *x, const S *w, S *out, int64_t m, int64_t outer, int64_t inner) {
        if (m > 0)
          products.push_back({x, w, out, m});
        n = outer;
        k = inner;
        return Status();
      });
  if (s)
    multiplyRows<S, S>(products, n, k);
  return s;
}
template Status grouped_matmul<float>(const Call &);
template Status grouped_matmul<Bf16>(const Call &);

} // namespace fast
} // namespace moira::rt::host
