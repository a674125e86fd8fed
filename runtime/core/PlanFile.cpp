//===- PlanFile.cpp - reading and writing plan files ------------*- C++ -*-===//
// The container: header, checksum, the FlatBuffer's structure, and putting a file together. What
// the contents must mean is PlanVerifier's.
//===----------------------------------------------------------------------===//
#include "moira/rt/PlanFile.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <new>
#include <sys/stat.h>
#include <unistd.h>

namespace moira::rt {
namespace {

static_assert(std::endian::native == std::endian::little, "plans are little-endian");

constexpr char kMagic[8] = {'M', 'O', 'I', 'R', 'A', 'P', 'L', 'N'};
constexpr size_t kFlatBufferAt = sizeof(PlanHeader) + sizeof(uint64_t);
/// FlatBuffers address with 32-bit offsets; nothing legitimate comes near this.
constexpr size_t kMaxFileSize = size_t(1) << 31;

template <typename T> T load(std::span<const uint8_t> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

size_t roundUp64(size_t n) { return (n + 63) / 64 * 64; }

/// 64-aligned memory; null if there is none.
std::shared_ptr<uint8_t> allocateAligned(size_t size) {
  void *p = ::operator new(std::max<size_t>(size, 1), std::align_val_t(64), std::nothrow);
  return std::shared_ptr<uint8_t>(static_cast<uint8_t *>(p),
                                  [](uint8_t *q) { ::operator delete(q, std::align_val_t(64)); });
}

Status checkHeader(std::span<const uint8_t> bytes, uint64_t size) {
  size_t compared = std::min<size_t>(bytes.size(), sizeof(kMagic));
  if (compared == 0 || std::memcmp(bytes.data(), kMagic, compared) != 0)
    return {ErrorId::NotAPlan, "the file does not begin with MOIRAPLN; give a .moeplan file that "
                               "moe-opt has written"};
  if (bytes.size() < kFlatBufferAt)
    return {ErrorId::PlanTruncated,
            format("the file ends after %llu bytes, inside its header; copy or compile it again",
                   static_cast<unsigned long long>(size))};
  auto header = load<PlanHeader>(bytes, 0);
  if (header.version != kPlanVersion)
    return {ErrorId::PlanVersion, format("the plan has format version %u, this program reads %u; "
                                         "compile the model again",
                                         header.version, kPlanVersion)};
  if (header.schemaHash != kSchemaHash)
    return {ErrorId::PlanVersion,
            format("the plan has schema hash %016llx, this program reads %016llx; compile the "
                   "model again with the moe-opt of this version",
                   static_cast<unsigned long long>(header.schemaHash),
                   static_cast<unsigned long long>(kSchemaHash))};
  if (header.length > size)
    return {ErrorId::PlanTruncated,
            format("the file has %llu of %llu bytes; copy or compile it again",
                   static_cast<unsigned long long>(size),
                   static_cast<unsigned long long>(header.length))};
  if (header.length < size)
    return {ErrorId::PlanStructure,
            format("%llu bytes follow the plan's end at %llu; copy or compile it again",
                   static_cast<unsigned long long>(size - header.length),
                   static_cast<unsigned long long>(header.length))};
  if (size > kMaxFileSize)
    return {ErrorId::PlanStructure, format("the plan has %llu bytes, more than 2 GiB",
                                           static_cast<unsigned long long>(size))};
  return {};
}

/// The generated verifier walks the strings of a Source once for every State that refers to it, and
/// tables may be shared, so a small file could ask for a quadratic walk. True if all those walks
/// together are no longer than the buffer. Reads nothing that is not checked first.
bool sourceNamesFit(const fb::Plan &plan, flatbuffers::Verifier &v, size_t size) {
  using fb::Plan, fb::Program, fb::State, fb::Output, fb::Source;
  size_t budget = size / 4;
  // Checks a table's start and its one offset field; generated tables inherit Table privately.
  auto sound = [&](const void *table, flatbuffers::voffset_t field) {
    auto *t = static_cast<const flatbuffers::Table *>(table);
    bool ok = t->VerifyTableStart(v) && t->VerifyOffset(v, field);
    v.EndTable();
    return ok;
  };
  auto fits = [&](const Source *source) {
    if (!source)
      return true;
    if (!sound(source, Source::VT_NAMES) || !v.VerifyVector(source->names()))
      return false;
    size_t names = source->names() ? source->names()->size() : 0;
    if (names > budget)
      return false;
    budget -= names;
    return true;
  };
  auto statesFit = [&](const flatbuffers::Vector<flatbuffers::Offset<State>> *states) {
    for (size_t s = 0; states && s < states->size(); ++s) {
      const State *state = states->Get(s);
      if (!sound(state, State::VT_SOURCE) || !fits(state->source()))
        return false;
    }
    return true;
  };
  if (!sound(&plan, Plan::VT_STATES) || !v.VerifyVector(plan.states()) ||
      !statesFit(plan.states()) || !sound(&plan, Plan::VT_PROGRAMS) ||
      !v.VerifyVector(plan.programs()))
    return false;
  for (size_t p = 0; plan.programs() && p < plan.programs()->size(); ++p) {
    const Program *program = plan.programs()->Get(p);
    if (!sound(program, Program::VT_STATES) || !v.VerifyVector(program->states()) ||
        !statesFit(program->states()))
      return false;
    if (!sound(program, Program::VT_OUTPUTS) || !v.VerifyVector(program->outputs()))
      return false;
    for (size_t o = 0; program->outputs() && o < program->outputs()->size(); ++o) {
      const Output *output = program->outputs()->Get(o);
      if (!sound(output, Output::VT_SOURCE) || !fits(output->source()))
        return false;
    }
  }
  return true;
}

/// FlatBuffers' verifier checks the alignment of a vector's length only. True if all 64-bit vectors
/// are aligned for their elements, so that every reader may use them as arrays.
bool wideVectorsAligned(const fb::Plan &plan) {
  auto aligned = [](const flatbuffers::Vector<int64_t> *vector) {
    return !vector || vector->size() == 0 ||
           reinterpret_cast<uintptr_t>(vector->Data()) % alignof(int64_t) == 0;
  };
  bool ok = true;
  auto statesAligned = [&](const flatbuffers::Vector<flatbuffers::Offset<fb::State>> &states) {
    for (const fb::State *state : states)
      ok &= aligned(state->shape()) &&
            (!state->source() ||
             (aligned(state->source()->disk_shape()) && aligned(state->source()->slice())));
  };
  statesAligned(*plan.states());
  for (const fb::Kernel *kernel : *plan.kernels())
    for (const fb::KernelOperand *operand : *kernel->operands())
      ok &= aligned(operand->inner());
  for (const fb::Program *program : *plan.programs()) {
    for (const fb::View *view : *program->views())
      ok &= aligned(view->shape());
    for (const fb::Input *input : *program->inputs())
      ok &= aligned(input->shape());
    for (const fb::Output *output : *program->outputs())
      ok &= aligned(output->shape()) &&
            (!output->source() || aligned(output->source()->disk_shape()));
    for (size_t i = 0; program->traces() && i < program->traces()->size(); ++i)
      ok &= aligned(program->traces()->Get(i)->shape());
    statesAligned(*program->states());
    for (const fb::Instr *instr : *program->instrs())
      for (size_t i = 0; instr->params() && i < instr->params()->size(); ++i)
        ok &= aligned(instr->params()->Get(i)->ints());
  }
  return ok;
}

/// The root if every offset of the buffer is sound.
const fb::Plan *verifyStructure(std::span<const uint8_t> buffer) {
  // A table of its own takes 8 bytes (itself and the offset to it), so an honest buffer has no more
  // tables than this; the limit keeps shared tables from multiplying the work.
  auto tables = static_cast<flatbuffers::uoffset_t>(buffer.size() / 8 + 64);
  if (buffer.size() < 8 || buffer.size() >= FLATBUFFERS_MAX_BUFFER_SIZE)
    return nullptr;
  flatbuffers::Verifier first(buffer.data(), buffer.size(), 64, 2 * tables + 64);
  if (!first.Verify<flatbuffers::uoffset_t>(0) || !first.VerifyOffset(0) ||
      !sourceNamesFit(*fb::GetPlan(buffer.data()), first, buffer.size()))
    return nullptr;
  flatbuffers::Verifier second(buffer.data(), buffer.size(), 64, tables);
  if (!fb::VerifyPlanBuffer(second) || !wideVectorsAligned(*fb::GetPlan(buffer.data())))
    return nullptr;
  return fb::GetPlan(buffer.data());
}

} // namespace

Expected<PlanFile> PlanFile::fromBytes(std::span<const uint8_t> bytes) {
  if (Status status = checkHeader(bytes, bytes.size()); !status.ok())
    return status;
  PlanFile file;
  if (reinterpret_cast<uintptr_t>(bytes.data()) % 64 != 0) {
    std::shared_ptr<uint8_t> copy = allocateAligned(bytes.size());
    if (!copy)
      return Status(ErrorId::OutOfMemory,
                    format("no memory for a plan of %zu bytes", bytes.size()));
    std::memcpy(copy.get(), bytes.data(), bytes.size());
    bytes = {copy.get(), bytes.size()};
    file.owner = std::move(copy);
  }
  uint32_t stored = load<PlanHeader>(bytes, 0).crc32c;
  uint32_t actual = rt::crc32c(bytes.subspan(sizeof(PlanHeader)));
  if (stored != actual)
    return Status(ErrorId::PlanChecksum,
                  format("the file's checksum is %08x, its header says %08x; copy or compile it "
                         "again",
                         actual, stored));
  auto length = load<uint64_t>(bytes, sizeof(PlanHeader));
  if (length > bytes.size() - kFlatBufferAt)
    return Status(ErrorId::PlanStructure,
                  format("the FlatBuffer's length %llu passes the file's end at %zu",
                         static_cast<unsigned long long>(length), bytes.size()));
  file.bytes = bytes;
  file.root = verifyStructure(bytes.subspan(kFlatBufferAt, length));
  if (!file.root)
    return Status(
        ErrorId::PlanStructure,
        "the FlatBuffer has offsets outside itself, misaligned vectors or lacks a required field");
  if (Status status = verifyPlan(*file.root, bytes); !status.ok())
    return status;
  return file;
}

Expected<PlanFile> PlanFile::open(const std::string &path) {
  auto failed = [&](const char *what) {
    return Status(ErrorId::FileNotFound,
                  format("%s: %s: %s", path.c_str(), what, std::strerror(errno)));
  };
  auto named = [&](const Status &status) {
    Status result;
    for (const Diagnostic &d : status.diagnostics())
      result.add(d.id, path + ": " + d.message);
    return result;
  };
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  struct Descriptor {
    int fd;
    ~Descriptor() {
      if (fd >= 0)
        ::close(fd);
    }
  } file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0)
    return failed("cannot open the plan");
  struct stat info;
  if (::fstat(file.fd, &info) != 0)
    return failed("cannot read the plan");
  if (!S_ISREG(info.st_mode))
    return named({ErrorId::NotAPlan, "not a regular file"});
  auto readAt = [&](uint8_t *to, size_t size, size_t at) {
    for (size_t done = 0; done < size;) {
      ssize_t n = ::pread(file.fd, to + done, size - done, at + done);
      if (n < 0 && errno == EINTR)
        continue;
      if (n == 0)
        errno = EIO; // the file has become shorter
      if (n <= 0)
        return false;
      done += n;
    }
    return true;
  };
  // The header comes first, so that memory is only taken for something that says it is a plan.
  uint64_t size = info.st_size;
  uint8_t head[kFlatBufferAt];
  size_t headSize = std::min<uint64_t>(size, sizeof(head));
  if (!readAt(head, headSize, 0))
    return failed("cannot read the plan");
  if (Status status = checkHeader({head, headSize}, size); !status.ok())
    return named(status);
  std::shared_ptr<uint8_t> copy = allocateAligned(size);
  if (!copy)
    return named({ErrorId::OutOfMemory, format("no memory for a plan of %llu bytes",
                                               static_cast<unsigned long long>(size))});
  if (!readAt(copy.get(), size, 0))
    return failed("cannot read the plan");
  Expected<PlanFile> plan = fromBytes({copy.get(), static_cast<size_t>(size)});
  if (!plan)
    return named(plan.status());
  plan->owner = std::move(copy);
  return plan;
}

std::span<const uint8_t> PlanFile::section(size_t index) const {
  const fb::Section *section = root->sections()->Get(index);
  return bytes.subspan(section->offset(), section->length());
}

const fb::Program *PlanFile::program(std::string_view name) const {
  for (const fb::Program *program : *root->programs())
    if (program->name()->string_view() == name)
      return program;
  return nullptr;
}

std::vector<uint8_t> assemblePlanFile(std::vector<uint8_t> flatbuffer,
                                      const std::vector<std::vector<uint8_t>> &sections) {
  auto length = static_cast<uint64_t>(flatbuffer.size());
  size_t at = roundUp64(kFlatBufferAt + flatbuffer.size());
  if (fb::Plan *plan = flatbuffers::GetMutableRoot<fb::Plan>(flatbuffer.data());
      auto *tables =
          const_cast<flatbuffers::Vector<flatbuffers::Offset<fb::Section>> *>(plan->sections()))
    for (size_t i = 0; i < tables->size() && i < sections.size(); ++i) {
      auto *table = reinterpret_cast<flatbuffers::Table *>(tables->GetMutableObject(i));
      table->SetField<uint64_t>(fb::Section::VT_OFFSET, at, 0);
      table->SetField<uint64_t>(fb::Section::VT_LENGTH, sections[i].size(), 0);
      table->SetField<uint32_t>(fb::Section::VT_CRC32C, crc32c(sections[i]), 0);
      at = roundUp64(at + sections[i].size());
    }
  std::vector<uint8_t> file(kFlatBufferAt);
  std::memcpy(file.data() + sizeof(PlanHeader), &length, sizeof(length));
  file.insert(file.end(), flatbuffer.begin(), flatbuffer.end());
  for (const std::vector<uint8_t> &section : sections) {
    file.resize(roundUp64(file.size()));
    file.insert(file.end(), section.begin(), section.end());
  }
  PlanHeader header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kPlanVersion;
  header.schemaHash = kSchemaHash;
  header.length = file.size();
  header.crc32c = crc32c(std::span<const uint8_t>(file).subspan(sizeof(PlanHeader)));
  std::memcpy(file.data(), &header, sizeof(header));
  return file;
}

bool isSavedByExpert(const flatbuffers::Vector<flatbuffers::Offset<fb::State>> &states,
                     const fb::State &state) {
  std::string_view name = state.name()->string_view();
  // What an optimizer keeps of a weight W is called W.….
  return std::any_of(states.begin(), states.end(), [&](const fb::State *weight) {
    std::string_view whole = weight->name()->string_view();
    bool of = name == whole ||
              (name.size() > whole.size() && name.starts_with(whole) && name[whole.size()] == '.' &&
               weight->shape()->size() == state.shape()->size());
    return of && weight->source() && weight->source()->per_expert();
  });
}

} // namespace moira::rt
