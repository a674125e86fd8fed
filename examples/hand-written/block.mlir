// A sparse block written by hand in the moe dialect: an embedding, a gate that chooses 2 of 4 experts and gives each of them room for
// at most 12 choices, experts with a ReLU, and a head. All shapes are global; moe-opt cuts them for any mesh.
//
//     python examples/hand-written/block.py make DIR
//     moe-opt examples/hand-written/block.mlir --mesh=dp=2,ep=2 -o DIR/block.moeplan
//     moe-run DIR/block.moeplan --weights=DIR --inputs=DIR/inputs.safetensors --outputs=DIR/logits.safetensors
//     python examples/hand-written/block.py check DIR
//
// B = 4 sequences of S = 8 tokens, D = 16, F = 24, V = 50.
module {
  // A weight, and where its numbers come from: all experts' tensors fill one stack, {e} is the expert's number.
  moe.state @embed : tensor<50x16xf32> from <names = ["embed"], disk_shape = [50, 16]>
  moe.state @gate : tensor<4x16xf32> from <names = ["gate"], disk_shape = [4, 16]>
  moe.state @up : tensor<4x24x16xf32> from <names = ["experts.{e}.up"], per_expert = true, disk_shape = [24, 16]>
  moe.state @down : tensor<4x16x24xf32> from <names = ["experts.{e}.down"], per_expert = true, disk_shape = [16, 24]>
  moe.state @norm : tensor<16xf32> from <names = ["norm"], disk_shape = [16]>

  func.func @forward(%ids: tensor<4x8xi32> {moe.name = "input_ids", moe.range = array<i64: 0, 49>})
      -> (tensor<4x8x50xf32> {moe.name = "logits"}, tensor<2xf32> {moe.name = "dropped_choices"}) {
    %table = moe.param @embed : tensor<50x16xf32>
    %x = moe.embedding %ids, %table : (tensor<4x8xi32>, tensor<50x16xf32>) -> tensor<4x8x16xf32>
    %w = moe.param @norm : tensor<16xf32>
    %h = moe.rms_norm %x, %w eps 1.0e-5 : (tensor<4x8x16xf32>, tensor<16xf32>) -> tensor<4x8x16xf32>

    // Which experts, and with which weights: a routing is one value, used by everything up to combine.
    %g = moe.param @gate : tensor<4x16xf32>
    %scores = moe.linear %h, %g contract 1 : (tensor<4x8x16xf32>, tensor<4x16xf32>) -> tensor<4x8x4xf32>
    %all = moe.route <k = 2, renorm = sum> of %scores : (tensor<4x8x4xf32>) -> !moe.routing<4x8, experts = 4, k = 2>
    %r, %dropped = moe.limit <rule = fixed, value = 12.0 : f64, policy = probs> of %all
        : (!moe.routing<4x8, experts = 4, k = 2>) -> (!moe.routing<4x8, experts = 4, k = 2>, tensor<2xf32>)

    // One row for each token and choice, sorted by expert, through the experts and back.
    %rows = moe.dispatch %h, %r : (tensor<4x8x16xf32>, !moe.routing<4x8, experts = 4, k = 2>) -> tensor<64x16xf32>
    %wu = moe.param @up : tensor<4x24x16xf32>
    %u = moe.grouped_matmul %rows by %r, %wu contract 1 : (tensor<64x16xf32>, !moe.routing<4x8, experts = 4, k = 2>, tensor<4x24x16xf32>) -> tensor<64x24xf32>
    %a = moe.act relu %u : (tensor<64x24xf32>) -> tensor<64x24xf32>
    %wd = moe.param @down : tensor<4x16x24xf32>
    %d = moe.grouped_matmul %a by %r, %wd contract 1 : (tensor<64x24xf32>, !moe.routing<4x8, experts = 4, k = 2>, tensor<4x16x24xf32>) -> tensor<64x16xf32>
    %y = moe.combine %d, %r : (tensor<64x16xf32>, !moe.routing<4x8, experts = 4, k = 2>) -> tensor<4x8x16xf32>

    %z = moe.add %x, %y : (tensor<4x8x16xf32>, tensor<4x8x16xf32>) -> tensor<4x8x16xf32>
    %logits = moe.linear %z, %table contract 1 : (tensor<4x8x16xf32>, tensor<50x16xf32>) -> tensor<4x8x50xf32>
    return %logits, %dropped : tensor<4x8x50xf32>, tensor<2xf32>
  }
}
