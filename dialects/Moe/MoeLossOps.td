//===- MoeLossOps.td - losses ---------------------------------------------------*- tablegen -*-===//
// Cross-entropy in steps, so that it works on a vocabulary that is cut: a row's largest logit, three sums over the row, the loss of a token from these. Normalisers are
// global values of the program.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_LOSS_OPS
#define MOIRA_MOE_LOSS_OPS
include "Moe/MoeDenseOps.td"

def Moe_NextTokensOp : Moe_RuleOp<"next_tokens"> {
  let summary = "the labels of a decoder: the token that comes next";
  let description = [{
    ids[B,S], labels[B,S]? → [B,S] i32: column s is column s + 1 of `labels`, or of `ids` where the label is −2147483648 (not given); the last one is −100, which no loss counts.

        %0 = moe.next_tokens %ids labels %labels : (tensor<2x24xi32>, tensor<2x24xi32>) -> tensor<2x24xi32>

    Constraints: (C1) ids have two dimensions, labels and the result their shape.
  }];
  let arguments = (ins Moe_IntTensor:$ids, Optional<Moe_I32Tensor>:$labels);
  let results = (outs Moe_I32Tensor:$result);
  let assemblyFormat = "$ids (`labels` $labels^)? attr-dict `:` functional-type(operands, results)";
}

class Moe_VocabularyOp<string mnemonic, list<string> extra = [], list<Trait> traits = []> : Moe_RuleOp<mnemonic, !listconcat(["localize"], extra), traits> {
  // On a shard of the vocabulary `column_offset` is the number of its first column; columns from `classes` on are pads.
  dag vocabulary = (ins I64Attr:$classes, OptionalAttr<AnyAttr>:$column_offset);
}

def Moe_RowMaxOp : Moe_VocabularyOp<"row_max", ["refineResultShardings"]> {
  let summary = "the largest logit of every row";
  let description = [{
    x[t..,V] → [t..], f32; partial (max) where V is cut. `classes` is the global V: columns from it on are pads. What uses it does not depend on its value but for rounding, so it has no
    gradient.

    Constraints: (C1) the result has x's leading shape; (C2) classes ≥ 1, and V without an offset.
  }];
  let arguments = !con((ins Moe_Tensor:$x), vocabulary);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$x `classes` $classes attr-dict `:` functional-type(operands, results)";
}

def Moe_CrossEntropyStatsOp : Moe_VocabularyOp<"cross_entropy_stats", [], [DeclareOpInterfaceMethods<DifferentiableOpInterface>]> {
  let summary = "what a token's cross-entropy needs of its logits";
  let description = [{
    x[t..,V], max[t..], labels[t..] → [t..,3], f32: Σ exp(x − max), x[label] − max, Σ (x − max) over the row; the second is 0 where the label is no class. Partial where V is cut.

    Constraints: (C1) max and labels have x's leading shape, the result that followed by 3; (C2) classes ≥ 1, and V without an offset.
  }];
  let arguments = !con((ins Moe_Tensor:$x, Moe_F32Tensor:$max, Moe_I32Tensor:$labels), vocabulary);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$x `,` $max `,` $labels `classes` $classes attr-dict `:` functional-type(operands, results)";
}

def Moe_CrossEntropyOp : Moe_DiffOp<"cross_entropy"> {
  let summary = "cross-entropies of all tokens added up, and how many tokens count";
  let description = [{
    stats[t..,3], labels[t..] → sum[1], count[1]. A token counts unless its label is −100. With `smoothing` ε its loss is (1−ε)·(ln s0 − s1) + ε·(ln s0 − s2 / classes). Both
    results are partial where the tokens are split: the mean is taken of the global sums.

        %sum, %count = moe.cross_entropy %stats, %labels classes 256 smoothing 0.0 : (tensor<2x24x3xf32>, tensor<2x24xi32>) -> (tensor<1xf32>, tensor<1xf32>)

    Constraints: (C1) stats are [t..,3] with labels' t..; (C2) the results are [1]; (C3) classes ≥ 1 and 0 ≤ smoothing < 1.
  }];
  let arguments = (ins Moe_F32Tensor:$stats, Moe_I32Tensor:$labels, I64Attr:$classes, F64Attr:$smoothing);
  let results = (outs Moe_F32Tensor:$sum, Moe_F32Tensor:$count);
  let assemblyFormat = "$stats `,` $labels `classes` $classes `smoothing` $smoothing attr-dict `:` functional-type(operands, results)";
}

def Moe_RatioOp : Moe_DiffOp<"ratio"> {
  let summary = "a / b, and 0 where b is 0";
  let description = [{
    A mean, from a sum and a count. Linear in a; b is a count and has no gradient. Constraints: (C1) a, b and the result have one shape.
  }];
  let arguments = (ins Moe_F32Tensor:$a, Moe_F32Tensor:$b);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$a `over` $b attr-dict `:` functional-type(operands, results)";
}

def Moe_CrossEntropyGradOp : Moe_RuleOp<"cross_entropy_grad"> {
  let summary = "the gradient of cross_entropy's sum";
  let description = [{
    d[1], stats[t..,3], labels[t..] → [t..,3]: d·(1/s0, −(1−ε), −ε/classes) for tokens that count, else 0.

    Constraints: (C1) stats are [t..,3] with labels' t.., the result has their shape; (C2) d is [1]; (C3) classes ≥ 1 and 0 ≤ smoothing < 1.
  }];
  let arguments = (ins Moe_F32Tensor:$d, Moe_F32Tensor:$stats, Moe_I32Tensor:$labels, I64Attr:$classes, F64Attr:$smoothing);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$d `,` $stats `,` $labels `classes` $classes `smoothing` $smoothing attr-dict `:` functional-type(operands, results)";
}

def Moe_CrossEntropyStatsGradOp : Moe_VocabularyOp<"cross_entropy_stats_grad"> {
  let summary = "the gradient of cross_entropy_stats to the logits";
  let description = [{
    d[t..,3], x[t..,V], max[t..], labels[t..] → [t..,V]: d0·exp(x − max) + d1 (at the label) + d2; 0 in pads.

    Constraints: (C1) max and labels have x's leading shape, d that followed by 3, the result x's type; (C2) classes ≥ 1, and V without an offset.
  }];
  let arguments = !con((ins Moe_F32Tensor:$d, Moe_Tensor:$x, Moe_F32Tensor:$max, Moe_I32Tensor:$labels), vocabulary);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$d `,` $x `,` $max `,` $labels `classes` $classes attr-dict `:` functional-type(operands, results)";
}

def Moe_ExpertLoadOp : Moe_RuleOp<"expert_load"> {
  let summary = "how many choices every expert got";
  let description = [{
    routing → [E], f32; a dropped choice is none. Partial where the tokens are split. No gradient: a choice has none.

        %load = moe.expert_load %r : (!moe.routing<2x24, experts = 8, k = 2>) -> tensor<8xf32>

    Constraints: (C1) the result is [E].
  }];
  let arguments = (ins Moe_RoutingType:$routing);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$routing attr-dict `:` functional-type(operands, results)";
}

def Moe_ExpertProbsOp : Moe_DiffOp<"expert_probs"> {
  let summary = "the softmax of every token's logits, added up over the tokens";
  let description = [{ logits[t..,E] → [E], f32. Partial where the tokens are split. Constraints: (C1) the result is [E]. }];
  let arguments = (ins Moe_Tensor:$logits);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$logits attr-dict `:` functional-type(operands, results)";
}

def Moe_ExpertProbsGradOp : Moe_RuleOp<"expert_probs_grad"> {
  let summary = "the gradient of expert_probs";
  let description = [{ d[E], logits[t..,E] → [t..,E]: p·(d − Σ p·d) with p the token's softmax. Constraints: (C1) d is [E]; (C2) the result has the shape of logits. }];
  let arguments = (ins Moe_F32Tensor:$d, Moe_Tensor:$logits);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$d `,` $logits attr-dict `:` functional-type(operands, results)";
}

def Moe_BalanceOp : Moe_DiffOp<"balance"> {
  let summary = "the load-balancing loss of one layer";
  let description = [{
    load[E], probs[E] → [1]: E · Σ_e (load_e / tokens) · (probs_e / tokens), as GShard and Switch have it; k where all experts are alike. Linear in probs.

        %aux = moe.balance %load, %probs tokens 48 : (tensor<8xf32>, tensor<8xf32>) -> tensor<1xf32>

    Constraints: (C1) load and probs have one shape [E]; (C2) the result is [1]; (C3) tokens ≥ 1.
  }];
  let arguments = (ins Moe_F32Tensor:$load, Moe_F32Tensor:$probs, I64Attr:$tokens);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$load `,` $probs `tokens` $tokens attr-dict `:` functional-type(operands, results)";
}

def Moe_BalanceGradOp : Moe_RuleOp<"balance_grad"> {
  let summary = "the gradient of balance to the probabilities";
  let description = [{ d[1], load[E] → [E]: d · E · load / tokens². Constraints: (C1) d is [1]; (C2) the result has load's shape [E]; (C3) tokens ≥ 1. }];
  let arguments = (ins Moe_F32Tensor:$d, Moe_F32Tensor:$load, I64Attr:$tokens);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$d `,` $load `tokens` $tokens attr-dict `:` functional-type(operands, results)";
}

def Moe_SequenceBalanceOp : Moe_DiffOp<"sequence_balance"> {
  let summary = "the load-balancing loss of one layer, of every sequence by itself";
  let description = [{
    routing, logits[B,S,E] → [1]: balance of each sequence's own S tokens, added up, over `sequences`, their global number. Partial where the sequences are split; no sequence is.

        %aux = moe.sequence_balance %r, %logits sequences 2 : (!moe.routing<2x24, experts = 8, k = 2>, tensor<2x24x8xf32>) -> tensor<1xf32>

    Constraints: (C1) logits are [B,S,E] of the routing's tokens [B,S] and experts; (C2) the result is [1]; (C3) sequences ≥ 1.
  }];
  let arguments = (ins Moe_RoutingType:$routing, Moe_Tensor:$logits, I64Attr:$sequences);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$routing `,` $logits `sequences` $sequences attr-dict `:` functional-type(operands, results)";
}

def Moe_SequenceBalanceGradOp : Moe_RuleOp<"sequence_balance_grad"> {
  let summary = "the gradient of sequence_balance to the logits";
  let description = [{
    d[1], routing, logits[B,S,E] → [B,S,E]: d · E / (sequences · S²) · p · (load − Σ p · load) with p the token's softmax and load its sequence's.

    Constraints: (C1) d is [1]; (C2) logits are [B,S,E] of the routing's tokens [B,S] and experts; (C3) the result has the shape of logits; (C4) sequences ≥ 1.
  }];
  let arguments = (ins Moe_F32Tensor:$d, Moe_RoutingType:$routing, Moe_Tensor:$logits, I64Attr:$sequences);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$d `,` $routing `,` $logits `sequences` $sequences attr-dict `:` functional-type(operands, results)";
}

def Moe_RouterZOp : Moe_DiffOp<"router_z"> {
  let summary = "the mean over all tokens of the squared logarithm of the router's normaliser";
  let description = [{
    logits[t..,E] → [1]: Σ_t (ln Σ_e exp logits)² / tokens, `tokens` being the global number. Partial where the tokens are split.

    Constraints: (C1) the result is [1]; (C2) tokens ≥ 1.
  }];
  let arguments = (ins Moe_Tensor:$logits, I64Attr:$tokens);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$logits `tokens` $tokens attr-dict `:` functional-type(operands, results)";
}

def Moe_RouterZGradOp : Moe_RuleOp<"router_z_grad"> {
  let summary = "the gradient of router_z";
  let description = [{ d[1], logits[t..,E] → [t..,E]: d · 2 · z · softmax / tokens with z the logarithm. Constraints: (C1) d is [1]; (C2) the result has the shape of logits; (C3) tokens ≥ 1. }];
  let arguments = (ins Moe_F32Tensor:$d, Moe_Tensor:$logits, I64Attr:$tokens);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$d `,` $logits `tokens` $tokens attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_LOSS_OPS
