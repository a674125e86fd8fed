//===- AttentionLowerings.cpp - attention and its gradient ----------------===//
// The two calls, and what they know of each other: on a GPU a gradient reads the result and the
// sums of weights that the attention of the same operands left, and has memory to work in.
//===----------------------------------------------------------------------===//
#include "LoweringTable.h"
#include "llvm/ADT/StringExtras.h"
#include <algorithm>

using namespace mlir;
using namespace moira;

using B = ProgramBuilder;

/// Whether a value is known to be 0, 1, 2, … on every rank.
static bool countsFromZero(Value positions) {
  auto op = positions.getDefiningOp<moe::PositionsOp>();
  if (!op || !op.getStartAttr())
    return bool(op);
  auto start = dyn_cast<dist::OffsetAttr>(op.getStartAttr());
  return start && (start.getAxes().empty() || start.getStride() == 0);
}

/// Whether a mask is known to have no zeros: it is a constant, or an input whose range says so.
static bool hidesNothing(Value mask) {
  if (auto full = mask.getDefiningOp<moe::FullOp>())
    return toDouble(full.getValue()) != 0;
  auto argument = dyn_cast<BlockArgument>(mask);
  auto func = argument ? dyn_cast<func::FuncOp>(argument.getOwner()->getParentOp()) : nullptr;
  if (!func)
    return false;
  auto range = func.getArgAttrOfType<DenseI64ArrayAttr>(argument.getArgNumber(), "moe.range");
  return range && (range[0] > 0 || range[1] < 0);
}

template <typename Op> static bool isInOrder(Op op) {
  return countsFromZero(op.getQpos()) && countsFromZero(op.getKpos()) &&
         hidesNothing(op.getKmask());
}

/// Of attention and its gradient.
template <typename Op> static SmallVector<NamedAttribute> attentionParams(B &b, Op op) {
  SmallVector<NamedAttribute> params{
      b.real("scale", toDouble(op.getScale())),    b.integer("window", op.getWindow()),
      b.integer("causal", !op.getBidirectional()), b.integer("q_heads", op.getQHeads()),
      b.integer("kv_heads", op.getKvHeads()),      b.offset("head_offset", op.getHeadOffsetAttr()),
      b.offset("kv_offset", op.getKvOffsetAttr())};
  SmallVector<StringRef> with;
  for (auto [role, given] : {std::pair<StringRef, bool>("q2", bool(op.getQ2())),
                             {"k2", bool(op.getK2())},
                             {"bias", bool(op.getBias())},
                             {"sinks", bool(op.getSinks())}})
    if (given)
      with.push_back(role);
  if (!with.empty())
    params.push_back(b.text("with", join(with, " ")));
  return params;
}

/// Whether a GPU has use for what the attention leaves: cuDNN, which takes what is in order, in
/// bf16, without more operands.
template <typename Op> static bool leavesSums(Op op, B &b) {
  return b.isForGpu() && op.getQ().getType().getElementType().isBF16() && isInOrder(op) &&
         !op.getQ2() && !op.getBias() && !op.getSinks();
}

static bool isGradientOf(moe::AttentionGradOp grad, moe::AttentionOp op, B &b) {
  return grad->getBlock() == op->getBlock() && op->isBeforeInBlock(grad) &&
         llvm::equal(grad->getOperands().drop_front(), op->getOperands()) &&
         attentionParams(b, grad) == attentionParams(b, op);
}

/// Numbers of f32 that a gradient has to work in: what cuDNN needs for all heads at once, or for as
/// many as fit the most that it may have. To add up in one order it keeps the cotangents of all
/// scores. What is f32 in the call it has copies of in bf16.
static int64_t roomOf(moe::AttentionGradOp op, bool fastest) {
  constexpr int64_t kMost = int64_t(9) << 28, kSlack = 4096, kTile = 128;
  ArrayRef<int64_t> q = op.getQ().getType().getShape(), k = op.getK().getType().getShape();
  const int64_t queries = llvm::alignTo(q[1], kTile), keys = llvm::alignTo(k[1], kTile),
                keyDim = q[3], valueDim = op.getV().getType().getShape().back();
  auto copyOf = [](Value value, int64_t numbers) {
    return cast<RankedTensorType>(value.getType()).getElementType().isBF16() ? 0 : 2 * numbers;
  };
  const int64_t kept = fastest ? 4 * queries * keyDim : 2 * queries * keys, sums = 8 * queries,
                copies = copyOf(op.getDy(), queries * valueDim) +
                         copyOf(op.getGrads()[0], queries * keyDim) +
                         4 * keys * (keyDim + valueDim); // cuDNN's own are a head's of queries
  return std::min(q[0] * q[2] * (kept + copies + sums + kSlack), kMost) / 4;
}

void LoweringTable::addAttentionOverKeys() {
  add<moe::AttentionOp>(+[](moe::AttentionOp op, B &b) {
    SmallVector<Value> inputs, outputs{b.define(op.getResult())};
    for (Value operand : op->getOperands())
      inputs.push_back(b.view(operand));
    SmallVector<NamedAttribute> params = attentionParams(b, op);
    if (isInOrder(op))
      params.push_back(b.integer("in_order", 1));
    if (leavesSums(op, b) && llvm::any_of(op.getQ().getUsers(), [&](Operation *user) {
          auto grad = dyn_cast<moe::AttentionGradOp>(user);
          return grad && isGradientOf(grad, op, b);
        })) {
      ArrayRef<int64_t> q = op.getQ().getType().getShape();
      Value sums = b.define(b.viewType({q[0], q[2], q[1]}, Float32Type::get(op.getContext())));
      outputs.push_back(b.logSums(op.getResult()) = sums);
      params.push_back(b.text("with", "log_sums"));
    }
    b.call("attention", inputs, outputs, params);
    return success();
  });
  add<moe::AttentionGradOp>(+[](moe::AttentionGradOp op, B &b) {
    SmallVector<Value> inputs, outputs;
    for (Value operand : op->getOperands())
      inputs.push_back(b.view(operand));
    for (Value result : op->getResults())
      outputs.push_back(b.define(result));
    SmallVector<NamedAttribute> params = attentionParams(b, op);
    for (Operation *user : op.getQ().getUsers()) {
      auto attention = dyn_cast<moe::AttentionOp>(user);
      Value sums = attention ? b.logSums(attention.getResult()) : Value();
      if (!sums || !isGradientOf(op, attention, b))
        continue;
      inputs.append({b.view(attention.getResult()), sums});
      outputs.push_back(
          b.define(b.viewType({roomOf(op, b.wantsFastest())}, Float32Type::get(op.getContext()))));
      params.append({b.integer("in_order", 1), b.integer("fastest", b.wantsFastest()),
                     b.text("with", "out log_sums room")});
      break;
    }
    b.call("attention_grad", inputs, outputs, params);
    return success();
  });
}
