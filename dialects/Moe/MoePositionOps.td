//===- MoePositionOps.td - what models make of positions ----------------------*- tablegen -*-===//
// Positions that depend on the tokens, and position encodings besides rotation: sinusoids added to embeddings, biases added to scores. Plain
// positions and rotation are in MoeAttentionOps.td.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_POSITION_OPS
#define MOIRA_MOE_POSITION_OPS
include "Moe/MoeDenseOps.td"

def Moe_TokenPositionsOp : Moe_RuleOp<"token_positions", ["localize"]> {
  let summary = "the positions of tokens, not counting padding";
  let description = [{
    ids[B,U] → [B,S] i32, S = U: a token that is not `pad` stands at pad + the number of tokens in its row up to it that are not `pad`; a `pad` stands at `pad`. Where
    `counts`[B,S] is not 0, it is that number. On a shard of the sequence `start` is the number of its first column; ids are then those of the whole rows.

        %p = moe.token_positions %ids pad 1 : (tensor<2x24xi32>) -> tensor<2x24xi32>
        %q = moe.token_positions %ids counts %n pad 1 : (tensor<2x1xi32>, tensor<2x1xi32>) -> tensor<2x1xi32>

    Constraints: (C1) ids have two dimensions and the result their shape (with `start`, at most as many columns); (C2) counts have the result's shape; (C3) pad ≥ 0.
  }];
  let arguments = (ins Moe_IntTensor:$ids, Optional<Moe_I32Tensor>:$counts, I64Attr:$pad, OptionalAttr<AnyAttr>:$start);
  let results = (outs Moe_I32Tensor:$result);
  let assemblyFormat = "$ids (`counts` $counts^)? `pad` $pad attr-dict `:` functional-type(operands, results)";
}

def Moe_SinusoidOp : Moe_RuleOp<"sinusoid"> {
  let summary = "sines, then cosines, of position times falling frequencies";
  let description = [{
    pos[t..] → [t..,D]: with h = D/2 (rounded down) element i < h is sin(p·f_i) and element h+i is cos(p·f_i), where f_i = 10000^(−i/(h−1)) and p = pos + `offset`; an odd
    D has a last 0. Where p is `zero` the whole row is 0 (−1: nowhere).

        %e = moe.sinusoid %pos offset 0 zero 1 : (tensor<2x24xi32>) -> tensor<2x24x64xf32>

    Constraints: (C1) the result is pos's shape followed by D; (C2) D ≥ 4.
  }];
  let arguments = (ins Moe_I32Tensor:$pos, I64Attr:$offset, I64Attr:$zero);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$pos `offset` $offset `zero` $zero attr-dict `:` functional-type(operands, results)";
}

def Moe_RelativeBiasOp : Moe_DiffOp<"relative_bias"> {
  let summary = "a bias for each pair of query and key, by their distance's bucket";
  let description = [{
    table[N,H], qpos[Sq], kpos[Sk] → [H,Sq,Sk]: out[h,i,j] = table[bucket(kpos_j − qpos_i), h]. Of N buckets (of each half of them, `bidirectional`: the second half for keys
    after the query) the first half is one distance each, the others grow as its logarithm up to `max_distance`, and all greater distances share the last. Not
    bidirectional, keys after the query have distance 0.

        %b = moe.relative_bias %table, %qpos, %kpos max_distance 128 bidirectional : (tensor<32x4xf32>, tensor<24xi32>, tensor<24xi32>) -> tensor<4x24x24xf32>

    Constraints: (C1) shapes as above; (C2) N is even and at least 2, bidirectional a multiple of 4; (C3) max_distance exceeds the number of exact buckets.
  }];
  let arguments = (ins Moe_F32Tensor:$table, Moe_I32Tensor:$qpos, Moe_I32Tensor:$kpos, I64Attr:$max_distance, UnitAttr:$bidirectional);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$table `,` $qpos `,` $kpos `max_distance` $max_distance (`bidirectional` $bidirectional^)? attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_POSITION_OPS
