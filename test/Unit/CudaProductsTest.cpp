//===- CudaProductsTest.cpp - the kernels behind products, on a GPU ---------===//
// Sizes at which each kernel of a product is chosen: weights streamed for few rows a group,
// warpgroup tiles for many, with groups that end anywhere, tails of every dimension, and more tiles
// than a device has multiprocessors. Small products of all kinds are in CudaCallsTest.cpp and
// CudaExpertsTest.cpp.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaProducts : public CudaTest {
protected:
  /// bf16 rows by groups, into bf16 and f32.
  void check(const Tensor<int32_t> &groups, int64_t rows, int64_t wide, int64_t inner) {
    Mode mode{.dtype = fb::DType::bf16};
    Operand x = rounded(T(random.normal<float>({rows, inner})), mode.dtype),
            w = rounded(T(random.normal<float>({groups.shape[1], wide, inner})), mode.dtype);
    CallParams p = params({{"contract", 1}});
    SCOPED_TRACE(format("%lld rows in %lld groups, %lld by %lld", (long long)rows,
                        (long long)groups.shape[1], (long long)wide, (long long)inner));
    expectAgrees(*gpu, "grouped_matmul", {x, I(groups), w}, {T(Shape{rows, wide})}, p, mode);
    expectAgrees(*gpu, "grouped_matmul", {x, I(groups), w}, {A(Shape{rows, wide})}, p, mode);
  }
  Tensor<int32_t> none(int64_t n) { return {{1, n}, std::vector<int32_t>(static_cast<size_t>(n))}; }
  /// n groups with `rows` rows in all, less `left`, of random sizes.
  Tensor<int32_t> split(int64_t n, int64_t rows, int64_t left) {
    Tensor<int32_t> groups = none(n);
    for (int64_t i = 0; i < rows - left; ++i)
      ++groups.values[size_t(random.between(0, n - 1))];
    return groups;
  }
};

TEST_F(CudaProducts, FewRowsInEveryGroup) {
  for (int64_t rows : {1, 2, 7, 8, 9, 16, 31, 100, 300})
    for (int64_t n : {10, 64, 130})
      for (auto [wide, inner] : {std::pair<int64_t, int64_t>{40, 8}, {136, 200}, {7, 1032}}) {
        check(split(n, rows, 0), rows, wide, inner);
        check(split(n, rows, rows / 3), rows, wide, inner); // and rows past the groups
      }
}

TEST_F(CudaProducts, FewRowsOfManyColumns) {
  check(split(4, 20, 0), 20, 3000, 64); // enough blocks to make them small
  check(split(4, 60, 3), 60, 3000, 264);
  check(split(3, 90, 0), 90, 5512, 328);
}

TEST_F(CudaProducts, SomeRowsInEveryGroup) {
  // Of which a tile has up to 32, and of more in two groups.
  for (auto [n, rows] : {std::pair<int64_t, int64_t>{16, 65}, {30, 250}, {6, 256}})
    for (auto [wide, inner] : {std::pair<int64_t, int64_t>{128, 64}, {328, 200}, {72, 776}}) {
      check(split(n, rows, 0), rows, wide, inner);
      check(split(n, rows, rows / 3), rows, wide, inner);
    }
  Tensor<int32_t> groups = none(10);
  groups.values[4] = 150;
  groups.values[9] = 33;
  check(groups, 200, 328, 264);
}

TEST_F(CudaProducts, FewRowsAllInOneGroup) {
  for (int64_t rows : {5, 33, 250}) {
    Tensor<int32_t> groups = none(9);
    groups.values[6] = int32_t(rows);
    check(groups, rows, 72, 136);
  }
}

TEST_F(CudaProducts, ManyRowsInEveryGroup) {
  for (auto [n, rows] :
       {std::pair<int64_t, int64_t>{1, 33}, {1, 128}, {2, 129}, {3, 500}, {7, 900}})
    for (auto [wide, inner] :
         {std::pair<int64_t, int64_t>{8, 8}, {256, 64}, {264, 72}, {512, 200}, {760, 520}}) {
      check(split(n, rows, 0), rows, wide, inner);
      check(split(n, rows, rows / 4), rows, wide, inner);
    }
}

TEST_F(CudaProducts, MoreTilesThanMultiprocessors) {
  int64_t rows = everyNthCase() > 1 ? 600 : 3000;
  check(split(5, rows, 100), rows, 2048, 72);
  check(split(2, 2 * rows, 0), 2 * rows, 768, 40);
}

TEST_F(CudaProducts, ManyRowsInSomeGroups) {
  Tensor<int32_t> groups = none(40);
  groups.values[0] = 700;
  groups.values[17] = 1;
  groups.values[18] = 900;
  groups.values[39] = 130;
  check(groups, 1731, 296, 136);
  check(groups, 2000, 296, 136);
}

TEST_F(CudaProducts, GroupsThatLieAreReported) {
  for (int64_t rows : {20, 2000}) {
    Tensor<int32_t> groups({1, 2}, {int32_t(rows), 1});
    for (int i = 0; i < 2; ++i) {
      runOnGpu(
          *gpu, "grouped_matmul",
          {T(random.normal<float>({rows, 16})), I(groups), T(random.normal<float>({2, 24, 16}))},
          {T(Shape{rows, 24})}, params({{"contract", 1}}), {.dtype = fb::DType::bf16, .fault = 4});
      groups.values = {-1, 3};
    }
  }
}

/// Choices of tokens and their rows, sorted by expert.
struct Sorted {
  int64_t tokens, rows;
  Tensor<int32_t> groups, order, pos;
};

/// Experts' widths and how tokens choose: spread, all one expert, every third.
struct GluCase {
  int64_t n, tokens, k, f, inner;
  int kind;
};
/// Groups that end anywhere, empty ones, one token, all on one expert, tails of every dimension.
constexpr GluCase kGluCases[] = {
    {4, 1, 1, 8, 8, 0},         {4, 1, 2, 128, 64, 0},      {3, 200, 2, 128, 64, 0},
    {5, 333, 3, 136, 200, 0},   {2, 129, 1, 256, 72, 0},    {16, 700, 4, 384, 328, 0},
    {9, 500, 2, 264, 128, 1},   {40, 900, 2, 640, 64, 2},   {130, 1500, 8, 120, 520, 0},
    {256, 1200, 4, 768, 96, 0}, {7, 900, 3, 1032, 1032, 0}, {300, 400, 2, 64, 64, 0},
    {12, 60, 4, 200, 264, 1},   {20, 50, 4, 1096, 136, 0},  {6, 90, 2, 520, 72, 2}};

/// Rows past the groups in half of the cases; choices that are dropped, in some, have no row.
Sorted sortRows(Random &random, const GluCase &c, bool drops) {
  const int64_t tokens = everyNthCase() > 1 ? std::min<int64_t>(c.tokens, 300) : c.tokens;
  Tensor<int32_t> ids = random.choices(tokens, std::min(c.k, c.n), c.n);
  for (int32_t &id : ids.values)
    id = drops && random.between(0, 9) == 0 ? -1
         : c.kind == 1                      ? int32_t(c.n / 2)
         : c.kind == 2                      ? id / 3 * 3
                                            : id;
  const int64_t left = random.between(0, 1) ? random.between(1, 300) : 0;
  const int64_t rows = int64_t(ids.values.size()) + left;
  auto full = [](Shape shape, int32_t value) {
    Tensor<int32_t> tensor(std::move(shape));
    std::fill(tensor.values.begin(), tensor.values.end(), value);
    return tensor;
  };
  Sorted s{tokens, rows, full({1, c.n}, 0), full({rows}, 0), full(ids.shape, -1)};
  int32_t row = 0;
  for (int64_t e = 0; e < c.n; ++e)
    for (size_t i = 0; i < ids.values.size(); ++i)
      if (ids.values[i] == e) {
        s.order.values[size_t(row)] = int32_t(i) / int32_t(ids.shape[1]);
        s.pos.values[i] = row++;
        ++s.groups.values[size_t(e)];
      }
  return s;
}

std::string describe(const GluCase &c, const Sorted &s, const char *activation) {
  return format("%lld tokens, %lld rows in %lld groups, %lld by %lld, %s", (long long)s.tokens,
                (long long)s.rows, (long long)c.n, (long long)c.f, (long long)c.inner, activation);
}

CallParams gluParams(const GluCase &c, const char *activation) {
  CallParams p = params({}, {}, {{"activation", activation}});
  if (c.n == 9)
    p = params({}, {{"limit", 7}, {"alpha", 1.702}, {"up_shift", 1}}, {{"activation", activation}});
  return p;
}

TEST_F(CudaProducts, GluOfGatheredRows) {
  // Against the host's composition, with tokens and without, keeping the product and not.
  for (const GluCase &c : kGluCases)
    for (const char *activation : {"silu", "gelu", "gelu_tanh", "relu"}) {
      if (c.n != 5 && activation[0] != 's')
        continue; // the others once
      const Sorted sorted = sortRows(random, c, false);
      const int64_t rows = sorted.rows;
      SCOPED_TRACE(describe(c, sorted, activation));
      CallParams p = gluParams(c, activation);
      p.integers["contract"] = 1;
      Operand w = T(random.normal<float>({c.n, 2, c.f, c.inner}));
      for (Mode mode : allModes()) {
        if ((mode.dtype == fb::DType::f32 || mode.shifted) && rows * c.f * c.inner > 40000000)
          continue;
        mode.f32Error = 1e-4; // of few results of alternating sums
        std::vector<Operand> alone{T(Shape{rows, c.f})}, both = alone;
        both.push_back(T(Shape{rows, 2, c.f}));
        const bool keeps = random.between(0, 1) != 0; // of tokens, else of rows
        expectAgrees(*gpu, "grouped_glu",
                     {T(random.normal<float>({sorted.tokens, c.inner})), I(sorted.groups), w,
                      I(sorted.order)},
                     keeps ? both : alone, p, mode);
        expectAgrees(*gpu, "grouped_glu",
                     {T(random.normal<float>({rows, c.inner})), I(sorted.groups), w},
                     keeps ? alone : both, p, mode);
      }
    }
}

TEST_F(CudaProducts, GluGradOfRows) {
  auto positive = [&](Shape shape) {
    Tensor<float> tensor = random.normal<float>(std::move(shape));
    for (float &v : tensor.values)
      v = std::abs(v);
    return tensor;
  };
  for (const GluCase &c : kGluCases)
    for (const char *activation : {"silu", "gelu", "gelu_tanh", "relu"}) {
      if (c.n != 5 && activation[0] != 's')
        continue; // the others once
      const Sorted sorted = sortRows(random, c, true);
      const int64_t rows = sorted.rows;
      SCOPED_TRACE(describe(c, sorted, activation));
      // Few results must not be what is left of terms of both signs.
      auto normal = [&](Shape shape) {
        return rows < 1000 ? positive(std::move(shape)) : random.normal<float>(std::move(shape));
      };
      const Operand w = T(normal({c.n, c.inner, c.f})), z = T(normal({rows, 2, c.f})),
                    weights = A(positive(sorted.pos.shape));
      for (Mode mode : allModes()) {
        if ((mode.dtype == fb::DType::f32 || mode.shifted) && rows * c.f * c.inner > 40000000)
          continue;
        mode.f32Error = 1e-4;
        expectAgrees(*gpu, "grouped_glu_grad",
                     {T(normal({rows, c.inner})), I(sorted.groups), w, z, I(sorted.pos), weights},
                     {T(Shape{rows, 2, c.f}), T(Shape{rows, c.f}), A(Shape(sorted.pos.shape))},
                     gluParams(c, activation), mode);
      }
    }
}

TEST_F(CudaProducts, GluOfTokensThatDoNotExistIsReported) {
  for (auto dtype : {fb::DType::f32, fb::DType::bf16})
    for (int32_t bad : {-1, 200}) {
      Tensor<int32_t> groups({1, 2}, {150, 40}), order({200});
      order.values[169] = bad;
      runOnGpu(*gpu, "grouped_glu",
               {T(random.normal<float>({200, 16})), I(groups),
                T(random.normal<float>({2, 2, 24, 16})), I(order)},
               {T(Shape{200, 24})}, params({{"contract", 1}}, {}, {{"activation", "silu"}}),
               {.dtype = dtype, .fault = 5});
    }
}

TEST_F(CudaProducts, LinearOfFewAndManyRows) {
  Gpu own(false);
  Mode mode{.dtype = fb::DType::bf16};
  for (int64_t rows : {1, 3, 16, 32, 33, 70, 300})
    for (auto [wide, inner] : {std::pair<int64_t, int64_t>{24, 2048}, {2050, 512}, {9000, 64}})
      for (Gpu *device : {gpu.get(), &own}) {
        std::vector<Operand> in{T(random.normal<float>({rows, inner})),
                                T(random.normal<float>({wide, inner}))};
        expectAgrees(*device, "linear", in, {T(Shape{rows, wide})}, params({{"contract", 1}}),
                     mode);
      }
}

TEST_F(CudaProducts, LinearsInOneLaunchAreThoseOfSeveral) {
  // They have the host's values, whatever the number of weights, of columns (Qwen3's queries, keys
  // and values among them) and of rows, above 8 of which they are linears one after the other.
  for (Mode mode : allModes()) {
    mode.sums = true; // of one column there may be one result
    for (int64_t rows : {1, 3, 8, 9})
      for (const std::vector<int64_t> &columns :
           {std::vector<int64_t>{4096, 512, 512}, {17, 5}, {9000, 1, 16, 40}}) {
        const int64_t inner = 64 * random.between(1, 9);
        std::vector<Operand> in{T(random.normal<float>({rows, inner}))}, out;
        for (int64_t n : columns) {
          in.push_back(T(random.normal<float>({n, inner})));
          out.push_back(out.size() % 2 ? T(Shape{rows, n}) : A(Shape{rows, n}));
        }
        expectAgrees(*gpu, "linears", in, out, params({{"contract", 1}}), mode);
      }
  }
}

TEST_F(CudaProducts, DepthsOfSomeRowsInParts) {
  for (Mode mode : allModes()) {
    mode.sums = true;
    for (int64_t rows : {9, 31, 32})
      for (auto [columns, inner] :
           {std::pair<int64_t, int64_t>{1032, 2056}, {1090, 520}, {1032, 4104}})
        for (bool wide : {false, true}) {
          const Operand out = wide ? A(Shape{rows, columns}) : T(Shape{rows, columns});
          expectAgrees(
              *gpu, "linear",
              {T(random.normal<float>({rows, inner})), T(random.normal<float>({columns, inner}))},
              {out}, params({{"contract", 1}}), mode);
        }
  }
}

TEST_F(CudaProducts, FewF32RowsOfARouter) {
  // 33 rows or 1025 columns are a general product's.
  Mode mode{.sums = true};
  auto check = [&](int64_t rows, int64_t inner, int64_t columns) {
    expectAgrees(
        *gpu, "linear",
        {A(random.normal<float>({rows, inner})), A(random.normal<float>({columns, inner}))},
        {A(Shape{rows, columns})}, params({{"contract", 1}}), mode);
  };
  for (int64_t rows : {1, 2, 8})
    for (int64_t inner : {4, 60, 2048, 5120})
      for (int64_t columns : {1, 128, 1024, 1025})
        check(rows, inner, columns);
  for (int64_t rows : {9, 31, 32, 33})
    for (int64_t columns : {1, 64, 130})
      check(rows, 2052, columns);
}

} // namespace
