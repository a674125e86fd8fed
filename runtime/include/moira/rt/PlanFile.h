//===- PlanFile.h - a plan file in memory, loaded and verified --*- C++ -*-===//
// Header, checksum, FlatBuffer bounds and the semantic rules of plan.fbs. An accepted plan cannot
// make the runtime read or write outside its arenas. Files and bytes are hostile: every function
// here is total.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_PLANFILE_H
#define MOIRA_RT_PLANFILE_H

#include "moira/rt/Status.h"
#include "plan_generated.h" // generated from runtime/schema/plan.fbs at build time

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// First 32 bytes of a plan, little-endian. crc32c covers every byte of the file but the header.
struct PlanHeader {
  char magic[8];    // "MOIRAPLN"
  uint32_t version; // kPlanVersion
  uint32_t crc32c;
  uint64_t schemaHash; // kSchemaHash: plan.fbs and Calls.def, byte for byte
  uint64_t length;     // of the whole file, header included
};
static_assert(sizeof(PlanHeader) == 32);
inline constexpr uint32_t kPlanVersion = 1;
extern const uint64_t kSchemaHash;

uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t seed = 0);

/// Layout: header, FlatBuffer (length stored before it as u64), zero padding to 64, sections each
/// at a multiple of 64. Copies share the bytes.
class PlanFile {
public:
  /// Reads `path` and verifies it. It is read, not mapped: a file that changes later could undo
  /// what was verified.
  static Expected<PlanFile> open(const std::string &path);
  /// Verifies bytes in memory; copies nothing, `bytes` must outlive the result and be 64-aligned
  /// (else a copy is made).
  static Expected<PlanFile> fromBytes(std::span<const uint8_t> bytes);

  const fb::Plan &plan() const { return *root; }
  /// Bytes of section `index` (verified to exist and to have its checksum).
  std::span<const uint8_t> section(size_t index) const;
  size_t fileSize() const { return bytes.size(); }
  /// The checksum of the file, as its header has it.
  uint32_t checksum() const { return reinterpret_cast<const PlanHeader *>(bytes.data())->crc32c; }
  /// Program by name, or null.
  const fb::Program *program(std::string_view name) const;

private:
  std::shared_ptr<const void> owner; // of the bytes, if they are not the caller's
  std::span<const uint8_t> bytes;
  const fb::Plan *root = nullptr;
};

/// The state tensors of a program: a reference program's own, else those that all mesh programs
/// share.
inline const flatbuffers::Vector<flatbuffers::Offset<fb::State>> &
statesOf(const fb::Plan &plan, const fb::Program &program) {
  return program.reference() ? *program.states() : *plan.states();
}

/// Whether training checkpoints have a box for each expert (dimension 0) of this state of a mesh
/// program: a weight that the checkpoint has expert by expert, or what an optimizer keeps of one.
bool isSavedByExpert(const flatbuffers::Vector<flatbuffers::Offset<fb::State>> &states,
                     const fb::State &state);

/// Whether something in a plan may be called so: 1 to 512 bytes of UTF-8 without control
/// characters. Names come to stand in terminals, and in files of JSON, which hold nothing else.
bool isName(std::string_view text);

/// The semantic rules on a structurally sound FlatBuffer; `sectionBytes` is the file from its first
/// byte. All problems are reported.
Status verifyPlan(const fb::Plan &plan, std::span<const uint8_t> file);

/// Puts a file together: header, FlatBuffer, sections. Section offsets are only known once the
/// FlatBuffer's size is, so `flatbuffer` is a finished buffer whose Section.offset and crc32c
/// fields are patched in place (they must have been written with non-default values so that they
/// exist).
std::vector<uint8_t> assemblePlanFile(std::vector<uint8_t> flatbuffer,
                                      const std::vector<std::vector<uint8_t>> &sections);

} // namespace moira::rt

#endif // MOIRA_RT_PLANFILE_H
