//===- MoeOptimizerOps.td - updates of weights --------------------------------*- tablegen -*-===//
// An update reads a gradient and changes states where they lie. It is element-wise: which part of a state a rank updates is where its shards and the
// reshards of its gradient are, and nothing else. A rank that holds more of a weight than it updates (ZeRO 1 and 2) updates a slice of it: then the new
// slice is a result, and moe.assign puts what is gathered of it into the state.
//===------------------------------------------------------------------------------------------===//
#ifndef MOIRA_MOE_OPTIMIZER_OPS
#define MOIRA_MOE_OPTIMIZER_OPS
include "Moe/MoeStateOps.td"
include "Moe/MoeDenseOps.td"
include "Moe/UpdateOpInterface.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

class Moe_UpdateOp<string mnemonic, string updated, list<Trait> traits = []>
    : Moe_Op<mnemonic, !listconcat(traits, [MemoryEffects<[MemRead, MemWrite]>, UpdateOpInterface,
        DeclareOpInterfaceMethods<ShardingRuleInterface, ["getFactorRule"]>])> {
  let hasVerifier = 1;
  let extraClassDeclaration = "::mlir::OperandRange getUpdated() {\n"
                              "  return (*this)->getOperands().take_front(" # updated # ").drop_front((*this)->getNumResults());\n"
                              "}";
}

def Moe_AdamWOp : Moe_UpdateOp<"adamw", "3"> {
  let summary = "one step of AdamW";
  let description = [{
    Changes w, m and v. With g = factor · grad (without a factor: grad), as torch.optim.AdamW: w −= lr·weight_decay·w; m = β1·m + (1−β1)·g; v = β2·v + (1−β2)·g²;
    w −= lr / (1−β1^step) · m / (sqrt(v / (1−β2^step)) + eps). `step` counts from 1 (Loshchilov and Hutter 2019, arXiv:1711.05101). With a result, w stays and the
    result is what it would become.

        moe.adamw %w, %m, %v by %grad rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.01
            : (tensor<64xf32>, tensor<64xf32>, tensor<64xf32>, tensor<64xf32>, tensor<1xf32>, tensor<1xi32>) -> ()

    Constraints: (C1) w, m, v, grad and the result have one shape and are f32, but for grad, which may be bf16; (C2) lr, step and factor have the shape [1]; (C3) w, m and v are parameters of different states that
    nothing behind this op reads or changes, with a result m and v; (C4) 0 ≤ β < 1, and eps and weight_decay are finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$w, Moe_F32Tensor:$m, Moe_F32Tensor:$v, Moe_Tensor:$grad, Moe_F32Tensor:$lr, Moe_I32Tensor:$step, Optional<Moe_F32Tensor>:$factor,
                       F64Attr:$beta1, F64Attr:$beta2, F64Attr:$eps, F64Attr:$weight_decay);
  let results = (outs Optional<Moe_F32Tensor>:$result);
  let assemblyFormat = [{
    $w `,` $m `,` $v `by` $grad `rate` $lr `step` $step (`factor` $factor^)? `betas` $beta1 `,` $beta2 `eps` $eps `weight_decay` $weight_decay attr-dict
    `:` functional-type(operands, results)
  }];
}

def Moe_ExpertAdamWOp : Moe_UpdateOp<"expert_adamw", "4"> {
  let summary = "one step of AdamW for every expert that has a gradient";
  let description = [{
    As `adamw`, for parameters that are one for each expert: dimension 0 is the expert. Where a model has its experts as modules of their own, one that no token came to has no
    gradient, and an optimizer passes it over. So nothing of an expert changes whose `load` is 0; the others' `steps` grow by 1, and are the steps that they are at. With a result, w stays and the
    result is what it would become.

        moe.expert_adamw %w, %m, %v, %steps by %grad rate %lr load %load betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.01
            : (tensor<8x64xf32>, tensor<8x64xf32>, tensor<8x64xf32>, tensor<8xf32>, tensor<8x64xf32>, tensor<1xf32>, tensor<8xf32>) -> ()

    Constraints: (C1) w, m, v, grad and the result have one shape [E,..] and are f32, but for grad, which may be bf16; steps and load have the shape [E]; (C2) lr and factor have the shape [1]; (C3) w, m, v and steps are
    parameters of different states that nothing behind this op reads or changes, with a result m, v and steps; (C4) 0 ≤ β < 1, and eps and weight_decay are finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$w, Moe_F32Tensor:$m, Moe_F32Tensor:$v, Moe_F32Tensor:$steps, Moe_Tensor:$grad, Moe_F32Tensor:$lr, Moe_F32Tensor:$load,
                       Optional<Moe_F32Tensor>:$factor, F64Attr:$beta1, F64Attr:$beta2, F64Attr:$eps, F64Attr:$weight_decay);
  let results = (outs Optional<Moe_F32Tensor>:$result);
  let assemblyFormat = [{
    $w `,` $m `,` $v `,` $steps `by` $grad `rate` $lr `load` $load (`factor` $factor^)? `betas` $beta1 `,` $beta2 `eps` $eps `weight_decay` $weight_decay attr-dict
    `:` functional-type(operands, results)
  }];
}

def Moe_SgdOp : Moe_UpdateOp<"sgd", "(getMomentumState() ? 2 : 1)", [AttrSizedOperandSegments]> {
  let summary = "one step of stochastic gradient descent";
  let description = [{
    Changes w, and the momentum b if there is one. With g = factor · grad, as torch.optim.SGD: g += weight_decay·w; b = momentum·b + g; w −= lr·(nesterov ? g + momentum·b : b).
    Without b: w −= lr·g. With a result, w stays and the result is what it would become.

        moe.sgd %w with %b by %grad rate %lr momentum 0.9 weight_decay 0.0 : (tensor<64xf32>, tensor<64xf32>, tensor<64xf32>, tensor<1xf32>) -> ()

    Constraints: (C1) w, b, grad and the result have one shape and are f32, but for grad, which may be bf16; (C2) lr and factor have the shape [1]; (C3) w and b are parameters of different states that nothing
    behind this op reads or changes, with a result b; (C4) momentum and weight_decay are finite and not negative; (C5) nesterov needs b, and so does a momentum that is not 0.
  }];
  let arguments = (ins Moe_F32Tensor:$w, Optional<Moe_F32Tensor>:$momentum_state, Moe_Tensor:$grad, Moe_F32Tensor:$lr, Optional<Moe_F32Tensor>:$factor,
                       F64Attr:$momentum, F64Attr:$weight_decay, UnitAttr:$nesterov);
  let results = (outs Optional<Moe_F32Tensor>:$result);
  let assemblyFormat = [{
    $w (`with` $momentum_state^)? `by` $grad `rate` $lr (`factor` $factor^)? `momentum` $momentum `weight_decay` $weight_decay (`nesterov` $nesterov^)? attr-dict
    `:` functional-type(operands, results)
  }];
}

def Moe_AssignOp : Moe_UpdateOp<"assign", "1"> {
  let summary = "a state becomes a value";
  let description = [{
        moe.assign %w = %new : tensor<64xf32>, tensor<64xf32>

    Constraints: (C1) both have one shape; (C2) and one element type; (C3) the state is a parameter that nothing behind this op reads or changes.
  }];
  let arguments = (ins Moe_StateTensor:$state, Moe_StateTensor:$x);
  let assemblyFormat = "$state `=` $x attr-dict `:` type($state) `,` type($x)";
}

def Moe_BalanceBiasOp : Moe_UpdateOp<"balance_bias", "1"> {
  let summary = "moves a selection bias towards an even load";
  let description = [{
    Changes bias: bias_e += rate · sign(mean of load − load_e), load being the choices of a step (Wang et al. 2024, arXiv:2408.15664).

        moe.balance_bias %bias by %load rate 1.0e-3 : (tensor<8xf32>, tensor<8xf32>) -> ()

    Constraints: (C1) bias and load have one shape [E] and are f32; (C2) rate is finite and not negative; (C3) bias is the parameter of a state that nothing behind this op reads or
    changes.
  }];
  let arguments = (ins Moe_F32Tensor:$bias, Moe_F32Tensor:$load, F64Attr:$rate);
  let assemblyFormat = "$bias `by` $load `rate` $rate attr-dict `:` functional-type(operands, results)";
}

def Moe_AccumulateOp : Moe_UpdateOp<"accumulate", "1"> {
  let summary = "adds what one micro-batch gives to what the step has so far";
  let description = [{
    Changes the state acc: acc = x in the first micro-batch (`micro` is 0), acc = acc + x in later ones. Linear: acc may be partial, then every rank adds its own part and the sum over the
    ranks is made where acc is read, once a step.

        moe.accumulate %acc by %grad at %micro : (tensor<64xf32>, tensor<64xf32>, tensor<1xi32>) -> ()

    Constraints: (C1) acc and x have one shape and are f32; (C2) micro has the shape [1]; (C3) acc is the parameter of a state that nothing behind this op reads or changes.
  }];
  let arguments = (ins Moe_F32Tensor:$acc, Moe_Tensor:$x, Moe_I32Tensor:$micro);
  let assemblyFormat = "$acc `by` $x `at` $micro attr-dict `:` functional-type(operands, results)";
}

def Moe_SquaresOp : Moe_RuleOp<"squares"> {
  let summary = "sums of squares";
  let description = [{
    x → [1], the sum of the squares of all elements; with `keep` n and `tail` m a sum for each place in the first n and the last m dimensions, which are the result's. Partial where a
    dimension is cut that is summed. `exact`: without rounding, as 160 digits of which each is worth 16 times the one before, the first 2^-304; digits of sums are sums of digits.

        %0 = moe.squares %grad : (tensor<64x32xf32>) -> tensor<1xf32>
        %1 = moe.squares %grad keep 1 tail 1 : (tensor<8x64x32xf32>) -> tensor<8x32xf32>

    Constraints: (C1) the result has the shape of the kept dimensions, [1] if there are none; (C2) keep and tail are not negative and not more than x has;
    (C3) an exact sum keeps no dimension, and its result is [160].
  }];
  let arguments = (ins Moe_Tensor:$x, DefaultValuedAttr<I64Attr, "0">:$keep, DefaultValuedAttr<I64Attr, "0">:$tail, UnitAttr:$exact);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "(`exact` $exact^)? $x (`keep` $keep^)? (`tail` $tail^)? attr-dict `:` functional-type(operands, results)";
}

def Moe_ClipFactorOp : Moe_RuleOp<"clip_factor"> {
  let summary = "the norm of all gradients, and what they are multiplied by so that it is at most max_norm";
  let description = [{
    squares → norm[1] = sqrt(squares), factor[1] = min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; with max_norm 0 the factor is 1.

        %norm, %factor = moe.clip_factor %squares max_norm 1.0 : (tensor<1xf32>) -> (tensor<1xf32>, tensor<1xf32>)

    Constraints: (C1) norm and factor are [1], squares [1] or the 160 digits of an exact moe.squares; (C2) max_norm is finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$squares, F64Attr:$max_norm);
  let results = (outs Moe_F32Tensor:$norm, Moe_F32Tensor:$factor);
  let assemblyFormat = "$squares `max_norm` $max_norm attr-dict `:` functional-type(operands, results)";
}

def Moe_SecondMomentOp : Moe_RuleOp<"second_moment"> {
  let summary = "Adafactor's average of squares, as it is after a step";
  let description = [{
    v[x..], squares[x..] → [x..]: β·v + (1−β)·(factor²·squares / count + eps) with β = 1 − step^−decay; without a factor 1. Every square is the sum of `count`.

        %v1 = moe.second_moment %v by %squares step %step count 64 decay 0.8 eps 1.0e-30 : (tensor<8xf32>, tensor<8xf32>, tensor<1xi32>) -> tensor<8xf32>

    Constraints: (C1) v, squares and the result have one shape; (C2) step and factor have the shape [1]; (C3) count ≥ 1, and decay and eps are finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$v, Moe_F32Tensor:$squares, Moe_I32Tensor:$step, Optional<Moe_F32Tensor>:$factor, I64Attr:$count, F64Attr:$decay, F64Attr:$eps);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$v `by` $squares `step` $step (`factor` $factor^)? `count` $count `decay` $decay `eps` $eps attr-dict `:` functional-type(operands, results)";
}

// How the dimensions of a state are parameters and matrices: the first `parameters` number parameters, the first `kept` (as many or more) number matrices, and the next
// `rows` are the rows of a matrix, what is left its columns. Moments of a matrix are those of its rows, of its columns, and of all of it: three tensors, whose dimensions are
// kept and rows, kept and columns, kept ([1] if there are none). Without rows the moments are one tensor, of the state's shape.
class Moe_Factored { dag layout = (ins I64Attr:$parameters, I64Attr:$kept, I64Attr:$rows); }

def Moe_AdafactorNormOp : Moe_RuleOp<"adafactor_norm">, Moe_Factored {
  let summary = "sums of the squares of Adafactor's updates";
  let description = [{
    grad[x..], moments → [parameters..], or [1]: Σ u² over each parameter, where u = grad / sqrt(r_i·c_j / m) with r, c and m the moments of the element's row, column and matrix, or
    u = grad / sqrt(v) where there are no rows. Partial where a parameter is cut.

        %0 = moe.adafactor_norm %grad by %r, %c, %m parameters 1 kept 1 rows 1 : (tensor<8x64x32xf32>, tensor<8x64xf32>, tensor<8x32xf32>, tensor<8xf32>) -> tensor<8xf32>

    Constraints: (C1) 0 ≤ parameters ≤ kept, rows ≥ 0, kept + rows less than grad's dimensions if there are rows, and kept no more than they are; (C2) the moments are three with rows,
    else one, of the shapes that these say; (C3) the result has the shape [parameters..], or [1].
  }];
  let arguments = !con((ins Moe_F32Tensor:$grad, Variadic<Moe_F32Tensor>:$moments), layout);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$grad `by` $moments `parameters` $parameters `kept` $kept `rows` $rows attr-dict `:` functional-type(operands, results)";
}

def Moe_AdafactorOp : Moe_UpdateOp<"adafactor", "(1 + getMoments().size())", [AttrSizedOperandSegments]>, Moe_Factored {
  let summary = "one step of Adafactor";
  let description = [{
    Changes w and its moments (Shazeer and Stern 2018, arXiv:1804.04235; as transformers.optimization.Adafactor, without a first moment). The moments become `fresh`. With u = factor · grad
    divided as in `adafactor_norm`, RMS_u = factor · sqrt(norms / count) of each parameter and a = lr, times max(eps, RMS_w) with RMS_w = sqrt(weights / count) where `weights` are given:
    w −= a·weight_decay·w + a·u / max(1, RMS_u / clip).

        moe.adafactor %w with %r, %c, %m by %grad to %r1, %c1, %m1 norms %u weights %ww rate %lr factor %f parameters 1 kept 1 rows 1 count 2048 clip 1.0 eps 1.0e-3 weight_decay 0.0
            : (tensor<8x64x32xf32>, tensor<8x64xf32>, tensor<8x32xf32>, tensor<8xf32>, tensor<8x64x32xf32>, tensor<8x64xf32>, tensor<8x32xf32>, tensor<8xf32>, tensor<8xf32>, tensor<8xf32>,
               tensor<1xf32>, tensor<1xf32>) -> ()

    Constraints: (C1) those of adafactor_norm's layout and moments, for both the moments and `fresh`, and w has grad's shape; (C2) lr and factor have the shape [1], norms and weights
    [parameters..] or [1]; (C3) w and the moments are parameters of different states that nothing behind this op reads or changes; (C4) count ≥ 1, clip is positive, and eps and
    weight_decay are finite and not negative.
  }];
  let arguments = !con((ins Moe_F32Tensor:$w, Variadic<Moe_F32Tensor>:$moments, Moe_F32Tensor:$grad, Variadic<Moe_F32Tensor>:$fresh, Moe_F32Tensor:$norms,
                            Optional<Moe_F32Tensor>:$weights, Moe_F32Tensor:$lr, Optional<Moe_F32Tensor>:$factor), layout,
                       (ins I64Attr:$count, F64Attr:$clip, F64Attr:$eps, F64Attr:$weight_decay));
  let assemblyFormat = [{
    $w `with` $moments `by` $grad `to` $fresh `norms` $norms (`weights` $weights^)? `rate` $lr (`factor` $factor^)? `parameters` $parameters `kept` $kept `rows` $rows
    `count` $count `clip` $clip `eps` $eps `weight_decay` $weight_decay attr-dict `:` functional-type(operands, results)
  }];
}

#endif // MOIRA_MOE_OPTIMIZER_OPS
