// The backward half of an experts' layer between the cotangents of tokens and those of its first product is one call; cotangents' rows are selected without weights, which the call
// applies. What is not of this form keeps its operations: dots of something else, a glu with other numbers, rows that somebody else reads, a gate that weighs inputs.
// RUN: moe-opt %s --plan-fuse-glu-grad | FileCheck %s
// RUN: moe-opt %s --plan-fuse-glu-grad --plan-fuse-glu --plan-fuse-kernels --plan-lower=target=sm_90 | FileCheck %s --check-prefix=PLAN

// CHECK-LABEL: func.func @layer
// CHECK: %[[ROWS:[a-z_0-9]+]], %[[GROUPS:[a-z_0-9]+]], %[[POS:[a-z_0-9]+]], %{{.*}} = dist.select %{{[0-9]+}}, %[[R:[0-9]+]] need
// CHECK-NOT: grouped_input_grad
// CHECK: %[[DZ:[a-z_0-9]+]], %[[ACT:[a-z_0-9]+]], %[[DOTS:[a-z_0-9]+]] = plan.grouped_glu_grad silu %[[ROWS]] by %[[GROUPS]], %[[POS]], %[[R]], %{{.*}}, %{{[0-9]+}} limit
// CHECK: moe.grouped_weight_grad %[[ROWS]] by %[[GROUPS]], %[[ACT]] contract 1
// CHECK-NOT: choice_dots
// CHECK-NOT: moe.glu_grad
// CHECK: return %{{.*}}, %[[DZ]], %{{.*}}, %[[DOTS]]
// PLAN-LABEL: plan.program @layer
// PLAN: plan.call "grouped_glu"(%[[X:[0-9]+]], %{{.*}}) -> (%[[H:[0-9]+]], %[[Z:[0-9]+]]) {activation = "silu"
// PLAN: plan.call "select"(%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}) ->
// PLAN: plan.call "grouped_glu_grad"(%[[DY:[0-9]+]], %[[G:[0-9]+]], %{{[0-9]+}}, %[[Z]], %{{[0-9]+}}, %{{[0-9]+}}) -> (%{{[0-9]+}}, %[[ACT:[0-9]+]], %{{[0-9]+}}) {activation = "silu", alpha = 1.702000e+00 : f64, limit = 7.000000e+00 : f64, up_shift = 1.000000e+00 : f64}
// PLAN: plan.call "grouped_weight_grad"(%[[DY]], %[[G]], %[[ACT]])

// CHECK-LABEL: func.func @dots_of_others
// CHECK: plan.grouped_glu_grad
// CHECK: dist.choice_dots

// CHECK-LABEL: func.func @another_glu
// CHECK: weighted
// CHECK: moe.glu_grad
// CHECK-LABEL: func.func @rows_read_again
// CHECK: weighted
// CHECK: moe.glu_grad
// CHECK-LABEL: func.func @weighed_inputs
// CHECK: weighted
// CHECK: moe.glu_grad

!x = tensor<40x16xbf16>
!f = tensor<40x16xf32>
!rows = tensor<80x16xbf16>
!h = tensor<80x8xbf16>
!z = tensor<80x2x8xbf16>
!g = tensor<1x2xi32>
!pos = tensor<40x2xi32>
!dots = tensor<40x2xf32>
!dw = tensor<2x16x8xf32>
!routing = !moe.routing<40, experts = 2, k = 2>
dist.mesh @mesh [] = []
moe.state @up : tensor<2x2x8x16xbf16>
moe.state @down : tensor<2x16x8xbf16>
func.func @layer(%x: !x {moe.name = "x"}, %d: !f {moe.name = "d"}, %other: !f {moe.name = "o"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (!x {moe.name = "y"}, !z {moe.name = "dz"}, !dw {moe.name = "dw"}, !dots {moe.name = "dots"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %down = moe.param @down : tensor<2x16x8xbf16>
  %r = moe.route <k = 2> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %z = moe.grouped_matmul %rows by %groups, %up contract 1 : (!rows, !g, tensor<2x2x8x16xbf16>) -> !z
  %h = moe.glu silu %z limit 7.0 alpha 1.702 up_shift 1.0 : (!z) -> !h
  %out = moe.grouped_matmul %h by %groups, %down contract 1 : (!h, !g, tensor<2x16x8xbf16>) -> !rows
  %y = dist.merge %out, %pos, %r : (!rows, !pos, !routing) -> !x
  %dy = moe.scale %d by 1.0 : (!f) -> !x
  %back, %groups2, %pos2, %need2 = dist.select %dy, %r weighted need %need : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %dots = dist.choice_dots %out, %d, %pos : (!rows, !f, !pos) -> !dots
  %dh = moe.grouped_input_grad %back by %groups2, %down contract 1 : (!rows, !g, tensor<2x16x8xbf16>) -> !h
  %dw = moe.grouped_weight_grad %back by %groups2, %h contract 1 : (!rows, !g, !h) -> !dw
  %early = moe.scale %dw by 0.5 : (!dw) -> !dw
  %dz = moe.glu_grad silu %dh, %z limit 7.0 alpha 1.702 up_shift 1.0 : (!h, !z) -> !z
  return %y, %dz, %early, %dots : !x, !z, !dw, !dots
}
func.func @dots_of_others(%x: !x {moe.name = "x"}, %d: !f {moe.name = "d"}, %other: !f {moe.name = "o"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (!x {moe.name = "y"}, !z {moe.name = "dz"}, !dw {moe.name = "dw"}, !dots {moe.name = "dots"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %down = moe.param @down : tensor<2x16x8xbf16>
  %r = moe.route <k = 2> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %z = moe.grouped_matmul %rows by %groups, %up contract 1 : (!rows, !g, tensor<2x2x8x16xbf16>) -> !z
  %h = moe.glu silu %z limit 7.0 alpha 1.702 up_shift 1.0 : (!z) -> !h
  %out = moe.grouped_matmul %h by %groups, %down contract 1 : (!h, !g, tensor<2x16x8xbf16>) -> !rows
  %y = dist.merge %out, %pos, %r : (!rows, !pos, !routing) -> !x
  %dy = moe.scale %d by 1.0 : (!f) -> !x
  %back, %groups2, %pos2, %need2 = dist.select %dy, %r weighted need %need : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %dots = dist.choice_dots %out, %other, %pos : (!rows, !f, !pos) -> !dots
  %dh = moe.grouped_input_grad %back by %groups2, %down contract 1 : (!rows, !g, tensor<2x16x8xbf16>) -> !h
  %dw = moe.grouped_weight_grad %back by %groups2, %h contract 1 : (!rows, !g, !h) -> !dw
  %dz = moe.glu_grad silu %dh, %z limit 7.0 alpha 1.702 up_shift 1.0 : (!h, !z) -> !z
  return %y, %dz, %dw, %dots : !x, !z, !dw, !dots
}
func.func @another_glu(%x: !x {moe.name = "x"}, %d: !f {moe.name = "d"}, %other: !f {moe.name = "o"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (!x {moe.name = "y"}, !z {moe.name = "dz"}, !dw {moe.name = "dw"}, !dots {moe.name = "dots"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %down = moe.param @down : tensor<2x16x8xbf16>
  %r = moe.route <k = 2> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %z = moe.grouped_matmul %rows by %groups, %up contract 1 : (!rows, !g, tensor<2x2x8x16xbf16>) -> !z
  %h = moe.glu silu %z limit 7.0 alpha 1.702 up_shift 1.0 : (!z) -> !h
  %out = moe.grouped_matmul %h by %groups, %down contract 1 : (!h, !g, tensor<2x16x8xbf16>) -> !rows
  %y = dist.merge %out, %pos, %r : (!rows, !pos, !routing) -> !x
  %dy = moe.scale %d by 1.0 : (!f) -> !x
  %back, %groups2, %pos2, %need2 = dist.select %dy, %r weighted need %need : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %dots = dist.choice_dots %out, %d, %pos : (!rows, !f, !pos) -> !dots
  %dh = moe.grouped_input_grad %back by %groups2, %down contract 1 : (!rows, !g, tensor<2x16x8xbf16>) -> !h
  %dw = moe.grouped_weight_grad %back by %groups2, %h contract 1 : (!rows, !g, !h) -> !dw
  %dz = moe.glu_grad silu %dh, %z limit 6.0 alpha 1.702 up_shift 1.0 : (!h, !z) -> !z
  return %y, %dz, %dw, %dots : !x, !z, !dw, !dots
}
func.func @rows_read_again(%x: !x {moe.name = "x"}, %d: !f {moe.name = "d"}, %other: !f {moe.name = "o"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (!x {moe.name = "y"}, !z {moe.name = "dz"}, !dw {moe.name = "dw"}, !dots {moe.name = "dots"}, !rows {moe.name = "rows"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %down = moe.param @down : tensor<2x16x8xbf16>
  %r = moe.route <k = 2> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %z = moe.grouped_matmul %rows by %groups, %up contract 1 : (!rows, !g, tensor<2x2x8x16xbf16>) -> !z
  %h = moe.glu silu %z limit 7.0 alpha 1.702 up_shift 1.0 : (!z) -> !h
  %out = moe.grouped_matmul %h by %groups, %down contract 1 : (!h, !g, tensor<2x16x8xbf16>) -> !rows
  %y = dist.merge %out, %pos, %r : (!rows, !pos, !routing) -> !x
  %dy = moe.scale %d by 1.0 : (!f) -> !x
  %back, %groups2, %pos2, %need2 = dist.select %dy, %r weighted need %need : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %dots = dist.choice_dots %out, %d, %pos : (!rows, !f, !pos) -> !dots
  %dh = moe.grouped_input_grad %back by %groups2, %down contract 1 : (!rows, !g, tensor<2x16x8xbf16>) -> !h
  %dw = moe.grouped_weight_grad %back by %groups2, %h contract 1 : (!rows, !g, !h) -> !dw
  %dz = moe.glu_grad silu %dh, %z limit 7.0 alpha 1.702 up_shift 1.0 : (!h, !z) -> !z
  return %y, %dz, %dw, %dots, %back : !x, !z, !dw, !dots, !rows
}
func.func @weighed_inputs(%x: !x {moe.name = "x"}, %d: !f {moe.name = "d"}, %other: !f {moe.name = "o"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (!x {moe.name = "y"}, !z {moe.name = "dz"}, !dw {moe.name = "dw"}, !dots {moe.name = "dots"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %down = moe.param @down : tensor<2x16x8xbf16>
  %r = moe.route <k = 2, apply = input> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %z = moe.grouped_matmul %rows by %groups, %up contract 1 : (!rows, !g, tensor<2x2x8x16xbf16>) -> !z
  %h = moe.glu silu %z limit 7.0 alpha 1.702 up_shift 1.0 : (!z) -> !h
  %out = moe.grouped_matmul %h by %groups, %down contract 1 : (!h, !g, tensor<2x16x8xbf16>) -> !rows
  %y = dist.merge %out, %pos, %r : (!rows, !pos, !routing) -> !x
  %dy = moe.scale %d by 1.0 : (!f) -> !x
  %back, %groups2, %pos2, %need2 = dist.select %dy, %r weighted need %need : (!x, !routing, tensor<1xi32>) -> (!rows, !g, !pos, tensor<1xi32>)
  %dots = dist.choice_dots %out, %d, %pos : (!rows, !f, !pos) -> !dots
  %dh = moe.grouped_input_grad %back by %groups2, %down contract 1 : (!rows, !g, tensor<2x16x8xbf16>) -> !h
  %dw = moe.grouped_weight_grad %back by %groups2, %h contract 1 : (!rows, !g, !h) -> !dw
  %dz = moe.glu_grad silu %dh, %z limit 7.0 alpha 1.702 up_shift 1.0 : (!h, !z) -> !z
  return %y, %dz, %dw, %dots : !x, !z, !dw, !dots
}
