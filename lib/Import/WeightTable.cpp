//===- WeightTable.cpp - the weights of a model ---------------------------===//
// Shapes and names; docs/architecture.md, section 1, gives the ranks.
//===----------------------------------------------------------------------===//
#include "moira/Import/WeightTable.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/ErrorHandling.h"

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
  if (const ModelSpec *encoder = spec.encoder.get())
    add(*encoder, /*ofEncoder=*/true, layouts.take_front(encoder->layers.size()));
  add(spec, /*ofEncoder=*/false, layouts.take_back(spec.layers.size()));
}

/// Adds the weights of one stack, part by part.
class WeightTable::StackAdder {
public:
  StackAdder(WeightTable &table, const ModelSpec &stack, bool ofEncoder, int64_t firstLayer)
      : table(table), stack(stack), ofEncoder(ofEncoder), firstLayer(firstLayer), D(stack.hidden) {}

  void embedding(WeightRole role) { add(role, {stack.vocab, D}, {stack.vocab, D}); }
  void addLayer(int64_t l, const ExpertLayout &layout);
  void finalNorm() {
    layer = -1;
    norm(R::final_norm, R::final_norm_bias);
  }
  void head() {
    layer = -1;
    if (!stack.tiedHead)
      add(R::head, {stack.vocab, D}, {stack.vocab, D});
    bias(R::head_bias, stack.vocab, stack.headBias);
  }

private:
  using R = WeightRole;
  WeightTable &table;
  const ModelSpec &stack;
  bool ofEncoder;
  int64_t firstLayer, D, layer = -1;

  /// The reference holds until the next call.
  WeightState &add(R role, ArrayRef<int64_t> shape, ArrayRef<int64_t> diskShape,
                   const std::vector<std::string> *from = nullptr);
  /// Two states that fill one tensor: along dimension `dim` of both, first's and then second's.
  void addParts(int64_t dim, R first, ArrayRef<int64_t> firstShape, R second,
                ArrayRef<int64_t> secondShape, ArrayRef<int64_t> diskShape);
  void bias(R role, int64_t size, bool present) {
    if (present)
      add(role, {size}, {size});
  }
  void norm(R weight, R biasRole) {
    add(weight, {D}, {D});
    bias(biasRole, D, stack.normBias);
  }
  void attention();
  void latentAttention();
  void crossAttention();
  void gated(int64_t width, R gateUp, R gateUpBias, R down, R downBias);
  void dense();
  void experts(const ExpertLayout &layout);
  void sparse(const ExpertLayout &layout);
};

void WeightTable::add(const ModelSpec &stack, bool ofEncoder, ArrayRef<unsigned> layouts) {
  int64_t first = ofEncoder || !spec.encoder ? 0 : spec.encoder->layers.size();
  StackAdder adder(*this, stack, ofEncoder, first);
  if (stack.ownEmbedding)
    adder.embedding(WeightRole::stack_embedding);
  else if (!find(WeightRole::embedding))
    adder.embedding(WeightRole::embedding);
  for (auto [l, layout] : enumerate(layouts))
    adder.addLayer(l, stack.modelClass->layouts[layout]);
  adder.finalNorm();
  if (!ofEncoder)
    adder.head();
}

WeightState &WeightTable::StackAdder::add(R role, ArrayRef<int64_t> shape,
                                          ArrayRef<int64_t> diskShape,
                                          const std::vector<std::string> *from) {
  auto names = stack.modelClass->tensors.find(role);
  if (names == stack.modelClass->tensors.end())
    report_fatal_error(Twine("model class ") + stack.modelClass->name + ": tensors has no " +
                       nameOf(role));
  WeightState state;
  state.name = expandName(names->second.state, layer);
  state.role = role;
  state.layer = layer < 0 ? -1 : firstLayer + layer;
  state.shape.assign(shape.begin(), shape.end());
  state.diskShape.assign(diskShape.begin(), diskShape.end());
  for (const std::string &pattern : from ? *from : names->second.from)
    state.from.push_back(expandName(pattern, layer));
  state.perExpert = StringRef(state.from.front()).contains("{e}");
  // The embedding and the head belong to no stack alone.
  bool shared = role == R::embedding || role == R::head;
  table.index[{ofEncoder && !shared, layer, role}] = table.all.size();
  table.all.push_back(std::move(state));
  return table.all.back();
}

void WeightTable::StackAdder::addParts(int64_t dim, R first, ArrayRef<int64_t> firstShape, R second,
                                       ArrayRef<int64_t> secondShape, ArrayRef<int64_t> diskShape) {
  int64_t middle = firstShape[dim], size = middle + secondShape[dim];
  add(first, firstShape, diskShape).slice = {dim, 0, size};
  add(second, secondShape, diskShape).slice = {dim, middle, size};
}

void WeightTable::StackAdder::addLayer(int64_t l, const ExpertLayout &layout) {
  layer = l;
  norm(R::input_norm, R::input_norm_bias);
  if (stack.latent)
    latentAttention();
  else
    attention();
  bias(R::o_bias, D, stack.oBias);
  bias(R::sinks, stack.heads, stack.sinks);
  if (stack.crossAttention)
    crossAttention();
  norm(R::post_norm, R::post_norm_bias);
  if (stack.layers[l].sparse)
    sparse(layout);
  else
    dense();
}

void WeightTable::StackAdder::attention() {
  int64_t H = stack.heads, Hk = stack.kvHeads, d = stack.headDim;
  struct {
    R weight, bias;
    int64_t heads;
  } projections[] = {{R::q, R::q_bias, H}, {R::k, R::k_bias, Hk}, {R::v, R::v_bias, Hk}};
  for (auto [weight, biasRole, heads] : projections) {
    add(weight, {heads, d, D}, {heads * d, D});
    if (stack.qkvBias)
      add(biasRole, {heads, d}, {heads * d});
  }
  if (stack.qkNorm == QkNorm::head) {
    add(R::q_norm, {d}, {d});
    add(R::k_norm, {d}, {d});
  } else if (stack.qkNorm == QkNorm::full) {
    add(R::q_norm, {H, d}, {H * d});
    add(R::k_norm, {Hk, d}, {Hk * d});
  }
  // The first layer's biases are everyone's.
  if (stack.positions == PositionKind::relative && layer == 0)
    add(R::relative_bias, {stack.buckets, H}, {stack.buckets, H});
  add(R::o, {D, H, d}, {D, H * d});
}

/// Each tensor of a checkpoint that holds two things is two states, of the ranks that their uses
/// want: rotated and other parts of queries, latent and rotated part of keys, keys and values.
void WeightTable::StackAdder::latentAttention() {
  const LatentSpec &latent = *stack.latent;
  int64_t H = stack.heads, Q = latent.queryRank, r = latent.rank, plain = latent.plainDim,
          turned = latent.turnedDim, value = latent.valueDim;
  if (Q) {
    add(R::q_a, {Q, D}, {Q, D});
    bias(R::q_a_bias, Q, stack.qkvBias);
    add(R::q_a_norm, {Q}, {Q});
    addParts(1, R::q_b_plain, {H, plain, Q}, R::q_b_turned, {H, turned, Q},
             {H * (plain + turned), Q});
  } else {
    addParts(1, R::q_plain, {H, plain, D}, R::q_turned, {H, turned, D}, {H * (plain + turned), D});
  }
  addParts(0, R::kv_a, {r, D}, R::k_turned, {turned, D}, {r + turned, D});
  if (stack.qkvBias)
    addParts(0, R::kv_a_bias, {r}, R::k_turned_bias, {turned}, {r + turned});
  add(R::kv_a_norm, {r}, {r});
  addParts(1, R::k_b, {H, plain, r}, R::v_b, {H, value, r}, {H * (plain + value), r});
  add(R::o, {D, H, value}, {D, H * value});
}

void WeightTable::StackAdder::crossAttention() {
  int64_t H = stack.heads, Hk = stack.kvHeads, d = stack.headDim;
  norm(R::cross_norm, R::cross_norm_bias);
  struct {
    R weight, bias;
    int64_t heads;
  } projections[] = {{R::cross_q, R::cross_q_bias, H},
                     {R::cross_k, R::cross_k_bias, Hk},
                     {R::cross_v, R::cross_v_bias, Hk}};
  for (auto [weight, biasRole, heads] : projections) {
    add(weight, {heads, d, D}, {heads * d, D});
    if (stack.qkvBias)
      add(biasRole, {heads, d}, {heads * d});
  }
  add(R::cross_o, {D, H, d}, {D, H * d});
  bias(R::cross_o_bias, D, stack.oBias);
}

void WeightTable::StackAdder::gated(int64_t F, R gateUp, R gateUpBias, R down, R downBias) {
  add(gateUp, {2, F, D}, {F, D});
  if (stack.mlpBias)
    add(gateUpBias, {2, F}, {F});
  add(down, {D, F}, {D, F});
  bias(downBias, D, stack.mlpBias);
}

void WeightTable::StackAdder::dense() {
  int64_t F = stack.denseWidth;
  if (stack.gated)
    return gated(F, R::mlp_gate_up, R::mlp_gate_up_bias, R::mlp_down, R::mlp_down_bias);
  add(R::mlp_up, {F, D}, {F, D});
  bias(R::mlp_up_bias, F, stack.mlpBias);
  add(R::mlp_down, {D, F}, {D, F});
  bias(R::mlp_down_bias, D, stack.mlpBias);
}

/// Experts' tensors, one by one in the file or all together.
void WeightTable::StackAdder::experts(const ExpertLayout &layout) {
  int64_t E = stack.experts, F = stack.expertWidth;
  R up = stack.gated ? R::expert_gate_up : R::expert_up,
    upBias = stack.gated ? R::expert_gate_up_bias : R::expert_up_bias;
  bool stacked = !StringRef(layout.from.at(up).front()).contains("{e}"),
       mixed = stack.gated && layout.interleaved;
  auto expert = [&](R role, ArrayRef<int64_t> block, ArrayRef<int64_t> one,
                    ArrayRef<int64_t> together) -> WeightState & {
    auto names = layout.from.find(role);
    SmallVector<int64_t> state{E}, disk;
    append_range(state, block);
    if (stacked)
      disk.push_back(E);
    append_range(disk, stacked ? together : one);
    WeightState &added =
        add(role, state, disk, names == layout.from.end() ? nullptr : &names->second);
    added.separateExperts = stack.separateExperts;
    return added;
  };
  if (stack.gated) {
    WeightState &w = layout.transposed ? expert(up, {2, F, D}, {F, D}, {D, 2 * F})
                                       : expert(up, {2, F, D}, {F, D}, {2 * F, D});
    if (layout.transposed)
      w.permute = mixed ? SmallVector<int64_t>{0, 3, 2, 1} : SmallVector<int64_t>{0, 3, 1, 2};
    else if (mixed)
      w.permute = {0, 2, 1, 3};
  } else {
    expert(up, {F, D}, {F, D}, {F, D});
  }
  if (stack.expertBias && stack.gated) {
    WeightState &w = expert(upBias, {2, F}, {F}, {2 * F});
    if (mixed)
      w.permute = {0, 2, 1};
  } else if (stack.expertBias) {
    expert(upBias, {F}, {F}, {F});
  }
  if (layout.transposed)
    expert(R::expert_down, {D, F}, {D, F}, {F, D}).permute = {0, 2, 1};
  else
    expert(R::expert_down, {D, F}, {D, F}, {D, F});
  if (stack.expertBias)
    expert(R::expert_down_bias, {D}, {D}, {D});
}

void WeightTable::StackAdder::sparse(const ExpertLayout &layout) {
  int64_t E = stack.experts;
  add(R::router, {E, D}, {E, D}, &layout.from.at(R::router));
  bias(R::router_bias, E, stack.routerBias);
  if (stack.choiceBias != ChoiceBias::none)
    add(R::router_choice_bias, {E},
        stack.choiceBias == ChoiceBias::row ? ArrayRef<int64_t>({1, E}) : ArrayRef<int64_t>({E}));
  experts(layout);
  if (!stack.sharedWidth)
    return;
  gated(stack.sharedWidth, R::shared_gate_up, R::shared_gate_up_bias, R::shared_down,
        R::shared_down_bias);
  if (stack.sharedGated)
    add(R::shared_gate, {1, D}, {1, D});
}

const WeightState *WeightTable::find(WeightRole role, int64_t layer, bool ofEncoder) const {
  bool shared = role == WeightRole::embedding || role == WeightRole::head;
  auto it = index.find({ofEncoder && !shared, layer, role});
  return it == index.end() ? nullptr : &all[it->second];
}

int64_t WeightTable::parameters() const {
  int64_t n = 0;
  for (const WeightState &state : all)
    n += state.elements();
  return n;
}

/// Held once for each expert.
static bool isRouted(WeightRole role) {
  return is_contained({WeightRole::expert_gate_up, WeightRole::expert_gate_up_bias,
                       WeightRole::expert_up, WeightRole::expert_up_bias, WeightRole::expert_down,
                       WeightRole::expert_down_bias},
                      role);
}

int64_t WeightTable::activeParameters() const {
  int64_t n = 0;
  for (const WeightState &state : all) {
    n += isRouted(state.role) ? state.elements() / spec.experts * spec.router.k : state.elements();
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
