// Gradients become updates: states for what the optimizer keeps, inputs for rate and step, the norm of all gradients as a result.
// RUN: moe-opt %s --moe-add-optimizer="clip-norm=1.0" | FileCheck %s --check-prefixes=CHECK,ADAMW
// RUN: moe-opt %s --moe-add-optimizer="optimizer=sgd momentum=0.9 nesterov=true" | FileCheck %s --check-prefixes=CHECK,SGD

// CHECK: moe.state @w : tensor<4x8xf32> from
// ADAMW-DAG: moe.state @w.adamw.m : tensor<4x8xf32>{{$}}
// ADAMW-DAG: moe.state @w.adamw.v : tensor<4x8xf32>{{$}}
// SGD: moe.state @w.sgd.b : tensor<4x8xf32>{{$}}
moe.state @w : tensor<4x8xf32> from #moe.source<names = ["w"], disk_shape = [4, 8]>
// CHECK: moe.state @u : tensor<8xf32> from
moe.state @u : tensor<8xf32> from #moe.source<names = ["u"], disk_shape = [8]>

// CHECK-LABEL: func.func @train
// CHECK-SAME: %[[G:[a-z0-9]+]]: tensor<4x8xf32>
// CHECK-SAME: moe.name = "lr"
// ADAMW-SAME: moe.name = "step"
// CHECK-SAME: -> (tensor<1xf32> {moe.name = "loss"}, tensor<1xf32> {moe.name = "grad_norm"})
func.func @train(%g: tensor<4x8xf32> {moe.name = "g"}, %h: tensor<8xf32> {moe.name = "h"}, %loss: tensor<1xf32> {moe.name = "l"})
    -> (tensor<1xf32> {moe.name = "loss"}, tensor<4x8xf32> {moe.gradient_of = @w, moe.name = "grad.w"},
        tensor<8xf32> {moe.gradient_of = @u, moe.name = "grad.u"}) {
  // CHECK: %[[A:.*]] = moe.squares %[[G]]
  // CHECK: %[[B:.*]] = moe.squares
  // CHECK: %[[SUM:.*]] = moe.add %[[A]], %[[B]]
  // ADAMW: %[[NORM:.*]], %[[F:.*]] = moe.clip_factor %[[SUM]] max_norm 1.0
  // ADAMW: moe.adamw {{.*}} by %[[G]] rate {{.*}} factor %[[F]] betas
  // ADAMW: moe.adamw
  // SGD: %[[NORM:.*]], %{{.*}} = moe.clip_factor %[[SUM]] max_norm 0.0
  // SGD: moe.sgd {{.*}} with {{.*}} by %[[G]] rate %{{[a-z0-9]+}} momentum {{.*}} nesterov
  // SGD: moe.sgd
  // CHECK: return %{{.*}}, %[[NORM]] : tensor<1xf32>, tensor<1xf32>
  return %loss, %g, %h : tensor<1xf32>, tensor<4x8xf32>, tensor<8xf32>
}
