//===- GradAttention.h - attention_grad's ways ------------------*- C++ -*-===//
// What the plain kernels, those by tiles and those on tensor cores share.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_GRADATTENTION_H
#define MOIRA_RT_CUDA_KERNELS_GRADATTENTION_H

#include "AttentionTools.h"
#include "GradTools.h"

namespace moira::rt::cuda {

struct GradArgs {
  AttentionArgs a; // sizes and visibility; its float operands are in the readers
  Reader dy, q, k, v, q2, k2;
  float *largest, *total, *mean; // of query rows (b, i, h)
  Reader out;
  const float *logSums; // with `out` what attention left; null: it is made again
};

/// dq, dk and dv.
struct GradResults {
  Writer q, k, v;
};

/// Whether launchAttentionGradTiles takes it.
bool attentionGradFitsTiles(const AttentionArgs &args);
/// Fills `largest`, `total` and `mean` of g, and makes dq, dk and dv.
Status launchAttentionGradTiles(const Call &call, const GradArgs &g, const GradResults &made);
/// Whether launchAttentionGradWgmma, which needs a Hopper GPU, takes it.
bool attentionGradFitsWgmma(const GradArgs &g, const GradResults &made);
/// Makes dq, dk and dv with memory to work in, from what attention left; false, and nothing done,
/// where cuDNN is missing or does not take the call.
Expected<bool> launchAttentionGradCudnn(const Call &call, const GradArgs &g, Scratch room,
                                        const GradResults &made);
/// The same as launchAttentionGradTiles, with the rest of the workspace; false, and nothing done,
/// where that is too small.
Expected<bool> launchAttentionGradWgmma(const Call &call, const GradArgs &g, Scratch scratch,
                                        const GradResults &made);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GRADATTENTION_H
