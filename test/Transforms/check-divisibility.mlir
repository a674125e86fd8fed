// --dist-check-divisibility lists every axis that does not divide, where, and which meshes of as many ranks would do.
// RUN: moe-opt %s --dist-attach-mesh="mesh=dp=2,ep=4,tp=2" --dist-check-divisibility -o /dev/null
// RUN: moe-opt %s --dist-check-divisibility -o /dev/null
// RUN: not moe-opt %s --dist-attach-mesh="mesh=ep=6" --dist-check-divisibility 2>&1 | FileCheck %s --check-prefix=EP
// RUN: not moe-opt %s --dist-attach-mesh="mesh=dp=4,ep=3,tp=8" --dist-check-divisibility 2>&1 | FileCheck %s --check-prefix=ALL
// RUN: not moe-opt %s --dist-attach-mesh="mesh=tp=7" --dist-check-divisibility 2>&1 | FileCheck %s --check-prefix=NOTHING

// EP: MOE-0104: ep=6 does not divide 8 experts of layers 1-2, 4 (config.json: num_experts=8); valid ep for 6 ranks: 1 2; no mesh of 6 ranks fits, try --mesh=
// ALL: MOE-0104: dp=4 does not divide the batch 2 (--batch=2); valid dp for 96 ranks: 1 2; no mesh of 96 ranks fits, try --mesh=dp=2,ep=8,tp=4
// ALL: MOE-0104: tp=8 does not divide 4 query heads of layer 0 (config.json: num_attention_heads=4); valid tp for 96 ranks: 1 2 4;
// ALL: MOE-0104: ep=3 does not divide 8 experts of layers 1-2, 4
// ALL: MOE-0104: tp=8 does not divide the experts' width 12 of layers 1-2, 4 (config.json: moe_intermediate_size=12)
// ALL: MOE-0104: tp=8 does not divide the shared expert's width 20 of layer 1; valid tp
// ALL: MOE-0104: tp=8 does not divide the dense width 28 of layer 0; valid tp
// ALL-NOT: kv
// NOTHING: no mesh of 7 ranks fits, try --mesh=
module attributes {moe.config_fields = {experts = "num_experts", heads = "num_attention_heads", expert_width = "moe_intermediate_size"}} {
  moe.state @embed : tensor<10x16xf32>
  moe.state @q : tensor<4x8x16xf32> layer 0
  moe.state @k : tensor<1x8x16xf32> layer 0
  moe.state @o : tensor<16x4x8xf32> layer 0
  moe.state @dense_up : tensor<2x28x16xf32> layer 0
  moe.state @dense_down : tensor<16x28xf32> layer 0
  moe.state @up1 : tensor<8x2x12x16xf32> layer 1
  moe.state @up2 : tensor<8x2x12x16xf32> layer 2
  moe.state @up4 : tensor<8x2x12x16xf32> layer 4
  moe.state @shared : tensor<2x20x16xf32> layer 1
  func.func @forward(%ids: tensor<2x6xi32>, %mask: tensor<2x6xi32>, %r: !moe.routing<2x6, experts = 8, k = 2>) -> tensor<2x6x16xf32> {
    %embed = moe.param @embed : tensor<10x16xf32>
    %x = moe.embedding %ids, %embed : (tensor<2x6xi32>, tensor<10x16xf32>) -> tensor<2x6x16xf32>
    %pos = moe.positions : tensor<6xi32>
    %wq = moe.param @q : tensor<4x8x16xf32>
    %wk = moe.param @k : tensor<1x8x16xf32>
    %wo = moe.param @o : tensor<16x4x8xf32>
    %q = moe.linear %x, %wq contract 1 : (tensor<2x6x16xf32>, tensor<4x8x16xf32>) -> tensor<2x6x4x8xf32>
    %k = moe.linear %x, %wk contract 1 : (tensor<2x6x16xf32>, tensor<1x8x16xf32>) -> tensor<2x6x1x8xf32>
    %a = moe.attention %q, %k, %k at %pos, %pos mask %mask heads 4 over 1 scale 1.0 window 0
      : (tensor<2x6x4x8xf32>, tensor<2x6x1x8xf32>, tensor<2x6x1x8xf32>, tensor<6xi32>, tensor<6xi32>, tensor<2x6xi32>) -> tensor<2x6x4x8xf32>
    %o = moe.linear %a, %wo contract 2 : (tensor<2x6x4x8xf32>, tensor<16x4x8xf32>) -> tensor<2x6x16xf32>
    %rows = moe.dispatch %o, %r : (tensor<2x6x16xf32>, !moe.routing<2x6, experts = 8, k = 2>) -> tensor<24x16xf32>
    %up1 = moe.param @up1 : tensor<8x2x12x16xf32>
    %up2 = moe.param @up2 : tensor<8x2x12x16xf32>
    %up4 = moe.param @up4 : tensor<8x2x12x16xf32>
    %g1 = moe.grouped_matmul %rows by %r, %up1 contract 1 : (tensor<24x16xf32>, !moe.routing<2x6, experts = 8, k = 2>, tensor<8x2x12x16xf32>) -> tensor<24x2x12xf32>
    %h1 = moe.glu silu %g1 : (tensor<24x2x12xf32>) -> tensor<24x12xf32>
    %g2 = moe.grouped_matmul %rows by %r, %up2 contract 1 : (tensor<24x16xf32>, !moe.routing<2x6, experts = 8, k = 2>, tensor<8x2x12x16xf32>) -> tensor<24x2x12xf32>
    %h2 = moe.glu silu %g2 : (tensor<24x2x12xf32>) -> tensor<24x12xf32>
    %g4 = moe.grouped_matmul %rows by %r, %up4 contract 1 : (tensor<24x16xf32>, !moe.routing<2x6, experts = 8, k = 2>, tensor<8x2x12x16xf32>) -> tensor<24x2x12xf32>
    %h4 = moe.glu silu %g4 : (tensor<24x2x12xf32>) -> tensor<24x12xf32>
    %shared = moe.param @shared : tensor<2x20x16xf32>
    %s = moe.linear %o, %shared contract 1 : (tensor<2x6x16xf32>, tensor<2x20x16xf32>) -> tensor<2x6x2x20xf32>
    %t = moe.glu silu %s : (tensor<2x6x2x20xf32>) -> tensor<2x6x20xf32>
    %du = moe.param @dense_up : tensor<2x28x16xf32>
    %dd = moe.param @dense_down : tensor<16x28xf32>
    %d = moe.linear %x, %du contract 1 : (tensor<2x6x16xf32>, tensor<2x28x16xf32>) -> tensor<2x6x2x28xf32>
    %e = moe.glu silu %d : (tensor<2x6x2x28xf32>) -> tensor<2x6x28xf32>
    %f = moe.linear %e, %dd contract 1 : (tensor<2x6x28xf32>, tensor<16x28xf32>) -> tensor<2x6x16xf32>
    return %f : tensor<2x6x16xf32>
  }
}
