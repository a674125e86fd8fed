//===- MoeStateOps.td - weights and how programs read them --------------------*- tablegen -*-===//
#ifndef MOIRA_MOE_STATE_OPS
#define MOIRA_MOE_STATE_OPS
include "Moe/MoeDialect.td"
include "Moe/ShardingRuleInterface.td"

def Moe_StateOp : Moe_Op<"state", [HasParent<"::mlir::ModuleOp">, Symbol]> {
  let summary = "a tensor that outlives a step: a weight, later an optimizer moment or a cache";
  let description = [{
    A module-level symbol named as the checkpoint would name it (a stacked tensor by its stacked name). Without a source it starts as zeros. A `transient` state holds nothing between
    steps: every step writes it before it reads it, checkpoints leave it out, and its sharding may be partial: each rank keeps its part of a sum.

        moe.state @"model.layers.0.mlp.experts.down_proj" : tensor<8x64x112xf32>
            from #moe.source<names = ["model.layers.0.mlp.experts.{e}.w2.weight"], per_expert = true, disk_shape = [64, 112]>

    `separate_experts` says that to optimizers every block along dimension 0 is a parameter of its own, as it is in models whose experts are modules of their own.

    Constraints: (C1) the type is a static ranked tensor of floats; (C2) the source's blocks, one for each expert and name, fill it exactly,
    `permute` names each of a block's dimensions, and `slice` one of them in which the block lies within the disk's size;
    (C3) it stands directly in a module; (C4) a transient state has no source, and no other state is partial.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, TypeAttr:$type, OptionalAttr<Moe_SourceAttr>:$source, OptionalAttr<I64Attr>:$layer, UnitAttr:$separate_experts,
                       UnitAttr:$transient);
  let assemblyFormat = [{
    $sym_name `:` $type (`from` $source^)? (`layer` $layer^)? (`separate_experts` $separate_experts^)? (`transient` $transient^)? attr-dict
  }];
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    ::mlir::RankedTensorType getTensorType() { return ::llvm::cast<::mlir::RankedTensorType>(getType()); }
  }];
}

def Moe_ParamOp : Moe_Op<"param", [Pure, DeclareOpInterfaceMethods<SymbolUserOpInterface>]> {
  let summary = "the value of a state tensor";
  let description = [{
    Constraints: (C1) the symbol is a `moe.state`; (C2) the result has its type, shardings included.
  }];
  let arguments = (ins FlatSymbolRefAttr:$state);
  let results = (outs Moe_StateTensor:$result);
  let assemblyFormat = "$state attr-dict `:` type($result)";
}

#endif // MOIRA_MOE_STATE_OPS
