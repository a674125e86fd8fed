//===- HostCall.cpp - from a call's name to its implementation --------------===//
// The dispatch table, the check of operand counts and dtypes against Calls.def, and the helpers of
// HostOps.h. No arithmetic.
//===----------------------------------------------------------------------===//
#include "HostOps.h"
#include "OneDnn.h"

#include <algorithm>

namespace moira::rt {

namespace host {

Status badCall(const Call &call, const std::string &message) {
  return Status(ErrorId::BadRun, "call '" + std::string(call.name) + "': " + message +
                                     "; the plan or its data is damaged: compile the plan again");
}

int64_t product(const std::vector<int64_t> &shape, size_t from, size_t to) {
  int64_t n = 1;
  for (size_t i = from; i < to; ++i)
    n *= shape[i];
  return n;
}

int64_t trailing(const TensorRef &t, int64_t count) {
  return product(t.shape, t.shape.size() - size_t(count), t.shape.size());
}

int64_t leading(const TensorRef &t, int64_t count) {
  return product(t.shape, 0, t.shape.size() - size_t(count));
}

Status checkParam(const Call &call, std::string_view name, int64_t low, int64_t high) {
  int64_t value = call.params.integer(name);
  if (value >= low && value <= high)
    return {};
  return badCall(call, format("parameter %.*s is %lld, outside %lld..%lld", int(name.size()),
                              name.data(), (long long)value, (long long)low, (long long)high));
}

Status checkTrailing(const Call &call, std::string_view name,
                     std::initializer_list<const TensorRef *> tensors) {
  int64_t rank = INT64_MAX;
  for (const TensorRef *t : tensors)
    rank = std::min<int64_t>(rank, int64_t(t->shape.size()));
  return checkParam(call, name, 0, rank);
}

Status checkCounts(const Call &call, std::span<const int32_t> counts, int64_t limit,
                   const char *what) {
  int64_t sum = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] < 0)
      return badCall(call, format("%s[%zu] is %d", what, i, counts[i]));
    sum += counts[i];
  }
  if (sum > limit)
    return badCall(call, format("the %s add up to %lld rows but there is room for %lld", what,
                                (long long)sum, (long long)limit));
  return {};
}

namespace {

/// A faster implementation than the reference; run may be null.
struct Fast {
  Implementation run = nullptr;
  bool needsOneDnn = false;
};

/// One row of the dispatch table; specs are the operand lists of Calls.def.
struct Entry {
  std::string_view name;
  std::string_view inputs, outputs;
  Implementation f32, f64, bf16;
  Fast fastF32, fastBf16;
};

template <typename S> constexpr Fast fastOf(std::string_view name) {
  if (name == "linear")
    return {fast::linear<S>, false};
  if (name == "linears")
    return {fast::linears<S>, false};
  if (name == "head_linear" && std::is_same_v<S, float>)
    return {fast::head_linear<float>, true};
  if (name == "attention")
    return {fast::attention<S>, false};
  if (name == "grouped_matmul")
    return {fast::grouped_matmul<S>, false};
  if (name == "combine")
    return {fast::combine<S>, false};
  if (name == "attention_grad")
    return {fast::attention_grad<S>, true};
  if (name == "linear_input_grad")
    return {fast::linear_input_grad<S>, true};
  if (name == "linear_weight_grad")
    return {fast::linear_weight_grad<S>, true};
  if (name == "grouped_input_grad")
    return {fast::grouped_input_grad<S>, true};
  if (name == "grouped_weight_grad")
    return {fast::grouped_weight_grad<S>, true};
  if (name == "scale" && std::is_same_v<S, Bf16>)
    return {fast::scale<Bf16>, false};
  if (name == "adamw")
    return {fast::adamw<S>, false};
  if (name == "expert_adamw")
    return {fast::expert_adamw<S>, false};
  if (name == "sgd")
    return {fast::sgd<S>, false};
  if (name == "accumulate")
    return {fast::accumulate<S>, false};
  if (name == "squares")
    return {fast::squares<S>, false};
  return {};
}

constexpr Entry table[] = {
#define MOIRA_CALL(name, inputs, outputs, params)                                                  \
  {#name,                                                                                          \
   inputs,                                                                                         \
   outputs,                                                                                        \
   ref::name<float>,                                                                               \
   ref::name<double>,                                                                              \
   ref::name<Bf16>,                                                                                \
   fastOf<float>(#name),                                                                           \
   fastOf<Bf16>(#name)},
#include "moira/rt/Calls.def"
};

/// Calls that take f32 and bf16 side by side, whichever comes first: U is then each operand's own.
/// Gradients all do: the cotangents of tokens are f32 in a bf16 program. So does scale, which
/// rounds, and what is made of a loss's logits.
constexpr bool mixes(std::string_view name) {
  return name == "rope" || name == "rms_sums" || name == "choice_dots" || name == "scale" ||
         name == "row_max" || name == "cross_entropy_stats" || name == "row_max_stats" ||
         name.ends_with("_grad");
}

/// Checks operands against a Calls.def list ("x:T[t..,D] ids:i32[t..,k]"): how many, and their
/// dtypes. `scalar` is the type S of the implementation: that of the first float operand, or bf16
/// where some operand of a call that mixes has it. The others of type T have it, too; A is its
/// accumulator, U either.
Status checkOperands(const Call &call, std::string_view spec, std::span<const TensorRef> operands,
                     std::optional<fb::DType> &scalar) {
  size_t next = 0;
  for (size_t at = 0; at < spec.size();) {
    size_t end = std::min(spec.find(' ', at), spec.size());
    std::string_view word = spec.substr(at, end - at);
    at = end + 1;
    size_t colon = word.find(':');
    std::string role(word.substr(0, colon));
    std::string_view type = word.substr(colon + 1, word.find('[') - colon - 1);
    // Left out from the end, or whatever `with` does not name.
    if (word.back() == '?' && (call.params.texts.contains("with") ? call.params.optional(role) < 0
                                                                  : next == operands.size()))
      continue;
    if (next == operands.size())
      return badCall(call, "operand '" + role + "' is missing");
    fb::DType dtype = operands[next++].dtype;
    const char *dtypeName = fb::EnumNameDType(dtype);
    if (type == "T" || type == "A" || type == "U") {
      if (dtype != fb::DType::f32 && dtype != fb::DType::f64 && dtype != fb::DType::bf16)
        return Status(ErrorId::PlanTarget,
                      format("the host device has no %s version of call '%s' (operand '%s'); "
                             "compile with --dtype=f32 or bf16 for --target=host",
                             dtypeName, std::string(call.name).c_str(), role.c_str()));
      if (!scalar)
        scalar = dtype;
      fb::DType sums = *scalar == fb::DType::bf16 ? fb::DType::f32 : *scalar;
      bool fits = type == "T"   ? dtype == *scalar
                  : type == "A" ? dtype == sums
                                : dtype == *scalar || dtype == sums;
      if (!fits)
        return badCall(call, "operand '" + role + "' is " + dtypeName + " where others are " +
                                 fb::EnumNameDType(*scalar));
    } else if (type == "*") {
      if (dtype != call.in[0].dtype)
        return badCall(call, "operand '" + role + "' is " + dtypeName + " where others are " +
                                 fb::EnumNameDType(call.in[0].dtype));
    } else if (type == "I" ? dtype != fb::DType::i32 && dtype != fb::DType::i64
                           : type != dtypeName) {
      return badCall(call, "operand '" + role + "' is " + dtypeName);
    }
  }
  if (next != operands.size())
    return badCall(call, format("%zu operands where the call has %zu", operands.size(), next));
  return {};
}

} // namespace
} // namespace host

Status runHostCall(std::string_view name, CallFlavor flavor, std::span<const TensorRef> inputs,
                   std::span<const TensorRef> outputs, const CallParams &params,
                   const RouteHooks *hooks) {
  const auto *entry = std::find_if(std::begin(host::table), std::end(host::table),
                                   [&](const host::Entry &e) { return e.name == name; });
  if (entry == std::end(host::table))
    return Status(ErrorId::PlanUnknownCall,
                  "the host device has no call '" + std::string(name) +
                      "'; compile the plan with the moe-opt of this version");
  host::Call call{name, inputs, outputs, params, hooks};
  std::optional<fb::DType> scalar;
  if (host::mixes(name))
    for (std::span<const TensorRef> operands : {inputs, outputs})
      for (const TensorRef &operand : operands)
        if (operand.dtype == fb::DType::bf16)
          scalar = fb::DType::bf16;
  if (Status s = host::checkOperands(call, entry->inputs, inputs, scalar); !s)
    return s;
  if (Status s = host::checkOperands(call, entry->outputs, outputs, scalar); !s)
    return s;
  if (scalar == fb::DType::f64)
    return entry->f64(call);
  bool isBf16 = scalar == fb::DType::bf16;
  const host::Fast &fast = isBf16 ? entry->fastBf16 : entry->fastF32;
  if (flavor == CallFlavor::fast && fast.run && (!fast.needsOneDnn || host::OneDnn::get()))
    return fast.run(call);
  return isBf16 ? entry->bf16(call) : entry->f32(call);
}

} // namespace moira::rt
