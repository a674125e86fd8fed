//===- AttentionLowerings.cpp - attention and its gradient ----------------===//
// The two calls, and what they know of each other: on a GPU a gradient reads the result and the
// sums of weights that the attention of the same operands left, and has memory to work in.
// Positions and masks that are known to say nothing are not given to them.
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

/// The optional inputs of both calls, by their roles and in the calls' order: positions and masks
/// only where they are not known to be what a call without them takes them for.
template <typename Op> static SmallVector<std::pair<StringRef, Value>> optionalInputs(Op op) {
  auto unless = [](bool isKnown, Value operand) { return isKnown ? Value() : operand; };
  SmallVector<std::pair<StringRef, Value>> inputs{
      {"q2", op.getQ2()},
      {"k2", op.getK2()},
      {"bias", op.getBias()},
      {"sinks", op.getSinks()},
      {"qpos", unless(countsFromZero(op.getQpos()), op.getQpos())},
      {"kpos", unless(countsFromZero(op.getKpos()), op.getKpos())},
      {"kmask", unless(hidesNothing(op.getKmask()), op.getKmask())}};
  llvm::erase_if(inputs, [](const auto &input) { return !input.second; });
  return inputs;
}

/// Of attention and its gradient, but for `with`.
template <typename Op> static SmallVector<NamedAttribute> attentionParams(B &b, Op op) {
  return {
      b.real("scale", toDouble(op.getScale())),    b.integer("window", op.getWindow()),
      b.integer("causal", !op.getBidirectional()), b.integer("q_heads", op.getQHeads()),
      b.integer("kv_heads", op.getKvHeads()),      b.offset("head_offset", op.getHeadOffsetAttr()),
      b.offset("kv_offset", op.getKvOffsetAttr())};
}

/// Whether a GPU has use for what the attention leaves: cuDNN, which takes what is in order, in
/// bf16, without more operands.
static bool leavesSums(moe::AttentionOp op, B &b) {
  return b.isForGpu() && op.getQ().getType().getElementType().isBF16() &&
         optionalInputs(op).empty();
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

/// What is under construction of either call.
struct AttentionCall {
  SmallVector<Value> inputs, outputs;
  SmallVector<NamedAttribute> params;
  SmallVector<StringRef> with;

  /// With the inputs that both have; those of `op` that they do not have stand first.
  template <typename Op>
  AttentionCall(B &b, Op op, ValueRange first = {}) : params(attentionParams(b, op)) {
    for (Value operand : first)
      inputs.push_back(b.view(operand));
    for (Value operand : {Value(op.getQ()), Value(op.getK()), Value(op.getV())})
      inputs.push_back(b.view(operand));
    for (auto [role, operand] : optionalInputs(op)) {
      inputs.push_back(b.view(operand));
      with.push_back(role);
    }
    for (Value result : op->getResults())
      outputs.push_back(b.define(result));
  }
  void emit(B &b, StringRef callee) {
    if (!with.empty())
      params.push_back(b.text("with", join(with, " ")));
    b.call(callee, inputs, outputs, params);
  }
};

void LoweringTable::addAttentionOverKeys() {
  add<moe::AttentionOp>(+[](moe::AttentionOp op, B &b) {
    AttentionCall call(b, op);
    if (leavesSums(op, b) && llvm::any_of(op.getQ().getUsers(), [&](Operation *user) {
          auto grad = dyn_cast<moe::AttentionGradOp>(user);
          return grad && isGradientOf(grad, op, b);
        })) {
      ArrayRef<int64_t> q = op.getQ().getType().getShape();
      Value sums = b.define(b.viewType({q[0], q[2], q[1]}, Float32Type::get(op.getContext())));
      call.outputs.push_back(b.logSums(op.getResult()) = sums);
      call.with.push_back("log_sums");
    }
    call.emit(b, "attention");
    return success();
  });
  add<moe::AttentionGradOp>(+[](moe::AttentionGradOp op, B &b) {
    AttentionCall call(b, op, op.getDy());
    for (Operation *user : op.getQ().getUsers()) {
      auto attention = dyn_cast<moe::AttentionOp>(user);
      Value sums = attention ? b.logSums(attention.getResult()) : Value();
      if (!sums || !isGradientOf(op, attention, b))
        continue;
      call.inputs.append({b.view(attention.getResult()), sums});
      call.outputs.push_back(
          b.define(b.viewType({roomOf(op, b.wantsFastest())}, Float32Type::get(op.getContext()))));
      call.params.push_back(b.integer("fastest", b.wantsFastest()));
      call.with.append({"out", "log_sums", "room"});
      break;
    }
    call.emit(b, "attention_grad");
    return success();
  });
}
