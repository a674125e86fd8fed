//===- MoeShardingRules.cpp - how each moe operation may be partitioned ---===//
// FactorRules (letters in the comments are factors), what ragged rows do to shardings, and what
// depends on the rank.
//===----------------------------------------------------------------------===//
#include "ShardingRuleTools.h"
#include "moira/Dialect/Moe/IR/RaggedRows.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;
using dist::DimShardingAttr;
using dist::ShardingAttr;

#include "Moe/ShardingRuleInterface.cpp.inc"

/// The last n of ids.
static Ids tail(const Ids &ids, size_t n) { return Ids(ids.end() - n, ids.end()); }
static Ids head(const Ids &ids, size_t n) { return Ids(ids.begin(), ids.begin() + n); }

//===----------------------------------------------------------------------===//
// Dense
//===----------------------------------------------------------------------===//

/// ids[t..], table[v,D] → [t..,D]: a shard of the table gives zeros for other rows, so v is a
/// reduction.
FactorRule EmbeddingOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getIds()));
  int v = rule.addFactor(reduce, shapeOf(getTable())[0]),
      d = rule.addFactor(pass, shapeOf(getTable())[1]);
  rule.operands = {t, {v, d}};
  rule.results = {join(t, {d})};
  return rule;
}

FactorRule FullOp::getFactorRule() {
  FactorRule rule;
  rule.results = {rule.addFactors(pass, shapeOf(getResult()))};
  return rule;
}

/// ids[t..], table[v,k] → [t..,k]
FactorRule LookupOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getIds()));
  int v = rule.addFactor(whole, shapeOf(getTable())[0]),
      k = rule.addFactor(whole, shapeOf(getTable())[1]);
  rule.operands = {t, {v, k}};
  rule.results = {join(t, {k})};
  return rule;
}

/// x[t..,K..], w[N..,K..] → [t..,N..]
FactorRule LinearOp::getFactorRule() {
  FactorRule rule;
  int64_t n = getContract();
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(n)),
      k = rule.addFactors(reduce, shapeOf(getX()).take_back(n));
  Ids out = rule.addFactors(pass, shapeOf(getW()).drop_back(n));
  rule.operands = {join(t, k), join(out, k)};
  rule.results = {join(t, out)};
  rule.linearity = Linearity::first;
  return rule;
}

/// x[t..,N..], w[N..] → x. N.. may be cut: --dist-expand-norms then splits the op in two.
FactorRule RmsNormOp::getFactorRule() {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(getX()));
  rule.operands = {x, tail(x, shapeOf(getW()).size())};
  rule.results = {x};
  return rule;
}

/// x[t..,N..], w[N..], b[N..] → x; a row's mean needs all of N...
FactorRule LayerNormOp::getFactorRule() {
  FactorRule rule;
  size_t n = shapeOf(getW()).size();
  Ids x = rule.addFactors(pass, shapeOf(getX()).drop_back(n));
  Ids rows = rule.addFactors(whole, shapeOf(getX()).take_back(n));
  x = join(x, rows);
  rule.operands = {x, rows};
  if (getB())
    rule.operands.push_back(rows);
  rule.results = {x};
  return rule;
}

/// x[t..,N..] → [t..], partial where N.. is cut.
FactorRule SumSquaresOp::getFactorRule() {
  FactorRule rule;
  int64_t n = getNormDims();
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(n)),
      k = rule.addFactors(reduce, shapeOf(getX()).take_back(n));
  rule.operands = {join(t, k)};
  rule.results = {t};
  return rule;
}

/// x[t..,N..], ss[t..], w[N..] → x
FactorRule RmsApplyOp::getFactorRule() {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(getX()));
  size_t n = shapeOf(getW()).size();
  rule.operands = {x, head(x, x.size() - n), tail(x, n)};
  rule.results = {x};
  return rule;
}

/// a[t..,N..], b[N..] → a. A sum of equal shapes is jointly linear; a bias must meet a complete a.
FactorRule AddOp::getFactorRule() {
  FactorRule rule;
  Ids a = rule.addFactors(pass, shapeOf(getA()));
  rule.operands = {a, tail(a, shapeOf(getB()).size())};
  rule.results = {a};
  if (shapeOf(getA()) == shapeOf(getB()))
    rule.linearity = Linearity::jointly;
  return rule;
}

/// x → x, element by element.
static FactorRule elementwiseRule(Value operand, Linearity linearity = Linearity::none) {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(operand));
  rule.operands = {x};
  rule.results = {x};
  rule.linearity = linearity;
  return rule;
}

FactorRule ClampOp::getFactorRule() { return elementwiseRule(getX()); }
FactorRule ActOp::getFactorRule() { return elementwiseRule(getX()); }
FactorRule ScaleOp::getFactorRule() { return elementwiseRule(getX(), Linearity::first); }

/// x[t..,2,F] → [t..,F]
FactorRule GluOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getX()).drop_back(2));
  int two = rule.addFactor(whole, 2), f = rule.addFactor(pass, shapeOf(getX()).back());
  rule.operands = {join(t, {two, f})};
  rule.results = {join(t, {f})};
  return rule;
}

/// x[t..,D], g[t..,1] → x, linear in x.
FactorRule SigmoidGateOp::getFactorRule() {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(getX()));
  int one = rule.addFactor(whole, 1);
  rule.operands = {x, join(head(x, x.size() - 1), {one})};
  rule.results = {x};
  rule.linearity = Linearity::first;
  return rule;
}

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

FactorRule PositionsOp::getFactorRule() {
  FactorRule rule;
  rule.results = {rule.addFactors(pass, shapeOf(getResult()))};
  return rule;
}

/// x → x; the named dimensions are not cut.
FactorRule WholeOp::getFactorRule() {
  FactorRule rule;
  Ids x;
  for (auto [i, size] : llvm::enumerate(shapeOf(getX())))
    x.push_back(rule.addFactor(llvm::is_contained(getDims(), int64_t(i)) ? whole : pass, size));
  rule.operands = {x};
  rule.results = {x};
  rule.linearity = Linearity::first;
  return rule;
}

/// pos[S] → cos[S,r], sin[S,r]
FactorRule RopeTableOp::getFactorRule() {
  FactorRule rule;
  int s = rule.addFactor(pass, shapeOf(getPos())[0]),
      r = rule.addFactor(whole, shapeOf(getCos())[1]);
  rule.operands = {{s}};
  rule.results = {{s, r}, {s, r}};
  return rule;
}

/// ids[b,u], counts[b,s] → [b,s]: a column counts the ones before it, so s is cut where ids (u) are
/// whole.
FactorRule TokenPositionsOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> ids = shapeOf(getIds());
  int b = rule.addFactor(pass, ids[0]), u = rule.addFactor(whole, ids[1]),
      s = rule.addFactor(pass, ids[1]);
  rule.operands = {{b, u}};
  if (getCounts())
    rule.operands.push_back({b, s});
  rule.results = {{b, s}};
  return rule;
}

/// pos[t..] → [t..,d]
FactorRule SinusoidOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, shapeOf(getPos()));
  int d = rule.addFactor(whole, shapeOf(getResult()).back());
  rule.operands = {t};
  rule.results = {join(t, {d})};
  return rule;
}

/// table[n,h], qpos[s], kpos[u] → [h,s,u]
FactorRule RelativeBiasOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> out = shapeOf(getResult());
  int n = rule.addFactor(whole, shapeOf(getTable())[0]), h = rule.addFactor(pass, out[0]),
      s = rule.addFactor(pass, out[1]), u = rule.addFactor(pass, out[2]);
  rule.operands = {{n, h}, {s}, {u}};
  rule.results = {{h, s, u}};
  return rule;
}

/// x[b,s,h..,d], cos[s,r], sin[s,r] → x, linear in x.
FactorRule RopeOp::getFactorRule() {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(getX()).drop_back());
  int d = rule.addFactor(whole, shapeOf(getX()).back()),
      r = rule.addFactor(whole, shapeOf(getCos())[1]);
  rule.operands = {join(x, {d}), {x[1], r}, {x[1], r}};
  rule.results = {join(x, {d})};
  rule.linearity = Linearity::first;
  return rule;
}

/// x[t..,h,k], w[h,n,k] → [t..,h,n]
FactorRule HeadLinearOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> x = shapeOf(getX());
  Ids t = rule.addFactors(pass, x.drop_back(2));
  int h = rule.addFactor(pass, x[x.size() - 2]), k = rule.addFactor(reduce, x.back()),
      n = rule.addFactor(pass, shapeOf(getResult()).back());
  rule.operands = {join(t, {h, k}), getTransposed() ? Ids{h, k, n} : Ids{h, n, k}};
  rule.results = {join(t, {h, n})};
  rule.linearity = Linearity::first;
  return rule;
}

/// q[b,s,h,d], k[b,u,g,d], v[b,u,g,e], qpos[s], kpos[u], kmask[b,u], q2[b,s,h,r], k2[b,u,r],
/// bias[h,s,u], sinks[h] → [b,s,h,e]: a query needs all keys (u), kv heads g, where there are any,
/// follow the query heads h.
FactorRule AttentionOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> q = shapeOf(getQ()), k = shapeOf(getK());
  int b = rule.addFactor(pass, q[0]), s = rule.addFactor(pass, q[1]),
      h = rule.addFactor(pass, q[2]), d = rule.addFactor(whole, q[3]);
  int u = rule.addFactor(whole, k[1]), e = rule.addFactor(whole, shapeOf(getV()).back());
  Ids keys{b, u};
  if (k.size() == 4)
    keys.push_back(rule.addFactor(unconstrained, k[2], /*follows=*/h));
  rule.operands = {{b, s, h, d}, join(keys, {d}), join(keys, {e}), {s}, {u}, {b, u}};
  if (getQ2()) {
    int r = rule.addFactor(whole, shapeOf(getQ2())[3]);
    rule.operands.push_back({b, s, h, r});
    rule.operands.push_back({b, u, r});
  }
  if (getBias())
    rule.operands.push_back({h, s, u});
  if (getSinks())
    rule.operands.push_back({h});
  rule.results = {{b, s, h, e}};
  return rule;
}

//===----------------------------------------------------------------------===//
// Generation
//===----------------------------------------------------------------------===//

/// rows[b,s,x..], cache[b,n,x..], at[1] → cache: every rank that has a row of the batch has all of
/// its rows.
FactorRule WriteRowsOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> rows = shapeOf(getRows());
  int b = rule.addFactor(pass, rows[0]), s = rule.addFactor(whole, rows[1]),
      n = rule.addFactor(whole, shapeOf(getCache())[1]);
  Ids x = rule.addFactors(pass, rows.drop_front(2));
  rule.operands = {join({b, s}, x), join({b, n}, x)};
  if (getAt())
    rule.operands.push_back({rule.addFactor(whole, 1)});
  rule.results = {join({b, n}, x)};
  return rule;
}

/// x[b,s,y..], at[1] → [b,o,y..]: shards that lack the column give zeros, so s is a reduction.
FactorRule SlotOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> x = shapeOf(getX());
  int b = rule.addFactor(pass, x[0]), s = rule.addFactor(reduce, x[1]),
      o = rule.addFactor(whole, 1);
  Ids y = rule.addFactors(pass, x.drop_front(2));
  rule.operands = {join({b, s}, y)};
  if (getAt())
    rule.operands.push_back({rule.addFactor(whole, 1)});
  rule.results = {join({b, o}, y)};
  rule.linearity = Linearity::first;
  return rule;
}

/// logits[b,s,v], sampling[m], draw[n] → [b,s]
FactorRule SampleOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> logits = shapeOf(getLogits());
  int b = rule.addFactor(pass, logits[0]), s = rule.addFactor(pass, logits[1]),
      v = rule.addFactor(whole, logits[2]), m = rule.addFactor(whole, 2),
      n = rule.addFactor(whole, 4);
  rule.operands = {{b, s, v}, {m}, {n}};
  rule.results = {{b, s}};
  return rule;
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

/// logits[t..,e], bias[e] → routing[t..]: every token needs all scores.
FactorRule RouteOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, getType().getTokens());
  int e = rule.addFactor(whole, getType().getExperts());
  rule.operands = {join(t, {e})};
  if (getBias())
    rule.operands.push_back({e});
  for (Value number : {getStep(), getPart()})
    if (number)
      rule.operands.push_back({rule.addFactor(whole, 1)});
  rule.results = {t};
  return rule;
}

/// logits[t..,e], choices[t..,k] → routing[t..]
FactorRule RouteToOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, getType().getTokens());
  int e = rule.addFactor(whole, getType().getExperts()),
      k = rule.addFactor(whole, getType().getK());
  rule.operands = {join(t, {e}), join(t, {k})};
  rule.results = {t};
  return rule;
}

/// x[b,s,d], step[n], part[m] → x: tokens may be cut anywhere, their draws go by their numbers.
FactorRule JitterOp::getFactorRule() {
  FactorRule rule;
  Ids x = rule.addFactors(pass, shapeOf(getX()).drop_back());
  x.push_back(rule.addFactor(whole, shapeOf(getX()).back()));
  rule.operands = {x, {rule.addFactor(whole, 1)}};
  if (getPart())
    rule.operands.push_back({rule.addFactor(whole, 1)});
  rule.results = {x};
  rule.linearity = Linearity::first;
  return rule;
}

/// routing[t..], step[s] → routing[t..], dropped[c]: a domain is seen as a whole, so that every
/// rank finds the same choices over the capacity; sequences of their own may be cut apart.
FactorRule LimitOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> tokens = getRouting().getType().getTokens();
  Ids t;
  for (auto [i, size] : llvm::enumerate(tokens))
    t.push_back(rule.addFactor(
        i == 0 && getCapacity().getDomain() == CapacityDomain::sequence ? pass : whole, size));
  rule.operands = {t};
  if (getStep())
    rule.operands.push_back({rule.addFactor(whole, 1)});
  rule.results = {t, {rule.addFactor(whole, 2)}};
  return rule;
}

/// routing[t..] → routing[t..]
FactorRule RedirectOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, getRouting().getType().getTokens());
  rule.operands = {t};
  rule.results = {t};
  return rule;
}

/// x[t..,d], routing[t..] → rows[r,d]: the permutation ties r to t.. (refineResultShardings).
FactorRule DispatchOp::getFactorRule() {
  FactorRule rule;
  Ids t = rule.addFactors(pass, getRouting().getType().getTokens());
  int d = rule.addFactor(pass, shapeOf(getX()).back()),
      r = rule.addFactor(unconstrained, shapeOf(getResult())[0]);
  rule.operands = {join(t, {d}), t};
  rule.results = {{r, d}};
  rule.linearity = Linearity::first;
  return rule;
}

/// Of a grouped op's `groups`: the routing's tokens, or the counts.
static Ids groupFactors(FactorRule &rule, Value groups) {
  if (auto routing = dyn_cast<RoutingType>(groups.getType()))
    return rule.addFactors(unconstrained, routing.getTokens());
  return rule.addFactors(unconstrained, shapeOf(groups));
}

/// rows[r,K..], groups, w[e,N..,K..] → [r,N..]: rows know which experts their shard has, so e is
/// free.
FactorRule GroupedMatmulOp::getFactorRule() {
  FactorRule rule;
  int64_t n = getContract();
  ArrayRef<int64_t> w = shapeOf(getW());
  int r = rule.addFactor(pass, shapeOf(getRows())[0]), e = rule.addFactor(unconstrained, w[0]);
  Ids out = rule.addFactors(pass, w.drop_front().drop_back(n)),
      k = rule.addFactors(reduce, w.take_back(n));
  rule.operands = {join({r}, k), groupFactors(rule, getGroups()), join({e}, join(out, k))};
  rule.results = {join({r}, out)};
  rule.linearity = Linearity::first;
  return rule;
}

/// rows[r,N..], groups, b[e,N..] → [r,N..]. Rows may be partial, as only one rank of a sum adds the
/// bias (localize).
FactorRule GroupedBiasOp::getFactorRule() {
  FactorRule rule;
  ArrayRef<int64_t> b = shapeOf(getB());
  int r = rule.addFactor(pass, shapeOf(getRows())[0]), e = rule.addFactor(unconstrained, b[0]);
  Ids out = rule.addFactors(pass, b.drop_front());
  rule.operands = {join({r}, out), groupFactors(rule, getGroups()), join({e}, out)};
  rule.results = {join({r}, out)};
  rule.linearity = Linearity::first;
  return rule;
}

/// rows[r,d], routing[t..] → [t..,d]
FactorRule CombineOp::getFactorRule() {
  FactorRule rule;
  int r = rule.addFactor(unconstrained, shapeOf(getRows())[0]),
      d = rule.addFactor(pass, shapeOf(getRows())[1]);
  Ids t = rule.addFactors(pass, getRouting().getType().getTokens());
  rule.operands = {{r, d}, t};
  rule.results = {join(t, {d})};
  rule.linearity = Linearity::first;
  return rule;
}

/// Below this many bytes a ragged buffer starts at its worst case: a retry would cost more than the
/// memory.
static constexpr int64_t kSmallRaggedBytes = 1 << 20;

FailureOr<RaggedRows> moe::raggedRows(DispatchOp op, const MeshInfo &mesh, ShardingAttr tokens) {
  SmallVector<StringAttr> tokenAxes;
  RaggedRows rows;
  for (DimShardingAttr dim : tokens.getDims())
    llvm::append_range(tokenAxes, dim.getAxes());
  for (StringAttr axis : op.getExpertAxes().getAsRange<StringAttr>())
    if (mesh.sizeOf(axis.getValue()) > 1)
      rows.expertAxes.push_back(axis);
  auto isTokenAxis = [&](StringAttr axis) { return llvm::is_contained(tokenAxes, axis); };
  rows.exchange = !rows.expertAxes.empty() && llvm::all_of(rows.expertAxes, isTokenAxis);
  if (!rows.exchange && llvm::any_of(rows.expertAxes, isTokenAxis))
    return op.emitOpError("MOE-0601: the expert axes must all split the tokens or none may");
  for (StringAttr axis : tokenAxes)
    if (!llvm::is_contained(rows.expertAxes, axis))
      rows.rowAxes.push_back(axis);

  RoutingType routing = op.getRouting().getType();
  int64_t local = routing.numTokens() / mesh.sizeOf(tokenAxes), k = routing.getK();
  int64_t parts = mesh.sizeOf(rows.expertAxes);
  rows.slots = rows.exchange ? parts : 1;
  rows.worst = local * std::min(k, routing.getExperts() / parts);
  if (parts == 1) {
    rows.bound = rows.worst = local * k;
    return rows;
  }
  int64_t bytes = rows.worst * rows.slots * shapeOf(op.getX()).back() * 4;
  rows.bound = bytes <= kSmallRaggedBytes
                   ? rows.worst
                   : std::min<int64_t>(rows.worst, 2 * llvm::divideCeil(local * k, parts));
  if (op.getBound())
    rows.bound = std::min<int64_t>(rows.worst, *op.getBound());
  return rows;
}

LogicalResult DispatchOp::refineResultShardings(const MeshInfo &mesh,
                                                ArrayRef<ShardingAttr> operands,
                                                SmallVectorImpl<ShardingAttr> &results) {
  FailureOr<RaggedRows> rows = raggedRows(*this, mesh, operands[1]);
  if (failed(rows))
    return failure();
  results[0] =
      results[0].withDim(0, DimShardingAttr::get(getContext(), rows->rowAxes, 0, rows->expertAxes,
                                                 rows->slots, rows->bound));
  return success();
}

/// Without an exchange each shard adds up only the rows of its own experts: partial over their
/// axes.
LogicalResult CombineOp::refineResultShardings(const MeshInfo &mesh,
                                               ArrayRef<ShardingAttr> operands,
                                               SmallVectorImpl<ShardingAttr> &results) {
  DimShardingAttr rows = operands[0].getDims()[0];
  SmallVector<StringAttr> partial(results[0].getPartialAxes());
  SmallVector<StringAttr> cut;
  for (DimShardingAttr dim : operands[1].getDims())
    llvm::append_range(cut, dim.getAxes());
  for (StringAttr axis : rows.getExpertAxes())
    if (!llvm::is_contained(cut, axis) && !llvm::is_contained(partial, axis))
      partial.push_back(axis);
  results[0] = results[0].withPartial(partial);
  return success();
}

/// Ranks that hold different sequences count different drops.
LogicalResult LimitOp::refineResultShardings(const MeshInfo &, ArrayRef<ShardingAttr> operands,
                                             SmallVectorImpl<ShardingAttr> &results) {
  results[1] = results[1].withPartial(operands[0].getDims()[0].getAxes());
  return success();
}

//===----------------------------------------------------------------------===//
// What depends on the rank
//===----------------------------------------------------------------------===//

/// First element of this rank's part of a dimension; null where it is not cut.
void EmbeddingOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                           ArrayRef<ShardingAttr>) {
  if (Attribute offset = offsetOf(shapeOf(getTable())[0], operands[1].getDims()[0], mesh))
    setRowOffsetAttr(offset);
}

void PositionsOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr>,
                           ArrayRef<ShardingAttr> results) {
  if (Attribute offset = offsetOf(shapeOf(getResult())[0], results[0].getDims()[0], mesh))
    setStartAttr(offset);
}

void TokenPositionsOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr>,
                                ArrayRef<ShardingAttr> results) {
  if (Attribute offset = offsetOf(shapeOf(getResult())[1], results[0].getDims()[1], mesh))
    setStartAttr(offset);
}

void AttentionOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                           ArrayRef<ShardingAttr>) {
  if (Attribute offset = offsetOf(shapeOf(getQ())[2], operands[0].getDims()[2], mesh))
    setHeadOffsetAttr(offset);
  if (shapeOf(getK()).size() < 4)
    return;
  if (Attribute offset = offsetOf(shapeOf(getK())[2], operands[1].getDims()[2], mesh))
    setKvOffsetAttr(offset);
}

void SlotOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                      ArrayRef<ShardingAttr>) {
  int64_t slots = shapeOf(getX())[1];
  if (!getAt() && !getIndex())
    setIndex(slots - 1);
  if (Attribute offset = offsetOf(slots, operands[0].getDims()[1], mesh))
    setStartAttr(offset);
}

void SampleOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                        ArrayRef<ShardingAttr>) {
  if (Attribute offset = offsetOf(shapeOf(getLogits())[0], operands[0].getDims()[0], mesh))
    setRowOffsetAttr(offset);
}

void GroupedBiasOp::localize(const MeshInfo &, ArrayRef<ShardingAttr> operands,
                             ArrayRef<ShardingAttr>) {
  if (ArrayRef<StringAttr> axes = operands[0].getPartialAxes(); !axes.empty())
    setPartAttr(dist::OffsetAttr::get(getContext(), axes, 1));
}

/// Where the tokens [batch, sequence] of a shard stand in the whole, for an op that draws by their
/// numbers.
template <typename Op>
static void setPlaceOfTokens(Op op, ArrayRef<int64_t> shape, ShardingAttr sharding,
                             const MeshInfo &mesh) {
  ArrayRef<DimShardingAttr> dims = sharding.getDims();
  if (Attribute offset = offsetOf(shape[0], dims[0], mesh)) {
    op.setRows(shape[0]);
    op.setRowOffsetAttr(offset);
  }
  if (Attribute offset = offsetOf(shape[1], dims[1], mesh)) {
    op.setColumns(shape[1]);
    op.setColumnOffsetAttr(offset);
  }
}

void JitterOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                        ArrayRef<ShardingAttr>) {
  setPlaceOfTokens(*this, shapeOf(getX()), operands[0], mesh);
}

void RouteOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                       ArrayRef<ShardingAttr>) {
  if (getStep())
    setPlaceOfTokens(*this, shapeOf(getLogits()), operands[0], mesh);
}

void LimitOp::localize(const MeshInfo &mesh, ArrayRef<ShardingAttr> operands,
                       ArrayRef<ShardingAttr>) {
  RoutingType routing = getRouting().getType();
  DimShardingAttr dim = operands[0].getDims()[0];
  int64_t size = routing.getTokens()[0];
  if (!dim.getAxes().empty())
    setTokenOffsetAttr(
        dist::OffsetAttr::get(getContext(), dim.getAxes(),
                              dist::localSize(size, dim, mesh) * (routing.numTokens() / size)));
}
