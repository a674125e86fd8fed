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
  // moe.deterministic: a unit attribute of a module, whose mesh programs are to give the same bits on every mesh (Rationale.md).
  let hasOperationAttrVerify = 1;
  let extraClassDeclaration = [{
    static constexpr ::llvm::StringLiteral kDeterministic = "moe.deterministic";
  }];
}

class Moe_Attr<string name, string attrMnemonic> : AttrDef<Moe_Dialect, name> { let mnemonic = attrMnemonic; }

def Moe_Score : I32EnumAttr<"Score", "how logits become scores", [
    I32EnumAttrCase<"softmax", 0>, I32EnumAttrCase<"sigmoid", 1>, I32EnumAttrCase<"sqrt_softplus", 2>, I32EnumAttrCase<"sparsemixer", 3>]> {
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
def Moe_GroupScore : I32EnumAttr<"GroupScore", "how a group of experts is scored", [
    I32EnumAttrCase<"max", 0>, I32EnumAttrCase<"top2_sum", 1>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_Activation : I32EnumAttr<"Activation", "an activation function", [
    I32EnumAttrCase<"silu", 0>, I32EnumAttrCase<"gelu", 1>, I32EnumAttrCase<"gelu_tanh", 2>, I32EnumAttrCase<"relu", 3>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_ActivationAttr : EnumAttr<Moe_Dialect, Moe_Activation, "activation"> { let assemblyFormat = "$value"; }

def Moe_RouteApply : I32EnumAttr<"RouteApply", "whether a weight multiplies what an expert gives or what it gets", [
    I32EnumAttrCase<"output", 0>, I32EnumAttrCase<"input", 1>]> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}

// Parameters that are not printed at their default.
class Moe_EnumField<EnumInfo info, string case> : EnumParameter<info> { let defaultValue = info.cppNamespace # "::" # info.className # "::" # case; }
class Moe_RealField<string value> : DefaultValuedParameter<"::mlir::FloatAttr", "::mlir::FloatAttr::get(::mlir::Float64Type::get($_ctxt), " # value # ")">;

def Moe_RouterAttr : Moe_Attr<"Router", "router"> {
  let summary = "a gate, as data";
  let description = [{
    Every published gate is a value of this attribute, not code (docs/routing.md says which is which). Everything is computed in f32; ties go to the lower expert.

        #moe.router<k = 2, renorm = sum>
        #moe.router<k = 8, score = sigmoid, groups = 8, group_keep = 4, group_score = top2_sum, renorm = sum, renorm_epsilon = 1.0e-20 : f64, scale = 2.5 : f64>

    1. keys = score(logits) (`order = score_topk`) or the logits themselves (`topk_score`).
    2. The choice is made on keys + bias, where moe.route has a bias. The experts form `groups` equal runs; with more than one, only experts of the `group_keep` groups of
       the highest `group_score` (the largest key, or the sum of the two largest) can be chosen. The k highest are chosen.
    3. weights = the keys of the chosen, without bias; with `topk_score` the score over these k is taken now.
    4. `renorm = sum` divides by max(sum of the k weights + `renorm_epsilon`, `renorm_clamp_min`); then the weights are multiplied by `scale`.
    5. moe.combine multiplies an expert's output by the weight; with `apply = input` moe.dispatch multiplies its input instead, and combine adds up what comes out.

    `sparsemixer` chooses one expert after the other: a choice's weight is the softmax over the experts that no earlier choice took and whose logit s is near the largest of
    these, m: not (m − s) / max(|s|, m) > 2·`jitter_eps`.

    Constraints: (C1) k ≥ 1; (C2) scale is finite and not 0; (C3) 1 ≤ group_keep ≤ groups; (C4) renorm_epsilon, renorm_clamp_min and jitter_eps are finite and not negative,
    the first two 0 without renorm = sum, the last 0 unless the score is sparsemixer; (C5) sparsemixer has order = score_topk, one group and renorm = none.
  }];
  let parameters = (ins "int64_t":$k, Moe_EnumField<Moe_Score, "softmax">:$score, Moe_EnumField<Moe_RouteOrder, "score_topk">:$order,
                        DefaultValuedParameter<"int64_t", "1">:$groups, DefaultValuedParameter<"int64_t", "1">:$group_keep,
                        Moe_EnumField<Moe_GroupScore, "max">:$group_score, Moe_EnumField<Moe_Renorm, "none">:$renorm,
                        Moe_RealField<"0.0">:$renorm_epsilon, Moe_RealField<"0.0">:$renorm_clamp_min, Moe_RealField<"0.0">:$jitter_eps,
                        Moe_RealField<"1.0">:$scale, Moe_EnumField<Moe_RouteApply, "output">:$apply);
  let builders = [AttrBuilder<(ins "const ::moira::moe::RouterFields &":$fields)>];
  let assemblyFormat = "`<` struct(params) `>`";
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    ::moira::moe::RouterFields getFields() const;
  }];
}

class Moe_PlainEnum<string name, string summary, list<I32EnumAttrCase> cases> : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::moira::moe"; let genSpecializedAttr = 0;
}
def Moe_CapacityRule : Moe_PlainEnum<"CapacityRule", "what a capacity is made of", [
    I32EnumAttrCase<"fixed", 0>, I32EnumAttrCase<"factor", 1>, I32EnumAttrCase<"rounded", 2>, I32EnumAttrCase<"fraction", 3>]>;
def Moe_CapacityDomain : Moe_PlainEnum<"CapacityDomain", "the tokens that share a capacity", [
    I32EnumAttrCase<"batch", 0>, I32EnumAttrCase<"sequence", 1>]>;
def Moe_DropPolicy : Moe_PlainEnum<"DropPolicy", "which choices an expert keeps", [
    I32EnumAttrCase<"position", 0>, I32EnumAttrCase<"probs", 1>, I32EnumAttrCase<"random", 2>, I32EnumAttrCase<"priority", 3>]>;
def Moe_CapacityOrder : Moe_PlainEnum<"CapacityOrder", "whether second choices wait for all first ones", [
    I32EnumAttrCase<"token_major", 0>, I32EnumAttrCase<"choice_major", 1>]>;
def Moe_LimitRenorm : Moe_PlainEnum<"LimitRenorm", "whether weights are divided by their sum, and by which", [
    I32EnumAttrCase<"none", 0>, I32EnumAttrCase<"before", 1>, I32EnumAttrCase<"after", 2>]>;

def Moe_CapacityAttr : Moe_Attr<"Capacity", "capacity"> {
  let summary = "how many choices an expert takes, and which";
  let description = [{
        #moe.capacity<rule = factor, value = 1.25 : f64, least = 4, policy = random, seed = 7, layer = 3>

    With T tokens in a domain, E experts and k choices the capacity C is
      `fixed`      value
      `factor`     ⌈(T / E) · (value · k)⌉, at least `least`
      `rounded`    ⌈value · k · ⌈T / E⌉⌉, at least `least`
      `fraction`   ⌈value · T⌉, at least `least`
    in f64. A domain is the whole (micro-)batch, or one sequence: the tokens that share their first index.

    An expert keeps the first C of the choices that name it. `order = choice_major` puts all first choices before any second one; then `policy` decides: nothing (`position`), the
    larger weight (`probs`), the larger draw (`random`: Philox of seed, step, layer, token and expert), or the larger first weight of the token (`priority`); then the lower token.

    The weights are divided by max(sum + renorm_epsilon, renorm_clamp_min), where the sum runs over all k choices (`renorm = before`) or over those that are kept (`after`),
    and multiplied by `scale`.

    Constraints: (C1) value is finite and not negative, and whole if the rule is fixed; (C2) least is not negative; (C3) renorm_epsilon and renorm_clamp_min are finite, not negative, and 0
    without renorm; (C4) scale is finite and not 0; (C5) layer is a 31-bit number, and seed is 0 unless the policy is random.
  }];
  let parameters = (ins EnumParameter<Moe_CapacityRule>:$rule, "::mlir::FloatAttr":$value, DefaultValuedParameter<"int64_t", "0">:$least,
                        Moe_EnumField<Moe_CapacityDomain, "batch">:$domain, Moe_EnumField<Moe_DropPolicy, "position">:$policy,
                        Moe_EnumField<Moe_CapacityOrder, "token_major">:$order, Moe_EnumField<Moe_LimitRenorm, "none">:$renorm,
                        Moe_RealField<"0.0">:$renorm_epsilon, Moe_RealField<"0.0">:$renorm_clamp_min, Moe_RealField<"1.0">:$scale,
                        DefaultValuedParameter<"int64_t", "0">:$seed, DefaultValuedParameter<"int64_t", "0">:$layer);
  let builders = [AttrBuilder<(ins "const ::moira::moe::CapacityFields &":$fields)>];
  let assemblyFormat = "`<` struct(params) `>`";
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    ::moira::moe::CapacityFields getFields() const;
    /// C of a domain of this many tokens; never more than them.
    int64_t capacityFor(int64_t tokens, int64_t experts, int64_t k) const;
  }];
}

def Moe_SourceAttr : Moe_Attr<"Source", "source"> {
  let summary = "which checkpoint tensors fill a state tensor";
  let description = [{
    The leading dimensions of the state tensor index the expert (if `per_expert`; `{e}` stands for its number in the names) and the name (if there is more
    than one). Each named tensor holds one trailing block in C order and has the shape `disk_shape` in the file. With `permute` the block's dimensions lie in
    another order there: permute[i] is the dimension of the block that is i-th on disk. A stacked [E,D,2F] with gate and up interleaved fills a state [E,2,F,D] so:

        #moe.source<names = ["a.experts.gate_up_proj"], disk_shape = [8, 64, 224], permute = [0, 3, 2, 1]>

    With `slice` = [dim, first, size] a block is a part of what is named: its dimension `dim` is `size` on disk, and the block begins there at `first`. So the two halves of one
    tensor fill two states:

        #moe.source<names = ["a.kv_b_proj.weight"], disk_shape = [128, 32], slice = [1, 16, 32]>      a state [4,16,32]: the second 16 of each head's 32 rows

    Constraints: (C1) at least one name, none empty; (C2) `{e}` stands in every name if and only if `per_expert`; (C3) sizes of disk_shape are positive;
    (C4) permute, if any, is a permutation; (C5) slice, if any, has a dimension and 0 ≤ first < size.
  }];
  let parameters = (ins "::mlir::ArrayAttr":$names, DefaultValuedParameter<"bool", "false">:$per_expert, "::mlir::DenseI64ArrayAttr":$disk_shape,
                        OptionalParameter<"::mlir::DenseI64ArrayAttr">:$permute, OptionalParameter<"::mlir::DenseI64ArrayAttr">:$slice);
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
def Moe_StateTensor : RankedTensorOf<[F32, BF16, F64, I32]>; // weights, and tables of indices
def Moe_F32Tensor : RankedTensorOf<[F32, F64]>;
def Moe_IntTensor : RankedTensorOf<[I32, I64]>;
def Moe_I32Tensor : RankedTensorOf<[I32]>;

#endif // MOIRA_MOE_DIALECT
