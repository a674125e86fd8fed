// Shows that every call of Calls.def has an accepted example, that each rule of CallChecks.cpp
// refuses what breaks it, and that the closed form for attention's heads equals trying every rank.
#include "PlanCallExamples.h"

#include <cmath>
#include <cstdlib>
#include <functional>
#include <gtest/gtest.h>
#include <random>
#include <set>

using namespace moira::rt;
using namespace moira::rt::test;
namespace fb = moira::fb;
using fb::DType;

namespace {

Status check(const Example &e, const CallEnv &e2) {
  const CallDesc *desc = findCall(e.call);
  if (!desc)
    return {ErrorId::PlanUnknownCall, e.call};
  return checkCall(*desc, e.inputs, e.outputs, e.params, e2);
}

TEST(CallRegistry, EveryCallHasAnAcceptedExample) {
  std::set<std::string> seen;
  for (const Example &e : examples()) {
    EXPECT_EQ(check(e, env()).str(), "") << e.call;
    seen.insert(e.call);
  }
  for (const CallDesc &call : allCalls())
    EXPECT_TRUE(seen.count(call.name)) << call.name;
  EXPECT_EQ(findCall("lineaR"), nullptr);
}

TEST(CallRegistry, OnlyAdamWMayAddUpSquares) {
  for (const CallDesc &call : allCalls()) {
    std::optional<size_t> squares = squaresOutput(call);
    EXPECT_EQ(squares.has_value(), call.name == "adamw") << call.name;
    if (squares) {
      EXPECT_EQ(squares, call.outputs.size() - 1);
      EXPECT_TRUE(call.outputs[*squares].optional);
      EXPECT_EQ(call.inputs.back().role, "factor");
    }
  }
}

TEST(CallRegistry, AccumulationFollowsTheComputeType) {
  Example e{"sum_squares", {f({2, 16}, -1, DType::bf16)}, {f({2})}, {integer("norm_dims", 1)}};
  CallEnv bf16 = env(), f64 = env();
  bf16.compute = DType::bf16;
  f64.compute = DType::f64;
  EXPECT_EQ(check(e, bf16).str(), "");
  EXPECT_NE(check(e, env()).str(), "");
  e.inputs[0].dtype = e.outputs[0].dtype = DType::f64;
  EXPECT_EQ(check(e, f64).str(), "");
}

// Any one dimension of any operand made larger breaks some rule, unless the dimension is free.
TEST(CallRegistry, EveryDimensionIsTied) {
  // Sizes that stand in one operand only and mean nothing to another.
  const std::set<std::string> freeSize = {"embedding input 1 dim 0",
                                          "squares input 0 dim 1",
                                          "positions output 0 dim 0",
                                          "token_positions input 0 dim 1",
                                          "sinusoid output 0 dim 2",
                                          "sum_squares input 0 dim 2",
                                          "sum_squares input 0 dim 3",
                                          "route input 0 dim 2",
                                          "route_to input 0 dim 2",
                                          "sampled_route input 0 dim 2",
                                          "sequence_balance input 0 dim 2",
                                          "sequence_balance input 1 dim 2",
                                          "sequence_balance_grad input 1 dim 2",
                                          "lookup input 1 dim 0",
                                          "combine input 0 dim 0",
                                          "combine input 0 dim 1",
                                          "combine input 0 dim 2",
                                          "attention_grad output 7 dim 0",
                                          "embedding_grad output 0 dim 0",
                                          "sum_rows input 0 dim 0",
                                          "sum_rows input 0 dim 1",
                                          "choice_dots input 0 dim 0",
                                          "choice_dots input 0 dim 1",
                                          "choice_dots input 0 dim 2",
                                          "grouped_bias_grad input 0 dim 0",
                                          "row_max input 0 dim 2",
                                          "cross_entropy_stats input 0 dim 2",
                                          "row_max_stats input 0 dim 2",
                                          "expert_load input 0 dim 0",
                                          "expert_load input 0 dim 1",
                                          "expert_load input 0 dim 2",
                                          "expert_load output 0 dim 0",
                                          "expert_probs input 0 dim 0",
                                          "expert_probs input 0 dim 1",
                                          "router_z input 0 dim 0",
                                          "router_z input 0 dim 1",
                                          "router_z input 0 dim 2",
                                          "slot input 0 dim 1",
                                          "sample input 0 dim 2",
                                          "grouped_glu input 0 dim 0",
                                          "grouped_glu input 0 dim 1",
                                          "sample_counts input 0 dim 1",
                                          "sample_counts input 0 dim 2",
                                          "sample_counts output 0 dim 1",
                                          "exact_squares input 0 dim 0",
                                          "exact_squares input 0 dim 1",
                                          "exact_squares input 0 dim 2",
                                          "grouped_weight_grad input 3 dim 0",
                                          "grouped_bias_grad input 2 dim 0"};
  // A slot may have a fixed number of rows.
  const std::set<std::string> freeRagged = {
      "select output 0 dim 0",        "select_tokens output 0 dim 0",
      "pack output 0 dim 2",          "combine input 0 dim 2",
      "choice_dots input 0 dim 2",    "grouped_bias_grad input 0 dim 0",
      "attention_grad output 7 dim 0"};
  for (const Example &e : examples())
    for (bool output : {false, true})
      for (size_t o = 0; o < (output ? e.outputs : e.inputs).size(); ++o)
        for (size_t d = 0; d < (output ? e.outputs : e.inputs)[o].shape.size(); ++d) {
          Example changed = e;
          Dim &dim = (output ? changed.outputs : changed.inputs)[o].shape[d];
          std::string where = e.call + (output ? " output " : " input ") + std::to_string(o) +
                              " dim " + std::to_string(d);
          ++dim.scale;
          EXPECT_EQ(check(changed, env()).ok(), freeSize.count(where) == 1) << where;
          --dim.scale;
          dim.ragged = !dim.ragged;
          EXPECT_EQ(check(changed, env()).ok(), freeRagged.count(where) == 1) << where << " ragged";
        }
}

TEST(CallRegistry, RefusesBrokenContracts) {
  struct Case {
    const char *call;
    std::function<void(Example &)> change;
    const char *text;
  } cases[] = {
      {"embedding", [](Example &e) { e.params[0] = offset("row_offset", -1, kTp); }, "negative"},
      {"embedding", [](Example &e) { e.inputs.pop_back(); }, "1 inputs where 2"},
      {"embedding", [](Example &e) { e.outputs.push_back(e.outputs[0]); }, "2 outputs where 1"},
      {"positions", [](Example &e) { e.params[0] = offset("start", int64_t(1) << 31, kDp); },
       "range of i32"},
      {"token_positions", [](Example &e) { e.params[1] = offset("start", 9, kDp); },
       "leaves the 16 of ids"},
      {"token_positions", [](Example &e) { e.params[0].integer = -1; }, "pad is -1"},
      {"token_positions", [](Example &e) { e.params[0].integer = 0x7fffffff; }, "range of i32"},
      {"sinusoid", [](Example &e) { e.outputs[0] = f({2, 8, 3}); }, "rows of 3, under 4"},
      {"sinusoid", [](Example &e) { e.params[0].integer = int64_t(1) << 40; }, "range of i32"},
      {"relative_bias", [](Example &e) { e.inputs[0] = f({30, 4}); }, "do not divide by 4"},
      {"relative_bias", [](Example &e) { e.params[0].integer = 8; }, "not over the 8 exact"},
      {"rope_table", [](Example &e) { e.params[1].real = 0; }, "factor is not a positive number"},
      {"rope_table", [](Example &e) { e.params[1].real = std::nan(""); }, "not a number"},
      {"rope_table", [](Example &e) { e.params[0].reals = e.params[0].reals.first(3); },
       "4 columns for 3 frequencies"},
      {"rope_table",
       [](Example &e) {
         static constexpr double infinite[] = {1, 2, 3, INFINITY};
         e.params[0].reals = infinite;
       },
       "infinite"},
      {"rope_table",
       [](Example &e) {
         static const double no[] = {1, 2, 3, std::nan("")};
         e.params[0].reals = no;
       },
       "frequencies holds something that is not a number"},
      {"rope", [](Example &e) { e.params = {integer("interleaved", 2)}; }, "interleaved is 2"},
      {"head_linear", [](Example &e) { e.params[0].integer = 1; }, "matrix is 8 x 16"},
      {"head_linear", [](Example &e) { e.params[0].integer = 2; }, "transposed is 2"},
      {"attention",
       [](Example &e) {
         e.inputs[1] = f({1, 8, 1, 1, 16});
         e.inputs[2] = f({1, 8, 1, 1, 24});
       },
       "more than four dimensions"},
      {"attention", [](Example &e) { e.params[1].integer = -1; }, "window is -1"},
      {"attention", [](Example &e) { e.params[3].integer = 8; }, "past the 1 kv heads"},
      {"attention", [](Example &e) { e.params[2].integer = 7; }, "leaves the 7 q_heads"},
      {"attention", [](Example &e) { e.params[2].integer = 0; }, "must be 1"},
      {"attention", [](Example &e) { e.params[5] = offset("kv_offset", 2, kTp); }, "kv_offset"},
      {"attention", [](Example &e) { e.params[5] = offset("kv_offset", 0); }, "past the 1 kv"},
      {"attention", [](Example &e) { e.params[4] = offset("head_offset", 2, kBoth); },
       "head_offset"},
      {"attention", [](Example &e) { e.params[6].integer = 2; }, "causal is 2"},
      {"attention",
       [](Example &e) {
         e.params[6].integer = 0;
         e.params[1].integer = 3;
       },
       "a window needs causal"},
      {"attention",
       [](Example &e) {
         e.params[7].text = "k2 log_sums";
         e.inputs.resize(3);
         e.inputs.push_back(f({1, 8, 6}));
       },
       "given together"},
      {"attention", [](Example &e) { e.inputs.pop_back(); }, "9 inputs where 10 are wanted"},
      {"attention", [](Example &e) { e.params[7].text = "q2 k2 bias sinks log_sums"; },
       "10 inputs where 7 are wanted"},
      {"attention",
       [](Example &e) { e.params[7].text = "q2 k2 bias qpos kpos kmask sinks log_sums"; },
       "not in their order"},
      {"attention",
       [](Example &e) { e.params[7].text = "k2 q2 bias sinks qpos kpos kmask log_sums"; },
       "not in their order"},
      {"attention",
       [](Example &e) { e.params[7].text = "q2 k2 bias sinks qpos kpos kmask log_sums v"; },
       "none of the optional"},
      {"attention", [](Example &e) { e.params[7].text = "q2 k2 bias sinks qpos kpos kmask"; },
       "2 outputs where 1 are wanted"},
      {"attention", [](Example &e) { e.inputs[5] = f({2, 4, 7}); }, "operand bias"},
      {"attention", [](Example &e) { e.inputs[6] = f({4}); }, "operand sinks"},
      {"attention", [](Example &e) { e.inputs[9] = i({2, 8}); }, "operand kmask"},
      {"attention_grad", [](Example &e) { e.params[7].integer = 2; }, "fastest is 2"},
      {"attention_grad",
       [](Example &e) {
         e.params[8].text = "q2 k2 bias sinks qpos kpos kmask out room";
         e.inputs.pop_back();
       },
       "out and log_sums are given together"},
      {"rms_norm", [](Example &e) { e.params[0].real = -1; }, "eps"},
      {"rms_norm", [](Example &e) { e.params[1].integer = 17; }, "norm_dims is 17"},
      {"rms_apply", [](Example &e) { e.params[1].integer = 0; }, "count is 0"},
      {"clamp", [](Example &e) { e.params[0].real = 9; }, "min is over max"},
      {"glu", [](Example &e) { e.params[0].text = "tanh"; }, "activation is none of"},
      {"rope", [](Example &e) { e.inputs[1] = e.inputs[2] = f({8, 9}); }, "9 rotated pairs"},
      {"route",
       [](Example &e) {
         e.outputs[0] = i({2, 8, 17});
         e.outputs[1] = f({2, 8, 17});
       },
       "17 choices of 16"},
      {"route", [](Example &e) { e.params[0].text = "tanh"; }, "score is none of"},
      {"route", [](Example &e) { e.inputs.push_back(f({15})); }, "operand bias has 15"},
      {"route", [](Example &e) { e.params.push_back(integer("groups", 5)); },
       "5 groups do not divide 16 experts"},
      {"route", [](Example &e) { e.params.push_back(integer("groups", 0)); }, "0 groups"},
      {"route", [](Example &e) { e.params.push_back(integer("groups", 8)); },
       "1 of 8 groups do not hold 4 choices"},
      {"route", [](Example &e) { e.params.push_back(integer("group_keep", 2)); }, "2 of 1 groups"},
      {"route", [](Example &e) { e.params.push_back(text("group_score", "sum")); },
       "group_score is none of"},
      {"route",
       [](Example &e) {
         for (const CallParam &p :
              {integer("groups", 16), integer("group_keep", 16), text("group_score", "top2_sum")})
           e.params.push_back(p);
       },
       "no top-2 sum"},
      {"route", [](Example &e) { e.params.push_back(real("renorm_epsilon", -1)); },
       "renorm_epsilon is not a number >= 0"},
      {"route", [](Example &e) { e.params[0].text = "sparsemixer"; }, "a sparsemixer has order"},
      {"route_to", [](Example &e) { e.params[0].text = "sparsemixer"; }, "score is none of"},
      {"route_to", [](Example &e) { e.params[4].real = -1; }, "renorm_clamp_min is not"},
      {"sampled_route", [](Example &e) { e.params[0].real = -1; }, "jitter_eps is negative"},
      {"sampled_route", [](Example &e) { e.params[2].integer = -1; }, "seed is negative"},
      {"sampled_route", [](Example &e) { e.params[4].integer = 3; }, "leaves the 3 rows"},
      {"jitter", [](Example &e) { e.params[0].real = 0; }, "eps is not above 0"},
      {"jitter", [](Example &e) { e.params[1].integer = -1; }, "seed is negative"},
      {"jitter", [](Example &e) { e.params[2].integer = -1; }, "layer must be"},
      {"jitter", [](Example &e) { e.params[3].integer = 3; }, "leaves the 3 rows"},
      {"jitter", [](Example &e) { e.params[6] = offset("column_offset", 9, kTp); },
       "leaves the 32 columns"},
      {"jitter", [](Example &e) { e.params[4].integer = int64_t(1) << 30; }, "rows times columns"},
      {"limit", [](Example &e) { e.params[1].integer = -1; }, "capacity is -1"},
      {"limit", [](Example &e) { e.params[2].integer = 3; }, "16 tokens do not divide into 3"},
      {"limit", [](Example &e) { e.params[3].text = "none"; }, "policy is none of"},
      {"limit", [](Example &e) { e.params[3].text = "probs"; }, "step is given exactly"},
      {"limit", [](Example &e) { e.inputs.pop_back(); }, "step is given exactly"},
      {"limit", [](Example &e) { e.params[10].integer = -1; }, "layer must be"},
      {"limit", [](Example &e) { e.params[11] = offset("token_offset", -1, kDp); },
       "leave the range of i32"},
      {"redirect", [](Example &e) { e.params[0].integer = -1; }, "first is no expert"},
      {"write_rows",
       [](Example &e) {
         e.inputs[0] = f({2, 9, 4, 16});
         e.inputs[2] = f({2, 9, 8});
       },
       "9 rows do not fit into 8"},
      {"write_rows", [](Example &e) { e.outputs.pop_back(); }, "rows2 and state2"},
      {"write_rows", [](Example &e) { e.inputs.pop_back(); }, "rows2 and state2"},
      {"slot", [](Example &e) { e.params[0].integer = -1; }, "index is -1"},
      {"slot", [](Example &e) { e.params[1] = offset("start", -1, kDp); }, "start must be 0"},
      {"linear_weight_grad", [](Example &e) { e.params.push_back(integer("per_sample", 2)); },
       "per_sample is 2, not 0 or 1"},
      {"clip_factor", [](Example &e) { e.inputs[0] = f({3}); },
       "neither one number nor the digits"},
      {"sample", [](Example &e) { e.params[0] = offset("row_offset", -1, kDp); },
       "leave the range of i32"},
      {"select", [](Example &e) { e.params[1] = offset("expert_offset", 5, kTp); },
       "leaves the 16 experts"},
      {"select", [](Example &e) { e.params[1] = offset("expert_offset", -4, kTp); },
       "leaves the 16 experts"},
      {"select", [](Example &e) { e.params[0].integer = int64_t(1) << 40; }, "2^31"},
      {"select_tokens", [](Example &e) { e.params[1] = offset("expert_offset", 5, kTp); },
       "leaves the 16 experts"},
      {"select_tokens", [](Example &e) { e.outputs[0].dtype = DType::f32; }, "operand tokens"},
      {"grouped_glu", [](Example &e) { e.inputs.pop_back(); }, "no tokens say which"},
      {"grouped_glu", [](Example &e) { e.inputs[0].shape[1].ragged = true; }, "t"},
      {"grouped_glu", [](Example &e) { e.inputs[2].shape[1] = {3, false}; }, "operand w"},
      {"grouped_glu", [](Example &e) { e.params[1] = text("activation", "gelu"); }, "silu only"},
      {"grouped_weight_grad", [](Example &e) { e.inputs[2].shape[0] = {5, true}; }, "operand rows"},
      {"grouped_glu_grad", [](Example &e) { e.inputs[2].shape[1] = {15, false}; }, "operand w"},
      {"grouped_glu_grad", [](Example &e) { e.inputs[4].shape[0].ragged = true; }, "t"},
      {"grouped_glu_grad", [](Example &e) { e.params[0] = text("activation", "tanh"); }, "tanh"},
      {"pack", [](Example &e) { e.params[1].integer = -2; }, "segments is -2"},
      {"pack", [](Example &e) { e.params[0].integer = 18; }, "18 experts do not divide"},
      {"pack", [](Example &e) { e.params[0].integer = 0; }, "experts must be"},
      {"regroup", [](Example &e) { e.params[0].integer = 3; }, "segments"},
      {"ungroup", [](Example &e) { e.params[0].integer = 3; }, "3 segments do not divide"},
      {"split_blocks", [](Example &e) { e.inputs[0].dtype = DType::i32; }, "operand out is f32"},
      {"linear", [](Example &e) { e.params[0].integer = 1; }, "operand"},
      {"linear", [](Example &e) { e.inputs[0].dtype = DType(200); }, "dtype 200"},
      {"linear", [](Example &e) { e.params.push_back(e.params[0]); }, "twice"},
      {"linears", [](Example &e) { e.outputs.pop_back(); }, "4 weights, 3 results"},
      {"linears", [](Example &e) { e.inputs.pop_back(); }, "3 weights, 4 results"},
      {"linears", [](Example &e) { e.inputs.push_back(e.inputs[1]); }, "6 inputs where 5"},
      {"linears", [](Example &e) { e.inputs[3].shape[1] = {2, false}; }, "operand w3"},
      {"linears", [](Example &e) { e.outputs[2].shape[2] = {7, false}; }, "operand out3"},
      {"add", [](Example &e) { e.inputs[1] = f({2, 8, 16, 1}); }, "at least"},
  };
  for (const Case &c : cases)
    for (Example e : examples())
      if (e.call == c.call) {
        c.change(e);
        std::string text = check(e, env()).str();
        EXPECT_NE(text.find(c.text), std::string::npos) << c.call << ": " << c.text << "\n" << text;
      }
}

TEST(CallRegistry, AttentionHeadsEqualTryingEveryRank) {
  const char *chosen = std::getenv("MOIRA_TEST_SEED");
  unsigned seed = chosen ? std::atoi(chosen) : std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  auto pick = [&](int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(random);
  };
  const std::vector<std::vector<uint8_t>> axisLists = {{}, {0}, {1}, {0, 1}, {1, 0}};
  size_t accepted = 0;
  for (int round = 0; round < 50000; ++round) {
    uint32_t mesh[] = {static_cast<uint32_t>(pick(1, 3)), static_cast<uint32_t>(pick(1, 3))};
    int heads = pick(1, 4), kvHeads = pick(1, 4), qAll = pick(1, 12), kvAll = pick(1, 6);
    int qFactor = pick(0, 4), kvFactor = pick(0, 2);
    const auto &qAxes = axisLists[pick(0, 4)], &kvAxes = axisLists[pick(0, 4)];
    bool expected = true;
    for (uint32_t a = 0; a < mesh[0]; ++a)
      for (uint32_t b = 0; b < mesh[1]; ++b) {
        uint32_t at[] = {a, b};
        auto value = [&](int factor, const std::vector<uint8_t> &axes) {
          int index = 0;
          for (uint8_t axis : axes)
            index = index * mesh[axis] + at[axis];
          return factor * index;
        };
        int first = value(qFactor, qAxes), kvFirst = value(kvFactor, kvAxes);
        expected &= first + heads <= qAll;
        for (int h = 0; h < heads; ++h) {
          int kv = (first + h) * kvAll / qAll - kvFirst;
          expected &= kv >= 0 && kv < kvHeads;
        }
      }
    Example e{"attention",
              {f({1, 4, heads, 8}), f({1, 8, kvHeads, 8}), f({1, 8, kvHeads, 8})},
              {f({1, 4, heads, 8})},
              {real("scale", 1), integer("window", 0), integer("q_heads", qAll),
               integer("kv_heads", kvAll), offset("head_offset", qFactor, qAxes),
               offset("kv_offset", kvFactor, kvAxes)}};
    Status status = check(e, CallEnv{DType::f32, mesh, 0});
    accepted += status.ok();
    ASSERT_EQ(status.ok(), expected)
        << "round " << round << ": mesh " << mesh[0] << "x" << mesh[1] << " heads " << heads
        << " of " << qAll << ", kv " << kvHeads << " of " << kvAll << ", factors " << qFactor << " "
        << kvFactor << "\n"
        << status.str();
  }
  std::printf("%zu of 50000 accepted\n", accepted);
  EXPECT_GT(accepted, 500u);
}

} // namespace
