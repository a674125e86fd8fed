//===- PlanStructureOps.td - plans, programs, sections, kernels, memory -------*- tablegen -*-===//
// What belongs here: everything of a plan but its instructions.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_PLAN_STRUCTURE_OPS
#define MOIRA_PLAN_STRUCTURE_OPS
include "Plan/PlanDialect.td"

def Plan_PlanOp : Plan_Op<"plan", [SymbolTable, IsolatedFromAbove, NoTerminator, SingleBlock, NoRegionArguments]> {
  let summary = "one plan file";
  let description = [{
    Axes are major to minor; a rank's number is the row-major index of its coordinates. The body holds sections, kernels, states and programs, in that order. All programs but
    a reference share the states, and their arenas: the i-th one of each is the same memory.

        plan.plan "host" mesh ["dp", "ep"] = [2, 2] by "moira 0.1.0" info #plan.info<…> { … }

    Constraints: (C1) as many axis names as sizes; (C2) names are unique and not empty; (C3) sizes are at least 1; (C4) the body holds only sections, kernels, states
    and programs; (C5) a module holds one plan.
  }];
  let arguments = (ins StrAttr:$target, StrArrayAttr:$axes, DenseI64ArrayAttr:$sizes, StrAttr:$producer, Plan_InfoAttr:$info);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$target `mesh` $axes `=` $sizes `by` $producer `info` $info attr-dict-with-keyword $body";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// Product of the mesh.
    int64_t numRanks();
    /// Number of an axis, major to minor, or -1.
    int64_t indexOfAxis(::llvm::StringRef name);
  }];
}

def Plan_SectionOp : Plan_Op<"section", [Symbol, HasParent<"PlanOp">]> {
  let summary = "bytes that a plan carries: the image of the host kernels, PTX, constants";
  let description = [{
        plan.section @section0 ptx for "sm_90" features "+ptx80" = dense_resource<section0> : tensor<4096xi8>

    Constraints: (C1) the bytes are a tensor of i8 of one dimension.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, Plan_SectionKindAttr:$kind, StrAttr:$target, StrAttr:$features, ElementsAttr:$bytes);
  let assemblyFormat = "$sym_name `` $kind `for` $target `features` $features `=` $bytes attr-dict";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    ::llvm::ArrayRef<char> getData();
  }];
}

def Plan_KernelOp : Plan_Op<"kernel", [Symbol, HasParent<"PlanOp">]> {
  let summary = "a generated kernel: void k(void *op0, …, int64_t rows)";
  let description = [{
        plan.kernel @rms_norm_64 in @section0 takes [#plan.operand<in row 64xf32>, #plan.operand<in shared 64xf32>, #plan.operand<out row 64xf32>]

    `spec` says what it computes and is there until `plan-build-kernels` has made its section.
    Constraints: (C1) the section exists; (C2) it has a section or a spec, not both; (C3) at least one operand is written.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, OptionalAttr<FlatSymbolRefAttr>:$section, TypedArrayAttrBase<Plan_OperandAttr, "operands">:$takes,
                       OptionalAttr<StrAttr>:$spec);
  let assemblyFormat = "$sym_name (`in` $section^)? (`computes` $spec^)? `takes` $takes attr-dict";
  let hasVerifier = 1;
}

def Plan_ProgramOp : Plan_Op<"program", [Symbol, IsolatedFromAbove, NoTerminator, SingleBlock, NoRegionArguments, HasParent<"PlanOp">]> {
  let summary = "one entry program: its memory and its instructions, in one total order";
  let description = [{
    The same program runs on every rank. `bound [8, 96]`: B starts at 8 and can never need to be more than 96. A `reference` program holds library calls only
    and may run in f64.

        plan.program @forward ranks 4 queues ["compute", "comm"] bound [8, 96] { … }

    Constraints: (C1) ranks is the product of the mesh, or 1; (C2) queue names are unique and not empty; (C3) every instruction's queue is one of them; (C4) 1 ≤ initial bound ≤
    largest bound; (C5) without a bound no view is bounded; (C6) a reference program launches no kernel; (C7) the body holds only arenas, states, views, inputs, outputs,
    traces and instructions.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, I64Attr:$ranks, UnitAttr:$reference, StrArrayAttr:$queues, OptionalAttr<DenseI64ArrayAttr>:$bound);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name `ranks` $ranks (`reference` $reference^)? `queues` $queues (`bound` $bound^)? attr-dict-with-keyword $body";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    int64_t boundInitial() { return getBound() ? (*getBound())[0] : 0; }
    int64_t boundMax() { return getBound() ? (*getBound())[1] : 0; }
  }];
}

def Plan_ArenaOp : Plan_Op<"arena", [HasParent<"ProgramOp">]> {
  let summary = "one allocation: bytes + B · per_bound";
  let description = [{
        plan.arena "ragged" ragged on device bytes 0 per_bound 2048

    Constraints: (C1) the name is unique in its program; (C2) both sizes are multiples of 64; (C3) only a ragged arena grows with B.
  }];
  let arguments = (ins StrAttr:$name, Plan_ArenaRoleAttr:$role, Plan_SpaceAttr:$space, I64Attr:$bytes, I64Attr:$per_bound);
  let assemblyFormat = "$name `` $role `on` `` $space `bytes` $bytes `per_bound` $per_bound attr-dict";
  let hasVerifier = 1;
}

def Plan_StateOp : Plan_Op<"state", [ParentOneOf<["PlanOp", "ProgramOp"]>]> {
  let summary = "a weight or a cache: where it lies and which checkpoint tensors fill it";
  let description = [{
    The type is global and carries the sharding (none: replicated). Without a source it starts as zeros. In a plan: for all of its mesh programs, in an arena of theirs; in a
    program: of this reference program. What is `transient` holds nothing between steps, and what a rank has of it may be its part of a sum.

        plan.state "model.norm.weight" : tensor<64xf32> in "state" at 4096 from #moe.source<names = ["model.norm.weight"], disk_shape = [64]>

    Constraints: (C1) the arena exists and has the role state; (C2) the offset is a multiple of 64; (C3) the sharding divides the shape; (C4) the shard lies in the arena;
    (C5) only reference programs have states of their own; (C6) a transient state has no source.
  }];
  let arguments = (ins StrAttr:$name, TypeAttr:$type, StrAttr:$arena, I64Attr:$offset, OptionalAttr<AnyAttr>:$source, OptionalAttr<I64Attr>:$layer, UnitAttr:$transient);
  let assemblyFormat = "$name `:` $type `in` $arena `at` $offset (`from` $source^)? (`layer` $layer^)? (`transient` $transient^)? attr-dict";
  let hasVerifier = 1;
}

def Plan_ViewOp : Plan_Op<"view", [HasParent<"ProgramOp">, Pure]> {
  let summary = "a part of an arena";
  let description = [{
    Its first byte is at + B · per_bound. A view without `at` has no address yet.

        %0 = plan.view "ragged" at 0 per_bound 1024 : !plan.view<4x64xf32, bound = 0>

    Constraints: (C1) the arena exists; (C2) both parts of the offset are multiples of 64; (C3) the view fits its arena for every B.
  }];
  let arguments = (ins StrAttr:$arena, OptionalAttr<I64Attr>:$offset, OptionalAttr<I64Attr>:$per_bound);
  let results = (outs Plan_ViewType:$result);
  let assemblyFormat = "$arena (`at` $offset^)? (`per_bound` $per_bound^)? attr-dict `:` type($result)";
  let hasVerifier = 1;
}

def Plan_InputOp : Plan_Op<"input", [HasParent<"ProgramOp">]> {
  let summary = "a tensor that the caller gives; each rank's shard is in the view when the program starts";
  let description = [{
    The type is global and carries the sharding. Where the file lacks an `optional` one, it is filled with `fill`. Integers are checked against `range`, both ends included.

        plan.input "attention_mask" %0 : tensor<2x24xi32> optional fill 1.0 range [0, 1] : !plan.view<2x24xi32>

    Constraints: (C1) the view has the shard's shape and element type; (C2) a range has two ends in order and belongs to integers.
  }];
  let arguments = (ins StrAttr:$name, Plan_ViewType:$view, TypeAttr:$type, UnitAttr:$optional, OptionalAttr<F64Attr>:$fill, OptionalAttr<DenseI64ArrayAttr>:$range);
  let assemblyFormat = "$name $view `:` $type (`optional` $optional^)? (`fill` $fill^)? (`range` $range^)? attr-dict `:` type($view)";
  let hasVerifier = 1;
}

def Plan_OutputOp : Plan_Op<"output", [HasParent<"ProgramOp">]> {
  let summary = "a tensor that the program leaves in a view";
  let description = [{
        plan.output "logits" %9 : tensor<2x24x256xf32> : !plan.view<2x24x256xf32>
        plan.output "grad.norm.weight" %9 : tensor<64xf32> : !plan.view<64xf32> as #moe.source<names = ["grad.norm.weight"], disk_shape = [64]>

    With a source it is written as the tensors that would fill such a state.
    Constraints: (C1) the view has the shard's shape and element type; (C2) the source's blocks, one for each expert and name, are the tensor.
  }];
  let arguments = (ins StrAttr:$name, Plan_ViewType:$view, TypeAttr:$type, OptionalAttr<AnyAttr>:$source);
  let assemblyFormat = "$name $view `:` $type attr-dict `:` type($view) (`as` $source^)?";
  let hasVerifier = 1;
}

def Plan_TraceOp : Plan_Op<"trace", [HasParent<"ProgramOp">]> {
  let summary = "a tensor inside the program that tools may look at";
  let description = [{
    Says of which global tensor each rank's view is the shard, once the instruction that writes it has run. It keeps nothing alive: what wants the values takes
    them right then.

        plan.trace "layers.0.ids" %4 : tensor<2x24x2xi32> : !plan.view<2x24x2xi32>

    Constraints: (C1) the view has the shard's shape and element type; (C2) exactly one instruction writes the view.
  }];
  let arguments = (ins StrAttr:$name, Plan_ViewType:$view, TypeAttr:$type);
  let assemblyFormat = "$name $view `:` $type attr-dict `:` type($view)";
  let hasVerifier = 1;
}

#endif // MOIRA_PLAN_STRUCTURE_OPS
