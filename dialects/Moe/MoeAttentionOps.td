//===- MoeAttentionOps.td - positions, rotary embedding, attention ------------*- tablegen -*-===//
#ifndef MOIRA_MOE_ATTENTION_OPS
#define MOIRA_MOE_ATTENTION_OPS
include "Moe/MoeDenseOps.td"

def Moe_PositionsOp : Moe_RuleOp<"positions", ["localize"]> {
  let summary = "0, 1, 2, …";
  let description = [{ On a shard of the sequence `start` is the first number. Constraints: (C1) the result has one dimension. }];
  let arguments = (ins OptionalAttr<AnyAttr>:$start);
  let results = (outs Moe_I32Tensor:$result);
  let assemblyFormat = "attr-dict `:` type($result)";
}

def Moe_RopeTableOp : Moe_RuleOp<"rope_table"> {
  let summary = "cos and sin of position · theta^(-2i/dim)";
  let description = [{
    pos[S] → cos[S,r], sin[S,r], r = dim/2. `scaling` is "none", or "linear": positions are divided by `factor`.
    Constraints: (C1) dim is even and r·2 = dim; (C2) theta > 0, factor > 0; (C3) scaling is one of the names above.
  }];
  let arguments = (ins Moe_I32Tensor:$pos, F64Attr:$theta, I64Attr:$dim, StrAttr:$scaling, F64Attr:$factor);
  let results = (outs Moe_F32Tensor:$cos, Moe_F32Tensor:$sin);
  let assemblyFormat = "$pos `theta` $theta `dim` $dim `scaling` $scaling `by` $factor attr-dict `:` functional-type(operands, results)";
}

def Moe_RopeOp : Moe_RuleOp<"rope"> {
  let summary = "rotary position embedding, rotate-half convention";
  let description = [{
    x[B,S,H,d], cos[S,r], sin[S,r] → x. Element i < r becomes x[i]·cos[i] − x[i+r]·sin[i], element i+r becomes x[i+r]·cos[i] + x[i]·sin[i]; elements from 2r on pass through.
    Constraints: (C1) x has four dimensions and the result its shape; (C2) cos and sin are [S,r] with 2r ≤ d.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_F32Tensor:$cos, Moe_F32Tensor:$sin);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $cos `,` $sin attr-dict `:` functional-type(operands, results)";
}

def Moe_AttentionOp : Moe_RuleOp<"attention", ["localize"]> {
  let summary = "softmax(scale · q·kᵀ + mask)·v, causal by positions";
  let description = [{
    q[B,Sq,H,d], k and v [B,Sk,Hk,d], qpos[Sq], kpos[Sk], kmask[B,Sk] → [B,Sq,H,d]. Query head h reads key/value head h·kv_heads/q_heads. Query i sees key j if
    kpos[j] ≤ qpos[i], qpos[i] − kpos[j] < window (if window > 0) and kmask[j] ≠ 0; a query that sees none gives zeros.
    `q_heads` and `kv_heads` are global numbers; on a shard of the heads the offsets are the numbers of the first heads there.

    Constraints: (C1) ranks and shapes as above; (C2) kv_heads divides q_heads; (C3) window ≥ 0, scale is finite; (C4) without offsets H = q_heads and Hk = kv_heads.
  }];
  let arguments = (ins Moe_Tensor:$q, Moe_Tensor:$k, Moe_Tensor:$v, Moe_I32Tensor:$qpos, Moe_I32Tensor:$kpos, Moe_I32Tensor:$kmask,
                       F64Attr:$scale, I64Attr:$window, I64Attr:$q_heads, I64Attr:$kv_heads,
                       OptionalAttr<AnyAttr>:$head_offset, OptionalAttr<AnyAttr>:$kv_offset);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = [{
    $q `,` $k `,` $v `at` $qpos `,` $kpos `mask` $kmask `heads` $q_heads `over` $kv_heads `scale` $scale `window` $window attr-dict
    `:` functional-type(operands, results)
  }];
}

#endif // MOIRA_MOE_ATTENTION_OPS
