//===- PlanVerifierImpl.h - what the parts of the plan verifier share -*- C++ -*-===//
// The verifier runs in four parts, each a file: tables of the plan (PlanVerifier.cpp), memory of a
// program (PlanMemory.cpp), its instructions one by one (PlanInstructions.cpp) and their order
// (PlanOrder.cpp). A part may rely on what the parts before it have proven.
//
// Memory and time stay linear in the file although FlatBuffers lets tables share their parts:
// everything that is counted has a limit below, and PlanOrder has a budget of steps.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RUNTIME_CORE_PLANVERIFIERIMPL_H
#define MOIRA_RUNTIME_CORE_PLANVERIFIERIMPL_H

#include "moira/rt/CallRegistry.h"
#include "moira/rt/PlanFile.h"

#include <optional>

namespace moira::rt::verify {

// Limits. Real plans stay far below them.
inline constexpr uint64_t kMaxBytes = uint64_t(1) << 47; // of an arena at the largest bound
inline constexpr uint64_t kMaxRanks = uint64_t(1) << 20;
inline constexpr size_t kMaxAxes = 16;
inline constexpr size_t kMaxDims = 12;
inline constexpr size_t kMaxItems = size_t(1) << 18; // instructions, views, states, events, …
inline constexpr size_t kMaxOperands = 64;           // of an instruction; params likewise
inline constexpr size_t kMaxFew = 1024;              // calls, inputs
inline constexpr size_t kMaxArenas = 16;
inline constexpr size_t kMaxQueues = 8;
inline constexpr size_t kMaxPrograms = 16;
inline constexpr size_t kMaxKernels = size_t(1) << 14;
inline constexpr size_t kMaxName = 512;
inline constexpr uint64_t kAlignment = 64;

/// Collects problems; keeps no more than a reader can use.
class Report {
public:
  void add(ErrorId id, std::string message) {
    ++found;
    if (status.diagnostics().size() < 200)
      status.add(id, std::move(message));
  }
  size_t count() const { return found; }
  Status take() { return std::move(status); }

private:
  Status status;
  size_t found = 0;
};

/// A name in quotes, cut to 60 bytes, unprintable bytes as '?'.
std::string quoted(const flatbuffers::String *text);
std::string quoted(std::string_view text);

template <typename T> size_t sizeOf(const flatbuffers::Vector<T> *vector) {
  return vector ? vector->size() : 0;
}

/// Checks that it isName().
bool checkName(const flatbuffers::String *name, const std::string &where, Report &report);
/// Checks that a count is no larger than its limit.
bool checkCount(size_t count, size_t limit, const std::string &what, Report &report);

struct KernelInfo {
  bool sound = false;
  std::vector<int64_t> innerElements; // per operand
};

struct PlanContext {
  const fb::Plan &plan;
  std::span<const uint8_t> file;
  Report &report;
  std::vector<uint32_t> axisSizes{}; // as in the plan; empty if they are not sound
  bool axesSound = false;
  uint64_t ranks = 0;
  std::vector<const CallDesc *> calls{};    // null: unknown, already reported
  const fb::Program *firstOfMesh = nullptr; // the first mesh program: its arenas are all of theirs
  bool statesSound = true;                  // those that the mesh programs share
  std::vector<KernelInfo> kernels{};
};

/// Address range of a view. Offsets are linear in the bound, so the two ends say all.
struct ViewInfo {
  bool sound = false;
  fb::DType dtype = fb::DType::f32;
  uint16_t arena = 0;
  Dim elements;
  uint64_t startAtOne = 0, endAtOne = 0; // bytes in the arena with bound 1 (0 if there is none)
  uint64_t startAtMax = 0, endAtMax = 0; // with the largest bound
};

struct ProgramContext {
  PlanContext &parent;
  const fb::Program &program;
  Report &report;
  std::string where{};                   // program "forward"
  std::span<const uint32_t> axisSizes{}; // none in a reference program
  uint64_t boundLeast = 0, boundMax = 0;
  std::vector<ViewInfo> views{};

  const flatbuffers::Vector<flatbuffers::Offset<fb::State>> &states() const {
    return statesOf(parent.plan, program);
  }
  std::string describe(size_t instr) const;
  std::vector<Dim> shapeOf(size_t view) const;
  /// Whether a sound view lies in a state arena.
  bool isState(size_t view) const;
  /// Whether a sound view lies in the memory of a device's host.
  bool isOnHost(size_t view) const;
  /// How an instruction may change states where they lie; PlanOrder.cpp says when. rows: it
  /// replaces rows; update: it makes new values of the old ones; whole: it writes all of one.
  enum class StateChange { none, rows, update, whole };
  StateChange changeOf(const fb::Instr &instr) const;
};

/// Product of the sizes of `axes` if each is in the mesh and none is named twice; marks them in
/// `seen` (one entry an axis), where they must not be marked yet.
std::optional<uint64_t> axesProduct(const ProgramContext &ctx,
                                    const flatbuffers::Vector<uint8_t> *axes,
                                    std::vector<bool> &seen, const std::string &where);

void verifyMemory(ProgramContext &ctx);
void verifyInstructions(ProgramContext &ctx);
void verifyOrder(ProgramContext &ctx);

} // namespace moira::rt::verify

#endif // MOIRA_RUNTIME_CORE_PLANVERIFIERIMPL_H
