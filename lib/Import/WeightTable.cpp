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
  void head() { add(R::head, {stack.vocab, D}, {stack.vocab, D}); }

private:
  using R = WeightRole;
  WeightTable &table;
  const ModelSpec &stack;
  bool ofEncoder;
  int64_t firstLayer, D, layer = -1;

  void add(R role, ArrayRef<int64_t> shape, ArrayRef<int64_t> diskShape,
           const std::vector<std::string> *from = nullptr);
  void bias(R role, int64_t size, bool present) {
    if (present)
      add(role, {size}, {size});
  }
  void norm(R weight, R biasRole) {
    add(weight, {D}, {D});
    bias(biasRole, D, stack.normBias);
  }
  void attention();
  void crossAttention();
  void dense();
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
  if (!ofEncoder && !stack.tiedHead)
    adder.head();
}

void WeightTable::StackAdder::add(R role, ArrayRef<int64_t> shape, ArrayRef<int64_t> diskShape,
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
}

void WeightTable::StackAdder::addLayer(int64_t l, const ExpertLayout &layout) {
  layer = l;
  norm(R::input_norm, R::input_norm_bias);
  attention();
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
  bias(R::o_bias, D, stack.oBias);
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

void WeightTable::StackAdder::dense() {
  int64_t F = stack.denseWidth;
  if (stack.gated)
    add(R::mlp_gate_up, {2, F, D}, {F, D});
  else
    add(R::mlp_up, {F, D}, {F, D});
  bias(R::mlp_up_bias, F, stack.mlpBias && !stack.gated);
  add(R::mlp_down, {D, F}, {D, F});
  bias(R::mlp_down_bias, D, stack.mlpBias);
}

void WeightTable::StackAdder::sparse(const ExpertLayout &layout) {
  int64_t E = stack.experts, F = stack.expertWidth;
  add(R::router, {E, D}, {E, D}, &layout.from.at(R::router));
  bias(R::router_bias, E, stack.routerBias);
  if (stack.choiceBias != ChoiceBias::none)
    add(R::router_choice_bias, {E},
        stack.choiceBias == ChoiceBias::row ? ArrayRef<int64_t>({1, E}) : ArrayRef<int64_t>({E}));
  R up = stack.gated ? R::expert_gate_up : R::expert_up;
  bool stacked = !StringRef(layout.from.at(up).front()).contains("{e}");
  // A state [E, outer.., inner..] whose experts lie one by one in the file, or all together.
  auto expert = [&](R role, ArrayRef<int64_t> shape, ArrayRef<int64_t> block) {
    auto names = layout.from.find(role);
    SmallVector<int64_t> state{E}, disk;
    append_range(state, shape);
    if (stacked) {
      disk.push_back(E);
      append_range(disk, block);
      disk[1] *= shape.size() > block.size() ? shape[0] : 1;
    } else {
      append_range(disk, block);
    }
    add(role, state, disk, names == layout.from.end() ? nullptr : &names->second);
  };
  if (stack.gated)
    expert(R::expert_gate_up, {2, F, D}, {F, D});
  else
    expert(R::expert_up, {F, D}, {F, D});
  if (stack.mlpBias && !stack.gated)
    expert(R::expert_up_bias, {F}, {F});
  expert(R::expert_down, {D, F}, {D, F});
  if (stack.mlpBias)
    expert(R::expert_down_bias, {D}, {D});
  if (int64_t S = stack.sharedWidth) {
    add(R::shared_gate_up, {2, S, D}, {S, D});
    add(R::shared_down, {D, S}, {D, S});
    add(R::shared_gate, {1, D}, {1, D});
  }
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
  return is_contained({WeightRole::expert_gate_up, WeightRole::expert_up,
                       WeightRole::expert_up_bias, WeightRole::expert_down,
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
    n += int64_t(state.from.size()) * (state.perExpert ? spec.experts : 1);
  return n;
}
