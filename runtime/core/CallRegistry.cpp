//===- CallRegistry.cpp - Calls.def as a table ------------------*- C++ -*-===//
// Parses the descriptor strings of Calls.def once, and the small helpers on shapes. The contract
// checks are in CallChecks.cpp.
//===----------------------------------------------------------------------===//
#include "moira/rt/CallRegistry.h"

#include <cstdlib>
#include <unordered_map>

namespace moira::rt {
namespace {

/// The descriptor strings are part of this program: a mistake in them is found at the first use of
/// any call, by every test.
[[noreturn]] void badDescriptor(std::string_view call, std::string_view text) {
  std::fprintf(stderr, "error MOE-0699: Calls.def: cannot parse \"%.*s\" of call %.*s\n",
               static_cast<int>(text.size()), text.data(), static_cast<int>(call.size()),
               call.data());
  std::abort();
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    size_t end = text.find(separator);
    if (end != 0)
      parts.push_back(text.substr(0, end));
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  return parts;
}

DimPattern parseDim(std::string_view text) {
  DimPattern dim;
  if (text.ends_with("..")) {
    dim.kind = DimPattern::run;
    dim.name = text.substr(0, text.size() - 2);
  } else if (text[0] >= '0' && text[0] <= '9') {
    dim.kind = DimPattern::literal;
    dim.value = std::atoll(std::string(text).c_str());
  } else {
    dim.name = text;
  }
  return dim;
}

bool parseType(std::string_view text, OperandDesc &operand) {
  if (text == "T") {
    operand.type = OperandDesc::compute;
  } else if (text == "A") {
    operand.type = OperandDesc::accumulate;
  } else if (text == "U") {
    operand.type = OperandDesc::either;
  } else if (text == "I") {
    operand.type = OperandDesc::index;
  } else if (text == "*") {
    operand.type = OperandDesc::any;
  } else {
    operand.type = OperandDesc::exact;
    for (fb::DType dtype : fb::EnumValuesDType())
      if (text == fb::EnumNameDType(dtype)) {
        operand.dtype = dtype;
        return true;
      }
    return false;
  }
  return true;
}

std::vector<OperandDesc> parseOperands(std::string_view call, std::string_view text) {
  std::vector<OperandDesc> operands;
  for (std::string_view word : split(text, ' ')) {
    OperandDesc operand;
    std::string_view rest = word;
    if (rest.ends_with("?")) {
      operand.optional = true;
      rest.remove_suffix(1);
    }
    size_t colon = rest.find(':'), open = rest.find('[');
    if (colon == std::string_view::npos || open == std::string_view::npos || open < colon ||
        !rest.ends_with("]") || !parseType(rest.substr(colon + 1, open - colon - 1), operand))
      badDescriptor(call, word);
    operand.role = rest.substr(0, colon);
    for (std::string_view dim : split(rest.substr(open + 1, rest.size() - open - 2), ','))
      operand.dims.push_back(parseDim(dim));
    operands.push_back(std::move(operand));
  }
  return operands;
}

std::vector<ParamDesc> parseParams(std::string_view call, std::string_view text) {
  std::vector<ParamDesc> params;
  for (std::string_view word : split(text, ' ')) {
    ParamDesc param;
    std::string_view rest = word;
    if (rest.ends_with("?")) {
      param.optional = true;
      rest.remove_suffix(1);
    }
    if (rest.size() < 3 || rest[rest.size() - 2] != ':')
      badDescriptor(call, word);
    param.name = rest.substr(0, rest.size() - 2);
    switch (rest.back()) {
    case 'i':
      param.kind = fb::ParamKind::integer;
      break;
    case 'r':
      param.kind = fb::ParamKind::real;
      break;
    case 's':
      param.kind = fb::ParamKind::text;
      break;
    case 'l':
      param.kind = fb::ParamKind::integers;
      break;
    case 'o':
      param.kind = fb::ParamKind::offset;
      break;
    case 'v':
      param.kind = fb::ParamKind::reals;
      break;
    default:
      badDescriptor(call, word);
    }
    params.push_back(std::move(param));
  }
  return params;
}

std::vector<CallDesc> parseAll() {
  std::vector<CallDesc> calls;
#define MOIRA_CALL(name, inputs, outputs, params)                                                  \
  calls.push_back({#name, parseOperands(#name, inputs), parseOperands(#name, outputs),             \
                   parseParams(#name, params)});
#include "moira/rt/Calls.def"
  return calls;
}

/// No product of sizes in a plan may pass this many elements; sums and products of a few such
/// numbers with dtype sizes stay inside 64 bits.
constexpr int64_t kMaxElements = int64_t(1) << 47;

} // namespace

const std::vector<CallDesc> &allCalls() {
  static const std::vector<CallDesc> calls = parseAll();
  return calls;
}

const CallDesc *findCall(std::string_view name) {
  static const auto index = [] {
    std::unordered_map<std::string_view, const CallDesc *> map;
    for (const CallDesc &call : allCalls())
      map.emplace(call.name, &call);
    return map;
  }();
  auto it = index.find(name);
  return it == index.end() ? nullptr : it->second;
}

std::optional<size_t> squaresOutput(const CallDesc &call) {
  for (size_t i = 0; i < call.outputs.size(); ++i)
    if (call.outputs[i].role == "squares")
      return i;
  return std::nullopt;
}

Expected<OffsetRange> offsetRange(int64_t factor, std::span<const uint8_t> axes,
                                  std::span<const uint32_t> axisSizes) {
  constexpr int64_t kLimit = int64_t(1) << 40;
  OffsetRange range;
  range.perAxis.assign(axisSizes.size(), 0);
  std::vector<bool> seen(axisSizes.size());
  if (factor > kLimit || factor < -kLimit)
    return Status(ErrorId::PlanShape,
                  format("offset factor %lld is beyond 2^40", static_cast<long long>(factor)));
  int64_t stride = factor; // what one step along the current axis adds; the last axis is minor
  for (size_t n = axes.size(); n-- > 0;) {
    size_t axis = axes[n];
    if (axis >= axisSizes.size() || seen[axis])
      return Status(
          ErrorId::PlanIndex,
          format("offset names axis %zu of %zu twice or beyond the mesh", axis, axisSizes.size()));
    seen[axis] = true;
    int64_t added, next;
    if (__builtin_mul_overflow(stride, int64_t(axisSizes[axis]) - 1, &added) ||
        __builtin_mul_overflow(stride, int64_t(axisSizes[axis]), &next) || added > kLimit ||
        added < -kLimit)
      return Status(ErrorId::PlanShape, "offset passes 2^40 on the last rank");
    range.perAxis[axis] = added;
    (added < 0 ? range.least : range.most) += added;
    stride = next;
  }
  if (range.most > kLimit || range.least < -kLimit)
    return Status(ErrorId::PlanShape, "offset passes 2^40 on the last rank");
  return range;
}

std::string shapeText(std::span<const Dim> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size() && i < 12; ++i) {
    if (i)
      text += ", ";
    text += std::to_string(shape[i].scale);
    if (shape[i].ragged)
      text += "*B";
  }
  return text + (shape.size() > 12 ? ", …]" : "]");
}

std::string dtypeText(fb::DType dtype) {
  return dtypeBytes(dtype) ? std::string(fb::EnumNameDType(dtype))
                           : "dtype " + std::to_string(static_cast<int>(dtype));
}

unsigned dtypeBytes(fb::DType dtype) {
  switch (dtype) {
  case fb::DType::f32:
  case fb::DType::i32:
    return 4;
  case fb::DType::f64:
  case fb::DType::i64:
    return 8;
  case fb::DType::bf16:
  case fb::DType::f16:
    return 2;
  case fb::DType::u8:
    return 1;
  }
  return 0;
}

std::optional<Dim> elementsOf(std::span<const Dim> shape, int64_t boundMax) {
  Dim total;
  int64_t most = 1;
  for (const Dim &dim : shape) {
    int64_t largest = dim.scale;
    if (dim.scale < 1 || (dim.ragged && (total.ragged || boundMax < 1)) ||
        (dim.ragged && __builtin_mul_overflow(dim.scale, boundMax, &largest)) ||
        __builtin_mul_overflow(most, largest, &most) || most > kMaxElements)
      return std::nullopt;
    total.scale *= dim.scale;
    total.ragged |= dim.ragged;
  }
  return total;
}

} // namespace moira::rt
