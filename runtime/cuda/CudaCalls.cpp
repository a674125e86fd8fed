//===- CudaCalls.cpp - from a call's name to its CUDA implementation --------===//
// The dispatch table, the check of operand counts and dtypes against Calls.def, error texts, and
// the helpers of CudaOps.h. No arithmetic and no kernels.
//===----------------------------------------------------------------------===//
#include "CudaCalls.h"
#include "kernels/CudaOps.h"

#include <algorithm>

namespace moira::rt::cuda {

Status badCall(const Call &call, const std::string &message) {
  return Status(ErrorId::BadRun, "call '" + std::string(call.name) + "': " + message +
                                     "; the plan or its data is damaged: compile the plan again");
}

Status notOnCuda(const Call &call, const std::string &what) {
  return Status(ErrorId::PlanTarget, "the CUDA device has no version of call '" +
                                         std::string(call.name) + "' for " + what +
                                         "; compile it for --target=host");
}

Status checked(std::string_view what, cudaError_t error) {
  if (error == cudaSuccess)
    return {};
  return Status(error == cudaErrorMemoryAllocation ? ErrorId::OutOfMemory : ErrorId::DeviceFailed,
                format("CUDA fails in '%.*s': %s (%s)", int(what.size()), what.data(),
                       cudaGetErrorString(error), cudaGetErrorName(error)));
}

Status noScratch(const Call &call) {
  return Status(ErrorId::OutOfMemory,
                format("call '%.*s' does not fit the CUDA workspace of %zu bytes; use a smaller "
                       "batch",
                       int(call.name.size()), call.name.data(), call.context.workspaceBytes));
}

int64_t trailing(const TensorRef &t, int64_t count) {
  int64_t n = 1;
  for (size_t i = t.shape.size() - size_t(count); i < t.shape.size(); ++i)
    n *= t.shape[i];
  return n;
}

int64_t leading(const TensorRef &t, int64_t count) {
  int64_t n = 1;
  for (size_t i = 0; i < t.shape.size() - size_t(count); ++i)
    n *= t.shape[i];
  return n;
}

Status checkTrailing(const Call &call, std::string_view name,
                     std::initializer_list<const TensorRef *> tensors) {
  int64_t value = call.params.integer(name);
  for (const TensorRef *t : tensors)
    if (value < 0 || value > int64_t(t->shape.size()))
      return badCall(call,
                     format("parameter %.*s is %lld for a tensor of %zu dimensions",
                            int(name.size()), name.data(), (long long)value, t->shape.size()));
  return {};
}

std::string describeErrorFlag(int32_t code) {
  switch (static_cast<Fault>(code)) {
  case Fault::none:
    return {};
  case Fault::expert:
    return "a token chose an expert that the layer does not have; the plan or its data is damaged: "
           "compile the plan again";
  case Fault::forcedExpert:
    return "forced routing sends a token to an expert that the layer does not have; use a routing "
           "file of the same model";
  case Fault::counts:
    return "the row counts of an exchange are negative or more than its slots hold; the plan or "
           "its "
           "data is damaged: compile the plan again";
  case Fault::groups:
    return "the groups of a grouped product are negative or more than its rows; the plan or its "
           "data is damaged: compile the plan again";
  case Fault::row:
    return "combine reads a row or grouped_glu a token that does not exist; the plan or its data "
           "is damaged: compile the plan again";
  case Fault::slot:
    return "a step writes rows of a state that it does not have; the plan or its data is damaged: "
           "compile the plan again";
  }
  return format("a kernel reports the unknown fault %d; device memory is damaged", code);
}

// What only plans of --deterministic have.
Status ops::exact_squares(const Call &call) { return notOnCuda(call, "plans of --deterministic"); }
Status ops::sample_counts(const Call &call) { return notOnCuda(call, "plans of --deterministic"); }

namespace {

struct Entry {
  std::string_view name;
  std::string_view inputs, outputs; // operand lists of Calls.def
  Status (*run)(const Call &);
};

constexpr Entry table[] = {
#define MOIRA_CALL(name, inputs, outputs, params) {#name, inputs, outputs, ops::name},
#include "moira/rt/Calls.def"
};

bool isFloatHere(fb::DType dtype) { return dtype == fb::DType::f32 || dtype == fb::DType::bf16; }

/// Checks operands against a list of Calls.def ("x:T[t..,D] ids:i32[t..,k]"): how many, and their
/// dtypes. T and U are f32 or bf16, each operand for itself; what mixtures of them a call takes is
/// its own to check.
Status checkOperands(const Call &call, std::string_view spec, std::span<const TensorRef> operands) {
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
    std::string dtypeName = fb::EnumNameDType(dtype);
    bool floating = type == "T" || type == "U" || type == "A";
    if (floating && !isFloatHere(dtype))
      return notOnCuda(call, dtypeName + " (operand '" + role + "')");
    bool fits = type == "*"   ? dtype == call.in[0].dtype
                : floating    ? type != "A" || dtype == fb::DType::f32
                : type == "I" ? dtype == fb::DType::i32 || dtype == fb::DType::i64
                              : type == dtypeName;
    if (!fits)
      return badCall(call, "operand '" + role + "' is " + dtypeName);
  }
  if (next != operands.size())
    return badCall(call, format("%zu operands where the call has %zu", operands.size(), next));
  return {};
}

} // namespace

Status runCudaCall(std::string_view name, std::span<const TensorRef> inputs,
                   std::span<const TensorRef> outputs, const CallParams &params,
                   CallContext &context) {
  const auto *entry = std::find_if(std::begin(table), std::end(table),
                                   [&](const Entry &e) { return e.name == name; });
  if (entry == std::end(table))
    return Status(ErrorId::PlanUnknownCall,
                  "the CUDA device has no call '" + std::string(name) +
                      "'; compile the plan with the moe-opt of this version");
  Call call{entry->name, inputs, outputs, params, context};
  if (Status s = checkOperands(call, entry->inputs, inputs); !s)
    return s;
  if (Status s = checkOperands(call, entry->outputs, outputs); !s)
    return s;
  if (params.integer("per_sample") != 0)
    return notOnCuda(call, "plans of --deterministic");
  return entry->run(call);
}

} // namespace moira::rt::cuda
