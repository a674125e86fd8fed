//===- Bf16Tile.cpp - small products of bf16 rows ---------------------------===//
// One function an instruction set, each a template over the tile's size so that all sums stay in
// registers.
//===----------------------------------------------------------------------===//
#include "Bf16Tile.h"

#include <array>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moira::rt::host {
namespace {

/// Any machine: eight sums side by side, which the compiler may vectorise.
struct Portable {
  static constexpr int columns = 4;
  template <int m, int n> static void run(const Bf16 *x, const Bf16 *w, int64_t k, float *sums) {
    constexpr int lanes = 8;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        float part[lanes] = {};
        int64_t c = 0;
        for (; c + lanes <= k; c += lanes)
          for (int l = 0; l < lanes; ++l)
            part[l] += float(x[i * k + c + l]) * float(w[j * k + c + l]);
        for (int l = 0; c < k; ++c, ++l)
          part[l] += float(x[i * k + c]) * float(w[j * k + c]);
        float sum = 0;
        for (float p : part)
          sum += p;
        sums[i * kTileColumns + j] = sum;
      }
  }
};

#if defined(__x86_64__)

/// Sixteen values a load: the odd ones are floats once the even half is masked off, the even ones
/// once they are shifted up.
struct Avx2 {
  static constexpr int columns = 3;
  template <int m, int n>
  [[gnu::target("avx2,fma")]] static void run(const Bf16 *x, const Bf16 *w, int64_t k,
                                              float *sums) {
    constexpr int64_t lanes = 16;
    const __m256i upper = _mm256_set1_epi32(int(0xffff0000));
    __m256 total[m][n];
    for (auto &row : total)
      for (__m256 &t : row)
        t = _mm256_setzero_ps();
    alignas(32) Bf16 xEnd[m][lanes], wEnd[n][lanes]; // what a load would read past the end
    for (int64_t c = 0; c < k; c += lanes) {
      bool whole = c + lanes <= k;
      if (!whole)
        for (int64_t l = 0; l < lanes; ++l) {
          bool inside = c + l < k;
          for (int i = 0; i < m; ++i)
            xEnd[i][l] = inside ? x[i * k + c + l] : Bf16(0);
          for (int j = 0; j < n; ++j)
            wEnd[j][l] = inside ? w[j * k + c + l] : Bf16(0);
        }
      __m256 xEven[m], xOdd[m];
      for (int i = 0; i < m; ++i) {
        __m256i v =
            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(whole ? x + i * k + c : xEnd[i]));
        xEven[i] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
        xOdd[i] = _mm256_castsi256_ps(_mm256_and_si256(v, upper));
      }
      for (int j = 0; j < n; ++j) {
        __m256i v =
            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(whole ? w + j * k + c : wEnd[j]));
        __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
        __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(v, upper));
        for (int i = 0; i < m; ++i)
          total[i][j] = _mm256_fmadd_ps(xOdd[i], odd, _mm256_fmadd_ps(xEven[i], even, total[i][j]));
      }
    }
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        alignas(32) float part[8];
        _mm256_store_ps(part, total[i][j]);
        sums[i * kTileColumns + j] = ((part[0] + part[4]) + (part[2] + part[6])) +
                                     ((part[1] + part[5]) + (part[3] + part[7]));
      }
  }
};

/// The same with 32 values a load.
struct Avx512 {
  static constexpr int columns = 4;
  template <int m, int n>
  [[gnu::target("avx512f,avx512bw")]] static void run(const Bf16 *x, const Bf16 *w, int64_t k,
                                                      float *sums) {
    constexpr int64_t lanes = 32;
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
    __m512 total[m][n];
    for (auto &row : total)
      for (__m512 &t : row)
        t = _mm512_setzero_ps();
    for (int64_t c = 0; c < k; c += lanes) {
      __mmask32 inside = k - c >= lanes ? ~0u : (1u << (k - c)) - 1;
      __m512 xEven[m], xOdd[m];
      for (int i = 0; i < m; ++i) {
        __m512i v = _mm512_maskz_loadu_epi16(inside, x + i * k + c);
        xEven[i] = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        xOdd[i] = _mm512_castsi512_ps(_mm512_and_si512(v, upper));
      }
      for (int j = 0; j < n; ++j) {
        __m512i v = _mm512_maskz_loadu_epi16(inside, w + j * k + c);
        __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(v, upper));
        for (int i = 0; i < m; ++i)
          total[i][j] = _mm512_fmadd_ps(xOdd[i], odd, _mm512_fmadd_ps(xEven[i], even, total[i][j]));
      }
    }
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j)
        sums[i * kTileColumns + j] = _mm512_reduce_add_ps(total[i][j]);
  }
};

/// Machines with an instruction for pairs of bf16 products.
struct Avx512Bf16 {
  static constexpr int columns = 6;
  template <int m, int n>
  [[gnu::target("avx512f,avx512bw,avx512bf16")]] static void run(const Bf16 *x, const Bf16 *w,
                                                                 int64_t k, float *sums) {
    constexpr int64_t lanes = 32;
    __m512 total[m][n];
    for (auto &row : total)
      for (__m512 &t : row)
        t = _mm512_setzero_ps();
    for (int64_t c = 0; c < k; c += lanes) {
      __mmask32 inside = k - c >= lanes ? ~0u : (1u << (k - c)) - 1;
      __m512bh weights[n];
      for (int j = 0; j < n; ++j)
        weights[j] = (__m512bh)_mm512_maskz_loadu_epi16(inside, w + j * k + c);
      for (int i = 0; i < m; ++i) {
        auto v = (__m512bh)_mm512_maskz_loadu_epi16(inside, x + i * k + c);
        for (int j = 0; j < n; ++j)
          total[i][j] = _mm512_dpbf16_ps(total[i][j], v, weights[j]);
      }
    }
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j)
        sums[i * kTileColumns + j] = _mm512_reduce_add_ps(total[i][j]);
  }
};

#endif

using Sized = void (*)(const Bf16 *x, const Bf16 *w, int64_t k, float *sums);

template <typename Kind>
void multiply(const Bf16 *x, int rows, const Bf16 *w, int columns, int64_t k, float *sums) {
  static constexpr auto sizes = []<int... at>(std::integer_sequence<int, at...>) {
    return std::array<Sized, sizeof...(at)>{
        Kind::template run<at / Kind::columns + 1, at % Kind::columns + 1>...};
  }(std::make_integer_sequence<int, kTileRows * Kind::columns>());
  for (int j = 0; j < columns; j += Kind::columns) {
    int n = columns - j < Kind::columns ? columns - j : Kind::columns;
    sizes[size_t((rows - 1) * Kind::columns + n - 1)](x, w + j * k, k, sums + j);
  }
}

} // namespace

const std::vector<Bf16TileKind> &allBf16Tiles() {
  static const std::vector<Bf16TileKind> kinds = [] {
    std::vector<Bf16TileKind> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (wide && __builtin_cpu_supports("avx512bf16"))
      found.push_back({"avx512_bf16", multiply<Avx512Bf16>, Avx512Bf16::columns});
    if (wide)
      found.push_back({"avx512", multiply<Avx512>, Avx512::columns});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back({"avx2", multiply<Avx2>, Avx2::columns});
#endif
    found.push_back({"portable", multiply<Portable>, Portable::columns});
    return found;
  }();
  return kinds;
}

const Bf16TileKind &bf16Tile() { return allBf16Tiles().front(); }

} // namespace moira::rt::host
