//===- GradLowerings.cpp - instructions of gradients and losses -----------===//
// As OpLowerings.cpp; the calls are those of runtime/include/moira/rt/GradCalls.def.
//===----------------------------------------------------------------------===//
#include "LoweringTable.h"

using namespace mlir;
using namespace moira;

using B = ProgramBuilder;

void LoweringTable::addDenseGradients() {
  add<moe::EmbeddingGradOp>(+[](moe::EmbeddingGradOp op, B &b) {
    SmallVector<NamedAttribute> params = {b.offset("row_offset", op.getRowOffsetAttr())};
    if (op.getPad())
      params.push_back(b.integer("pad", *op.getPad()));
    b.call("embedding_grad", {b.view(op.getIds()), b.view(op.getDy())}, {b.define(op.getResult())},
           params);
    return success();
  });
  add<moe::LinearInputGradOp>(+[](moe::LinearInputGradOp op, B &b) {
    b.call("linear_input_grad", {b.view(op.getDy()), b.view(op.getW())}, {b.define(op.getResult())},
           {b.integer("contract", op.getContract())});
    return success();
  });
  add<moe::LinearWeightGradOp>(+[](moe::LinearWeightGradOp op, B &b) {
    b.call("linear_weight_grad", {b.view(op.getDy()), b.view(op.getX())},
           {b.define(op.getResult())}, {b.integer("contract", op.getContract())});
    return success();
  });
  add<moe::HeadWeightGradOp>(+[](moe::HeadWeightGradOp op, B &b) {
    b.call("head_weight_grad", {b.view(op.getDy()), b.view(op.getX())}, {b.define(op.getResult())},
           {});
    return success();
  });
  add<moe::SumRowsOp>(+[](moe::SumRowsOp op, B &b) {
    b.call("sum_rows", {b.view(op.getX())}, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::RmsSumsOp>(+[](moe::RmsSumsOp op, B &b) {
    b.call("rms_sums", {b.view(op.getDy()), b.view(op.getX()), b.view(op.getW())},
           {b.define(op.getSs()), b.define(op.getDot())},
           {b.integer("norm_dims", rankOf(op.getW()))});
    return success();
  });
  add<moe::RmsNormGradOp>(+[](moe::RmsNormGradOp op, B &b) {
    SmallVector<Value> inputs;
    for (Value operand : op->getOperands())
      inputs.push_back(b.view(operand));
    b.call("rms_norm_grad", inputs, {b.define(op.getDx()), b.define(op.getDw())},
           {b.real("eps", toDouble(op.getEps())), b.integer("count", op.getCount()),
            b.integer("norm_dims", rankOf(op.getW()))});
    return success();
  });
  add<moe::LayerNormGradOp>(+[](moe::LayerNormGradOp op, B &b) {
    b.call("layer_norm_grad", {b.view(op.getDy()), b.view(op.getX()), b.view(op.getW())},
           {b.define(op.getDx()), b.define(op.getDw()), b.define(op.getDb())},
           {b.real("eps", toDouble(op.getEps())), b.integer("norm_dims", rankOf(op.getW()))});
    return success();
  });
  add<moe::ClampGradOp>(+[](moe::ClampGradOp op, B &b) {
    b.call("clamp_grad", {b.view(op.getDy()), b.view(op.getX())}, {b.define(op.getResult())},
           {b.real("min", toDouble(op.getLo())), b.real("max", toDouble(op.getHi()))});
    return success();
  });
  add<moe::ActGradOp>(+[](moe::ActGradOp op, B &b) {
    b.call("act_grad", {b.view(op.getDy()), b.view(op.getX())}, {b.define(op.getResult())},
           {b.text("activation", moe::stringifyActivation(op.getActivation()))});
    return success();
  });
  add<moe::GluGradOp>(+[](moe::GluGradOp op, B &b) {
    b.call("glu_grad", {b.view(op.getDy()), b.view(op.getX())}, {b.define(op.getResult())},
           gluParams(b, op));
    return success();
  });
  add<moe::SigmoidGateGradOp>(+[](moe::SigmoidGateGradOp op, B &b) {
    b.call("sigmoid_gate_grad", {b.view(op.getX()), b.view(op.getDy()), b.view(op.getG())},
           {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::RelativeBiasGradOp>(+[](moe::RelativeBiasGradOp op, B &b) {
    b.call("relative_bias_grad", {b.view(op.getDy()), b.view(op.getQpos()), b.view(op.getKpos())},
           {b.define(op.getResult())},
           {b.integer("max_distance", op.getMaxDistance()),
            b.integer("bidirectional", op.getBidirectional())});
    return success();
  });
}

void LoweringTable::addExpertGradients() {
  add<moe::RouteGradOp>(+[](moe::RouteGradOp op, B &b) {
    moe::RouterFields gate = op.getRouter().getFields();
    SmallVector<NamedAttribute> params = gateParams(b, gate);
    params.push_back(b.real("jitter_eps", gate.jitterEps));
    b.call("route_grad",
           {b.view(op.getDweights()), b.view(op.getLogits()), b.routing(op.getRouting()).ids},
           {b.define(op.getResult())}, params);
    return success();
  });
  add<moe::LimitGradOp>(+[](moe::LimitGradOp op, B &b) {
    moe::CapacityFields capacity = op.getCapacity().getFields();
    const RoutingViews &before = b.routing(op.getRouting());
    b.call("limit_grad",
           {b.view(op.getDweights()), before.inputWeights ? before.inputWeights : before.weights,
            b.routing(op.getLimited()).ids},
           {b.define(op.getResult())},
           {b.text("renorm", moe::stringifyLimitRenorm(capacity.renorm)),
            b.real("renorm_epsilon", capacity.renormEpsilon),
            b.real("renorm_clamp_min", capacity.renormClampMin), b.real("scale", capacity.scale)});
    return success();
  });
  add<moe::ChoiceDotsOp>(+[](moe::ChoiceDotsOp op, B &b) {
    Value pos = b.routing(op.getRouting()).pos;
    if (!pos)
      return LogicalResult(
          op.emitOpError("MOE-0601: no moe.dispatch before it has sorted rows by this routing"));
    b.call("choice_dots", {b.view(op.getRows()), b.view(op.getX()), pos},
           {b.define(op.getResult())}, {});
    return LogicalResult(success());
  });
  add<dist::ChoiceDotsOp>(+[](dist::ChoiceDotsOp op, B &b) {
    b.call("choice_dots", {b.view(op.getRows()), b.view(op.getX()), b.view(op.getPos())},
           {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::GroupedInputGradOp>(+[](moe::GroupedInputGradOp op, B &b) -> LogicalResult {
    Value counts = countsOf(op, op.getGroups(), b);
    if (!counts)
      return failure();
    b.call("grouped_input_grad", {b.view(op.getDy()), counts, b.view(op.getW())},
           {b.define(op.getResult())}, {b.integer("contract", op.getContract())});
    return success();
  });
  add<plan::GroupedGluGradOp>(+[](plan::GroupedGluGradOp op, B &b) {
    b.call("grouped_glu_grad",
           {b.view(op.getDy()), b.view(op.getGroups()), b.view(op.getW()), b.view(op.getZ()),
            b.view(op.getPos()), b.routing(op.getRouting()).weights},
           {b.define(op.getDz()), b.define(op.getAct()), b.define(op.getDots())}, gluParams(b, op));
    return success();
  });
  add<moe::GroupedWeightGradOp>(+[](moe::GroupedWeightGradOp op, B &b) -> LogicalResult {
    Value counts = countsOf(op, op.getGroups(), b);
    if (!counts)
      return failure();
    SmallVector<Value> inputs{b.view(op.getDy()), counts, b.view(op.getRows())};
    if (op.getSamples())
      inputs.push_back(b.view(op.getSamples()));
    b.call("grouped_weight_grad", inputs, {b.define(op.getResult())},
           {b.integer("contract", op.getContract())});
    return success();
  });
  add<moe::GroupedBiasGradOp>(+[](moe::GroupedBiasGradOp op, B &b) -> LogicalResult {
    Value counts = countsOf(op, op.getGroups(), b);
    if (!counts)
      return failure();
    SmallVector<Value> inputs{b.view(op.getDy()), counts};
    if (op.getSamples())
      inputs.push_back(b.view(op.getSamples()));
    b.call("grouped_bias_grad", inputs, {b.define(op.getResult())}, {});
    return success();
  });
}

/// classes and column_offset.
template <typename Op> static SmallVector<NamedAttribute> vocabulary(B &b, Op op) {
  return {b.integer("classes", op.getClasses()),
          b.offset("column_offset", op.getColumnOffsetAttr())};
}

/// The statistics whose call finds the maximum too, on a GPU, which then reads the logits once:
/// between the two nothing joins ranks, and nobody else waits for the maximum. Else null.
static moe::CrossEntropyStatsOp statisticsWith(moe::RowMaxOp max, B &b) {
  if (!b.isForGpu())
    return {};
  for (Operation *user : max->getUsers()) {
    auto stats = dyn_cast<moe::CrossEntropyStatsOp>(user);
    if (stats && stats.getX() == max.getX() &&
        stats.getColumnOffsetAttr() == max.getColumnOffsetAttr() &&
        llvm::all_of(max->getUsers(), [&](Operation *other) {
          return other == stats || stats->isBeforeInBlock(other);
        }))
      return stats;
  }
  return {};
}

void LoweringTable::addLosses() {
  add<moe::NextTokensOp>(+[](moe::NextTokensOp op, B &b) {
    SmallVector<Value> inputs{b.view(op.getIds())};
    if (op.getLabels())
      inputs.push_back(b.view(op.getLabels()));
    b.call("next_tokens", inputs, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::RowMaxOp>(+[](moe::RowMaxOp op, B &b) {
    if (!statisticsWith(op, b))
      b.call("row_max", {b.view(op.getX())}, {b.define(op.getResult())}, vocabulary(b, op));
    return success();
  });
  add<moe::CrossEntropyStatsOp>(+[](moe::CrossEntropyStatsOp op, B &b) {
    auto max = op.getMax().getDefiningOp<moe::RowMaxOp>();
    if (max && statisticsWith(max, b) == op)
      b.call("row_max_stats", {b.view(op.getX()), b.view(op.getLabels())},
             {b.define(max.getResult()), b.define(op.getResult())}, vocabulary(b, op));
    else
      b.call("cross_entropy_stats",
             {b.view(op.getX()), b.view(op.getMax()), b.view(op.getLabels())},
             {b.define(op.getResult())}, vocabulary(b, op));
    return success();
  });
  add<moe::CrossEntropyStatsGradOp>(+[](moe::CrossEntropyStatsGradOp op, B &b) {
    b.call("cross_entropy_stats_grad",
           {b.view(op.getD()), b.view(op.getX()), b.view(op.getMax()), b.view(op.getLabels())},
           {b.define(op.getResult())}, vocabulary(b, op));
    return success();
  });
  add<moe::CrossEntropyOp>(+[](moe::CrossEntropyOp op, B &b) {
    b.call(
        "cross_entropy", {b.view(op.getStats()), b.view(op.getLabels())},
        {b.define(op.getSum()), b.define(op.getCount())},
        {b.integer("classes", op.getClasses()), b.real("smoothing", toDouble(op.getSmoothing()))});
    return success();
  });
  add<moe::CrossEntropyGradOp>(+[](moe::CrossEntropyGradOp op, B &b) {
    b.call(
        "cross_entropy_grad", {b.view(op.getD()), b.view(op.getStats()), b.view(op.getLabels())},
        {b.define(op.getResult())},
        {b.integer("classes", op.getClasses()), b.real("smoothing", toDouble(op.getSmoothing()))});
    return success();
  });
  add<moe::ExpertLoadOp>(+[](moe::ExpertLoadOp op, B &b) {
    b.call("expert_load", {b.routing(op.getRouting()).ids}, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::ExpertProbsOp>(+[](moe::ExpertProbsOp op, B &b) {
    b.call("expert_probs", {b.view(op.getLogits())}, {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::ExpertProbsGradOp>(+[](moe::ExpertProbsGradOp op, B &b) {
    b.call("expert_probs_grad", {b.view(op.getD()), b.view(op.getLogits())},
           {b.define(op.getResult())}, {});
    return success();
  });
  add<moe::BalanceOp>(+[](moe::BalanceOp op, B &b) {
    b.call("balance", {b.view(op.getLoad()), b.view(op.getProbs())}, {b.define(op.getResult())},
           {b.integer("tokens", op.getTokens())});
    return success();
  });
  add<moe::BalanceGradOp>(+[](moe::BalanceGradOp op, B &b) {
    b.call("balance_grad", {b.view(op.getD()), b.view(op.getLoad())}, {b.define(op.getResult())},
           {b.integer("tokens", op.getTokens())});
    return success();
  });
  add<moe::SequenceBalanceOp>(+[](moe::SequenceBalanceOp op, B &b) {
    b.call("sequence_balance", {b.routing(op.getRouting()).ids, b.view(op.getLogits())},
           {b.define(op.getResult())}, {b.integer("sequences", op.getSequences())});
    return success();
  });
  add<moe::SequenceBalanceGradOp>(+[](moe::SequenceBalanceGradOp op, B &b) {
    b.call("sequence_balance_grad",
           {b.view(op.getD()), b.routing(op.getRouting()).ids, b.view(op.getLogits())},
           {b.define(op.getResult())}, {b.integer("sequences", op.getSequences())});
    return success();
  });
  add<moe::RouterZOp>(+[](moe::RouterZOp op, B &b) {
    b.call("router_z", {b.view(op.getLogits())}, {b.define(op.getResult())},
           {b.integer("tokens", op.getTokens())});
    return success();
  });
  add<moe::RouterZGradOp>(+[](moe::RouterZGradOp op, B &b) {
    b.call("router_z_grad", {b.view(op.getD()), b.view(op.getLogits())}, {b.define(op.getResult())},
           {b.integer("tokens", op.getTokens())});
    return success();
  });
  add<moe::RatioOp>(+[](moe::RatioOp op, B &b) {
    b.call("ratio", {b.view(op.getA()), b.view(op.getB())}, {b.define(op.getResult())}, {});
    return success();
  });
}
