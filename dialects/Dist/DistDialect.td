//===- DistDialect.td - the dist dialect: one algebra for every parallelism ---*- tablegen -*-===//
// What belongs here: the dialect, its attributes (mesh axes, shardings, offsets). Operations are in DistOps.td.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_DIST_DIALECT
#define MOIRA_DIST_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/TensorEncoding.td"

def Dist_Dialect : Dialect {
  let name = "dist";
  let cppNamespace = "::moira::dist";
  let summary = "shardings on values, explicit reshards, collectives";
  let description = [{
    A module has one `dist.mesh` of atomic named axes. A tensor type carries its sharding as its encoding. A change of sharding
    is a `dist.reshard`; the partition phase turns reshards into collectives, and the localize phase divides the shapes.
    See dialects/Dist/Rationale.md.
  }];
  let useDefaultAttributePrinterParser = 1;
}

class Dist_Attr<string name, string attrMnemonic, list<Trait> traits = []> : AttrDef<Dist_Dialect, name, traits> {
  let mnemonic = attrMnemonic;
}

def Dist_ReduceKind : I32EnumAttr<"ReduceKind", "how partial values combine", [
    I32EnumAttrCase<"sum", 0>, I32EnumAttrCase<"max", 1>]> {
  let cppNamespace = "::moira::dist";
  let genSpecializedAttr = 0;
}
def Dist_ReduceKindAttr : EnumAttr<Dist_Dialect, Dist_ReduceKind, "reduce"> { let assemblyFormat = "$value"; }

def Dist_DimShardingAttr : Dist_Attr<"DimSharding", "dim"> {
  let summary = "how one dimension is cut";
  let description = [{
    `{dp, ep}`: cut row-major over those axes. `{tp} pad 2`: two elements are added at the end first.
    `ragged{dp}{ep} 2x16`: rows of tokens that are cut over dp, belonging to experts that are cut over ep; the shard holds `slots`·`bound` rows
    (here 32), the counts say how many are real.

    Constraints: (C1) no axis twice; (C2) pad is 0 for a ragged dimension; (C3) slots and bound are positive exactly for a ragged one.
  }];
  let parameters = (ins ArrayRefParameter<"::mlir::StringAttr">:$axes, "int64_t":$pad,
                        ArrayRefParameter<"::mlir::StringAttr">:$expertAxes, "int64_t":$slots, "int64_t":$bound);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    bool isRagged() const { return getSlots() > 0; }
    /// True where the bound is a run-time value (experts are split).
    bool isGrowable() const { return isRagged() && !getExpertAxes().empty(); }
    bool isReplicated() const { return !isRagged() && getAxes().empty(); }
    static DimShardingAttr replicated(::mlir::MLIRContext *context) { return split(context, {}); }
    static DimShardingAttr split(::mlir::MLIRContext *context, ::llvm::ArrayRef<::mlir::StringAttr> axes, int64_t pad = 0);
  }];
}

def Dist_ShardingAttr : Dist_Attr<"Sharding", "sharding", [
    DeclareAttrInterfaceMethods<VerifiableTensorEncoding>]> {
  let summary = "how a value is laid out over the mesh";
  let description = [{
    One entry a dimension; the axes over which the value is partial, with the reduction that completes it; replicated over all other axes.

        #dist.sharding<[{dp}, {}, {} ], partial = sum{tp}>

    Constraints: (C1) an axis stands at most once in the whole sharding; (C2) as many entries as the tensor has dimensions.
  }];
  let parameters = (ins ArrayRefParameter<"::moira::dist::DimShardingAttr">:$dims,
                        ArrayRefParameter<"::mlir::StringAttr">:$partialAxes, "::moira::dist::ReduceKind":$partialKind);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    static ShardingAttr replicated(::mlir::MLIRContext *context, int64_t rank);
    static ShardingAttr get(::mlir::MLIRContext *context, ::llvm::ArrayRef<DimShardingAttr> dims) {
      return get(context, dims, {}, ReduceKind::sum);
    }
    bool isPartial() const { return !getPartialAxes().empty(); }
    bool isFullyReplicated() const;
    /// The same dimensions, partial over `axes` (none: complete).
    ShardingAttr withPartial(::llvm::ArrayRef<::mlir::StringAttr> axes, ReduceKind kind = ReduceKind::sum) const;
    ShardingAttr withDim(int64_t dim, DimShardingAttr sharding) const;
    /// Every axis that the value uses, in order of first use.
    ::llvm::SmallVector<::mlir::StringAttr> usedAxes() const;
  }];
}

def Dist_OffsetAttr : Dist_Attr<"Offset", "offset"> {
  let summary = "a number that depends on the rank: stride × row-major index of the rank along the axes";
  let parameters = (ins ArrayRefParameter<"::mlir::StringAttr">:$axes, "int64_t":$stride);
  let hasCustomAssemblyFormat = 1;
}

def Dist_RowsAttr : Dist_Attr<"Rows", "rows"> {
  let summary = "encoding of a local tensor whose dimension `dim` has `scale`·B elements, B the run-time bound";
  let description = [{ After localisation only. The type's static size uses B's initial value. }];
  let parameters = (ins "int64_t":$dim, "int64_t":$scale);
  let assemblyFormat = "`<` $dim `,` $scale `>`";
}

#endif // MOIRA_DIST_DIALECT
