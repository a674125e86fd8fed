// Every numbered constraint of the updates has one case here that breaks it.
// RUN: moe-opt %s --split-input-file --verify-diagnostics

// adamw C1
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<5xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C1: a state and what changes it must have one shape}}
  moe.adamw %w, %m, %v by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<5xf32>, tensor<1xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// adamw C2
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<2xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C2: lr, step and factor must be one number}}
  moe.adamw %w, %m, %v by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<2xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// adamw C3: one state twice
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.adamw %w, %m, %m by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// adamw C3: no state
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.adamw %w, %m, %g by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// adamw C3: read later
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C3: nothing behind it may read or change the states}}
  moe.adamw %w, %m, %v by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> ()
  // expected-note @+1 {{this does}}
  %0 = moe.squares %w : (tensor<4xf32>) -> tensor<1xf32>
  return
}

// -----

// adamw C4
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C4: betas must be at least 0 and under 1}}
  moe.adamw %w, %m, %v by %g rate %lr step %step betas 1.0, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// adamw C4
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C4: eps and weight_decay must be finite and not negative}}
  moe.adamw %w, %m, %v by %g rate %lr step %step betas 0.9, 0.999 eps -1.0 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// expert_adamw C1: load
moe.state @w : tensor<4x2xf32>
moe.state @m : tensor<4x2xf32>
moe.state @v : tensor<4x2xf32>
moe.state @s : tensor<4xf32>
func.func @f(%g: tensor<4x2xf32>, %lr: tensor<1xf32>, %load: tensor<4xf32>, %other: tensor<2xf32>, %h: tensor<4x3xf32>) {
  %w = moe.param @w : tensor<4x2xf32>
  %m = moe.param @m : tensor<4x2xf32>
  %v = moe.param @v : tensor<4x2xf32>
  %s = moe.param @s : tensor<4xf32>
  // expected-error @+1 {{C1: steps and load must be [experts]}}
  moe.expert_adamw %w, %m, %v, %s by %g rate %lr load %other betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0
      : (tensor<4x2xf32>, tensor<4x2xf32>, tensor<4x2xf32>, tensor<4xf32>, tensor<4x2xf32>, tensor<1xf32>, tensor<2xf32>) -> ()
  return
}

// -----

// expert_adamw C1: grad
moe.state @w : tensor<4x2xf32>
moe.state @m : tensor<4x2xf32>
moe.state @v : tensor<4x2xf32>
moe.state @s : tensor<4xf32>
func.func @f(%g: tensor<4x2xf32>, %lr: tensor<1xf32>, %load: tensor<4xf32>, %other: tensor<2xf32>, %h: tensor<4x3xf32>) {
  %w = moe.param @w : tensor<4x2xf32>
  %m = moe.param @m : tensor<4x2xf32>
  %v = moe.param @v : tensor<4x2xf32>
  %s = moe.param @s : tensor<4xf32>
  // expected-error @+1 {{C1: a state and what changes it must have one shape}}
  moe.expert_adamw %w, %m, %v, %s by %h rate %lr load %load betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0
      : (tensor<4x2xf32>, tensor<4x2xf32>, tensor<4x2xf32>, tensor<4xf32>, tensor<4x3xf32>, tensor<1xf32>, tensor<4xf32>) -> ()
  return
}

// -----

// expert_adamw C2
moe.state @w : tensor<4x2xf32>
moe.state @m : tensor<4x2xf32>
moe.state @v : tensor<4x2xf32>
moe.state @s : tensor<4xf32>
func.func @f(%g: tensor<4x2xf32>, %lr: tensor<1xf32>, %load: tensor<4xf32>, %other: tensor<2xf32>, %h: tensor<4x3xf32>) {
  %w = moe.param @w : tensor<4x2xf32>
  %m = moe.param @m : tensor<4x2xf32>
  %v = moe.param @v : tensor<4x2xf32>
  %s = moe.param @s : tensor<4xf32>
  // expected-error @+1 {{C2: lr and factor must be one number}}
  moe.expert_adamw %w, %m, %v, %s by %g rate %other load %load betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0
      : (tensor<4x2xf32>, tensor<4x2xf32>, tensor<4x2xf32>, tensor<4xf32>, tensor<4x2xf32>, tensor<2xf32>, tensor<4xf32>) -> ()
  return
}

// -----

// expert_adamw C3: no state
moe.state @w : tensor<4x2xf32>
moe.state @m : tensor<4x2xf32>
moe.state @v : tensor<4x2xf32>
moe.state @s : tensor<4xf32>
func.func @f(%g: tensor<4x2xf32>, %lr: tensor<1xf32>, %load: tensor<4xf32>, %other: tensor<2xf32>, %h: tensor<4x3xf32>) {
  %w = moe.param @w : tensor<4x2xf32>
  %m = moe.param @m : tensor<4x2xf32>
  %v = moe.param @v : tensor<4x2xf32>
  %s = moe.param @s : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.expert_adamw %w, %m, %v, %load by %g rate %lr load %load betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0
      : (tensor<4x2xf32>, tensor<4x2xf32>, tensor<4x2xf32>, tensor<4xf32>, tensor<4x2xf32>, tensor<1xf32>, tensor<4xf32>) -> ()
  return
}

// -----

// expert_adamw C4
moe.state @w : tensor<4x2xf32>
moe.state @m : tensor<4x2xf32>
moe.state @v : tensor<4x2xf32>
moe.state @s : tensor<4xf32>
func.func @f(%g: tensor<4x2xf32>, %lr: tensor<1xf32>, %load: tensor<4xf32>, %other: tensor<2xf32>, %h: tensor<4x3xf32>) {
  %w = moe.param @w : tensor<4x2xf32>
  %m = moe.param @m : tensor<4x2xf32>
  %v = moe.param @v : tensor<4x2xf32>
  %s = moe.param @s : tensor<4xf32>
  // expected-error @+1 {{C4: betas must be at least 0 and under 1}}
  moe.expert_adamw %w, %m, %v, %s by %g rate %lr load %load betas 1.0, 0.999 eps 1.0e-8 weight_decay 0.0
      : (tensor<4x2xf32>, tensor<4x2xf32>, tensor<4x2xf32>, tensor<4xf32>, tensor<4x2xf32>, tensor<1xf32>, tensor<4xf32>) -> ()
  return
}

// -----

// sgd C1
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<5xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C1: a state and what changes it must have one shape}}
  moe.sgd %w with %m by %g rate %lr momentum 0.9 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<5xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// sgd C2
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<2xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C2: lr and factor must be one number}}
  moe.sgd %w with %m by %g rate %lr momentum 0.9 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<2xf32>) -> ()
  return
}

// -----

// sgd C3
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.sgd %w with %w by %g rate %lr momentum 0.9 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// sgd C4
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C4: momentum and weight_decay must be finite and not negative}}
  moe.sgd %w with %m by %g rate %lr momentum -0.9 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// sgd C5
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C5: a momentum needs a state}}
  moe.sgd %w by %g rate %lr momentum 0.9 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// squares C1
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C1: the result must have the shape of the kept dimensions, or [1]}}
  %0 = moe.squares %g : (tensor<4xf32>) -> tensor<2xf32>
  return
}

// -----

// clip_factor C1
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C1: squares, norm and factor must be one number each}}
  %0, %1 = moe.clip_factor %g max_norm 1.0 : (tensor<4xf32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}

// -----

// clip_factor C1: a digit is missing
func.func @f(%g: tensor<159xf32>, %one: tensor<1xf32>) {
  // expected-error @+1 {{C1: squares, norm and factor must be one number each, or squares 160 digits}}
  %0, %1 = moe.clip_factor %g max_norm 1.0 : (tensor<159xf32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}

// -----

// clip_factor C1: two norms
func.func @f(%g: tensor<159xf32>, %one: tensor<1xf32>) {
  // expected-error @+1 {{C1: squares, norm and factor must be one number each, or squares 160 digits}}
  %0, %1 = moe.clip_factor %one max_norm 1.0 : (tensor<1xf32>) -> (tensor<2xf32>, tensor<1xf32>)
  return
}

// -----

// clip_factor C1: two factors
func.func @f(%g: tensor<159xf32>, %one: tensor<1xf32>) {
  // expected-error @+1 {{C1: squares, norm and factor must be one number each, or squares 160 digits}}
  %0, %1 = moe.clip_factor %one max_norm 1.0 : (tensor<1xf32>) -> (tensor<1xf32>, tensor<2xf32>)
  return
}

// -----

// clip_factor C2
moe.state @w : tensor<4xf32>
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C2: max_norm must be finite and not negative}}
  %0, %1 = moe.clip_factor %lr max_norm -1.0 : (tensor<1xf32>) -> (tensor<1xf32>, tensor<1xf32>)
  return
}

// -----

// accumulate C1
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<5xf32>, %i: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C1: a state and what changes it must have one shape}}
  moe.accumulate %w by %x at %i : (tensor<4xf32>, tensor<5xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// accumulate C2
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<4xf32>, %i: tensor<2xi32>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C2: micro must be one number}}
  moe.accumulate %w by %x at %i : (tensor<4xf32>, tensor<4xf32>, tensor<2xi32>) -> ()
  return
}

// -----

// accumulate C3
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<4xf32>, %i: tensor<1xi32>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.accumulate %x by %x at %i : (tensor<4xf32>, tensor<4xf32>, tensor<1xi32>) -> ()
  return
}

// -----

// balance_bias C1
moe.state @w : tensor<2x2xf32>
func.func @f(%x: tensor<2x2xf32>) {
  %w = moe.param @w : tensor<2x2xf32>
  // expected-error @+1 {{C1: bias and load must have one dimension}}
  moe.balance_bias %w by %x rate 0.1 : (tensor<2x2xf32>, tensor<2x2xf32>) -> ()
  return
}

// -----

// balance_bias C2
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<4xf32>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C2: the rate must be finite and not negative}}
  moe.balance_bias %w by %x rate -0.1 : (tensor<4xf32>, tensor<4xf32>) -> ()
  return
}

// -----

// balance_bias C3
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<4xf32>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.balance_bias %x by %x rate 0.1 : (tensor<4xf32>, tensor<4xf32>) -> ()
  return
}

// -----

// state C4
// expected-error @+1 {{C4: what holds nothing between steps has no source}}
moe.state @w : tensor<4xf32> from #moe.source<names = ["a"], disk_shape = [4]> transient

// -----

// state C4
// expected-error @+1 {{C4: only a transient state may be partial}}
moe.state @w : tensor<4xf32, #dist.sharding<[{}], partial = sum{dp}>>

// -----

// squares C3
func.func @f(%x: tensor<4x2xf32>) {
  // expected-error @+1 {{C3: an exact sum must keep no dimension and have a result of [160]}}
  %0 = moe.squares exact %x keep 1 : (tensor<4x2xf32>) -> tensor<4xf32>
  return
}

// -----

// squares C2
func.func @f(%x: tensor<4x2xf32>) {
  // expected-error @+1 {{C2: keep and tail must not be negative, nor more than x has}}
  %0 = moe.squares %x keep 2 tail 1 : (tensor<4x2xf32>) -> tensor<4x2xf32>
  return
}

// -----

// second_moment C1
func.func @f(%v: tensor<4xf32>, %s: tensor<5xf32>, %i: tensor<1xi32>) {
  // expected-error @+1 {{C1: v, squares and the result must have one shape}}
  %0 = moe.second_moment %v by %s step %i count 2 decay 0.8 eps 0.0 : (tensor<4xf32>, tensor<5xf32>, tensor<1xi32>) -> tensor<4xf32>
  return
}

// -----

// second_moment C2
func.func @f(%v: tensor<4xf32>, %s: tensor<4xf32>, %i: tensor<2xi32>) {
  // expected-error @+1 {{C2: step and factor must be one number}}
  %0 = moe.second_moment %v by %s step %i count 2 decay 0.8 eps 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<2xi32>) -> tensor<4xf32>
  return
}

// -----

// second_moment C3
func.func @f(%v: tensor<4xf32>, %s: tensor<4xf32>, %i: tensor<1xi32>) {
  // expected-error @+1 {{C3: count must be at least 1, decay and eps finite and not negative}}
  %0 = moe.second_moment %v by %s step %i count 0 decay 0.8 eps 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<1xi32>) -> tensor<4xf32>
  return
}

// -----

// adafactor_norm C1
func.func @f(%g: tensor<4x3x2xf32>, %m0: tensor<4x3xf32>, %m1: tensor<4x2xf32>, %m2: tensor<4xf32>) {
  // expected-error @+1 {{C1: parameters, kept and rows do not fit}}
  %0 = moe.adafactor_norm %g by %m0, %m1, %m2 parameters 2 kept 1 rows 1 : (tensor<4x3x2xf32>, tensor<4x3xf32>, tensor<4x2xf32>, tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

// adafactor_norm C2
func.func @f(%g: tensor<4x3x2xf32>, %m0: tensor<4x3xf32>, %m1: tensor<4x2xf32>) {
  // expected-error @+1 {{C2: the moments are not those of the layout}}
  %0 = moe.adafactor_norm %g by %m0, %m1 parameters 1 kept 1 rows 1 : (tensor<4x3x2xf32>, tensor<4x3xf32>, tensor<4x2xf32>) -> tensor<4xf32>
  return
}

// -----

// adafactor_norm C2 shapes
func.func @f(%g: tensor<4x3x2xf32>, %m0: tensor<4x3xf32>, %m1: tensor<4x3xf32>, %m2: tensor<4xf32>) {
  // expected-error @+1 {{C2: the moments are not those of the layout}}
  %0 = moe.adafactor_norm %g by %m0, %m1, %m2 parameters 1 kept 1 rows 1 : (tensor<4x3x2xf32>, tensor<4x3xf32>, tensor<4x3xf32>, tensor<4xf32>) -> tensor<4xf32>
  return
}

// -----

// adafactor_norm C3
func.func @f(%g: tensor<4x3x2xf32>, %m0: tensor<4x3xf32>, %m1: tensor<4x2xf32>, %m2: tensor<4xf32>) {
  // expected-error @+1 {{C3: the result must have one number for each parameter}}
  %0 = moe.adafactor_norm %g by %m0, %m1, %m2 parameters 1 kept 1 rows 1 : (tensor<4x3x2xf32>, tensor<4x3xf32>, tensor<4x2xf32>, tensor<4xf32>) -> tensor<1xf32>
  return
}

// -----

// adafactor C1
moe.state @w : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %n: tensor<1xf32>, %lr: tensor<1xf32>, %f: tensor<3xf32>) {
  %w = moe.param @w : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C1: the moments are not those of the layout, or w is not like grad}}
  moe.adafactor %w with %v by %g to %f norms %n rate %lr parameters 0 kept 0 rows 0 count 4 clip 1.0 eps 1.0e-3 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<3xf32>, tensor<1xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// adafactor C2
moe.state @w : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %n: tensor<4xf32>, %lr: tensor<1xf32>, %f: tensor<4xf32>) {
  %w = moe.param @w : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C2: lr and factor must be one number, norms and weights one for each parameter}}
  moe.adafactor %w with %v by %g to %f norms %n rate %lr parameters 0 kept 0 rows 0 count 4 clip 1.0 eps 1.0e-3 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// adafactor C3
moe.state @w : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %n: tensor<1xf32>, %lr: tensor<1xf32>, %f: tensor<4xf32>) {
  %w = moe.param @w : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C3: what is updated must be parameters of different states}}
  moe.adafactor %g with %v by %g to %f norms %n rate %lr parameters 0 kept 0 rows 0 count 4 clip 1.0 eps 1.0e-3 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// adafactor C4
moe.state @w : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%g: tensor<4xf32>, %n: tensor<1xf32>, %lr: tensor<1xf32>, %f: tensor<4xf32>) {
  %w = moe.param @w : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C4: count and clip must be positive, eps and weight_decay finite and not negative}}
  moe.adafactor %w with %v by %g to %f norms %n rate %lr parameters 0 kept 0 rows 0 count 0 clip 1.0 eps 1.0e-3 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xf32>) -> ()
  return
}

// -----

// adamw C1: a result of another shape
moe.state @m : tensor<4xf32>
moe.state @v : tensor<4xf32>
func.func @f(%w: tensor<4xf32>, %g: tensor<4xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) {
  %m = moe.param @m : tensor<4xf32>
  %v = moe.param @v : tensor<4xf32>
  // expected-error @+1 {{C1: the weight before and after must have the gradient's shape}}
  %0 = moe.adamw %w, %m, %v by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.0 : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> tensor<5xf32>
  return
}

// -----

// assign C1
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<5xf32>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C1: a state and what changes it must have one shape}}
  moe.assign %w = %x : tensor<4xf32>, tensor<5xf32>
  return
}

// -----

// assign C2
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<4xbf16>) {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C2: the state and what it becomes must have one element type}}
  moe.assign %w = %x : tensor<4xf32>, tensor<4xbf16>
  return
}

// -----

// assign C3
moe.state @w : tensor<4xf32>
func.func @f(%x: tensor<4xf32>) -> tensor<4xf32> {
  %w = moe.param @w : tensor<4xf32>
  // expected-error @+1 {{C3: nothing behind it may read or change the states}}
  moe.assign %w = %x : tensor<4xf32>, tensor<4xf32>
  // expected-note @+1 {{this does}}
  return %w : tensor<4xf32>
}
