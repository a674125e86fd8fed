//===- SpmdMixtralTest.cpp - a whole model on threads, without a plan -------===//
// Mixtral written by hand as one SPMD program over the host calls and the thread communicators,
// against the golden logits. It is the oracle for what the compiler must make of the same model:
// token split, K/V gather, pack → exchange → regroup, retry with a grown bound.
//===----------------------------------------------------------------------===//
#include "HostTesting.h"
#include "moira/rt/Communicator.h"
#include "moira/rt/HostThreads.h"
#include "moira/rt/SafeTensors.h"

#include <cstring>
#include <map>
#include <mutex>
#include <thread>

using namespace moira;
using namespace moira::rt;
using namespace moira::rt::testing;

namespace {

// config.json of the golden model.
constexpr int64_t batch = 2, sequence = 24, hidden = 64, heads = 4, kvHeads = 2, headDim = 16,
                  width = 112, experts = 8, topK = 2, vocabulary = 256, layers = 2;
constexpr double epsilon = 1e-5, theta = 1e6;

/// How tokens are split over the expert-parallel ranks.
enum class Split { none, batch, sequence };

struct Arrangement {
  int ranks = 1;
  Split split = Split::none;
  CallFlavor flavor = CallFlavor::fast;
  int64_t bound = batch * sequence * topK;
};

/// What a run gives: logits [batch, sequence, vocabulary], the rows each expert of layer 0 saw, the
/// bound it ended with, and the number of times that the step ran.
template <typename S> struct Outcome {
  Tensor<S> logits{{batch, sequence, vocabulary}};
  std::map<int64_t, std::vector<S>> expertRows;
  int64_t bound = 0;
  int steps = 0;
};

SafeTensorsFile open(const char *name) {
  auto file = SafeTensorsFile::open(std::string(MOIRA_SOURCE_DIR "/test/golden/mixtral/") + name);
  if (!file)
    throw std::runtime_error(file.status().str());
  return *file;
}

template <typename S> class Rank {
public:
  Rank(Communicator &c, const SafeTensorsFile &weights, const Tensor<int64_t> &ids,
       const Arrangement &setup, Outcome<S> &outcome)
      : comm(c), file(weights), allIds(ids), setup(setup), outcome(outcome) {
    for (int r = 0; r < c.size(); ++r)
      world.members.push_back(r);
    world.self = c.rank();
    localBatch = setup.split == Split::batch ? batch / c.size() : batch;
    localSequence = setup.split == Split::sequence ? sequence / c.size() : sequence;
    segments = setup.split == Split::sequence ? localBatch : 1;
    localExperts = experts / c.size();
    bound = setup.bound;
  }

  /// Repeats the step with a grown bound until nothing was left out.
  Status run() {
    for (int steps = 1;; ++steps) {
      int32_t need = 0;
      if (Status s = step(need); !s)
        return s;
      if (Status s =
              comm.allReduce(world, &need, &need, 1, fb::DType::i32, fb::Reduce::max, "need");
          !s)
        return s;
      if (comm.rank() == 0) {
        outcome.steps = steps;
        outcome.bound = bound;
      }
      if (need <= bound)
        return {};
      bound = need;
    }
  }

private:
  /// The named checkpoint tensors one after another, under a new shape.
  Tensor<S> weight(const std::vector<std::string> &names, Shape shape) {
    std::vector<S> values;
    for (const std::string &name : names) {
      const TensorInfo *info = file.find(name);
      if (!info)
        throw std::runtime_error("no tensor " + name);
      std::vector<float> data(size_t(info->elements()));
      std::memcpy(data.data(), file.data(*info).data(), info->bytes);
      values.insert(values.end(), data.begin(), data.end());
    }
    return Tensor<S>(std::move(shape), std::move(values));
  }

  void run(std::string_view name, std::vector<TensorRef> in, std::vector<TensorRef> out,
           const CallParams &p = {}) {
    if (Status s = call(name, setup.flavor, in, out, p); !s)
      throw std::runtime_error(s.str());
  }
  Tensor<S> linear(const Tensor<S> &x, const Tensor<S> &w, int64_t contract) {
    Shape shape(x.shape.begin(), x.shape.end() - contract);
    shape.insert(shape.end(), w.shape.begin(), w.shape.end() - contract);
    Tensor<S> out(shape);
    run("linear", {x, w}, {out}, params({{"contract", contract}}));
    return out;
  }
  Tensor<S> norm(const Tensor<S> &x, const std::string &name) {
    Tensor<S> out(x.shape);
    run("rms_norm", {x, weight({name}, {hidden})}, {out},
        params({{"norm_dims", 1}}, {{"eps", epsilon}}));
    return out;
  }
  Tensor<S> add(const Tensor<S> &a, const Tensor<S> &b) {
    Tensor<S> out(a.shape);
    run("add", {a, b}, {out});
    return out;
  }
  static void must(const Status &s) {
    if (!s)
      throw std::runtime_error(s.str());
  }
  template <typename T> Tensor<T> exchange(const Tensor<T> &in, Shape shape) {
    Tensor<T> out(std::move(shape));
    must(comm.allToAll(world, in.values.data(), out.values.data(),
                       in.values.size() / size_t(comm.size()) * sizeof(T), "all_to_all"));
    return out;
  }
  /// [b, s/P, ...] of every rank to [b, s, ...].
  Tensor<S> gatherSequence(const Tensor<S> &x) {
    if (setup.split != Split::sequence)
      return x;
    Tensor<S> pieces({comm.size(), int64_t(x.values.size())}),
        out({localBatch, sequence, x.shape[2], x.shape[3]});
    must(comm.allGather(world, x.values.data(), pieces.values.data(), x.values.size() * sizeof(S),
                        "all_gather"));
    size_t run = x.values.size() / size_t(localBatch);
    for (size_t p = 0; p < size_t(comm.size()); ++p)
      for (size_t b = 0; b < size_t(localBatch); ++b)
        std::copy_n(pieces.values.begin() + long((p * size_t(localBatch) + b) * run), run,
                    out.values.begin() + long((b * size_t(comm.size()) + p) * run));
    return out;
  }

  Tensor<S> attention(const Tensor<S> &x, const std::string &prefix) {
    Tensor<S> q = linear(x, weight({prefix + "q_proj.weight"}, {heads, headDim, hidden}), 1);
    Tensor<S> k = linear(x, weight({prefix + "k_proj.weight"}, {kvHeads, headDim, hidden}), 1);
    Tensor<S> v = linear(x, weight({prefix + "v_proj.weight"}, {kvHeads, headDim, hidden}), 1);
    Tensor<int32_t> qpos({localSequence}), kpos({sequence}), mask({localBatch, sequence});
    run("positions", {}, {qpos},
        params({{"start", setup.split == Split::sequence ? comm.rank() * localSequence : 0}}));
    run("positions", {}, {kpos}, params({{"start", 0}}));
    std::fill(mask.values.begin(), mask.values.end(), 1);
    Tensor<S> cosines({localSequence, headDim / 2}), sines({localSequence, headDim / 2}),
        rq(q.shape), rk(k.shape), out(q.shape);
    run("rope_table", {qpos}, {cosines, sines}, ropeParams(theta, headDim));
    run("rope", {q, cosines, sines}, {rq});
    run("rope", {k, cosines, sines}, {rk});
    run("attention", {rq, gatherSequence(rk), gatherSequence(v), qpos, kpos, mask}, {out},
        params({{"window", 0}, {"q_heads", heads}, {"kv_heads", kvHeads}},
               {{"scale", 1 / std::sqrt(double(headDim))}}, {{"with", "qpos kpos kmask"}}));
    return linear(out, weight({prefix + "o_proj.weight"}, {hidden, heads, headDim}), 2);
  }

  Tensor<S> moe(const Tensor<S> &x, int64_t layer, int32_t &need) {
    std::string prefix = "model.layers." + std::to_string(layer) + ".block_sparse_moe.";
    int64_t ranks = comm.size(), room = ranks * bound;
    std::vector<std::string> w13, w2;
    for (int64_t e = comm.rank() * localExperts; e < (comm.rank() + 1) * localExperts; ++e) {
      std::string expert = prefix + "experts." + std::to_string(e) + ".";
      w13.insert(w13.end(), {expert + "w1.weight", expert + "w3.weight"});
      w2.push_back(expert + "w2.weight");
    }
    Shape choice{localBatch, localSequence, topK};
    Tensor<S> logits = linear(x, weight({prefix + "gate.weight"}, {experts, hidden}), 1),
              weights(choice);
    Tensor<int32_t> ids(choice), pos(choice), before({1}, {need}), after({1}),
        counts({1, ranks, localExperts * segments}), groups({1, localExperts});
    run("route", {logits}, {ids, weights},
        params({}, {{"scale", 1}},
               {{"score", "softmax"}, {"order", "score_topk"}, {"renorm", "sum"}}));

    Tensor<S> slots({1, ranks, bound, hidden}), rows({room, hidden}), both({room, 2, width}),
        inner({room, width}), result({room, hidden}), back({ranks, 1, bound, hidden}), y(x.shape);
    run("pack", {x, ids, before}, {slots, counts, pos, after},
        params({{"experts", experts}, {"segments", segments}}));
    need = after.values[0];
    Tensor<S> received = exchange(slots, {ranks, 1, bound, hidden});
    Tensor<int32_t> receivedCounts = exchange(counts, {ranks, 1, localExperts * segments});
    run("regroup", {received, receivedCounts}, {rows, groups}, params({{"segments", segments}}));
    if (layer == 0)
      record(rows, groups);
    run("grouped_matmul", {rows, groups, weight(w13, {localExperts, 2, width, hidden})}, {both},
        params({{"contract", 1}}));
    run("glu", {both}, {inner}, params({}, {}, {{"activation", "silu"}}));
    run("grouped_matmul", {inner, groups, weight(w2, {localExperts, hidden, width})}, {result},
        params({{"contract", 1}}));
    run("ungroup", {result, receivedCounts}, {back}, params({{"segments", segments}}));
    run("combine", {exchange(back, {1, ranks, bound, hidden}), pos, weights}, {y});
    return y;
  }

  void record(const Tensor<S> &rows, const Tensor<int32_t> &groups) {
    static std::mutex guard;
    std::lock_guard lock(guard);
    auto at = rows.values.begin();
    for (int64_t e = 0; e < localExperts; ++e) {
      auto end = at + groups.values[size_t(e)] * hidden;
      outcome.expertRows[comm.rank() * localExperts + e] = std::vector<S>(at, end);
      at = end;
    }
  }

  Status step(int32_t &need) {
    try {
      Tensor<int64_t> ids({localBatch, localSequence});
      for (int64_t b = 0; b < localBatch; ++b)
        for (int64_t s = 0; s < localSequence; ++s)
          ids.values[size_t(b * localSequence + s)] = allIds.values[size_t(token(b, s))];
      Tensor<S> x({localBatch, localSequence, hidden});
      run("embedding", {ids, weight({"model.embed_tokens.weight"}, {vocabulary, hidden})}, {x},
          params({{"row_offset", 0}}));
      for (int64_t l = 0; l < layers; ++l) {
        std::string prefix = "model.layers." + std::to_string(l) + ".";
        x = add(x, attention(norm(x, prefix + "input_layernorm.weight"), prefix + "self_attn."));
        x = add(x, moe(norm(x, prefix + "post_attention_layernorm.weight"), l, need));
      }
      Tensor<S> logits =
          linear(norm(x, "model.norm.weight"), weight({"lm_head.weight"}, {vocabulary, hidden}), 1);
      for (int64_t b = 0; b < localBatch; ++b)
        for (int64_t s = 0; s < localSequence; ++s)
          std::copy_n(logits.values.begin() + (b * localSequence + s) * vocabulary, vocabulary,
                      outcome.logits.values.begin() + token(b, s) * vocabulary);
      return {};
    } catch (const std::runtime_error &error) {
      Status s(ErrorId::Internal, error.what());
      comm.abort(s);
      return s;
    }
  }

  /// Global number of this rank's token.
  int64_t token(int64_t b, int64_t s) const {
    return (setup.split == Split::batch ? comm.rank() * localBatch + b : b) * sequence +
           (setup.split == Split::sequence ? comm.rank() * localSequence + s : s);
  }

  Communicator &comm;
  const SafeTensorsFile &file;
  const Tensor<int64_t> &allIds;
  const Arrangement &setup;
  Outcome<S> &outcome;
  Group world;
  int64_t localBatch, localSequence, segments, localExperts, bound;
};

template <typename S> Outcome<S> runModel(const Arrangement &setup) {
  SafeTensorsFile weights = open("model.safetensors"), io = open("io.safetensors");
  Tensor<int64_t> ids({batch, sequence});
  std::memcpy(ids.values.data(), io.data(*io.find("input_ids")).data(),
              ids.values.size() * sizeof(int64_t));
  Outcome<S> outcome;
  auto comms = makeThreadCommunicators(setup.ranks, 60);
  std::vector<std::thread> threads;
  for (auto &comm : comms)
    threads.emplace_back([&] {
      setHostThreads(1);
      Status s = Rank<S>(*comm, weights, ids, setup, outcome).run();
      EXPECT_TRUE(s.ok()) << s.str();
    });
  for (std::thread &t : threads)
    t.join();
  return outcome;
}

/// Largest difference from the golden logits over the largest golden logit.
template <typename S> double goldenError(const Outcome<S> &outcome) {
  SafeTensorsFile io = open("io.safetensors");
  Tensor<float> golden({batch, sequence, vocabulary});
  std::memcpy(golden.values.data(), io.data(*io.find("logits")).data(),
              golden.values.size() * sizeof(float));
  return relativeError(outcome.logits, golden);
}

const Arrangement setups[] = {
    {1, Split::none}, {2, Split::batch}, {2, Split::sequence}, {4, Split::sequence}};

TEST(SpmdMixtral, GoldenLogitsOnEverySplit) {
  for (const Arrangement &setup : setups) {
    Outcome<float> fast = runModel<float>(setup);
    EXPECT_LT(goldenError(fast), 1e-5) << setup.ranks << " ranks";
    EXPECT_EQ(fast.steps, 1);
    std::cout << setup.ranks << " ranks: fast f32 differs by " << goldenError(fast)
              << " of the largest golden logit\n";
  }
  Outcome<double> exact = runModel<double>({4, Split::sequence, CallFlavor::reference});
  std::cout << "4 ranks: reference f64 differs by " << goldenError(exact) << "\n";
  EXPECT_LT(goldenError(exact), 2e-6);
}

TEST(SpmdMixtral, SmallBoundIsGrownAndTheStepRepeated) {
  // A slot of one row cannot hold what four ranks send each other: the step is repeated, and the
  // result is that of a large bound.
  for (const Arrangement &setup : setups) {
    Arrangement small = setup, large = setup;
    small.bound = 1;
    large.bound = 999;
    Outcome<float> grown = runModel<float>(small), roomy = runModel<float>(large);
    EXPECT_GT(grown.steps, 1);
    EXPECT_GT(grown.bound, 1);
    EXPECT_EQ(roomy.steps, 1);
    EXPECT_EQ(grown.logits.values, roomy.logits.values) << "results must not depend on the bound";
    EXPECT_LT(goldenError(grown), 1e-5);
    std::cout << setup.ranks << " ranks: bound 1 grew to " << grown.bound << " in " << grown.steps
              << " steps\n";
  }
}

TEST(SpmdMixtral, SameBitsFromRunToRun) {
  Arrangement setup{4, Split::sequence};
  Outcome<float> first = runModel<float>(setup);
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(runModel<float>(setup).logits.values, first.logits.values);
}

TEST(SpmdMixtral, EveryExpertSeesTheSameRowsInTheSameOrder) {
  // Reference calls treat every token alike, so the rows of an expert are bitwise those of one rank
  // if and only if their order is, and so are the logits.
  Outcome<float> one = runModel<float>({1, Split::none, CallFlavor::reference});
  ASSERT_EQ(one.expertRows.size(), size_t(experts));
  size_t rows = 0;
  for (const auto &[expert, seen] : one.expertRows)
    rows += seen.size() / size_t(hidden);
  EXPECT_EQ(rows, size_t(batch * sequence * topK));
  for (Arrangement setup : setups) {
    setup.flavor = CallFlavor::reference;
    Outcome<float> other = runModel<float>(setup);
    EXPECT_EQ(other.expertRows, one.expertRows) << setup.ranks << " ranks";
    EXPECT_EQ(other.logits.values, one.logits.values) << setup.ranks << " ranks";
  }
}

} // namespace
