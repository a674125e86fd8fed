// A glu of experts' rows is made by their product, which gathers the rows that nobody else reads. It
// takes bf16; a product that is read later is kept, if there are more than 16 rows a group; rows that are read
// again are selected as ever, and what is weighted is.
// RUN: moe-opt %s --plan-fuse-glu --plan-fuse-kernels --plan-lower=target=sm_90 | FileCheck %s
// RUN: moe-opt %s --plan-fuse-glu | FileCheck %s --check-prefix=MARKS
// RUN: moe-opt %s --plan-fuse-kernels --plan-lower=target=sm_90 | FileCheck %s --check-prefix=PLAIN

// CHECK-LABEL: plan.program @gathered
// CHECK: plan.input "x" %[[X:[0-9]+]] :
// CHECK: plan.call "select_tokens"(%[[IDS:[0-9]+]], %{{.*}}) -> (%[[TOKENS:[0-9]+]], %[[GROUPS:[0-9]+]], %[[POS:[0-9]+]], %{{.*}}) {expert_offset = #dist.offset<{} * 0>, experts = 2 : i64}
// CHECK-SAME: -> (!plan.view<80xi32>, !plan.view<1x2xi32>,
// CHECK: plan.call "grouped_glu"(%[[X]], %[[GROUPS]], %{{.*}}, %[[TOKENS]]) -> (%[[H:[0-9]+]]) {activation = "silu", alpha = 1.702000e+00 : f64, contract = 1 : i64, limit = 7.000000e+00 : f64, up_shift = 1.000000e+00 : f64}
// CHECK: plan.call "grouped_matmul"(%[[H]], %[[GROUPS]], %{{.*}}) -> (%[[ROWS:[0-9]+]]) {contract = 1 : i64}
// CHECK: plan.call "combine"(%[[ROWS]], %[[POS]],
// CHECK-NOT: plan.call "select"(
// CHECK-NOT: plan.call "glu"
// MARKS-LABEL: func.func @gathered
// MARKS: dist.select {{.*}}plan.numbers_only
// MARKS: moe.glu {{.*}}plan.in_product
// PLAIN-LABEL: plan.program @gathered
// PLAIN: plan.call "select"(
// PLAIN-NOT: plan.call "grouped_glu"

// CHECK-LABEL: plan.program @read_twice
// CHECK: plan.call "select"(%{{.*}}) -> (%[[ROWS:[0-9]+]], %[[GROUPS:[0-9]+]],
// CHECK: plan.call "grouped_glu"(%[[ROWS]], %[[GROUPS]], %{{[0-9]+}}) ->
// MARKS-LABEL: func.func @read_twice
// MARKS-NOT: plan.numbers_only
// MARKS: plan.in_product

// CHECK-LABEL: plan.program @product_read_twice
// CHECK: plan.call "grouped_glu"(%{{[0-9]+}}, %{{[0-9]+}}, %{{[0-9]+}}) -> (%{{[0-9]+}}, %{{[0-9]+}})
// CHECK-NOT: plan.call "grouped_matmul"
// CHECK-LABEL: plan.program @odd_width

// MARKS-LABEL: func.func @few_rows
// MARKS: plan.in_product
// MARKS-LABEL: func.func @product_read_twice
// MARKS: plan.in_product
// MARKS-LABEL: func.func @odd_width
// MARKS-NOT: plan.in_product

!x = tensor<40x16xbf16>
!routing = !moe.routing<40, experts = 2, k = 2>
dist.mesh @mesh [] = []
moe.state @up : tensor<2x2x8x16xbf16>
moe.state @down : tensor<2x16x8xbf16>
moe.state @odd : tensor<2x2x4x16xbf16>
func.func @gathered(%x: !x {moe.name = "x"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (!x {moe.name = "y"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %down = moe.param @down : tensor<2x16x8xbf16>
  %r = moe.route <k = 2> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, tensor<1xi32>)
  %p = moe.grouped_matmul %rows by %groups, %up contract 1 : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<2x2x8x16xbf16>) -> tensor<80x2x8xbf16>
  %h = moe.glu silu %p {limit = 7.0 : f64, alpha = 1.702 : f64, up_shift = 1.0 : f64} : (tensor<80x2x8xbf16>) -> tensor<80x8xbf16>
  %d = moe.grouped_matmul %h by %groups, %down contract 1 : (tensor<80x8xbf16>, tensor<1x2xi32>, tensor<2x16x8xbf16>) -> tensor<80x16xbf16>
  %y = dist.merge %d, %pos, %r : (tensor<80x16xbf16>, tensor<40x2xi32>, !routing) -> !x
  return %y : !x
}
func.func @read_twice(%x: !x {moe.name = "x"}, %l: tensor<40x2xf32> {moe.name = "l"}) -> (tensor<80x8xbf16> {moe.name = "y"}, tensor<80x16xbf16> {moe.name = "z"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %r = moe.route <k = 2> of %l : (tensor<40x2xf32>) -> !routing
  %zero = dist.zero_need : tensor<1xi32>
  %rows, %groups, %pos, %need = dist.select %x, %r need %zero : (!x, !routing, tensor<1xi32>) -> (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<40x2xi32>, tensor<1xi32>)
  %p = moe.grouped_matmul %rows by %groups, %up contract 1 : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<2x2x8x16xbf16>) -> tensor<80x2x8xbf16>
  %h = moe.glu silu %p : (tensor<80x2x8xbf16>) -> tensor<80x8xbf16>
  return %h, %rows : tensor<80x8xbf16>, tensor<80x16xbf16>
}
func.func @few_rows(%rows: tensor<32x16xbf16> {moe.name = "x"}, %groups: tensor<1x2xi32> {moe.name = "g"}) -> (tensor<32x8xbf16> {moe.name = "y"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %p = moe.grouped_matmul %rows by %groups, %up contract 1 : (tensor<32x16xbf16>, tensor<1x2xi32>, tensor<2x2x8x16xbf16>) -> tensor<32x2x8xbf16>
  %h = moe.glu silu %p : (tensor<32x2x8xbf16>) -> tensor<32x8xbf16>
  return %h : tensor<32x8xbf16>
}
func.func @product_read_twice(%rows: tensor<80x16xbf16> {moe.name = "x"}, %groups: tensor<1x2xi32> {moe.name = "g"}) -> (tensor<80x8xbf16> {moe.name = "y"}, tensor<80x2x8xbf16> {moe.name = "z"}) {
  %up = moe.param @up : tensor<2x2x8x16xbf16>
  %p = moe.grouped_matmul %rows by %groups, %up contract 1 : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<2x2x8x16xbf16>) -> tensor<80x2x8xbf16>
  %h = moe.glu silu %p : (tensor<80x2x8xbf16>) -> tensor<80x8xbf16>
  return %h, %p : tensor<80x8xbf16>, tensor<80x2x8xbf16>
}
func.func @odd_width(%rows: tensor<80x16xbf16> {moe.name = "x"}, %groups: tensor<1x2xi32> {moe.name = "g"}) -> (tensor<80x4xbf16> {moe.name = "y"}) {
  %odd = moe.param @odd : tensor<2x2x4x16xbf16>
  %p = moe.grouped_matmul %rows by %groups, %odd contract 1 : (tensor<80x16xbf16>, tensor<1x2xi32>, tensor<2x2x4x16xbf16>) -> tensor<80x2x4xbf16>
  %h = moe.glu silu %p : (tensor<80x2x4xbf16>) -> tensor<80x4xbf16>
  return %h : tensor<80x4xbf16>
}
