//===- CallCheck.h - one check of one library call --------------*- C++ -*-===//
// What the functions that check the calls of Calls.def see. They are in CallChecks.cpp and, for
// GradCalls.def, in GradCallChecks.cpp.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CORE_CALLCHECK_H
#define MOIRA_RT_CORE_CALLCHECK_H

#include "moira/rt/CallRegistry.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <map>
#include <utility>

namespace moira::rt {

inline constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
using Shape = std::vector<Dim>;
using Wide = __int128; // products of two sizes or of a size and a count of ranks

/// A size for people: "24", or "24*B" if it grows with the bound.
std::string sizeText(Dim dim);

/// State of one check: the bindings found by unification, and the problems.
class CallCheck {
public:
  CallCheck(const CallDesc &call, std::span<const CallOperand> inputs,
            std::span<const CallOperand> outputs, std::span<const CallParam> params,
            const CallEnv &env)
      : call(call), inputs(inputs), outputs(outputs), params(params), env(env) {}

  /// Parameters, counts, types and names. The extra checks may run only if this succeeds.
  bool unify();

  // What the extra checks see; only names that Calls.def has for this call may be asked for.
  Dim dim(const char *name) const { return dims.at(name); }
  const Shape &run(const char *name) const { return runs.at(name); }
  int64_t integer(const char *name) const { return find(name)->integer; }
  size_t inputCount() const { return inputs.size(); }
  size_t outputCount() const { return outputs.size(); }
  /// One of the call's operands, which are all there.
  fb::DType inputType(size_t i) const { return inputs[i].dtype; }
  fb::DType outputType(size_t i) const { return outputs[i].dtype; }
  double real(const char *name) const { return find(name)->real; }
  // Of optional parameters and operands.
  bool has(const char *name) const { return find(name); }
  std::span<const double> list(const char *name) const { return find(name)->reals; }
  int64_t integerOr(const char *name, int64_t fallback) const {
    const CallParam *param = find(name);
    return param ? param->integer : fallback;
  }
  double realOr(const char *name, double fallback) const {
    const CallParam *param = find(name);
    return param ? param->real : fallback;
  }
  /// Empty if it is not given.
  std::string_view text(const char *name) const {
    const CallParam *param = find(name);
    return param ? std::string_view(param->text) : std::string_view();
  }
  /// Whether this input is there.
  bool hasInput(std::string_view role) const {
    return std::any_of(read.begin(), read.end(),
                       [&](const OperandDesc *desc) { return desc->role == role; });
  }
  OffsetRange offset(const char *name);

  /// A dimension that may not depend on the bound; 0 (and a problem) if it does.
  int64_t fixed(const char *name);
  /// Product of a run's sizes that may not depend on the bound; 0 (and a problem) if it does.
  int64_t fixedRun(const char *name);
  void atLeast(const char *name, int64_t least);
  void fitsInt32(Dim size, const char *what);
  /// The same of a run's product, which is part of an operand, so that unify() has bounded it.
  void runFitsInt32(const char *name, const char *what);
  void oneOf(const char *name, std::initializer_list<std::string_view> values);
  void fail(const std::string &message, ErrorId id = ErrorId::PlanShape) {
    problems.add(id, "call " + call.name + ": " + message);
  }
  Status take() { return std::move(problems); }

private:
  const CallParam *find(std::string_view name) const {
    for (const CallParam &param : params)
      if (param.name == name)
        return &param;
    return nullptr;
  }
  void checkParams();
  using Descs = std::vector<const OperandDesc *>;
  Descs given(const std::vector<OperandDesc> &descs) const;
  void checkWith();
  void checkTypes(const Descs &descs, std::span<const CallOperand> operands, const char *side);
  bool bind(const OperandDesc &desc, const CallOperand &operand);

  const CallDesc &call;
  std::span<const CallOperand> inputs, outputs;
  std::span<const CallParam> params;
  const CallEnv &env;
  Descs read; // one for each input
  std::map<std::string, Dim, std::less<>> dims;
  std::map<std::string, Shape, std::less<>> runs;
  std::map<std::string, size_t, std::less<>> runLengths;
  std::optional<fb::DType> anyType; // of all operands of any one type
  Status problems;
};

// Shared by the functions of both files.
void checkEps(CallCheck &c);
/// per_sample, where the call has it: tokens t.. with a first dimension are cut along that.
void checkPerSample(CallCheck &c, bool tokens = true);
void checkActivation(CallCheck &c);
/// k and E of a gate: no more choices than experts, which an i32 can number.
std::pair<int64_t, int64_t> checkGateSizes(CallCheck &c);
void checkRenormReals(CallCheck &c);
/// head_offset, kv_offset and the numbers of heads; window, causal and the optional operands.
void checkAttention(CallCheck &c);
void checkRelativeBias(CallCheck &c);

#define MOIRA_CALL(name, inputs, outputs, params) void check_##name(CallCheck &c);
#include "moira/rt/GradCalls.def"

} // namespace moira::rt

#endif // MOIRA_RT_CORE_CALLCHECK_H
