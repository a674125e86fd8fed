//===- MoeExpertOps.td - routing, dispatch, expert products, combine ----------*- tablegen -*-===//
#ifndef MOIRA_MOE_EXPERT_OPS
#define MOIRA_MOE_EXPERT_OPS
include "Moe/MoeDenseOps.td"

def Moe_RouteOp : Moe_DiffOp<"route", ["localize"], [AttrSizedOperandSegments]> {
  let summary = "choose k experts a token and weigh them";
  let description = [{
        %r = moe.route #moe.router<…> of %logits : (tensor<2x24x8xf32>) -> !moe.routing<2x24, experts = 8, k = 2>
        %r = moe.route #moe.router<…> of %logits bias %b : (tensor<2x24x8xf32>, tensor<8xf32>) -> !moe.routing<2x24, experts = 8, k = 2>

    `bias` is added to the scores where experts are chosen, not where they are weighed.

        %r = moe.route #moe.router<k = 2, score = sparsemixer, jitter_eps = 0.01> of %logits at %step layer 3 seed 7
            : (tensor<2x24x8xf32>, tensor<1xi32>) -> !moe.routing<2x24, experts = 8, k = 2>

    With `step` a sparsemixer draws, as SparseMixer does in training (Liu et al., arXiv:2310.00811): each choice by its softmax among the experts near the largest, and where that is not the
    largest one its weight counts a third three times out of four. Draws depend on seed, step, layer, the token's number in the batch, choice and expert (Sampled.h); `part`, rows, columns and
    offsets are as in moe.jitter. The gradient passes by that factor, so that it is an estimate of the choice's own, too (Heun's method).

    Constraints: (C1) logits are [t..,E] with t.. and E those of the routing; (C2) the router's k is the routing's; (C3) bias is [E]; (C4) the router's groups divide the
    experts, the kept groups hold at least k experts, and groups scored by their top-2 sum have at least two; (C5) a sparsemixer has no bias; (C6) step and part are tensor<1xi32>, step and
    layer are given together, for a sparsemixer of tokens [B,S], and neither layer nor seed is negative.
  }];
  let arguments = (ins Moe_Tensor:$logits, Optional<Moe_F32Tensor>:$bias, Optional<Moe_I32Tensor>:$step, Optional<Moe_I32Tensor>:$part, Moe_RouterAttr:$router,
                       OptionalAttr<I64Attr>:$layer, DefaultValuedAttr<I64Attr, "0">:$seed, OptionalAttr<I64Attr>:$rows, OptionalAttr<I64Attr>:$columns,
                       OptionalAttr<AnyAttr>:$row_offset, OptionalAttr<AnyAttr>:$column_offset);
  let results = (outs Moe_RoutingType:$result);
  let builders = [OpBuilder<(ins "::mlir::Type":$result, "::mlir::Value":$logits, "::mlir::Value":$bias, "RouterAttr":$router), [{
    build($_builder, $_state, result, logits, bias, ::mlir::Value(), ::mlir::Value(), router, ::mlir::IntegerAttr(), $_builder.getI64IntegerAttr(0), ::mlir::IntegerAttr(), ::mlir::IntegerAttr(), ::mlir::Attribute(), ::mlir::Attribute());
  }]>];
  let assemblyFormat = "$router `of` $logits (`bias` $bias^)? (`at` $step^)? (`part` $part^)? (`layer` $layer^)? (`seed` $seed^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_RouteToOp : Moe_DiffOp<"route_to"> {
  let summary = "weigh experts that were chosen elsewhere";
  let description = [{
        %r = moe.route_to #moe.router<k = 2, score = sqrt_softplus, renorm = sum> of %logits to %ids
            : (tensor<2x24x8xf32>, tensor<2x24x2xi32>) -> !moe.routing<2x24, experts = 8, k = 2>

    As moe.route, but the choice is `choices` (a hash gate: a table from token ids to experts).

    Constraints: (C1) logits are [t..,E] with t.. and E those of the routing; (C2) the router's k is the routing's; (C3) choices are [t..,k]; (C4) the router has one group and is no
    sparsemixer.
  }];
  let arguments = (ins Moe_Tensor:$logits, Moe_I32Tensor:$choices, Moe_RouterAttr:$router);
  let results = (outs Moe_RoutingType:$result);
  let assemblyFormat = "$router `of` $logits `to` $choices attr-dict `:` functional-type(operands, results)";
}

def Moe_JitterOp : Moe_DiffOp<"jitter", ["localize"]> {
  let summary = "x times factors drawn around 1: the noise of a router in training";
  let description = [{
        %1 = moe.jitter %x at %step eps 0.01 layer 3 seed 7 : (tensor<2x24x64xf32>, tensor<1xi32>) -> tensor<2x24x64xf32>
        %2 = moe.jitter %x at %step part %micro eps 0.01 layer 3 : (tensor<2x24x64xf32>, tensor<1xi32>, tensor<1xi32>) -> tensor<2x24x64xf32>

    x[B,S,D]; the factor of an element is uniform in (1 − eps, 1 + eps) and depends on seed, step, layer, the token's number in the batch and the element's in the token (Jitter.h), so
    it is the same on every mesh and when it is made again. `part` says which of several equal parts of the batch, one behind the other, x is. Linear in x, and its own transpose. On
    a shard `rows` and `columns` are those of the whole x, the offsets say where the shard begins.

    Constraints: (C1) x has three dimensions, and the result its shape and element type; (C2) 0 < eps ≤ 1; (C3) layer and seed are not negative; (C4) step and part are tensor<1xi32>.
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_I32Tensor:$step, Optional<Moe_I32Tensor>:$part, F64Attr:$eps, I64Attr:$layer, DefaultValuedAttr<I64Attr, "0">:$seed,
                       OptionalAttr<I64Attr>:$rows, OptionalAttr<I64Attr>:$columns, OptionalAttr<AnyAttr>:$row_offset, OptionalAttr<AnyAttr>:$column_offset);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `at` $step (`part` $part^)? `eps` $eps `layer` $layer (`seed` $seed^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_LimitOp : Moe_DiffOp<"limit", ["refineResultShardings", "localize"]> {
  let summary = "drops the choices for which an expert has no room";
  let description = [{
        %r2, %dropped = moe.limit #moe.capacity<rule = factor, value = 1.25 : f64> of %r
            : (!moe.routing<2x24, experts = 8, k = 2>) -> (!moe.routing<2x24, experts = 8, k = 2>, tensor<2xf32>)

    A dropped choice has the id −1 and the weight 0; it gets no row. `dropped` counts the dropped choices and all of them. `step` numbers the (micro-)batch, for random draws.
    The capacity holds for the global program: a domain that is split over ranks is gathered, ids and weights only.

    Constraints: (C1) both routings have the same tokens, experts and k; (C2) step is tensor<1xi32>, and given if and only if the policy is random; (C3) dropped is tensor<2xf32>;
    (C4) the domain sequence needs tokens of two dimensions or more.
  }];
  let arguments = (ins Moe_RoutingType:$routing, Optional<Moe_I32Tensor>:$step, Moe_CapacityAttr:$capacity, OptionalAttr<AnyAttr>:$token_offset);
  let results = (outs Moe_RoutingType:$result, Moe_F32Tensor:$dropped);
  let assemblyFormat = "$capacity `of` $routing (`step` $step^)? attr-dict `:` functional-type(operands, results)";
  let extraClassDeclaration = [{
    /// How many domains the tokens of the operand's type are, one behind the other.
    int64_t numDomains();
    /// How many choices an expert keeps in each.
    int64_t capacityPerDomain();
  }];
}

def Moe_RedirectOp : Moe_DiffOp<"redirect", [], [AllTypesMatch<["routing", "result"]>]> {
  let summary = "a routing whose choices go to fixed experts";
  let description = [{
        %r2 = moe.redirect %r first 1 rest 0 : !moe.routing<2x24, experts = 8, k = 2>

    Every token's first choice goes to expert `first`, its other choices to expert `rest`, with the weights that they have; a dropped choice stays dropped. (What the published
    implementation of NLLB-MoE does with its gate: see docs/routing.md.)

    Constraints: (C1) first and rest are experts of the routing.
  }];
  let arguments = (ins Moe_RoutingType:$routing, I64Attr:$first, I64Attr:$rest);
  let results = (outs Moe_RoutingType:$result);
  let assemblyFormat = "$routing `first` $first `rest` $rest attr-dict `:` qualified(type($routing))";
}

def Moe_DispatchOp : Moe_DiffOp<"dispatch", ["refineResultShardings"]> {
  let summary = "one row for each token and choice, sorted by expert";
  let description = [{
    x[t..,D], routing → [T·k,D]. Sorted stably: rows of an expert lie in token order, then choice order. `expert_axes` names the mesh axes over which the experts
    are split (set by `--dist-shard-expert`); the result's rows are ragged then, and `bound` asks for an initial bound other than the default.
    `weighted`: rows are multiplied by the weights that moe.combine takes them times (its transpose). Linear in x.

    Constraints: (C1) x is t.. of the routing followed by D; (C2) the result is [T·k,D].
  }];
  let arguments = (ins Moe_Tensor:$x, Moe_RoutingType:$routing, DefaultValuedOptionalAttr<StrArrayAttr, "{}">:$expert_axes, OptionalAttr<I64Attr>:$bound,
                       UnitAttr:$weighted);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$x `,` $routing (`weighted` $weighted^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_GroupedMatmulOp : Moe_DiffOp<"grouped_matmul", [], [], CostOfProduct> {
  let summary = "each row times its expert's matrix";
  let description = [{
    rows[R,K..], groups, w[E,N..,K..] → [R,N..], the trailing `contract` dimensions summed over in f32. Linear in rows. `groups` is the routing that sorted the rows; after the
    partition phase it is the i32 row counts [token shards, E].

    Constraints: (C1) 1 ≤ contract < rank of w; (C2) rows are [R,K..]; (C3) the result is [R,N..]; (C4) groups count E experts.
  }];
  let arguments = (ins Moe_Tensor:$rows, AnyTypeOf<[Moe_RoutingType, Moe_I32Tensor]>:$groups, Moe_Tensor:$w, I64Attr:$contract);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$rows `by` $groups `,` $w `contract` $contract attr-dict `:` functional-type(operands, results)";
}

def Moe_GroupedBiasOp : Moe_DiffOp<"grouped_bias", ["localize"]> {
  let summary = "each row plus its expert's bias";
  let description = [{
    rows[R,N..], groups, b[E,N..] → [R,N..]; `groups` as in grouped_matmul. Rows past the last group stay as they are. On rows that are partial sums `part` is this
    rank's place among those that hold the terms: only the first of them adds the bias.

        %1 = moe.grouped_bias %rows by %r, %b : (tensor<96x2x112xf32>, !moe.routing<2x24, experts = 8, k = 2>, tensor<8x2x112xf32>) -> tensor<96x2x112xf32>

    Constraints: (C1) rows are [R,N..]; (C2) result and rows have one type up to sharding; (C3) groups count E experts; (C4) b has the rows' element type.
  }];
  let arguments = (ins Moe_Tensor:$rows, AnyTypeOf<[Moe_RoutingType, Moe_I32Tensor]>:$groups, Moe_Tensor:$b, OptionalAttr<AnyAttr>:$part);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$rows `by` $groups `,` $b attr-dict `:` functional-type(operands, results)";
}

def Moe_CombineOp : Moe_DiffOp<"combine", ["refineResultShardings"]> {
  let summary = "weighted sum of a token's k rows";
  let description = [{
    rows[T·k,D], routing → [t..,D]: Σ_j weight_j · row_j in the fixed order of j. Linear in rows. `unit`: instead of weights what moe.dispatch multiplied the rows by, mostly 1 (its
    transpose). Constraints: (C1) rows are [T·k,D]; (C2) the result is t.. followed by D.
  }];
  let arguments = (ins Moe_Tensor:$rows, Moe_RoutingType:$routing, UnitAttr:$unit);
  let results = (outs Moe_Tensor:$result);
  let assemblyFormat = "$rows `,` $routing (`unit` $unit^)? attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_EXPERT_OPS
