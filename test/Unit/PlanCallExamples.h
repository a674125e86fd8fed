//===- PlanCallExamples.h - one accepted use of every call ------*- C++ -*-===//
// Shapes and parameters for the tests of the call registry, and a plan that holds them all.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_PLANCALLEXAMPLES_H
#define MOIRA_TEST_UNIT_PLANCALLEXAMPLES_H

#include "PlanTestBuilder.h"

#include "moira/rt/CallRegistry.h"

namespace moira::rt::test {

struct Example {
  std::string call;
  std::vector<CallOperand> inputs, outputs;
  std::vector<CallParam> params;
};

inline CallOperand f(std::initializer_list<int64_t> sizes, int ragged = -1,
                     fb::DType dtype = fb::DType::f32) {
  CallOperand operand{dtype, {}};
  for (int64_t size : sizes)
    operand.shape.push_back({size, static_cast<int>(operand.shape.size()) == ragged});
  return operand;
}
inline CallOperand i(std::initializer_list<int64_t> sizes) { return f(sizes, -1, fb::DType::i32); }
inline CallParam integer(std::string_view name, int64_t value) {
  return {.name = name, .kind = fb::ParamKind::integer, .integer = value};
}
inline CallParam real(std::string_view name, double value) {
  return {.name = name, .kind = fb::ParamKind::real, .real = value};
}
inline CallParam reals(std::string_view name, std::span<const double> values) {
  return {.name = name, .kind = fb::ParamKind::reals, .reals = values};
}
inline CallParam text(std::string_view name, std::string_view value) {
  return {.name = name, .kind = fb::ParamKind::text, .text = value};
}
inline CallParam offset(std::string_view name, int64_t factor, std::span<const uint8_t> axes = {}) {
  return {.name = name, .kind = fb::ParamKind::offset, .integer = factor, .axes = axes};
}

inline constexpr double kFrequencies[] = {1, 0.1, 0.01, 0.001};
inline constexpr uint8_t kDp[] = {0}, kTp[] = {1}, kBoth[] = {0, 1};
inline constexpr uint32_t kMesh[] = {2, 4}; // dp, tp
inline CallEnv env() { return {fb::DType::f32, kMesh, 32}; }

/// In the order of Calls.def, valid in env().
std::vector<Example> examples();

/// Fills the inputs of every example and makes its call, on the mesh of env().
PlanSpec callsPlan();

} // namespace moira::rt::test

#endif // MOIRA_TEST_UNIT_PLANCALLEXAMPLES_H
