//===- WeightTable.cpp - the weights of a model ---------------------------===//
// Shapes and names; docs/architecture.md, section 1, gives the ranks.
//===----------------------------------------------------------------------===//
#include "moira/Import/WeightTable.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace moira;

std::string moira::expandName(StringRef pattern, int64_t layer, int64_t expert) {
  std::string out;
  while (!pattern.empty()) {
    size_t next = pattern.find('{');
    out += pattern.take_front(next);
    pattern = pattern.drop_front(std::min(next, pattern.size()));
    if (pattern.consume_front("{l}"))
      out += std::to_string(layer);
    else if (expert >= 0 && pattern.consume_front("{e}"))
      out += std::to_string(expert);
    else if (!pattern.empty()) {
      out += pattern.front();
      pattern = pattern.drop_front();
    }
  }
  return out;
}

int64_t WeightState::elements() const {
  int64_t n = 1;
  for (int64_t size : shape)
    n *= size;
  return n;
}

WeightTable::WeightTable(const ModelSpec &spec, ArrayRef<unsigned> layouts) : spec(spec) {
  int64_t D = spec.hidden, V = spec.vocab;
  add(WeightRole::embedding, -1, {V, D}, {V, D});
  for (int64_t l = 0, e = spec.layers.size(); l < e; ++l)
    addLayer(l, spec.modelClass->layouts[layouts[l]]);
  addNorm(WeightRole::final_norm, WeightRole::final_norm_bias, -1);
  if (!spec.tiedHead)
    add(WeightRole::head, -1, {V, D}, {V, D});
  if (spec.headBias)
    add(WeightRole::head_bias, -1, {V}, {V});
}

WeightState &WeightTable::add(WeightRole role, int64_t layer, ArrayRef<int64_t> shape,
                              ArrayRef<int64_t> diskShape, const std::vector<std::string> *from) {
  const TensorNames &names = spec.modelClass->tensors.at(role);
  WeightState state;
  state.name = expandName(names.state, layer);
  state.role = role;
  state.layer = layer;
  state.shape.assign(shape.begin(), shape.end());
  state.diskShape.assign(diskShape.begin(), diskShape.end());
  for (const std::string &pattern : from ? *from : names.from)
    state.from.push_back(expandName(pattern, layer));
  state.perExpert = StringRef(state.from.front()).contains("{e}");
  index[{layer, role}] = all.size();
  all.push_back(std::move(state));
  return all.back();
}

void WeightTable::addParts(int64_t layer, int64_t dim, WeightRole first,
                           ArrayRef<int64_t> firstShape, WeightRole second,
                           ArrayRef<int64_t> secondShape, ArrayRef<int64_t> diskShape) {
  int64_t middle = firstShape[dim], size = middle + secondShape[dim];
  add(first, layer, firstShape, diskShape).slice = {dim, 0, size};
  add(second, layer, secondShape, diskShape).slice = {dim, middle, size};
}

void WeightTable::addNorm(WeightRole weight, WeightRole bias, int64_t layer) {
  add(weight, layer, {spec.hidden}, {spec.hidden});
  if (spec.layerNorm)
    add(bias, layer, {spec.hidden}, {spec.hidden});
}

/// A gated block of width F.
void WeightTable::addGated(int64_t l, int64_t F, WeightRole gateUp, WeightRole gateUpBias,
                           WeightRole down, WeightRole downBias) {
  int64_t D = spec.hidden;
  add(gateUp, l, {2, F, D}, {F, D});
  if (spec.mlpBias)
    add(gateUpBias, l, {2, F}, {F});
  add(down, l, {D, F}, {D, F});
  if (spec.mlpBias)
    add(downBias, l, {D}, {D});
}

void WeightTable::addAttention(int64_t l) {
  using R = WeightRole;
  int64_t D = spec.hidden, H = spec.heads, Hk = spec.kvHeads, d = spec.headDim;
  struct {
    R weight, bias;
    int64_t heads;
  } projections[] = {{R::q, R::q_bias, H}, {R::k, R::k_bias, Hk}, {R::v, R::v_bias, Hk}};
  for (auto [weight, bias, heads] : projections) {
    add(weight, l, {heads, d, D}, {heads * d, D});
    if (spec.qkvBias)
      add(bias, l, {heads, d}, {heads * d});
  }
  if (spec.qkNorm == QkNorm::head) {
    add(R::q_norm, l, {d}, {d});
    add(R::k_norm, l, {d}, {d});
  } else if (spec.qkNorm == QkNorm::full) {
    add(R::q_norm, l, {H, d}, {H * d});
    add(R::k_norm, l, {Hk, d}, {Hk * d});
  }
  add(R::o, l, {D, H, d}, {D, H * d});
}

/// Each tensor of a checkpoint that holds two things is two states, of the ranks that their uses
/// want: rotated and other parts of queries, latent and rotated part of keys, keys and values.
void WeightTable::addLatentAttention(int64_t l) {
  using R = WeightRole;
  const LatentSpec &latent = *spec.latent;
  int64_t D = spec.hidden, H = spec.heads, Q = latent.queryRank, r = latent.rank,
          plain = latent.plainDim, turned = latent.turnedDim, value = latent.valueDim;
  if (Q) {
    add(R::q_a, l, {Q, D}, {Q, D});
    if (spec.qkvBias)
      add(R::q_a_bias, l, {Q}, {Q});
    add(R::q_a_norm, l, {Q}, {Q});
    addParts(l, 1, R::q_b_plain, {H, plain, Q}, R::q_b_turned, {H, turned, Q},
             {H * (plain + turned), Q});
  } else {
    addParts(l, 1, R::q_plain, {H, plain, D}, R::q_turned, {H, turned, D},
             {H * (plain + turned), D});
  }
  addParts(l, 0, R::kv_a, {r, D}, R::k_turned, {turned, D}, {r + turned, D});
  if (spec.qkvBias)
    addParts(l, 0, R::kv_a_bias, {r}, R::k_turned_bias, {turned}, {r + turned});
  add(R::kv_a_norm, l, {r}, {r});
  addParts(l, 1, R::k_b, {H, plain, r}, R::v_b, {H, value, r}, {H * (plain + value), r});
  add(R::o, l, {D, H, value}, {D, H * value});
}

void WeightTable::addExperts(int64_t l, const ExpertLayout &layout) {
  using R = WeightRole;
  int64_t D = spec.hidden, E = spec.experts, F = spec.expertWidth;
  bool stacked = !StringRef(layout.from.at(R::expert_gate_up).front()).contains("{e}");
  auto stored = [&](R role, ArrayRef<int64_t> shape, ArrayRef<int64_t> one,
                    ArrayRef<int64_t> all) -> WeightState & {
    return add(role, l, shape, stacked ? all : one, &layout.from.at(role));
  };
  WeightState &gateUp = stored(R::expert_gate_up, {E, 2, F, D}, {F, D},
                               layout.transposed ? ArrayRef<int64_t>({E, D, 2 * F})
                                                 : ArrayRef<int64_t>({E, 2 * F, D}));
  if (layout.transposed)
    gateUp.permute =
        layout.interleaved ? SmallVector<int64_t>{0, 3, 2, 1} : SmallVector<int64_t>{0, 3, 1, 2};
  else if (layout.interleaved)
    gateUp.permute = {0, 2, 1, 3};
  if (spec.expertBias) {
    WeightState &bias = stored(R::expert_gate_up_bias, {E, 2, F}, {F}, {E, 2 * F});
    if (layout.interleaved)
      bias.permute = {0, 2, 1};
  }
  WeightState &down =
      stored(R::expert_down, {E, D, F}, {D, F},
             layout.transposed ? ArrayRef<int64_t>({E, F, D}) : ArrayRef<int64_t>({E, D, F}));
  if (layout.transposed)
    down.permute = {0, 2, 1};
  if (spec.expertBias)
    stored(R::expert_down_bias, {E, D}, {D}, {E, D});
}

void WeightTable::addLayer(int64_t l, const ExpertLayout &layout) {
  using R = WeightRole;
  int64_t D = spec.hidden, E = spec.experts;
  addNorm(R::input_norm, R::input_norm_bias, l);
  if (spec.latent)
    addLatentAttention(l);
  else
    addAttention(l);
  if (spec.oBias)
    add(R::o_bias, l, {D}, {D});
  if (spec.sinks)
    add(R::sinks, l, {spec.heads}, {spec.heads});
  addNorm(R::post_norm, R::post_norm_bias, l);

  if (!spec.layers[l].sparse) {
    addGated(l, spec.denseWidth, R::mlp_gate_up, R::mlp_gate_up_bias, R::mlp_down,
             R::mlp_down_bias);
    return;
  }
  add(R::router, l, {E, D}, {E, D}, &layout.from.at(R::router));
  if (spec.routerBias)
    add(R::router_bias, l, {E}, {E});
  if (spec.choiceBias != ChoiceBias::none)
    add(R::router_choice_bias, l, {E},
        spec.choiceBias == ChoiceBias::row ? ArrayRef<int64_t>({1, E}) : ArrayRef<int64_t>({E}));
  addExperts(l, layout);
  if (spec.sharedWidth) {
    addGated(l, spec.sharedWidth, R::shared_gate_up, R::shared_gate_up_bias, R::shared_down,
             R::shared_down_bias);
    if (spec.sharedGated)
      add(R::shared_gate, l, {1, D}, {1, D});
  }
}

const WeightState *WeightTable::find(WeightRole role, int64_t layer) const {
  auto it = index.find({layer, role});
  return it == index.end() ? nullptr : &all[it->second];
}

int64_t WeightTable::parameters() const {
  int64_t n = 0;
  for (const WeightState &state : all)
    n += state.elements();
  return n;
}

int64_t WeightTable::activeParameters() const {
  int64_t n = 0;
  for (const WeightState &state : all) {
    using R = WeightRole;
    bool routed = is_contained(
        {R::expert_gate_up, R::expert_gate_up_bias, R::expert_down, R::expert_down_bias},
        state.role);
    n += routed ? state.elements() / spec.experts * spec.router.k : state.elements();
  }
  return n;
}

int64_t WeightTable::tensors() const {
  int64_t n = 0;
  for (const WeightState &state : all)
    if (state.isFirstPart())
      n += int64_t(state.from.size()) * (state.perExpert ? spec.experts : 1);
  return n;
}
