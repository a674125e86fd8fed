//===- HostOps.h - what the host's call implementations share ---*- C++ -*-===//
// The signature of an implementation, checked access to its operands, and its error form. Reference
// implementations are templates over the scalar (float, double or Bf16) in namespace `ref`, one
// file per concept; `fast` has those for float and Bf16 that are worth having. Dispatch is in
// HostCall.cpp.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_HOST_HOSTOPS_H
#define MOIRA_RT_HOST_HOSTOPS_H

#include "moira/rt/Bf16.h"
#include "moira/rt/Device.h"

#include <type_traits>

namespace moira::rt::host {

/// One call. Operand counts and dtypes are checked before an implementation sees it, shapes by the
/// plan verifier; numbers that are data (ids, counts, positions) are checked by the implementation.
struct Call {
  std::string_view name;
  std::span<const TensorRef> in, out;
  const CallParams &params;
  const RouteHooks *hooks;

  template <typename S> const S *input(size_t i) const {
    return static_cast<const S *>(in[i].data);
  }
  template <typename S> S *output(size_t i) const { return static_cast<S *>(out[i].data); }
};

using Implementation = Status (*)(const Call &);

/// The type A of Calls.def for scalar type S: what sums and the residual stream have.
template <typename S> using Accumulator = std::conditional_t<std::is_same_v<S, Bf16>, float, S>;

/// fn(value of the type) for an operand of type U, which is S or Accumulator<S>.
template <typename S, typename Fn> Status withEither(fb::DType dtype, Fn fn) {
  if constexpr (std::is_same_v<S, Bf16>)
    if (dtype == fb::DType::bf16)
      return fn(Bf16());
  return fn(Accumulator<S>());
}

/// BadRun "call 'pack': <message>; the plan or its data is damaged: compile the plan again".
Status badCall(const Call &call, const std::string &message);

/// Product of the dimensions [from, to) of `shape`.
int64_t product(const std::vector<int64_t> &shape, size_t from, size_t to);
/// Product of the last `count` dimensions, and of the ones before them.
int64_t trailing(const TensorRef &t, int64_t count);
int64_t leading(const TensorRef &t, int64_t count);
/// Fails unless the integer parameter `name` is in [low, high].
Status checkParam(const Call &call, std::string_view name, int64_t low, int64_t high);
/// Fails unless the parameter `name`, a number of trailing dimensions, exists in every given
/// tensor.
Status checkTrailing(const Call &call, std::string_view name,
                     std::initializer_list<const TensorRef *> tensors);
/// Fails unless counts are all >= 0 and their sum is <= limit. `what` names them in the message.
Status checkCounts(const Call &call, std::span<const int32_t> counts, int64_t limit,
                   const char *what);

/// Fails unless `pos`, which `token` reads, is -1 or one of the `available` rows.
inline Status checkRow(const Call &call, int64_t token, int32_t pos, int64_t available) {
  if (pos >= -1 && pos < available)
    return {};
  return badCall(
      call, format("token %lld reads row %d of %lld", (long long)token, pos, (long long)available));
}

/// The product of a dense or grouped matmul: out[m,n] = sum_k x[m,k] * w[n,k], all contiguous.
/// Sums in double; O is S or Accumulator<S>.
template <typename S, typename O>
void refProduct(const S *x, const S *w, O *out, int64_t m, int64_t n, int64_t k);

/// The leading and trailing dimensions that squares keeps.
std::pair<size_t, size_t> keptBySquares(const Call &call);

/// What both flavors of linear check of their operands.
Status checkLinear(const Call &call);
/// Runs the products of a `linears`, one after the other, each by `linear`.
Status eachLinear(const Call &call, Implementation linear);

/// Reference implementations, each named like its call, S = float, double or Bf16.
namespace ref {
#define MOIRA_CALL(name, inputs, outputs, params)                                                  \
  template <typename S> Status name(const Call &call);
#include "moira/rt/Calls.def"
} // namespace ref

/// S = float or Bf16. A call without one here has no faster form than its reference. Those that use
/// oneDNN may only be called where it is there.
namespace fast {
template <typename S> Status linear(const Call &call);
template <typename S> Status linears(const Call &call);
template <typename S> Status head_linear(const Call &call); // f32 only
template <typename S> Status attention(const Call &call);
template <typename S> Status grouped_matmul(const Call &call);
template <typename S> Status combine(const Call &call);
template <typename S> Status attention_grad(const Call &call);
template <typename S> Status linear_input_grad(const Call &call);
template <typename S> Status linear_weight_grad(const Call &call);
template <typename S> Status grouped_input_grad(const Call &call);
template <typename S> Status grouped_weight_grad(const Call &call);
template <typename S> Status adamw(const Call &call);        // f32 only
template <typename S> Status expert_adamw(const Call &call); // f32 only
template <typename S> Status sgd(const Call &call);          // f32 only
template <typename S> Status accumulate(const Call &call);   // f32 only
template <typename S> Status squares(const Call &call);      // f32 only
template <typename S> Status scale(const Call &call);        // bf16 only
} // namespace fast

} // namespace moira::rt::host

#endif // MOIRA_RT_HOST_HOSTOPS_H
