//===- GradAttention.h - attention_grad's two ways --------------*- C++ -*-===//
// What the plain kernels and those by tiles share.
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
};

/// Whether launchAttentionGradTiles takes it.
bool attentionGradFitsTiles(const AttentionArgs &args);
/// Fills `largest`, `total` and `mean` of g, and makes dq, dk and dv.
Status launchAttentionGradTiles(const Call &call, const GradArgs &g, float *dq, float *dk,
                                float *dv);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_GRADATTENTION_H
