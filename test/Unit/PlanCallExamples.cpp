//===- PlanCallExamples.cpp -------------------------------------*- C++ -*-===//
// The examples, and their views laid out one behind the other.
//===----------------------------------------------------------------------===//
#include "PlanCallExamples.h"

namespace moira::rt::test {

std::vector<Example> examples() {
  return {
      {"embedding", {i({2, 8}), f({100, 16})}, {f({2, 8, 16})}, {offset("row_offset", 100, kTp)}},
      {"linear", {f({2, 8, 4, 16}), f({32, 4, 16})}, {f({2, 8, 32})}, {integer("contract", 2)}},
      {"linears",
       {f({2, 8, 4, 16}), f({32, 4, 16}), f({2, 3, 4, 16}), f({8, 4, 16}), f({1, 4, 16})},
       {f({2, 8, 32}), f({2, 8, 2, 3}), f({2, 8, 8}), f({2, 8, 1})},
       {integer("contract", 2)}},
      {"positions", {}, {i({8})}, {offset("start", 8, kDp)}},
      {"token_positions",
       {i({2, 16}), i({2, 8})},
       {i({2, 8})},
       {integer("pad", 1), offset("start", 8, kDp)}},
      {"sinusoid", {i({2, 8})}, {f({2, 8, 16})}, {integer("offset", 2), integer("zero", 1)}},
      {"relative_bias",
       {f({32, 4}), i({8}), i({16})},
       {f({4, 8, 16})},
       {integer("max_distance", 128), integer("bidirectional", 1)}},
      {"rope_table",
       {i({8})},
       {f({8, 4}), f({8, 4})},
       {reals("frequencies", kFrequencies), real("factor", 1)}},
      {"head_linear",
       {f({2, 3, 4, 16}), f({4, 8, 16})},
       {f({2, 3, 4, 8})},
       {integer("transposed", 0)}},
      {"attention",
       {f({1, 4, 2, 16}), f({1, 8, 1, 16}), f({1, 8, 1, 24}), f({1, 4, 2, 6}), f({1, 8, 6}),
        f({2, 4, 8}), f({2}), i({4}), i({8}), i({1, 8})},
       {f({1, 4, 2, 24}), f({1, 2, 4})},
       {real("scale", 0.25), integer("window", 0), integer("q_heads", 8), integer("kv_heads", 4),
        offset("head_offset", 2, kTp), offset("kv_offset", 1, kTp), integer("causal", 1),
        text("with", "q2 k2 bias sinks qpos kpos kmask log_sums")}},
      {"rms_norm",
       {f({2, 8, 16}), f({16})},
       {f({2, 8, 16})},
       {real("eps", 1e-5), integer("norm_dims", 1)}},
      {"layer_norm",
       {f({2, 8, 16}), f({16}), f({16})},
       {f({2, 8, 16})},
       {real("eps", 1e-5), integer("norm_dims", 1)}},
      {"sum_squares", {f({2, 8, 4, 16})}, {f({2, 8})}, {integer("norm_dims", 2)}},
      {"rms_apply",
       {f({2, 8, 16}), f({2, 8}), f({16})},
       {f({2, 8, 16})},
       {real("eps", 1e-5), integer("count", 64), integer("norm_dims", 1)}},
      {"add", {f({2, 8, 16}), f({8, 16})}, {f({2, 8, 16})}, {}},
      {"scale", {f({2, 8})}, {f({2, 8})}, {real("factor", 0.5)}},
      {"act", {f({2, 8})}, {f({2, 8})}, {text("activation", "relu")}},
      {"clamp", {f({2, 8})}, {f({2, 8})}, {real("min", -8), real("max", 8)}},
      {"glu", {f({6, 2, 16}, 0)}, {f({6, 16}, 0)}, {text("activation", "silu")}},
      {"sigmoid_gate", {f({2, 8, 16}), f({2, 8, 1})}, {f({2, 8, 16})}, {}},
      {"rope", {f({1, 8, 2, 16}), f({8, 4}), f({8, 4})}, {f({1, 8, 2, 16})}, {}},
      {"route",
       {f({2, 8, 16})},
       {i({2, 8, 4}), f({2, 8, 4})},
       {text("score", "sigmoid"), text("order", "topk_score"), text("renorm", "none"),
        real("scale", 1)}},
      {"lookup", {i({2, 8}), i({100, 4})}, {i({2, 8, 4})}, {}},
      {"route_to",
       {f({2, 8, 16}), i({2, 8, 4})},
       {i({2, 8, 4}), f({2, 8, 4})},
       {text("score", "sqrt_softplus"), text("order", "score_topk"), text("renorm", "sum"),
        real("renorm_epsilon", 1e-20), real("renorm_clamp_min", 0), real("scale", 1)}},
      {"sampled_route",
       {f({2, 8, 16}), i({1}), i({1})},
       {i({2, 8, 4}), f({2, 8, 4})},
       {real("jitter_eps", 0.01), real("scale", 1), integer("seed", 7), integer("layer", 3),
        integer("rows", 4), integer("columns", 32), offset("row_offset", 2, kDp),
        offset("column_offset", 8, kTp)}},
      {"jitter",
       {f({2, 8, 16}), i({1}), i({1})},
       {f({2, 8, 16})},
       {real("eps", 0.01), integer("seed", 7), integer("layer", 3), integer("rows", 4),
        integer("columns", 32), offset("row_offset", 2, kDp), offset("column_offset", 8, kTp)}},
      {"limit",
       {i({2, 8, 4}), f({2, 8, 4}), i({1})},
       {i({2, 8, 4}), f({2, 8, 4}), f({2})},
       {integer("experts", 16), integer("capacity", 3), integer("domains", 2),
        text("policy", "random"), text("order", "token_major"), text("renorm", "after"),
        real("renorm_epsilon", 0), real("renorm_clamp_min", 1e-7), real("scale", 1),
        integer("seed", 5), integer("layer", 3), offset("token_offset", 16, kDp)}},
      {"redirect", {i({2, 8, 4})}, {i({2, 8, 4})}, {integer("first", 1), integer("rest", 0)}},
      {"select",
       {f({2, 8, 16}), i({2, 8, 4}), i({1})},
       {f({1, 16}, 0), i({1, 4}), i({2, 8, 4}), i({1})},
       {integer("experts", 16), offset("expert_offset", 4, kTp)}},
      {"select_tokens",
       {i({2, 8, 4}), i({1})},
       {f({1}, 0, fb::DType::i32), i({1, 4}), i({2, 8, 4}), i({1})},
       {integer("experts", 16), offset("expert_offset", 4, kTp)}},
      {"pack",
       {f({2, 8, 16}), i({2, 8, 4}), i({1})},
       {f({1, 4, 1, 16}, 2), i({1, 4, 8}), i({2, 8, 4}), i({1})},
       {integer("experts", 16), integer("segments", 2)}},
      {"sample_counts", {i({2, 8, 4})}, {i({2, 16})}, {}},
      {"regroup",
       {f({4, 1, 1, 16}, 2), i({4, 1, 8})},
       {f({4, 16}, 0), i({1, 4})},
       {integer("segments", 2)}},
      {"ungroup", {f({4, 16}, 0), i({4, 1, 8})}, {f({4, 1, 1, 16}, 2)}, {integer("segments", 2)}},
      {"grouped_matmul",
       {f({4, 2, 16}, 0), i({1, 4}), f({4, 8, 2, 16})},
       {f({4, 8}, 0)},
       {integer("contract", 2)}},
      {"grouped_glu",
       {f({2, 8, 16}), i({1, 4}), f({4, 2, 8, 16}), f({4}, 0, fb::DType::i32)},
       {f({4, 8}, 0), f({4, 2, 8}, 0)},
       {integer("contract", 1), text("activation", "silu"), real("alpha", 1.702)}},
      {"grouped_bias",
       {f({4, 2, 16}, 0), i({1, 4}), f({4, 2, 16})},
       {f({4, 2, 16}, 0)},
       {offset("part", 1, kTp)}},
      {"combine", {f({1, 4, 1, 16}, 2), i({2, 8, 4}), f({2, 8, 4})}, {f({2, 8, 16})}, {}},
      {"write_rows",
       {f({2, 3, 4, 16}), i({1}), f({2, 3, 8})},
       {f({2, 8, 4, 16}), f({2, 8, 8})},
       {}},
      {"slot",
       {f({2, 8, 16}), i({1})},
       {f({2, 1, 16})},
       {integer("index", 0), offset("start", 8, kDp)}},
      {"sample", {f({2, 1, 100}), f({2}), i({4})}, {i({2, 1})}, {offset("row_offset", 2, kDp)}},
      {"adamw",
       {f({2, 8, 16}), f({1}), i({1}), f({1})},
       {f({2, 8, 16}), f({2, 8, 16}), f({2, 8, 16}), f({1})},
       {real("beta1", 0.9), real("beta2", 0.999), real("eps", 1e-8), real("weight_decay", 0.01)}},
      {"expert_adamw",
       {f({2, 8, 16}), f({1}), f({2}), f({1})},
       {f({2, 8, 16}), f({2, 8, 16}), f({2, 8, 16}), f({2})},
       {real("beta1", 0.9), real("beta2", 0.999), real("eps", 1e-8), real("weight_decay", 0.01)}},
      {"sgd",
       {f({8, 16}), f({1}), f({1})},
       {f({8, 16}), f({8, 16})},
       {real("momentum", 0.9), real("weight_decay", 0), integer("nesterov", 1)}},
      {"balance_bias", {f({8})}, {f({8})}, {real("rate", 1e-3)}},
      {"accumulate", {f({8, 16}), i({1})}, {f({8, 16})}, {}},
      {"squares", {f({2, 8, 16})}, {f({2, 16})}, {integer("keep", 1), integer("tail", 1)}},
      {"exact_squares", {f({2, 8, 16})}, {f({160})}, {}},
      {"second_moment",
       {f({8}), f({8}), i({1}), f({1})},
       {f({8})},
       {integer("count", 16), real("decay", 0.8), real("eps", 1e-30)}},
      {"adafactor_norm",
       {f({4, 8, 16}), f({4, 8}), f({4, 16}), f({4})},
       {f({4})},
       {integer("parameters", 1), integer("kept", 1), integer("rows", 1)}},
      {"adafactor",
       {f({4, 8, 16}), f({1}), f({4}), f({4, 8}), f({4, 16}), f({4}), f({4}), f({1})},
       {f({4, 8, 16}), f({4, 8}), f({4, 16}), f({4})},
       {integer("parameters", 1), integer("kept", 1), integer("rows", 1), integer("count", 128),
        real("clip", 1), real("eps", 1e-3), real("weight_decay", 0),
        text("with", "weights factor")}},
      {"adafactor_vector",
       {f({8}), f({1}), f({1}), f({8}), f({1})},
       {f({8}), f({8})},
       {integer("parameters", 0), integer("count", 8), real("clip", 1), real("eps", 1e-3),
        real("weight_decay", 0), text("with", "factor")}},
      {"clip_factor", {f({1})}, {f({1}), f({1})}, {real("max_norm", 1)}},
      {"split_blocks", {f({2, 8, 16})}, {f({8, 2, 16})}, {integer("blocks", 4), integer("dim", 1)}},
      {"join_blocks", {f({8, 2, 16})}, {f({2, 8, 16})}, {integer("blocks", 4), integer("dim", 1)}},
      {"embedding_grad",
       {i({2, 8}), f({2, 8, 16})},
       {f({100, 16})},
       {offset("row_offset", 100, kTp)}},
      {"linear_input_grad",
       {f({2, 8, 32}), f({32, 4, 16})},
       {f({2, 8, 4, 16})},
       {integer("contract", 2)}},
      {"linear_weight_grad",
       {f({2, 8, 32}), f({2, 8, 4, 16})},
       {f({32, 4, 16})},
       {integer("contract", 2)}},
      {"head_weight_grad", {f({2, 3, 4, 8}), f({2, 3, 4, 16})}, {f({4, 8, 16})}, {}},
      {"sum_rows", {f({2, 8, 16})}, {f({16})}, {}},
      {"rms_sums",
       {f({2, 8, 16}), f({2, 8, 16}), f({16})},
       {f({2, 8}), f({2, 8})},
       {integer("norm_dims", 1)}},
      {"rms_norm_grad",
       {f({2, 8, 16}), f({2, 8, 16}), f({16}), f({2, 8}), f({2, 8})},
       {f({2, 8, 16}), f({16})},
       {real("eps", 1e-5), integer("count", 64), integer("norm_dims", 1)}},
      {"layer_norm_grad",
       {f({2, 8, 16}), f({2, 8, 16}), f({16})},
       {f({2, 8, 16}), f({16}), f({16})},
       {real("eps", 1e-5), integer("norm_dims", 1)}},
      {"clamp_grad", {f({2, 8}), f({2, 8})}, {f({2, 8})}, {real("min", -8), real("max", 8)}},
      {"act_grad", {f({2, 8}), f({2, 8})}, {f({2, 8})}, {text("activation", "relu")}},
      {"glu_grad",
       {f({6, 16}, 0), f({6, 2, 16}, 0)},
       {f({6, 2, 16}, 0)},
       {text("activation", "silu")}},
      {"sigmoid_gate_grad", {f({2, 8, 16}), f({2, 8, 16}), f({2, 8, 1})}, {f({2, 8, 1})}, {}},
      {"relative_bias_grad",
       {f({4, 8, 16}), i({8}), i({16})},
       {f({32, 4})},
       {integer("max_distance", 128), integer("bidirectional", 1)}},
      {"attention_grad",
       {f({1, 4, 2, 24}), f({1, 4, 2, 16}), f({1, 8, 1, 16}), f({1, 8, 1, 24}), f({1, 4, 2, 6}),
        f({1, 8, 6}), f({2, 4, 8}), f({2}), i({4}), i({8}), i({1, 8}), f({1, 4, 2, 24}),
        f({1, 2, 4})},
       {f({1, 4, 2, 16}), f({1, 8, 1, 16}), f({1, 8, 1, 24}), f({1, 4, 2, 6}), f({1, 8, 6}),
        f({2, 4, 8}), f({2}), f({64})},
       {real("scale", 0.25), integer("window", 0), integer("q_heads", 8), integer("kv_heads", 4),
        offset("head_offset", 2, kTp), offset("kv_offset", 1, kTp), integer("causal", 1),
        integer("fastest", 0), text("with", "q2 k2 bias sinks qpos kpos kmask out log_sums room")}},
      {"route_grad",
       {f({2, 8, 4}), f({2, 8, 16}), i({2, 8, 4})},
       {f({2, 8, 16})},
       {text("score", "sigmoid"), text("order", "score_topk"), text("renorm", "sum"),
        real("renorm_epsilon", 1e-20), real("renorm_clamp_min", 0), real("jitter_eps", 0),
        real("scale", 1)}},
      {"limit_grad",
       {f({2, 8, 4}), f({2, 8, 4}), i({2, 8, 4})},
       {f({2, 8, 4})},
       {text("renorm", "after"), real("renorm_epsilon", 0), real("renorm_clamp_min", 1e-7),
        real("scale", 1)}},
      {"choice_dots", {f({1, 4, 1, 16}, 2), f({2, 8, 16}), i({2, 8, 4})}, {f({2, 8, 4})}, {}},
      {"grouped_input_grad",
       {f({4, 8}, 0), i({1, 4}), f({4, 8, 2, 16})},
       {f({4, 2, 16}, 0)},
       {integer("contract", 2)}},
      {"grouped_glu_grad",
       {f({4, 16}, 0), i({1, 4}), f({4, 16, 8}), f({4, 2, 8}, 0), i({2, 8, 4}), f({2, 8, 4})},
       {f({4, 2, 8}, 0), f({4, 8}, 0), f({2, 8, 4})},
       {text("activation", "silu")}},
      {"grouped_weight_grad",
       {f({4, 8}, 0), i({1, 4}), f({4, 2, 16}, 0), i({2, 4})},
       {f({4, 8, 2, 16})},
       {integer("contract", 2)}},
      {"grouped_bias_grad", {f({4, 2, 16}, 0), i({1, 4}), i({2, 4})}, {f({4, 2, 16})}, {}},
      {"next_tokens", {i({2, 8}), i({2, 8})}, {i({2, 8})}, {}},
      {"row_max",
       {f({2, 8, 25})},
       {f({2, 8})},
       {integer("classes", 97), offset("column_offset", 25, kTp)}},
      {"cross_entropy_stats",
       {f({2, 8, 25}), f({2, 8}), i({2, 8})},
       {f({2, 8, 3})},
       {integer("classes", 97), offset("column_offset", 25, kTp)}},
      {"row_max_stats",
       {f({2, 8, 25}), i({2, 8})},
       {f({2, 8}), f({2, 8, 3})},
       {integer("classes", 97), offset("column_offset", 25, kTp)}},
      {"cross_entropy_stats_grad",
       {f({2, 8, 3}), f({2, 8, 25}), f({2, 8}), i({2, 8})},
       {f({2, 8, 25})},
       {integer("classes", 97), offset("column_offset", 25, kTp)}},
      {"cross_entropy",
       {f({2, 8, 3}), i({2, 8})},
       {f({1}), f({1})},
       {integer("classes", 97), real("smoothing", 0.1)}},
      {"cross_entropy_grad",
       {f({1}), f({2, 8, 3}), i({2, 8})},
       {f({2, 8, 3})},
       {integer("classes", 97), real("smoothing", 0.1)}},
      {"ratio", {f({1}), f({1})}, {f({1})}, {}},
      {"expert_load", {i({2, 8, 4})}, {f({16})}, {}},
      {"expert_probs", {f({2, 8, 16})}, {f({16})}, {}},
      {"expert_probs_grad", {f({16}), f({2, 8, 16})}, {f({2, 8, 16})}, {}},
      {"balance", {f({16}), f({16})}, {f({1})}, {integer("tokens", 16)}},
      {"balance_grad", {f({1}), f({16})}, {f({16})}, {integer("tokens", 16)}},
      {"sequence_balance", {i({2, 8, 4}), f({2, 8, 16})}, {f({1})}, {integer("sequences", 2)}},
      {"sequence_balance_grad",
       {f({1}), i({2, 8, 4}), f({2, 8, 16})},
       {f({2, 8, 16})},
       {integer("sequences", 2)}},
      {"router_z", {f({2, 8, 16})}, {f({1})}, {integer("tokens", 16)}},
      {"router_z_grad", {f({1}), f({2, 8, 16})}, {f({2, 8, 16})}, {integer("tokens", 16)}},
  };
}

PlanSpec callsPlan() {
  PlanSpec plan;
  plan.axes = {{"dp", kMesh[0]}, {"tp", kMesh[1]}};
  ProgramSpec p;
  p.name = "forward";
  p.ranks = kMesh[0] * kMesh[1];
  p.queues = {"compute"};
  p.boundInitial = 4;
  p.boundMax = env().boundMax;
  p.arenas = {{"activations", fb::ArenaRole::activations, 0, 0},
              {"ragged", fb::ArenaRole::ragged, 0, 0},
              {"state", fb::ArenaRole::state, 0, 0}};
  auto place = [&](const CallOperand &operand, bool state = false) {
    ViewSpec view{.dtype = operand.dtype};
    uint64_t bytes = dtypeBytes(operand.dtype);
    for (const Dim &dim : operand.shape) {
      if (dim.ragged)
        view.boundDim = static_cast<int32_t>(view.shape.size());
      view.shape.push_back(dim.scale);
      bytes *= dim.scale;
    }
    bool ragged = view.boundDim >= 0;
    view.arena = state ? 2 : ragged;
    uint64_t &size = ragged ? p.arenas[1].bytesPerBound : p.arenas[view.arena].bytes;
    (ragged ? view.offsetPerBound : view.offset) = size;
    size += (bytes + 63) / 64 * 64;
    p.views.push_back(view);
    return static_cast<uint32_t>(p.views.size() - 1);
  };
  for (const Example &e : examples()) {
    InstrSpec call{.target = static_cast<uint32_t>(plan.calls.size())};
    plan.calls.push_back(e.call);
    bool rows = e.call == "write_rows"; // of a state, at a place that the program is given
    bool updates = rows || e.call == "adamw" || e.call == "expert_adamw" || e.call == "sgd" ||
                   e.call == "accumulate" || e.call == "balance_bias" || e.call == "adafactor" ||
                   e.call == "adafactor_vector";
    for (const CallOperand &operand : e.inputs) {
      call.inputs.push_back(place(operand));
      if (rows && operand.dtype == fb::DType::i32) {
        p.inputs.push_back({"position", fb::DType::i32, {1}, {{}}, call.inputs.back(), 0, 5});
        continue;
      }
      p.instrs.push_back({.kind = fb::InstrKind::fill,
                          .outputs = {call.inputs.back()},
                          .params = {realParam("value", 1)}});
    }
    for (const CallOperand &operand : e.outputs)
      call.outputs.push_back(place(operand, updates));
    for (uint32_t output : call.outputs) {
      if (!updates)
        break;
      const ViewSpec &view = p.views[output];
      p.states.push_back({.name = "state" + std::to_string(p.states.size()),
                          .shape = view.shape,
                          .dims = std::vector<DimSpec>(view.shape.size()),
                          .arena = 2,
                          .offset = view.offset});
    }
    for (const CallParam &param : e.params)
      call.params.push_back({std::string(param.name),
                             param.kind,
                             param.integer,
                             param.real,
                             std::string(param.text),
                             {param.axes.begin(), param.axes.end()},
                             {param.reals.begin(), param.reals.end()}});
    p.instrs.push_back(call);
    if (e.call == "pack")
      p.instrs.push_back({.kind = fb::InstrKind::require_bound, .inputs = {call.outputs.back()}});
  }
  plan.programs = {p};
  return plan;
}

} // namespace moira::rt::test
