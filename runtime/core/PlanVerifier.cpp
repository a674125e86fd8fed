//===- PlanVerifier.cpp - the rules of a plan's own tables ------*- C++ -*-===//
// verifyPlan: axes, calls, locations, kernels, sections, and the order of the parts of the
// verifier. Programs are verified in PlanMemory.cpp, PlanInstructions.cpp and PlanOrder.cpp.
//===----------------------------------------------------------------------===//
#include "PlanVerifierImpl.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace moira::rt {
namespace {

/// Bytes of the first character of `text`; 0 if that is no UTF-8.
size_t characterBytes(std::string_view text) {
  auto at = [&](size_t i) { return i < text.size() ? uint32_t(uint8_t(text[i])) : 0; };
  uint32_t first = at(0);
  if (first < 0x80)
    return 1;
  size_t bytes = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  uint32_t code = first & (0xff >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((at(i) & 0xc0) != 0x80)
      return 0;
    code = code << 6 | (at(i) & 0x3f);
  }
  constexpr uint32_t kLeast[] = {0x80, 0x800, 0x10000}; // of so many bytes; less is overlong
  bool surrogate = code >= 0xd800 && code < 0xe000;
  bool begins = first >= 0xc0 && first < 0xf8;
  bool fits = begins && code >= kLeast[bytes - 2] && code < 0x110000 && !surrogate;
  return fits ? bytes : 0;
}

} // namespace

bool isName(std::string_view text) {
  if (text.empty() || text.size() > verify::kMaxName)
    return false;
  for (size_t bytes = 0; !text.empty(); text.remove_prefix(bytes)) {
    bytes = characterBytes(text);
    if (bytes == 0 || uint8_t(text[0]) < 0x20 || text[0] == 0x7f)
      return false;
  }
  return true;
}

} // namespace moira::rt

namespace moira::rt::verify {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (unsigned char c : text.substr(0, 60))
    out += c < 0x20 || c == 0x7f || c == '"' ? '?' : static_cast<char>(c);
  return out + (text.size() > 60 ? "…\"" : "\"");
}

std::string quoted(const flatbuffers::String *text) {
  return quoted(text ? text->string_view() : std::string_view());
}

bool checkName(const flatbuffers::String *name, const std::string &where, Report &report) {
  if (!name || name->size() == 0 || name->size() > kMaxName) {
    report.add(ErrorId::PlanStructure, format("%s: the name has %u bytes, not 1 to %zu",
                                              where.c_str(), name ? name->size() : 0, kMaxName));
    return false;
  }
  if (isName(name->string_view()))
    return true;
  report.add(ErrorId::PlanStructure,
             where + ": the name " + quoted(name) + " has unprintable bytes");
  return false;
}

bool checkCount(size_t count, size_t limit, const std::string &what, Report &report) {
  if (count <= limit)
    return true;
  report.add(ErrorId::PlanStructure, format("%zu %s, more than %zu", count, what.c_str(), limit));
  return false;
}

namespace {

void verifyAxes(PlanContext &ctx) {
  const auto &axes = *ctx.plan.axes();
  size_t before = ctx.report.count();
  std::unordered_set<std::string_view> names;
  if (!checkCount(axes.size(), kMaxAxes, "mesh axes", ctx.report))
    return;
  ctx.ranks = 1;
  for (size_t i = 0; i < axes.size(); ++i) {
    std::string where = format("mesh axis %zu", i);
    const fb::Axis *axis = axes[i];
    if (checkName(axis->name(), where, ctx.report) &&
        !names.insert(axis->name()->string_view()).second)
      ctx.report.add(ErrorId::PlanStructure,
                     where + ": the name " + quoted(axis->name()) + " is used twice");
    if (axis->size() < 1 || axis->size() > kMaxRanks)
      ctx.report.add(ErrorId::PlanStructure,
                     format("%s: size %u, not 1 to 2^20", where.c_str(), axis->size()));
    ctx.axisSizes.push_back(axis->size());
    ctx.ranks = std::min(ctx.ranks * axis->size(), kMaxRanks + 1);
  }
  if (ctx.ranks > kMaxRanks)
    ctx.report.add(ErrorId::PlanStructure, "the mesh has more than 2^20 ranks");
  ctx.axesSound = ctx.report.count() == before;
}

void verifyCalls(PlanContext &ctx) {
  const auto &calls = *ctx.plan.calls();
  if (!checkCount(calls.size(), kMaxFew, "calls", ctx.report))
    return;
  for (size_t i = 0; i < calls.size(); ++i) {
    const CallDesc *call =
        calls[i]->size() <= kMaxName ? findCall(calls[i]->string_view()) : nullptr;
    if (!call)
      ctx.report.add(ErrorId::PlanUnknownCall,
                     format("call %zu: %s is no library call of this version; compile the model "
                            "again with its moe-opt",
                            i, quoted(calls[i]).c_str()));
    ctx.calls.push_back(call);
  }
}

void verifySections(PlanContext &ctx) {
  const auto &sections = *ctx.plan.sections();
  constexpr size_t kLengthAt = sizeof(PlanHeader), kBufferAt = kLengthAt + sizeof(uint64_t);
  uint64_t length = 0;
  if (ctx.file.size() >= kBufferAt)
    std::memcpy(&length, ctx.file.data() + kLengthAt, sizeof(length));
  if (ctx.file.size() < kBufferAt || length > ctx.file.size() - kBufferAt) {
    ctx.report.add(ErrorId::PlanStructure, "the FlatBuffer is longer than the file");
    return;
  }
  uint64_t end = kBufferAt + length;
  for (size_t i = 0; i < sections.size(); ++i) {
    const fb::Section *section = sections[i];
    std::string where = format("section %zu", i);
    if (section->kind() > fb::SectionKind::MAX)
      ctx.report.add(ErrorId::PlanStructure, format("%s: unknown kind %d", where.c_str(),
                                                    static_cast<int>(section->kind())));
    uint64_t wanted = (end + kAlignment - 1) / kAlignment * kAlignment;
    if (section->length() < 1 || section->offset() > ctx.file.size() ||
        section->length() > ctx.file.size() - section->offset()) {
      ctx.report.add(ErrorId::PlanBounds,
                     format("%s: %llu bytes at %llu are not inside the file's %zu", where.c_str(),
                            static_cast<unsigned long long>(section->length()),
                            static_cast<unsigned long long>(section->offset()), ctx.file.size()));
      return; // the places of the later ones depend on it
    }
    if (section->offset() != wanted) {
      ctx.report.add(ErrorId::PlanStructure,
                     format("%s: begins at %llu; what stands before it ends at %llu, so it must "
                            "begin at %llu",
                            where.c_str(), static_cast<unsigned long long>(section->offset()),
                            static_cast<unsigned long long>(end),
                            static_cast<unsigned long long>(wanted)));
      return;
    }
    uint32_t sum = crc32c(ctx.file.subspan(section->offset(), section->length()));
    if (sum != section->crc32c())
      ctx.report.add(ErrorId::PlanChecksum, format("%s: its checksum is %08x, not %08x",
                                                   where.c_str(), sum, section->crc32c()));
    end = section->offset() + section->length();
  }
  if (ctx.file.size() - end >= kAlignment)
    ctx.report.add(ErrorId::PlanStructure,
                   format("%llu bytes follow the last section",
                          static_cast<unsigned long long>(ctx.file.size() - end)));
}

/// Kernel names become symbols that the loader looks up.
bool isSymbol(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  });
}

void verifyKernel(PlanContext &ctx, size_t index, bool host, KernelInfo &info) {
  const fb::Kernel *kernel = (*ctx.plan.kernels())[index];
  std::string where = format("kernel %zu %s", index, quoted(kernel->name()).c_str());
  size_t before = ctx.report.count();
  if (checkName(kernel->name(), where, ctx.report) && !isSymbol(kernel->name()->string_view()))
    ctx.report.add(ErrorId::PlanStructure,
                   where + ": the name is not a symbol (letters, digits, _)");
  if (kernel->section() >= ctx.plan.sections()->size())
    ctx.report.add(ErrorId::PlanIndex, format("%s: section %u of %u", where.c_str(),
                                              kernel->section(), ctx.plan.sections()->size()));
  else if (fb::SectionKind kind = (*ctx.plan.sections())[kernel->section()]->kind();
           kind != (host ? fb::SectionKind::host_object : fb::SectionKind::ptx))
    ctx.report.add(ErrorId::PlanStructure,
                   format("%s: section %u is not %s", where.c_str(), kernel->section(),
                          host ? "a host object" : "PTX"));
  if (checkCount(kernel->operands()->size(), kMaxOperands, "operands of " + where, ctx.report))
    for (size_t i = 0; i < kernel->operands()->size(); ++i) {
      const fb::KernelOperand *operand = (*kernel->operands())[i];
      std::string at = format("%s operand %zu", where.c_str(), i);
      if (dtypeBytes(operand->dtype()) == 0)
        ctx.report.add(ErrorId::PlanStructure, at + ": unknown " + dtypeText(operand->dtype()));
      if (operand->output() && !operand->rowwise())
        ctx.report.add(ErrorId::PlanStructure, at + ": an output must be rowwise");
      std::vector<Dim> inner;
      for (size_t d = 0; d < std::min<size_t>(operand->inner()->size(), kMaxDims + 1); ++d)
        inner.push_back({operand->inner()->Get(d), false});
      std::optional<Dim> elements = elementsOf(inner, 0);
      if (inner.size() > kMaxDims || !elements)
        ctx.report.add(ErrorId::PlanShape, at + ": impossible shape " + shapeText(inner));
      info.innerElements.push_back(elements ? elements->scale : 0);
    }
  info.sound = ctx.report.count() == before;
}

void verifyKernels(PlanContext &ctx) {
  const auto &kernels = *ctx.plan.kernels();
  if (!checkCount(kernels.size(), kMaxKernels, "kernels", ctx.report))
    return;
  bool host = ctx.plan.target()->string_view() == "host";
  std::unordered_set<std::string_view> names;
  ctx.kernels.resize(kernels.size());
  for (size_t i = 0; i < kernels.size(); ++i) {
    verifyKernel(ctx, i, host, ctx.kernels[i]);
    if (ctx.kernels[i].sound && !names.insert(kernels[i]->name()->string_view()).second)
      ctx.report.add(ErrorId::PlanStructure, format("kernel %zu: the name %s is used twice", i,
                                                    quoted(kernels[i]->name()).c_str()));
  }
}

void verifyInfo(PlanContext &ctx) {
  const fb::ModelInfo *info = ctx.plan.info();
  constexpr int64_t kMost = int64_t(1) << 40;
  if (info->dtype() != fb::DType::f32 && info->dtype() != fb::DType::bf16)
    ctx.report.add(ErrorId::PlanStructure,
                   "info: dtype is " + dtypeText(info->dtype()) + ", not f32 or bf16");
  if (info->batch() < 0 || info->batch() > kMost || info->seq() < 0 || info->seq() > kMost)
    ctx.report.add(ErrorId::PlanStructure,
                   format("info: batch %lld or seq %lld is not in 0 to 2^40",
                          static_cast<long long>(info->batch()),
                          static_cast<long long>(info->seq())));
}

void verifyProgram(PlanContext &plan, const fb::Program &program, const std::string &where) {
  ProgramContext ctx{.parent = plan, .program = program, .report = plan.report, .where = where};
  size_t before = ctx.report.count();
  if (!program.reference())
    ctx.axisSizes = plan.axisSizes;
  uint64_t ranks = program.reference() ? 1 : plan.ranks;
  if (program.ranks() != ranks)
    ctx.report.add(ErrorId::PlanStructure,
                   format("%s: %u ranks, %s %llu", where.c_str(), program.ranks(),
                          program.reference() ? "a reference program has" : "the mesh has",
                          static_cast<unsigned long long>(ranks)));
  uint64_t least = program.bound_initial(), most = program.bound_max();
  if ((least == 0) != (most == 0) || least > most || most > INT32_MAX ||
      (program.reference() && most != 0))
    ctx.report.add(ErrorId::PlanStructure,
                   format("%s: bound %llu, largest %llu; wanted 1 <= bound <= largest < 2^31, or "
                          "both 0 (always in a reference program)",
                          where.c_str(), static_cast<unsigned long long>(least),
                          static_cast<unsigned long long>(most)));
  else {
    ctx.boundLeast = most ? 1 : 0;
    ctx.boundMax = most;
  }
  bool counted = true;
  for (auto [count, limit, what] : {std::tuple(sizeOf(program.queues()), kMaxQueues, "queues"),
                                    std::tuple(sizeOf(program.arenas()), kMaxArenas, "arenas"),
                                    std::tuple(sizeOf(program.views()), kMaxItems, "views"),
                                    std::tuple(sizeOf(program.instrs()), kMaxItems, "instructions"),
                                    std::tuple(sizeOf(&ctx.states()), kMaxItems, "states"),
                                    std::tuple(sizeOf(program.inputs()), kMaxFew, "inputs"),
                                    std::tuple(sizeOf(program.outputs()), kMaxItems, "outputs"),
                                    std::tuple(sizeOf(program.traces()), kMaxItems, "traces"),
                                    std::tuple(size_t(program.events()), kMaxItems, "events")})
    counted &= checkCount(count, limit, std::string(what) + " of " + where, ctx.report);
  if (!counted)
    return;
  std::unordered_set<std::string_view> names;
  for (size_t i = 0; i < program.queues()->size(); ++i) {
    const flatbuffers::String *name = (*program.queues())[i]->name();
    std::string at = format("%s queue %zu", where.c_str(), i);
    if (checkName(name, at, ctx.report) && !names.insert(name->string_view()).second)
      ctx.report.add(ErrorId::PlanStructure, at + ": the name " + quoted(name) + " is used twice");
  }
  verifyMemory(ctx);
  verifyInstructions(ctx);
  if (ctx.report.count() == before && (program.reference() || plan.statesSound))
    verifyOrder(ctx);
}

} // namespace
} // namespace moira::rt::verify

namespace moira::rt {

Status verifyPlan(const fb::Plan &plan, std::span<const uint8_t> file) {
  using namespace verify;
  Report report;
  PlanContext ctx{.plan = plan, .file = file, .report = report};
  checkName(plan.target(), "target", report);
  verifyAxes(ctx);
  verifyCalls(ctx);
  verifySections(ctx);
  verifyKernels(ctx);
  verifyInfo(ctx);
  checkCount(plan.locations()->size(), kMaxItems, "locations", report);
  if (plan.programs()->size() == 0)
    report.add(ErrorId::PlanStructure, "the plan has no program");
  // Programs are measured against the mesh and the call table.
  if (!ctx.axesSound || ctx.calls.size() != plan.calls()->size() ||
      ctx.kernels.size() != plan.kernels()->size() ||
      !checkCount(plan.programs()->size(), kMaxPrograms, "programs", report))
    return report.take();
  for (const fb::Program *program : *plan.programs())
    if (!program->reference() && !ctx.firstOfMesh)
      ctx.firstOfMesh = program;
  if (!ctx.firstOfMesh && plan.states()->size() != 0)
    report.add(ErrorId::PlanStructure, "the plan has states, but no mesh program that shares them");
  std::unordered_set<std::string_view> names;
  for (size_t i = 0; i < plan.programs()->size(); ++i) {
    const fb::Program *program = (*plan.programs())[i];
    std::string where = "program " + quoted(program->name());
    if (checkName(program->name(), format("program %zu", i), report) &&
        !names.insert(program->name()->string_view()).second)
      report.add(ErrorId::PlanStructure, where + ": the name is used twice");
    verifyProgram(ctx, *program, where);
  }
  return report.take();
}

} // namespace moira::rt
