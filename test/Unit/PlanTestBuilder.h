//===- PlanTestBuilder.h - plans made by hand, for tests --------*- C++ -*-===//
// A plan as plain structs that a test may change at will, its serialisation, and two valid plans.
// What a change must lead to stands in the tests.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_PLANTESTBUILDER_H
#define MOIRA_TEST_UNIT_PLANTESTBUILDER_H

#include "moira/rt/PlanFile.h"

#include <cstdint>
#include <string>
#include <vector>

namespace moira::rt::test {

struct DimSpec {
  std::vector<uint8_t> axes{};
  uint32_t pad = 0;
};
struct ArenaSpec {
  std::string name{};
  fb::ArenaRole role = fb::ArenaRole::activations;
  uint64_t bytes = 0, bytesPerBound = 0;
  fb::Space space = fb::Space::device;
};
struct ViewSpec {
  uint16_t arena = 0;
  uint64_t offset = 0, offsetPerBound = 0;
  fb::DType dtype = fb::DType::f32;
  std::vector<int64_t> shape{};
  int32_t boundDim = -1;
};
struct ParamSpec {
  std::string name{};
  fb::ParamKind kind = fb::ParamKind::integer;
  int64_t i = 0;
  double r = 0;
  std::string s{};
  std::vector<uint8_t> axes{};
  std::vector<double> reals{};
};
struct InstrSpec {
  fb::InstrKind kind = fb::InstrKind::call;
  uint32_t target = 0;
  uint16_t queue = 0;
  std::vector<uint32_t> inputs{}, outputs{};
  std::vector<ParamSpec> params{};
  std::vector<uint8_t> axes{};
  uint32_t location = 0;
  int32_t layer = -1;
};
struct PortSpec {
  std::string name{};
  fb::DType dtype = fb::DType::f32;
  std::vector<int64_t> shape{};
  std::vector<DimSpec> dims{};
  uint32_t view = 0;
  int64_t minimum = 0, maximum = 0;
  std::vector<std::string> sources{}; // of an output; empty: no source
  std::vector<int64_t> diskShape{};
};
struct StateSpec {
  std::string name{};
  std::vector<int64_t> shape{};
  std::vector<DimSpec> dims{};
  uint16_t arena = 0;
  uint64_t offset = 0;
  std::vector<std::string> sources{}; // empty: no source
  bool perExpert = false;
  std::vector<int64_t> diskShape{};
  fb::DType dtype = fb::DType::f32;
  std::vector<uint8_t> permute{}; // empty: none
  std::vector<int64_t> slice{};   // empty: none
  bool transient = false;
};
struct ProgramSpec {
  std::string name{};
  uint32_t ranks = 1;
  bool reference = false;
  std::vector<std::string> queues{};
  uint32_t events = 0;
  std::vector<ViewSpec> views{};
  std::vector<InstrSpec> instrs{};
  std::vector<PortSpec> inputs{}, outputs{}, traces{};
  std::vector<StateSpec> states{}; // of the first mesh program: the plan's
  std::vector<ArenaSpec> arenas{};
  uint64_t boundInitial = 0, boundMax = 0;
};
struct OperandSpec {
  fb::DType dtype = fb::DType::f32;
  std::vector<int64_t> inner{};
  bool rowwise = true, output = false;
};
struct KernelSpec {
  std::string name{};
  uint32_t section = 0;
  std::vector<OperandSpec> operands{};
};
struct SectionSpec {
  fb::SectionKind kind = fb::SectionKind::host_object;
  std::vector<uint8_t> bytes{};
};
struct AxisSpec {
  std::string name{};
  uint32_t size = 1;
};
struct PlanSpec {
  std::string target = "host";
  std::vector<AxisSpec> axes;
  std::vector<std::string> calls, locations;
  std::vector<KernelSpec> kernels;
  std::vector<SectionSpec> sections;
  std::vector<ProgramSpec> programs;
  std::vector<StateSpec> orphans{}; // states of the plan where there is no mesh program
  fb::DType dtype = fb::DType::f32;

  std::vector<uint8_t> build() const;

  ProgramSpec &forward() { return programs.at(0); }
  ProgramSpec &reference() { return programs.at(1); }
};

inline ParamSpec integerParam(std::string name, int64_t value) {
  return {std::move(name), fb::ParamKind::integer, value, 0, "", {}};
}
inline ParamSpec realParam(std::string name, double value) {
  return {std::move(name), fb::ParamKind::real, 0, value, "", {}};
}
inline ParamSpec textParam(std::string name, std::string value) {
  return {std::move(name), fb::ParamKind::text, 0, 0, std::move(value), {}};
}
inline ParamSpec offsetParam(std::string name, int64_t factor, std::vector<uint8_t> axes) {
  return {std::move(name), fb::ParamKind::offset, factor, 0, "", std::move(axes)};
}

/// Makes the header right again after a change of the bytes: magic, version, schema hash, length
/// and checksum. Does nothing to less than a header.
void reseal(std::vector<uint8_t> &file);

/// A layer of experts on the mesh dp=2, ep=2: two queues with events, kernels of a fake host
/// object, ragged pack / all_to_all / regroup, and a reference program. The enums name views and
/// instructions of the forward program.
PlanSpec expertPlan();
namespace view {
enum : uint32_t {
  ids,
  table,
  x,
  y,
  gate,
  logits,
  experts,
  weights,
  need0,
  slots,
  counts,
  pos,
  need1,
  slots2,
  counts2,
  rows,
  groups,
  w,
  rows2,
  back,
  slots3,
  out,
  half
};
}
namespace at {
enum : size_t {
  embedding,
  norm,
  linear,
  route,
  zeroNeed,
  pack,
  recordPacked,
  waitPacked,
  exchangeSlots,
  exchangeCounts,
  recordReceived,
  waitReceived,
  regroup,
  experts,
  scale,
  ungroup,
  recordBack,
  waitBack,
  exchangeBack,
  reduceNeed,
  recordDone,
  waitDone,
  combine,
  copy,
  requireBound
};
}

/// One program, one call, one input and output: the smallest plan that does something.
PlanSpec tinyPlan();

/// Two programs that share a weight and a cache: `prefill` fills the cache, `decode` writes a row
/// at a position and reads all of it.
PlanSpec cachePlan();

/// The bytes of an accepted plan's views, found again without the verifier's code: true if all of
/// them lie in their arenas for the bounds 1, initial, the largest and one between.
bool viewsInsideArenas(const PlanFile &file);

} // namespace moira::rt::test

#endif // MOIRA_TEST_UNIT_PLANTESTBUILDER_H
