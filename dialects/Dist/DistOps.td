//===- DistOps.td - meshes, reshards, collectives, exchange of rows -----------*- tablegen -*-===//
#ifndef MOIRA_DIST_OPS
#define MOIRA_DIST_OPS
include "Dist/DistDialect.td"
include "Moe/CostInterface.td"
include "Moe/MoeDialect.td"

class Dist_Op<string mnemonic, list<Trait> traits = []> : Op<Dist_Dialect, mnemonic, traits>;

def Dist_MeshOp : Dist_Op<"mesh", [Symbol]> {
  let summary = "the mesh: named axes and their sizes, major to minor";
  let description = [{
        dist.mesh @mesh ["dp", "ep"] = [2, 4]

    A rank's number is the row-major index of its coordinates. Constraints: (C1) as many names as sizes; (C2) names are unique and not empty; (C3) sizes are at least 2
    (an axis of size 1 vanishes); (C4) at most 2^20 ranks; (C5) one mesh a module.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, StrArrayAttr:$axes, DenseI64ArrayAttr:$sizes);
  let assemblyFormat = "$sym_name $axes `=` $sizes attr-dict";
  let hasVerifier = 1;
}

// A routing is moved like a tensor: its ids and its weights, by the dimensions of its tokens.
def Dist_Movable : AnyTypeOf<[AnyRankedTensor, Moe_RoutingType]>;

class Dist_CollectiveOp<string mnemonic> : Dist_Op<mnemonic, [Pure]> {
  let hasVerifier = 1;
}

def Dist_ReshardOp : Dist_Op<"reshard", [Pure]> {
  let summary = "the same value in another sharding";
  let description = [{
    `reason` says which operation's rule asked for it. Constraints: (C1) one shape and element type; (C2) both types carry a sharding; (C3) the shardings differ;
    (C4) neither is ragged; (C5) the result is partial only over axes over which the operand is.
  }];
  let arguments = (ins Dist_Movable:$x, OptionalAttr<StrAttr>:$reason);
  let results = (outs Dist_Movable:$result);
  let assemblyFormat = "$x attr-dict `:` type($x) `->` type($result)";
  let hasVerifier = 1;
  let hasFolder = 1;
}

def Dist_AllReduceOp : Dist_CollectiveOp<"all_reduce"> {
  let summary = "partial → complete";
  let description = [{
    Constraints: (C1) x is partial over exactly a superset of `axes`, with `kind`; (C2) the result is partial over the rest of them; (C3) dimensions are cut alike.
  }];
  let arguments = (ins AnyRankedTensor:$x, StrArrayAttr:$axes, Dist_ReduceKindAttr:$kind);
  let results = (outs AnyRankedTensor:$result);
  let assemblyFormat = "`` $kind $x `over` $axes attr-dict `:` type($x) `->` type($result)";
}

def Dist_AllGatherOp : Dist_CollectiveOp<"all_gather"> {
  let summary = "split → replicated";
  let description = [{
    Constraints: (C1) dimension `dim` of x ends in `axes`, the result's does not; (C2) nothing else differs; (C3) a padded dimension loses all of its axes at once, and its pads with them.
  }];
  let arguments = (ins Dist_Movable:$x, I64Attr:$dim, StrArrayAttr:$axes);
  let results = (outs Dist_Movable:$result);
  let assemblyFormat = "$x `dim` $dim `over` $axes attr-dict `:` type($x) `->` type($result)";
}

def Dist_ReduceScatterOp : Dist_CollectiveOp<"reduce_scatter"> {
  let summary = "partial → split";
  let description = [{
    Constraints: (C1) x is partial over `axes` with `kind`; (C2) in the result they are the last axes of dimension `dim`; (C3) nothing else differs.
  }];
  let arguments = (ins AnyRankedTensor:$x, I64Attr:$dim, StrArrayAttr:$axes, Dist_ReduceKindAttr:$kind);
  let results = (outs AnyRankedTensor:$result);
  let assemblyFormat = "`` $kind $x `dim` $dim `over` $axes attr-dict `:` type($x) `->` type($result)";
}

def Dist_AllToAllOp : Dist_CollectiveOp<"all_to_all"> {
  let summary = "split(from) → split(to)";
  let description = [{
    Constraints: (C1) dimension `from` of x ends in `axes`, in the result dimension `to` does; (C2) nothing else differs; (C3) from ≠ to.
  }];
  let arguments = (ins AnyRankedTensor:$x, I64Attr:$from, I64Attr:$to, StrArrayAttr:$axes);
  let results = (outs AnyRankedTensor:$result);
  let assemblyFormat = "$x `from` $from `to` $to `over` $axes attr-dict `:` type($x) `->` type($result)";
}

def Dist_SliceOp : Dist_CollectiveOp<"slice"> {
  let summary = "replicated → split: each rank keeps its own part, no communication";
  let description = [{
    Constraints: (C1) in the result dimension `dim` ends in `axes`, in x it does not; (C2) nothing else differs. After localisation the types are local
    and `start` is this rank's first element.
  }];
  let arguments = (ins Dist_Movable:$x, I64Attr:$dim, StrArrayAttr:$axes, OptionalAttr<Dist_OffsetAttr>:$start);
  let results = (outs Dist_Movable:$result);
  let assemblyFormat = "$x `dim` $dim `over` $axes attr-dict `:` type($x) `->` type($result)";
}

// --- rows of experts ------------------------------------------------------------------------------------------------------------------
// G token shards, P ranks of an exchange, B the bound, C = (E/P)·segments; docs/architecture.md, section 2.

def Dist_ZeroNeedOp : Dist_Op<"zero_need", [Pure]> {
  let summary = "the running bound that dispatches have needed so far: none";
  let results = (outs Moe_I32Tensor:$need);
  let assemblyFormat = "attr-dict `:` type($need)";
}

def Dist_RequireBoundOp : Dist_Op<"require_bound"> {
  let summary = "repeat the step with a larger bound if `need` exceeds it";
  let description = [{
        dist.require_bound %need initial 16 worst 48 : tensor<1xi32>

    B starts at `initial`, which is the bound in the types of ragged rows; no input can ask for more than `worst`.
    Constraints: (C1) need is tensor<1xi32>, complete; (C2) 1 ≤ initial ≤ worst.
  }];
  let arguments = (ins Moe_I32Tensor:$need, I64Attr:$initial, I64Attr:$worst);
  let assemblyFormat = "$need `initial` $initial `worst` $worst attr-dict `:` type($need)";
  let hasVerifier = 1;
}

def Dist_PackOp : Dist_Op<"pack", [Pure, CostInterface]> {
  let summary = "rows into one slot for each expert shard";
  let description = [{
    x[t..,D], routing, need → slots[G,P,B,D], counts[G,P,C], pos[t..,k], need. pos is the row's index p·B+i in this shard's slots, −1 if it did not fit.
    `weighted` as in moe.dispatch. `segments` equal runs of this shard's tokens keep the global order apart (one a batch row where the sequence is split).

    Constraints: (C1) shapes as above, counts of i32; (C2) the exchange size P divides the experts.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_RoutingType:$routing, Moe_I32Tensor:$need_in, I64Attr:$segments, UnitAttr:$weighted);
  let results = (outs Moe_Tensor:$slots, Moe_I32Tensor:$counts, Moe_I32Tensor:$pos, Moe_I32Tensor:$need);
  let assemblyFormat = "$x `,` $routing (`weighted` $weighted^)? `need` $need_in `segments` $segments attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_SampleCountsOp : Dist_Op<"sample_counts", [Pure, CostInterface]> {
  let summary = "how many choices of each sample went to each expert";
  let description = [{
    routing → counts[B,E], B being the first dimension of its tokens: where the rows of a sample end among those of an expert. Constraints: (C1) shapes as above.

        %counts = dist.sample_counts %r : (!moe.routing<2x24, 8, 2>) -> tensor<2x8xi32>
  }];
  let arguments = (ins Moe_RoutingType:$routing);
  let results = (outs Moe_I32Tensor:$counts);
  let assemblyFormat = "$routing attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_RegroupOp : Dist_Op<"regroup", [Pure, CostInterface]> {
  let summary = "received slots into rows sorted by (expert, segment, source, row)";
  let description = [{ slots[G,P,B,D], counts[G,P,C] → rows[R,D], groups[G/P,E]. Rows past the counts are zero. Constraints: (C1) shapes as above. }];
  let arguments = (ins Moe_Tensor:$slots, Moe_I32Tensor:$counts, I64Attr:$segments);
  let results = (outs Moe_Tensor:$rows, Moe_I32Tensor:$groups);
  let assemblyFormat = "$slots `,` $counts `segments` $segments attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_UngroupOp : Dist_Op<"ungroup", [Pure, CostInterface]> {
  let summary = "the inverse of regroup";
  let description = [{ rows[R,D], counts[G,P,C] → slots[G,P,B,D]. Linear in rows. Constraints: (C1) shapes as above. }];
  let arguments = (ins Moe_Tensor:$rows, Moe_I32Tensor:$counts, I64Attr:$segments);
  let results = (outs Moe_Tensor:$slots);
  let assemblyFormat = "$rows `,` $counts `segments` $segments attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_UnpackOp : Dist_Op<"unpack", [Pure, CostInterface]> {
  let summary = "Σ_j weight_j · slot row pos_j";
  let description = [{ slots[G,P,B,D], pos[t..,k], routing → [t..,D], j ascending, −1 adds nothing; `unit` as in moe.combine. Linear in slots. Constraints: (C1) shapes as above. }];
  let arguments = (ins Moe_Tensor:$slots, Moe_I32Tensor:$pos, Moe_RoutingType:$routing, UnitAttr:$unit);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$slots `,` $pos `,` $routing (`unit` $unit^)? attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_SelectOp : Dist_Op<"select", [Pure, CostInterface]> {
  let summary = "the rows of this shard's experts, without an exchange";
  let description = [{
    x[t..,D], routing, need → rows[R,D], groups[G,E], pos[t..,k], need. Each shard keeps the rows of its own experts, from `expert_offset` on. `weighted` as in moe.dispatch.
    Constraints: (C1) shapes as above.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_RoutingType:$routing, Moe_I32Tensor:$need_in, OptionalAttr<Dist_OffsetAttr>:$expert_offset, UnitAttr:$weighted);
  let results = (outs Moe_Tensor:$rows, Moe_I32Tensor:$groups, Moe_I32Tensor:$pos, Moe_I32Tensor:$need);
  let assemblyFormat = "$x `,` $routing (`weighted` $weighted^)? `need` $need_in attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_MergeOp : Dist_Op<"merge", [Pure, CostInterface]> {
  let summary = "Σ_j weight_j · row pos_j over the rows that this shard holds";
  let description = [{ rows[R,D], pos[t..,k], routing → [t..,D]: partial over the expert axes; `unit` as in moe.combine. Linear in rows. Constraints: (C1) shapes as above. }];
  let arguments = (ins Moe_Tensor:$rows, Moe_I32Tensor:$pos, Moe_RoutingType:$routing, UnitAttr:$unit);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$rows `,` $pos `,` $routing (`unit` $unit^)? attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Dist_ChoiceDotsOp : Dist_Op<"choice_dots", [Pure, CostInterface]> {
  let summary = "each choice's row or slot times its token's x";
  let description = [{ rows[R,D] or slots[G,P,B,D], x[t..,D], pos[t..,k] → [t..,k], 0 where pos is −1. Linear in rows. Constraints: (C1) shapes as above. }];
  let arguments = (ins Moe_Tensor:$rows, Moe_Tensor:$x, Moe_I32Tensor:$pos);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$rows `,` $x `,` $pos attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

#endif // MOIRA_DIST_OPS
