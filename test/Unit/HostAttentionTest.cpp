//===- HostAttentionTest.cpp - attention's optional parts -------------------===//
// Each optional part of the attention call equals another way to write the same sum, in f64; random
// combinations of them show that the fast flavor agrees with the reference. What every attention
// does is in HostCallsTest.cpp.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "moira/rt/HostThreads.h"

#include <numeric>

using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

/// The optional operands of a call, with their roles, and the parameter `with`.
struct Optionals {
  std::vector<TensorRef> inputs;
  std::string with;

  /// Given if it is not empty.
  template <typename S> void add(const char *role, const Tensor<S> &tensor) {
    if (tensor.values.empty())
      return;
    with += std::string(with.empty() ? "" : " ") + role;
    inputs.push_back(tensor);
  }
};

/// One call's operands; optional ones are given if they are not empty.
template <typename S> struct Operands {
  Tensor<S> q, k, v;
  Tensor<int32_t> qpos, kpos, mask;
  Tensor<S> q2{{0}}, k2{{0}}, bias{{0}}, sinks{{0}};

  Tensor<S> run(CallFlavor flavor, CallParams p) const {
    Optionals given;
    given.add("q2", q2);
    given.add("k2", k2);
    given.add("bias", bias);
    given.add("sinks", sinks);
    given.add("qpos", qpos);
    given.add("kpos", kpos);
    given.add("kmask", mask);
    std::vector<TensorRef> in{q, k, v};
    in.insert(in.end(), given.inputs.begin(), given.inputs.end());
    p.texts["with"] = given.with;
    Tensor<S> out({q.shape[0], q.shape[1], q.shape[2], v.shape.back()});
    Status s = call("attention", flavor, in, {out}, p);
    EXPECT_TRUE(s.ok()) << s.str();
    return out;
  }
  template <typename To> Operands<To> as() const {
    return {q.template as<To>(),
            k.template as<To>(),
            v.template as<To>(),
            qpos,
            kpos,
            mask,
            q2.template as<To>(),
            k2.template as<To>(),
            bias.template as<To>(),
            sinks.template as<To>()};
  }
};

struct Sizes {
  int64_t batch = 2, queries = 5, keys = 7, heads = 4, kvHeads = 2, keyDim = 6, valueDim = 6;
};

Operands<double> draw(Random &random, const Sizes &s) {
  Operands<double> o{random.normal<double>({s.batch, s.queries, s.heads, s.keyDim}),
                     random.normal<double>({s.batch, s.keys, s.kvHeads, s.keyDim}),
                     random.normal<double>({s.batch, s.keys, s.kvHeads, s.valueDim}),
                     Tensor<int32_t>({s.queries}),
                     Tensor<int32_t>({s.keys}),
                     random.ids({s.batch, s.keys}, 0, 6)};
  int64_t first = std::max<int64_t>(0, s.keys - s.queries);
  for (int64_t i = 0; i < s.queries; ++i)
    o.qpos.values[size_t(i)] = int32_t(first + i);
  for (int64_t j = 0; j < s.keys; ++j)
    o.kpos.values[size_t(j)] = int32_t(j);
  return o;
}

CallParams heads(const Sizes &s, double scale = 0.4) {
  return params({{"q_heads", s.heads}, {"kv_heads", s.kvHeads}, {"window", 0}}, {{"scale", scale}});
}

/// x [.., n] with y(row) [m] behind each row.
template <typename Row> Tensor<double> widened(const Tensor<double> &x, int64_t m, const Row &row) {
  Shape shape = x.shape;
  int64_t n = shape.back();
  shape.back() += m;
  Tensor<double> out(shape);
  for (int64_t r = 0; r < int64_t(x.values.size()) / n; ++r) {
    std::copy_n(x.values.begin() + r * n, n, out.values.begin() + r * (n + m));
    std::copy_n(row(r), m, out.values.begin() + r * (n + m) + n);
  }
  return out;
}

TEST(HostAttention, SecondPartIsAsIfEveryHeadHadItsKeys) {
  Random random(testSeed());
  Sizes s{.valueDim = 9};
  Operands<double> o = draw(random, s), one = o;
  int64_t r = 3;
  o.q2 = random.normal<double>({s.batch, s.queries, s.heads, r});
  o.k2 = random.normal<double>({s.batch, s.keys, r});
  one.q = widened(o.q, r, [&](int64_t row) { return o.q2.values.begin() + row * r; });
  one.k = widened(o.k, r, [&](int64_t row) { return o.k2.values.begin() + row / s.kvHeads * r; });
  EXPECT_LT(relativeError(o.run(CallFlavor::reference, heads(s)),
                          one.run(CallFlavor::reference, heads(s))),
            1e-13);
}

TEST(HostAttention, BiasIsAddedToScaledScores) {
  // A bias of -1e9 hides a key as its mask does; one that is the same for all keys changes nothing.
  Random random(testSeed());
  Sizes s;
  Operands<double> o = draw(random, s), plain = o;
  o.bias = Tensor<double>({s.heads, s.queries, s.keys});
  o.mask = Tensor<int32_t>({s.batch, s.keys}, std::vector<int32_t>(size_t(s.batch * s.keys), 1));
  plain.mask = o.mask;
  for (int64_t i = 0; i < s.heads * s.queries * s.keys; ++i)
    o.bias.values[size_t(i)] = i % s.keys == 1 ? -1e9 : 3.5;
  for (int64_t b = 0; b < s.batch; ++b)
    plain.mask.values[size_t(b * s.keys + 1)] = 0;
  EXPECT_LT(relativeError(o.run(CallFlavor::reference, heads(s)),
                          plain.run(CallFlavor::reference, heads(s))),
            1e-12);
  // Of two keys with equal scores, one with a bias of ln 3 weighs three times as much.
  Operands<double> two{Tensor<double>({1, 1, 1, 1}, {0}),    Tensor<double>({1, 2, 1, 1}, {5, 6}),
                       Tensor<double>({1, 2, 1, 1}, {4, 8}), Tensor<int32_t>({1}, {1}),
                       Tensor<int32_t>({2}, {0, 1}),         Tensor<int32_t>({1, 2}, {1, 1})};
  two.bias = Tensor<double>({1, 1, 2}, {0, std::log(3.0)});
  CallParams p = params({{"q_heads", 1}, {"kv_heads", 1}}, {{"scale", 100}});
  EXPECT_DOUBLE_EQ(two.run(CallFlavor::reference, p).values[0], 7);
}

TEST(HostAttention, SinkIsAKeyWithoutAValue) {
  Random random(testSeed());
  Sizes s{.heads = 3, .kvHeads = 3};
  Operands<double> o = draw(random, s), more = o;
  o.sinks = random.normal<double>({s.heads});
  // The same with one more key: zero value, seen by all, and its score by a bias.
  ++s.keys;
  auto extended = [&](const Tensor<double> &x) {
    int64_t row = x.shape[2] * x.shape[3], keys = x.shape[1];
    Tensor<double> out({x.shape[0], keys + 1, x.shape[2], x.shape[3]},
                       std::vector<double>(size_t(x.shape[0] * (keys + 1) * row), 0));
    for (int64_t b = 0; b < x.shape[0]; ++b)
      std::copy_n(x.values.begin() + b * keys * row, keys * row,
                  out.values.begin() + b * (keys + 1) * row);
    return out;
  };
  more.k = extended(o.k);
  more.v = extended(o.v);
  more.kpos.values.push_back(-1);
  more.kpos.shape = {s.keys};
  more.mask = Tensor<int32_t>({s.batch, s.keys});
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t j = 0; j < s.keys; ++j)
      more.mask.values[size_t(b * s.keys + j)] =
          j + 1 < s.keys ? o.mask.values[size_t(b * (s.keys - 1) + j)] : 1;
  more.bias = Tensor<double>({s.heads, s.queries, s.keys},
                             std::vector<double>(size_t(s.heads * s.queries * s.keys), 0));
  for (int64_t h = 0; h < s.heads; ++h)
    for (int64_t i = 0; i < s.queries; ++i)
      more.bias.values[size_t((h * s.queries + i + 1) * s.keys - 1)] = o.sinks.values[size_t(h)];
  EXPECT_LT(relativeError(o.run(CallFlavor::reference, heads(s)),
                          more.run(CallFlavor::reference, heads(s))),
            1e-13);
}

TEST(HostAttention, KeysWithoutHeadsAreOneHead) {
  Random random(testSeed());
  Sizes s{.kvHeads = 1, .valueDim = 4};
  Operands<double> o = draw(random, s), flat = o;
  flat.k.shape = {s.batch, s.keys, s.keyDim};
  flat.v.shape = {s.batch, s.keys, s.valueDim};
  EXPECT_EQ(o.run(CallFlavor::reference, heads(s)).values,
            flat.run(CallFlavor::reference, heads(s)).values);
}

TEST(HostAttention, LatentFormIsAttentionToWhatGrowsOutOfTheLatent) {
  // Scores and results through the latent equal those of keys and values made of it.
  Random random(testSeed());
  int64_t batch = 2, queries = 3, keys = 6, heads = 4, rank = 5, plain = 3, turned = 2, value = 4;
  Tensor<double> q = random.normal<double>({batch, queries, heads, plain}),
                 latent = random.normal<double>({batch, keys, rank}),
                 kb = random.normal<double>({heads, plain, rank}),
                 vb = random.normal<double>({heads, value, rank});
  auto linear = [&](const Tensor<double> &w, int64_t n) {
    Tensor<double> out({batch, keys, heads, n});
    EXPECT_TRUE(
        call("linear", CallFlavor::reference, {latent, w}, {out}, params({{"contract", 1}})).ok());
    return out;
  };
  auto perHead = [&](const Tensor<double> &x, const Tensor<double> &w, int64_t n, bool transposed) {
    Tensor<double> out({batch, queries, heads, n});
    Status s = call("head_linear", CallFlavor::reference, {x, w}, {out},
                    params({{"transposed", transposed}}));
    EXPECT_TRUE(s.ok()) << s.str();
    return out;
  };
  Sizes s{batch, queries, keys, heads, heads, plain, value};
  Operands<double> grown = draw(random, s);
  grown.q = q;
  grown.k = linear(kb, plain);
  grown.v = linear(vb, value);
  grown.q2 = random.normal<double>({batch, queries, heads, turned});
  grown.k2 = random.normal<double>({batch, keys, turned});
  Operands<double> inside = grown;
  inside.q = perHead(q, kb, rank, true);
  inside.k = inside.v = latent;
  CallParams one = params({{"q_heads", heads}, {"kv_heads", 1}, {"window", 0}}, {{"scale", 0.4}});
  Tensor<double> want =
      grown.run(CallFlavor::reference,
                params({{"q_heads", heads}, {"kv_heads", heads}, {"window", 0}}, {{"scale", 0.4}}));
  EXPECT_LT(relativeError(perHead(inside.run(CallFlavor::reference, one), vb, value, false), want),
            1e-13);
}

/// attention_grad in one type, with dq, dk and dv in another: everything it makes, behind each
/// other.
template <typename S, typename A, typename G = A>
std::vector<double> gradients(const Operands<double> &o, const Tensor<double> &dy,
                              CallFlavor flavor, CallParams p) {
  Operands<S> in = o.as<S>();
  Tensor<S> flow = dy.as<S>();
  Tensor<A> bias = o.bias.as<A>(), sinks = o.sinks.as<A>();
  std::vector<TensorRef> inputs{flow, in.q, in.k, in.v};
  std::vector<Tensor<G>> made{Tensor<G>(o.q.shape), Tensor<G>(o.k.shape), Tensor<G>(o.v.shape)};
  Optionals given;
  given.add("q2", in.q2);
  given.add("k2", in.k2);
  given.add("bias", bias);
  given.add("sinks", sinks);
  std::vector<Tensor<A>> optionals;
  for (const TensorRef &input : given.inputs)
    optionals.emplace_back(input.shape);
  given.add("qpos", in.qpos);
  given.add("kpos", in.kpos);
  given.add("kmask", in.mask);
  inputs.insert(inputs.end(), given.inputs.begin(), given.inputs.end());
  p.texts["with"] = given.with;
  std::vector<TensorRef> outputs(made.begin(), made.end());
  outputs.insert(outputs.end(), optionals.begin(), optionals.end());
  Status s = call("attention_grad", flavor, inputs, outputs, p);
  EXPECT_TRUE(s.ok()) << s.str();
  std::vector<double> all;
  for (const Tensor<G> &tensor : made)
    all.insert(all.end(), tensor.values.begin(), tensor.values.end());
  for (const Tensor<A> &tensor : optionals)
    all.insert(all.end(), tensor.values.begin(), tensor.values.end());
  return all;
}

double worstOf(const std::vector<double> &got, const std::vector<double> &want) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - want[i]));
    largest = std::max(largest, std::abs(want[i]));
  }
  return worst / largest;
}

TEST(HostAttention, FastGradientsAgreeOnRandomShapes) {
  Random random(testSeed() + 3);
  for (int i = 0; i < 40; ++i) {
    Sizes s{.batch = random.between(1, 3),
            .queries = random.between(1, 150),
            .keys = random.between(1, 150),
            .kvHeads = random.between(1, 3),
            .keyDim = random.between(1, 20),
            .valueDim = random.between(1, 20)};
    s.heads = s.kvHeads * random.between(1, 3);
    Operands<double> o = draw(random, s);
    auto rounded = [](const Tensor<double> &x) { return x.as<Bf16>().as<double>(); };
    if (i % 3 == 1) {
      o.q2 = rounded(random.normal<double>({s.batch, s.queries, s.heads, 5}));
      o.k2 = rounded(random.normal<double>({s.batch, s.keys, 5}));
    }
    if (i % 4 >= 2)
      o.bias = random.normal<double>({s.heads, s.queries, s.keys}).as<float>().as<double>();
    if (i % 5 >= 3)
      o.sinks = random.normal<double>({s.heads}).as<float>().as<double>();
    o.q = rounded(o.q), o.k = rounded(o.k), o.v = rounded(o.v);
    Tensor<double> dy = rounded(random.normal<double>({s.batch, s.queries, s.heads, s.valueDim}));
    CallParams p = heads(s);
    p.integers["window"] = i % 2 ? random.between(1, 40) : 0;
    p.integers["causal"] = i % 7 != 0;
    std::vector<double> exact = gradients<double, double>(o, dy, CallFlavor::reference, p);
    setHostThreads(1 + i % 3);
    EXPECT_LT(worstOf(gradients<float, float>(o, dy, CallFlavor::fast, p), exact), 2e-6) << i;
    EXPECT_LT(worstOf(gradients<Bf16, float>(o, dy, CallFlavor::fast, p), exact), 2e-6) << i;
    for (CallFlavor flavor : {CallFlavor::fast, CallFlavor::reference}) {
      // Rounded once, where they are stored.
      std::vector<double> wide = gradients<Bf16, float>(o, dy, flavor, p);
      const std::vector<double> narrow = gradients<Bf16, float, Bf16>(o, dy, flavor, p);
      const size_t rounded = o.q.values.size() + o.k.values.size() + o.v.values.size();
      for (size_t at = 0; at < rounded; ++at)
        wide[at] = double(float(Bf16(float(wide[at]))));
      EXPECT_EQ(narrow, wide) << i;
    }
    setHostThreads(1);
  }
}

TEST(HostAttention, HeadProductsAgreeOnRandomShapes) {
  Random random(testSeed() + 2);
  for (int i = 0; i < 30; ++i) {
    int64_t rows = random.between(1, 9), heads = random.between(1, 5), k = random.between(1, 40),
            n = random.between(1, 40);
    bool transposed = i % 2;
    Tensor<double> x = random.normal<double>({rows, heads, k}),
                   w = transposed ? random.normal<double>({heads, k, n})
                                  : random.normal<double>({heads, n, k}),
                   exact({rows, heads, n});
    CallParams p = params({{"transposed", transposed}});
    ASSERT_TRUE(call("head_linear", CallFlavor::reference, {x, w}, {exact}, p).ok());
    for (CallFlavor flavor : {CallFlavor::fast, CallFlavor::reference}) {
      Tensor<float> out({rows, heads, n});
      ASSERT_TRUE(call("head_linear", flavor, {x.as<float>(), w.as<float>()}, {out}, p).ok());
      EXPECT_LT(relativeError(out, exact), 1e-6);
    }
  }
}

TEST(HostAttention, BidirectionalSeesEveryUnmaskedKey) {
  Random random(testSeed());
  Sizes s;
  Operands<double> o = draw(random, s), last = o;
  CallParams p = heads(s);
  p.integers["causal"] = 0;
  std::fill(last.qpos.values.begin(), last.qpos.values.end(), int32_t(s.keys));
  EXPECT_EQ(o.run(CallFlavor::reference, p).values,
            last.run(CallFlavor::reference, heads(s)).values);
}

TEST(HostAttention, EveryCombinationAgreesOnRandomShapes) {
  Random random(testSeed() + 1);
  for (int i = 0; i < 96; ++i) {
    bool large = i % 24 >= 20; // over several blocks of keys
    int64_t kv = random.between(1, 3);
    Sizes s{.batch = random.between(1, 2),
            .queries = large ? random.between(60, 140) : random.between(1, 20),
            .keys = large ? random.between(250, 600) : random.between(1, 40),
            .heads = kv * random.between(1, 3),
            .kvHeads = kv,
            .keyDim = random.between(1, 20),
            .valueDim = random.between(1, 30)};
    Operands<double> o = draw(random, s);
    CallParams p = heads(s, 1 / std::sqrt(double(s.keyDim)));
    if (i & 1) {
      int64_t r = random.between(1, 9);
      o.q2 = random.normal<double>({s.batch, s.queries, s.heads, r});
      o.k2 = random.normal<double>({s.batch, s.keys, r});
    }
    if (i & 2)
      o.bias = random.normal<double>({s.heads, s.queries, s.keys});
    if (i & 4)
      o.sinks = random.normal<double>({s.heads});
    if (i & 8)
      p.integers["causal"] = 0;
    else
      p.integers["window"] = i % 3 ? 0 : random.between(1, s.keys);
    Tensor<double> exact = o.run(CallFlavor::reference, p);
    Operands<float> narrow = o.as<float>();
    for (CallFlavor flavor : {CallFlavor::fast, CallFlavor::reference})
      EXPECT_LT(relativeError(narrow.run(flavor, p), exact), 3e-6)
          << "case " << i << ": " << s.queries << " queries, " << s.keys << " keys";
  }
}

TEST(HostAttention, WithoutPositionsAndMasksIsInOrder) {
  // The same bits as with 0, 1, 2, ... and ones, whichever are left out, of results and gradients.
  Random random(testSeed() + 4);
  for (int i = 0; i < 32; ++i) {
    Sizes s{.queries = random.between(1, 150), .keys = random.between(1, 300)};
    Operands<double> all = draw(random, s);
    std::iota(all.qpos.values.begin(), all.qpos.values.end(), 0);
    std::fill(all.mask.values.begin(), all.mask.values.end(), 1);
    if (i & 1)
      all.bias = random.normal<double>({s.heads, s.queries, s.keys});
    if (i & 2)
      all.sinks = random.normal<double>({s.heads});
    CallParams p = heads(s);
    p.integers["causal"] = (i & 4) == 0;
    p.integers["window"] = i & 4 ? 0 : i & 8 ? 30 : 0;
    const Tensor<double> dy = random.normal<double>({s.batch, s.queries, s.heads, s.valueDim});
    for (unsigned without = 1; without < 8; ++without) {
      Operands<double> some = all;
      for (auto [bit, tensor] : {std::pair{1, &some.qpos}, {2, &some.kpos}, {4, &some.mask}})
        if (without & bit)
          *tensor = Tensor<int32_t>(Shape{0});
      EXPECT_EQ(some.run(CallFlavor::reference, p).values, all.run(CallFlavor::reference, p).values)
          << without;
      EXPECT_EQ(some.as<float>().run(CallFlavor::fast, p).values,
                all.as<float>().run(CallFlavor::fast, p).values)
          << without;
      for (CallFlavor flavor : {CallFlavor::reference, CallFlavor::fast})
        EXPECT_EQ((gradients<float, float>(some, dy, flavor, p)),
                  (gradients<float, float>(all, dy, flavor, p)))
            << without;
    }
  }
}

TEST(HostAttention, LeavesTheSumsOfWeights) {
  Random random(testSeed());
  for (int64_t window : {0, 3}) {
    Sizes s;
    s.queries = 70;
    s.keys = 90;
    Operands<double> o = draw(random, s);
    CallParams p = heads(s);
    p.integers["window"] = window;
    p.texts["with"] = "sinks qpos kpos kmask log_sums";
    o.sinks = random.normal<double>({s.heads});
    auto leave = [&]<typename S>(const Operands<S> &given, CallFlavor flavor) {
      Tensor<S> out({s.batch, s.queries, s.heads, s.valueDim}), sums({s.batch, s.heads, s.queries});
      Status status =
          call("attention", flavor,
               {given.q, given.k, given.v, given.sinks, given.qpos, given.kpos, given.mask},
               {out, sums}, p);
      EXPECT_TRUE(status.ok()) << status.str();
      EXPECT_EQ(out.values, given.run(flavor, p).values);
      return sums;
    };
    const Tensor<double> sums = leave(o, CallFlavor::reference);
    const Operands<float> narrow = o.as<float>();
    const Tensor<float> narrowSums = leave(narrow, CallFlavor::fast);
    for (int64_t b = 0, at = 0; b < s.batch; ++b)
      for (int64_t h = 0; h < s.heads; ++h)
        for (int64_t i = 0; i < s.queries; ++i, ++at) {
          double sum = std::exp(o.sinks.values[size_t(h)]);
          for (int64_t j = 0; j < s.keys; ++j) {
            const int64_t back = o.qpos.values[size_t(i)] - o.kpos.values[size_t(j)];
            if (back < 0 || (window > 0 && back >= window) ||
                o.mask.values[size_t(b * s.keys + j)] == 0)
              continue;
            double dot = 0;
            for (int64_t d = 0; d < s.keyDim; ++d)
              dot += o.q.values[size_t(((b * s.queries + i) * s.heads + h) * s.keyDim + d)] *
                     o.k.values[size_t(
                         ((b * s.keys + j) * s.kvHeads + h * s.kvHeads / s.heads) * s.keyDim + d)];
            sum += std::exp(0.4 * dot);
          }
          EXPECT_NEAR(sums.values[size_t(at)], std::log(sum), 1e-12 * std::max(1.0, sum));
          EXPECT_NEAR(narrowSums.values[size_t(at)], std::log(sum), 2e-5);
        }
  }
}

TEST(HostAttention, RefusesOperandsThatWithDoesNotName) {
  Random random(testSeed());
  Sizes s;
  Operands<double> o = draw(random, s);
  std::vector<TensorRef> in{o.q, o.k, o.v};
  Tensor<double> out({s.batch, s.queries, s.heads, s.valueDim}), sinks({s.heads});
  CallParams p = heads(s);
  p.texts["with"] = "sinks";
  Status missing = call("attention", CallFlavor::reference, in, {out}, p);
  EXPECT_NE(missing.str().find("operand 'sinks' is missing"), std::string::npos) << missing.str();
  in.push_back(sinks);
  EXPECT_TRUE(call("attention", CallFlavor::reference, in, {out}, p).ok());
  p.texts["with"] = "q2";
  EXPECT_FALSE(call("attention", CallFlavor::reference, in, {out}, p).ok());
}

} // namespace
