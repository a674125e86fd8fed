//===- PlanFusedOps.td - plan operations on tensors, before they are instructions -*- tablegen -*-===//
// What belongs here: the form before `plan-lower`: groups of row ops that will be kernels, and moves between device and host.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_PLAN_FUSED_OPS
#define MOIRA_PLAN_FUSED_OPS
include "Moe/MoeDialect.td"
include "Plan/PlanDialect.td"

def Plan_FusedOp : Plan_Op<"fused", [IsolatedFromAbove, SingleBlock, Pure]> {
  let summary = "row ops that one generated kernel will run together";
  let description = [{
    The body holds moe ops on whole local tensors; every one works on each row alone.

    Constraints: (C1) the body's arguments have the operands' types; (C2) it ends in a `plan.yield` of the results' types; (C3) it holds at least one op.
  }];
  let arguments = (ins Variadic<AnyRankedTensor>:$inputs);
  let results = (outs Variadic<AnyRankedTensor>:$results);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "`(` $inputs `)` attr-dict-with-keyword `:` functional-type($inputs, $results) $body";
  let hasVerifier = 1;
}

def Plan_YieldOp : Plan_Op<"yield", [Terminator, ReturnLike, Pure, HasParent<"FusedOp">]> {
  let summary = "the results of a group";
  let arguments = (ins Variadic<AnyRankedTensor>:$values);
  let assemblyFormat = "($values^ `:` type($values))? attr-dict";
}

def Plan_MoveOp : Plan_Op<"move", [Pure, AllTypesMatch<["x", "result"]>]> {
  let summary = "the same tensor in the other memory";
  let description = [{
    Becomes a copy on a queue of its own, `d2h` or `h2d`. An operation with the attribute `plan.on_host` runs on the host, on the queue `host`; its operands lie there.

        %1 = plan.move %0 to host : tensor<64xf32>

    Constraints: (C1) it goes to device or host; (C2) its shape is static and has no sharding or bound.
  }];
  let arguments = (ins AnyRankedTensor:$x, Plan_SpaceAttr:$to);
  let results = (outs AnyRankedTensor:$result);
  let assemblyFormat = "$x `to` `` $to attr-dict `:` type($x)";
  let hasVerifier = 1;
}

def Plan_GroupedGluGradOp : Plan_Op<"grouped_glu_grad", [Pure]> {
  let summary = "the gradient of experts' gated rows, of cotangents without weights";
  let description = [{
    dy[R,D], groups[1,E], pos[t..,k], routing, w[E,D,F], z[R,2,F] → dz[R,2,F], act[R,F], dots[t..,k]. What moe.grouped_input_grad and moe.glu_grad give, in dz, of dy times the rows' weights; the
    weighted glu of z, whose product with dy is the gradient of w; and the cotangent of the routing's weights.

        %dz, %act, %dots = plan.grouped_glu_grad silu %dy by %groups, %pos, %r, %w, %z
            : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, !moe.routing<40, experts = 2, k = 2>, tensor<2x16x8xbf16>, tensor<80x2x8xbf16>)
            -> (tensor<80x2x8xbf16>, tensor<80x8xbf16>, tensor<40x2xf32>)

    Constraints: (C1) w is [E,D,F] and dy [R,D]; (C2) z is [R,2,F] and groups are [1,E]; (C3) dz has z's type, act is [R,F], dots are f32 in pos' shape.
  }];
  let arguments = (ins AnyRankedTensor:$dy, AnyRankedTensor:$groups, AnyRankedTensor:$pos, Moe_RoutingType:$routing, AnyRankedTensor:$w, AnyRankedTensor:$z, Moe_ActivationAttr:$activation,
                       OptionalAttr<F64Attr>:$limit, OptionalAttr<F64Attr>:$alpha, OptionalAttr<F64Attr>:$up_shift);
  let results = (outs AnyRankedTensor:$dz, AnyRankedTensor:$act, AnyRankedTensor:$dots);
  let assemblyFormat = [{
    $activation $dy `by` $groups `,` $pos `,` $routing `,` $w `,` $z (`limit` $limit^)? (`alpha` $alpha^)? (`up_shift` $up_shift^)? attr-dict `:` functional-type(operands, results)
  }];
  let hasVerifier = 1;
}

#endif // MOIRA_PLAN_FUSED_OPS
