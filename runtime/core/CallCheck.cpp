//===- CallCheck.cpp - one check of one library call ------------*- C++ -*-===//
// Unification of a call's operands with Calls.def, and what the contracts of calls are written
// with. See CallCheck.h.
//===----------------------------------------------------------------------===//
#include "CallCheck.h"

#include <algorithm>
#include <cmath>

namespace moira::rt {

std::string sizeText(Dim dim) { return std::to_string(dim.scale) + (dim.ragged ? "*B" : ""); }

void CallCheck::checkParams() {
  for (const ParamDesc &desc : call.params) {
    const CallParam *param = find(desc.name);
    if (!param && !desc.optional)
      fail("parameter " + desc.name + " is missing");
    else if (param && param->kind != desc.kind)
      fail(format("parameter %s has kind %d, not %s", desc.name.c_str(),
                  static_cast<int>(param->kind), fb::EnumNameParamKind(desc.kind)));
    else if (param && param->kind == fb::ParamKind::real && std::isnan(param->real))
      fail("parameter " + desc.name + " is not a number");
    else if (param && param->kind == fb::ParamKind::reals &&
             std::any_of(param->reals.begin(), param->reals.end(),
                         [](double value) { return std::isnan(value); }))
      fail("parameter " + desc.name + " holds something that is not a number");
  }
  for (size_t i = 0; i < params.size(); ++i) {
    bool known = false;
    for (const ParamDesc &desc : call.params)
      known |= desc.name == params[i].name;
    if (!known || find(params[i].name) != &params[i])
      fail(format("parameter %zu is %s", i, known ? "given twice" : "not one of this call"));
  }
}

/// The operands that the call may have: all, or, if it has the parameter `with`, without the
/// optional ones that `with` does not name. What is named must be there, so it is not optional
/// then.
CallCheck::Descs CallCheck::given(const std::vector<OperandDesc> &descs) const {
  bool named = false;
  for (const ParamDesc &param : call.params)
    named |= param.name == "with";
  const CallParam *with = named ? find("with") : nullptr;
  Descs result;
  for (const OperandDesc &desc : descs)
    if (!desc.optional || !named ||
        (with &&
         (" " + std::string(with->text) + " ").find(" " + desc.role + " ") != std::string::npos))
      result.push_back(&desc);
  return result;
}

/// `with` names optional inputs in their order, and then outputs that no input has the name of.
void CallCheck::checkWith() {
  const CallParam *with = find("with");
  if (!with)
    return;
  std::vector<std::string_view> roles;
  for (const std::vector<OperandDesc> *descs : {&call.inputs, &call.outputs})
    for (const OperandDesc &desc : *descs)
      if (desc.optional && std::find(roles.begin(), roles.end(), desc.role) == roles.end())
        roles.push_back(desc.role);
  std::string_view rest = with->text;
  for (std::string_view role : roles)
    if (rest.starts_with(role) && (rest.size() == role.size() || rest[role.size()] == ' '))
      rest.remove_prefix(std::min(rest.size(), role.size() + 1));
  if (!rest.empty())
    fail("with names an operand that is none of the optional ones, or not in their order");
}

void CallCheck::checkTypes(const Descs &descs, std::span<const CallOperand> operands,
                           const char *side) {
  size_t least = 0;
  for (const OperandDesc *desc : descs)
    least += !desc->optional || find("with");
  if (operands.size() < least || operands.size() > descs.size()) {
    fail(format("%zu %s where %zu are wanted", operands.size(), side, descs.size()));
    return;
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    fb::DType have = operands[i].dtype, want = descs[i]->dtype;
    switch (descs[i]->type) {
    case OperandDesc::compute:
      want = env.compute;
      break;
    case OperandDesc::accumulate:
      want = env.compute == fb::DType::f64 ? fb::DType::f64 : fb::DType::f32;
      break;
    case OperandDesc::either:
      if (have != env.compute)
        want = env.compute == fb::DType::f64 ? fb::DType::f64 : fb::DType::f32;
      else
        want = env.compute;
      break;
    case OperandDesc::index:
      want = have == fb::DType::i64 ? have : fb::DType::i32;
      break;
    case OperandDesc::any:
      if (!anyType && dtypeBytes(have) != 0)
        anyType = have;
      want = anyType.value_or(fb::DType::f32);
      break;
    case OperandDesc::exact:
      break;
    }
    if (have != want)
      fail(format("operand %s is %s, not %s", descs[i]->role.c_str(), dtypeText(have).c_str(),
                  dtypeText(want).c_str()));
    if (!elementsOf(operands[i].shape, env.boundMax))
      fail(format("operand %s has an impossible shape %s", descs[i]->role.c_str(),
                  shapeText(operands[i].shape).c_str()));
  }
}

/// Gives every dimension of the operand to its name. False (without a problem) if two runs of
/// unknown length leave it open which dimension is whose.
bool CallCheck::bind(const OperandDesc &desc, const CallOperand &operand) {
  const DimPattern *open = nullptr;
  size_t known = 0;
  for (const DimPattern &pattern : desc.dims) {
    if (pattern.kind != DimPattern::run)
      ++known;
    else if (auto it = runLengths.find(pattern.name); it != runLengths.end())
      known += it->second;
    else if (open)
      return false;
    else
      open = &pattern;
  }
  if (open ? operand.shape.size() < known : operand.shape.size() != known) {
    fail(format("operand %s has %zu dimensions, %s%zu are wanted: %s", desc.role.c_str(),
                operand.shape.size(), open ? "at least " : "", known,
                shapeText(operand.shape).c_str()));
    return true;
  }
  if (open)
    runLengths[open->name] = operand.shape.size() - known;
  size_t at = 0;
  for (const DimPattern &pattern : desc.dims) {
    if (pattern.kind == DimPattern::run) {
      size_t length = runLengths[pattern.name];
      Shape part(operand.shape.begin() + at, operand.shape.begin() + at + length);
      auto [it, fresh] = runs.try_emplace(pattern.name, part);
      if (!fresh && it->second != part)
        fail(format("operand %s has %s where %s.. is %s", desc.role.c_str(),
                    shapeText(part).c_str(), pattern.name.c_str(), shapeText(it->second).c_str()));
      at += length;
      continue;
    }
    Dim have = operand.shape[at++];
    Dim want{pattern.value, false};
    if (pattern.kind == DimPattern::named)
      want = dims.try_emplace(pattern.name, have).first->second;
    if (have != want)
      fail(format("operand %s has %s where %s is wanted%s%s: %s", desc.role.c_str(),
                  sizeText(have).c_str(), sizeText(want).c_str(),
                  pattern.name.empty() ? "" : " for ", pattern.name.c_str(),
                  shapeText(operand.shape).c_str()));
  }
  return true;
}

bool CallCheck::unify() {
  checkParams();
  if (!problems.ok())
    return false;
  checkWith();
  read = given(call.inputs);
  Descs written = given(call.outputs);
  checkTypes(read, inputs, "inputs");
  checkTypes(written, outputs, "outputs");
  if (!problems.ok())
    return false;
  read.resize(inputs.size()); // optional ones at the end may be left out
  // These parameters say how many trailing dimensions a run has.
  for (auto [param, run] : {std::pair("contract", "K"), std::pair("norm_dims", "N")})
    if (const CallParam *p = find(param)) {
      if (p->integer < 1 || p->integer > 16) {
        fail(format("%s is %lld, not 1 to 16", param, static_cast<long long>(p->integer)));
        return false;
      }
      runLengths[run] = p->integer;
    }
  std::vector<std::pair<const OperandDesc *, const CallOperand *>> left, later;
  for (size_t i = 0; i < inputs.size(); ++i)
    left.emplace_back(read[i], &inputs[i]);
  for (size_t i = 0; i < outputs.size(); ++i)
    left.emplace_back(written[i], &outputs[i]);
  while (!left.empty()) {
    later.clear();
    for (auto [desc, operand] : left)
      if (!bind(*desc, *operand))
        later.emplace_back(desc, operand);
    if (later.size() == left.size()) {
      fail("the operands leave the lengths of their runs of dimensions open");
      return false;
    }
    left.swap(later);
  }
  return problems.ok();
}

OffsetRange CallCheck::offset(const char *name) {
  const CallParam *param = find(name);
  Expected<OffsetRange> range = offsetRange(param->integer, param->axes, env.axisSizes);
  if (range)
    return *range;
  for (const Diagnostic &d : range.status().diagnostics())
    fail(std::string(name) + ": " + d.message, d.id);
  return {0, 0, std::vector<int64_t>(env.axisSizes.size(), 0)};
}

int64_t CallCheck::fixed(const char *name) {
  Dim have = dim(name);
  if (!have.ragged)
    return have.scale;
  fail(format("%s is %s; it may not depend on the bound", name, sizeText(have).c_str()));
  return 0;
}

int64_t CallCheck::fixedRun(const char *name) {
  std::optional<Dim> total = elementsOf(run(name), env.boundMax);
  if (total && !total->ragged)
    return total->scale;
  fail(format("%s.. is %s; it may not depend on the bound", name, shapeText(run(name)).c_str()));
  return 0;
}

void CallCheck::atLeast(const char *name, int64_t least) {
  if (integer(name) < least)
    fail(format("%s is %lld, under %lld", name, static_cast<long long>(integer(name)),
                static_cast<long long>(least)));
}

void CallCheck::fitsInt32(Dim size, const char *what) {
  if (Wide(size.scale) * (size.ragged ? env.boundMax : 1) > kInt32Max)
    fail(format("%s are %s, more than an i32 can count", what, sizeText(size).c_str()));
}

void CallCheck::runFitsInt32(const char *name, const char *what) {
  int64_t scale = 1;
  bool ragged = false;
  for (const Dim &d : run(name)) {
    scale *= d.scale;
    ragged |= d.ragged;
  }
  fitsInt32({scale, ragged}, what);
}

void CallCheck::oneOf(const char *name, std::initializer_list<std::string_view> values) {
  std::string list;
  for (std::string_view value : values) {
    if (find(name)->text == value)
      return;
    list += std::string(list.empty() ? "" : ", ") + std::string(value);
  }
  fail(std::string(name) + " is none of " + list);
}

} // namespace moira::rt
