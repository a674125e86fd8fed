//===- BlockBuilder.h - the blocks that models are made of ------*- C++ -*-===//
// Weights, attention and feed-forward blocks as moe ops, for whoever builds a program
// (DecoderBuilder and its siblings): one object for one stack of layers. Which parts a block has is
// data of the ModelSpec. How a program begins and ends, and what it takes and gives, is not said
// here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_LIB_IMPORT_BLOCKBUILDER_H
#define MOIRA_LIB_IMPORT_BLOCKBUILDER_H

#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/OwningOpRef.h"
#include "moira/Dialect/Moe/IR/MoeOps.h"
#include "moira/Import/WeightTable.h"

namespace moira {

/// What one attention looks at: k and v [B,Sk,Hk,d], positions [Sk] and mask [B,Sk] of the keys.
struct KeyValues {
  mlir::Value k, v, positions, mask;
};

/// What one attention over latents looks at: latent [B,Sk,r], the rotated part of keys [B,Sk,d],
/// positions [Sk] and mask [B,Sk] of the keys.
struct LatentKeys {
  mlir::Value latent, turned, positions, mask;
};

class BlockBuilder {
public:
  virtual ~BlockBuilder() = default;

protected:
  /// `type`, the compute type, is what products multiply and expert rows are made of. The residual
  /// stream, gates, norms and all sums are f32. `ofEncoder`: `spec` is the encoder of the model
  /// whose weights these are. The moe and func dialects must be loaded.
  BlockBuilder(mlir::MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
               int64_t batch, bool bf16, bool ofEncoder = false);

  // --- weights (BlockBuilder.cpp)

  /// An empty module with one moe.state for each weight; ops are then added at its end.
  mlir::OwningOpRef<mlir::ModuleOp> startModule();
  /// Weights that make up most of a model are of the compute type. What becomes the residual stream
  /// as it is, norms, biases and gates are f32: they are small, and nothing averages their
  /// rounding.
  mlir::RankedTensorType weightType(const WeightState &state);
  /// The weight of this role, of the present layer.
  mlir::Value param(WeightRole role);

  // --- single ops at `loc` (BlockBuilder.cpp)

  /// x[t..,K..]·w[N..,K..] → [t..,N..]; of `type` unless `result` says otherwise.
  mlir::Value linear(mlir::Value x, WeightRole role, int64_t contract = 1, mlir::Type result = {});
  mlir::Value add(mlir::Value x, mlir::Value y);
  /// x · factor; x itself for 1.
  mlir::Value scale(mlir::Value x, double factor);
  /// A norm's weight, and its bias where the stack's norms have one.
  struct NormWeights {
    mlir::Value w, shift;
  };
  NormWeights normWeights(WeightRole weight, std::optional<WeightRole> bias = std::nullopt);
  /// Of the residual stream or of a projection; of `type` unless `result` says otherwise.
  mlir::Value norm(mlir::Value x, NormWeights weights, mlir::Type result = {});
  mlir::Value glu(mlir::Value x);
  /// An activation of `type`.
  mlir::Value act(mlir::Value x);

  // --- where a stack begins and ends (BlockBuilder.cpp)

  /// The residual stream of tokens ids [B,S]: their embeddings, scaled, with what their positions
  /// add. Sets `positions` and what follows from them.
  mlir::Value startStack(mlir::Value ids);
  /// Positions [S] of so many tokens that the program is given: 0, 1, 2, …. A program with a cache
  /// says where they stand.
  virtual mlir::Value ownPositions(int64_t tokens);
  /// How many tokens a row may come to have: some rotary scalings go by it.
  virtual int64_t span(int64_t tokens) { return tokens; }
  /// The places that sinusoids encode, [S] or [B,S].
  virtual mlir::Value sinusoidPlaces(mlir::Value ids);
  /// What is added to them.
  virtual int64_t sinusoidOffset() { return spec.positionOffset; }
  /// The norm behind the last layer; an activation.
  mlir::Value finalNorm(mlir::Value h);
  /// Logits f32 [B,S,V] of what finalNorm gave.
  mlir::Value head(mlir::Value x);

  // --- attention (AttentionBlocks.cpp)

  /// h + attention(norm(h)); h [B,S,D].
  mlir::Value attentionBlock(mlir::Value h);
  /// What self-attention of the present layer looks at, given keys and values of the program's own
  /// tokens: these alone. A program with a cache returns the cache with them in it.
  virtual KeyValues selfKeys(KeyValues fresh) { return fresh; }
  /// The same for attention over latents.
  virtual LatentKeys selfLatents(LatentKeys fresh) { return fresh; }

  /// h + cross-attention(norm(h)); h [B,S,D].
  mlir::Value crossAttentionBlock(mlir::Value h);
  /// What cross-attention of the present layer looks at. A builder of decoders with an encoder
  /// gives projectEncoded of its output, or what a cache has of it.
  virtual KeyValues crossKeys();
  /// Keys and values of the present layer's cross-attention, from the encoder's output x [B,Sk,D].
  KeyValues projectEncoded(mlir::Value x, mlir::Value positions, mlir::Value mask);

  // --- feed-forward (FeedForwardBlocks.cpp)

  /// h + feed-forward(norm(h)); h [B,S,D].
  mlir::Value feedForwardBlock(mlir::Value h);

  // --- locations: the path of the torch module ("model.layers.0.self_attn")

  mlir::Location named(const mlir::Twine &name) {
    return mlir::NameLoc::get(b.getStringAttr(name));
  }
  /// The module that a weight of this role belongs to: its state's name without the last word.
  mlir::Location at(WeightRole role);
  /// The module that holds this one.
  mlir::Location parent(mlir::Location child);

  mlir::RankedTensorType tensor(mlir::ArrayRef<int64_t> shape, mlir::Type element) {
    return mlir::RankedTensorType::get(shape, element);
  }
  mlir::RankedTensorType tensor(mlir::ArrayRef<int64_t> shape) { return tensor(shape, type); }
  /// x's type with other elements.
  mlir::RankedTensorType as(mlir::Value x, mlir::Type element) {
    return tensor(shapeOf(x), element);
  }
  static mlir::ArrayRef<int64_t> shapeOf(mlir::Value value) {
    return mlir::cast<mlir::RankedTensorType>(value.getType()).getShape();
  }
  mlir::NamedAttribute nameAttr(llvm::StringRef text) {
    return b.getNamedAttr("moe.name", b.getStringAttr(text));
  }
  /// Attributes of an argument that holds token ids, or a mask that is 1 where a file has none, and
  /// everywhere without padding.
  mlir::SmallVector<mlir::NamedAttribute> idsAttrs(llvm::StringRef name);
  mlir::SmallVector<mlir::NamedAttribute> maskAttrs(llvm::StringRef name, bool padding = true);

  mlir::OpBuilder b;
  const ModelSpec &spec;
  const WeightTable &weights;
  int64_t B;
  bool ofEncoder;
  mlir::Type f32, type;
  mlir::Location loc;
  int64_t layer = -1; // the present one; −1: outside of the layers

  // What the top of a stack makes once: positions [S] and key mask [B,S] of its own tokens, and
  // their rotation.
  mlir::Value positions, mask, cos, sin;

private:
  mlir::Value embedding(mlir::Value ids);
  void rotary(int64_t tokens);
  /// x with its positions' rotation.
  mlir::Value rotate(mlir::Value x, mlir::Type result = {});
  mlir::Value headAttention(mlir::Value x);
  mlir::Value latentAttention(mlir::Value x); // LatentAttention.cpp
  bool staysLatent(int64_t queries, int64_t keys) const;
  mlir::Value headLinear(mlir::Value x, WeightRole weight, int64_t outputs, bool transposed);
  mlir::Value projection(mlir::Value x, WeightRole weight, WeightRole bias,
                         std::optional<WeightRole> normRole, bool rotated);
  mlir::Value attend(mlir::Value q, const KeyValues &keys, bool causal, mlir::Value bias);
  mlir::Value outProjection(mlir::Value x, WeightRole weight, WeightRole bias);
  mlir::Value scoreBias(const KeyValues &keys);

  mlir::Value gatedBlock(mlir::Value x, WeightRole gateUp, WeightRole gateUpBias, WeightRole down,
                         WeightRole downBias);
  mlir::Value plainBlock(mlir::Value x);
  /// `exact` is x in f32, for the gates.
  mlir::Value sparseBlock(mlir::Value x, mlir::Value exact);
  mlir::Value experts(mlir::Value rows, mlir::Value routing);
  mlir::Value groupedMatmul(mlir::Value rows, mlir::Value routing, WeightRole role);
  mlir::Value groupedBias(mlir::Value rows, mlir::Value routing, WeightRole role);
  bool mayDrop(moe::RoutingType routing);
  mlir::Value route(mlir::Value x);

  mlir::Value relativeBias; // of the stack's first layer, for all
};

} // namespace moira

#endif // MOIRA_LIB_IMPORT_BLOCKBUILDER_H
