//===- ModelSpec.h - one decoder-only model, resolved -----------*- C++ -*-===//
// What a config means: sizes and choices for the decoder that DecoderBuilder builds. No names of
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
  full  ///< over the whole projection
};

/// A bias that counts where experts are chosen, not where they are weighed.
enum class ChoiceBias {
  none,
  flat, ///< stored as [E]
  row   ///< stored as [1, E]
};

struct LayerSpec {
  int64_t window = 0; // keys that a query sees, 0: all
  bool sparse = true;
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
  double normEps = 0;
  bool layerNorm = false; // norms centre their rows and have biases; else RMS norms
  bool tiedHead = false, qkvBias = false, oBias = false, headBias = false;
  bool mlpBias = false;                         // of dense blocks and shared experts
  double embeddingScale = 1, residualScale = 1; // of the embedding; of what a block adds
  double attentionScale = 0;                    // of scores
  double logitsScale = 1;
  QkNorm qkNorm = QkNorm::none;
  std::optional<double> clipQkv;
  std::optional<LatentSpec> latent; // headDim is its turnedDim then
  bool sinks = false;               // a score a head that every query sees besides its keys
  RopeSpec rope;
  bool ropeInterleaved = false; // as moe.rope
  moe::Activation activation = moe::Activation::silu;
  std::optional<double> gluLimit, gluAlpha, gluUpShift; // as moe.glu
  bool expertBias = false;
  int64_t denseWidth = 0, experts = 0, expertWidth = 0;
  int64_t sharedWidth = 0; // of all shared experts together; 0: none
  bool sharedGated = true; // what they give is weighed by a gate of its own
  moe::RouterFields router;
  bool routerBias = false;
  ChoiceBias choiceBias = ChoiceBias::none;
  std::vector<LayerSpec> layers;
  int64_t unusedLayers = 0; // behind `layers`: a checkpoint may have them, nothing reads them

  /// Size → the config field that gave it, for messages: "experts" → "num_local_experts".
  std::map<std::string, std::string> fieldOf;
  std::vector<DefaultTaken> defaults;
};

/// Resolves a config. Reports every problem that can be found; nothing on any problem.
std::optional<ModelSpec> resolveModel(const llvm::json::Object &config, llvm::StringRef fileName,
                                      rt::Status &status);

} // namespace moira

#endif // MOIRA_IMPORT_MODELSPEC_H
