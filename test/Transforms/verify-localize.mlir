// --dist-verify-localize refuses programs that are not local, or do not say what they were.
// RUN: moe-opt %s --split-input-file --verify-diagnostics --dist-verify-localize

dist.mesh @mesh ["dp"] = [2]
// expected-error @+2 {{MOE-0601: argument 0 has no `dist.global` with a sharding}}
// expected-error @+1 {{MOE-0601: argument 1 is 'tensor<4xf32>', its global type 'tensor<4xf32, #dist.sharding<[{dp}]>>' gives another shape}}
func.func @global(%x: tensor<4xf32>, %y: tensor<4xf32> {dist.global = tensor<4xf32, #dist.sharding<[{dp}]>>}) {
  return
}

// -----

dist.mesh @mesh ["dp"] = [2]
func.func @leftovers() {
  // expected-error @+1 {{MOE-0601: moe.positions still has a sharding}}
  %0 = moe.positions : tensor<4xi32, #dist.sharding<[{dp}]>>
  %1 = moe.positions : tensor<4xi32>
  // expected-error @+1 {{MOE-0601: a slice without a start}}
  %2 = dist.slice %1 dim 0 over ["dp"] : tensor<4xi32> -> tensor<2xi32>
  return
}

// -----

dist.mesh @mesh ["dp"] = [2]
func.func @routings(%logits: tensor<3x4xf32> {dist.global = tensor<6x4xf32, #dist.sharding<[{dp}, {}]>>}) {
  // expected-error @+1 {{MOE-0601: the routing has no `dist.global` with a sharding}}
  %a = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.000000e+00 : f64> of %logits : (tensor<3x4xf32>) -> !moe.routing<3, experts = 4, k = 2>
  // expected-error @+1 {{MOE-0601: the routing is '!moe.routing<3, experts = 4, k = 2>', its global type '!moe.routing<4, experts = 4, k = 2, #dist.sharding<[{dp}]>>' gives another shape}}
  %b = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.000000e+00 : f64> of %logits {dist.global = !moe.routing<4, experts = 4, k = 2, #dist.sharding<[{dp}]>>} : (tensor<3x4xf32>) -> !moe.routing<3, experts = 4, k = 2>
  return
}

// -----

func.func @two_bounds(%x: tensor<3x8xf32> {dist.global = tensor<3x8xf32, #dist.sharding<[{}, {}]>>}) {
  %r0 = moe.param @a : tensor<4x8xf32>
  %logits = moe.linear %x, %r0 contract 1 : (tensor<3x8xf32>, tensor<4x8xf32>) -> tensor<3x4xf32>
  %r = moe.route <k = 2, score = softmax, order = score_topk, renorm = sum, scale = 1.000000e+00 : f64> of %logits {dist.global = !moe.routing<3, experts = 4, k = 2, #dist.sharding<[{}]>>} : (tensor<3x4xf32>) -> !moe.routing<3, experts = 4, k = 2>
  %0 = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %0 : (tensor<3x8xf32>, !moe.routing<3, experts = 4, k = 2>, tensor<1xi32>) -> (tensor<3x8xf32, #dist.rows<0, 1>>, tensor<1x2xi32>, tensor<3x2xi32>, tensor<1xi32>)
  // expected-error @+1 {{MOE-0601: a program has one bound, here are 3 and 4}}
  %rows2, %groups2, %pos2, %need2 = dist.select %x, %r need %0 : (tensor<3x8xf32>, !moe.routing<3, experts = 4, k = 2>, tensor<1xi32>) -> (tensor<4x8xf32, #dist.rows<0, 1>>, tensor<1x2xi32>, tensor<3x2xi32>, tensor<1xi32>)
  // expected-error @+1 {{MOE-0601: malformed rows}}
  %rows3, %groups3, %pos3, %need3 = dist.select %x, %r need %0 : (tensor<3x8xf32>, !moe.routing<3, experts = 4, k = 2>, tensor<1xi32>) -> (tensor<3x8xf32, #dist.rows<0, 2>>, tensor<1x2xi32>, tensor<3x2xi32>, tensor<1xi32>)
  return
}
moe.state @a : tensor<4x8xf32>
