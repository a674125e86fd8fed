//===- RowTile.cpp - dot products of a few rows with a few rows -------------===//
// One struct an element type and instruction set. The tile's size is a template parameter, so that
// all sums stay in registers.
//===----------------------------------------------------------------------===//
#include "RowTile.h"

#include <algorithm>
#include <array>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MOIRA_TILE_INLINE MOIRA_TILE_TARGET [[gnu::always_inline]] inline

namespace moira::rt::host {
namespace {

/// How far ahead of its loads a stream fetches, in bytes.
constexpr int64_t kStreamAhead = 3072;

#define MOIRA_TILE_TARGET
/// Any machine: eight sums side by side, which the compiler may vectorise.
template <typename S> struct Portable {
  using Element = S;
  static constexpr int64_t lanes = 8;
  static constexpr int columns = 4;
  struct Vector {
    float v[lanes];
  };
  using Operand = Vector;
  static Vector zero() { return {}; }
  static Operand load(const S *from) {
    Operand o;
    for (int64_t l = 0; l < lanes; ++l)
      o.v[l] = float(from[l]);
    return o;
  }
  static void add(Vector &sum, const Operand &a, const Operand &b) {
    for (int64_t l = 0; l < lanes; ++l)
      sum.v[l] += a.v[l] * b.v[l];
  }
  static void sum4(const Vector *from, float *sums) {
    for (int i = 0; i < 4; ++i) {
      sums[i] = 0;
      for (float part : from[i].v)
        sums[i] += part;
    }
  }
#include "RowTileLoop.inc"
};
#undef MOIRA_TILE_TARGET

#if defined(__x86_64__)

#define MOIRA_TILE_TARGET [[gnu::target("avx2,fma")]]
struct Avx2 {
  using Vector = __m256;
  MOIRA_TILE_INLINE static Vector zero() { return _mm256_setzero_ps(); }
  MOIRA_TILE_INLINE static void sum4(const Vector *from, float *sums) {
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(from[0], from[1]), // each half: one of each four
                                  _mm256_hadd_ps(from[2], from[3]));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
  }
};

struct Avx2F32 : Avx2 {
  using Element = float;
  using Operand = __m256;
  static constexpr int64_t lanes = 8;
  static constexpr int columns = 3;
  MOIRA_TILE_INLINE static Operand load(const float *from) { return _mm256_loadu_ps(from); }
  MOIRA_TILE_INLINE static void add(Vector &sum, Operand a, Operand b) {
    sum = _mm256_fmadd_ps(a, b, sum);
  }
#include "RowTileLoop.inc"
};

/// Sixteen values a load: the odd ones are floats once the even half is masked off, the even ones
/// once they are shifted up.
struct Avx2Bf16 : Avx2 {
  using Element = Bf16;
  struct Operand {
    __m256 even, odd;
  };
  static constexpr int64_t lanes = 16;
  static constexpr int columns = 2;
  MOIRA_TILE_INLINE static Operand load(const Bf16 *from) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000))))};
  }
  MOIRA_TILE_INLINE static void add(Vector &sum, Operand a, Operand b) {
    sum = _mm256_fmadd_ps(a.odd, b.odd, _mm256_fmadd_ps(a.even, b.even, sum));
  }
#include "RowTileLoop.inc"
};
#undef MOIRA_TILE_TARGET

#define MOIRA_TILE_TARGET [[gnu::target("avx512f,avx512bw,avx512dq")]]
struct Avx512 {
  using Vector = __m512;
  MOIRA_TILE_INLINE static Vector zero() { return _mm512_setzero_ps(); }
  MOIRA_TILE_INLINE static void sum4(const Vector *from, float *sums) {
    // Sums of pairs, then of fours, inside each quarter; then over the quarters.
    __m512 low =
        _mm512_add_ps(_mm512_unpacklo_ps(from[0], from[1]), _mm512_unpackhi_ps(from[0], from[1]));
    __m512 high =
        _mm512_add_ps(_mm512_unpacklo_ps(from[2], from[3]), _mm512_unpackhi_ps(from[2], from[3]));
    __m512 fours = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(low), _mm512_castps_pd(high))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(low), _mm512_castps_pd(high))));
    __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(fours), _mm512_extractf32x8_ps(fours, 1));
    _mm_storeu_ps(sums,
                  _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
  }
};

struct Avx512F32 : Avx512 {
  using Element = float;
  using Operand = __m512;
  static constexpr int64_t lanes = 16;
  static constexpr int columns = 6;
  MOIRA_TILE_INLINE static Operand load(const float *from) { return _mm512_loadu_ps(from); }
  MOIRA_TILE_INLINE static void add(Vector &sum, Operand a, Operand b) {
    sum = _mm512_fmadd_ps(a, b, sum);
  }
#include "RowTileLoop.inc"
};

/// As Avx2Bf16.
struct Avx512Widened : Avx512 {
  using Element = Bf16;
  struct Operand {
    __m512 even, odd;
  };
  static constexpr int64_t lanes = 32;
  static constexpr int columns = 4;
  MOIRA_TILE_INLINE static Operand load(const Bf16 *from) {
    __m512i v = _mm512_loadu_si512(from);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(v, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(int(0xffff0000))))};
  }
  MOIRA_TILE_INLINE static void add(Vector &sum, Operand a, Operand b) {
    sum = _mm512_fmadd_ps(a.odd, b.odd, _mm512_fmadd_ps(a.even, b.even, sum));
  }
#include "RowTileLoop.inc"
};
#undef MOIRA_TILE_TARGET

#define MOIRA_TILE_TARGET [[gnu::target("avx512f,avx512bw,avx512dq,avx512bf16")]]
/// Machines with an instruction for pairs of bf16 products.
struct Avx512Bf16 : Avx512 {
  using Element = Bf16;
  using Operand = __m512bh;
  static constexpr int64_t lanes = 32;
  static constexpr int columns = 6;
  MOIRA_TILE_INLINE static Operand load(const Bf16 *from) {
    return (__m512bh)_mm512_loadu_si512(from);
  }
  MOIRA_TILE_INLINE static void add(Vector &sum, Operand a, Operand b) {
    sum = _mm512_dpbf16_ps(sum, a, b);
  }
#include "RowTileLoop.inc"
};
#undef MOIRA_TILE_TARGET

#endif

template <typename S>
using Sized = void (*)(const S *x, const S *w, int64_t stride, int64_t k, Ahead ahead, float *sums);

/// Calls the function for a size, which is sizes[(rows - 1) * most + columns - 1].
template <typename S, auto &sizes, int most>
void choose(const S *x, int rows, const S *w, int64_t stride, int columns, int64_t k, Ahead ahead,
            float *sums) {
  sizes[size_t((rows - 1) * most + columns - 1)](x, w, stride, k, ahead, sums);
}

template <typename Kind, int... at> struct Sizes {
  using S = typename Kind::Element;
  static constexpr std::array<Sized<S>, sizeof...(at)> block{
      Kind::template block<at / Kind::columns + 1, at % Kind::columns + 1>...},
      stream{Kind::template stream<at / Kind::columns + 1, at % Kind::columns + 1>...};
};

template <typename Kind> RowTileKind<typename Kind::Element> kind(const char *name) {
  static_assert(Kind::columns <= kTileColumns && kTileLanes % Kind::lanes == 0);
  return [&]<int... at>(std::integer_sequence<int, at...>) {
    using All = Sizes<Kind, at...>;
    using S = typename Kind::Element;
    return RowTileKind<S>{name, choose<S, All::block, Kind::columns>,
                          choose<S, All::stream, Kind::columns>, Kind::columns};
  }(std::make_integer_sequence<int, kTileRows * Kind::columns>());
}

} // namespace

template <typename S> void packRows(const S *x, int64_t stride, int rows, int64_t k, S *packed) {
  for (int64_t c = 0; c < k; c += kTileLanes)
    for (int i = 0; i < rows; ++i, packed += kTileLanes) {
      int64_t n = std::min(kTileLanes, k - c);
      std::fill(std::copy_n(x + i * stride + c, n, packed), packed + kTileLanes, S(0));
    }
}
template void packRows(const float *, int64_t, int, int64_t, float *);
template void packRows(const Bf16 *, int64_t, int, int64_t, Bf16 *);

template <typename S> const std::vector<RowTileKind<S>> &rowTiles() {
  static const std::vector<RowTileKind<S>> kinds = [] {
    std::vector<RowTileKind<S>> found;
#if defined(__x86_64__)
    constexpr bool f32 = std::is_same_v<S, float>;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq")) {
      if constexpr (f32) {
        found.push_back(kind<Avx512F32>("avx512"));
      } else {
        if (__builtin_cpu_supports("avx512bf16"))
          found.push_back(kind<Avx512Bf16>("avx512_bf16"));
        found.push_back(kind<Avx512Widened>("avx512"));
      }
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back(kind<std::conditional_t<f32, Avx2F32, Avx2Bf16>>("avx2"));
#endif
    found.push_back(kind<Portable<S>>("portable"));
    return found;
  }();
  return kinds;
}
template const std::vector<RowTileKind<float>> &rowTiles();
template const std::vector<RowTileKind<Bf16>> &rowTiles();

} // namespace moira::rt::host
