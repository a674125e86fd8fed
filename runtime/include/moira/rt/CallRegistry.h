//===- CallRegistry.h - what library calls accept ---------------*- C++ -*-===//
// Calls.def as data, and the check that one call's operands and parameters keep its contract. The
// plan verifier refuses plans by it, the compiler checks by it what it is about to emit. What a
// call computes is the device's business (Device.h), not told here.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_CALLREGISTRY_H
#define MOIRA_RT_CALLREGISTRY_H

#include "moira/rt/Status.h"
#include "plan_generated.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// Size of one dimension: `scale`, times the ragged bound B if `ragged`. Two sizes agree only if
/// they agree for every B.
struct Dim {
  int64_t scale = 1;
  bool ragged = false;
  bool operator==(const Dim &) const = default;
};

/// One dimension in an operand's pattern of Calls.def.
struct DimPattern {
  enum Kind { named, literal, run } kind = named; // n; 2; t..
  std::string name;                               // named, run
  int64_t value = 0;                              // literal
};

/// One operand in Calls.def.
struct OperandDesc {
  /// compute: the program's T; accumulate: A; either: T or A; index: i32 or i64; any: one
  /// type for all of these in a call; exact: `dtype`.
  enum TypeClass { compute, accumulate, either, index, any, exact } type = compute;
  fb::DType dtype = fb::DType::f32;
  std::string role;
  std::vector<DimPattern> dims;
  bool optional = false; // may be left out; see Calls.def
};

struct ParamDesc {
  std::string name;
  fb::ParamKind kind = fb::ParamKind::integer;
  bool optional = false;
};

struct CallDesc {
  std::string name;
  std::vector<OperandDesc> inputs, outputs;
  std::vector<ParamDesc> params;
};

/// All calls in the order of Calls.def; parsed at first use, immutable after, thread-safe.
const std::vector<CallDesc> &allCalls();
/// The call of that name, or null.
const CallDesc *findCall(std::string_view name);

/// An operand as a plan has it.
struct CallOperand {
  fb::DType dtype = fb::DType::f32;
  std::vector<Dim> shape;
};

/// A parameter as a plan has it; `kind` says which field counts. An offset's value on a rank is
/// integer * (row-major index of the rank along `axes`).
struct CallParam {
  std::string_view name;
  fb::ParamKind kind = fb::ParamKind::integer;
  int64_t integer = 0;
  double real = 0;
  std::string_view text{};
  std::span<const uint8_t> axes{};
  std::span<const double> reals{};
};

/// What a call is checked against.
struct CallEnv {
  fb::DType compute = fb::DType::f32; // T; A is f32, or f64 where T is f64
  std::span<const uint32_t> axisSizes;
  int64_t boundMax = 0; // ragged dims hold for every bound in 1..boundMax; 0: none allowed
};

/// Every way in which the call breaks its contract (PlanShape, and PlanIndex for axes). Success
/// means that an implementation that checks the *values* of its index operands stays inside its
/// operands on every rank and for every bound. Total: any operands and parameters may be given.
Status checkCall(const CallDesc &call, std::span<const CallOperand> inputs,
                 std::span<const CallOperand> outputs, std::span<const CallParam> params,
                 const CallEnv &env);

/// Whether a call is a gate that chooses experts itself: what routing files have and replace.
inline bool choosesExperts(std::string_view call) {
  return call == "route" || call == "sampled_route";
}

/// Which output of an update is the sum of its gradient's squares, which may be left out: it is
/// only written, while an update reads all others where they lie. Nothing where the call has none.
std::optional<size_t> squaresOutput(const CallDesc &call);

/// Smallest and largest value that an offset takes over all ranks, and what each axis adds at most
/// (per axis of `axisSizes`). Fails on an unknown or repeated axis (PlanIndex) or numbers beyond
/// 2^40 (PlanShape).
struct OffsetRange {
  int64_t least = 0, most = 0;
  std::vector<int64_t> perAxis;
};
Expected<OffsetRange> offsetRange(int64_t factor, std::span<const uint8_t> axes,
                                  std::span<const uint32_t> axisSizes);

/// "[2, 3*B, 64]".
std::string shapeText(std::span<const Dim> shape);
/// "f32"; "dtype 77" for a value that is none.
std::string dtypeText(fb::DType dtype);
/// Bytes of one element, 0 for a value that is no DType.
unsigned dtypeBytes(fb::DType dtype);
/// Product of the sizes; nullopt if it passes 2^47 at boundMax, if a scale is under 1, or if more
/// than one dimension is ragged.
std::optional<Dim> elementsOf(std::span<const Dim> shape, int64_t boundMax);

} // namespace moira::rt

#endif // MOIRA_RT_CALLREGISTRY_H
