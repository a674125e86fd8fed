//===- PlanInstrOps.td - instructions -----------------------------------------*- tablegen -*-===//
// What belongs here: the kinds of instruction of plan.fbs. A model op never needs a new one: library calls are data.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_PLAN_INSTR_OPS
#define MOIRA_PLAN_INSTR_OPS
include "Plan/PlanDialect.td"
include "Plan/PlanInterfaces.td"

// Every instruction ends in `on QUEUE [at PLACE] [layer N]`: where it runs and which part of the model it came from. The accessors of those
// attributes are the interface's methods.
class Plan_Instr<string mnemonic, string reads, string writes, list<Trait> traits = []>
    : Plan_Op<mnemonic, !listconcat(traits, [HasParent<"ProgramOp">, InstructionInterface])> {
  dag placeArguments = (ins StrAttr:$queue, OptionalAttr<StrAttr>:$place, OptionalAttr<I64Attr>:$layer);
  string placeFormat = "`on` $queue (`at` $place^)? (`layer` $layer^)? attr-dict";
  let extraClassDeclaration = "::mlir::OperandRange getReads() { return " # reads # "; }\n"
                              "::mlir::OperandRange getWrites() { return " # writes # "; }\n";
}
defvar Plan_None = "(*this)->getOperands().slice(0, 0)";

def Plan_Params : DictionaryAttrBase<CPred<"::moira::plan::isParams($_self)">,
    "parameters: integers (i64), reals (f64), texts, integer lists (array<i64>), lists of reals ([f64, …]) and rank offsets (#dist.offset)">;

class Plan_ParamInstr<string mnemonic, list<Trait> traits = []>
    : Plan_Instr<mnemonic, "getInputs()", "getOutputs()", !listconcat(traits, [AttrSizedOperandSegments])> {
  let hasVerifier = 1;
}

def Plan_LaunchOp : Plan_ParamInstr<"launch"> {
  let summary = "run a generated kernel";
  let description = [{
    On `rows` rows; `bounded`: on rows · B.

        plan.launch @rms_norm_64(%x, %w) -> (%y) rows 48 on "compute" at "model.norm" : (!plan.view<2x24x64xf32>, !plan.view<64xf32>) -> !plan.view<2x24x64xf32>

    Constraints: (C1) the kernel exists; (C2) there are as many views read and written as it has operands of each kind, with their element types; (C3) a rowwise
    operand's view holds rows · inner elements, a shared one inner; (C4) rows is positive.
  }];
  let arguments = !con((ins FlatSymbolRefAttr:$kernel, Variadic<Plan_ViewType>:$inputs, Variadic<Plan_ViewType>:$outputs, I64Attr:$rows, UnitAttr:$bounded), placeArguments);
  let assemblyFormat = "$kernel `(` $inputs `)` `->` `(` $outputs `)` `rows` $rows (`bounded` $bounded^)? " # placeFormat # " `:` functional-type($inputs, $outputs)";
}

def Plan_CallOp : Plan_ParamInstr<"call"> {
  let summary = "call a library function of the registry";
  let description = [{
        plan.call "linear"(%x, %w) -> (%y) {contract = 1 : i64} on "compute" at "lm_head" : (…) -> …

    Constraints: (C1) runtime/include/moira/rt/Calls.def has the function, and the views and parameters are as it and CallRegistry.h say.
  }];
  let arguments = !con((ins StrAttr:$callee, Variadic<Plan_ViewType>:$inputs, Variadic<Plan_ViewType>:$outputs, Plan_Params:$params), placeArguments);
  let assemblyFormat = "$callee `(` $inputs `)` `->` `(` $outputs `)` $params " # placeFormat # " `:` functional-type($inputs, $outputs)";
}

def Plan_CollectiveOp : Plan_ParamInstr<"collective"> {
  let summary = "exchange among the ranks that differ only along `axes`";
  let description = [{
    Parameters: all_reduce `op`; all_gather `dim`; reduce_scatter `op`, `dim`; all_to_all `split_dim`, `concat_dim`. `op` is 0 (sum) or 1 (max).

        plan.collective all_to_all(%slots) -> (%got) over ["ep"] {concat_dim = 0 : i64, split_dim = 1 : i64} on "comm" : (…) -> …

    Constraints: (C1) one view in, one out, of one element type; (C2) the axes are the mesh's, each once, at least one; (C3) exactly the parameters of its kind; (C4) the shapes
    follow from each other.
  }];
  let arguments = !con((ins Plan_CollectiveKindAttr:$kind, Variadic<Plan_ViewType>:$inputs, Variadic<Plan_ViewType>:$outputs, StrArrayAttr:$axes, Plan_Params:$params),
                       placeArguments);
  let assemblyFormat = "`` $kind `(` $inputs `)` `->` `(` $outputs `)` `over` $axes $params " # placeFormat # " `:` functional-type($inputs, $outputs)";
}

def Plan_CopyOp : Plan_ParamInstr<"copy"> {
  let summary = "copy a box: the elements of the input from `start` + `offset` on along `dim`, as many as the output has";
  let description = [{
        plan.copy(%x) -> (%y) {dim = 1 : i64, offset = #dist.offset<{tp} * 4>, start = 0 : i64} on "compute" : (…) -> …

    Constraints: (C1) one view in, one out, of one element type; (C2) parameters are dim, start and perhaps offset; (C3) the shapes differ at most along dim; (C4) the box lies in
    the input on every rank.
  }];
  let arguments = !con((ins Variadic<Plan_ViewType>:$inputs, Variadic<Plan_ViewType>:$outputs, Plan_Params:$params), placeArguments);
  let assemblyFormat = "`(` $inputs `)` `->` `(` $outputs `)` $params " # placeFormat # " `:` functional-type($inputs, $outputs)";
}

def Plan_FillOp : Plan_Instr<"fill", Plan_None, "getODSOperands(0)"> {
  let summary = "set every element of a view";
  let description = [{
        plan.fill %need with 0.0 on "compute" : !plan.view<1xi32>

    Constraints: (C1) the value is finite.
  }];
  let arguments = !con((ins Plan_ViewType:$view, F64Attr:$value), placeArguments);
  let assemblyFormat = "$view `with` $value " # placeFormat # " `:` type($view)";
  let hasVerifier = 1;
}

def Plan_RecordOp : Plan_Instr<"record", Plan_None, Plan_None> {
  let summary = "mark that everything before it on its queue is done";
  let description = [{
        %e = plan.record on "compute"
  }];
  let arguments = placeArguments;
  let results = (outs Plan_EventType:$event);
  let assemblyFormat = placeFormat;
}

def Plan_WaitOp : Plan_Instr<"wait", Plan_None, Plan_None> {
  let summary = "nothing after it on its queue starts before the event";
  let description = [{
        plan.wait %e on "comm"

    Constraints: (C1) the event was recorded on another queue.
  }];
  let arguments = !con((ins Plan_EventType:$event), placeArguments);
  let assemblyFormat = "$event " # placeFormat;
  let hasVerifier = 1;
}

def Plan_RequireBoundOp : Plan_Instr<"require_bound", "getODSOperands(0)", Plan_None> {
  let summary = "repeat the step with a larger B if the needed bound exceeds it";
  let description = [{
        plan.require_bound %need on "compute" : !plan.view<1xi32>

    Constraints: (C1) the view is 1xi32; (C2) the program has a bound.
  }];
  let arguments = !con((ins Plan_ViewType:$need), placeArguments);
  let assemblyFormat = "$need " # placeFormat # " `:` type($need)";
  let hasVerifier = 1;
}

#endif // MOIRA_PLAN_INSTR_OPS
