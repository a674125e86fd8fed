//===- MoeExpertGradOps.td - what differentiation makes of expert ops ---------*- tablegen -*-===//
// Operations that only a differentiated program has, for routing and experts. Dispatch and combine are each other's transposes, so they have none of their own: see
// `weighted` and `unit` in MoeExpertOps.td.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_EXPERT_GRAD_OPS
#define MOIRA_MOE_EXPERT_GRAD_OPS
include "Moe/MoeDenseOps.td"

def Moe_RouteGradOp : Moe_RuleOp<"route_grad"> {
  let summary = "the cotangent of a gate's logits";
  let description = [{
    dweights[t..,k], logits[t..,E], routing → [t..,E]: through the weights of the choices that `routing` made, in evaluation mode; the choice itself and its bias have no
    gradient. For route and route_to alike. Linear in dweights.

        %0 = moe.route_grad #moe.router<k = 2, renorm = sum> of %dweights, %logits by %r : (…) -> tensor<2x24x8xf32>

    Constraints: (C1) logits are [t..,E] with t.. and E those of the routing; (C2) dweights are f32 [t..,k], k that of router and routing; (C3) the result is f32 with the shape
    of logits.
  }];
  let arguments = (ins Moe_F32Tensor:$dweights, Moe_Tensor:$logits, Moe_RoutingType:$routing, Moe_RouterAttr:$router);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$router `of` $dweights `,` $logits `by` $routing attr-dict `:` functional-type(operands, results)";
}

def Moe_LimitGradOp : Moe_RuleOp<"limit_grad"> {
  let summary = "the cotangent of the weights that a limit got";
  let description = [{
    dweights[t..,k], routing, limited → [t..,k]: `limited` is what the limit made of `routing`. A dropped choice has no gradient through its own weight; through the sum that weights
    are divided by it has one where the sum is made before dropping. Linear in dweights.

    Constraints: (C1) both routings have the same tokens, experts and k; (C2) dweights and the result are f32 [t..,k].
  }];
  let arguments = (ins Moe_F32Tensor:$dweights, Moe_RoutingType:$routing, Moe_RoutingType:$limited, Moe_CapacityAttr:$capacity);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$capacity `of` $dweights `,` $routing `to` $limited attr-dict `:` functional-type(operands, results)";
}

def Moe_ChoiceDotsOp : Moe_RuleOp<"choice_dots", ["refineResultShardings"]> {
  let summary = "each choice's row times its token's: the cotangent of a routing's weights";
  let description = [{
    rows[T·k,D], x[t..,D], routing → [t..,k]: ⟨row_j, x⟩ of every token and choice, 0 for one that was dropped. Linear in rows.

    Constraints: (C1) rows are [T·k,D]; (C2) x is t.. followed by D; (C3) the result is f32 [t..,k].
  }];
  let arguments = (ins Moe_Tensor:$rows, Moe_Tensor:$x, Moe_RoutingType:$routing);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$rows `,` $x `,` $routing attr-dict `:` functional-type(operands, results)";
}

def Moe_GroupedInputGradOp : Moe_RuleOp<"grouped_input_grad", [], [], CostOfProduct> {
  let summary = "each row times its expert's matrix from the other side";
  let description = [{
    dy[R,N..], groups, w[E,N..,K..] → [R,K..], K.. being the trailing `contract` dimensions of w; summed over N... `groups` as in grouped_matmul. Linear in dy.

    Constraints: (C1) 1 ≤ contract < rank of w; (C2) dy is [R,N..]; (C3) the result is [R,K..]; (C4) groups count E experts.
  }];
  let arguments = (ins Moe_Tensor:$dy, AnyTypeOf<[Moe_RoutingType, Moe_I32Tensor]>:$groups, Moe_Tensor:$w, I64Attr:$contract);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$dy `by` $groups `,` $w `contract` $contract attr-dict `:` functional-type(operands, results)";
}

def Moe_GroupedWeightGradOp : Moe_RuleOp<"grouped_weight_grad", ["refineResultShardings"], [], CostOfProduct> {
  let summary = "each expert's dyᵀ times rows: the gradient of a grouped_matmul op's weight";
  let description = [{
    dy[R,N..], groups, rows[R,K..] → [E,N..,K..], K.. being the trailing `contract` dimensions of rows; element e sums over the rows of expert e. `groups` as in grouped_matmul. On a mesh it is
    split over the experts' axes and partial over those that split the rows otherwise: the experts' own replicas.
    Sums are f32; a result in bf16 (--moe-narrow-gradients) is rounded once.
    In a module that is moe.deterministic, --dist-lower-dispatch adds `samples`, counts[B,E] as dist.sample_counts makes them: rows of an expert are then added up sample by sample.

    Constraints: (C1) 1 ≤ contract < rank of rows; (C2) dy and rows have one number of rows; (C3) the result is [E,N..,K..]; (C4) groups count E experts; (C5) samples are [B,E]; (C6) the result is in f32, or
    in bf16 if rows are and there are no samples.
  }];
  let arguments = (ins Moe_Tensor:$dy, AnyTypeOf<[Moe_RoutingType, Moe_I32Tensor]>:$groups, Moe_Tensor:$rows, Optional<Moe_I32Tensor>:$samples, I64Attr:$contract);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$dy `by` $groups `,` $rows (`samples` $samples^)? `contract` $contract attr-dict `:` functional-type(operands, results)";
}

def Moe_GroupedBiasGradOp : Moe_RuleOp<"grouped_bias_grad", ["refineResultShardings"]> {
  let summary = "each expert's sum of dy: the gradient of a grouped_bias op's bias";
  let description = [{
    dy[R,N..], groups → [E,N..]. `groups` as in grouped_matmul; split as the result of grouped_weight_grad, whose `samples` it may have, too.

    Constraints: (C1) the result is f32 [E,N..]; (C2) groups count E experts; (C3) samples are [B,E].
  }];
  let arguments = (ins Moe_Tensor:$dy, AnyTypeOf<[Moe_RoutingType, Moe_I32Tensor]>:$groups, Optional<Moe_I32Tensor>:$samples);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$dy `by` $groups (`samples` $samples^)? attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_EXPERT_GRAD_OPS
