//===- MoeGradShardingRules.cpp - how gradient and loss ops are cut -------===//
// As MoeShardingRules.cpp, for MoeGradOps.td, MoeExpertGradOps.td and MoeLossOps.td. The law: the
// cotangent of a replicated value is partial, of a split one split. It needs nobody's care, because
// it is what summing over a cut dimension means.
//===----------------------------------------------------------------------===//
#include "ShardingRuleTools.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;
using dist::DimShardingAttr;
using dist::ShardingAttr;

//===----------------------------------------------------------------------===//
// Dense
//===----------------------------------------------------------------------===//

/// ids[t..], dy[t..,d], table[v,d] → [v,d]
FactorRule EmbeddingGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(reduce, shapeOf(getIds()));
  int v = rule.addFactor(pass, shapeOf(getTable())[0]),
      d = rule.addFactor(pass, shapeOf(getTable())[1]);
  rule.operands = {t, join(t, {d}), {v, d}};
  rule.results = {{v, d}};
  return rule;
}

void EmbeddingGradOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                               ArrayRef<ShardingAttr>) {
  if (Attribute offset = offsetOf(shapeOf(getTable())[0], operands[2].getDims()[0], mesh))
    setRowOffsetAttr(offset);
}

/// dy[t..,N..], w[N..,K..] → [t..,K..]
FactorRule LinearInputGradOp::getFactorRule() {
  FactorRule rule;
  int64_t k = getContract(), n = shapeOf(getW()).size() - k;
  Ids t = rule.addFactors(pass, shapeOf(getDy()).drop_back(n)),
      outer = rule.addFactors(reduce, shapeOf(getW()).take_front(n)),
      inner = rule.addFactors(pass, shapeOf(getW()).take_back(k));
  rule.operands = {join(t, outer), join(outer, inner)};
  rule.results = {join(t, inner)};
  rule.linearity = Linearity::first;
  return rule;
}

/// dy[t..,N..], x[t..,K..] → [N..,K..]
FactorRule LinearWeightGradOp::getFactorRule() {
  FactorRule rule;
  int64_t k = getContract(), tokens = shapeOf(getX()).size() - k;
  Ids t = rule.addFactors(reduce, shapeOf(getX()).take_front(tokens)),
      outer = rule.addFactors(pass, shapeOf(getDy()).drop_front(tokens)),
      inner = rule.addFactors(pass, shapeOf(getX()).take_back(k));
  rule.operands = {join(t, outer), join(t, inner)};
  rule.results = {join(outer, inner)};
  // A partial dy makes the gradient partial over one axis more: it is reduced once, at the end.
  rule.linearity = Linearity::first;
  return rule;
}

/// dy[t..,h,n], x[t..,h,k] → [h,n,k]
FactorRule HeadWeightGradOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> result = shapeOf(getResult());
  Ids t = rule.addFactors(reduce, shapeOf(getX()).drop_back(2));
  int h = rule.addFactor(pass, result[0]), n = rule.addFactor(pass, result[1]),
      k = rule.addFactor(pass, result[2]);
  rule.operands = {join(t, {h, n}), join(t, {h, k})};
  rule.results = {{h, n, k}};
  rule.linearity = Linearity::first;
  return rule;
}

/// x[t..,N..] → [N..]
FactorRule SumRowsOp::getFactorRule() {
  FactorRule rule;
  size_t n = shapeOf(getResult()).size();
  Ids t = rule.addFactors(reduce, shapeOf(getX()).drop_back(n)),
      kept = rule.addFactors(pass, shapeOf(getX()).take_back(n));
  rule.operands = {join(t, kept)};
  rule.results = {kept};
  rule.linearity = Linearity::first;
  return rule;
}

/// dy[t..,N..], x[t..,N..], w[N..] → ss[t..], dot[t..]
FactorRule RmsSumsOp::getFactorRule() {
  FactorRule rule;
  size_t n = shapeOf(getW()).size();
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(n)),
      row = rule.addFactors(reduce, shapeOf(getX()).take_back(n));
  rule.operands = {join(t, row), join(t, row), row};
  rule.results = {t, t};
  return rule;
}

/// dy[t..,N..], x[t..,N..], w[N..], ss[t..], dot[t..] → dx[t..,N..], dw[N..]. N.. may be cut:
/// --dist-expand-norms then makes the sums.
FactorRule RmsNormGradOp::getFactorRule() {
  FactorRule rule;
  size_t n = shapeOf(getW()).size();
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(n)),
      row = rule.addFactors(pass, shapeOf(getX()).take_back(n));
  Ids x = join(t, row);
  rule.operands = {x, x, row};
  if (getSs())
    rule.operands.append({t, t});
  rule.results = {x, row};
  rule.sumsAbsent = true;
  return rule;
}

/// dy[t..,N..], x[t..,N..], w[N..] → dx[t..,N..], dw[N..], db[N..]
FactorRule LayerNormGradOp::getFactorRule() {
  FactorRule rule;
  size_t n = shapeOf(getW()).size();
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(n)),
      row = rule.addFactors(whole, shapeOf(getX()).take_back(n));
  Ids x = join(t, row);
  rule.operands = {x, x, row};
  rule.results = {x, row, row};
  rule.sumsAbsent = true;
  return rule;
}

/// dy, x → dx, element by element, linear in dy.
static FactorRule elementwiseRule(Value operand) {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(operand));
  rule.operands = {x, x};
  rule.results = {x};
  rule.linearity = Linearity::first;
  return rule;
}

FactorRule ClampGradOp::getFactorRule() { return elementwiseRule(getX()); }
FactorRule ActGradOp::getFactorRule() { return elementwiseRule(getX()); }

/// dy[t..,f], x[t..,2,f] → [t..,2,f]
FactorRule GluGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(2));
  int two = rule.addFactor(whole, 2), f = rule.addFactor(pass, shapeOf(getX()).back());
  rule.operands = {join(t, {f}), join(t, {two, f})};
  rule.results = {join(t, {two, f})};
  rule.linearity = Linearity::first;
  return rule;
}

/// x[t..,d], dy[t..,d], g[t..,1] → [t..,1]
FactorRule SigmoidGateGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back());
  int d = rule.addFactor(reduce, shapeOf(getX()).back()), one = rule.addFactor(whole, 1);
  rule.operands = {join(t, {d}), join(t, {d}), join(t, {one})};
  rule.results = {join(t, {one})};
  rule.linearity = Linearity::first;
  return rule;
}

/// dy[h,s,u], qpos[s], kpos[u], table[n,h] → [n,h]
FactorRule RelativeBiasGradOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> dy = shapeOf(getDy());
  int h = rule.addFactor(pass, dy[0]), s = rule.addFactor(reduce, dy[1]),
      u = rule.addFactor(reduce, dy[2]), n = rule.addFactor(whole, shapeOf(getTable())[0]);
  rule.operands = {{h, s, u}, {s}, {u}, {n, h}};
  rule.results = {{n, h}};
  rule.linearity = Linearity::first;
  return rule;
}

/// The factors of attention's rule, and dy[b,s,h,e] → dq[b,s,h,d], dk[b,u,g,d], dv[b,u,g,e],
/// dq2[b,s,h,r], dk2[b,u,r], dbias[h,s,u], dsinks[h].
FactorRule AttentionGradOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> q = shapeOf(getQ()), k = shapeOf(getK());
  int b = rule.addFactor(pass, q[0]), s = rule.addFactor(pass, q[1]),
      h = rule.addFactor(pass, q[2]), d = rule.addFactor(whole, q[3]);
  int u = rule.addFactor(whole, k[1]), e = rule.addFactor(whole, shapeOf(getV()).back());
  Ids keys{b, u};
  if (k.size() == 4)
    keys.push_back(rule.addFactor(unconstrained, k[2], /*follows=*/h));
  rule.operands = {{b, s, h, e}, {b, s, h, d}, join(keys, {d}), join(keys, {e}), {s}, {u}, {b, u}};
  rule.results = {{b, s, h, d}, join(keys, {d}), join(keys, {e})};
  auto both = [&](Ids factors) {
    rule.operands.push_back(factors);
    rule.results.push_back(factors);
  };
  if (getQ2()) {
    int r = rule.addFactor(whole, shapeOf(getQ2())[3]);
    both({b, s, h, r});
    both({b, u, r});
  }
  if (getBias())
    both({h, s, u});
  if (getSinks())
    both({h});
  rule.linearity = Linearity::first;
  rule.sumsAbsent = true;
  return rule;
}

void AttentionGradOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                               ArrayRef<ShardingAttr>) {
  if (Attribute offset = offsetOf(shapeOf(getQ())[2], operands[1].getDims()[2], mesh))
    setHeadOffsetAttr(offset);
  if (shapeOf(getK()).size() < 4)
    return;
  if (Attribute offset = offsetOf(shapeOf(getK())[2], operands[2].getDims()[2], mesh))
    setKvOffsetAttr(offset);
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

/// dweights[t..,k], logits[t..,e], routing[t..] → [t..,e]
FactorRule RouteGradOp::getFactorRule() {
  FactorRule rule;
  RoutingType routing = getRouting().getType();
  Ids t = rule.addFactors(pass, routing.getTokens());
  int k = rule.addFactor(whole, routing.getK()), e = rule.addFactor(whole, routing.getExperts());
  rule.operands = {join(t, {k}), join(t, {e}), t};
  rule.results = {join(t, {e})};
  rule.linearity = Linearity::first;
  return rule;
}

/// dweights[t..,k], routing[t..], limited[t..] → [t..,k]
FactorRule LimitGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, getRouting().getType().getTokens());
  int k = rule.addFactor(whole, getRouting().getType().getK());
  rule.operands = {join(t, {k}), t, t};
  rule.results = {join(t, {k})};
  rule.linearity = Linearity::first;
  return rule;
}

/// rows[r,d], x[t..,d], routing[t..] → [t..,k]
FactorRule ChoiceDotsOp::getFactorRule() {
  FactorRule rule;
  int r = rule.addFactor(unconstrained, shapeOf(getRows())[0]),
      d = rule.addFactor(reduce, shapeOf(getRows())[1]);
  Ids t = rule.addFactors(pass, getRouting().getType().getTokens());
  int k = rule.addFactor(whole, getRouting().getType().getK());
  rule.operands = {{r, d}, join(t, {d}), t};
  rule.results = {join(t, {k})};
  rule.linearity = Linearity::first;
  return rule;
}

/// Without an exchange each shard knows only the rows of its own experts.
LogicalResult ChoiceDotsOp::refineResultShardings(const MeshInfo &mesh,
                                                  ArrayRef<ShardingAttr> operands,
                                                  SmallVectorImpl<ShardingAttr> &results) {
  SmallVector<StringAttr> partial(results[0].getPartialAxes()), cut;
  for (DimShardingAttr dim : operands[2].getDims())
    llvm::append_range(cut, dim.getAxes());
  for (StringAttr axis : operands[0].getDims()[0].getExpertAxes())
    if (!llvm::is_contained(cut, axis) && !llvm::is_contained(partial, axis))
      partial.push_back(axis);
  results[0] = results[0].withPartial(partial);
  return success();
}

static Ids groupFactors(FactorRule &rule, Value groups) {
  if (auto routing = dyn_cast<RoutingType>(groups.getType()))
    return rule.addFactors(unconstrained, routing.getTokens());
  return rule.addFactors(unconstrained, shapeOf(groups));
}

/// Row counts by sample, where they are given, lie as --dist-lower-dispatch has made them.
static void addSamples(FactorRule &rule, Value samples) {
  if (samples)
    rule.operands.push_back(rule.addFactors(unconstrained, shapeOf(samples)));
}

/// dy[r,N..], groups, w[e,N..,K..] → [r,K..]
FactorRule GroupedInputGradOp::getFactorRule() {
  FactorRule rule;
  int64_t k = getContract();
  ArrayRef<int64_t> w = shapeOf(getW());
  int r = rule.addFactor(pass, shapeOf(getDy())[0]), e = rule.addFactor(unconstrained, w[0]);
  Ids outer = rule.addFactors(reduce, w.drop_front().drop_back(k)),
      inner = rule.addFactors(pass, w.take_back(k));
  rule.operands = {join({r}, outer), groupFactors(rule, getGroups()),
                   join({e}, join(outer, inner))};
  rule.results = {join({r}, inner)};
  rule.linearity = Linearity::first;
  return rule;
}

/// A sum over the rows of each expert: experts as the rows are split by them, partial over what
/// splits the rows otherwise.
static void refineExpertSum(ShardingAttr rows, ShardingAttr &result) {
  DimShardingAttr dim = rows.getDims()[0];
  SmallVector<StringAttr> partial(result.getPartialAxes());
  for (StringAttr axis : dim.getAxes())
    if (!llvm::is_contained(partial, axis))
      partial.push_back(axis);
  result = result.withDim(0, DimShardingAttr::split(dim.getContext(), dim.getExpertAxes()))
               .withPartial(partial);
}

/// dy[r,N..], groups, rows[r,K..] → [e,N..,K..]
FactorRule GroupedWeightGradOp::getFactorRule() {
  FactorRule rule;
  int64_t k = getContract();
  int r = rule.addFactor(unconstrained, shapeOf(getDy())[0]),
      e = rule.addFactor(unconstrained, shapeOf(getResult())[0]);
  Ids outer = rule.addFactors(pass, shapeOf(getDy()).drop_front()),
      inner = rule.addFactors(pass, shapeOf(getRows()).take_back(k));
  rule.operands = {join({r}, outer), groupFactors(rule, getGroups()), join({r}, inner)};
  addSamples(rule, getSamples());
  rule.results = {join({e}, join(outer, inner))};
  return rule;
}

LogicalResult GroupedWeightGradOp::refineResultShardings(const MeshInfo &,
                                                         ArrayRef<ShardingAttr> operands,
                                                         SmallVectorImpl<ShardingAttr> &results) {
  refineExpertSum(operands[0], results[0]);
  return success();
}

/// dy[r,N..], groups → [e,N..]
FactorRule GroupedBiasGradOp::getFactorRule() {
  FactorRule rule;
  int r = rule.addFactor(unconstrained, shapeOf(getDy())[0]),
      e = rule.addFactor(unconstrained, shapeOf(getResult())[0]);
  Ids outer = rule.addFactors(pass, shapeOf(getDy()).drop_front());
  rule.operands = {join({r}, outer), groupFactors(rule, getGroups())};
  addSamples(rule, getSamples());
  rule.results = {join({e}, outer)};
  rule.linearity = Linearity::first;
  return rule;
}

LogicalResult GroupedBiasGradOp::refineResultShardings(const MeshInfo &,
                                                       ArrayRef<ShardingAttr> operands,
                                                       SmallVectorImpl<ShardingAttr> &results) {
  refineExpertSum(operands[0], results[0]);
  return success();
}

//===----------------------------------------------------------------------===//
// Losses
//===----------------------------------------------------------------------===//

/// ids[b,s], labels[b,s] → [b,s]: a column takes from the next one, so s is whole.
FactorRule NextTokensOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> ids = shapeOf(getIds());
  int b = rule.addFactor(pass, ids[0]), s = rule.addFactor(whole, ids[1]);
  rule.operands = {{b, s}};
  if (getLabels())
    rule.operands.push_back({b, s});
  rule.results = {{b, s}};
  return rule;
}

/// x[t..,v] → [t..]
FactorRule RowMaxOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back());
  int v = rule.addFactor(reduce, shapeOf(getX()).back());
  rule.operands = {join(t, {v})};
  rule.results = {t};
  return rule;
}

LogicalResult RowMaxOp::refineResultShardings(const MeshInfo &, ArrayRef<ShardingAttr>,
                                              SmallVectorImpl<ShardingAttr> &results) {
  if (results[0].isPartial())
    results[0] = results[0].withPartial(results[0].getPartialAxes(), dist::ReduceKind::max);
  return success();
}

/// x[t..,v], max[t..], labels[t..] → [t..,3]
FactorRule CrossEntropyStatsOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back());
  int v = rule.addFactor(reduce, shapeOf(getX()).back()), three = rule.addFactor(whole, 3);
  rule.operands = {join(t, {v}), t, t};
  rule.results = {join(t, {three})};
  return rule;
}

/// d[t..,3], x[t..,v], max[t..], labels[t..] → [t..,v]
FactorRule CrossEntropyStatsGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back());
  int v = rule.addFactor(pass, shapeOf(getX()).back()), three = rule.addFactor(whole, 3);
  rule.operands = {join(t, {three}), join(t, {v}), t, t};
  rule.results = {join(t, {v})};
  return rule;
}

/// stats[t..,3], labels[t..] → sum[1], count[1]
FactorRule CrossEntropyOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(reduce, shapeOf(getLabels()));
  int three = rule.addFactor(whole, 3), one = rule.addFactor(whole, 1);
  rule.operands = {join(t, {three}), t};
  rule.results = {{one}, {one}};
  return rule;
}

/// d[1], stats[t..,3], labels[t..] → [t..,3]
FactorRule CrossEntropyGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getLabels()));
  int three = rule.addFactor(whole, 3), one = rule.addFactor(whole, 1);
  rule.operands = {{one}, join(t, {three}), t};
  rule.results = {join(t, {three})};
  return rule;
}

/// routing[t..] → [e]
FactorRule ExpertLoadOp::getFactorRule() {
  FactorRule rule;
  RoutingType routing = getRouting().getType();
  rule.operands = {rule.addFactors(reduce, routing.getTokens())};
  rule.results = {{rule.addFactor(whole, routing.getExperts())}};
  return rule;
}

/// logits[t..,e] → [e]
FactorRule ExpertProbsOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(reduce, shapeOf(getLogits()).drop_back());
  int e = rule.addFactor(whole, shapeOf(getLogits()).back());
  rule.operands = {join(t, {e})};
  rule.results = {{e}};
  return rule;
}

/// d[e], logits[t..,e] → [t..,e]
FactorRule ExpertProbsGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getLogits()).drop_back());
  int e = rule.addFactor(whole, shapeOf(getLogits()).back());
  rule.operands = {{e}, join(t, {e})};
  rule.results = {join(t, {e})};
  return rule;
}

/// load[e], probs[e] → [1]
FactorRule BalanceOp::getFactorRule() {
  FactorRule rule;
  int e = rule.addFactor(whole, shapeOf(getLoad())[0]), one = rule.addFactor(whole, 1);
  rule.operands = {{e}, {e}};
  rule.results = {{one}};
  return rule;
}

/// d[1], load[e] → [e]
FactorRule BalanceGradOp::getFactorRule() {
  FactorRule rule;
  int e = rule.addFactor(whole, shapeOf(getLoad())[0]), one = rule.addFactor(whole, 1);
  rule.operands = {{one}, {e}};
  rule.results = {{e}};
  return rule;
}

/// routing[b,s], logits[b,s,e] → [1]
FactorRule SequenceBalanceOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> shape = shapeOf(getLogits());
  int b = rule.addFactor(reduce, shape[0]), s = rule.addFactor(whole, shape[1]);
  int e = rule.addFactor(whole, shape[2]), one = rule.addFactor(whole, 1);
  rule.operands = {{b, s}, {b, s, e}};
  rule.results = {{one}};
  return rule;
}

/// d[1], routing[b,s], logits[b,s,e] → [b,s,e]
FactorRule SequenceBalanceGradOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> shape = shapeOf(getLogits());
  int b = rule.addFactor(pass, shape[0]), s = rule.addFactor(whole, shape[1]);
  int e = rule.addFactor(whole, shape[2]), one = rule.addFactor(whole, 1);
  rule.operands = {{one}, {b, s}, {b, s, e}};
  rule.results = {{b, s, e}};
  return rule;
}

/// logits[t..,e] → [1]
FactorRule RouterZOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(reduce, shapeOf(getLogits()).drop_back());
  int e = rule.addFactor(whole, shapeOf(getLogits()).back()), one = rule.addFactor(whole, 1);
  rule.operands = {join(t, {e})};
  rule.results = {{one}};
  return rule;
}

/// d[1], logits[t..,e] → [t..,e]
FactorRule RouterZGradOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getLogits()).drop_back());
  int e = rule.addFactor(whole, shapeOf(getLogits()).back()), one = rule.addFactor(whole, 1);
  rule.operands = {{one}, join(t, {e})};
  rule.results = {join(t, {e})};
  return rule;
}

/// a, b → a / b, linear in a.
FactorRule RatioOp::getFactorRule() { return elementwiseRule(getA()); }

/// First column of this rank's part of a vocabulary.
template <typename Op>
static void setColumnOffset(Op op, ShardingAttr logits, const MeshInfo &mesh) {
  if (Attribute offset = offsetOf(shapeOf(op.getX()).back(), logits.getDims().back(), mesh))
    op.setColumnOffsetAttr(offset);
}

void RowMaxOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                        ArrayRef<ShardingAttr>) {
  setColumnOffset(*this, operands[0], mesh);
}
void CrossEntropyStatsOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                                   ArrayRef<ShardingAttr>) {
  setColumnOffset(*this, operands[0], mesh);
}
void CrossEntropyStatsGradOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                                       ArrayRef<ShardingAttr>) {
  setColumnOffset(*this, operands[1], mesh);
}
