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

def Moe_WholeOp : Moe_DiffOp<"whole"> {
  let summary = "the same tensor, complete along some dimensions";
  let description = [{
    x → x. Says where data are to be brought together: on a mesh the dimensions `dims` are not cut from here on, so what is made of them is made on every rank. A latent is so
    gathered instead of the many keys and values that grow out of it. Nothing is computed.

        %1 = moe.whole %latent dims [1] : (tensor<2x24x32xf32>) -> tensor<2x24x32xf32>

    Constraints: (C1) dims are dimensions of x, each once; (C2) result and x have one type up to sharding.
  }];
  let arguments = (ins Moe_StateTensor:$x, DenseI64ArrayAttr:$dims);
  let results = (outs Moe_StateTensor:$result);
  let assemblyFormat = "$x `dims` $dims attr-dict `:` functional-type(operands, results)";
}

def Moe_RopeTableOp : Moe_RuleOp<"rope_table"> {
  let summary = "cos and sin of position · frequency";
  let description = [{
    pos[S] → cos[S,r], sin[S,r], one column for each of r frequencies, both times `factor`. Every published scaling of rotary embeddings is a list of frequencies (and a
    factor), so none of them is known here. A frequency is used in the type of the result.

        %cos, %sin = moe.rope_table %pos frequencies [1.0, 0.01] times 1.0 : (tensor<6xi32>) -> (tensor<6x2xf32>, tensor<6x2xf32>)

    Constraints: (C1) the results are [S,r]; (C2) frequencies are finite, factor is finite and positive.
  }];
  let arguments = (ins Moe_I32Tensor:$pos, F64ArrayAttr:$frequencies, F64Attr:$factor);
  let results = (outs Moe_F32Tensor:$cos, Moe_F32Tensor:$sin);
  let assemblyFormat = "$pos `frequencies` $frequencies `times` $factor attr-dict `:` functional-type(operands, results)";
}

def Moe_RopeOp : Moe_DiffOp<"rope"> {
  let summary = "rotary position embedding";
  let description = [{
    x[B,S,H..,d], cos[S,r], sin[S,r] → x. Pair i < r are the elements i and i+r (rotate-half), or 2i and 2i+1 if `interleaved`; its first becomes first·cos[i] − second·sin[i],
    its second becomes second·cos[i] + first·sin[i]. Elements from 2r on pass through.

    Constraints: (C1) x has three or four dimensions and the result its shape; (C2) cos and sin are [S,r] with 2r ≤ d.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_F32Tensor:$cos, Moe_F32Tensor:$sin, UnitAttr:$interleaved);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $cos `,` $sin (`interleaved` $interleaved^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_HeadLinearOp : Moe_DiffOp<"head_linear", [], [], CostOfProduct> {
  let summary = "each head times its own matrix";
  let description = [{
    x[t..,H,K], w[H,N,K] → [t..,H,N], or with w[H,K,N] if `transposed`; summed over K in f32. Linear in x. So queries and results of attention pass into and out of a latent from
    which keys and values would grow, instead of letting them grow.

        %1 = moe.head_linear %q, %w transposed : (tensor<2x1x4x16xf32>, tensor<4x16x32xf32>) -> tensor<2x1x4x32xf32>

    Constraints: (C1) x is [t..,H,K]; (C2) w is [H,N,K], or [H,K,N] if transposed; (C3) the result is [t..,H,N]; (C4) one element type.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_Tensor:$w, UnitAttr:$transposed);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $w (`transposed` $transposed^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_AttentionOp : Moe_DiffOp<"attention", ["localize"], [AttrSizedOperandSegments], CostOfProduct> {
  let summary = "softmax(scale · q·kᵀ + bias)·v over the keys that a query sees";
  let description = [{
    q[B,Sq,H,d], k[B,Sk,Hk,d], v[B,Sk,Hk,e], qpos[Sq], kpos[Sk], kmask[B,Sk] → [B,Sq,H,e]. Query head h reads key/value head h·kv_heads/q_heads; k and v without
    the dimension Hk are one head for all queries. Query i sees key j if
    kpos[j] ≤ qpos[i] (not asked if `bidirectional`), qpos[i] − kpos[j] < window (if window > 0) and kmask[j] ≠ 0; a query that sees none gives zeros. Keys may so come from a
    cache of which only a part is filled: what is not stands at positions after every query's, or is masked.

    Optional, in any combination: `q2`[B,Sq,H,r] and `k2`[B,Sk,r], a second part of the scores whose keys all heads share: scale · (q·kᵀ + q2·k2ᵀ); `bias`[H,Sq,Sk], added to
    the scaled scores; `sinks`[H], for each head the score of one more key, seen by every query, whose value is zero.

        %o = moe.attention %q, %k, %v at %qpos, %kpos mask %m also %q2, %k2 heads 4 over 4 scale 0.25 window 0 : (…) -> tensor<2x6x4x8xf32>

    `q_heads` and `kv_heads` are global numbers; on a shard of the heads the offsets are the numbers of the first heads there.

    Constraints: (C1) ranks and shapes as above; (C2) kv_heads divides q_heads; (C3) window ≥ 0, scale is finite; (C4) without offsets H = q_heads and Hk = kv_heads; (C5) the
    optional operands have the shapes above, q2 and k2 are both given or neither; (C6) only causal attention has a window.
  }];
  let arguments = (ins Moe_Tensor:$q, Moe_Tensor:$k, Moe_Tensor:$v, Moe_I32Tensor:$qpos, Moe_I32Tensor:$kpos, Moe_I32Tensor:$kmask,
                       Optional<Moe_Tensor>:$q2, Optional<Moe_Tensor>:$k2, Optional<Moe_F32Tensor>:$bias, Optional<Moe_F32Tensor>:$sinks,
                       F64Attr:$scale, I64Attr:$window, I64Attr:$q_heads, I64Attr:$kv_heads, UnitAttr:$bidirectional,
                       OptionalAttr<AnyAttr>:$head_offset, OptionalAttr<AnyAttr>:$kv_offset);
  let results = (outs Moe_Tensor:$result);
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$q, "::mlir::Value":$k, "::mlir::Value":$v, "::mlir::Value":$qpos, "::mlir::Value":$kpos,
                                 "::mlir::Value":$kmask, "double":$scale, "int64_t":$window, "int64_t":$qHeads, "int64_t":$kvHeads)>];
  let assemblyFormat = [{
    $q `,` $k `,` $v `at` $qpos `,` $kpos `mask` $kmask (`also` $q2^ `,` $k2)? (`bias` $bias^)? (`sinks` $sinks^)?
    `heads` $q_heads `over` $kv_heads `scale` $scale `window` $window (`bidirectional` $bidirectional^)? attr-dict
    `:` functional-type(operands, results)
  }];
}

#endif // MOIRA_MOE_ATTENTION_OPS
