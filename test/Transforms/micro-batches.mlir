// A program of losses and gradients becomes one that adds them up and one that gives the sums, which an optimizer is then added to; what no loss
// depends on is left out, and the reference program takes the batch as a whole.
// RUN: moe-opt %s --moe-micro-batches="parts=4" | FileCheck %s
// RUN: moe-opt %s --moe-micro-batches="parts=1" | FileCheck %s --check-prefix=WHOLE
// RUN: moe-opt %s --moe-micro-batches="parts=4" --moe-add-optimizer | FileCheck %s --check-prefix=ADAMW

// CHECK: moe.state @loss.accumulated : tensor<1xf32> transient
// CHECK: moe.state @w : tensor<4x8xf32> from
// CHECK: moe.state @w.accumulated : tensor<4x8xf32> layer 2 transient
// CHECK-NOT: @u.accumulated
moe.state @w : tensor<4x8xf32> from #moe.source<names = ["w"], disk_shape = [4, 8]> layer 2
moe.state @u : tensor<8xf32> from #moe.source<names = ["u"], disk_shape = [8]>

// CHECK: func.func @accumulate(%[[G:.*]]: tensor<4x8xf32>
// CHECK-SAME: %[[MICRO:[a-z0-9]+]]: tensor<1xi32> {moe.fill = 0.0{{.*}}, moe.name = "micro_batch", moe.optional, moe.range = array<i64: 0, 3>}
// CHECK-SAME: -> (tensor<2xf32> {moe.name = "dropped_choices"})
// CHECK: %[[W:.*]] = moe.param @w.accumulated
// CHECK: %[[L:.*]] = moe.param @loss.accumulated
// CHECK: moe.accumulate %[[L]] by %{{.*}} at %[[MICRO]]
// CHECK: moe.accumulate %[[W]] by %[[G]] at %[[MICRO]]
// CHECK: func.func @update() -> (tensor<1xf32> {moe.loss_weight = 1.0{{.*}}, moe.name = "loss"}, tensor<4x8xf32> {moe.gradient_of = @w, moe.name = "grad.w"})
// CHECK: func.func @reference
// CHECK-SAME: moe.gradient_of = @w
// WHOLE: func.func @train
// WHOLE-NOT: @update

// ADAMW: func.func @update
// ADAMW-SAME: moe.name = "lr"
// ADAMW-SAME: -> (tensor<1xf32> {{.*}}moe.name = "loss"}, tensor<1xf32> {moe.name = "grad_norm"})
// ADAMW: %[[SUM:.*]] = moe.param @w.accumulated
// ADAMW: moe.adamw {{.*}} by %[[SUM]]
// ADAMW-NOT: moe.adamw
// ADAMW: func.func @reference
func.func @train(%g: tensor<4x8xf32> {moe.name = "g"}, %loss: tensor<1xf32> {moe.name = "l"}, %d: tensor<2xf32> {moe.name = "d"})
    -> (tensor<1xf32> {moe.loss_weight = 1.0 : f64, moe.name = "loss"}, tensor<2xf32> {moe.name = "dropped_choices"},
        tensor<4x8xf32> {moe.gradient_of = @w, moe.name = "grad.w"}, tensor<8xf32> {moe.gradient_of = @u, moe.name = "grad.u"}) {
  %zero = moe.full 0.0 : tensor<8xf32>
  return %loss, %d, %g, %zero : tensor<1xf32>, tensor<2xf32>, tensor<4x8xf32>, tensor<8xf32>
}
func.func @reference(%g: tensor<4x8xf32> {moe.name = "g"}, %loss: tensor<1xf32> {moe.name = "l"})
    -> (tensor<1xf32> {moe.loss_weight = 1.0 : f64, moe.name = "loss"}, tensor<4x8xf32> {moe.gradient_of = @w, moe.name = "grad.w"})
    attributes {moe.reference} {
  return %loss, %g : tensor<1xf32>, tensor<4x8xf32>
}
