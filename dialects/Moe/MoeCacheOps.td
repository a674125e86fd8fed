//===- MoeCacheOps.td - what programs that generate tokens do besides ---------*- tablegen -*-===//
// Rows written into caches, the last token taken out of many, the choice of the next one. A cache is a moe.state without a source.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_CACHE_OPS
#define MOIRA_MOE_CACHE_OPS
include "Moe/MoeStateOps.td"
include "Moe/MoeDenseOps.td"

def Moe_WriteRowsOp : Moe_Op<"write_rows", [MemoryEffects<[MemWrite]>, DeclareOpInterfaceMethods<ShardingRuleInterface, ["getFactorRule"]>]> {
  let summary = "a cache with some of its rows replaced, which it keeps";
  let description = [{
    rows[B,S,X..], cache[B,N,X..], at[1]? → [B,N,X..]: rows at, at+1, … of the cache become `rows` (without `at`: the first ones), all others stay. The state that `cache` is
    becomes the result, for later programs too; no copy of it is made. Never cut along N.

        %0 = moe.param @"cache.0.k" : tensor<2x32x4x16xf32>
        %1 = moe.write_rows %k into %0 at %position : (tensor<2x1x4x16xf32>, tensor<2x32x4x16xf32>, tensor<1xi32>) -> tensor<2x32x4x16xf32>

    Constraints: (C1) rows are [B,S,X..] with S ≤ N; (C2) the result has the cache's type, rows its element type; (C3) at is tensor<1xi32> and an argument of the program;
    (C4) the cache is the moe.param of a state, without a source, that nothing else in the program reads or writes.
  }];
  let arguments = (ins Moe_StateTensor:$rows, Moe_StateTensor:$cache, Optional<Moe_I32Tensor>:$at);
  let results = (outs Moe_StateTensor:$result);
  let assemblyFormat = "$rows `into` $cache (`at` $at^)? attr-dict `:` functional-type(operands, results)";
  let hasVerifier = 1;
}

def Moe_SlotOp : Moe_RuleOp<"slot", ["localize"]> {
  let summary = "one token of every row";
  let description = [{
    x[B,S,X..], at[1]? → [B,1,X..]: column at, or without it the last one. Linear in x. A shard of the sequence gives its column if it has it, else zeros: `start` is its
    first column, `index` the one wanted.

        %1 = moe.slot %h : (tensor<2x24x64xf32>) -> tensor<2x1x64xf32>

    Constraints: (C1) x is [B,S,X..] and the result [B,1,X..] of its element type; (C2) at is tensor<1xi32>.
  }];
  let arguments = (ins Moe_Tensor:$x, Optional<Moe_I32Tensor>:$at, OptionalAttr<I64Attr>:$index, OptionalAttr<AnyAttr>:$start);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x (`at` $at^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_SampleOp : Moe_RuleOp<"sample", ["localize"]> {
  let summary = "the next token of every row";
  let description = [{
    logits[B,S,V] → [B,S] i32. `sampling` is temperature and top_p, `draw` top_k, the seed's low and high word, and the step. Temperature 0 takes the largest logit, the first of
    equal ones; else the token is drawn (runtime/include/moira/rt/Sample.h says how), the same on every mesh. On a shard of the rows `row_offset` is the number of the first.

        %ids = moe.sample %logits by %sampling, %draw : (tensor<2x1x256xf32>, tensor<2xf32>, tensor<4xi32>) -> tensor<2x1xi32>

    Constraints: (C1) logits are [B,S,V] and the result [B,S]; (C2) sampling is [2] and draw [4].
  }];
  let arguments = (ins Moe_F32Tensor:$logits, Moe_F32Tensor:$sampling, Moe_I32Tensor:$draw, OptionalAttr<AnyAttr>:$row_offset);
  let results = (outs Moe_I32Tensor:$result);
  let assemblyFormat = "$logits `by` $sampling `,` $draw attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_CACHE_OPS
