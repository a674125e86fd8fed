//===- HostOrderTest.cpp - where expert rows land ---------------------------===//
// The order conventions of docs/architecture.md, section 2: first as written-out vectors, then
// against a naive sort of all rows of the whole batch, for every way that tokens are split, with
// room to spare and with overflow.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

/// What one rank's pack gives.
struct Packed {
  Packed(int64_t ranks, int64_t bound, int64_t width, int64_t columns, Shape choices)
      : slots({1, ranks, bound, width}), counts({1, ranks, columns}), pos(std::move(choices)),
        need({1}) {}
  Tensor<float> slots;
  Tensor<int32_t> counts, pos, need;
};

Packed pack(const Tensor<float> &x, const Tensor<int32_t> &ids, int64_t ranks, int64_t bound,
            int64_t experts, int64_t segments, int32_t needBefore = 0) {
  Packed p(ranks, bound, x.shape.back(), experts / ranks * segments, ids.shape);
  Status s = call("pack", CallFlavor::fast, {x, ids, Tensor<int32_t>({1}, {needBefore})},
                  {p.slots, p.counts, p.pos, p.need},
                  params({{"experts", experts}, {"segments", segments}}));
  EXPECT_TRUE(s.ok()) << s.str();
  return p;
}

/// Block `to` of every sender's [1, P, n...] buffer becomes receiver `to`'s [P, 1, n...].
template <typename T> std::vector<Tensor<T>> allToAll(const std::vector<const Tensor<T> *> &sent) {
  int64_t ranks = int64_t(sent.size());
  std::vector<Tensor<T>> received;
  for (int64_t to = 0; to < ranks; ++to) {
    Shape shape = sent[0]->shape;
    std::swap(shape[0], shape[1]);
    shape[0] = ranks;
    shape[1] = 1;
    Tensor<T> r(shape);
    size_t block = r.values.size() / size_t(ranks);
    for (int64_t from = 0; from < ranks; ++from)
      std::copy_n(sent[size_t(from)]->values.begin() + to * int64_t(block), block,
                  r.values.begin() + from * int64_t(block));
    received.push_back(std::move(r));
  }
  return received;
}

struct Grouped {
  Grouped(int64_t room, int64_t width, int64_t experts)
      : rows({room, width}), groups({1, experts}) {}
  Tensor<float> rows;
  Tensor<int32_t> groups;
};

Grouped regroup(const Tensor<float> &slots, const Tensor<int32_t> &counts, int64_t segments) {
  Grouped g(slots.shape[0] * slots.shape[2], slots.shape[3], counts.shape[2] / segments);
  Status s = call("regroup", CallFlavor::fast, {slots, counts}, {g.rows, g.groups},
                  params({{"segments", segments}}));
  EXPECT_TRUE(s.ok()) << s.str();
  return g;
}

TEST(HostOrder, PackWrittenOut) {
  // Tokens 1..4 of one rank, two batch rows of two, k = 2, experts 0 1 (slot 0) and 2 3 (slot 1),
  // slots of 5.
  Tensor<float> x({2, 2, 1}, {1, 2, 3, 4});
  Tensor<int32_t> ids({2, 2, 2}, {1, 0, 2, 1, 1, 3, 0, 1});
  Packed p = pack(x, ids, 2, 5, 4, 2);
  // Expert 0: tokens 1 4; expert 1: tokens 1 2 3 4 | expert 2: token 2; expert 3: token 3. Slot 0
  // needs 6 rows and has 5.
  EXPECT_EQ(p.slots.values, (std::vector<float>{1, 4, 1, 2, 3, /**/ 2, 3, 0, 0, 0}));
  // counts [slot][expert][batch row]; the last row of expert 1 in batch row 1 did not fit.
  EXPECT_EQ(p.counts.values, (std::vector<int32_t>{1, 1, 2, 1, /**/ 1, 0, 0, 1}));
  EXPECT_EQ(p.pos.values, (std::vector<int32_t>{2, 0, 5, 3, 4, 6, 1, -1}));
  EXPECT_EQ(p.need.values[0], 6);
  EXPECT_EQ(pack(x, ids, 2, 5, 4, 2, 9).need.values[0], 9) << "an earlier larger need stays";
}

TEST(HostOrder, SequenceSplitWrittenOut) {
  // Two batch rows of four tokens, b*10+s; rank 0 has s = 0 1, rank 1 has s = 2 3. Both experts of
  // this slot, k = 1.
  //   token   0 1 2 3   10 11 12 13
  //   expert  0 1 0 0    0  0  1  0
  Tensor<float> x0({2, 2, 1}, {0, 1, 10, 11}), x1({2, 2, 1}, {2, 3, 12, 13});
  Tensor<int32_t> ids0({2, 2, 1}, {0, 1, 0, 0}), ids1({2, 2, 1}, {0, 0, 1, 0});
  // One slot a sender holds both experts here: the other expert shard gets nothing.
  Packed a = pack(x0, ids0, 2, 4, 4, 2), b = pack(x1, ids1, 2, 4, 4, 2);
  EXPECT_EQ(a.slots.values, (std::vector<float>{0, 10, 11, 1, /**/ 0, 0, 0, 0}));
  EXPECT_EQ(b.slots.values, (std::vector<float>{2, 3, 13, 12, /**/ 0, 0, 0, 0}));
  auto slots = allToAll<float>({&a.slots, &b.slots});
  auto counts = allToAll<int32_t>({&a.counts, &b.counts});
  EXPECT_EQ(counts[0].values, (std::vector<int32_t>{1, 2, 1, 0, /**/ 2, 1, 0, 1}));
  // (expert, batch row, rank, row): expert 0 is 0 | 2 3 | 10 11 | 13, which is global (batch,
  // sequence) order.
  Grouped g = regroup(slots[0], counts[0], 2);
  EXPECT_EQ(g.rows.values, (std::vector<float>{0, 2, 3, 10, 11, 13, 1, 12}));
  EXPECT_EQ(g.groups.values, (std::vector<int32_t>{6, 2}));
  EXPECT_EQ(regroup(slots[1], counts[1], 2).groups.values, (std::vector<int32_t>{0, 0}));
  // With one segment the batch rows would mix: rank 0's rows of both come first.
  Packed c = pack(x0, ids0, 2, 4, 4, 1), d = pack(x1, ids1, 2, 4, 4, 1);
  Grouped mixed = regroup(allToAll<float>({&c.slots, &d.slots})[0],
                          allToAll<int32_t>({&c.counts, &d.counts})[0], 1);
  EXPECT_EQ(mixed.rows.values, (std::vector<float>{0, 10, 11, 2, 3, 13, 1, 12}));
  // ungroup puts everything back where it came from.
  Tensor<float> back({2, 1, 4, 1});
  ASSERT_TRUE(
      call("ungroup", CallFlavor::fast, {g.rows, counts[0]}, {back}, params({{"segments", 2}}))
          .ok());
  EXPECT_EQ(back.values, slots[0].values);
}

TEST(HostOrder, SelectWrittenOut) {
  // Experts 1 and 2 of four; three tokens, k = 2; room for 4, then for 2.
  Tensor<float> x({3, 1}, {7, 8, 9});
  Tensor<int32_t> ids({3, 2}, {2, 0, 1, 2, 3, 1});
  Tensor<float> rows({4, 1}), two({2, 1});
  Tensor<int32_t> groups({1, 2}), pos({3, 2}), need({1}), before({1}, {1});
  CallParams p = params({{"experts", 4}, {"expert_offset", 1}});
  ASSERT_TRUE(
      call("select", CallFlavor::fast, {x, ids, before}, {rows, groups, pos, need}, p).ok());
  EXPECT_EQ(rows.values, (std::vector<float>{8, 9, 7, 8}));
  EXPECT_EQ(groups.values, (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(pos.values, (std::vector<int32_t>{2, -1, 0, 3, -1, 1}));
  EXPECT_EQ(need.values[0], 4);
  ASSERT_TRUE(call("select", CallFlavor::fast, {x, ids, before}, {two, groups, pos, need}, p).ok());
  EXPECT_EQ(two.values, (std::vector<float>{8, 9}));
  EXPECT_EQ(groups.values, (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(pos.values, (std::vector<int32_t>{-1, -1, 0, -1, -1, 1}));
  EXPECT_EQ(need.values[0], 4);
}

/// A batch of tokens split over ranks: by batch row, or each batch row by sequence.
struct Scene {
  int64_t ranks, batch, sequence, k, experts;
  bool bySequence;
  Tensor<int32_t> ids;   // [batch * sequence, k]
  Tensor<float> weights; // the same

  int64_t segments() const { return bySequence ? batch : 1; }
  int64_t tokensPerRank() const { return batch * sequence / ranks; }
  /// Global token of a rank's token.
  int64_t tokenOf(int64_t rank, int64_t local) const {
    if (!bySequence)
      return rank * tokensPerRank() + local;
    int64_t piece = sequence / ranks;
    return local / piece * sequence + rank * piece + local % piece;
  }
  int64_t rankOf(int64_t token) const {
    return bySequence ? token % sequence / (sequence / ranks) : token / tokensPerRank();
  }
  /// Rows from `rank` to the shard of experts `shard`, in slot order: (expert, token, choice).
  std::vector<int64_t> slotRows(int64_t rank, int64_t shard) const {
    std::vector<int64_t> rows;
    for (int64_t e = shard * experts / ranks; e < (shard + 1) * experts / ranks; ++e)
      for (int64_t row = 0; row < int64_t(ids.values.size()); ++row)
        if (ids.values[size_t(row)] == e && rankOf(row / k) == rank)
          rows.push_back(row);
    return rows;
  }
  int64_t need() const {
    size_t most = 0;
    for (int64_t r = 0; r < ranks; ++r)
      for (int64_t s = 0; s < ranks; ++s)
        most = std::max(most, slotRows(r, s).size());
    return int64_t(most);
  }
  /// Whether each row fits in slots of `bound` rows.
  std::vector<char> fits(int64_t bound) const {
    std::vector<char> result(ids.values.size(), 0);
    for (int64_t r = 0; r < ranks; ++r)
      for (int64_t s = 0; s < ranks; ++s) {
        std::vector<int64_t> rows = slotRows(r, s);
        for (size_t i = 0; i < rows.size() && int64_t(i) < bound; ++i)
          result[size_t(rows[i])] = 1;
      }
    return result;
  }
};

Scene draw(Random &random, int i) {
  Scene s{int64_t(1) << random.between(0, 2),
          0,
          0,
          random.between(1, 3),
          0,
          random.between(0, 1) == 1,
          Tensor<int32_t>({0}),
          Tensor<float>({0})};
  s.batch = random.between(1, 3) * (s.bySequence ? 1 : s.ranks);
  s.sequence = random.between(1, 5) * (s.bySequence ? s.ranks : 1);
  s.experts = s.ranks * random.between(1, 4);
  s.k = std::min(s.k, s.experts);
  int64_t tokens = s.batch * s.sequence;
  s.ids = random.choices(tokens, s.k, s.experts);
  if (i % 5 == 0) // everybody wants the same experts
    for (int64_t t = 1; t < tokens; ++t)
      std::copy_n(s.ids.values.begin(), s.k, s.ids.values.begin() + t * s.k);
  s.weights = random.normal<float>({tokens, s.k});
  return s;
}

/// One trip through pack, exchange, regroup, "experts" (row * (2 + expert)), ungroup, exchange,
/// combine; every intermediate is compared with what a sort of the whole batch says.
void roundTrip(const Scene &s, int64_t bound) {
  constexpr int64_t width = 3;
  int64_t tokens = s.tokensPerRank(), local = s.experts / s.ranks;
  auto value = [](int64_t token, int64_t d) { return float(token * 10 + d + 1); };
  std::vector<char> fits = s.fits(bound);

  std::vector<Packed> packed;
  for (int64_t r = 0; r < s.ranks; ++r) {
    Tensor<float> x({tokens, width});
    Tensor<int32_t> ids({tokens, s.k});
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < width; ++d)
        x.values[size_t(t * width + d)] = value(s.tokenOf(r, t), d);
      std::copy_n(s.ids.values.begin() + s.tokenOf(r, t) * s.k, s.k, ids.values.begin() + t * s.k);
    }
    packed.push_back(pack(x, ids, s.ranks, bound, s.experts, s.segments()));
  }
  int64_t need = 0;
  std::vector<const Tensor<float> *> sentSlots;
  std::vector<const Tensor<int32_t> *> sentCounts;
  for (int64_t r = 0; r < s.ranks; ++r) {
    const Packed &p = packed[size_t(r)];
    need = std::max<int64_t>(need, p.need.values[0]);
    sentSlots.push_back(&p.slots);
    sentCounts.push_back(&p.counts);
    for (int64_t shard = 0; shard < s.ranks; ++shard) {
      std::vector<int64_t> rows = s.slotRows(r, shard);
      for (int64_t i = 0; i < bound; ++i)
        ASSERT_EQ(p.slots.values[size_t((shard * bound + i) * width)],
                  i < int64_t(rows.size()) ? value(rows[size_t(i)] / s.k, 0) : 0.0f)
            << "row " << i << " of the slot from " << r << " to " << shard;
    }
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t j = 0; j < s.k; ++j)
        ASSERT_EQ(p.pos.values[size_t(t * s.k + j)] >= 0,
                  bool(fits[size_t(s.tokenOf(r, t) * s.k + j)]));
  }
  ASSERT_EQ(need, s.need());

  std::vector<Tensor<float>> slots = allToAll(sentSlots), returned;
  std::vector<Tensor<int32_t>> counts = allToAll(sentCounts);
  for (int64_t shard = 0; shard < s.ranks; ++shard) {
    Grouped g = regroup(slots[size_t(shard)], counts[size_t(shard)], s.segments());
    int64_t at = 0;
    for (int64_t e = 0; e < local; ++e) {
      int64_t begin = at;
      // The contract: the expert's rows in global (batch, sequence, choice) order, which is the
      // order of the ids.
      for (int64_t row = 0; row < int64_t(s.ids.values.size()); ++row)
        if (s.ids.values[size_t(row)] == shard * local + e && fits[size_t(row)])
          for (int64_t d = 0, n = at++; d < width; ++d) {
            float &element = g.rows.values[size_t(n * width + d)];
            ASSERT_EQ(element, value(row / s.k, d)) << "expert " << shard * local + e;
            element *= float(2 + shard * local + e);
          }
      ASSERT_EQ(g.groups.values[size_t(e)], at - begin);
    }
    for (size_t i = size_t(at * width); i < g.rows.values.size(); ++i)
      ASSERT_EQ(g.rows.values[i], 0) << "past the last row";
    Tensor<float> back(slots[size_t(shard)].shape);
    ASSERT_TRUE(call("ungroup", CallFlavor::fast, {g.rows, counts[size_t(shard)]}, {back},
                     params({{"segments", s.segments()}}))
                    .ok());
    back.shape = {1, s.ranks, bound, width}; // [P, 1, B, D] and [1, P, B, D] are the same memory
    returned.push_back(std::move(back));
  }

  std::vector<const Tensor<float> *> sentBack;
  for (const Tensor<float> &r : returned)
    sentBack.push_back(&r);
  std::vector<Tensor<float>> home = allToAll(sentBack);
  for (int64_t r = 0; r < s.ranks; ++r) {
    Tensor<float> weights({tokens, s.k}), y({tokens, width});
    for (int64_t t = 0; t < tokens; ++t)
      std::copy_n(s.weights.values.begin() + s.tokenOf(r, t) * s.k, s.k,
                  weights.values.begin() + t * s.k);
    ASSERT_TRUE(call("combine", CallFlavor::reference,
                     {home[size_t(r)], packed[size_t(r)].pos, weights}, {y}, {})
                    .ok());
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t d = 0; d < width; ++d) {
        double sum = 0;
        for (int64_t j = 0, row = s.tokenOf(r, t) * s.k; j < s.k; ++j, ++row)
          if (fits[size_t(row)])
            sum += double(s.weights.values[size_t(row)]) * (2 + s.ids.values[size_t(row)]) *
                   double(value(s.tokenOf(r, t), d));
        ASSERT_EQ(y.values[size_t(t * width + d)], float(sum));
      }
  }
}

TEST(HostOrder, RoundTripWithRoom) {
  // Any split of tokens over 1, 2, 4 ranks gives experts the same rows in the same order, and
  // tokens their own rows back.
  Random random(testSeed() + 10);
  for (int i = 0; i < 150; ++i) {
    Scene s = draw(random, i);
    ASSERT_NO_FATAL_FAILURE(roundTrip(s, std::max<int64_t>(s.need(), 1) + random.between(0, 3)))
        << "case " << i;
  }
}

TEST(HostOrder, RoundTripWithOverflow) {
  // Slots that are too small lose exactly the rows past their end, say how many rows were needed,
  // and harm nothing else.
  Random random(testSeed() + 11);
  int overflowed = 0;
  for (int i = 0; i < 150; ++i) {
    Scene s = draw(random, i);
    int64_t bound = random.between(1, std::max<int64_t>(s.need(), 1));
    overflowed += bound < s.need();
    ASSERT_NO_FATAL_FAILURE(roundTrip(s, bound)) << "case " << i;
  }
  EXPECT_GT(overflowed, 50);
}

TEST(HostOrder, SelectShardsAddUpToTheWhole) {
  // With tokens replicated over the expert shards, the shards' combines add up to combine over all
  // experts.
  Random random(testSeed() + 12);
  for (int i = 0; i < 60; ++i) {
    int64_t shards = int64_t(1) << random.between(0, 2), local = random.between(1, 3),
            experts = shards * local;
    int64_t tokens = random.between(1, 12), k = random.between(1, std::min<int64_t>(3, experts)),
            room = tokens * k;
    Tensor<double> x = random.normal<double>({tokens, 2}),
                   weights = random.normal<double>({tokens, k}), sum({tokens, 2});
    std::fill(sum.values.begin(), sum.values.end(), 0.0);
    Tensor<int32_t> ids = random.choices(tokens, k, experts), need({1}, {0});
    for (int64_t shard = 0; shard < shards; ++shard) {
      Tensor<double> rows({room, 2}), y({tokens, 2});
      Tensor<int32_t> groups({1, local}), pos({tokens, k}), after({1});
      ASSERT_TRUE(call("select", CallFlavor::reference, {x, ids, need}, {rows, groups, pos, after},
                       params({{"experts", experts}, {"expert_offset", shard * local}}))
                      .ok());
      int64_t row = 0;
      for (int64_t e = 0; e < local; ++e) {
        ASSERT_EQ(groups.values[size_t(e)],
                  std::count(ids.values.begin(), ids.values.end(), int32_t(shard * local + e)));
        for (int32_t n = 0; n < groups.values[size_t(e)]; ++n, ++row)
          for (int64_t d = 0; d < 2; ++d)
            rows.values[size_t(row * 2 + d)] *= double(2 + shard * local + e);
      }
      ASSERT_EQ(after.values[0], std::max<int64_t>(need.values[0], row));
      need = after;
      ASSERT_TRUE(call("combine", CallFlavor::reference, {rows, pos, weights}, {y}, {}).ok());
      for (size_t n = 0; n < y.values.size(); ++n)
        sum.values[n] += y.values[n];
    }
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t d = 0; d < 2; ++d) {
        double expected = 0;
        for (int64_t j = t * k; j < (t + 1) * k; ++j)
          expected +=
              weights.values[size_t(j)] * (2 + ids.values[size_t(j)]) * x.values[size_t(t * 2 + d)];
        ASSERT_NEAR(sum.values[size_t(t * 2 + d)], expected, 1e-12);
      }
  }
}

TEST(HostOrder, GarbageFromTheWireIsRefused) {
  // Counts and ids that no honest rank sends become errors that name the call, never an access out
  // of range.
  Tensor<float> slots({2, 1, 3, 1}), rows({6, 1}), x({2, 1}, {1, 2}), packedSlots({1, 2, 3, 1});
  Tensor<int32_t> groups({1, 2}), need({1}, {0}), after({1}), pos({2, 1}), counts({1, 2, 1});
  CallParams one = params({{"segments", 1}});
  for (std::vector<int32_t> bad : {std::vector<int32_t>{4, 0, 0, 0},
                                   {2, 2, 0, 0},
                                   {-1, 1, 0, 0},
                                   {INT32_MAX, INT32_MAX, 1, 1},
                                   {0, 0, INT32_MIN, 0}}) {
    Tensor<int32_t> c({2, 1, 2}, bad);
    Status a = call("regroup", CallFlavor::fast, {slots, c}, {rows, groups}, one),
           b = call("ungroup", CallFlavor::fast, {rows, c}, {slots}, one);
    EXPECT_NE(a.str().find("MOE-0508: call 'regroup'"), std::string::npos) << a.str();
    EXPECT_NE(b.str().find("MOE-0508: call 'ungroup'"), std::string::npos) << b.str();
  }
  Tensor<int32_t> fine({2, 1, 2}, {1, 2, 3, 0});
  Tensor<float> small({5, 1}); // 6 rows come
  EXPECT_FALSE(call("regroup", CallFlavor::fast, {slots, fine}, {small, groups}, one).ok());
  for (int64_t segments : {0, -1, 3, 1000})
    EXPECT_FALSE(call("regroup", CallFlavor::fast, {slots, fine}, {rows, groups},
                      params({{"segments", segments}}))
                     .ok())
        << segments;
  EXPECT_FALSE(
      call("regroup", CallFlavor::fast, {slots, fine}, {rows, groups}, params({{"segments", 2}}))
          .ok())
      << "one group too many";
  for (int32_t id : {-2, 2, INT32_MAX, INT32_MIN}) {
    Tensor<int32_t> ids({2, 1}, {0, id});
    Status a = call("pack", CallFlavor::fast, {x, ids, need}, {packedSlots, counts, pos, after},
                    params({{"experts", 2}, {"segments", 1}}));
    EXPECT_NE(a.str().find(format("MOE-0508: call 'pack': token 1 chooses expert %d of 0..1", id)),
              std::string::npos)
        << a.str();
    EXPECT_FALSE(call("select", CallFlavor::fast, {x, ids, need}, {rows, groups, pos, after},
                      params({{"experts", 2}, {"expert_offset", 0}}))
                     .ok());
  }
  Tensor<int32_t> ids({2, 1}, {0, 1});
  for (auto [experts, segments] :
       {std::pair<int64_t, int64_t>{3, 1}, {4, 1}, {2, 2}, {0, 1}, {-2, 1}, {2, 0}, {INT64_MAX, 1}})
    EXPECT_FALSE(call("pack", CallFlavor::fast, {x, ids, need}, {packedSlots, counts, pos, after},
                      params({{"experts", experts}, {"segments", segments}}))
                     .ok());
}

} // namespace
