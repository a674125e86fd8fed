//===- MoeDenseOps.td - products, norms and element-wise ops ------------------*- tablegen -*-===//
#ifndef MOIRA_MOE_DENSE_OPS
#define MOIRA_MOE_DENSE_OPS
include "Moe/MoeDialect.td"
include "Moe/CostInterface.td"
include "Moe/DifferentiableOpInterface.td"
include "Moe/ShardingRuleInterface.td"

class Moe_RuleOp<string mnemonic, list<string> extra = [], list<Trait> traits = [], Trait cost = CostInterface>
    : Moe_Op<mnemonic, !listconcat(traits, [Pure, cost,
        DeclareOpInterfaceMethods<ShardingRuleInterface, !listconcat(["getFactorRule"], extra)>])> {
  let hasVerifier = 1;
}

/// One that has a gradient (lib/Dialect/Moe/IR/MoeVJP*.cpp).
class Moe_DiffOp<string mnemonic, list<string> extra = [], list<Trait> traits = [], Trait cost = CostInterface>
    : Moe_RuleOp<mnemonic, extra, !listconcat(traits, [DeclareOpInterfaceMethods<DifferentiableOpInterface>]), cost>;

def Moe_EmbeddingOp : Moe_DiffOp<"embedding", ["localize"]> {
  let summary = "rows of a table by token id";
  let description = [{
    ids[t..], table[v,D] → [t..,D]. On a shard of the vocabulary `row_offset` is the number of its first row; other ids give zeros and the result is partial.
    The row of the id `pad`, where there is one, is read as any other, and gets no gradient from here.

        %0 = moe.embedding %ids, %table : (tensor<2x24xi32>, tensor<256x64xf32>) -> tensor<2x24x64xf32>

    Constraints: (C1) the result has the shape of ids followed by D; (C2) the result has the table's element type or is f32; (C3) pad is not negative.
  }];
  let arguments = (ins Moe_IntTensor:$ids, Moe_Tensor:$table, OptionalAttr<AnyAttr>:$row_offset, OptionalAttr<I64Attr>:$pad);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$ids `,` $table attr-dict `:` functional-type(operands, results)";
}

def Moe_FullOp : Moe_RuleOp<"full"> {
  let summary = "a tensor whose elements all are one number";
  let description = [{
    The weight of a norm that has none, for one.

        %w = moe.full 1.0 : tensor<64xf32>

    Constraints: (C1) the value is finite.
  }];
  let arguments = (ins F64Attr:$value);
  let results = (outs Moe_StateTensor:$result);
  let assemblyFormat = "$value attr-dict `:` type($result)";
}

def Moe_LookupOp : Moe_RuleOp<"lookup"> {
  let summary = "rows of a table of integers by token id";
  let description = [{
        %experts = moe.lookup %ids, %table : (tensor<2x24xi32>, tensor<128x2xi32>) -> tensor<2x24x2xi32>

    Constraints: (C1) the table has two dimensions and the result the shape of ids followed by the table's last dimension.
  }];
  let arguments = (ins Moe_IntTensor:$ids, Moe_I32Tensor:$table);
  let results = (outs Moe_I32Tensor:$result);
  let assemblyFormat = "$ids `,` $table attr-dict `:` functional-type(operands, results)";
}

def Moe_LinearOp : Moe_DiffOp<"linear", [], [], CostOfProduct> {
  let summary = "contraction of the trailing dimensions";
  let description = [{
    x[t..,K..], w[N..,K..] → [t..,N..]; the trailing `contract` dimensions of both are summed over, in f32. Linear in x.

        %q = moe.linear %x, %wq contract 1 : (tensor<2x24x64xf32>, tensor<4x16x64xf32>) -> tensor<2x24x4x16xf32>

    Constraints: (C1) 1 ≤ contract ≤ the rank of both operands; (C2) the contracted sizes are equal; (C3) the result is t.. followed by N..;
    (C4) x and w have one element type; the result has it too or is f32.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_Tensor:$w, I64Attr:$contract);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $w `contract` $contract attr-dict `:` functional-type(operands, results)";
}

def Moe_RmsNormOp : Moe_DiffOp<"rms_norm"> {
  let summary = "x · rsqrt(mean(x²) + eps) · w over the trailing dimensions of w";
  let description = [{
        %1 = moe.rms_norm %x, %w eps 1.0e-5 : (tensor<2x24x64xf32>, tensor<64xf32>) -> tensor<2x24x64xf32>

    Computed in f32. Constraints: (C1) w's shape is a suffix of x's; (C2) result and x have one shape; (C3) eps ≥ 0.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_Tensor:$w, F64Attr:$eps);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $w `eps` $eps attr-dict `:` functional-type(operands, results)";
}

def Moe_LayerNormOp : Moe_DiffOp<"layer_norm"> {
  let summary = "(x − mean(x)) · rsqrt(var(x) + eps) · w + b over the trailing dimensions of w";
  let description = [{
    The variance is that of the whole row (divided by its size). Computed in f32; w and b have x's element type or the result's.

        %1 = moe.layer_norm %x, %w, %b eps 1.0e-5 : (tensor<2x24x64xf32>, tensor<64xf32>, tensor<64xf32>) -> tensor<2x24x64xf32>

    Constraints: (C1) w's shape is a suffix of x's; (C2) result and x have one shape; (C3) eps ≥ 0; (C4) b, if any, has w's shape.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_Tensor:$w, Optional<Moe_Tensor>:$b, F64Attr:$eps);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $w (`,` $b^)? `eps` $eps attr-dict `:` functional-type(operands, results)";
}

def Moe_SumSquaresOp : Moe_RuleOp<"sum_squares"> {
  let summary = "Σ x² over the trailing `norm_dims` dimensions, f32";
  let description = [{
    First half of a norm whose dimensions are split: the result is partial. Constraints: (C1) 1 ≤ norm_dims ≤ rank of x; (C2) the result is f32 with x's leading shape.
  }];
  let arguments = (ins Moe_Tensor:$x, I64Attr:$norm_dims);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$x `dims` $norm_dims attr-dict `:` functional-type(operands, results)";
}

def Moe_RmsApplyOp : Moe_RuleOp<"rms_apply"> {
  let summary = "x · rsqrt(ss / count + eps) · w";
  let description = [{
    Second half of a norm whose dimensions are split; `count` is the global number of elements. Constraints: (C1) w's shape is a suffix of x's; (C2) ss has x's
    leading shape; (C3) result and x have one shape; (C4) count ≥ 1.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_F32Tensor:$ss, Moe_Tensor:$w, F64Attr:$eps, I64Attr:$count);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $ss `,` $w `eps` $eps `count` $count attr-dict `:` functional-type(operands, results)";
}

def Moe_AddOp : Moe_DiffOp<"add"> {
  let summary = "a + b; b may have only the trailing dimensions of a";
  let description = [{
    A sum: operands of one shape may be partial together. Constraints: (C1) b's shape is a suffix of a's; (C2) the result has a's shape; (C3) a and b have
    one element type, the result that or a narrower one.
  }];
  let arguments = (ins Moe_Tensor:$a, Moe_Tensor:$b);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$a `,` $b attr-dict `:` functional-type(operands, results)";
}

def Moe_ClampOp : Moe_DiffOp<"clamp"> {
  let summary = "min(max(x, lo), hi)";
  let description = [{ Constraints: (C1) lo ≤ hi; (C2) the result has x's shape, and its element type or a narrower one. }];
  let arguments = (ins Moe_Tensor:$x, F64Attr:$lo, F64Attr:$hi);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `from` $lo `to` $hi attr-dict `:` functional-type(operands, results)";
}

def Moe_ScaleOp : Moe_DiffOp<"scale"> {
  let summary = "x · factor";
  let description = [{
    Linear in x.

        %1 = moe.scale %0 by 0.25 : (tensor<2x24x64xf32>) -> tensor<2x24x64xf32>

    Constraints: (C1) the factor is finite; (C2) result and x have one shape.
  }];
  let arguments = (ins Moe_Tensor:$x, F64Attr:$factor);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `by` $factor attr-dict `:` functional-type(operands, results)";
}

def Moe_ActOp : Moe_DiffOp<"act"> {
  let summary = "an activation of every element";
  let description = [{
        %1 = moe.act relu %0 : (tensor<2x24x256xf32>) -> tensor<2x24x256xf32>

    Constraints: (C1) result and x have one shape.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_ActivationAttr:$activation);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$activation $x attr-dict `:` functional-type(operands, results)";
}

def Moe_GluOp : Moe_DiffOp<"glu"> {
  let summary = "act(x[..,0,:]) · x[..,1,:]";
  let description = [{
        %h = moe.glu silu %gu : (tensor<2x24x2x112xf32>) -> tensor<2x24x112xf32>

    With gate g and up u the most general form is act_α(min(g, limit)) · (clamp(u, −limit, limit) + up_shift), where act_α of silu is g·σ(alpha·g):

        %h = moe.glu silu %gu limit 7.0 alpha 1.702 up_shift 1.0 : (tensor<2x24x2x112xf32>) -> tensor<2x24x112xf32>

    Constraints: (C1) the last dimension but one of x is 2; (C2) the result is x without it; (C3) the limit is positive, alpha and up_shift are finite;
    (C4) alpha is for silu only.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_ActivationAttr:$activation, OptionalAttr<F64Attr>:$limit, OptionalAttr<F64Attr>:$alpha,
                       OptionalAttr<F64Attr>:$up_shift);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = [{
    `` $activation $x (`limit` $limit^)? (`alpha` $alpha^)? (`up_shift` $up_shift^)? attr-dict `:` functional-type(operands, results)
  }];
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$x, "::moira::moe::Activation":$activation), [{
    build($_builder, $_state, result, x, activation, ::mlir::FloatAttr(), ::mlir::FloatAttr(), ::mlir::FloatAttr());
  }]>];
}

def Moe_SigmoidGateOp : Moe_DiffOp<"sigmoid_gate"> {
  let summary = "x · σ(g), one gate a row";
  let description = [{
    x[t..,D], g[t..,1] → [t..,D]. Linear in x. Constraints: (C1) g has x's leading shape and a last dimension of 1; (C2) result and x have one shape.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_Tensor:$g);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $g attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_DENSE_OPS
