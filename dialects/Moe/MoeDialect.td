//===- MoeDialect.td - the moe dialect, its attributes and types --------------*- tablegen -*-===//
// What belongs here: the dialect, the router, where weights come from, the routing type. Operations are in Moe*Ops.td, one file a concept.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_DIALECT
#define MOIRA_MOE_DIALECT

include "mlir/IR/OpBase.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def Moe_Dialect : Dialect {
  let name = "moe";
  let cppNamespace = "::moira::moe";
  let summary = "the global program of a sparse Mixture-of-Experts model";
  let description = [{
    Value-semantic operations on ranked tensors with global shapes. No operation knows about devices. There is no reshape: weights have
    the rank that their use wants, so that every dimension belongs to exactly one factor of its operation's sharding rule.
    See dialects/Moe/Rationale.md.
  }];
  let dependentDialects = ["::moira::dist::DistDialect"];
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
}

class Moe_Attr<string name, string attrMnemonic> : AttrDef<Moe_Dialect, name> { let mnemonic = attrMnemonic; }

def Moe_Score : I32EnumAttr<"Score", "how logits become scores", [
    I32EnumAttrCase<"softmax", 0>, I32EnumAttrCase<"sigmoid", 1>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_RouteOrder : I32EnumAttr<"RouteOrder", "score all experts and choose, or choose on logits and score the chosen", [
    I32EnumAttrCase<"score_topk", 0>, I32EnumAttrCase<"topk_score", 1>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_Renorm : I32EnumAttr<"Renorm", "what is done to the k chosen scores", [
    I32EnumAttrCase<"none", 0>, I32EnumAttrCase<"sum", 1>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_Activation : I32EnumAttr<"Activation", "an activation function", [
    I32EnumAttrCase<"silu", 0>, I32EnumAttrCase<"gelu", 1>, I32EnumAttrCase<"gelu_tanh", 2>, I32EnumAttrCase<"relu", 3>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_ActivationAttr : EnumAttr<Moe_Dialect, Moe_Activation, "activation"> { let assemblyFormat = "$value"; }

def Moe_RouterAttr : Moe_Attr<"Router", "router"> {
  let summary = "a gate, as data";
  let description = [{
    Every published gate is a value of this attribute, not code. Scores are made in f32. Ties go to the lower expert.

        #moe.router<k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.000000e+00 : f64>

    Constraints: (C1) k ≥ 1; (C2) scale is finite and not 0.
  }];
  let parameters = (ins "int64_t":$k, EnumParameter<Moe_Score>:$score, EnumParameter<Moe_RouteOrder>:$order,
                        EnumParameter<Moe_Renorm>:$renorm, "::mlir::FloatAttr":$scale);
  let assemblyFormat = "`<` struct(params) `>`";
  let genVerifyDecl = 1;
}

def Moe_SourceAttr : Moe_Attr<"Source", "source"> {
  let summary = "which checkpoint tensors fill a state tensor";
  let description = [{
    The leading dimensions of the state tensor index the expert (if `per_expert`; `{e}` stands for its number in the names) and the name (if there is more
    than one). Each named tensor holds one trailing block in C order and has the shape `disk_shape` in the file. With `permute` the block's dimensions lie in
    another order there: permute[i] is the dimension of the block that is i-th on disk. A stacked [E,D,2F] with gate and up interleaved fills a state [E,2,F,D] so:

        #moe.source<names = ["a.experts.gate_up_proj"], disk_shape = [8, 64, 224], permute = [0, 3, 2, 1]>

    Constraints: (C1) at least one name, none empty; (C2) `{e}` stands in every name if and only if `per_expert`; (C3) sizes of disk_shape are positive;
    (C4) permute, if any, is a permutation.
  }];
  let parameters = (ins "::mlir::ArrayAttr":$names, DefaultValuedParameter<"bool", "false">:$per_expert, "::mlir::DenseI64ArrayAttr":$disk_shape,
                        OptionalParameter<"::mlir::DenseI64ArrayAttr">:$permute);
  let assemblyFormat = "`<` struct(params) `>`";
  let genVerifyDecl = 1;
}

def Moe_RoutingType : TypeDef<Moe_Dialect, "Routing"> {
  let mnemonic = "routing";
  let summary = "expert ids, weights, permutation and counts of one routed set of tokens";
  let description = [{
    `!moe.routing<2x24, experts = 8, k = 2>`: each of 2×24 tokens goes to 2 of 8 experts. `encoding` is the sharding of the token dimensions.
    One value, saved and never recomputed; only its weights are differentiable.

    Constraints: (C1) 1 ≤ k ≤ experts; (C2) token sizes are positive; (C3) the encoding, if any, is a #dist.sharding of as many dimensions, not ragged, not partial.
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$tokens, "int64_t":$experts, "int64_t":$k, OptionalParameter<"::mlir::Attribute">:$encoding);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t numTokens() const;
  }];
}

class Moe_Op<string mnemonic, list<Trait> traits = []> : Op<Moe_Dialect, mnemonic, traits>;

// Element types: f32 and bf16 values; f64 appears in reference programs only at run time.
def Moe_Float : AnyTypeOf<[F32, BF16, F64]>;
def Moe_Tensor : RankedTensorOf<[Moe_Float]>;
def Moe_F32Tensor : RankedTensorOf<[F32, F64]>;
def Moe_IntTensor : RankedTensorOf<[I32, I64]>;
def Moe_I32Tensor : RankedTensorOf<[I32]>;

#endif // MOIRA_MOE_DIALECT
