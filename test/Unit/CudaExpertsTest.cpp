//===- CudaExpertsTest.cpp - routing, expert rows, copies on the GPU --------===//
// The gate chooses what the host chooses; rows land where the host puts them, with overflow, empty
// experts and everything on one expert; data out of range sets the error flag and touches nothing;
// and a captured sequence of calls replays to the same bits.
//===----------------------------------------------------------------------===//
#include "CudaTesting.h"

#include <numeric>

using namespace moira::rt;
namespace fb = moira::fb;
using namespace moira::rt::testing;

namespace {

class CudaExperts : public CudaTest {};

/// Logits of which many are equal.
Tensor<float> tiedLogits(Random &random, Shape shape) {
  Tensor<float> t(std::move(shape));
  for (float &v : t.values)
    v = float(random.between(-4, 4)) / 2;
  return t;
}

TEST_F(CudaExperts, RouteChoosesWhatTheHostChooses) {
  for (Mode mode : allModes()) {
    mode.hostFloat = true;
    for (const char *score : {"softmax", "sigmoid"})
      for (const char *order : {"score_topk", "topk_score"})
        for (const char *renorm : {"none", "sum"})
          for (auto [experts, k] : {std::pair<int64_t, int64_t>{1, 1},
                                    {8, 2},
                                    {60, 4},
                                    {64, 8},
                                    {128, 8},
                                    {200, 32},
                                    {256, 8},
                                    {1000, 5},
                                    {1024, 32}}) {
            int64_t tokens = random.between(1, 60);
            CallParams p = params({}, {{"scale", 2.5}},
                                  {{"score", score}, {"order", order}, {"renorm", renorm}});
            for (bool ties : {false, true})
              expectAgrees(*gpu, "route",
                           {T(ties ? tiedLogits(random, {tokens, experts})
                                   : random.normal<float>({tokens, experts}))},
                           {I(Shape{tokens, k}), A(Shape{tokens, k})}, p, mode);
          }
  }
}

TEST_F(CudaExperts, RouteOfManyTokensIsThatOfFew) {
  // Equal logits and clearly different ones, for the host; any, and some that are no number, to the
  // bit as in two calls of fewer tokens, which another kernel makes.
  for (Mode mode : allModes()) {
    mode.hostFloat = true;
    for (const char *renorm : {"none", "sum"})
      for (auto [experts, k] : {std::pair<int64_t, int64_t>{1, 1},
                                {8, 2},
                                {31, 31},
                                {60, 4},
                                {64, 8},
                                {128, 8},
                                {127, 32}}) {
        const int64_t tokens = random.between(2048, 2060);
        const CallParams p =
            params({}, {{"scale", 2.5}, {"renorm_epsilon", 1e-3}},
                   {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", renorm}});
        const std::vector<Operand> out{I(Shape{tokens, k}), A(Shape{tokens, k})};
        expectAgrees(*gpu, "route", {T(tiedLogits(random, {tokens, experts}))}, out, p, mode);
        Tensor<float> logits = random.normal<float>({tokens, experts});
        for (int i = 0; i < 40; ++i)
          logits.values[size_t(random.between(0, tokens * experts - 1))] = i % 3 == 0 ? NAN
                                                                           : i % 3 == 1
                                                                               ? -INFINITY
                                                                               : -200.0f * float(i);
        if (isLeftOut())
          continue;
        const std::vector<Operand> many = runOnGpu(*gpu, "route", {T(logits)}, out, p, mode);
        std::vector<int32_t> ids;
        std::vector<float> weights;
        for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 1024}, {1024, tokens}}) {
          const auto first = logits.values.begin();
          const Tensor<float> part({end - begin, experts},
                                   {first + begin * experts, first + end * experts});
          const Shape made{end - begin, k};
          const std::vector<Operand> few =
              runOnGpu(*gpu, "route", {T(part)}, {I(made), A(made)}, p, mode);
          const auto &fewIds = few[0].ints().values;
          const auto &fewWeights = few[1].floats().values;
          ids.insert(ids.end(), fewIds.begin(), fewIds.end());
          weights.insert(weights.end(), fewWeights.begin(), fewWeights.end());
        }
        EXPECT_EQ(ids, many[0].ints().values);
        for (size_t i = 0; i < weights.size(); ++i) {
          const float a = weights[i], b = many[1].floats().values[i];
          ASSERT_TRUE(a == b || (std::isnan(a) && std::isnan(b))) << i << ": " << a << ", " << b;
        }
      }
  }
}

TEST_F(CudaExperts, RouteRanksWhatIsNoNumberLast) {
  Tensor<float> logits({2, 4}, {NAN, 1, NAN, 2, NAN, NAN, NAN, NAN});
  std::vector<Operand> got = runOnGpu(
      *gpu, "route", {T(logits)}, {I(Shape{2, 3}), A(Shape{2, 3})},
      params({}, {}, {{"score", "sigmoid"}, {"order", "score_topk"}, {"renorm", "none"}}), {});
  EXPECT_EQ(got[0].ints().values, (std::vector<int32_t>{3, 1, 0, 0, 1, 2}));
}

TEST_F(CudaExperts, RouteTakesForcedChoicesAndGivesGaps) {
  Tensor<float> logits = random.normal<float>({40, 60});
  Tensor<int32_t> forced = random.choices(40, 4, 60);
  std::vector<float> gaps;
  CallParams p = params({}, {}, {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}});
  Tensor<int32_t> ids({40, 4});
  Tensor<float> weights({40, 4});
  RouteHooks hooks{forced.values, &gaps};
  ASSERT_TRUE(call("route", CallFlavor::reference, {logits}, {ids, weights}, p, &hooks).ok());

  OnDevice forcedThere(I(forced), fb::DType::f32, false),
      gapsThere(A(Shape{40}), fb::DType::f32, false);
  gpu->context.forcedIds = static_cast<const int32_t *>(forcedThere.ref().data);
  gpu->context.gaps = static_cast<float *>(gapsThere.ref().data);
  std::vector<Operand> got =
      runOnGpu(*gpu, "route", {T(logits)}, {I(Shape{40, 4}), A(Shape{40, 4})}, p, {});
  EXPECT_EQ(got[0].ints().values, ids.values);
  EXPECT_LE(normError(got[1].floats(), {weights.values.begin(), weights.values.end()}), 1e-6);
  EXPECT_LE(normError(gapsThere.read(A(Shape{40})).floats(), {gaps.begin(), gaps.end()}), 1e-5);

  forced.values[7] = 60;
  OnDevice badThere(I(forced), fb::DType::f32, false);
  gpu->context.forcedIds = static_cast<const int32_t *>(badThere.ref().data);
  runOnGpu(*gpu, "route", {T(logits)}, {I(Shape{40, 4}), A(Shape{40, 4})}, p, {.fault = 2});
  EXPECT_NE(cuda::describeErrorFlag(2).find("forced routing"), std::string::npos);
}

/// Expert ids: spread, all on one expert, or only every third expert used.
Tensor<int32_t> someIds(Random &random, int64_t tokens, int64_t k, int64_t experts, int kind) {
  Tensor<int32_t> ids = random.ids({tokens, k}, 0, experts - 1);
  for (int32_t &id : ids.values)
    id = kind == 1 ? int32_t(experts - 1) : kind == 2 ? id / 3 * 3 : id;
  return ids;
}

TEST_F(CudaExperts, SelectSortsStably) {
  for (Mode mode : allModes())
    for (int i = 0; i < 24; ++i) {
      mode.exact = true;
      int64_t tokens = i == 0   ? 1
                       : i == 1 ? 0
                                : random.between(1, 700),
              k = random.between(1, 6), experts = random.between(1, 70),
              local = random.between(1, experts), first = random.between(0, experts - local),
              width = i == 9 ? 1104 : random.between(1, 40);
      // Room for all, for some, for none.
      int64_t rows = i % 3 == 0 ? tokens * k : i % 3 == 1 ? random.between(0, tokens * k) : 1;
      const Operand ids = I(someIds(random, tokens, k, experts, i / 3 % 3)),
                    need = I(random.ids({1}, 0, 100));
      const CallParams p = params({{"experts", experts}, {"expert_offset", first}});
      expectAgrees(*gpu, "select", {T(random.normal<float>({tokens, width})), ids, need},
                   {T(Shape{rows, width}), I(Shape{1, local}), I(Shape{tokens, k}), I(Shape{1})}, p,
                   mode);
      expectAgrees(*gpu, "select_tokens", {ids, need},
                   {I(Shape{rows}), I(Shape{1, local}), I(Shape{tokens, k}), I(Shape{1})}, p, mode);
    }
}

TEST_F(CudaExperts, PackRegroupAndUngroup) {
  for (Mode mode : allModes())
    for (int i = 0; i < 24; ++i) {
      mode.exact = true;
      int64_t slots = random.between(1, 5), local = random.between(1, 20),
              segments = random.between(1, 4), k = random.between(1, 5),
              tokens = segments * random.between(1, 150), width = random.between(1, 40);
      int64_t bound = i % 2 ? tokens * k : random.between(1, tokens * k),
              columns = local * segments, experts = slots * local;
      expectAgrees(*gpu, "pack",
                   {T(random.normal<float>({segments, tokens / segments, width})),
                    I(Tensor<int32_t>({segments, tokens / segments, k},
                                      someIds(random, tokens, k, experts, i % 3).values)),
                    I(random.ids({1}, 0, 100))},
                   {T(Shape{1, slots, bound, width}), I(Shape{1, slots, columns}),
                    I(Shape{segments, tokens / segments, k}), I(Shape{1})},
                   params({{"experts", experts}, {"segments", segments}}), mode);

      // Counts that fit the slots, many of them zero.
      Tensor<int32_t> counts({slots, 1, columns});
      for (int64_t p = 0; p < slots; ++p) {
        int64_t left = bound;
        for (int64_t c = 0; c < columns; ++c) {
          int64_t n = random.between(0, 2) ? random.between(0, std::min<int64_t>(left, 9)) : 0;
          counts.values[size_t(p * columns + c)] = int32_t(n);
          left -= n;
        }
      }
      int64_t rows = slots * bound;
      CallParams p = params({{"segments", segments}});
      expectAgrees(*gpu, "regroup", {T(random.normal<float>({slots, 1, bound, width})), I(counts)},
                   {T(Shape{rows, width}), I(Shape{1, local})}, p, mode);
      expectAgrees(*gpu, "ungroup", {T(random.normal<float>({rows, width})), I(counts)},
                   {T(Shape{slots, 1, bound, width})}, p, mode);
    }
}

TEST_F(CudaExperts, PackOfManyTokens) {
  // More rows than the workspace holds counts of short runs for.
  Mode mode{.exact = true};
  int64_t tokens = everyNthCase() > 1 ? 6000 : 60000, k = 8, experts = 512, segments = 60;
  expectAgrees(*gpu, "pack",
               {T(random.normal<float>({tokens, 2})), I(random.ids({tokens, k}, 0, experts - 1)),
                I(Tensor<int32_t>({1}, {0}))},
               {T(Shape{1, 4, tokens * 2 + 11, 2}), I(Shape{1, 4, experts / 4 * segments}),
                I(Shape{tokens, k}), I(Shape{1})},
               params({{"experts", experts}, {"segments", segments}}), mode);
}

TEST_F(CudaExperts, ManyRowsGoToFewBinsAndToMany) {
  // More bins than a block counts are sorted by other kernels. Weighed or not, some dropped.
  for (Mode mode : allModes())
    for (int i = 0; i < 8; ++i) {
      mode.hostFloat = true;
      const bool manyBins = i % 2, weighed = i / 2 % 2;
      const int64_t tokens = 4 * random.between(100, 200), k = random.between(6, 8),
                    experts = 4 * (manyBins ? random.between(300, 400)
                                            : random.between(1, i % 4 ? 20 : 250)),
                    local = random.between(manyBins ? 1025 : 1, experts),
                    width = random.between(1, 40), bound = random.between(1, tokens * k);
      std::vector<Operand> in{T(random.normal<float>({tokens, width})),
                              I(random.ids({tokens, k}, -1, experts - 1)),
                              I(random.ids({1}, 0, 100))};
      if (weighed)
        in.push_back(A(random.normal<float>({tokens, k})));
      const CallParams p =
          params({{"experts", experts}, {"expert_offset", random.between(0, experts - local)}});
      expectAgrees(*gpu, "select", in,
                   {T(Shape{bound, width}), I(Shape{1, local}), I(Shape{tokens, k}), I(Shape{1})},
                   p, mode);
      expectAgrees(*gpu, "select_tokens", {in[1], in[2]},
                   {I(Shape{bound}), I(Shape{1, local}), I(Shape{tokens, k}), I(Shape{1})}, p,
                   mode);
      expectAgrees(*gpu, "pack", in,
                   {T(Shape{1, 4, bound, width}), I(Shape{1, 4, experts / 2}), I(Shape{tokens, k}),
                    I(Shape{1})},
                   params({{"experts", experts}, {"segments", 2}}), mode);
    }
}

TEST_F(CudaExperts, CombineAddsInOrder) {
  for (Mode mode : allModes())
    for (int i = 0; i < 12; ++i) {
      // Above 8 choices another kernel does it.
      int64_t tokens = i / 2 == 1 ? 600 : random.between(1, 80),
              k = i % 5 ? random.between(1, 8) : random.between(9, 20),
              rows = random.between(1, 200),
              width = i == 2  ? 1600
                      : i % 2 ? random.between(1, 300)
                              : 8 * random.between(1, 200);
      std::vector<Operand> in{T(random.normal<float>({2, rows, width})),
                              I(random.ids({tokens, k}, -1, 2 * rows - 1)),
                              A(random.normal<float>({tokens, k}))};
      expectAgrees(*gpu, "combine", in, {T(Shape{tokens, width})}, {}, mode);
      expectAgrees(*gpu, "combine", {rounded(in[0], mode.dtype), in[1], in[2]},
                   {A(Shape{tokens, width})}, {}, mode);
    }
}

TEST_F(CudaExperts, CombineOfManyTokens) {
  // Rows of one piece and of several, the last a part; some dropped.
  for (Mode mode : allModes())
    for (int i = 0; i < 4; ++i) {
      if (isLeftOut())
        continue;
      const int64_t tokens = random.between(1100, 1300), k = i ? random.between(1, 8) : 2,
                    width = i ? 8 * random.between(1, 300) : 2056,
                    bound = random.between(1, tokens * k);
      std::vector<Operand> in{T(random.normal<float>({bound, width})),
                              I(random.ids({tokens, k}, -1, bound - 1)),
                              A(random.normal<float>({tokens, k}))};
      expectAgrees(*gpu, "combine", in, {T(Shape{tokens, width})}, {}, mode);
      expectAgrees(*gpu, "combine", {rounded(in[0], mode.dtype), in[1], in[2]},
                   {A(Shape{tokens, width})}, {}, mode);
    }
}

/// Row counts of `n` groups with a sum of at most `room`.
Tensor<int32_t> someGroups(Random &random, int64_t n, int64_t room, int kind) {
  Tensor<int32_t> groups({1, n});
  std::fill(groups.values.begin(), groups.values.end(), 0);
  if (kind == 1) // all rows in one
    groups.values[size_t(random.between(0, n - 1))] = int32_t(room);
  for (int64_t left = room; kind != 1 && left > 0;) {
    int64_t rows = random.between(0, std::min<int64_t>(left, 200));
    if (kind == 0 && random.between(0, 5) == 0)
      break; // rows past the groups
    groups.values[size_t(random.between(0, n - 1))] += int32_t(rows);
    left -= std::max<int64_t>(rows, 1);
  }
  return groups;
}

TEST_F(CudaExperts, GroupedProducts) {
  for (Mode mode : allModes())
    for (int i = 0; i < 30; ++i) {
      int64_t n = random.between(1, i % 5 == 4 ? 130 : 9), rows = random.between(1, 600),
              wide = random.between(1, 150), inner = random.between(1, 200);
      if (i % 2) {
        wide = wide / 2 * 2 + 2;
        inner = inner / 8 * 8 + 8;
      }
      Operand w = T(random.normal<float>({n, 2, wide, inner})),
              x = T(random.normal<float>({rows, inner}));
      std::vector<Operand> in{x, I(someGroups(random, n, rows, i % 3)), w};
      CallParams p = params({{"contract", 1}});
      expectAgrees(*gpu, "grouped_matmul", in, {T(Shape{rows, 2, wide})}, p, mode);
      expectAgrees(*gpu, "grouped_matmul",
                   {rounded(in[0], mode.dtype), in[1], rounded(in[2], mode.dtype)},
                   {A(Shape{rows, 2, wide})}, p, mode);
    }
}

TEST_F(CudaExperts, GroupedBiasOfEveryGroup) {
  for (Mode mode : allModes())
    for (int i = 0; i < 12; ++i) {
      int64_t n = random.between(1, 40), rows = random.between(1, 300),
              wide = random.between(1, 300);
      std::vector<Operand> in{T(random.normal<float>({rows, 2, wide})),
                              I(someGroups(random, n, rows, i % 3)),
                              T(random.normal<float>({n, 2, wide}))};
      for (int64_t part : {0, 1})
        expectAgrees(*gpu, "grouped_bias", in, {T(Shape{rows, 2, wide})}, params({{"part", part}}),
                     mode);
    }
}

TEST_F(CudaExperts, GroupedProductsWithoutRowsOrDepth) {
  for (Mode mode : allModes()) {
    CallParams p = params({{"contract", 1}});
    expectAgrees(
        *gpu, "grouped_matmul",
        {T(Shape{0, 16}), I(Tensor<int32_t>({1, 2}, {0, 0})), T(random.normal<float>({2, 24, 16}))},
        {T(Shape{0, 24})}, p, mode);
    expectAgrees(*gpu, "grouped_matmul",
                 {T(random.normal<float>({300, 16})), I(Tensor<int32_t>({1, 2}, {0, 0})),
                  T(random.normal<float>({2, 24, 16}))},
                 {T(Shape{300, 24})}, p, mode);
    expectAgrees(*gpu, "grouped_matmul",
                 {T(Shape{7, 0}), I(Tensor<int32_t>({1, 2}, {3, 1})), T(Shape{2, 24, 0})},
                 {T(Shape{7, 24})}, p, mode);
  }
}

TEST_F(CudaExperts, DataOutOfRangeSetsTheFlag) {
  // What the flag says is the call's own fault; nothing outside the outputs is touched (runOnGpu).
  for (int64_t experts : {8, 1200})
    for (int32_t id : {-2, int32_t(experts), INT32_MIN, INT32_MAX}) {
      Tensor<int32_t> ids = random.ids({30, 2}, 0, experts - 1);
      ids.values[17] = id;
      runOnGpu(*gpu, "select",
               {T(random.normal<float>({30, 4})), I(ids), I(Tensor<int32_t>({1}, {0}))},
               {T(Shape{60, 4}), I(Shape{1, experts}), I(Shape{30, 2}), I(Shape{1})},
               params({{"experts", experts}, {"expert_offset", 0}}), {.fault = 1});
      runOnGpu(*gpu, "pack",
               {T(random.normal<float>({30, 4})), I(ids), I(Tensor<int32_t>({1}, {0}))},
               {T(Shape{1, 2, 60, 4}), I(Shape{1, 2, experts / 2}), I(Shape{30, 2}), I(Shape{1})},
               params({{"experts", experts}, {"segments", 1}}), {.fault = 1});
    }
  for (int32_t count : {-1, 11, INT32_MIN, INT32_MAX}) {
    Tensor<int32_t> counts({2, 1, 3}, {1, 2, 3, INT32_MAX, count, 3});
    runOnGpu(*gpu, "regroup", {T(random.normal<float>({2, 1, 10, 4})), I(counts)},
             {T(Shape{20, 4}), I(Shape{1, 3})}, params({{"segments", 1}}), {.fault = 3});
    runOnGpu(*gpu, "ungroup", {T(random.normal<float>({20, 4})), I(counts)},
             {T(Shape{2, 1, 10, 4})}, params({{"segments", 1}}), {.fault = 3});
    for (fb::DType dtype : {fb::DType::f32, fb::DType::bf16})
      runOnGpu(*gpu, "grouped_matmul",
               {T(random.normal<float>({10, 8})), I(Tensor<int32_t>({1, 3}, {INT32_MAX, count, 3})),
                T(random.normal<float>({3, 4, 8}))},
               {T(Shape{10, 4})}, params({{"contract", 1}}), {.dtype = dtype, .fault = 4});
    runOnGpu(*gpu, "grouped_bias",
             {T(random.normal<float>({10, 4})), I(Tensor<int32_t>({1, 3}, {INT32_MAX, count, 3})),
              T(random.normal<float>({3, 4}))},
             {T(Shape{10, 4})}, params({{"part", 0}}), {.fault = 4});
  }
  for (int32_t row : {-2, 10, INT32_MIN, INT32_MAX})
    for (int64_t k : {2, 9}) {
      Tensor<int32_t> pos = random.ids({2, k}, 0, 9);
      pos.values[size_t(k)] = row;
      runOnGpu(*gpu, "combine",
               {T(random.normal<float>({10, 8})), I(pos), A(random.normal<float>({2, k}))},
               {T(Shape{2, 8})}, {}, {.fault = 5});
    }
  for (int32_t code = 1; code <= 5; ++code)
    EXPECT_FALSE(cuda::describeErrorFlag(code).empty());
  EXPECT_TRUE(cuda::describeErrorFlag(0).empty());
}

TEST_F(CudaExperts, CopiesBoxes) {
  for (int i = 0; i < 60; ++i) {
    size_t rank = size_t(random.between(0, 5));
    Box from, to;
    for (size_t d = 0; d < rank; ++d) {
      int64_t extent = random.between(i == 0 ? 0 : 1, 9);
      from.extent.push_back(extent);
      to.extent.push_back(extent);
      for (Box *box : {&from, &to}) {
        bool whole = random.between(0, 1);
        box->start.push_back(whole ? 0 : random.between(0, 5));
        box->shape.push_back(extent + box->start.back() + (whole ? 0 : random.between(0, 5)));
      }
    }
    auto bytesIn = [](const Box &box, size_t size) {
      for (int64_t n : box.shape)
        size *= size_t(n);
      return size;
    };
    size_t element = size_t(1) << random.between(0, 3);
    std::vector<uint8_t> source(bytesIn(from, element)), target(bytesIn(to, element), 0x33);
    for (uint8_t &b : source)
      b = uint8_t(random.between(0, 255));
    Guarded sourceThere(source.size(), element), targetThere(target.size(), 0);
    if (!source.empty())
      sourceThere.upload(source.data());
    targetThere.poison(0x33);
    mustWork(cudaDeviceSynchronize());
    Status s =
        cuda::runCudaCopy(to, targetThere.data(), from, sourceThere.data(), element, gpu->context);
    ASSERT_TRUE(s.ok()) << s.str();
    EXPECT_EQ(gpu->finish(), 0);
    // One element after the other.
    std::vector<int64_t> index(rank, 0);
    for (bool more = bytesIn(Box{from.extent, {}, {}}, 1) > 0; more;) {
      size_t a = 0, b = 0;
      for (size_t d = 0; d < rank; ++d) {
        a = a * size_t(from.shape[d]) + size_t(from.start[d] + index[d]);
        b = b * size_t(to.shape[d]) + size_t(to.start[d] + index[d]);
      }
      std::copy_n(source.begin() + int64_t(a * element), element,
                  target.begin() + int64_t(b * element));
      more = false;
      for (size_t d = rank; d-- > 0 && !more;) {
        more = ++index[d] < from.extent[d];
        if (!more)
          index[d] = 0;
      }
    }
    EXPECT_EQ(targetThere.download(), target) << "box copy " << i;
    EXPECT_TRUE(targetThere.guardsIntact());
  }
}

TEST_F(CudaExperts, FillsAndReduces) {
  for (double value : {0.0, 1.5, -3.0}) {
    OnDevice floats(T(Shape{300}), fb::DType::f32, true),
        halves(T(Shape{300}), fb::DType::bf16, true), ints(I(Shape{300}), fb::DType::f32, true);
    mustWork(cudaDeviceSynchronize()); // what is there has arrived
    for (OnDevice *o : {&floats, &halves, &ints})
      ASSERT_TRUE(cuda::runCudaFill(o->ref(), value, gpu->context).ok());
    EXPECT_EQ(gpu->finish(), 0);
    EXPECT_EQ(floats.read(T(Shape{300})).floats().values, std::vector<float>(300, float(value)));
    EXPECT_EQ(halves.read(T(Shape{300})).floats().values, std::vector<float>(300, float(value)));
    EXPECT_EQ(ints.read(I(Shape{300})).ints().values, std::vector<int32_t>(300, int32_t(value)));
  }
  for (fb::DType dtype : {fb::DType::f32, fb::DType::bf16})
    for (fb::Reduce reduce : {fb::Reduce::sum, fb::Reduce::max}) {
      Operand blocks = rounded(T(random.normal<float>({5, 777})), dtype);
      OnDevice from(blocks, dtype, false), to(T(Shape{777}), dtype, false);
      ASSERT_TRUE(cuda::runCudaReduce(to.ref(), from.ref().data, 5, reduce, gpu->context).ok());
      EXPECT_EQ(gpu->finish(), 0);
      Tensor<float> want({777});
      for (size_t i = 0; i < 777; ++i) {
        float v = blocks.floats().values[i];
        for (size_t p = 1; p < 5; ++p) {
          float one = blocks.floats().values[p * 777 + i];
          v = reduce == fb::Reduce::max ? std::max(v, one) : v + one;
        }
        want.values[i] = dtype == fb::DType::bf16 ? bf16Value(bf16Bits(v)) : v;
      }
      EXPECT_EQ(to.read(T(Shape{777})).floats().values, want.values);
    }
}

TEST_F(CudaExperts, CapturedCallsReplay) {
  // A whole expert layer as one graph: gate, select, two products, combine. Nothing in it allocates
  // or waits, or the capture would fail. Products read early what the call before them does not
  // write, and give what they give when every kernel starts after the one before it has ended.
  int64_t tokens = 40, d = 64, experts = 8, k = 2;
  fb::DType type = fb::DType::bf16;
  OnDevice x(T(random.normal<float>({tokens, d})), type, false),
      gate(T(random.normal<float>({experts, d})), type, false),
      w(T(random.normal<float>({experts, d, d})), type, false),
      zero(I(Tensor<int32_t>({1}, {0})), type, false);
  OnDevice logits(A(Shape{tokens, experts}), type, false), ids(I(Shape{tokens, k}), type, false),
      weights(A(Shape{tokens, k}), type, false), rows(T(Shape{tokens * k, d}), type, false),
      groups(I(Shape{1, experts}), type, false), pos(I(Shape{tokens, k}), type, false),
      need(I(Shape{1}), type, false), made(T(Shape{tokens * k, d}), type, false),
      again(T(Shape{tokens * k, d}), type, false), out(T(Shape{tokens, d}), type, false);
  auto run = [&](std::string_view name, std::vector<TensorRef> in, std::vector<TensorRef> to,
                 const CallParams &p, uint32_t settled = 0) {
    gpu->context.settled = settled;
    Status s = cuda::runCudaCall(name, in, to, p, gpu->context);
    EXPECT_TRUE(s.ok()) << s.str();
  };
  auto layer = [&] {
    run("linear", {x.ref(), gate.ref()}, {logits.ref()}, params({{"contract", 1}}), 2);
    run("route", {logits.ref()}, {ids.ref(), weights.ref()},
        params({}, {{"scale", 1}},
               {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}));
    run("select", {x.ref(), ids.ref(), zero.ref()},
        {rows.ref(), groups.ref(), pos.ref(), need.ref()},
        params({{"experts", experts}, {"expert_offset", 0}}));
    run("grouped_matmul", {rows.ref(), groups.ref(), w.ref()}, {made.ref()},
        params({{"contract", 1}}), 4);
    run("grouped_matmul", {made.ref(), groups.ref(), w.ref()}, {again.ref()},
        params({{"contract", 1}}), 6);
    // What the next kernel waits for may be something else than a kernel.
    mustWork(cudaMemsetAsync(out.ref().data, 0, size_t(tokens * d) * 2, gpu->context.stream));
    run("combine", {again.ref(), pos.ref(), weights.ref()}, {out.ref()}, {});
  };
  gpu->context.early = false;
  layer();
  gpu->context.early = true;
  EXPECT_EQ(gpu->finish(), 0);
  std::vector<uint8_t> first = out.bytes().download();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  mustWork(cudaStreamBeginCapture(gpu->context.stream, cudaStreamCaptureModeThreadLocal));
  layer();
  mustWork(cudaStreamEndCapture(gpu->context.stream, &graph));
  mustWork(cudaGraphInstantiate(&instance, graph, 0));
  for (int i = 0; i < 3; ++i) {
    for (OnDevice *o : {&logits, &ids, &weights, &rows, &groups, &pos, &need, &made, &again, &out})
      o->bytes().poison(0xee);
    mustWork(cudaDeviceSynchronize());
    mustWork(cudaGraphLaunch(instance, gpu->context.stream));
    EXPECT_EQ(gpu->finish(), 0);
    EXPECT_EQ(out.bytes().download(), first);
  }
  mustWork(cudaGraphExecDestroy(instance));
  mustWork(cudaGraphDestroy(graph));
}

} // namespace
