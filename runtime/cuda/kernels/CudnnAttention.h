//===- CudnnAttention.h - the gradient of attention by cuDNN ----*- C++ -*-===//
// What attention_grad's kernels need of cuDNN, without its headers: the gradient of some of a
// call's heads.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_CUDNNATTENTION_H
#define MOIRA_RT_CUDA_KERNELS_CUDNNATTENTION_H

#include "CudaOps.h"

#include <compare>

namespace moira::rt::cuda {

/// Whether cuDNN may be asked for a call: it is in order, and needs neither other operands nor an
/// uneven sharing of key/value heads.
bool mayAskCudnn(const Call &call, const AttentionArgs &args);

/// Some heads of some batches of an attention: consecutive ones, whose rows in memory have
/// `rowHeads` of queries and `rowKvHeads` of keys and values; rows of dy and of what is made may
/// have other numbers.
struct CudnnHeads {
  int64_t batch, heads, kvHeads, rowHeads, rowKvHeads;
  int64_t dyRowHeads = 0, dqRowHeads = 0, dkRowHeads = 0, dvRowHeads = 0; ///< of the gradient
  auto operator<=>(const CudnnHeads &) const = default;
};

/// bf16 but for the sums. What is whole begins at the first of the heads.
struct CudnnGradOperands {
  const void *q, *k, *v, *out, *dy;
  const float *logSums; ///< [batch, heads of a row, queries]
  float *means;         ///< [batch, heads, queries]
  float *dqSum;         ///< as many as dq, in an order of cuDNN's own; fastest only
  void *dq, *dk, *dv;
};

/// Bytes of workspace for it, besides the operands; -1: cuDNN does not take it. The first time it
/// is planned. `fastest`: it adds up dq in any order, in dqSum; else all bits are the same every
/// time.
int64_t cudnnGradBytes(const Call &call, const AttentionArgs &args, const CudnnHeads &heads,
                       bool fastest);
/// Makes the means, dq, dk and dv.
Status runCudnnGrad(const Call &call, const AttentionArgs &args, const CudnnHeads &heads,
                    bool fastest, const CudnnGradOperands &operands, void *workspace);

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_CUDNNATTENTION_H
