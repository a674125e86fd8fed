// Updates print and parse back to themselves, custom and generic form.
// RUN: moe-opt %s --verify-roundtrip | FileCheck %s
// RUN: moe-opt %s --mlir-print-op-generic | moe-opt - | FileCheck %s

moe.state @w : tensor<8x4xf32>
moe.state @w.m : tensor<8x4xf32>
moe.state @w.v : tensor<8x4xf32>
// CHECK: moe.state @x : tensor<8x4xf32> separate_experts
moe.state @x : tensor<8x4xf32> separate_experts
moe.state @x.m : tensor<8x4xf32>
moe.state @x.v : tensor<8x4xf32>
moe.state @x.steps : tensor<8xf32>
moe.state @u : tensor<8xf32>
moe.state @u.b : tensor<8xf32>
// CHECK: moe.state @sum : tensor<8x4xf32> layer 3 transient
moe.state @sum : tensor<8x4xf32> layer 3 transient
moe.state @bias : tensor<8xf32>
moe.state @e : tensor<8x4x2xf32>
moe.state @e.r : tensor<8x4xf32>
moe.state @e.c : tensor<8x2xf32>
moe.state @e.m : tensor<8xf32>
moe.state @s : tensor<8xf32>
moe.state @s.b : tensor<4xf32>
moe.state @t : tensor<8xf32>
moe.state @t.m : tensor<4xf32>
moe.state @t.v : tensor<4xf32>

// CHECK-LABEL: func.func @train
func.func @train(%g: tensor<8x4xf32>, %h: tensor<8xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) -> tensor<1xf32> {
  %w = moe.param @w : tensor<8x4xf32>
  %m = moe.param @w.m : tensor<8x4xf32>
  %v = moe.param @w.v : tensor<8x4xf32>
  %x = moe.param @x : tensor<8x4xf32>
  %xm = moe.param @x.m : tensor<8x4xf32>
  %xv = moe.param @x.v : tensor<8x4xf32>
  %xs = moe.param @x.steps : tensor<8xf32>
  %u = moe.param @u : tensor<8xf32>
  %b = moe.param @u.b : tensor<8xf32>
  // CHECK: %[[S:.*]] = moe.squares %{{.*}} : (tensor<8x4xf32>) -> tensor<1xf32>
  %0 = moe.squares %g : (tensor<8x4xf32>) -> tensor<1xf32>
  // CHECK: %[[N:.*]], %[[F:.*]] = moe.clip_factor %[[S]] max_norm 1.000000e+00 : (tensor<1xf32>) -> (tensor<1xf32>, tensor<1xf32>)
  %norm, %f = moe.clip_factor %0 max_norm 1.0 : (tensor<1xf32>) -> (tensor<1xf32>, tensor<1xf32>)
  // CHECK: moe.adamw %{{.*}}, %{{.*}}, %{{.*}} by %{{.*}} rate %{{.*}} step %{{.*}} factor %[[F]] betas {{.*}} eps {{.*}} weight_decay
  moe.adamw %w, %m, %v by %g rate %lr step %step factor %f betas 9.000000e-01, 9.990000e-01 eps 1.000000e-08 weight_decay 1.000000e-02
      : (tensor<8x4xf32>, tensor<8x4xf32>, tensor<8x4xf32>, tensor<8x4xf32>, tensor<1xf32>, tensor<1xi32>, tensor<1xf32>) -> ()
  // CHECK: moe.expert_adamw %{{.*}}, %{{.*}}, %{{.*}}, %{{.*}} by %{{.*}} rate %{{.*}} load %{{.*}} factor %[[F]] betas {{.*}} eps {{.*}} weight_decay
  moe.expert_adamw %x, %xm, %xv, %xs by %g rate %lr load %h factor %f betas 9.000000e-01, 9.990000e-01 eps 1.000000e-08 weight_decay 1.000000e-02
      : (tensor<8x4xf32>, tensor<8x4xf32>, tensor<8x4xf32>, tensor<8xf32>, tensor<8x4xf32>, tensor<1xf32>, tensor<8xf32>, tensor<1xf32>) -> ()
  // CHECK: moe.sgd %{{.*}} with %{{.*}} by %{{.*}} rate %{{.*}} factor %[[F]] momentum {{.*}} weight_decay {{.*}} nesterov :
  moe.sgd %u with %b by %h rate %lr factor %f momentum 9.000000e-01 weight_decay 0.000000e+00 nesterov
      : (tensor<8xf32>, tensor<8xf32>, tensor<8xf32>, tensor<1xf32>, tensor<1xf32>) -> ()
  return %norm : tensor<1xf32>
}

// CHECK-LABEL: func.func @accumulate
func.func @accumulate(%g: tensor<8x4xf32>, %load: tensor<8xf32>, %micro: tensor<1xi32>) {
  %sum = moe.param @sum : tensor<8x4xf32>
  %bias = moe.param @bias : tensor<8xf32>
  // CHECK: moe.accumulate %{{.*}} by %{{.*}} at %{{.*}} : (tensor<8x4xf32>, tensor<8x4xf32>, tensor<1xi32>) -> ()
  moe.accumulate %sum by %g at %micro : (tensor<8x4xf32>, tensor<8x4xf32>, tensor<1xi32>) -> ()
  // CHECK: moe.balance_bias %{{.*}} by %{{.*}} rate 1.000000e-03 : (tensor<8xf32>, tensor<8xf32>) -> ()
  moe.balance_bias %bias by %load rate 1.000000e-03 : (tensor<8xf32>, tensor<8xf32>) -> ()
  return
}

// CHECK-LABEL: func.func @adafactor
func.func @adafactor(%g: tensor<8x4x2xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>, %f: tensor<1xf32>) {
  %e = moe.param @e : tensor<8x4x2xf32>
  %r = moe.param @e.r : tensor<8x4xf32>
  %c = moe.param @e.c : tensor<8x2xf32>
  %m = moe.param @e.m : tensor<8xf32>
  // CHECK: moe.squares %{{.*}} keep 2 : (tensor<8x4x2xf32>) -> tensor<8x4xf32>
  %0 = moe.squares %g keep 2 : (tensor<8x4x2xf32>) -> tensor<8x4xf32>
  // CHECK: moe.squares %{{.*}} keep 1 tail 1 : (tensor<8x4x2xf32>) -> tensor<8x2xf32>
  %1 = moe.squares %g keep 1 tail 1 : (tensor<8x4x2xf32>) -> tensor<8x2xf32>
  %2 = moe.squares %g keep 1 : (tensor<8x4x2xf32>) -> tensor<8xf32>
  // CHECK: moe.second_moment %{{.*}} by %{{.*}} step %{{.*}} factor %{{.*}} count 2 decay 8.000000e-01 eps 1.000000e-30
  %r1 = moe.second_moment %r by %0 step %step factor %f count 2 decay 8.000000e-01 eps 1.000000e-30 : (tensor<8x4xf32>, tensor<8x4xf32>, tensor<1xi32>, tensor<1xf32>) -> tensor<8x4xf32>
  %c1 = moe.second_moment %c by %1 step %step count 4 decay 8.000000e-01 eps 1.000000e-30 : (tensor<8x2xf32>, tensor<8x2xf32>, tensor<1xi32>) -> tensor<8x2xf32>
  %m1 = moe.second_moment %m by %2 step %step count 8 decay 8.000000e-01 eps 1.000000e-30 : (tensor<8xf32>, tensor<8xf32>, tensor<1xi32>) -> tensor<8xf32>
  // CHECK: %[[N:.*]] = moe.adafactor_norm %{{.*}} by %{{.*}}, %{{.*}}, %{{.*}} parameters 1 kept 1 rows 1
  %n = moe.adafactor_norm %g by %r1, %c1, %m1 parameters 1 kept 1 rows 1 : (tensor<8x4x2xf32>, tensor<8x4xf32>, tensor<8x2xf32>, tensor<8xf32>) -> tensor<8xf32>
  // CHECK: moe.adafactor %{{.*}} with %{{.*}}, %{{.*}}, %{{.*}} by %{{.*}} to %{{.*}}, %{{.*}}, %{{.*}} norms %[[N]] weights %{{.*}} rate %{{.*}} factor %{{.*}} parameters 1 kept 1 rows 1 count 8
  moe.adafactor %e with %r, %c, %m by %g to %r1, %c1, %m1 norms %n weights %2 rate %lr factor %f parameters 1 kept 1 rows 1 count 8 clip 1.000000e+00 eps 1.000000e-03 weight_decay 0.000000e+00
      : (tensor<8x4x2xf32>, tensor<8x4xf32>, tensor<8x2xf32>, tensor<8xf32>, tensor<8x4x2xf32>, tensor<8x4xf32>, tensor<8x2xf32>, tensor<8xf32>, tensor<8xf32>, tensor<8xf32>,
         tensor<1xf32>, tensor<1xf32>) -> ()
  return
}

// Updates of a part of a weight give the new part, from which the state becomes a new whole.
// CHECK-LABEL: func.func @parts
func.func @parts(%g: tensor<4xf32>, %part: tensor<4xf32>, %whole: tensor<8xf32>, %lr: tensor<1xf32>, %step: tensor<1xi32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %s = moe.param @s : tensor<8xf32>
  %b = moe.param @s.b : tensor<4xf32>
  %t = moe.param @t : tensor<8xf32>
  %m = moe.param @t.m : tensor<4xf32>
  %v = moe.param @t.v : tensor<4xf32>
  // CHECK: %[[NEW:.*]] = moe.adamw %{{.*}} weight_decay {{.*}} -> tensor<4xf32>
  %0 = moe.adamw %part, %m, %v by %g rate %lr step %step betas 9.000000e-01, 9.990000e-01 eps 1.000000e-08 weight_decay 1.000000e-02
      : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>, tensor<1xi32>) -> tensor<4xf32>
  // CHECK: = moe.sgd %{{.*}} with %{{.*}} -> tensor<4xf32>
  %1 = moe.sgd %part with %b by %g rate %lr momentum 9.000000e-01 weight_decay 0.000000e+00
      : (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<1xf32>) -> tensor<4xf32>
  // CHECK: moe.assign %{{.*}} = %{{.*}} : tensor<8xf32>, tensor<8xf32>
  moe.assign %s = %whole : tensor<8xf32>, tensor<8xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
