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

    Constraints: (C1) w, m, v, grad and the result have one shape and are f32; (C2) lr, step and factor have the shape [1]; (C3) w, m and v are parameters of different states that
    nothing behind this op reads or changes, with a result m and v; (C4) 0 ≤ β < 1, and eps and weight_decay are finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$w, Moe_F32Tensor:$m, Moe_F32Tensor:$v, Moe_F32Tensor:$grad, Moe_F32Tensor:$lr, Moe_I32Tensor:$step, Optional<Moe_F32Tensor>:$factor,
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

    Constraints: (C1) w, m, v, grad and the result have one shape [E,..] and are f32, steps and load have the shape [E]; (C2) lr and factor have the shape [1]; (C3) w, m, v and steps are
    parameters of different states that nothing behind this op reads or changes, with a result m, v and steps; (C4) 0 ≤ β < 1, and eps and weight_decay are finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$w, Moe_F32Tensor:$m, Moe_F32Tensor:$v, Moe_F32Tensor:$steps, Moe_F32Tensor:$grad, Moe_F32Tensor:$lr, Moe_F32Tensor:$load,
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

    Constraints: (C1) w, b, grad and the result have one shape and are f32; (C2) lr and factor have the shape [1]; (C3) w and b are parameters of different states that nothing
    behind this op reads or changes, with a result b; (C4) momentum and weight_decay are finite and not negative; (C5) nesterov needs b, and so does a momentum that is not 0.
  }];
  let arguments = (ins Moe_F32Tensor:$w, Optional<Moe_F32Tensor>:$momentum_state, Moe_F32Tensor:$grad, Moe_F32Tensor:$lr, Optional<Moe_F32Tensor>:$factor,
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

def Moe_SquaresOp : Moe_RuleOp<"squares"> {
  let summary = "the sum of the squares of all elements";
  let description = [{
    x → [1]. Partial where any dimension is cut.

        %0 = moe.squares %grad : (tensor<64x32xf32>) -> tensor<1xf32>

    Constraints: (C1) the result has the shape [1].
  }];
  let arguments = (ins Moe_Tensor:$x);
  let results = (outs Moe_F32Tensor:$result);
  let assemblyFormat = "$x attr-dict `:` functional-type(operands, results)";
}

def Moe_ClipFactorOp : Moe_RuleOp<"clip_factor"> {
  let summary = "the norm of all gradients, and what they are multiplied by so that it is at most max_norm";
  let description = [{
    squares[1] → norm[1] = sqrt(squares), factor[1] = min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; with max_norm 0 the factor is 1.

        %norm, %factor = moe.clip_factor %squares max_norm 1.0 : (tensor<1xf32>) -> (tensor<1xf32>, tensor<1xf32>)

    Constraints: (C1) all have the shape [1]; (C2) max_norm is finite and not negative.
  }];
  let arguments = (ins Moe_F32Tensor:$squares, F64Attr:$max_norm);
  let results = (outs Moe_F32Tensor:$norm, Moe_F32Tensor:$factor);
  let assemblyFormat = "$squares `max_norm` $max_norm attr-dict `:` functional-type(operands, results)";
}

#endif // MOIRA_MOE_OPTIMIZER_OPS
