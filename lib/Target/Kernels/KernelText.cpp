//===- KernelText.cpp - The text form of kernel specs ---------------------===//
//
// Prints and reads specs. The text is both the key that finds equal kernels and what the test tool
// takes.
//
//===----------------------------------------------------------------------===//
#include "moira/Target/Kernels/KernelSpec.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/raw_ostream.h"
#include <cmath>
#include <optional>

using namespace moira::kernels;
using llvm::ArrayRef;
using llvm::Error;
using llvm::Expected;
using llvm::StringRef;

static constexpr StringRef kTypes[] = {"f32", "bf16", "f16", "i32"};
static constexpr StringRef kActivations[] = {"silu", "gelu", "gelu_tanh", "relu"};
static constexpr StringRef kSteps[] = {"rms_norm", "layer_norm",   "sum_squares", "rms_apply",
                                       "add",      "scale",        "clamp",       "act",
                                       "glu",      "sigmoid_gate", "rope",        "cast"};

StringRef moira::kernels::toString(ScalarType type) { return kTypes[unsigned(type)]; }
StringRef moira::kernels::toString(Activation a) { return kActivations[unsigned(a)]; }
StringRef moira::kernels::toString(StepKind kind) { return kSteps[unsigned(kind)]; }

//===----------------------------------------------------------------------===//
// Printing
//===----------------------------------------------------------------------===//

std::string KernelSpec::key() const {
  std::string text;
  llvm::raw_string_ostream os(text);
  auto real = [&](StringRef name, double value) {
    os << ' ' << name << '=' << llvm::format("%.17g", value);
  };
  for (const KernelOperand &operand : operands) {
    if (operand.output)
      continue;
    os << (operand.rowwise ? "in " : "shared ") << toString(operand.type) << '[';
    llvm::interleave(operand.inner, os, ",");
    os << "]; ";
  }
  unsigned value = numInputs();
  for (const KernelStep &step : steps) {
    os << 'v' << value++ << " = " << toString(step.kind);
    for (unsigned a : step.args)
      os << " v" << a;
    switch (step.kind) {
    case StepKind::RmsApply:
      os << " count=" << step.count;
      [[fallthrough]];
    case StepKind::RmsNorm:
    case StepKind::LayerNorm:
      real("eps", step.eps);
      break;
    case StepKind::SumSquares:
      os << " dims=" << step.normDims;
      break;
    case StepKind::Clamp:
      real("lo", step.lo);
      real("hi", step.hi);
      break;
    case StepKind::Scale:
      real("by", step.factor);
      break;
    case StepKind::Act:
      os << " act=" << toString(step.activation);
      break;
    case StepKind::Glu:
      os << " act=" << toString(step.activation);
      if (std::isfinite(step.limit))
        real("limit", step.limit);
      if (step.alpha != 1)
        real("alpha", step.alpha);
      if (step.upShift != 0)
        real("up_shift", step.upShift);
      break;
    default:
      break;
    }
    os << " : " << toString(step.type) << "; ";
  }
  llvm::interleave(results, os, [&](unsigned v) { os << "out v" << v; }, "; ");
  return text;
}

//===----------------------------------------------------------------------===//
// Reading
//===----------------------------------------------------------------------===//

template <typename E> static std::optional<E> lookUp(ArrayRef<StringRef> names, StringRef name) {
  const auto *it = llvm::find(names, name);
  if (it == names.end())
    return std::nullopt;
  return E(it - names.begin());
}

static Error bad(StringRef clause) {
  return llvm::createStringError("cannot read '%s'", clause.str().c_str());
}

/// "f32[2,64]"
static bool readOperand(StringRef text, KernelOperand &operand) {
  auto [name, dims] = text.split('[');
  std::optional<ScalarType> type = lookUp<ScalarType>(kTypes, name);
  if (!type || !dims.consume_back("]"))
    return false;
  operand.type = *type;
  llvm::SmallVector<StringRef> parts;
  dims.split(parts, ',', -1, /*KeepEmpty=*/false);
  for (StringRef part : parts)
    if (part.trim().getAsInteger(10, operand.inner.emplace_back()))
      return false;
  return true;
}

static bool readValue(StringRef text, unsigned &value) {
  return text.consume_front("v") && !text.getAsInteger(10, value);
}

static bool readAttribute(StringRef text, KernelStep &step) {
  auto [name, value] = text.split('=');
  if (name == "eps")
    return !value.getAsDouble(step.eps);
  if (name == "lo")
    return !value.getAsDouble(step.lo);
  if (name == "hi")
    return !value.getAsDouble(step.hi);
  if (name == "by")
    return !value.getAsDouble(step.factor);
  if (name == "limit")
    return !value.getAsDouble(step.limit);
  if (name == "alpha")
    return !value.getAsDouble(step.alpha);
  if (name == "up_shift")
    return !value.getAsDouble(step.upShift);
  if (name == "count")
    return !value.getAsInteger(10, step.count);
  if (name == "dims")
    return !value.getAsInteger(10, step.normDims);
  std::optional<Activation> act = lookUp<Activation>(kActivations, value);
  if (name != "act" || !act)
    return false;
  step.activation = *act;
  return true;
}

/// "v2 = rms_norm v0 v1 eps=1e-5 : f32"
static bool readStep(StringRef text, unsigned number, KernelStep &step) {
  auto [left, right] = text.split('=');
  auto [call, typeName] = right.rsplit(':');
  unsigned value;
  llvm::SmallVector<StringRef> words;
  call.trim().split(words, ' ', -1, /*KeepEmpty=*/false);
  std::optional<ScalarType> type = lookUp<ScalarType>(kTypes, typeName.trim());
  if (!readValue(left.trim(), value) || value != number || !type || words.empty())
    return false;
  std::optional<StepKind> kind = lookUp<StepKind>(kSteps, words[0]);
  if (!kind)
    return false;
  step.kind = *kind;
  step.type = *type;
  return llvm::all_of(ArrayRef(words).drop_front(), [&](StringRef word) {
    return word.contains('=') ? readAttribute(word, step)
                              : readValue(word, step.args.emplace_back());
  });
}

Expected<KernelSpec> moira::kernels::parseKernelSpec(StringRef text) {
  KernelSpec spec;
  llvm::SmallVector<StringRef> lines, clauses;
  text.split(lines, '\n');
  for (StringRef line : lines)
    line.split('#').first.split(clauses, ';');
  for (StringRef clause : clauses) {
    StringRef rest = clause = clause.trim();
    if (clause.empty())
      continue;
    if (bool rowwise = rest.consume_front("in "); rowwise || rest.consume_front("shared ")) {
      KernelOperand operand;
      operand.rowwise = rowwise;
      if (!spec.steps.empty() || !spec.results.empty() || !readOperand(rest.trim(), operand))
        return bad(clause);
      spec.operands.push_back(std::move(operand));
    } else if (rest.consume_front("out ")) {
      unsigned value;
      if (!readValue(rest.trim(), value))
        return bad(clause);
      spec.output(value);
    } else {
      KernelStep step;
      if (!spec.results.empty() || !readStep(rest, spec.numInputs() + spec.steps.size(), step))
        return bad(clause);
      spec.steps.push_back(std::move(step));
    }
  }
  spec.name = spec.stepNames();
  return spec;
}
