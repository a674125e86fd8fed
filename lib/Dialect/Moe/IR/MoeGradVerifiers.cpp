//===- MoeGradVerifiers.cpp - constraints of gradient and loss ops --------===//
// As MoeVerifiers.cpp, for MoeGradOps.td, MoeExpertGradOps.td and MoeLossOps.td.
//===----------------------------------------------------------------------===//
#include "moira/Dialect/Moe/IR/MoeOps.h"

using namespace mlir;
using namespace moira;
using namespace moira::moe;

static RankedTensorType tensorOf(Value v) { return cast<RankedTensorType>(v.getType()); }
static ArrayRef<int64_t> shapeOf(Value v) { return tensorOf(v).getShape(); }
static int64_t rankOf(Value v) { return tensorOf(v).getRank(); }

static SmallVector<int64_t> concat(ArrayRef<int64_t> a, ArrayRef<int64_t> b) {
  SmallVector<int64_t> shape(a);
  llvm::append_range(shape, b);
  return shape;
}

static bool is(Value v, ArrayRef<int64_t> shape) { return shapeOf(v) == shape; }

static bool isSuffix(ArrayRef<int64_t> suffix, ArrayRef<int64_t> shape) {
  return suffix.size() <= shape.size() && shape.take_back(suffix.size()) == suffix;
}

/// Whether sums are as wide as they are made, or rounded to an operand's type.
static bool isWideOrOf(Value sums, Value operand) {
  Type type = tensorOf(sums).getElementType();
  return !type.isBF16() || (operand && tensorOf(operand).getElementType().isBF16());
}

static bool oneShape(Value a, Value b, Value c) {
  return shapeOf(a) == shapeOf(b) && shapeOf(b) == shapeOf(c);
}

//===----------------------------------------------------------------------===//
// Dense
//===----------------------------------------------------------------------===//

LogicalResult EmbeddingGradOp::verify() {
  if (rankOf(getTable()) != 2 ||
      !is(getDy(), concat(shapeOf(getIds()), shapeOf(getTable()).back())))
    return emitOpError("C1: dy must have the shape of ids followed by the table's last dimension");
  if (shapeOf(getResult()) != shapeOf(getTable()))
    return emitOpError("C2: the result must have the table's shape");
  if (IntegerAttr pad = getPadAttr(); pad && pad.getInt() < 0)
    return emitOpError("C3: pad = ") << pad.getInt() << " must not be negative";
  return success();
}

LogicalResult LinearInputGradOp::verify() {
  int64_t k = getContract(), n = rankOf(getW()) - k;
  if (k < 1 || n < 0)
    return emitOpError("C1: contract = ") << k << " must lie between 1 and the rank of w";
  if (rankOf(getDy()) < n || shapeOf(getDy()).take_back(n) != shapeOf(getW()).take_front(n))
    return emitOpError("C2: dy must end with w's first ") << n << " dimensions";
  if (!is(getResult(), concat(shapeOf(getDy()).drop_back(n), shapeOf(getW()).take_back(k))))
    return emitOpError("C3: the result must be dy's and then w's other dimensions");
  return success();
}

LogicalResult LinearWeightGradOp::verify() {
  int64_t k = getContract(), t = rankOf(getX()) - k;
  if (k < 1 || t < 0)
    return emitOpError("C1: contract = ") << k << " must lie between 1 and the rank of x";
  if (rankOf(getDy()) < t || shapeOf(getDy()).take_front(t) != shapeOf(getX()).take_front(t))
    return emitOpError("C2: dy must begin with x's first ") << t << " dimensions";
  if (!is(getResult(), concat(shapeOf(getDy()).drop_front(t), shapeOf(getX()).take_back(k))))
    return emitOpError("C3: the result must be dy's and then x's other dimensions");
  if (!isWideOrOf(getResult(), getX()))
    return emitOpError("C4: the result must be f32, or bf16 if x is");
  return success();
}

LogicalResult HeadWeightGradOp::verify() {
  ArrayRef<int64_t> dy = shapeOf(getDy()), x = shapeOf(getX());
  if (dy.size() < 2 || x.size() != dy.size() || dy.drop_back() != x.drop_back())
    return emitOpError("C1: dy and x must be [t..,H,N] and [t..,H,K]");
  if (!is(getResult(), {dy[dy.size() - 2], dy.back(), x.back()}))
    return emitOpError("C2: the result must be [H,N,K]");
  return success();
}

LogicalResult SumRowsOp::verify() {
  if (rankOf(getResult()) >= rankOf(getX()) || !isSuffix(shapeOf(getResult()), shapeOf(getX())))
    return emitOpError("C1: the result's shape must be a suffix of x's, and shorter");
  return success();
}

LogicalResult RmsSumsOp::verify() {
  if (shapeOf(getDy()) != shapeOf(getX()) || !isSuffix(shapeOf(getW()), shapeOf(getX())))
    return emitOpError("C1: dy and x must have one shape, w's must be a suffix of it");
  ArrayRef<int64_t> rows = shapeOf(getX()).drop_back(rankOf(getW()));
  if (!is(getSs(), rows) || !is(getDot(), rows))
    return emitOpError("C2: the results must have x's leading shape");
  return success();
}

LogicalResult RmsNormGradOp::verify() {
  if (!oneShape(getDy(), getX(), getDx()) || !isSuffix(shapeOf(getW()), shapeOf(getX())))
    return emitOpError("C1: dy, x and dx must have one shape, w's must be a suffix of it");
  if (shapeOf(getDw()) != shapeOf(getW()))
    return emitOpError("C2: dw must have w's shape");
  if (!(getEps().convertToDouble() >= 0) || static_cast<int64_t>(getCount()) < 1)
    return emitOpError("C3: eps must not be negative, count must be at least 1");
  ArrayRef<int64_t> rows = shapeOf(getX()).drop_back(rankOf(getW()));
  if (bool(getSs()) != bool(getDot()) || (getSs() && (!is(getSs(), rows) || !is(getDot(), rows))))
    return emitOpError("C4: ss and dot, both or neither, must have x's leading shape");
  return success();
}

LogicalResult LayerNormGradOp::verify() {
  if (!oneShape(getDy(), getX(), getDx()) || !isSuffix(shapeOf(getW()), shapeOf(getX())))
    return emitOpError("C1: dy, x and dx must have one shape, w's must be a suffix of it");
  if (!oneShape(getDw(), getDb(), getW()))
    return emitOpError("C2: dw and db must have w's shape");
  if (!(getEps().convertToDouble() >= 0))
    return emitOpError("C3: eps must not be negative");
  return success();
}

LogicalResult ClampGradOp::verify() {
  if (!(getLo().convertToDouble() <= getHi().convertToDouble()))
    return emitOpError("C1: lo must not exceed hi");
  return oneShape(getDy(), getX(), getResult())
             ? success()
             : emitOpError("C2: dy, x and the result must have one shape");
}

LogicalResult ActGradOp::verify() {
  return oneShape(getDy(), getX(), getResult())
             ? success()
             : emitOpError("C1: dy, x and the result must have one shape");
}

LogicalResult GluGradOp::verify() {
  ArrayRef<int64_t> x = shapeOf(getX());
  if (x.size() < 2 || x[x.size() - 2] != 2)
    return emitOpError("C1: the last dimension but one of x must be 2");
  if (!is(getDy(), concat(x.drop_back(2), x.back())) || shapeOf(getResult()) != x)
    return emitOpError("C2: dy must be x without that dimension, the result must have x's shape");
  auto finite = [](std::optional<llvm::APFloat> v) { return !v || v->isFinite(); };
  if ((getLimit() && !(getLimit()->convertToDouble() > 0)) || !finite(getAlpha()) ||
      !finite(getUpShift()))
    return emitOpError("C3: the limit must be positive, alpha and up_shift finite");
  if (getAlpha() && getActivation() != Activation::silu)
    return emitOpError("C4: alpha is for silu only");
  return success();
}

LogicalResult SigmoidGateGradOp::verify() {
  if (shapeOf(getX()) != shapeOf(getDy()) || rankOf(getX()) < 1)
    return emitOpError("C1: x and dy must have one shape");
  SmallVector<int64_t> gate = concat(shapeOf(getX()).drop_back(), 1);
  if (!is(getG(), gate) || !is(getResult(), gate))
    return emitOpError(
        "C2: g and the result must have x's leading shape and a last dimension of 1");
  return success();
}

LogicalResult RelativeBiasGradOp::verify() {
  ArrayRef<int64_t> table = shapeOf(getTable());
  if (table.size() != 2 || rankOf(getQpos()) != 1 || rankOf(getKpos()) != 1 ||
      !is(getDy(), {table[1], shapeOf(getQpos())[0], shapeOf(getKpos())[0]}))
    return emitOpError("C1: dy must be [H,Sq,Sk] for a table [N,H], qpos [Sq] and kpos [Sk]");
  if (shapeOf(getResult()) != table)
    return emitOpError("C2: the result must have the table's shape");
  return success();
}

/// The operands whose cotangents an attention_grad gives, in the order of its results.
static SmallVector<Value> differentiated(AttentionGradOp op) {
  SmallVector<Value> values{op.getQ(), op.getK(), op.getV()};
  for (Value optional :
       {Value(op.getQ2()), Value(op.getK2()), Value(op.getBias()), Value(op.getSinks())})
    if (optional)
      values.push_back(optional);
  return values;
}

LogicalResult AttentionGradOp::verify() {
  ArrayRef<int64_t> q = shapeOf(getQ()), k = shapeOf(getK()), v = shapeOf(getV());
  if (q.size() != 4 || (k.size() != 4 && k.size() != 3) || v.size() != k.size() ||
      !is(getDy(), concat(q.drop_back(), v.back())))
    return emitOpError("C1: dy must have the shape of the attention's result");
  SmallVector<Value> values = differentiated(*this);
  if (values.size() != getGrads().size())
    return emitOpError("C2: there must be ") << values.size() << " results";
  for (auto [value, grad] : llvm::zip(values, getGrads()))
    if (shapeOf(value) != shapeOf(grad))
      return emitOpError("C2: ") << grad.getType() << " is no gradient of " << value.getType();
  for (Value grad : getGrads().drop_front(3))
    if (cast<RankedTensorType>(grad.getType()).getElementType().isBF16())
      return emitOpError("C4: only dq, dk and dv may be narrower than f32");
  int64_t heads = getQHeads(), kvHeads = getKvHeads();
  if (heads < 1 || kvHeads < 1 || heads % kvHeads != 0 || static_cast<int64_t>(getWindow()) < 0 ||
      !getScale().isFinite() || bool(getQ2()) != bool(getK2()) ||
      (getBidirectional() && getWindow() != 0))
    return emitOpError("C3: its heads, window, scale or optional operands are no attention's");
  return success();
}

//===----------------------------------------------------------------------===//
// Experts
//===----------------------------------------------------------------------===//

/// [tokens.., k]
static SmallVector<int64_t> choiceShape(RoutingType routing) {
  return concat(routing.getTokens(), routing.getK());
}

static bool areGroupsOf(Value groups, int64_t experts) {
  if (auto routing = dyn_cast<RoutingType>(groups.getType()))
    return routing.getExperts() == experts;
  return rankOf(groups) == 2 && shapeOf(groups)[1] == experts;
}

LogicalResult RouteGradOp::verify() {
  RoutingType routing = getRouting().getType();
  if (!is(getLogits(), concat(routing.getTokens(), routing.getExperts())))
    return emitOpError("C1: logits must be [t..,E] with t.. and E of the routing");
  if (!is(getDweights(), choiceShape(routing)) || getRouter().getK() != routing.getK())
    return emitOpError("C2: dweights must be [t..,k], k that of router and routing");
  if (shapeOf(getResult()) != shapeOf(getLogits()))
    return emitOpError("C3: the result must have the shape of logits");
  return success();
}

LogicalResult LimitGradOp::verify() {
  RoutingType a = getRouting().getType(), b = getLimited().getType();
  if (a.getTokens() != b.getTokens() || a.getExperts() != b.getExperts() || a.getK() != b.getK())
    return emitOpError("C1: both routings must have the same tokens, experts and k");
  if (!is(getDweights(), choiceShape(a)) || !is(getResult(), choiceShape(a)))
    return emitOpError("C2: dweights and the result must be [t..,k]");
  return success();
}

LogicalResult ChoiceDotsOp::verify() {
  RoutingType routing = getRouting().getType();
  if (rankOf(getRows()) != 2 || shapeOf(getRows())[0] != routing.numTokens() * routing.getK())
    return emitOpError("C1: rows must be [T·k,D]");
  if (!is(getX(), concat(routing.getTokens(), shapeOf(getRows())[1])))
    return emitOpError("C2: x must be t.. of the routing followed by D");
  if (!is(getResult(), choiceShape(routing)))
    return emitOpError("C3: the result must be [t..,k]");
  return success();
}

LogicalResult GroupedInputGradOp::verify() {
  int64_t k = getContract();
  ArrayRef<int64_t> w = shapeOf(getW()), dy = shapeOf(getDy());
  if (k < 1 || k >= int64_t(w.size()))
    return emitOpError("C1: contract must be at least 1 and less than the rank of w");
  if (dy.empty() || dy.drop_front() != w.drop_front().drop_back(k))
    return emitOpError("C2: dy must be [R,N..]");
  if (!is(getResult(), concat(dy.take_front(), w.take_back(k))))
    return emitOpError("C3: the result must be [R,K..]");
  if (!areGroupsOf(getGroups(), w[0]))
    return emitOpError("C4: groups must count the experts of w");
  return success();
}

/// Row counts by sample, where they are given.
static bool areSamplesOf(Value samples, int64_t experts) {
  return !samples || (rankOf(samples) == 2 && shapeOf(samples)[1] == experts);
}

LogicalResult GroupedWeightGradOp::verify() {
  int64_t k = getContract();
  ArrayRef<int64_t> dy = shapeOf(getDy()), rows = shapeOf(getRows());
  if (k < 1 || k >= int64_t(rows.size()))
    return emitOpError("C1: contract must be at least 1 and less than the rank of rows");
  if (int64_t(rows.size()) != k + 1 || dy.empty() || dy[0] != rows[0])
    return emitOpError("C2: dy and rows must have one number of rows");
  ArrayRef<int64_t> result = shapeOf(getResult());
  if (result.empty() || result.drop_front() != ArrayRef(concat(dy.drop_front(), rows.take_back(k))))
    return emitOpError("C3: the result must be [E,N..,K..]");
  if (!areGroupsOf(getGroups(), result[0]))
    return emitOpError("C4: groups must count the experts of the result");
  if (!areSamplesOf(getSamples(), result[0]))
    return emitOpError("C5: samples must be [B,E]");
  if (!isWideOrOf(getResult(), getSamples() ? Value() : getRows()))
    return emitOpError("C6: the result must be f32, or bf16 if rows are and there are no samples");
  return success();
}

LogicalResult GroupedBiasGradOp::verify() {
  ArrayRef<int64_t> dy = shapeOf(getDy()), result = shapeOf(getResult());
  if (dy.empty() || result.empty() || dy.drop_front() != result.drop_front())
    return emitOpError("C1: the result must be [E,N..]");
  if (!areGroupsOf(getGroups(), result[0]))
    return emitOpError("C2: groups must count the experts of the result");
  if (!areSamplesOf(getSamples(), result[0]))
    return emitOpError("C3: samples must be [B,E]");
  return success();
}

//===----------------------------------------------------------------------===//
// Losses
//===----------------------------------------------------------------------===//

LogicalResult NextTokensOp::verify() {
  if (rankOf(getIds()) != 2 || shapeOf(getResult()) != shapeOf(getIds()) ||
      (getLabels() && shapeOf(getLabels()) != shapeOf(getIds())))
    return emitOpError("C1: ids must have two dimensions, labels and the result their shape");
  return success();
}

/// C2 of the ops over a vocabulary.
template <typename Op> static LogicalResult verifyVocabulary(Op op) {
  int64_t classes = op.getClasses(), columns = shapeOf(op.getX()).back();
  if (classes < 1 || (!op.getColumnOffset() && classes != columns))
    return op.emitOpError("C2: classes = ") << classes << " do not fit " << columns << " columns";
  return success();
}

static ArrayRef<int64_t> rowsOf(Value x) { return shapeOf(x).drop_back(); }

LogicalResult RowMaxOp::verify() {
  if (rankOf(getX()) < 1 || !is(getResult(), rowsOf(getX())))
    return emitOpError("C1: the result must have x's leading shape");
  return verifyVocabulary(*this);
}

LogicalResult CrossEntropyStatsOp::verify() {
  if (rankOf(getX()) < 1 || !is(getMax(), rowsOf(getX())) || !is(getLabels(), rowsOf(getX())) ||
      !is(getResult(), concat(rowsOf(getX()), 3)))
    return emitOpError("C1: max and labels must have x's leading shape, the result that and 3");
  return verifyVocabulary(*this);
}

LogicalResult CrossEntropyStatsGradOp::verify() {
  if (rankOf(getX()) < 1 || !is(getMax(), rowsOf(getX())) || !is(getLabels(), rowsOf(getX())) ||
      !is(getD(), concat(rowsOf(getX()), 3)) || shapeOf(getResult()) != shapeOf(getX()) ||
      getResult().getType().getElementType() != getX().getType().getElementType())
    return emitOpError("C1: max and labels must have x's leading shape, d that and 3, the result "
                       "x's type");
  return verifyVocabulary(*this);
}

template <typename Op> static LogicalResult verifySmoothing(Op op) {
  double smoothing = op.getSmoothing().convertToDouble();
  if (static_cast<int64_t>(op.getClasses()) < 1 || !(smoothing >= 0 && smoothing < 1))
    return op.emitOpError("C3: classes must be at least 1, smoothing at least 0 and less than 1");
  return success();
}

LogicalResult CrossEntropyOp::verify() {
  if (!is(getStats(), concat(shapeOf(getLabels()), 3)))
    return emitOpError("C1: stats must be [t..,3] with labels' t..");
  if (!is(getSum(), {1}) || !is(getCount(), {1}))
    return emitOpError("C2: the results must be [1]");
  return verifySmoothing(*this);
}

LogicalResult CrossEntropyGradOp::verify() {
  if (!is(getStats(), concat(shapeOf(getLabels()), 3)) ||
      shapeOf(getResult()) != shapeOf(getStats()))
    return emitOpError("C1: stats must be [t..,3] with labels' t.., and the result like them");
  if (!is(getD(), {1}))
    return emitOpError("C2: d must be [1]");
  return verifySmoothing(*this);
}

LogicalResult RatioOp::verify() {
  return oneShape(getA(), getB(), getResult())
             ? success()
             : emitOpError("C1: a, b and the result must have one shape");
}

//===----------------------------------------------------------------------===//
// Router losses
//===----------------------------------------------------------------------===//

static LogicalResult verifyTokens(Operation *op, int64_t tokens, const char *constraint) {
  return tokens >= 1 ? success() : op->emitOpError(constraint) << ": tokens must be at least 1";
}

LogicalResult ExpertLoadOp::verify() {
  return is(getResult(), {getRouting().getType().getExperts()})
             ? success()
             : emitOpError("C1: the result must be [E]");
}

LogicalResult ExpertProbsOp::verify() {
  return rankOf(getLogits()) >= 1 && is(getResult(), {shapeOf(getLogits()).back()})
             ? success()
             : emitOpError("C1: the result must be [E]");
}

LogicalResult ExpertProbsGradOp::verify() {
  if (rankOf(getLogits()) < 1 || !is(getD(), {shapeOf(getLogits()).back()}))
    return emitOpError("C1: d must be [E]");
  return shapeOf(getResult()) == shapeOf(getLogits())
             ? success()
             : emitOpError("C2: the result must have the shape of logits");
}

LogicalResult BalanceOp::verify() {
  if (rankOf(getLoad()) != 1 || shapeOf(getLoad()) != shapeOf(getProbs()))
    return emitOpError("C1: load and probs must have one shape [E]");
  if (!is(getResult(), {1}))
    return emitOpError("C2: the result must be [1]");
  return verifyTokens(*this, getTokens(), "C3");
}

LogicalResult BalanceGradOp::verify() {
  if (!is(getD(), {1}))
    return emitOpError("C1: d must be [1]");
  if (rankOf(getLoad()) != 1 || shapeOf(getLoad()) != shapeOf(getResult()))
    return emitOpError("C2: the result must have load's shape [E]");
  return verifyTokens(*this, getTokens(), "C3");
}

/// Whether logits are [B,S,E] of the routing's tokens and experts.
static bool areOfSequences(TypedValue<RankedTensorType> logits, RoutingType routing) {
  return rankOf(logits) == 3 && shapeOf(logits).drop_back() == routing.getTokens() &&
         shapeOf(logits).back() == routing.getExperts();
}

static LogicalResult verifySequences(Operation *op, int64_t sequences, StringRef constraint) {
  return sequences >= 1 ? success()
                        : op->emitOpError(constraint) << ": sequences must be at least 1";
}

LogicalResult SequenceBalanceOp::verify() {
  if (!areOfSequences(getLogits(), getRouting().getType()))
    return emitOpError("C1: logits must be [B,S,E] of the routing's tokens [B,S] and experts");
  if (!is(getResult(), {1}))
    return emitOpError("C2: the result must be [1]");
  return verifySequences(*this, getSequences(), "C3");
}

LogicalResult SequenceBalanceGradOp::verify() {
  if (!is(getD(), {1}))
    return emitOpError("C1: d must be [1]");
  if (!areOfSequences(getLogits(), getRouting().getType()))
    return emitOpError("C2: logits must be [B,S,E] of the routing's tokens [B,S] and experts");
  if (shapeOf(getResult()) != shapeOf(getLogits()))
    return emitOpError("C3: the result must have the shape of logits");
  return verifySequences(*this, getSequences(), "C4");
}

LogicalResult RouterZOp::verify() {
  if (!is(getResult(), {1}))
    return emitOpError("C1: the result must be [1]");
  return verifyTokens(*this, getTokens(), "C2");
}

LogicalResult RouterZGradOp::verify() {
  if (!is(getD(), {1}))
    return emitOpError("C1: d must be [1]");
  if (shapeOf(getResult()) != shapeOf(getLogits()))
    return emitOpError("C2: the result must have the shape of logits");
  return verifyTokens(*this, getTokens(), "C3");
}
