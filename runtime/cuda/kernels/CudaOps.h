//===- CudaOps.h - what the CUDA call implementations share -----*- C++ -*-===//
// Host side: the signature of an implementation, access to its operands, errors, checked launches
// and the choice of a template by dtype. One implementation a call, named like it, in namespace
// `ops`. Device helpers are in DeviceTools.h. Dispatch is in CudaCalls.cpp.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CUDA_KERNELS_CUDAOPS_H
#define MOIRA_RT_CUDA_KERNELS_CUDAOPS_H

#include "../CudaCalls.h"

#include <cuda_bf16.h>

namespace moira::rt::cuda {

using bf16 = __nv_bfloat16;

/// One call. Operand counts are checked before an implementation sees it, and that each dtype is
/// one its operand may have; shapes by the plan verifier. Numbers on the device are the kernels' to
/// check.
struct Call {
  std::string_view name;
  std::span<const TensorRef> in, out;
  const CallParams &params;
  CallContext &context;

  template <typename S> const S *input(size_t i) const {
    return static_cast<const S *>(in[i].data);
  }
  template <typename S> S *output(size_t i) const { return static_cast<S *>(out[i].data); }
  cudaStream_t stream() const { return context.stream; }
  /// Whether kernels may read inputs [first, end) before they wait for the kernel before them.
  bool areSettled(size_t first, size_t end) const {
    for (size_t i = first; i < end; ++i)
      if (i >= 32 || !(context.settled >> i & 1))
        return false;
    return true;
  }
};

/// What kernels write to CallContext::errorFlag; texts in CudaCalls.cpp.
enum class Fault : int32_t { none, expert, forcedExpert, counts, groups, row, slot };

/// BadRun "call 'pack': <message>; the plan or its data is damaged: compile the plan again".
Status badCall(const Call &call, const std::string &message);
/// PlanTarget "the CUDA device has no version of call 'x' for <what>".
Status notOnCuda(const Call &call, const std::string &what);

/// The status of a CUDA call made for `what`: OutOfMemory or Internal, naming both.
Status checked(std::string_view what, cudaError_t error);
/// The status of the launch just made.
inline Status launched(const Call &call) { return checked(call.name, cudaGetLastError()); }

/// Product of the last `count` dimensions, and of the ones before them.
int64_t trailing(const TensorRef &t, int64_t count);
int64_t leading(const TensorRef &t, int64_t count);
/// Fails unless the parameter `name`, a number of trailing dimensions, exists in every given
/// tensor.
Status checkTrailing(const Call &call, std::string_view name,
                     std::initializer_list<const TensorRef *> tensors);

/// Bytes of one element. (Not Box.h's bytesOf: this library links no more of the runtime than
/// plans.)
constexpr size_t elementBytes(fb::DType dtype) {
  switch (dtype) {
  case fb::DType::u8:
    return 1;
  case fb::DType::bf16:
  case fb::DType::f16:
    return 2;
  case fb::DType::f64:
  case fb::DType::i64:
    return 8;
  default:
    return 4;
  }
}

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// fn(float()) or fn(bf16()): a template by dtype. CudaCalls.cpp has checked that it is one of
/// these.
template <typename Fn> Status withFloat(fb::DType dtype, Fn fn) {
  return dtype == fb::DType::bf16 ? fn(bf16()) : fn(float());
}

/// The most bytes (16, 8, 4, 2 or 1) by which every address and size given is divisible.
template <typename... Sizes> size_t commonUnit(Sizes... sizes) {
  size_t all = (size_t(16) | ... | size_t(sizes));
  return all & (~all + 1);
}
inline size_t addressOf(const void *p) { return reinterpret_cast<size_t>(p); }

/// fn(V()) with V an integer vector of `unit` bytes, from commonUnit.
template <typename Fn> Status withUnit(size_t unit, Fn fn) {
  switch (unit) {
  case 16:
    return fn(uint4());
  case 8:
    return fn(uint2());
  case 4:
    return fn(uint32_t());
  case 2:
    return fn(uint16_t());
  default:
    return fn(uint8_t());
  }
}

/// Hands out parts of a context's workspace, 256-byte aligned.
class Scratch {
public:
  explicit Scratch(const CallContext &context)
      : at(static_cast<char *>(context.workspace)), left(context.workspaceBytes) {}
  size_t bytesLeft() const { return left; }
  /// Null if it does not fit.
  template <typename S> S *take(int64_t count) {
    size_t bytes = (size_t(count) * sizeof(S) + 255) / 256 * 256;
    if (bytes > left)
      return nullptr;
    S *part = reinterpret_cast<S *>(at);
    at += bytes;
    left -= bytes;
    return part;
  }

private:
  char *at;
  size_t left;
};

/// OutOfMemory: the workspace is too small for `call`.
Status noScratch(const Call &call);

/// out[m,n] = sum_k x[m,k] * w[g,n,k] with f32 accumulation, g the group of row m: groups are runs
/// of `groups[i]` rows (device memory); rows past the last group become zero. Without `groups` all
/// rows are of group 0. x and w have one dtype; out has it too, or f32. `transposed`: w[g,k,n],
/// which only launchProductWgmma takes. `settled`: w and groups may be read before awaitResults.
struct GroupedProduct {
  const void *x, *w;
  void *out;
  fb::DType inType, outType;
  const int32_t *groups;
  int64_t groupCount, m, n, k;
  bool transposed = false, settled = false;
};
Status launchProduct(const Call &call, const GroupedProduct &product);
/// Whether the current device runs code for sm_90a, which no other generation does.
bool isHopper();
Status launchProductBf16(const Call &call, const GroupedProduct &product);
Status launchProductF32(const Call &call, const GroupedProduct &product);
/// Whether launchProductWgmma, which needs a Hopper GPU, takes it: bf16, aligned to 16 bytes.
bool fitsWgmma(const GroupedProduct &product);
Status launchProductWgmma(const Call &call, const GroupedProduct &product);

/// Whether launchProductStreamed, which needs a Hopper GPU, takes it: bf16, aligned to 16 bytes,
/// some to some dozen rows a group.
bool fitsStreamed(const GroupedProduct &product);
Status launchProductStreamed(const Call &call, const GroupedProduct &product);

/// out[m,n] = sum_k x[m,k] * w[n,k]; xDeep: x is [k,m]; wDeep: w is [k,n]. x and w have one dtype;
/// out has it too, or f32. m, n and k are not 0.
struct DenseProduct {
  const void *x, *w;
  void *out;
  fb::DType inType, outType;
  int64_t m, n, k;
  bool xDeep, wDeep;
  void *workspace; ///< for cuBLASLt
  size_t workspaceBytes;
};
/// By cuBLASLt; false, and nothing done, where it is not there or has no algorithm.
Expected<bool> multiplyDense(const Call &call, const DenseProduct &product);

/// out[g,n,k] = sum of dy[r,n] * x[r,k] over the rows r of group g, in f32 or rounded to bf16;
/// zeros for a group without rows. dy [m,n] and x [m,k] are bf16.
struct WeightGradient {
  const void *dy, *x;
  void *out;
  fb::DType outDtype;
  const int32_t *groups;
  int64_t groupCount, m, n, k;
};
/// Whether launchWeightGradient, which needs a Hopper GPU, takes it: aligned to 16 bytes.
bool fitsWgmma(const WeightGradient &gradient);
Status launchWeightGradient(const Call &call, const WeightGradient &gradient);
/// Whether launchProductFewRows takes it: bf16, aligned, and groups of few rows on average, so that
/// reading the weights is what takes time.
bool hasFewRows(const GroupedProduct &product);
Status launchProductFewRows(const Call &call, const GroupedProduct &product);
/// The same of several products of the same x, without groups, in one launch: each has the bits
/// that launchProductFewRows gives it, if that took as many warps.
bool haveFewRows(std::span<const GroupedProduct> products);
Status launchProductsFewRows(const Call &call, std::span<const GroupedProduct> products);
/// The same of f32, without groups: few rows by few columns, as routers have them.
bool hasFewF32Rows(const GroupedProduct &product);
Status launchProductFewF32Rows(const Call &call, const GroupedProduct &product);

/// Whether a select has so few rows that one launch does it, and that launch.
bool selectsFewRows(const Call &call);
Status launchSelectFew(const Call &call);

/// Runs a combine of many tokens on the copy engine; false: it does not take this one.
Expected<bool> combineMany(const Call &call);

enum class Activation { silu, gelu, geluTanh, relu };
/// The parameters of glu; an infinite limit clamps nothing.
struct GluForm {
  Activation activation;
  float limit, alpha, upShift;
};
/// Those of a call that has them; its activation alone.
Expected<GluForm> gluForm(const Call &call);
Expected<Activation> activationOf(const Call &call);

/// out[m,n] = glu(sum_k x[r,k] * w[g,0,n,k], the same of w[g,1,n,k]), g the group of row m as in
/// GroupedProduct, r = tokens[m], or m without `tokens`. With `kept`, [m,2,n], both sums too. All
/// floats are of one type. `settled` as there.
struct GroupedGlu {
  const void *x, *w;
  void *out, *kept;
  fb::DType dtype;
  const int32_t *groups, *tokens;
  int64_t groupCount, m, n, k, xRows;
  GluForm form;
  bool settled;
};
/// As for products; they keep none.
bool fitsStreamed(const GroupedGlu &product);
Status launchGluStreamed(const Call &call, const GroupedGlu &product);
bool hasFewRows(const GroupedGlu &product);
Status launchGluFewRows(const Call &call, const GroupedGlu &product);
/// Whether launchGroupedGlu, which needs a Hopper GPU, takes it: bf16, aligned to 16 bytes.
bool fitsWgmma(const GroupedGlu &product);
Status launchGroupedGlu(const Call &call, const GroupedGlu &product);

/// With dh[m,n] = sum_k dy[m,k] * w[g,k,n], g the group of row m as in GroupedProduct, and
/// h = glu(z[m,0,n], z[m,1,n]): dz = weight * dh times the slopes of h, act = weight * h, and
/// rowDots the sum of dh * h over a row, in gluGradientTiles parts [.., m]. Floats are of one type
/// but those of rows.
struct GluGradient {
  const void *dy, *w, *z;
  void *dz, *act;
  const float *rowWeights;
  float *rowDots;
  fb::DType dtype;
  const int32_t *groups;
  int64_t groupCount, m, n, k;
  GluForm form;
};
/// Whether launchGluGradient, which needs a Hopper GPU, takes it: bf16, aligned to 16 bytes.
bool fitsWgmma(const GluGradient &gradient);
int64_t gluGradientTiles(const GluGradient &gradient);
Status launchGluGradient(const Call &call, const GluGradient &gradient);

/// Sizes of one attention call, and the numbers that say who sees what.
struct AttentionArgs {
  const void *q, *k, *v;
  const void *q2, *k2;       // null: not given
  const float *bias, *sinks; // null: not given
  void *out;
  const int32_t *qpos, *kpos, *kmask; // null: in order, and no key is hidden
  int64_t batch, queries, keys;
  int32_t heads, kvHeads, keyDim, valueDim;
  int32_t sharedDim; // of q2 and k2
  /// Row of k and v for this rank's query head h: (headOffset + h) * allKvHeads / allHeads -
  /// kvOffset.
  int64_t headOffset, allKvHeads, allHeads, kvOffset;
  int64_t window; // 0: none
  bool causal;
  float scale;
};
/// The most that the two tiled kernels take: of a head's key dimensions, q2's included, and of its
/// value dimensions.
inline constexpr int64_t kTiledKeyDim = 256, kTiledValueDim = 256;
/// By cuDNN, which takes what is bf16 and in order; false, and nothing done, where it is not there
/// or does not take the call.
Expected<bool> attendByCudnn(const Call &call, const AttentionArgs &args);
Status launchAttentionBf16(const Call &call, const AttentionArgs &args);
Status launchAttentionF32(const Call &call, const AttentionArgs &args);
/// Whether launchAttentionWgmma, which needs a Hopper GPU, takes it, of what is bf16 and fits
/// tiles.
bool attentionFitsWgmma(const AttentionArgs &args);
Status launchAttentionWgmma(const Call &call, const AttentionArgs &args);
/// Whether launchAttentionFew takes it, of what is bf16 and fits tiles: aligned operands, and so
/// few queries that reading the keys is what takes time.
bool hasFewQueries(const AttentionArgs &args);
Status launchAttentionFew(const Call &call, const AttentionArgs &args);
/// Any head dimension, one warp a query: for what the tiled kernels do not take.
template <typename T> Status launchAttentionPlain(const Call &call, const AttentionArgs &args);

namespace ops {
#define MOIRA_CALL(name, inputs, outputs, params) Status name(const Call &call);
#include "moira/rt/Calls.def"
} // namespace ops

} // namespace moira::rt::cuda

#endif // MOIRA_RT_CUDA_KERNELS_CUDAOPS_H
