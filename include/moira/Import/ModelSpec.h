//===- ModelSpec.h - one stack of layers, resolved --------------*- C++ -*-===//
// What a config means: sizes and choices for the stacks that the builders build. A decoder-only
// model is one stack; an encoder-decoder is its decoder's, which holds the encoder's. No names of
// config fields are needed past this point, except in messages.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_IMPORT_MODELSPEC_H
#define MOIRA_IMPORT_MODELSPEC_H

#include "moira/Dialect/Moe/IR/MoeDialect.h"
#include "moira/Import/ConfigValues.h"
#include "moira/Import/RopeSpec.h"

namespace moira {

enum class QkNorm {
  none,
  head, ///< over each head's dimensions, one weight for all heads
  full, ///< over the whole projection
  unit  ///< over each head's dimensions, of what is rotated, behind the rotation, without a weight
};

/// What training multiplies by random factors near 1, if asked to (--router-noise).
enum class RouterNoise {
  none,
  gate,           ///< what gates read
  gateAndExperts, ///< what experts read, too
  sampled         ///< what both read, and experts are drawn
};

/// A bias that counts where experts are chosen, not where they are weighed.
enum class ChoiceBias {
  none,
  flat, ///< stored as [E]
  row   ///< stored as [1, E]
};

enum class Norm {
  rms,  ///< scaled by the root of the mean of squares
  layer ///< mean and variance
};

/// How a stack knows where its tokens stand.
enum class PositionKind {
  rotary,         ///< queries and keys are rotated
  sinusoid,       ///< sinusoids of 0, 1, 2, … are added to the embeddings
  token_sinusoid, ///< the same, of positions that do not count padding
  relative        ///< a bias on scores, by distance
};

struct LayerSpec {
  int64_t window = 0; // keys that a query sees, 0: all
  bool sparse = true;
  bool rotated = true; // if the stack's positions are rotary
};

/// Attention whose keys and values grow out of one latent a token.
struct LatentSpec {
  int64_t queryRank = 0; // of the compressed query; 0: not compressed
  int64_t rank = 0;
  /// Of a head's keys: what grows out of the latent, and what is rotated and shared by all heads.
  int64_t plainDim = 0, turnedDim = 0;
  int64_t valueDim = 0;
};

struct ModelSpec {
  const ModelClass *modelClass = nullptr;
  int64_t vocab = 0, hidden = 0, heads = 0, kvHeads = 0, headDim = 0;
  Norm norm = Norm::rms;
  double normEps = 0;
  bool normBias = false;
  bool tiedHead = false;
  bool headIfStored = false; // a tied head is read nevertheless where a checkpoint has one
  bool ownEmbedding = false; // this stack's, as its checkpoint has one and nothing is tied
  bool qkvBias = false, oBias = false, headBias = false;
  double embeddingScale = 1, headScale = 1;  // of the embeddings, and of what the head reads
  int64_t untrainedId = -1;                  // the token whose embedding gets no gradient
  double residualScale = 1, logitsScale = 1; // of what a block adds, and of logits
  QkNorm qkNorm = QkNorm::none;
  std::optional<double> clipQkv;
  double attentionScale = 1; // of scores
  bool causal = true;        // tokens do not see later ones
  bool crossAttention = false;
  std::optional<LatentSpec> latent; // headDim is its turnedDim then
  bool sinks = false;               // a score a head that every query sees besides its keys
  PositionKind positions = PositionKind::rotary;
  RopeSpec rope;
  bool ropeInterleaved = false;         // as moe.rope
  int64_t positionOffset = 0;           // sinusoid: added to 0, 1, 2, …
  int64_t padId = -1;                   // token_sinusoid: the token that is not counted
  int64_t buckets = 0, maxDistance = 0; // relative
  moe::Activation activation = moe::Activation::silu;
  bool gated = true; // feed-forward: act(gate x) · up x, else act(up x)
  std::optional<double> gluLimit, gluAlpha, gluUpShift; // as moe.glu
  bool mlpBias = false;                                 // of dense blocks and shared experts
  bool expertBias = false;
  bool separateExperts = false; // modules of their own: optimizers see a parameter for each
  int64_t denseWidth = 0, experts = 0, expertWidth = 0;
  int64_t sharedWidth = 0; // of all shared experts together; 0: none
  bool sharedGated = true; // what they give is weighed by a gate of its own
  moe::RouterFields router;
  bool routerBias = false;
  ChoiceBias choiceBias = ChoiceBias::none;
  RouterNoise routerNoise = RouterNoise::none;
  double routerNoiseEps = 0; // factors are in 1 ± this
  /// Experts that get all first choices, and all others, whatever the gate chose (moe.redirect).
  std::optional<std::pair<int64_t, int64_t>> redirect;
  std::optional<moe::CapacityFields> capacity; // of each expert; without: no limit
  std::vector<LayerSpec> layers;
  int64_t unusedLayers = 0; // behind `layers`: a checkpoint may have them, nothing reads them
  /// The encoder that this decoder's cross-attention reads.
  std::shared_ptr<const ModelSpec> encoder;

  /// Layers of the encoder, if any, and of this stack.
  size_t allLayers() const { return (encoder ? encoder->layers.size() : 0) + layers.size(); }

  /// Size → the config field that gave it, for messages: "experts" → "num_local_experts".
  std::map<std::string, std::string> fieldOf;
  std::vector<DefaultTaken> defaults;
  /// UnsupportedConfig problems for whoever has weights to read.
  std::vector<std::string> unreadable;
  /// UnsupportedConfig problems of operations that Moira lacks: the stack has others of the same
  /// sizes in their place, from which memory can be planned.
  std::vector<std::string> lacking;
  /// Such operations that only sequences of more than `tokens` need.
  struct LongNeed {
    int64_t tokens;
    std::string problem;
  };
  std::vector<LongNeed> longNeeds;
};

/// Resolves a config. Reports every problem that can be found; nothing on any problem.
std::optional<ModelSpec> resolveModel(const llvm::json::Object &config, llvm::StringRef fileName,
                                      rt::Status &status);

} // namespace moira

#endif // MOIRA_IMPORT_MODELSPEC_H
