//===- GradCallChecks.cpp - the contracts of GradCalls.def ------*- C++ -*-===//
// One function a call, as in CallChecks.cpp.
//===----------------------------------------------------------------------===//
#include "CallCheck.h"

#include <cmath>

namespace moira::rt {

void check_embedding_grad(CallCheck &c) {
  c.fixed("v");
  c.fixed("D");
  if (c.offset("row_offset").least < 0)
    c.fail("row_offset is negative on some rank");
  checkPerSample(c);
}

void check_linear_input_grad(CallCheck &c) {
  c.fixedRun("N");
  checkPerSample(c);
}

void check_linear_weight_grad(CallCheck &c) {
  checkPerSample(c);
  c.fixedRun("N");
  c.fixedRun("K");
}

void check_head_weight_grad(CallCheck &c) {
  checkPerSample(c);
  c.fixed("H");
  c.fixed("N");
  c.fixed("K");
}

void check_sum_rows(CallCheck &c) {
  checkPerSample(c);
  c.fixedRun("t");
  c.fixedRun("N");
}

void check_rms_sums(CallCheck &c) { c.fixedRun("N"); }

void check_rms_norm_grad(CallCheck &c) {
  checkPerSample(c);
  c.fixedRun("N");
  c.atLeast("count", 1);
  checkEps(c);
  if (c.hasInput("ss") != c.hasInput("dot"))
    c.fail("ss and dot are given together or not at all");
}

void check_layer_norm_grad(CallCheck &c) {
  checkPerSample(c);
  c.fixedRun("N");
  checkEps(c);
}

void check_clamp_grad(CallCheck &c) {
  if (c.real("min") > c.real("max"))
    c.fail("min is over max");
}

void check_act_grad(CallCheck &c) { c.oneOf("activation", {"silu", "gelu", "gelu_tanh", "relu"}); }

void check_glu_grad(CallCheck &c) { checkActivation(c); }

void check_sigmoid_gate_grad(CallCheck &) {}

void check_relative_bias_grad(CallCheck &c) { checkRelativeBias(c); }

void check_attention_grad(CallCheck &c) {
  checkPerSample(c, /*tokens=*/false);
  for (const char *name : {"B", "Sq", "Sk", "d", "e"})
    c.fixed(name);
  checkAttention(c);
  if (int64_t fastest = c.integerOr("fastest", 0); fastest != 0 && fastest != 1)
    c.fail(format("fastest is %lld, not 0 or 1", static_cast<long long>(fastest)));
  if (c.hasInput("out") != c.hasInput("log_sums"))
    c.fail("out and log_sums are given together or not at all");
}

void check_route_grad(CallCheck &c) {
  checkGateSizes(c);
  c.oneOf("score", {"softmax", "sigmoid", "sqrt_softplus", "sparsemixer"});
  c.oneOf("order", {"score_topk", "topk_score"});
  c.oneOf("renorm", {"none", "sum"});
  checkRenormReals(c);
  if (std::isinf(c.real("scale")) || !(c.real("jitter_eps") >= 0))
    c.fail("scale is infinite or jitter_eps is negative");
  if (c.text("score") == "sparsemixer" &&
      (c.text("order") != "score_topk" || c.text("renorm") != "none"))
    c.fail("a sparsemixer has order score_topk and renorm none");
}

void check_limit_grad(CallCheck &c) {
  c.fixed("k");
  c.oneOf("renorm", {"none", "before", "after"});
  checkRenormReals(c);
  if (std::isinf(c.real("scale")))
    c.fail("scale is infinite");
}

void check_choice_dots(CallCheck &c) {
  c.fixed("k");
  c.runFitsInt32("Q", "rows");
}

/// Rows by group, of sizes that do not depend on the bound but for their number.
static void checkGrouped(CallCheck &c) {
  c.fixed("n");
  c.fixedRun("N");
  c.fitsInt32(c.dim("R"), "rows");
}

/// counts, where they are given: of at least one sample.
static void checkSampleCounts(CallCheck &c) {
  if (c.hasInput("counts") && c.fixed("B") < 1)
    c.fail("counts are of no sample");
}

void check_grouped_input_grad(CallCheck &c) {
  checkPerSample(c, /*tokens=*/false);
  checkGrouped(c);
  c.fixedRun("K");
}

void check_grouped_glu_grad(CallCheck &c) {
  checkActivation(c);
  for (const char *name : {"n", "D", "F", "k"})
    c.fixed(name);
  c.fixedRun("t");
  c.fitsInt32(c.dim("R"), "rows");
}

void check_grouped_weight_grad(CallCheck &c) {
  checkGrouped(c);
  c.fixedRun("K");
  checkSampleCounts(c);
}

void check_grouped_bias_grad(CallCheck &c) {
  checkGrouped(c);
  checkSampleCounts(c);
}

void check_next_tokens(CallCheck &c) { c.fixed("S"); }

/// Columns of a vocabulary: as many as there are classes, or a part of them and pads.
static void checkVocabulary(CallCheck &c) {
  c.fixed("V");
  c.atLeast("classes", 1);
  if (c.integer("classes") > kInt32Max)
    c.fail("classes are more than an i32 can count");
  if (c.offset("column_offset").least < 0)
    c.fail("column_offset is negative on some rank");
}

void check_row_max(CallCheck &c) { checkVocabulary(c); }
void check_cross_entropy_stats(CallCheck &c) { checkVocabulary(c); }
void check_row_max_stats(CallCheck &c) { checkVocabulary(c); }
void check_cross_entropy_stats_grad(CallCheck &c) { checkVocabulary(c); }

static void checkSmoothing(CallCheck &c) {
  c.atLeast("classes", 1);
  if (!(c.real("smoothing") >= 0) || !(c.real("smoothing") < 1))
    c.fail("smoothing is not at least 0 and less than 1");
}

void check_cross_entropy(CallCheck &c) {
  checkSmoothing(c);
  checkPerSample(c);
}
void check_cross_entropy_grad(CallCheck &c) { checkSmoothing(c); }

void check_ratio(CallCheck &) {}

void check_expert_load(CallCheck &c) {
  c.fixedRun("t");
  c.fixed("k");
  c.fitsInt32({c.fixed("E")}, "experts");
}

void check_expert_probs(CallCheck &c) {
  checkPerSample(c);
  c.fixedRun("t");
  c.fixed("E");
}

void check_expert_probs_grad(CallCheck &c) { c.fixed("E"); }

static void checkTokens(CallCheck &c) {
  c.fixed("E");
  c.atLeast("tokens", 1);
}

void check_balance(CallCheck &c) { checkTokens(c); }
void check_balance_grad(CallCheck &c) { checkTokens(c); }
static void checkSequences(CallCheck &c) {
  c.fixed("S");
  c.fixed("k");
  c.fitsInt32({c.fixed("E")}, "experts");
  c.atLeast("sequences", 1);
}

void check_sequence_balance(CallCheck &c) {
  c.fixed("B");
  checkSequences(c);
}

void check_sequence_balance_grad(CallCheck &c) { checkSequences(c); }

void check_router_z(CallCheck &c) {
  checkPerSample(c);
  c.fixedRun("t");
  checkTokens(c);
}
void check_router_z_grad(CallCheck &c) { checkTokens(c); }

} // namespace moira::rt
