// Routers leave traces: which global tensor each rank's choices are a shard of, named by layer where layers tell the routers apart.
// RUN: moe-opt %s --split-input-file --plan-lower | FileCheck %s
// RUN: moe-opt %s --split-input-file --plan-lower --plan-schedule --plan-insert-events --plan-allocate | FileCheck %s

// CHECK: plan.program @forward ranks 4
// CHECK-DAG: plan.call "route"(%{{.*}}) -> (%[[I0:.*]], %[[W0:.*]]) {{.*}} layer 2
// CHECK-DAG: plan.call "route"(%{{.*}}) -> (%[[I1:.*]], %[[W1:.*]]) {{.*}} layer 5
// CHECK: plan.output "y"
// CHECK-NEXT: plan.trace "layers.2.ids" %[[I0]] : tensor<2x6x2xi32, #dist.sharding<[{dp}, {ep}, {}]>> : <1x3x2xi32>
// CHECK-NEXT: plan.trace "layers.2.weights" %[[W0]] : tensor<2x6x2xf32, #dist.sharding<[{dp}, {ep}, {}]>> : <1x3x2xf32>
// CHECK-NEXT: plan.trace "layers.5.ids" %[[I1]] : tensor<1x3x2xi32> : <1x3x2xi32>
// CHECK-NEXT: plan.trace "layers.5.weights" %[[W1]] : tensor<1x3x2xf32> : <1x3x2xf32>
dist.mesh @mesh ["dp", "ep"] = [2, 2]
func.func @forward(%x: tensor<1x3x4xf32> {moe.name = "x", dist.global = tensor<2x6x4xf32, #dist.sharding<[{dp}, {ep}, {}]>>})
    -> (tensor<1x3x4xf32> {moe.name = "y", dist.global = tensor<2x6x4xf32, #dist.sharding<[{dp}, {ep}, {}]>>}) {
  %a = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %x {dist.global = !moe.routing<2x6, experts = 4, k = 2, #dist.sharding<[{dp}, {ep}]>>} : (tensor<1x3x4xf32>) -> !moe.routing<1x3, experts = 4, k = 2> loc("model.layers.2.mlp")
  %b = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %x {dist.global = !moe.routing<1x3, experts = 4, k = 2, #dist.sharding<[{}, {}]>>} : (tensor<1x3x4xf32>) -> !moe.routing<1x3, experts = 4, k = 2> loc("model.layers.5.mlp")
  return %x : tensor<1x3x4xf32>
}

// -----

// Two routers in one layer are numbered; one rank needs no note about the cut. A mesh without notes has no traces.
// CHECK: plan.program @one ranks 1
// CHECK: plan.trace "layers.0.ids"
// CHECK: plan.trace "layers.1.ids" %{{.*}} : tensor<1x3x2xi32> : <1x3x2xi32>
func.func @one(%x: tensor<1x3x4xf32> {moe.name = "x"}) -> (tensor<1x3x4xf32> {moe.name = "y"}) {
  %a = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %x : (tensor<1x3x4xf32>) -> !moe.routing<1x3, experts = 4, k = 2> loc("model.layers.2.mlp")
  %b = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %x : (tensor<1x3x4xf32>) -> !moe.routing<1x3, experts = 4, k = 2> loc("model.layers.2.mlp")
  return %x : tensor<1x3x4xf32>
}

// -----

// CHECK: plan.program @unnoted ranks 2
// CHECK-NOT: plan.trace
dist.mesh @mesh ["ep"] = [2]
func.func @unnoted(%x: tensor<1x3x4xf32> {moe.name = "x"}) -> (tensor<1x3x4xf32> {moe.name = "y"}) {
  %a = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.0 : f64> of %x : (tensor<1x3x4xf32>) -> !moe.routing<1x3, experts = 4, k = 2> loc("model.layers.2.mlp")
  return %x : tensor<1x3x4xf32>
}
