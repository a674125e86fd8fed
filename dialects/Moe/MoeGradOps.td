//===- MoeGradOps.td - what differentiation makes of dense ops ----------------*- tablegen -*-===//
// Operations that only a differentiated program has, for embeddings, products, norms, element-wise ops and attention. dy is the cotangent of the differentiated op's
// result. A weight's gradient is f32 and a sum over all tokens: partial over whatever splits them. Those of experts are in MoeExpertGradOps.td.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_GRAD_OPS
#define MOIRA_MOE_GRAD_OPS
include "Moe/MoeDenseOps.td"

def Moe_EmbeddingGradOp : Moe_RuleOp<"embedding_grad", ["localize"]> {
  let summary = "the cotangents of rows added up by token id";
  let description = [{
    ids[t..], dy[t..,D], table[v,D] → [v,D]: row r is the sum of the dy whose id is r, in token order. The table's values are not read: it says which rows a shard has. The row of the
    id `pad` is zeros.

        %0 = moe.embedding_grad %ids, %dy like %table : (tensor<2x24xi32>, tensor<2x24x64xf32>, tensor<256x64xf32>) -> tensor<256x64xf32>

    Constraints: (C1) dy has the shape of ids followed by D; (C2) the result has the table's shape and is f32; (C3) pad is not negative.
  }];
  let arguments = (ins Moe_IntTensor:$ids, Moe_Tensor:$dy, Moe_Tensor:$table, OptionalAttr<AnyAttr>:$row_offset, OptionalAttr<I64Attr>:$pad);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$ids `,` $dy `like` $table attr-dict `:` functional-type(operands, results)";
}

def Moe_LinearInputGradOp : Moe_RuleOp<"linear_input_grad", [], [], CostOfProduct> {
  let summary = "dy times a matrix that was multiplied from the other side";
  let description = [{
    dy[t..,N..], w[N..,K..] → [t..,K..], K.. being the trailing `contract` dimensions of w; summed over N... Linear in dy.

        %0 = moe.linear_input_grad %dy, %w contract 1 : (tensor<2x24x4x16xf32>, tensor<4x16x64xf32>) -> tensor<2x24x64xf32>

    Constraints: (C1) 1 ≤ contract ≤ the rank of w; (C2) dy ends with N..; (C3) the result is t.. followed by K...
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$w, I64Attr:$contract);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$dy `,` $w `contract` $contract attr-dict `:` functional-type(operands, results)";
}

def Moe_LinearWeightGradOp : Moe_RuleOp<"linear_weight_grad", [], [], CostOfProduct> {
  let summary = "dyᵀ times x: the gradient of a linear op's weight";
  let description = [{
    dy[t..,N..], x[t..,K..] → [N..,K..], K.. being the trailing `contract` dimensions of x; summed over t... Linear in dy. Sums are f32; a result in bf16 (--moe-narrow-gradients) is
    rounded once.

        %0 = moe.linear_weight_grad %dy, %x contract 1 : (tensor<2x24x4x16xf32>, tensor<2x24x64xf32>) -> tensor<4x16x64xf32>

    Constraints: (C1) 1 ≤ contract ≤ the rank of x; (C2) dy begins with x's t..; (C3) the result is N.. followed by K..; (C4) it is in f32, or in bf16 if x is.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, I64Attr:$contract);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$dy `,` $x `contract` $contract attr-dict `:` functional-type(operands, results)";
}

def Moe_HeadWeightGradOp : Moe_RuleOp<"head_weight_grad", [], [], CostOfProduct> {
  let summary = "each head's dyᵀ times x: the gradient of a head_linear op's weight";
  let description = [{
    dy[t..,H,N], x[t..,H,K] → [H,N,K], summed over t... Linear in dy.

    Constraints: (C1) dy and x have the same t.. and H; (C2) the result is [H,N,K] and f32.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$dy `,` $x attr-dict `:` functional-type(operands, results)";
}

def Moe_SumRowsOp : Moe_RuleOp<"sum_rows"> {
  let summary = "the sum over leading dimensions";
  let description = [{
    x[t..,N..] → [N..], f32. Linear in x. The gradient of a bias.

    Constraints: (C1) the result's shape is a suffix of x's, shorter than x's.
  }];
  let arguments = (ins Moe_Tensor:$x);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$x attr-dict `:` functional-type(operands, results)";
}

def Moe_RmsSumsOp : Moe_RuleOp<"rms_sums"> {
  let summary = "the two sums over a row that the gradient of an rms norm needs";
  let description = [{
    dy[t..,N..], x[t..,N..], w[N..] → ss[t..] = Σ x², dot[t..] = Σ dy·w·x. Partial where N.. is cut (`--dist-expand-norms`).

    Constraints: (C1) dy and x have one shape, w's is a suffix of it; (C2) the results have the leading shape.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, Moe_Tensor:$w);
  let results = (outs Moe_F32Tensor:$ss, Moe_F32Tensor:$dot);
  let assemblyFormat = "$dy `,` $x `,` $w attr-dict `:` functional-type(operands, results)";
}

def Moe_RmsNormGradOp : Moe_RuleOp<"rms_norm_grad", [], [AttrSizedOperandSegments]> {
  let summary = "the gradient of rms_norm";
  let description = [{
    dy[t..,N..], x[t..,N..], w[N..] → dx, dw. With r = rsqrt(ss / count + eps), ss = Σ x² and dot = Σ dy·w·x over a row: dx = r·dy·w − x·r³·dot / count and
    dw = Σ_t dy·x·r. `count` is the global number of elements of a row. Where rows are cut, their sums are given: `sums`.

        %dx, %dw = moe.rms_norm_grad %dy, %x, %w eps 1.0e-5 count 64
            : (tensor<2x24x64xf32>, tensor<2x24x64xf32>, tensor<64xf32>) -> (tensor<2x24x64xf32>, tensor<64xf32>)

    Constraints: (C1) dy, x and dx have one shape, w's is a suffix of it; (C2) dw has w's shape; (C3) eps ≥ 0 and count ≥ 1; (C4) ss and dot, both or neither, have the leading
    shape.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, Moe_Tensor:$w, Optional<Moe_F32Tensor>:$ss, Optional<Moe_F32Tensor>:$dot, F64Attr:$eps, I64Attr:$count);
  let results = (outs Moe_Tensor:$dx, Moe_F32Tensor:$dw);
  let assemblyFormat = "$dy `,` $x `,` $w (`sums` $ss^ `,` $dot)? `eps` $eps `count` $count attr-dict `:` functional-type(operands, results)";
}

def Moe_LayerNormGradOp : Moe_RuleOp<"layer_norm_grad"> {
  let summary = "the gradient of layer_norm";
  let description = [{
    dy[t..,N..], x[t..,N..], w[N..] → dx, dw, db. With n = (x − mean) · r, r = rsqrt(var + eps), g = dy·w and means over a row: dx = r·(g − mean(g) − n·mean(g·n)),
    dw = Σ_t dy·n, db = Σ_t dy.

    Constraints: (C1) dy, x and dx have one shape, w's is a suffix of it; (C2) dw and db have w's shape; (C3) eps ≥ 0.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, Moe_Tensor:$w, F64Attr:$eps);
  let results = (outs Moe_Tensor:$dx, Moe_F32Tensor:$dw, Moe_F32Tensor:$db);
  let assemblyFormat = "$dy `,` $x `,` $w `eps` $eps attr-dict `:` functional-type(operands, results)";
}

def Moe_ClampGradOp : Moe_RuleOp<"clamp_grad"> {
  let summary = "dy where lo ≤ x ≤ hi, else 0";
  let description = [{ Linear in dy. Constraints: (C1) lo ≤ hi; (C2) dy, x and the result have one shape. }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, F64Attr:$lo, F64Attr:$hi);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$dy `,` $x `from` $lo `to` $hi attr-dict `:` functional-type(operands, results)";
}

def Moe_ActGradOp : Moe_RuleOp<"act_grad"> {
  let summary = "dy times the derivative of an activation at x";
  let description = [{ Linear in dy. The derivative of relu at 0 is 0. Constraints: (C1) dy, x and the result have one shape. }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, Moe_ActivationAttr:$activation);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$activation $dy `,` $x attr-dict `:` functional-type(operands, results)";
}

def Moe_GluGradOp : Moe_RuleOp<"glu_grad"> {
  let summary = "the gradient of glu";
  let description = [{
    dy[..,F], x[..,2,F] → [..,2,F], with glu's attributes. Linear in dy. Where a clamp is at work, what it clamps gets 0.

        %dx = moe.glu_grad silu %dy, %x : (tensor<2x24x112xf32>, tensor<2x24x2x112xf32>) -> tensor<2x24x2x112xf32>

    Constraints: (C1) the last dimension but one of x is 2; (C2) dy is x without it, the result has x's shape; (C3) the limit is positive, alpha and up_shift are finite;
    (C4) alpha is for silu only.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$x, Moe_ActivationAttr:$activation, OptionalAttr<F64Attr>:$limit, OptionalAttr<F64Attr>:$alpha,
                       OptionalAttr<F64Attr>:$up_shift);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = [{
    $activation $dy `,` $x (`limit` $limit^)? (`alpha` $alpha^)? (`up_shift` $up_shift^)? attr-dict `:` functional-type(operands, results)
  }];
}

def Moe_SigmoidGateGradOp : Moe_RuleOp<"sigmoid_gate_grad"> {
  let summary = "the cotangent of a sigmoid gate: Σ dy·x·σ'(g)";
  let description = [{
    x[t..,D], dy[t..,D], g[t..,1] → [t..,1]. Linear in x, which may so be a partial sum. Constraints: (C1) x and dy have one shape; (C2) g and the result have the leading shape and a
    last dimension of 1.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_Tensor:$dy, Moe_Tensor:$g);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $dy `,` $g attr-dict `:` functional-type(operands, results)";
}

def Moe_RelativeBiasGradOp : Moe_RuleOp<"relative_bias_grad"> {
  let summary = "the cotangents of scores' biases added up by bucket";
  let description = [{
    dy[H,Sq,Sk], qpos[Sq], kpos[Sk], table[N,H] → [N,H]: the transpose of relative_bias, with its attributes. Linear in dy. The table's values are not read.

    Constraints: (C1) dy is [H,Sq,Sk]; (C2) the result has the table's shape [N,H].
  }];
  let arguments = (ins Moe_F32Tensor:$dy, Moe_I32Tensor:$qpos, Moe_I32Tensor:$kpos, Moe_Tensor:$table, I64Attr:$max_distance, UnitAttr:$bidirectional);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = [{
    $dy `,` $qpos `,` $kpos `like` $table `max_distance` $max_distance (`bidirectional` $bidirectional^)? attr-dict `:` functional-type(operands, results)
  }];
}

def Moe_AttentionGradOp : Moe_RuleOp<"attention_grad", ["localize"], [AttrSizedOperandSegments], CostOfProduct> {
  let summary = "the gradient of attention";
  let description = [{
    dy[B,Sq,H,e] and the operands of an attention op, with its attributes → dq, dk, dv, and, of the optional operands that are given and in their order, dq2, dk2, dbias and
    dsinks. The weights are computed again from q and k. Linear in dy.

        %dq, %dk, %dv = moe.attention_grad %dy, %q, %k, %v at %qpos, %kpos mask %m heads 4 over 4 scale 0.25 window 0 : (…) -> (…)

    Constraints: (C1) dy has the shape of the attention's result; (C2) there is one result for each of q, k, v and the optional operands, of its shape; (C3) those of the
    attention op; (C4) dq, dk and dv are f32 or bf16, the others f32.
  }];
  let arguments = (ins Moe_Tensor:$dy, Moe_Tensor:$q, Moe_Tensor:$k, Moe_Tensor:$v, Moe_I32Tensor:$qpos, Moe_I32Tensor:$kpos, Moe_I32Tensor:$kmask,
                       Optional<Moe_Tensor>:$q2, Optional<Moe_Tensor>:$k2, Optional<Moe_F32Tensor>:$bias, Optional<Moe_F32Tensor>:$sinks,
                       F64Attr:$scale, I64Attr:$window, I64Attr:$q_heads, I64Attr:$kv_heads, UnitAttr:$bidirectional,
                       OptionalAttr<AnyAttr>:$head_offset, OptionalAttr<AnyAttr>:$kv_offset);
  let results = (outs Variadic<Moe_Tensor>:$grads);
  let assemblyFormat = [{
    $dy `,` $q `,` $k `,` $v `at` $qpos `,` $kpos `mask` $kmask (`also` $q2^ `,` $k2)? (`bias` $bias^)? (`sinks` $sinks^)?
    `heads` $q_heads `over` $kv_heads `scale` $scale `window` $window (`bidirectional` $bidirectional^)? attr-dict
    `:` functional-type(operands, results)
  }];
}

#endif // MOIRA_MOE_GRAD_OPS
