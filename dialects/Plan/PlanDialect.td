//===- PlanDialect.td - the plan dialect, its types and attributes ------------*- tablegen -*-===//
// What belongs here: the dialect, the types of views and events, the attributes of kernels and of the model's description.
// Operations are in Plan*Ops.td, one file a concept.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_PLAN_DIALECT
#define MOIRA_PLAN_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"
include "mlir/Interfaces/ControlFlowInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def Plan_Dialect : Dialect {
  let name = "plan";
  let cppNamespace = "::moira::plan";
  let summary = "what will run, exactly: memory, instructions and their order";
  let description = [{
    The plan file (runtime/schema/plan.fbs) as IR: every table of the file is an operation here, in the file's order, so that a plan reads back to the IR that
    wrote it. One form comes earlier: views without an address (before `plan-allocate`), kernels without a section (before `plan-build-kernels`) and
    `plan.fused` groups on tensors (before `plan-lower`). See dialects/Plan/Rationale.md.
  }];
  let dependentDialects = ["::moira::moe::MoeDialect", "::moira::dist::DistDialect"];
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
}

class Plan_Attr<string name, string attrMnemonic> : AttrDef<Plan_Dialect, name> { let mnemonic = attrMnemonic; }
class Plan_Type<string name, string typeMnemonic> : TypeDef<Plan_Dialect, name> { let mnemonic = typeMnemonic; }

// The numbers of these enums are those of plan.fbs.
class Plan_Enum<string name, string summary, list<I32EnumAttrCase> cases> : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::moira::plan";
  let genSpecializedAttr = 0;
}
class Plan_EnumAttr<EnumAttrInfo info, string attrMnemonic> : EnumAttr<Plan_Dialect, info, attrMnemonic> { let assemblyFormat = "$value"; }

def Plan_Space : Plan_Enum<"Space", "which memory an arena lies in", [
    I32EnumAttrCase<"device", 0>, I32EnumAttrCase<"host", 1>, I32EnumAttrCase<"pinned", 2>, I32EnumAttrCase<"comm", 3>]>;
def Plan_SpaceAttr : Plan_EnumAttr<Plan_Space, "space">;
def Plan_ArenaRole : Plan_Enum<"ArenaRole", "what an arena is for", [
    I32EnumAttrCase<"state", 0>, I32EnumAttrCase<"activations", 1>, I32EnumAttrCase<"ragged", 2>]>;
def Plan_ArenaRoleAttr : Plan_EnumAttr<Plan_ArenaRole, "role">;
def Plan_CollectiveKind : Plan_Enum<"CollectiveKind", "which collective", [
    I32EnumAttrCase<"all_reduce", 0>, I32EnumAttrCase<"all_gather", 1>, I32EnumAttrCase<"reduce_scatter", 2>, I32EnumAttrCase<"all_to_all", 3>]>;
def Plan_CollectiveKindAttr : Plan_EnumAttr<Plan_CollectiveKind, "collective_kind">;
def Plan_SectionKind : Plan_Enum<"SectionKind", "what the bytes of a section are", [
    I32EnumAttrCase<"host_object", 0>, I32EnumAttrCase<"ptx", 1>, I32EnumAttrCase<"constants", 2>]>;
def Plan_SectionKindAttr : Plan_EnumAttr<Plan_SectionKind, "section_kind">;

def Plan_ViewType : Plan_Type<"View", "view"> {
  let summary = "a rectangle of memory that instructions read and write";
  let description = [{
    `!plan.view<2x24x64xf32>` is contiguous, in C order. With `bound = 0` the size of dimension 0 is what is written there times B, the run-time bound of ragged rows:
    `!plan.view<4x64xf32, bound = 0>` holds 4·B rows.

    Constraints: (C1) the element type is f32, bf16, f16, f64, i32, i64 or ui8; (C2) sizes are positive; (C3) bound, if any, is one of the dimensions.
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$shape, "::mlir::Type":$elementType, DefaultValuedParameter<"int64_t", "-1">:$boundDim);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    bool isBounded() const { return getBoundDim() >= 0; }
    /// Product of the sizes as written; times B if the view is bounded.
    int64_t numElements() const;
    /// Bytes; a coefficient of B if the view is bounded.
    uint64_t numBytes() const;
  }];
}

def Plan_EventType : Plan_Type<"Event", "event"> {
  let summary = "a point of one queue that other queues can wait for";
}

def Plan_OperandAttr : Plan_Attr<"Operand", "operand"> {
  let summary = "one pointer that a generated kernel takes";
  let description = [{
    `#plan.operand<in row 4x16xf32>`: the kernel reads 4×16 elements for each of its rows; `shared`: the same elements for all rows; `out`: it writes them.
    Constraints: (C1) the element type is one that views have; (C2) sizes are positive.
  }];
  let parameters = (ins "bool":$output, "bool":$rowwise, ArrayRefParameter<"int64_t">:$inner, "::mlir::Type":$elementType);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
}

def Plan_InfoAttr : Plan_Attr<"Info", "info"> {
  let summary = "what was planned: the model, its task and its size";
  let description = [{
    `tensors_found` is 0 if the plan was made from config.json alone. `unused_tensors` names those of the checkpoint that are known to be read by nobody (a tied head that is stored, say).
    `schedule` is that of the learning rate, for runs that give none.
  }];
  let parameters = (ins StringRefParameter<"class of the model">:$model_class, StringRefParameter<"task">:$task, "::mlir::Type":$dtype,
                        "int64_t":$batch, "int64_t":$seq, "uint64_t":$parameters, "uint64_t":$active_parameters,
                        "uint64_t":$tensors_expected, "uint64_t":$tensors_found, OptionalParameter<"::mlir::ArrayAttr">:$unused_tensors,
                        OptionalParameter<"::mlir::StringAttr">:$schedule);
  let assemblyFormat = "`<` struct(params) `>`";
}

class Plan_Op<string mnemonic, list<Trait> traits = []> : Op<Plan_Dialect, mnemonic, traits>;

#endif // MOIRA_PLAN_DIALECT
